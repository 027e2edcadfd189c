"""Disks that are full and folders that can't be written to: told before long work starts, and without loss during it.

    check_writable("output/scored.csv")
    check_space("output", 3 * 10**9, "A checkpoint")
    with telling_full("output/scored.csv"):
        ...

Sizes are in bytes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from cross_trainer.errors import ConfigurationError, DiskFullError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TOLD = (*map(os.strerror, FULL), "PytorchStreamWriter failed writing")
"""What errors of a full disk say where they have no number: those of safetensors and of torch."""


def is_full(error: BaseException) -> bool:
    """Whether an error is one of a full disk, a quota or a limit of a file's size."""
    return getattr(error, "errno", None) in FULL or any(text in str(error) for text in _TOLD)


@contextlib.contextmanager
def telling_full(path: str | PathLike[str], remedy: str = "Free some space, and run it again.") -> Iterator[None]:
    """Say what couldn't be written where the disk is full.

    Args:
        path: What is being written.
        remedy: What to do then.

    Raises:
        DiskFullError: The disk is full.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        raise DiskFullError(f"{path} can't be written to its end: the disk is full ({error}). {remedy}") from error


def check_writable(path: str | PathLike[str], *, folder: bool = False) -> None:
    """Check that a file, or files in a folder, can be written. Nothing is left behind, and no folder is made.

    >>> check_writable("scored.csv")

    Args:
        path: The file or the folder; the folders above it need not be there.
        folder: It is a folder.

    Raises:
        ConfigurationError: The place isn't writable, or is a folder where a file is expected or the other way round.
        DiskFullError: There is no space at all.
    """
    path = Path(path)
    if path.is_dir() and not folder:
        raise ConfigurationError(f"{path} is a folder. Name a file to write.")
    place = path if folder else path.parent
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise ConfigurationError(f"{path}: {place} is a file, so nothing can be written below it. Name another place.")
    if "\0" in str(path):
        raise ConfigurationError(f"{str(path)!r}: no file can have a NUL in its name. Name another place.")
    try:
        with telling_full(place), tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(512))
            file.flush()
    except DiskFullError:
        raise
    except OSError as error:
        raise ConfigurationError(
            f"{path} can't be written: {error.strerror}. Name another place, or change its rights."
        ) from error


def free_space(path: str | PathLike[str]) -> int:
    """Bytes that are free where a file or a folder will lie."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def check_space(path: str | PathLike[str], needed: int, what: str) -> None:
    """Check that something fits on a disk.

    >>> check_space("output", 10, "A checkpoint")

    Args:
        path: Where it will lie.
        needed: Its size in bytes.
        what: What it is, for the message.

    Raises:
        DiskFullError: It doesn't.
    """
    free = free_space(path)
    if free < needed:
        raise DiskFullError(
            f"{what} takes {in_words(needed)}, and {in_words(free)} are free where {path} lies. Free some space, or "
            "name another place."
        )


def in_words(size: int) -> str:
    """A number of bytes, as people say it.

    >>> in_words(3_210_000_000)
    '3.2 GB'
    """
    for unit, each in (("GB", 10**9), ("MB", 10**6)):
        if size >= each:
            return f"{size / each:.1f} {unit}"
    return f"{size / 1000:.1f} kB"
