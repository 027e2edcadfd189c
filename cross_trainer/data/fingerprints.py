"""Fingerprints of pairs, by which rows that a model was trained on are known again without keeping their texts.

    >>> known = fingerprints([("a cat", "a dog")])
    >>> trained_on(fingerprints([("two birds", "a dog"), ("a dog", "a cat")]), known)  # in either order
    array([1])

A fingerprint is 64 bits of BLAKE2b of both texts. Who has a pair can tell whether it is among them; the texts can't be
read from it. Of more than `KEPT` pairs those with the smallest fingerprints are kept, which is a fair sample of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from cross_trainer.data.columns import Columns, Row, Rows, as_mapping, is_list
from cross_trainer.data.pairs import Pair
from cross_trainer.data.survey import read_batches
from cross_trainer.errors import DataError, short

Fingerprints = NDArray[np.uint64]

KEPT = 1_000_000  # pairs, of 8 bytes each
NOTABLE = 0.05  # share of rows that were trained on from which they are no chance repetitions


def fingerprints(pairs: Iterable[Pair]) -> Fingerprints:
    """A number for each pair [P], whatever the order of its texts."""
    return np.fromiter(map(_fingerprint, pairs), dtype=np.uint64)


def _fingerprint(pair: Pair) -> int:
    text = "\0".join(sorted(pair)).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def joined(*parts: Fingerprints | None) -> Fingerprints:
    """All fingerprints once, sorted; of more than `KEPT` the smallest."""
    known = [part for part in parts if part is not None]
    return np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *known]))[:KEPT]


def fingerprints_of(rows: Rows, columns: Columns) -> Fingerprints:
    """A number for each pair of a mapped data set [P]; none for rows of tokens."""
    return fingerprints(pair for _, pair in _numbered(rows, columns))


def _numbered(rows: Rows, columns: Columns) -> Iterator[tuple[int, Pair]]:
    """All pairs with the numbers of their rows."""
    names = [columns.query, *columns.documents]
    for start, batch in read_batches(rows, names) if columns.shape != "tokens" else ():
        for number, (query, *documents) in enumerate(zip(*(batch[name] for name in names), strict=True), start):
            yield from ((number, (query, text)) for text in _flat(documents))


def _flat(documents: list[object]) -> Iterator[str]:
    for each in documents:
        yield from map(str, each if is_list(each) else [each])  # type: ignore[call-overload]


def trained_on(found: Fingerprints, known: Fingerprints) -> NDArray[np.int64]:
    """The places of those fingerprints [P] that are among the known ones, which are sorted."""
    return np.flatnonzero(np.isin(found, known))


def check_unseen(rows: Rows, columns: Columns, known: Fingerprints) -> None:
    """Check that rows aren't those that a model was trained on.

    Args:
        rows: A mapped data set, whose rows are texts.
        columns: What its columns are for.
        known: What `joined` gave for the rows trained on.

    Raises:
        DataError: A notable share of them is; the message has their number and names the first.
    """
    if not len(known) or columns.shape == "tokens":
        return
    numbered = list(_numbered(rows, columns))
    found = fingerprints(pair for _, pair in numbered)
    places = trained_on(found, known)
    comparable = int((found <= known[-1]).sum()) if len(known) == KEPT else len(found)
    if len(places) > NOTABLE * comparable:
        row, pair = numbered[places[0]]
        raise DataError(
            f"The model was trained on {len(places)} of {comparable} of these pairs, the first in row {row}: "
            f"{short(pair)}. On such rows scores are better than on others. Take rows that were held out from training."
        )


class Recorder:
    """A check of a stream's rows that also remembers which ones went by.

    Args:
        check: The check, called with each row and its number.
        columns: What the rows' columns are for.
    """

    def __init__(self, check: Callable[[Row, int], None], columns: Columns) -> None:
        self.check = check
        self.columns = columns
        self.seen: set[int] = set()

    def __call__(self, row: Row, number: int) -> None:
        """Check a row and remember it."""
        self.check(row, number)
        self.seen.update(fingerprints_of([as_mapping(row)], self.columns).tolist())
        if len(self.seen) > 2 * KEPT:
            self.seen = set(self.fingerprints().tolist())

    def fingerprints(self) -> Fingerprints:
        """Those of all rows that went by."""
        return joined(np.fromiter(self.seen, dtype=np.uint64))
