"""Dropout on CPUs at a fraction of the time and memory of torch's.

torch draws a float for each number and keeps it for the backward pass. Here 16 random bits decide about a number, and
one byte of it is kept, whose bits are all set or none: what drops numbers is a bitwise AND, which processors do to many
of them at once. The probability is rounded to a multiple of 2**-16, and the numbers that stay are divided by the
rounded one, so that expectations are exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_DRAWS = 2**16


def kept_share(dropout: float) -> float:
    """The probability with which `draw_kept` keeps a number: `1 - dropout`, rounded to a multiple of 2**-16 above 0."""
    return max(round((1.0 - dropout) * _DRAWS), 1) / _DRAWS


def draw_kept(count: int, dropout: float, device: torch.device) -> Tensor:
    """[count] int8, each -1 with probability `kept_share(dropout)`, else 0, from the device's default generator."""
    bits = torch.empty((count + 3) // 4, dtype=torch.int64, device=device).random_(-(2**63), None)
    dropped = round(kept_share(dropout) * _DRAWS) - _DRAWS // 2  # the lowest 16 bits that drop
    if dropped == _DRAWS // 2:
        return torch.full((count,), -1, dtype=torch.int8, device=device)
    return bits.view(torch.int16)[:count].clamp_(dropped - 1, dropped).sub_(dropped).to(torch.int8)


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def only_kept(states: Tensor, kept: Tensor) -> Tensor:
    """Floats of any shape, with zeros where they aren't kept; without a gradient."""
    integers = states.view(_INTEGERS[states.element_size()])
    return torch.bitwise_and(integers, kept.view(states.shape)).view(states.dtype)


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, kept: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.factor = factor
        return only_kept(states, kept).mul_(factor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        dropped: Tensor = _Drop.apply(gradient, *ctx.saved_tensors, ctx.factor)  # type: ignore[no-untyped-call]
        return dropped, None, None


class CpuDropout(nn.Dropout):
    """`nn.Dropout`, fast on CPUs; torch's own elsewhere and in traced graphs. Assign it as the class of a module."""

    def forward(self, states: Tensor) -> Tensor:
        """Zero numbers with probability `p` in training; any shape in, the same shape out."""
        idle = not self.training or not 0.0 < self.p < 1.0 or self.inplace
        jit: Any = torch.jit  # which has no types
        if idle or states.device.type != "cpu" or torch.compiler.is_compiling() or jit.is_tracing():
            return super().forward(states)
        kept = draw_kept(states.numel(), self.p, states.device)
        dropped: Tensor = _Drop.apply(states, kept, 1 / kept_share(self.p))  # type: ignore[no-untyped-call]
        return dropped


def exchange_class(model: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    """Turn all modules of exactly one class into those of another, in place."""
    for module in model.modules():
        if type(module) is old:
            module.__class__ = new
