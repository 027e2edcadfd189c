"""Checkpoints: which of them are whole, whatever moment a training was killed at.

The Trainer writes weights, optimizer and random numbers, and `trainer_state.json` at the end. A checkpoint without that
file is never gone on from.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from pathlib import Path

from torch import nn
from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from cross_trainer.disk import check_space, check_writable, free_space, in_words
from cross_trainer.errors import ConfigurationError
from cross_trainer.saved.adapters import size_of

logger = logging.getLogger(__name__)


STATES = {"sgd": 0, "adafactor": 0, "rmsprop": 1, "adagrad": 1, "lion": 1}
"""How many numbers some optimizers keep for each weight at least; most others keep two."""


def check_folders(args: TrainingArguments) -> None:
    """Check that a training can write where it will.

    Raises:
        ConfigurationError: A folder can't be written to.
        DiskFullError: The disk is full.
    """
    if not args.should_save:
        return
    check_writable(str(args.output_dir), folder=True)
    logs = os.environ.get("TENSORBOARD_LOGGING_DIR")
    if logs and "tensorboard" in (args.report_to or ()):
        check_writable(os.path.expanduser(logs), folder=True)


def check_room(args: TrainingArguments, model: nn.Module) -> None:
    """Check that there is room for a checkpoint; warn where those that will be kept don't fit.

    Raises:
        DiskFullError: Not even one fits.
    """
    if not args.should_save or args.save_strategy == "no":
        return
    size, folder = checkpoint_size(args, model), str(args.output_dir)
    check_space(folder, size, f"A checkpoint in {folder}")
    kept, free = _kept(args), free_space(folder)
    if kept is not None and kept * size > free:
        logger.warning(
            "%d checkpoints of %s don't fit in %s, where %s are free. Keep fewer with save_total_limit.",
            kept,
            in_words(size),
            folder,
            in_words(free),
        )


def checkpoint_size(args: TrainingArguments, model: nn.Module) -> int:
    """Bytes of a checkpoint's weights and of its optimizer."""
    states = 0 if args.save_only_model else STATES.get(str(getattr(args.optim, "value", args.optim)), 2)
    return size_of(model) + states * sum(each.nbytes for each in model.parameters() if each.requires_grad)


def _kept(args: TrainingArguments) -> int | None:
    """How many checkpoints there are at most at a time, where it is known: the newest is written before one goes."""
    if args.save_total_limit:
        return args.save_total_limit + 1
    if args.save_strategy == "epoch" and args.max_steps <= 0:
        return math.ceil(args.num_train_epochs)
    if args.save_strategy == "steps" and args.max_steps > 0 and args.save_steps >= 1:
        return int(args.max_steps // args.save_steps)
    return None


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


def give_up(checkpoint: str | Path) -> None:
    """Remove what there is of a checkpoint that didn't fit, so that others can use its space."""
    if not is_complete(checkpoint):
        shutil.rmtree(checkpoint, ignore_errors=True)
