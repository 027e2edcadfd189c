"""The model as it is scored with."""

from __future__ import annotations

import copy
import functools
import operator
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cross_trainer.execution.first_token import reads_first_token
from cross_trainer.internals import AttentionConfig, attention_name


def scoring_view(model: Any, pad_token_id: int | None = None) -> Any:
    """A copy of a model's structure that shares its weights, in evaluation mode, for changes that only scoring needs.

    The model itself keeps its mode, its hooks, its config and its outputs, and the view sees every step of its
    training. Whether anything else has changed since, `structure` tells.

    Args:
        model: A classifier, under PEFT or not.
        pad_token_id: The token that fills rows up. Decoders, whose head is called `score`, find the end of a text by
            it, so the view's config gets it there, and where the model's names none. None leaves the config's.
    """
    for module in model.modules():  # PEFT does so in its first forward pass, which would change the shared weights
        if getattr(module, "disable_adapters", False) is True and getattr(module, "merged", False):
            module.unmerge()
    shared = {id(tensor): tensor for module in model.modules() for tensor in _tensors(module)}
    view = copy.deepcopy(model, shared).eval()
    text_config = view.config.get_text_config()
    known = getattr(text_config, "pad_token_id", None)
    if pad_token_id is not None and (hasattr(view, "score") or known is None):
        text_config.pad_token_id = pad_token_id
    return view


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """A module's own parameters and buffers, and tensors that are neither."""
    kept = vars(module)
    for values in (kept["_parameters"], kept["_buffers"], kept):
        yield from (value for value in values.values() if isinstance(value, Tensor))


def structure(model: nn.Module) -> list[Any]:
    """All that a model's outputs depend on but the values of its weights: classes, settings, hooks, adapters, config.

    Two of them are equal, entry by entry and by identity, as long as nothing of it is changed. Takes 0.5 ms for a BERT
    of 12 layers.
    """
    parts: list[Any] = []
    configs: set[int] = set()
    waiting = [model]
    while waiting:
        module = waiting.pop()
        kept = vars(module)
        parts.append(type(module))
        for held in filter(None, _held(kept)):  # parameters, buffers and hooks
            parts.append(len(held))
            parts.extend(held.values() if isinstance(held, dict) else held)
        for name in _own(tuple(kept)):
            if type(kept[name]) in _CONTAINERS or name.endswith("config"):
                _add(kept[name], parts, configs)
            else:
                parts.append(kept[name])
        waiting.extend(child for child in kept["_modules"].values() if child is not None)
    return parts


_STANDARD = frozenset(vars(nn.Module()))  # what every module has
_held = operator.itemgetter(
    *sorted(name for name in _STANDARD - {"_modules"} if isinstance(vars(nn.Module())[name], dict))
)
_CONTAINERS = frozenset({dict, OrderedDict, defaultdict, list, tuple, set})


@functools.cache
def _own(names: tuple[str, ...]) -> list[str]:
    """The names of a module's attributes that not every module has."""
    return [name for name in names if name not in _STANDARD]


def _add(value: Any, parts: list[Any], configs: set[int]) -> None:
    """Add a value, or what it holds if it is a container or a config."""
    kind = type(value)
    if hasattr(kind, "model_type") or kind is AttentionConfig:
        if id(value) not in configs:
            configs.add(id(value))
            _add(vars(value), parts, configs)
    elif kind not in _CONTAINERS:
        parts.append(value)
    else:
        parts.append(len(value))
        if issubclass(kind, dict):
            parts.extend(value)
            value = value.values()
        for entry in value:
            _add(entry, parts, configs)


def classifier_of(model: Any) -> Any:
    """The classifier itself, under PEFT or not."""
    return getattr(model, "get_base_model", lambda: model)()


def compute_head_in_float32(model: Any) -> bool:
    """Let what follows a scoring view's transformer compute in float32, also under autocast: pooler and classifier.

    In bfloat16 a thousand pairs have a few hundred distinct scores, which is no ranking. The weights stay shared.

    Returns:
        Whether the model was changed: its head consists of linear layers and norms as torch has them.
    """
    parts = _head_parts(classifier_of(model))
    if not all(map(_is_plain, parts)):
        return False
    for part in parts:
        part.forward = functools.partial(_in_float32, part)
    return True


def has_float32_head(model: Any) -> bool:
    """Whether `compute_head_in_float32` knows a model's whole head and changes it."""
    classifier = classifier_of(model)
    parts = _head_parts(classifier)
    return classifier.base_model is not classifier and bool(parts) and all(map(_is_plain, parts))


def _head_parts(classifier: Any) -> list[nn.Module]:
    """The modules with weights that follow a classifier's transformer."""
    base = classifier.base_model
    heads = [] if base is classifier else [child for child in classifier.children() if child is not base]
    return [part for head in (*heads, *poolers(base)) for part in head.modules() if _weights(part)]


def _is_plain(part: nn.Module) -> bool:
    return type(part) in {nn.Linear, nn.LayerNorm} and "forward" not in vars(part)


def _weights(part: nn.Module) -> bool:
    """Whether a module has parameters of its own."""
    return any(True for _ in part.parameters(recurse=False))


def poolers(base: Any) -> list[nn.Module]:
    """The pooler of a transformer, which is a part of the head, if it has one."""
    pooler = getattr(base, "pooler", None)
    return [pooler] if isinstance(pooler, nn.Module) else []


def _in_float32(part: Any, states: Tensor) -> Tensor:
    """A linear layer or a layer norm in float32, or in its own precision if that is higher."""
    dtype = torch.promote_types(states.dtype, torch.float32)
    weight, bias = part.weight.to(dtype), None if part.bias is None else part.bias.to(dtype)
    with torch.autocast(states.device.type, enabled=False):
        if isinstance(part, nn.LayerNorm):
            return F.layer_norm(states.to(dtype), part.normalized_shape, weight, bias, part.eps)
        return F.linear(states.to(dtype), weight, bias)


READS_PADDING = frozenset({"canine", "convbert", "fnet", "funnel", "mobilebert", "nystromformer", "yoso"})
"""Model types that mix padding into real tokens, by convolutions for instance, whatever the attention mask says."""


def skip_unread_tokens(model: Any) -> bool:
    """Let the last layer compute only the first token, where the classification head reads nothing else.

    The first token still attends to all others. What is saved are the other tokens' queries, attention outputs and
    feed-forward part: 5 of the last layer's 6 matrix products. Scores are the same to float precision.

    Args:
        model: A scoring view, changed in place. Its hidden states and attentions lose the other tokens.

    Returns:
        Whether the model was changed: `reads_first_token` is true, and its configuration allows it.
    """
    config = model.config
    if not reads_first_token(model):
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
