"""What can go wrong, each error also a builtin one, so that `except ValueError` keeps working.

Every message names what was found, where, and what to do about it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from numbers import Integral


def short(value: object) -> str:
    """A value as a message shows it: its `repr`, of 60 characters at most."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class CrossTrainerError(Exception):
    """Parent of every error that this package raises on purpose.

    >>> [each.__name__ for each in CrossTrainerError.__subclasses__()][:3]
    ['DataError', 'NotFiniteError', 'ConfigurationError']
    """


class DataError(CrossTrainerError, ValueError):
    """A data set holds something that can't be trained or scored on: the message names the column and the row.

    >>> issubclass(DataError, ValueError)
    True
    """


class NotFiniteError(CrossTrainerError, FloatingPointError):
    """A loss or a gradient in training is NaN or infinite: the message names the step and the rows.

    >>> issubclass(NotFiniteError, FloatingPointError)
    True
    """


class ConfigurationError(CrossTrainerError, ValueError):
    """Arguments that contradict each other, the model or the data.

    >>> issubclass(ConfigurationError, ValueError)
    True
    """


class UnsupportedModelError(CrossTrainerError, TypeError):
    """A model that a feature can't work on: the message says why.

    >>> issubclass(UnsupportedModelError, TypeError)
    True
    """


class MissingDependencyError(CrossTrainerError, ImportError):
    """An optional dependency isn't installed: the message names the extra to install.

    >>> issubclass(MissingDependencyError, ImportError)
    True
    """


class DiskFullError(CrossTrainerError, OSError):
    """There is no space left to write something: the message names it, and says how to go on.

    >>> issubclass(DiskFullError, OSError)
    True
    """


def check_whole(name: str, value: object, lowest: int = 1) -> None:
    """Check an argument that counts something.

    Raises:
        ConfigurationError: It isn't a whole number, or it is below `lowest`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < lowest:
        raise ConfigurationError(f"{name}={value!r}: expected a whole number, {lowest} or more.")


@contextlib.contextmanager
def in_dataset(name: str) -> Iterator[None]:
    """Name the data set, one of several, in what is raised about data and arguments within.

    >>> with in_dataset("graded"):
    ...     raise DataError("Column 'label' is missing.")
    Traceback (most recent call last):
    cross_trainer.errors.DataError: Data set 'graded': Column 'label' is missing.
    """
    try:
        yield
    except (DataError, ConfigurationError) as error:
        raise type(error)(f"Data set {name!r}: {error}") from error
