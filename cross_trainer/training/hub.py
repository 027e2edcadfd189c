"""Uploads that a training survives: what the Hub may raise, and what is said where something wasn't uploaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # the release that it uses itself

logger = logging.getLogger(__name__)

HUB_ERRORS: tuple[type[Exception], ...] = (OSError, RuntimeError, httpx.HTTPError)
"""No network, no permission, an upload that was broken off: huggingface_hub has no class for all of them.

A name that can't be a repository's is a ValueError, and ends a training before it starts.
"""


def say_not_uploaded(what: str, folder: str | Path, error: BaseException) -> None:
    """Warn that something isn't on the Hub, why, and how it gets there."""
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
    logger.warning(
        "Not uploaded to the Hub: %s. The reason: %s: %s. The files are in %s, and the next upload takes them along, "
        "as does trainer.push_to_hub().",
        what,
        type(cause).__name__,
        " ".join(str(cause).split()),
        folder,
    )


def watch_uploads(
    jobs: Sequence[Future[Any]], what: str, folder: str | Path, then: Callable[[], None] = lambda: None
) -> None:
    """Warn of uploads in the background that fail, when they do, and do something after each that doesn't."""

    def told(job: Future[Any]) -> None:
        error: BaseException | None
        try:
            error = job.exception()
            if error is None:
                then()
        except CancelledError as cancelled:
            error = cancelled
        except HUB_ERRORS as failure:
            error = failure
        if error is not None:
            say_not_uploaded(what, folder, error)

    for job in jobs:
        job.add_done_callback(told)
