"""Rows on their way to the collator, from a mapped data set or a stream: with their columns, their number and a seed.

    >>> columns = Columns("question", ("answer",), "label")
    >>> items = MappedItems([{"question": "Why?", "answer": "Because.", "label": 1}], columns, training=True)
    >>> items[0].row, items[0].number
    ({'question': 'Why?', 'answer': 'Because.', 'label': 1}, 0)
    >>> items[1].row is None  # past the end: fills a batch up
    True

What is drawn for a row in training depends on the seed, the pass over the data and the row's number alone, so it is the
same in any number of workers and processes, and after training was resumed.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from cross_trainer.data.columns import Columns, Row, Rows, plain_rows, select
from cross_trainer.errors import DataError, in_dataset


@dataclass(frozen=True)
class Item:
    """A row on its way from a data set whose columns are known to the collator.

    Args:
        row: None fills a batch up and counts for nothing.
        columns: What the row's columns are for.
        number: The row's place in its data set, for messages.
        training: Whether the collator's `swap` applies, and whether the row counts in its statistics.
        seed: What random choices about the row are drawn from; None for torch's default generator.
        negatives: More documents for a query, with the label 0; None leaves them to the collator.
        dataset: The name of the row's data set, where there are several.
    """

    row: Row | None
    columns: Columns
    number: int | None = None
    training: bool = True
    seed: str | None = None
    negatives: tuple[str, ...] | None = None
    dataset: str | None = None


class MappedItems(Dataset[Item]):
    """A mapped data set as items; an index past its end is an item without a row.

    Args:
        rows: The data set. Of a `datasets.Dataset` only the columns that count are read.
        columns: What its columns are for.
        training: Whether it is trained on.
        seed: Decides with the pass and the row's number what is drawn for a row.
        negatives: More documents for each row's query, with the label 0.
        name: What the data set is called among several.
    """

    def __init__(
        self,
        rows: Rows,
        columns: Columns,
        *,
        training: bool,
        seed: int = 0,
        negatives: Sequence[tuple[str, ...]] = (),
        name: str | None = None,
    ) -> None:
        self.rows = select(plain_rows(rows), columns)
        self.columns = columns
        self.training = training
        self.seed = seed
        self.negatives = negatives
        self.name = name
        self._epoch = _shared_epoch()

    def set_epoch(self, epoch: int) -> None:
        """Say which pass over the data begins, counted from 0; also to workers that are running."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Item]:
        """The items at `indices` in the pass that has begun."""
        return self.at(indices, int(self._epoch))

    def at(self, indices: list[int], epoch: int) -> list[Item]:
        """The items at `indices` in a pass over the data, fetched at once where the data set can do that."""
        real = [index for index in indices if index < len(self)]
        fetch = getattr(self.rows, "__getitems__", None)
        found = dict(zip(real, fetch(real) if fetch is not None else [self.rows[index] for index in real], strict=True))
        return [
            Item(
                found.get(index),
                self.columns,
                index,
                self.training,
                # Nobody has said which pass it is: draw as torch's dataloaders do.
                None if epoch < 0 else f"{self.seed}:{epoch}:{index}",
                self.negatives[index] if index < len(self.negatives) else None,
                self.name,
            )
            for index in indices
        ]


class StreamedItems(IterableDataset[Item]):
    """A stream as items, and as many without a row as make their number a multiple of `multiple`.

    Args:
        rows: The stream.
        columns: What its columns are for.
        multiple: The rows of all processes' batches of an update, or of a step of an evaluation.
        training: Whether it is trained on.
        seed: Decides with the pass and the row's number what is drawn for a row.
        check: Raises a DataError for a row, given with its number, that can't be trained or evaluated on.
        name: What the stream is called among several data sets.

    Attributes:
        ended: Called with the number of rows when all have been read.
    """

    def __init__(
        self,
        rows: Rows,
        columns: Columns,
        multiple: int,
        *,
        training: bool,
        seed: int = 0,
        check: Callable[[Row, int], None] | None = None,
        name: str | None = None,
    ) -> None:
        self.rows = plain_rows(rows)
        self.columns = columns
        self.multiple = multiple
        self.training = training
        self.seed = seed
        self.check = check
        self.name = name
        self.ended: Callable[[int], None] | None = None
        self._epoch = _shared_epoch()

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to a stream that shuffles by it."""
        self._epoch.fill_(epoch)
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[Item]:
        worker = get_worker_info()
        alone = worker is None or worker.num_workers == 1
        part = "" if alone else f"{worker.id}:"  # type: ignore[union-attr]  # a worker reads a part of the stream
        number = -1
        for number, row in enumerate(self._part()):
            self._check(row, number, None if alone else worker.id)  # type: ignore[union-attr]
            seed = f"{self.seed}:{max(int(self._epoch), 0)}:{part}{number}"
            yield Item(row, self.columns, number if alone else None, self.training, seed, dataset=self.name)
        if self.ended is not None:
            self.ended(number + 1)
        for _ in range(-(number + 1) % self.multiple):
            yield Item(None, self.columns, None, self.training, dataset=self.name)

    def _part(self) -> Iterator[Row]:
        """The rows of this worker. Torch's streams divide themselves; of another iterable each takes its share."""
        worker = get_worker_info()
        if worker is None or isinstance(self.rows, IterableDataset):
            return iter(self.rows)
        return itertools.islice(self.rows, worker.id, None, worker.num_workers)

    def _check(self, row: Row, number: int, worker: int | None) -> None:
        if self.check is None:
            return
        try:
            with contextlib.nullcontext() if self.name is None else in_dataset(self.name):
                self.check(row, number)
        except DataError as error:
            if worker is None:
                raise
            raise DataError(f"{error} (Rows are counted as dataloader worker {worker} reads them.)") from error


def _shared_epoch() -> torch.Tensor:
    """-1, where nobody has said which pass it is; in shared memory, for workers that outlive a pass."""
    epoch = torch.full((), -1)
    epoch.share_memory_()  # type: ignore[no-untyped-call]
    return epoch
