"""The model as it is scored with."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def scoring_view(model: nn.Module) -> nn.Module:
    """A copy of a model's structure around the same weights, in evaluation mode, to be changed for scoring alone.

    Training the model goes on under the view; its mode, its hooks and its outputs stay as they are.
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
"""Classifiers, by model type, whose head reads nothing of the last layer but its first token."""


def skip_unread_tokens(model: Any) -> bool:
    """Let the last layer compute the first token alone, where that is all that the classification head reads.

    The first token still attends to every other one; what is saved are the queries, the attention outputs and the feed-forward
    part of the other tokens, 5 of 6 of the last layer's matrix products, which nobody would read. Scores are the same to float precision.

    Args:
        model: A scoring view, changed in place. Its hidden states and attentions lose the other tokens.

    Returns:
        Whether the model is one of `FIRST_TOKEN_FAMILIES`, in a configuration that allows it.
    """
    config = model.config
    if type(model).__name__ != FIRST_TOKEN_FAMILIES.get(config.model_type) or not type(model).__module__.startswith(
        "transformers.models."
    ):
        return False
    if config.is_decoder or config.add_cross_attention or config._attn_implementation not in {"eager", "sdpa"}:  # noqa: SLF001
        return False
    layers = model.base_model.encoder.layer
    layers[-1] = _FirstTokenLayer(layers[-1])
    return True


class _FirstTokenLayer(nn.Module):
    """A layer of BERT's kind that returns its first token only: hidden states [P, L, H] to [P, 1, H]."""

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
    """Replace the linear layers of a scoring view's transformer by 8-bit ones, in place; the classification head stays.

    Weights are rounded once, to 255 steps of each output's own scale; inputs are rounded as they come, to 255 steps of each
    token's scale.
    """
    for module in list(model.base_model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, _Int8Linear(child))


class _Int8Linear(nn.Module):
    """A linear layer whose matrix product is computed on 8-bit integers."""

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
        product = torch._int_mm((flat * scale.reciprocal()).round().to(torch.int8), self.weight)  # noqa: SLF001
        scores = torch.addcmul(self.bias, product.float() * scale, self.scale)
        return scores.view(*states.shape[:-1], -1).to(states.dtype)
