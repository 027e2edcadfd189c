"""Equal shares of a mapped data set for every process, with no row trained on twice.

Accelerate fills the last batches of an epoch with rows from its beginning, which would be trained on twice. Here they
are filled with items without a row, which the collator leaves out, so that several processes do exactly what one
process does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, Sampler


class FilledBatchSampler(Sampler[list[int]]):
    """Batches of `sampler`, the last one filled up, and as many more as make their number a multiple of `multiple`.

    Args:
        sampler: The batch sampler over the real rows.
        past_end: An index past the end of `MappedItems`.
        multiple: The number of processes, each of which takes one batch in turn.
    """

    def __init__(self, sampler: BatchSampler, past_end: int, multiple: int) -> None:
        self.batches = sampler
        self.sampler = sampler.sampler  # the epoch is set on what is found here
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
