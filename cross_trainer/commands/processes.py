"""A command in several processes, as `torchrun` and `accelerate launch` start them: each scores its share, one writes.

    torchrun --nproc_per_node 2 -m cross_trainer score pairs.csv -o scored.csv --model output/quora

The main process checks, decides and writes; the others learn what it found, and end with it where it fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from cross_trainer.errors import CrossTrainerError
from cross_trainer.internals import process_state

Found = TypeVar("Found")


def is_main() -> bool:
    """Whether this process is the one that speaks and writes."""
    return os.environ.get("RANK", "0") == "0"


def are_several() -> bool:
    """Whether there are other processes."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def on_main(work: Callable[[], Found]) -> Found:
    """Do something on the main process; all processes get its result, or its error.

    >>> on_main(lambda: 3)
    3
    """
    if not are_several():
        return work()
    from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]

    process_state()  # the processes know each other from here on
    outcome: list[object] = [None, None]
    if is_main():
        try:
            outcome[0] = work()
        except (CrossTrainerError, OSError) as error:
            outcome[1] = error
    found, failure = broadcast_object_list(outcome)
    if isinstance(failure, Exception):
        raise failure
    return found  # type: ignore[no-any-return]


def wait_for_all() -> None:
    """Wait until every process has come here."""
    if are_several():
        process_state().wait_for_everyone()
