"""The model as it is scored with."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cross_trainer.internals import attention_name, multiply_int8


def scoring_view(model: nn.Module) -> nn.Module:
    """A copy of a model's structure that shares its weights, in evaluation mode, for changes that only scoring needs.

    The model itself keeps its mode, its hooks and its outputs, and the view sees every step of its training.
    """
    shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared).eval()


FIRST_TOKEN_FAMILIES = {
    "bert": "BertForSequenceClassification",
    "camembert": "CamembertForSequenceClassification",
    "electra": "ElectraForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "xlm-roberta": "XLMRobertaForSequenceClassification",
}
"""Classifiers, by model type, whose head reads only the first token of the last layer."""


def skip_unread_tokens(model: Any) -> bool:
    """Let the last layer compute only the first token, where the classification head reads nothing else.

    The first token still attends to all others. What is saved are the other tokens' queries, attention outputs and
    feed-forward part: 5 of the last layer's 6 matrix products. Scores are the same to float precision.

    Args:
        model: A scoring view, changed in place. Its hidden states and attentions lose the other tokens.

    Returns:
        Whether the model was changed: it is one of `FIRST_TOKEN_FAMILIES`, in a configuration that allows it.
    """
    config = model.config
    if type(model).__name__ != FIRST_TOKEN_FAMILIES.get(config.model_type) or not type(model).__module__.startswith(
        "transformers.models."
    ):
        return False
    if config.is_decoder or config.add_cross_attention or attention_name(config) not in {"eager", "sdpa"}:
        return False
    layers = model.base_model.encoder.layer
    layers[-1] = _FirstTokenLayer(layers[-1])
    return True


class _FirstTokenLayer(nn.Module):
    """A layer like BERT's that returns only its first token: hidden states [P, L, H] to [P, 1, H]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer: Any = layer

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("padding_free_layout") is not None or kwargs.get("output_attentions"):
            return self.layer(hidden, attention_mask, *args, **kwargs)
        attention = self.layer.attention.self
        first = hidden[:, :1]

        def heads(states: Tensor) -> Tensor:
            return states.view(*states.shape[:2], attention.num_attention_heads, -1).transpose(1, 2)

        mask = None if attention_mask is None else attention_mask[:, :, :1]
        context = F.scaled_dot_product_attention(
            heads(attention.query(first)),
            heads(attention.key(hidden)),
            heads(attention.value(hidden)),
            attn_mask=mask,
            scale=attention.scaling,
        )
        attended = self.layer.attention.output(context.transpose(1, 2).flatten(2), first)
        return self.layer.output(self.layer.intermediate(attended), attended)


def quantize_linears(model: Any) -> None:
    """Replace the linear layers of a scoring view's transformer with 8-bit ones, in place; the classification head
    stays.

    Weights are rounded once, to 255 steps of each output's own scale. Inputs are rounded in each call, to 255 steps of
    each token's own scale.
    """
    for module in list(model.base_model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, _Int8Linear(child))


class _Int8Linear(nn.Module):
    """A linear layer that multiplies 8-bit integers."""

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp_min(1e-12) / 127
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8).t().contiguous())
        self.register_buffer("scale", scale)
        bias = torch.zeros_like(scale) if linear.bias is None else linear.bias.detach().float()
        self.register_buffer("bias", bias)

    def forward(self, states: Tensor) -> Tensor:
        flat = states.flatten(0, -2).float()
        low, high = flat.aminmax(dim=1, keepdim=True)
        scale = torch.maximum(high, -low).clamp_min(1e-12) / 127
        product = multiply_int8((flat * scale.reciprocal()).round().to(torch.int8), self.weight)
        scores = torch.addcmul(self.bias, product.float() * scale, self.scale)
        return scores.view(*states.shape[:-1], -1).to(states.dtype)
