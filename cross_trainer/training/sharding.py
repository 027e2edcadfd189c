"""Equal shares of a data set for every process, filled up with rows that count for nothing.

Accelerate fills the last batches of an epoch with rows from its beginning, which trains on them twice. Here the
collator is given `Sentinel` rows instead, whose labels are all -100, so that several processes do exactly what one
process does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler

from cross_trainer.data.collator import Sentinel
from cross_trainer.data.columns import Rows


class FilledDataset(Dataset[Any]):
    """A mapped data set that gives a `Sentinel` for every index past its end; its length stays the number of real rows."""

    def __init__(self, dataset: Rows) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index] if index < len(self.dataset) else Sentinel()

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """The rows at `indices`, fetched at once where the data set can do that."""
        real = [index for index in indices if index < len(self.dataset)]
        fetch = getattr(self.dataset, "__getitems__", None)
        rows = iter(fetch(real) if fetch is not None else [self.dataset[index] for index in real])
        return [next(rows) if index < len(self.dataset) else Sentinel() for index in indices]


class FilledBatchSampler(Sampler[list[int]]):
    """Batches of `sampler`, the last one filled up, and as many more as make their number a multiple of `multiple`.

    Args:
        sampler: The batch sampler over the real rows.
        past_end: An index that a `FilledDataset` turns into a `Sentinel`.
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


class FilledStream(IterableDataset[Any]):
    """A stream of rows, followed by so many sentinels that its length is a multiple of `multiple`."""

    def __init__(self, stream: Rows, multiple: int) -> None:
        self.stream = stream
        self.multiple = multiple

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to a stream that shuffles by it."""
        if hasattr(self.stream, "set_epoch"):
            self.stream.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        rows = 0
        for row in self.stream:
            rows += 1
            yield row
        for _ in range(-rows % self.multiple):
            yield Sentinel()


def fill_batches(dataloader: DataLoader[Any], processes: int) -> None:
    """Let a prepared dataloader over a `FilledDataset` fill its last batches with sentinels."""
    shard = dataloader.batch_sampler
    inner = getattr(shard, "batch_sampler", None)
    if isinstance(inner, BatchSampler) and shard is not None:
        multiple = 1 if getattr(shard, "split_batches", False) else processes
        shard.batch_sampler = FilledBatchSampler(inner, len(dataloader.dataset), multiple)  # type: ignore[attr-defined, arg-type]
