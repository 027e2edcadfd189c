"""Every private name of torch, transformers and accelerate that this package reads, in one place, each with its reason.

A release of theirs may change any of them without notice: when one does, this file is the only one to mend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def attention_name(config: Any) -> str:
    """The attention that a config asks for; `attn_implementation` can be set under a public name but not read."""
    name: str = config._attn_implementation
    return name


class AttentionConfig:
    """A config as an attention module sees it: it asks for another attention, and all else is the wrapped config's.

    Attention modules look up `config._attn_implementation` on every call, so exchanging what they read redirects them
    without changing the model's own config, which would be saved with the model.
    """

    def __init__(self, wrapped: Any, name: str) -> None:
        self.wrapped = wrapped
        self._attn_implementation = name

    def __getattr__(self, name: str) -> Any:
        if name == "wrapped":  # not set yet, while being copied
            raise AttributeError(name)
        return getattr(self.wrapped, name)


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` wraps a module or its call; torch has no public question for it."""
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


def softmax_gradient(gradient: Tensor, weights: Tensor) -> Tensor:
    """The gradient before a softmax over the last dimension, in one pass; torch has no public function for it."""
    import torch

    return torch._softmax_backward_data(gradient, weights, -1, weights.dtype)


def multiply_int8(left: Tensor, right: Tensor) -> Tensor:
    """[M, K] times [K, N], both int8, as int32; the public `torch.mm` adds up in int8 and overflows."""
    import torch

    return torch._int_mm(left, right)


def tensor_state(tensor: Tensor) -> tuple[int, int]:
    """Changes whenever a tensor gets other memory or is written to in place, which only the private counter shows."""
    return tensor._version, tensor.data_ptr()


def mark_unprepared(model: nn.Module) -> None:
    """Let accelerate prepare a model again, for training after an evaluation; it goes by this mark alone."""
    if getattr(model, "_is_accelerate_prepared", False):
        model._is_accelerate_prepared = False  # type: ignore[assignment]


def commit_hash(config: Any) -> str | None:
    """The revision that a config was downloaded at; transformers keeps it under a private name only."""
    found: str | None = getattr(config, "_commit_hash", None)
    return found
