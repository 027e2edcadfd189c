"""Self-attention over the real tokens of a batch, laid end to end without padding.

A padded batch of P rows of L tokens becomes one row of T real tokens. `Layout` says where each of them came from and
which neighbours belong together; `flat_attention` lets each sequence attend only to itself. There are three kernels,
all exact:

- `groups`: sequences of equal length are neighbours in the flat row, so each group is a view [n, heads, s, d], and one
  call per group needs neither a copy nor a mask. The fastest on CPUs; with dropout there, see `blocks.py`.
- `varlen`: `torch.nn.attention.varlen` on the flat tokens: CUDA from Ampere on, half precision, no attention dropout.
- `repad`: queries, keys and values are padded for one `scaled_dot_product_attention` with a mask, and its result is
  flattened again. Works everywhere, reads nothing back from the device, and is what `torch.compile` sees.

Shapes: P rows, L tokens of a padded row, T real tokens of the batch, h heads of width d, n sequences of s tokens.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from cross_trainer.errors import ConfigurationError
from cross_trainer.execution.blocks import Settings, allowed, dropout_attention
from cross_trainer.execution.transfer import send

logger = logging.getLogger(__name__)

Kernel = Literal["groups", "varlen", "repad"]

KEYWORD = "padding_free_layout"
"""The argument by which a batch's layout travels to the layers."""


@dataclass(eq=False)
class Layout:
    """Where the real tokens of one padded batch are; made once per forward pass and shared by its layers.

    Attributes:
        index: [T] positions in the padded batch read as P * L tokens, in the order of the flat row.
        mask: [P, L] true for real tokens.
        groups: `(n, s)` for each run of n sequences of s tokens in the flat row; None where Python doesn't know the
            lengths (inside `torch.compile`).
        kernel: how to compute attention, or None to choose by device, precision and dropout.
        first_only: of the last layer, only the first token of each sequence is read.
    """

    index: Tensor
    mask: Tensor
    groups: tuple[tuple[int, int], ...] | None = None
    kernel: Kernel | None = None
    first_only: bool = False

    @functools.cached_property
    def boundaries(self) -> Tensor:
        """[sequences + 1] int32: where each sequence starts in the flat row, and the end of the last one."""
        lengths = (length for count, length in self.groups or () for _ in range(count))
        ends = [0, *itertools.accumulate(lengths)]
        return send(torch.tensor(ends, dtype=torch.int32), self.index.device)

    @functools.cached_property
    def starts(self) -> Tensor:
        """[sequences] where the first token of each sequence is in the flat row."""
        return self.boundaries[:-1].long()

    def first(self, flat: Tensor) -> Tensor:
        """[T, ...] to [sequences, ...]: first tokens."""
        return _apply(_Gather, flat, self.starts)

    def flatten(self, padded: Tensor) -> Tensor:
        """[P, L, ...] to [T, ...]."""
        return _apply(_Gather, padded.flatten(0, 1), self.index)

    def pad(self, flat: Tensor, *, first: bool = False) -> Tensor:
        """[T, ...] to [P, L, ...], zeros at the padding; or [sequences, ...], zeros behind the first tokens."""
        rows, length = self.mask.shape
        index = self.index[self.starts] if first else self.index
        return _apply(_Scatter, flat, index, rows * length).view(rows, length, *flat.shape[1:])


def _apply(function: type[torch.autograd.Function], *args: object) -> Tensor:
    """`function.apply`, typed."""
    result: Tensor = function.apply(*args)  # type: ignore[no-untyped-call]
    return result


class _Gather(torch.autograd.Function):
    """Select rows. The indices are unique, so the gradient is copied back instead of added up as in `index_select`."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = source.shape[0]
        return source.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _apply(_Scatter, gradient, ctx.saved_tensors[0], ctx.size), None


class _Scatter(torch.autograd.Function):
    """Put rows at unique indices of a larger tensor of zeros: the transpose of `_Gather`."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, index: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(index)
        return source.new_zeros(size, *source.shape[1:]).index_copy_(0, index, source)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _apply(_Gather, gradient, ctx.saved_tensors[0]), None, None


def flat_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    causal: bool = False,
    window: int | None = None,
    first_only: bool = False,
) -> Tensor:
    """Let each sequence attend to itself.

    Args:
        query: [1, h, T, d], or with `first_only` [1, h, sequences, d].
        key: [1, h or a divisor of it, T, d], likewise `value`.
        value: see `key`.
        layout: which tokens belong together.
        dropout: probability in [0, 1) of dropping an attention weight; the caller passes 0 outside training.
        scaling: factor of the scores; default 1 / sqrt(d).
        causal: tokens see only themselves and what comes before.
        window: tokens see others less than this many places away.
        first_only: there are queries of each sequence's first token alone, without `causal` and `window`.

    Returns:
        [1, T, h, d], or with `first_only` [1, sequences, h, d].

    Raises:
        ConfigurationError: the layout asks for a kernel that can't compute this.
    """
    device = query.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    settings = Settings(dropout, query.shape[-1] ** -0.5 if scaling is None else scaling, causal, window, first_only)
    kernel = layout.kernel or _choose(query, layout, settings)
    if kernel != "varlen":
        heads = query.shape[1]
        key, value = _repeat_heads(key, heads), _repeat_heads(value, heads)
    # Linear layers leave [T, h, d] contiguous in memory; the leading 1 and the transposition are views of it.
    tokens = (query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1))
    return _KERNELS[kernel](*tokens, layout, settings).unsqueeze(0)


def _repeat_heads(states: Tensor, heads: int) -> Tensor:
    """Grouped-query attention: each key and value head serves a run of query heads."""
    return states if states.shape[1] == heads else states.repeat_interleave(heads // states.shape[1], dim=1)


# --- choosing
# -----------------------------------------------------------------------------------------------------------


def _choose(query: Tensor, layout: Layout, settings: Settings) -> Kernel:
    if layout.groups is None or torch.compiler.is_compiling():  # a graph with lengths in it would fit one batch only
        return "repad"
    if query.device.type == "cpu":
        _log_choice("groups", "on CPUs one call for all sequences of a length is fastest")
        return "groups"
    obstacle = _varlen_obstacle(query, settings)
    if obstacle is None:
        _log_choice("varlen", "torch.nn.attention.varlen takes flat tokens")
        return "varlen"
    _log_choice("repad", f"{obstacle}, so attention pads and masks")
    return "repad"


def _varlen_obstacle(query: Tensor, settings: Settings) -> str | None:
    """Why `varlen_attn` can't be used, or None if it can."""
    if query.device.type != "cuda":
        return f"torch.nn.attention.varlen doesn't run on {query.device.type}"
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"torch.nn.attention.varlen takes half precision, not {query.dtype}"
    if settings.dropout > 0:
        return "torch.nn.attention.varlen has no attention dropout"
    generation, width = _generation(query.device), query.shape[-1]
    if generation < (8, 0):
        return f"torch.nn.attention.varlen needs an NVIDIA GPU of compute capability 8.0 or more, not {generation}"
    widest = 256 if generation == (8, 0) or generation >= (9, 0) else 192  # wider ones have no gradient elsewhere
    if width % 8 or width > widest:
        return f"torch.nn.attention.varlen takes head widths that are multiples of 8 up to {widest}, not {width}"
    return _varlen_missing()


@functools.lru_cache(maxsize=16)
def _generation(device: torch.device) -> tuple[int, int]:
    """A GPU's compute capability; (0, 0) for AMD's, on which varlen hasn't been tried."""
    return (0, 0) if torch.version.hip else torch.cuda.get_device_capability(device)


@functools.lru_cache(maxsize=1)
def _varlen_missing() -> str | None:
    try:
        parameters = inspect.signature(_varlen_function()).parameters
    except ImportError:
        return f"torch {torch.__version__} has no torch.nn.attention.varlen"
    missing = {"scale", "window_size", "enable_gqa"} - set(parameters)
    return f"torch {torch.__version__}'s varlen_attn has no {', '.join(sorted(missing))}" if missing else None


def _varlen_function() -> Callable[..., Tensor]:
    from torch.nn.attention.varlen import varlen_attn

    return cast("Callable[..., Tensor]", varlen_attn)


@functools.lru_cache(maxsize=32)
def _log_choice(kernel: Kernel, reason: str) -> None:
    """Log a decision the first time it is made."""
    logger.info("Padding-free attention uses %s: %s.", kernel, reason)


# --- groups
# -------------------------------------------------------------------------------------------------------------


def _by_groups(query: Tensor, key: Tensor, value: Tensor, layout: Layout, settings: Settings) -> Tensor:
    if layout.groups is None:
        raise ConfigurationError("kernel='groups' can't be compiled: leave `kernel` as None for torch.compile.")
    if settings.dropout > 0:
        return dropout_attention(query, key, value, layout.groups, settings)
    outputs = []
    queries = [(n, 1) for n, _ in layout.groups] if settings.first_only else layout.groups
    for (asking, rows), (group, span) in zip(_spans(queries), _spans(layout.groups), strict=True):
        mask = None if group[1] <= (settings.window or group[1]) else allowed(group[1], settings, query.device)
        q, k, v = _ungroup(query[rows], asking), _ungroup(key[span], group), _ungroup(value[span], group)
        output = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=settings.causal and mask is None, scale=settings.scaling
        )
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def _ungroup(tokens: Tensor, group: tuple[int, int]) -> Tensor:
    """[n * s, h, d] to [n, h, s, d], a view."""
    return tokens.view(*group, *tokens.shape[1:]).transpose(1, 2)


def _spans(groups: Iterable[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], slice]]:
    start = 0
    for count, length in groups:
        yield (count, length), slice(start, start := start + count * length)


# --- varlen and repad
# ---------------------------------------------------------------------------------------------------


def _by_varlen(query: Tensor, key: Tensor, value: Tensor, layout: Layout, settings: Settings) -> Tensor:
    if layout.groups is None or settings.dropout > 0:
        raise ConfigurationError(
            "kernel='varlen' has no attention dropout and can't be compiled: set the model's attention dropout to "
            "0, or leave `kernel` as None."
        )
    boundaries, longest = layout.boundaries, max(length for _, length in layout.groups)
    starts = torch.arange(len(query) + 1, dtype=torch.int32, device=query.device) if settings.first_only else boundaries
    reach = -1 if settings.window is None else settings.window - 1
    return _varlen_function()(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        starts,
        boundaries,
        1 if settings.first_only else longest,
        longest,
        scale=settings.scaling,
        window_size=(reach, 0 if settings.causal else reach),
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _by_repad(query: Tensor, key: Tensor, value: Tensor, layout: Layout, settings: Settings) -> Tensor:
    mask = layout.mask | ~layout.mask.any(1, keepdim=True)  # an empty row sees its padding: no division by zero
    visible = mask[:, None, None, :]
    if settings.causal or settings.window is not None:
        length = layout.mask.shape[1]
        # Padding sees itself, again to avoid a division by zero; its result is dropped.
        itself = torch.eye(length, dtype=torch.bool, device=mask.device)
        visible = visible & allowed(length, settings, mask.device) | itself
    k, v = (layout.pad(x).transpose(1, 2) for x in (key, value))
    if settings.first_only:
        order = layout.index[layout.starts] // layout.mask.shape[1]
        q, k, v, visible = query.unsqueeze(2), k[order], v[order], visible[order, :, :1]
    else:
        q = layout.pad(query).transpose(1, 2)
    output = scaled_dot_product_attention(
        q, k, v, attn_mask=visible, dropout_p=settings.dropout, scale=settings.scaling
    )
    return output.squeeze(2) if settings.first_only else layout.flatten(output.transpose(1, 2))


_KERNELS: dict[Kernel, Callable[[Tensor, Tensor, Tensor, Layout, Settings], Tensor]] = {
    "groups": _by_groups,
    "varlen": _by_varlen,
    "repad": _by_repad,
}
