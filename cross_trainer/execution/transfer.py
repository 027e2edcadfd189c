"""Batches on their way to a device, without a wait for what the device is computing.

    batch = to_device(batch, device)         # copies that run beside the computation
    lengths = on_cpu(batch["attention_mask"]).sum(1)      # the values that were copied, still here

Whoever reads a number back from a GPU waits until all work given to it is done, and gives it nothing to do meanwhile.
Which tokens are real decides how a batch is cut and laid out, and the CPU has known it all along: so a tensor that was
moved here remembers what it is a copy of. Tensors of other origin are read back, once for each forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cross_trainer.internals import changes

_SOURCE = "cross_trainer_source"


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on a device; other values stay as they are, and a mapping of its own class that class.

        >>> batch = to_device({"labels": torch.tensor([1, 0]), "dataset": "stsb"}, torch.device("cpu"))
        >>> batch["dataset"], on_cpu(batch["labels"])
        ('stsb', tensor([1, 0]))

    Args:
        batch: Tensors of any shape, on the CPU or already there.
        device: Where to.
    """
    moved = {name: send(value, device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    return moved if type(batch) is dict else type(batch)(moved)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; from the CPU without waiting for it, and remembered for `on_cpu`."""
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device)
    if device.type == "cuda":  # only a copy from pinned memory runs beside the computation
        tensor = tensor.pin_memory()
    at_once = device.type != "mps"  # which doesn't keep what it copies from
    return _remember(tensor.to(device, non_blocking=at_once), tensor)


def on_cpu(tensor: Tensor) -> Tensor:
    """A tensor's values on the CPU: at once where `send` moved it, else read back, which waits for the device."""
    source, *counts = getattr(tensor, _SOURCE, (None,))
    if source is not None and counts == [id(tensor), changes(source), changes(tensor)]:
        known: Tensor = source
        return known
    return tensor.cpu()


def read_once(tensor: Tensor) -> Tensor:
    """A view of a tensor of which `on_cpu` gives the values without waiting, for it has waited here."""
    return _remember(tensor.view_as(tensor), on_cpu(tensor))


def _remember(moved: Tensor, source: Tensor) -> Tensor:
    """A tensor that knows what it is a copy of, as long as neither is written to; copies of it don't."""
    setattr(moved, _SOURCE, (source, id(moved), changes(source), changes(moved)))
    return moved
