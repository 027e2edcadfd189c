"""The rows that every process loads: with what their columns are for, in equal shares, none trained on twice.

Accelerate fills the last batches of an epoch with rows from its beginning, which would be trained on twice. Here they
are filled with items without a row, whose labels are all -100, so that several processes do exactly what one process
does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from cross_trainer.data.collator import Item
from cross_trainer.data.columns import Columns, Rows


class MappedItems(Dataset[Item]):
    """A mapped data set as items for the collator; an index past its end is an item without a row.

    Args:
        rows: The data set. Of a `datasets.Dataset` only the columns that count are read.
        columns: What its columns are for.
        training: Whether it is trained on.
    """

    def __init__(self, rows: Rows, columns: Columns, *, training: bool) -> None:
        named = isinstance(rows, datasets.Dataset) and columns.shape != "tokens"
        self.rows = rows.select_columns(columns.names) if named else rows
        self.columns = columns
        self.training = training

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Item]:
        """The items at `indices`, fetched at once where the data set can do that."""
        real = [index for index in indices if index < len(self)]
        fetch = getattr(self.rows, "__getitems__", None)
        found = dict(zip(real, fetch(real) if fetch is not None else [self.rows[index] for index in real], strict=True))
        return [Item(found.get(index), self.columns, index, self.training) for index in indices]


class StreamedItems(IterableDataset[Item]):
    """A stream as items for the collator, and as many without a row as make their number a multiple of `multiple`."""

    def __init__(self, rows: Rows, columns: Columns, multiple: int, *, training: bool) -> None:
        self.rows = rows
        self.columns = columns
        self.multiple = multiple
        self.training = training

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to a stream that shuffles by it."""
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[Item]:
        counted = get_worker_info() is None  # a worker may see a part of the stream alone
        number = -1
        for number, row in enumerate(self.rows):
            yield Item(row, self.columns, number if counted else None, self.training)
        for _ in range(-(number + 1) % self.multiple):
            yield Item(None, self.columns, None, self.training)


class FilledBatchSampler(Sampler[list[int]]):
    """Batches of `sampler`, the last one filled up, and as many more as make their number a multiple of `multiple`.

    Args:
        sampler: The batch sampler over the real rows.
        past_end: An index past the end of `MappedItems`.
        multiple: The number of processes, each of which takes one batch in turn.
    """

    def __init__(self, sampler: BatchSampler, past_end: int, multiple: int) -> None:
        self.batches = sampler
        self.sampler = sampler.sampler  # whoever sets the epoch looks it up here
        self.batch_size = sampler.batch_size
        self.drop_last = False
        self.past_end = past_end
        self.multiple = multiple

    def __len__(self) -> int:
        return -(-len(self.batches) // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield batch + [self.past_end] * (self.batch_size - len(batch))
        for _ in range(len(self) - len(self.batches)):
            yield [self.past_end] * self.batch_size


def fill_batches(dataloader: DataLoader[Any], processes: int) -> None:
    """Let a prepared dataloader over `MappedItems` fill its last batches with items without a row."""
    shard = dataloader.batch_sampler
    inner = getattr(shard, "batch_sampler", None)
    if isinstance(inner, BatchSampler) and shard is not None:
        multiple = 1 if getattr(shard, "split_batches", False) else processes
        shard.batch_sampler = FilledBatchSampler(inner, len(dataloader.dataset), multiple)  # type: ignore[attr-defined, arg-type]
