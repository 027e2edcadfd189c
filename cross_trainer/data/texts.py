"""Texts on disk that are found by their id: what a corpus larger than memory is read from.

    store = TextStore((row["id"], row["text"]) for row in read_rows("corpus.jsonl"))
    store[store.ids["d7"]]

Ids are kept in memory, texts in a temporary file, which any process or thread that shares it may read.
"""

from __future__ import annotations

import contextlib
import mmap
import tempfile
import weakref
from array import array
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from typing import IO, overload

from cross_trainer.disk import telling_full
from cross_trainer.errors import DataError


class TextStore(Sequence[str]):
    """Texts in a temporary file on disk, found by their position, and their ids in memory.

        >>> store = TextStore([("d1", "a cat"), ("d2", "two dogs")])
        >>> store[store.ids["d2"]]
        'two dogs'

    Args:
        entries: The id and the text of each, read once.
        wanted: The ids to keep. Default: all.
        kind: What they are, for messages.

    Attributes:
        ids: The position of each id, in the order read.

    Raises:
        DataError: An id occurs twice.
        DiskFullError: The texts don't fit there.
    """

    def __init__(
        self, entries: Iterable[tuple[str, str]], wanted: Collection[str] | None = None, kind: str = "document"
    ) -> None:
        self.ids: dict[str, int] = {}
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the store
        weakref.finalize(self, _close, self._file)
        self._ends = array("q", [0])
        with telling_full(tempfile.gettempdir(), "Free some space, or name another folder with TMPDIR."):
            for name, text in entries:
                if wanted is not None and name not in wanted:
                    continue
                if self.ids.setdefault(name, position := len(self.ids)) != position:
                    raise DataError(f"The {kind} id {name!r} occurs twice. Keep one of its rows.")
                self._ends.append(self._ends[-1] + self._file.write(text.encode()))
            self._file.flush()

    @cached_property
    def _bytes(self) -> bytes | mmap.mmap:
        # A position in the file would be shared with forked workers, and moved by them.
        return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) if self._ends[-1] else b""

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, position: int) -> str: ...

    @overload
    def __getitem__(self, position: slice) -> list[str]: ...

    def __getitem__(self, position: int | slice) -> str | list[str]:
        if isinstance(position, slice):
            return [self[place] for place in range(len(self))[position]]
        place = range(len(self))[position]
        return self._bytes[self._ends[place] : self._ends[place + 1]].decode()


def _close(file: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # what didn't fit is tried again
        file.close()
