"""All rows of a labelled data set as pairs, in constant memory but for their labels.

Shapes: P pairs, C labels at once, G queries, D documents of the longest list.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cross_trainer.data.collator import pairs_and_labels
from cross_trainer.data.columns import IGNORED_LABEL, Columns, Rows, iterate
from cross_trainer.data.pairs import Pair
from cross_trainer.errors import DataError

CHUNK = 1_000  # rows whose labels become tensors together


@dataclass
class LabelledPairs:
    """The pairs of a data set, one after the other; what they are compared with is known once all have been read.

        >>> rows = [{"a": "one", "b": "uno", "label": 1}, {"a": "two", "b": "tres", "label": 0}]
        >>> pairs = LabelledPairs(rows, Columns("a", ("b",), "label"))
        >>> list(pairs), pairs.targets()["labels"]
        ([('one', 'uno'), ('two', 'tres')], tensor([1, 0]))

    Args:
        rows: The data set, whose rows are texts.
        columns: What its columns are for.

    Raises:
        DataError: Rows hold tokens, or no label; while reading, a row can't be read. The message names it.
    """

    rows: Rows
    columns: Columns
    _chunks: list[dict[str, Tensor]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        columns = self.columns
        if columns.shape == "tokens":
            raise DataError(f"Column {columns.query!r} holds tokens. Take the texts that they were made of.")
        if columns.label is None and columns.shape != "tuple":
            raise DataError(
                "The data set has no label to compare scores with. Name its column with columns=(..., ..., label)."
            )

    def __iter__(self) -> Iterator[Pair]:
        self._chunks.clear()
        source = iterate(self.rows)
        while chunk := list(itertools.islice(source, CHUNK)):
            pairs, targets = pairs_and_labels(chunk, self.columns)
            self._chunks.append(targets)
            yield from pairs

    def targets(self) -> dict[str, Tensor]:
        """`labels` [P], [P, C] or [G, D] padded with -100, and `num_relevant` [G] where rows have that column."""
        return {name: _join([chunk[name] for chunk in self._chunks]) for name in self._chunks[0]}


def _join(parts: list[Tensor]) -> Tensor:
    """Labels of all chunks; lists [G, D] are padded to the longest one."""
    if parts[0].dim() == 1:
        return torch.cat(parts)
    width = max(part.shape[1] for part in parts)
    padding = [(0, width - part.shape[1]) for part in parts]
    return torch.cat(
        [torch.nn.functional.pad(part, pad, value=IGNORED_LABEL) for part, pad in zip(parts, padding, strict=True)]
    )
