"""Gradients of embeddings on the CPU, without a new one as large as the vocabulary for each batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from cross_trainer.internals import has_gradient_hooks, is_compiled

LARGE = 2**20
"""Numbers of a gradient from which on its memory is kept: below, the allocator keeps it anyway."""


@contextlib.contextmanager
def sparse_gradients(model: nn.Module, kept: dict[Tensor, Tensor] | None = None) -> Iterator[None]:
    """Let forward passes in this context give embeddings on the CPU sparse gradients, where one exists to add them to.

    A dense one is as large as the vocabulary, and a batch looks up a few of its rows.

        >>> import torch
        >>> embedding = nn.Embedding(4096, 256)
        >>> kept: dict[Tensor, Tensor] = {}
        >>> for ids in ([1, 1], [2, 3]):
        ...     embedding.zero_grad()
        ...     with sparse_gradients(embedding, kept):
        ...         embedding(torch.tensor(ids)).sum().backward()
        ...     embedding.weight.grad[:4, 0].tolist(), embedding.weight.grad is kept[embedding.weight]
        ([0.0, 2.0, 0.0, 0.0], True)
        ([0.0, 0.0, 1.0, 1.0], True)

    Args:
        model: What is trained.
        kept: Gradients of earlier updates, whose memory is used again, set to zero, where there is none. Fresh memory
            of such a size costs several times as much time. This context fills it, with those of `LARGE` and more
            numbers. Who holds on to a gradient beyond its update has to copy it.
    """
    modules = list(model.modules())
    embeddings = [] if any(map(is_compiled, modules)) else [x for x in modules if type(x) is nn.Embedding]
    embeddings = [x for x in embeddings if _can_be_sparse(x)]
    for embedding in embeddings:
        weight = embedding.weight
        if weight.grad is None and kept and weight in kept:
            weight.grad = kept[weight].zero_()
        embedding.sparse = weight.grad is not None
    try:
        yield
    finally:
        for embedding in embeddings:
            embedding.sparse = False
    if kept is not None:
        for weight in (embedding.weight for embedding in embeddings):
            if weight.grad is not None and weight.numel() >= LARGE:
                kept[weight] = weight.grad


def _can_be_sparse(embedding: nn.Embedding) -> bool:
    weight = embedding.weight
    is_plain = type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.requires_grad
    return is_plain and not (embedding.sparse or embedding.scale_grad_by_freq or has_gradient_hooks(weight))
