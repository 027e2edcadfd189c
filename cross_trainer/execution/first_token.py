"""A last layer that computes only the first token of each sequence, where a classifier's head reads nothing else.

The first token still attends to all others. What is saved are the other tokens' queries, attention outputs and
feed-forward part: 5 of the layer's 6 matrix products, forward and backward.

Shapes: P rows, T real tokens of the batch, H hidden size, h heads of width d.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from cross_trainer.execution.attention import KEYWORD, flat_attention
from cross_trainer.internals import count_hooks

FIRST_TOKEN_FAMILIES = {
    "bert": "BertForSequenceClassification",
    "camembert": "CamembertForSequenceClassification",
    "electra": "ElectraForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "xlm-roberta": "XLMRobertaForSequenceClassification",
}
"""Classifiers, by model type, whose head reads only the first token of the last layer."""

_REPLICA = "first_token_replica"  # the argument by which a layer's copy on another device is known


def reads_first_token(model: Any) -> bool:
    """Whether a model is one of transformers' own classifiers whose head reads only the first token.

    Others may stand in for what reads the tokens, and for the attention.
    """
    if type(model).__name__ != FIRST_TOKEN_FAMILIES.get(model.config.model_type):
        return False
    base: Any = model.base_model
    if not base.encoder.layer:
        return False
    pooler = getattr(base, "pooler", None)
    reader = model.classifier if pooler is None else pooler
    parts = (model, getattr(reader, "original_module", reader), base.encoder.layer[-1].attention.self)  # under PEFT
    return all(type(part).__module__.startswith("transformers.models.") for part in parts)


class FirstTokenLayer:
    """The last layer of a classifier's transformer, which computes what the batch's layout says is read.

    Args:
        classifier: One for which `reads_first_token` is true. Its last layer is changed in place.
        own_hooks: How many hooks of ours are on its modules. Any others read what they see.
    """

    def __init__(self, classifier: Any, own_hooks: Mapping[nn.Module, int]) -> None:
        base = classifier.base_model
        heads = [child for child in classifier.children() if child is not base]
        readers = [base, base.encoder, getattr(base, "pooler", None), *heads]
        self._readers = [(module, own_hooks.get(module, 0)) for module in readers if module is not None]
        self._base: Any = base
        last = base.encoder.layer[-1]
        last.forward = functools.partial(_forward, last)
        self.handle = last.register_forward_pre_hook(_name_replica, with_kwargs=True)

    def suffices(self) -> bool:
        """Whether nobody else reads the layer's tokens: no hooks on what the head reads, and no new layers."""
        changed = [layer for layer in self._base.encoder.layer if _is_changed(layer)]
        is_last = len(changed) == 1 and changed[0] is self._base.encoder.layer[-1]
        return is_last and all(count_hooks(module) == count for module, count in self._readers)

    def remove(self) -> None:
        """Give the layer, and copies of it, their own forward pass back."""
        self.handle.remove()
        for module in self._base.modules():
            if _is_changed(module):
                del module.forward


def _is_changed(module: nn.Module) -> bool:
    forward = vars(module).get("forward")
    return isinstance(forward, functools.partial) and forward.func is _forward


def _name_replica(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Say which layer is called: `nn.DataParallel` copies `forward` as it is, with the first device's layer in it."""
    forward = vars(layer).get("forward")
    is_replica = isinstance(forward, functools.partial) and forward.args[0] is not layer
    return (args, {**kwargs, _REPLICA: layer}) if is_replica else None


def _forward(layer: Any, hidden: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
    """Hidden states [1, T, H] of a flat batch to those of first tokens [1, sequences, H], if only they are read."""
    layer = kwargs.pop(_REPLICA, layer)
    layout = kwargs.get(KEYWORD)
    if layout is None or not layout.first_only:
        return type(layer).forward(layer, hidden, attention_mask, *args, **kwargs)
    attention = layer.attention.self
    first = layout.first(hidden[0]).unsqueeze(0)

    def heads(linear: nn.Module, states: Tensor) -> Tensor:
        projected: Tensor = linear(states)
        return projected.view(*states.shape[:2], attention.num_attention_heads, -1).transpose(1, 2)

    context = flat_attention(
        heads(attention.query, first),
        heads(attention.key, hidden),
        heads(attention.value, hidden),
        layout,
        dropout=attention.dropout.p if attention.training else 0.0,
        scaling=attention.scaling,
        first_only=True,
    )
    attended = layer.attention.output(context.flatten(2), first)
    return layer.output(layer.intermediate(attended), attended)
