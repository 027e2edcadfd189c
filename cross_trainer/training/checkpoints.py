"""Checkpoints: which of them are whole, whatever moment a training was killed at.

The Trainer writes weights, optimizer and random numbers, and `trainer_state.json` at the end. A checkpoint without that
file is never gone on from.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from cross_trainer.errors import ConfigurationError

logger = logging.getLogger(__name__)


def last_complete_checkpoint(folder: str | Path) -> str:
    """The newest whole checkpoint in a folder.

    Raises:
        ConfigurationError: There is none.
    """
    checkpoints = Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    numbered = [
        (int(path.name.rsplit("-", 1)[1]), path) for path in checkpoints if path.name.rsplit("-", 1)[1].isdigit()
    ]
    for _, path in sorted(numbered, reverse=True):
        if is_complete(path):
            return str(path)
        logger.warning("Checkpoint %s was not written to its end. Going back to an older one.", path)
    raise ConfigurationError(
        f"No complete checkpoint in {str(folder)!r} to resume from. Start without resume_from_checkpoint."
    )


def is_complete(checkpoint: str | Path) -> bool:
    """Whether a checkpoint was written to its end: `trainer_state.json`, which is written last, can be read."""
    try:
        json.loads(Path(checkpoint, TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def check_complete(checkpoint: str | Path) -> None:
    """Check that training can go on from a checkpoint.

    Raises:
        ConfigurationError: It isn't there, or it was not written to its end.
    """
    if not is_complete(checkpoint):
        what = "was not written to its end" if Path(checkpoint).is_dir() else "isn't there"
        raise ConfigurationError(
            f"resume_from_checkpoint: {checkpoint} {what}. Name another one, or pass True for the newest that is whole."
        )


def begin_checkpoint(checkpoint: str | Path) -> None:
    """Let a checkpoint that is written again count as whole only at its new end."""
    Path(checkpoint, TRAINER_STATE_NAME).unlink(missing_ok=True)
