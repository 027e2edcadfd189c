"""Linear layers of 8-bit integers, in which scoring on CPUs computes where it is asked to.

They are made in a scoring view and need `torch.inference_mode` or `torch.no_grad`: they have no gradients.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn

from cross_trainer.errors import UnsupportedModelError
from cross_trainer.execution.view import classifier_of, poolers
from cross_trainer.internals import multiply_int8


def quantize_linears(model: Any) -> Any:
    """A scoring view with 8-bit linear layers in its transformer; pooler and classification head stay.

    Weights are rounded once, to 255 steps of each output's own scale, or to 127 where `largest_weight` says so. Inputs
    are rounded in each call, to 255 steps of each token's own scale. Adapters are merged into the weights before, in a
    copy of them.

    Raises:
        UnsupportedModelError: An adapter can't be merged.
    """
    if any(hasattr(module, "get_base_layer") for module in model.modules()):
        model = _merged(copy.deepcopy(model))
    base = classifier_of(model).base_model
    kept = {part for head in poolers(base) for part in head.modules()}
    for module in [module for module in base.modules() if module not in kept]:
        for name, child in module.named_children():
            if type(child) is nn.Linear and child not in kept:
                setattr(module, name, _Int8Linear(child))
    return model


def _merged(model: Any) -> Any:
    """A model whose layers with adapters became plain ones, in place."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if not hasattr(child, "get_base_layer"):
                continue
            try:
                if not child.disable_adapters and not child.merged:
                    child.merge()
            except (NotImplementedError, ValueError, AttributeError) as error:
                raise UnsupportedModelError(
                    f'quantize="int8" merges adapters into the weights, but {type(child).__name__} can\'t be merged '
                    f"({error}). Score without quantize."
                ) from error
            setattr(module, name, child.get_base_layer())
    return model


@functools.cache
def largest_weight() -> int:
    """The largest 8-bit weight whose products are exact: processors without VNNI add two of them in 16 bits."""
    states, weights = (torch.full(size, 127, dtype=torch.int8) for size in ((32, 64), (64, 32)))
    return 127 if bool((multiply_int8(states, weights) == 64 * 127 * 127).all()) else 63


class _Int8Linear(nn.Module):
    """A linear layer that multiplies 8-bit integers."""

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp_min(1e-12) / largest_weight()
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8).t().contiguous())
        self.register_buffer("scale", scale)
        bias = torch.zeros_like(scale) if linear.bias is None else linear.bias.detach().float()
        self.register_buffer("bias", bias)

    def forward(self, states: Tensor) -> Tensor:
        flat = states.flatten(0, -2).float()
        scale = torch.maximum(flat.amax(1, keepdim=True), flat.amin(1, keepdim=True).neg_()).clamp_min_(1e-12).div_(127)
        # In place from here on: the memory of each further result would be asked of the system anew.
        rounded = (flat * scale.reciprocal()).round_().to(torch.int8)
        product = multiply_int8(rounded, self.weight).float().mul_(scale)
        scores = torch.addcmul(self.bias, product, self.scale, out=product)
        return scores.view(*states.shape[:-1], -1).to(states.dtype)
