"""Cross-encoders of sentence-transformers that pool and score in modules of their own: Transformer, Pooling, Dense, ...

Where the classifier of the model's family computes the same (`FOLDED`), the modules become that classifier, which is
trained, saved and served as any other. Otherwise the modules themselves score, over the transformer, which runs
padding-free as it does elsewhere. No code of a repository is run: the modules are rebuilt from their files.

Shapes: P pairs, L tokens, H hidden size, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Files: TypeAlias = "Callable[[str], Any]"

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
KINDS = ("Dense", "LayerNorm", "Dropout", "Normalize")
"""Modules that may follow a Transformer and a Pooling; the last one is a Dense."""


@dataclass(frozen=True)
class Fold:
    """Where a family's classifier has what modules compute.

    Attributes:
        poolings: The poolings that it can be told to use; its config's `classifier_pooling`, if there are several.
        dense: Its first linear layer.
        activation: What follows that.
        scores: Its last linear layer.
        norm: The layer norm before the last layer, if there is one.
    """

    poolings: tuple[str, ...]
    dense: str
    activation: type[nn.Module]
    scores: str
    norm: str | None = None


_AS_ROBERTA = Fold(("cls",), "classifier.dense", nn.Tanh, "classifier.out_proj")
FOLDED = {
    "bert": Fold(("cls",), "bert.pooler.dense", nn.Tanh, "classifier"),
    "camembert": _AS_ROBERTA,
    "distilbert": Fold(("cls",), "pre_classifier", nn.ReLU, "classifier"),
    "electra": Fold(("cls",), "classifier.dense", nn.GELU, "classifier.out_proj"),
    "modernbert": Fold(("cls", "mean"), "head.dense", nn.GELU, "classifier", "head.norm"),
    "roberta": _AS_ROBERTA,
    "xlm-roberta": _AS_ROBERTA,
}
"""Families, by model type, whose classifier is a pooling, a dense layer with an activation, and a dense layer.

Besides these, each decoder whose classifier is one linear layer without bias, called `score`, takes the pooling of the
last token with one such Dense.
"""


def modular_obstacle(modules: Sequence[Mapping[str, Any]], kinds: Sequence[str], files: Files) -> str | None:
    """What keeps modules from being rebuilt, in words; None where nothing does.

    Args:
        modules: Those of `modules.json`.
        kinds: The names of their classes.
        files: Reads a JSON file by its path; None where there is none.
    """
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[-1] != "Dense" or not {*kinds[2:]} <= {*KINDS}:
        return f"the modules {', '.join(kinds)} of sentence-transformers"
    pooling = files(f"{modules[1].get('path')}/config.json") or {}
    unknown = [mode for mode in _modes(pooling) if mode not in POOLINGS]
    if unknown or not _modes(pooling):
        return f"the pooling {', '.join(unknown) or 'of nothing'}, which isn't understood"
    for at, (module, kind) in enumerate(zip(modules, kinds, strict=True)):
        said = files(f"{module.get('path')}/config.json") if kind == "Dense" else None
        if kind == "Dense" and said is None:
            return f"a Dense without the file {module.get('path')}/config.json"
        if said is not None and said.get("use_residual"):
            return "a Dense with a residual connection"
        written = (said or {}).get("module_output_name") or "sentence_embedding"
        expected = "scores" if at + 1 == len(kinds) else "sentence_embedding"
        if said is not None and (written != expected or said.get("module_input_name", expected) not in _READ):
            return f"a Dense that writes {written!r} where {expected!r} is expected"
    return None


_READ = ("sentence_embedding", "scores")


def _modes(pooling: Mapping[str, Any]) -> list[str]:
    """The poolings that are joined, from a config of any version."""
    if "pooling_mode" in pooling:
        mode = pooling["pooling_mode"]
        return [mode] if isinstance(mode, str) else list(mode)
    older = {
        "cls": "cls_token",
        "max": "max_tokens",
        "mean": "mean_tokens",
        "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
        "weightedmean": "weightedmean_tokens",
        "lasttoken": "lasttoken",
    }
    return [mode for mode, name in older.items() if pooling.get(f"pooling_mode_{name}")]


@dataclass(frozen=True)
class Head:
    """What follows the transformer.

    Attributes:
        modes: The poolings that are joined.
        layers: What its result goes through; the last linear layer gives C logits.
    """

    modes: tuple[str, ...]
    layers: tuple[nn.Module, ...]

    @property
    def num_labels(self) -> int:
        """C."""
        return next(layer.out_features for layer in reversed(self.layers) if isinstance(layer, nn.Linear))


def read_head(
    modules: Sequence[Mapping[str, Any]],
    kinds: Sequence[str],
    files: Files,
    weights: Callable[[str], dict[str, Tensor]],
    activation: Callable[[str], nn.Module | None],
) -> Head:
    """Rebuild the modules behind the transformer.

    Args:
        modules: Those of `modules.json`, without an obstacle.
        kinds: The names of their classes.
        files: Reads a JSON file by its path.
        weights: Reads a module's weights by its folder.
        activation: An activation by its class path; None for one that isn't of torch. The default of
            sentence-transformers, a Tanh, stands in for that, as it does there.
    """
    layers: list[nn.Module] = []
    for module, kind in list(zip(modules, kinds, strict=True))[2:]:
        path = str(module.get("path"))
        if kind == "Dense":
            said, tensors = files(f"{path}/config.json"), weights(path)
            linear = nn.Linear(said["in_features"], said["out_features"], bias=said.get("bias", True))
            linear.load_state_dict({name.removeprefix("linear."): value for name, value in tensors.items()})
            layers += [linear, activation(said.get("activation_function", "torch.nn.Tanh")) or nn.Tanh()]
        elif kind == "LayerNorm":
            tensors = {name.removeprefix("norm."): value for name, value in weights(path).items()}
            norm = nn.LayerNorm(len(tensors["weight"]))
            norm.load_state_dict(tensors)
            layers.append(norm)
        elif kind == "Normalize":
            layers.append(_Normalize())
        else:
            layers.append(nn.Dropout((files(f"{path}/config.json") or {}).get("dropout", 0.2)))
    modes = tuple(_modes(files(f"{modules[1].get('path')}/config.json")))
    return Head(modes, tuple(layers))


class _Normalize(nn.Module):
    def forward(self, states: Tensor) -> Tensor:
        return F.normalize(states, dim=-1)


# -- as a classifier of the family -------------------------------------------------------------------------------------


def fold(head: Head, base: Any) -> Any:
    """The classifier of a transformer's family that computes the same; None where there is none.

    Args:
        head: The modules.
        base: The transformer, which becomes the classifier's.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification

    places = _places(head, base.config)
    if places is None or type(base.config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return None
    base.config.num_labels = head.num_labels
    with torch.device("meta"):
        model: Any = AutoModelForSequenceClassification.from_config(base.config)  # type: ignore[no-untyped-call]
    prefix = model.base_model_prefix
    if type(getattr(model, prefix)) is not type(base):
        return None
    pooled = any(name.startswith(f"{prefix}.") for name in places)
    if not pooled and hasattr(model.base_model, "pooler") and model.base_model.pooler is None:
        base.pooler = None  # the classifier doesn't use one
    setattr(model, prefix, base)
    model.config = base.config
    for name, layer in places.items():
        built = model.get_submodule(name)
        if (built.bias is None) != (layer.bias is None) or built.weight.shape != layer.weight.shape:
            return None
        home, _, last = name.rpartition(".")
        setattr(model.get_submodule(home), last, layer)
    if any(parameter.is_meta for parameter in model.parameters()):
        return None
    model.config.architectures = [type(model).__name__]
    return model.eval()


def _places(head: Head, config: Any) -> dict[str, Any] | None:
    """Where the layers go in the family's classifier; None where they don't fit."""
    layers = [layer for layer in head.layers if not isinstance(layer, nn.Identity | nn.Dropout)]
    kinds = [type(layer) for layer in layers]
    if head.modes == ("lasttoken",) and kinds == [nn.Linear]:
        return {"score": layers[0]}
    rule = FOLDED.get(config.model_type)
    if rule is None or len(head.modes) != 1 or head.modes[0] not in rule.poolings:
        return None
    expected = [nn.Linear, rule.activation, *([] if rule.norm is None else [nn.LayerNorm]), nn.Linear]
    if kinds != expected:
        return None
    names = [rule.dense, None, *([] if rule.norm is None else [rule.norm]), rule.scores]
    if rule.norm is not None:
        norm: Any = layers[2]
        if not config.norm_bias and not norm.bias.any():
            layers[2] = nn.LayerNorm(norm.normalized_shape, norm.eps, bias=False)
            layers[2].weight = norm.weight
        if norm.eps != config.norm_eps or config.classifier_activation != "gelu":
            return None
    if len(rule.poolings) > 1:
        config.classifier_pooling = head.modes[0]
        config.classifier_bias = layers[0].bias is not None
    return {name: layer for name, layer in zip(names, layers, strict=True) if name is not None}


# -- as they are -------------------------------------------------------------------------------------------------------


class Modular(nn.Module):
    """A transformer under modules of sentence-transformers, to score with.

    Args:
        base: The transformer.
        head: What follows it.
    """

    def __init__(self, base: Any, head: Head) -> None:
        super().__init__()
        self.base_model = base
        self.modes = head.modes
        self.head = nn.Sequential(*head.layers)

    @property
    def config(self) -> Any:
        """The transformer's."""
        return self.base_model.config

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device(self.base_model.device)

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        found: torch.dtype = self.base_model.dtype
        return found

    def get_input_embeddings(self) -> nn.Module:
        """The transformer's."""
        found: nn.Module = self.base_model.get_input_embeddings()
        return found

    def forward(self, attention_mask: Tensor, **inputs: Tensor) -> Any:
        """Logits [P, C] of a batch [P, L]."""
        from transformers.modeling_outputs import SequenceClassifierOutput

        states = self.base_model(attention_mask=attention_mask, **inputs).last_hidden_state
        pooled = torch.cat([_pool(states, attention_mask, mode) for mode in self.modes], dim=-1)
        return SequenceClassifierOutput(logits=self.head(pooled))


def _pool(states: Tensor, mask: Tensor, mode: str) -> Tensor:
    """One state [P, H] of each row's states [P, L, H], as sentence-transformers pools them."""
    rows = torch.arange(len(states), device=states.device)
    if mode == "cls":
        return states[rows, mask.int().argmax(1)]
    if mode == "lasttoken":
        return states[rows, mask.shape[1] - 1 - mask.flip(1).int().argmax(1)]
    if mode == "max":
        return states.masked_fill(mask[..., None] == 0, float("-inf")).amax(1)
    weights = mask.to(torch.promote_types(states.dtype, torch.float32))
    if mode == "weightedmean":
        weights = weights * weights.cumsum(1)
    total = weights.sum(1, keepdim=True).clamp_min(1e-9)
    total = total.sqrt() if mode == "mean_sqrt_len_tokens" else total
    return ((states * weights[..., None]).sum(1) / total).to(states.dtype)
