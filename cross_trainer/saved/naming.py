"""Errors of reading a model's files, from whichever library they come, with the model's name and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cross_trainer.errors import ConfigurationError, CrossTrainerError


def check_path(name: str) -> None:
    """Check that a name which can only be a path is a folder.

    Raises:
        ConfigurationError: It isn't.
    """
    path = Path(name)
    if not path.is_dir() and (path.is_file() or name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise ConfigurationError(f"The model {name!r} is a path, but there is no such folder. Check the name.")


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Name the model in errors of reading its files.

    Args:
        name: On the Hub, or a folder.

    Raises:
        ConfigurationError: It isn't there, or a file of it is broken.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    check_path(name)
    try:
        yield
    except (CrossTrainerError, UnicodeEncodeError):
        raise
    except (OSError, ValueError, TypeError, AttributeError, KeyError, SafetensorError, StrictDataclassError) as error:
        told = " ".join(str(error).split())
        if "trust_remote_code" in told:
            raise ConfigurationError(
                f"The model {name!r} has Python code of its own, which is run with trust_remote_code=True alone. Read "
                "it first."
            ) from error
        remedy = "Look at that file, or fetch the model again." if Path(name).is_dir() else "Check the name."
        raise ConfigurationError(
            f"The model {name!r} can't be loaded from a folder or from the Hub: {told[:400]}"
            f"{'' if told.endswith('.') else '.'} {remedy}"
        ) from error
