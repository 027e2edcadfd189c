"""Attention with dropout on CPUs, whose fused attention has none: the plain formula and its gradient.

Sequences of similar lengths form a block, so that few large products of matrices take the place of many small ones. In
half precision each new shape of a product also costs the processor's library the time of compiling it, so lengths
become multiples of 8 there.

Shapes: T real tokens of the batch, h heads of width d; a block holds n sequences of up to s tokens, head by head, in
n * h * s rows of width d; R rows of all blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cross_trainer.execution.dropout import draw_kept, kept_share, only_kept
from cross_trainer.internals import softmax_gradient

Groups = tuple[tuple[int, int], ...]

_SPARE = 4096  # scores that may be computed for nothing where that saves a block
_SPARE_HALF = 32768  # of half precision, whose products are faster, and whose calls are slower
_MULTIPLE_HALF = 8


@dataclass(frozen=True)
class Settings:
    """What a layer asks of attention. A window of 1 sees only the token itself, None sees everything."""

    dropout: float
    scaling: float
    causal: bool
    window: int | None
    first_only: bool = False


def allowed(length: int, settings: Settings, device: torch.device) -> Tensor:
    """[length, length] true where a token (row) may see another (column)."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position
    near = distance.abs() < (length if settings.window is None else settings.window)
    return near & (distance >= 0) if settings.causal else near


@dataclass(frozen=True, eq=False)
class Blocks:
    """Where flat tokens stand in blocks.

    A block's sequences are filled up with copies of their own last tokens, to which attention gives no weight.

    Attributes:
        heads: h.
        shapes: `(n, s)` of each block.
        rows: [R] the place of each row among the T * h tokens and heads.
        back: [T * h] the place of each token and head among the rows.
        padding: the rows that fill sequences up.
        biases: of each block [n * h, 1, s] to add to its scores, -inf for what fills up, or None where nothing does.
    """

    heads: int
    shapes: Groups
    rows: Tensor
    back: Tensor
    padding: Tensor
    biases: list[Tensor | None]

    def gather(self, tokens: Tensor) -> Tensor:
        """[T, h, d] to [R, d]."""
        return tokens.reshape(-1, tokens.shape[-1]).index_select(0, self.rows)

    def scatter(self, rows: Tensor) -> Tensor:
        """[R, d] to [T, h, d]."""
        return rows.index_select(0, self.back).view(-1, self.heads, rows.shape[-1])

    def split(self, rows: Tensor, *, first_only: bool = False) -> list[Tensor]:
        """Views [n * h, s, d] of [R, d], or [n * h, 1, d] of the rows of first tokens."""
        lengths = [1 if first_only else s for _, s in self.shapes]
        parts = torch.split(rows, [n * self.heads * s for (n, _), s in zip(self.shapes, lengths, strict=True)])
        return [part.view(-1, s, rows.shape[-1]) for part, s in zip(parts, lengths, strict=True)]


@functools.lru_cache(maxsize=4)
def make_blocks(groups: Groups, heads: int, dtype: torch.dtype, device: torch.device, *, joined: bool = True) -> Blocks:
    """The blocks of a batch, which its layers share.

    Args:
        groups: `(n, s)` for each run of n sequences of s tokens in the flat row.
        heads: h.
        dtype: of the scores.
        device: of the tokens.
        joined: whether sequences of different lengths may share a block.
    """
    half = dtype.itemsize == 2 and joined
    runs = _runs(groups, (_SPARE_HALF if half else _SPARE) // heads if joined else -1)
    shapes = tuple((sum(n for n, _ in run), _rounded(max(s for _, s in run), half)) for run in runs)
    lengths = torch.tensor([s for n, s in groups for _ in range(n)])
    starts = lengths.cumsum(0) - lengths
    rows, real, biases = [], [], []
    for (count, longest), own, start in zip(
        shapes, *(torch.split(x, [n for n, _ in shapes]) for x in (lengths, starts)), strict=True
    ):
        place = torch.arange(longest)
        tokens = start[:, None] + torch.minimum(place, own[:, None] - 1)
        rows.append((tokens[:, None] * heads + torch.arange(heads)[:, None]).flatten())
        is_real = (place < own[:, None])[:, None].expand(count, heads, longest)
        real.append(is_real.flatten())
        bias = torch.zeros(is_real.shape, dtype=dtype).masked_fill_(~is_real, float("-inf"))
        biases.append(None if is_real.all() else bias.view(-1, 1, longest).to(device))
    every, is_row_real = torch.cat(rows), torch.cat(real)
    back = torch.empty(int(lengths.sum()) * heads, dtype=torch.int64)
    back[every[is_row_real]] = is_row_real.nonzero().flatten()
    padding = (~is_row_real).nonzero().flatten()
    return Blocks(heads, shapes, every.to(device), back.to(device), padding.to(device), biases)


def _runs(groups: Iterable[tuple[int, int]], spare: int) -> list[list[tuple[int, int]]]:
    """Neighbouring groups, each joined to those before it where that adds at most so many scores to a head."""
    runs: list[list[tuple[int, int]]] = []
    for group in groups:
        wider = [*runs[-1], group] if runs else []
        if runs and _scores(wider) - _scores(runs[-1]) - _scores([group]) <= spare:
            runs[-1] = wider
        else:
            runs.append([group])
    return runs


def _scores(run: list[tuple[int, int]]) -> int:
    """Scores of a head, where all sequences are as long as the longest."""
    return sum(n for n, _ in run) * max(s for _, s in run) ** 2


def _rounded(length: int, half: bool) -> int:
    return -(-length // _MULTIPLE_HALF) * _MULTIPLE_HALF if half else length


def dropout_attention(query: Tensor, key: Tensor, value: Tensor, groups: Groups, settings: Settings) -> Tensor:
    """Attention of flat tokens within their sequences, with dropout of its weights.

    Args:
        query: [T, h, d], or with `settings.first_only` [sequences, h, d].
        key: [T, h, d].
        value: [T, h, d].
        groups: `(n, s)` for each run of n sequences of s tokens in the flat row.
        settings: what the layer asks for.

    Returns:
        What `query` is like.
    """
    attended: Tensor = _DropoutAttention.apply(query, key, value, groups, settings)  # type: ignore[no-untyped-call]
    return attended


class _DropoutAttention(torch.autograd.Function):
    """The plain formula and its gradient.

    Written out because autograd would spend more time recording its many small operations than they take. The factors
    of the scores and of the kept weights are applied to flat tokens, once for all blocks.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, groups: Groups, settings: Settings) -> Tensor:
        blocks = make_blocks(groups, query.shape[1], query.dtype, query.device, joined=settings.window is None)
        first = settings.first_only
        query = query * settings.scaling
        q = query.reshape(-1, query.shape[-1]) if first else blocks.gather(query)
        k, v = blocks.gather(key), blocks.gather(value)
        output = torch.empty_like(q)
        sizes = [n * blocks.heads * s * (1 if first else s) for n, s in blocks.shapes]
        kept = draw_kept(sum(sizes), settings.dropout, query.device)
        saved = []
        for (_, s), bias, keep, q_, out, k_, v_ in zip(
            blocks.shapes,
            blocks.biases,
            torch.split(kept, sizes),
            *(blocks.split(x, first_only=first) for x in (q, output)),
            *map(blocks.split, (k, v)),
            strict=True,
        ):
            turned = k_.transpose(1, 2)
            scores = torch.bmm(q_, turned) if bias is None else torch.baddbmm(bias, q_, turned)
            if settings.causal or s > (settings.window or s):
                scores.masked_fill_(~allowed(s, settings, query.device), float("-inf"))
            weights = torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32))
            torch.bmm(only_kept(weights.to(v.dtype), keep), v_, out=out)
            saved.append(weights)
        ctx.save_for_backward(q, k, v, kept, *saved)
        ctx.blocks, ctx.settings, ctx.sizes = blocks, settings, sizes
        result = output.view(query.shape) if first else blocks.scatter(output)
        return result.mul_(1 / kept_share(settings.dropout))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, kept, *saved = ctx.saved_tensors
        blocks, first = ctx.blocks, ctx.settings.first_only
        gradient = gradient * (1 / kept_share(ctx.settings.dropout))
        if first:
            g = gradient.reshape(-1, gradient.shape[-1])
        else:
            g = blocks.gather(gradient).index_fill_(0, blocks.padding, 0.0)
        to_q, to_k, to_v = (torch.empty_like(x) for x in (q, k, v))
        for weights, keep, q_, g_, to_q_, k_, v_, to_k_, to_v_ in zip(
            saved,
            torch.split(kept, ctx.sizes),
            *(blocks.split(x, first_only=first) for x in (q, g, to_q)),
            *map(blocks.split, (k, v, to_k, to_v)),
            strict=True,
        ):
            torch.bmm(only_kept(weights.to(g.dtype), keep).transpose(1, 2), g_, out=to_v_)
            to_weights = only_kept(torch.bmm(g_, v_.transpose(1, 2)), keep).to(weights.dtype)
            to_scores = softmax_gradient(to_weights, weights).to(q.dtype)
            torch.bmm(to_scores, k_, out=to_q_)
            torch.bmm(to_scores.transpose(1, 2), q_, out=to_k_)
        to_query = to_q.view(gradient.shape) if first else blocks.scatter(to_q)
        return to_query.mul_(ctx.settings.scaling), blocks.scatter(to_k), blocks.scatter(to_v), None, None
