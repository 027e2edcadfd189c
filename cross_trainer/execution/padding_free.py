"""Run the layers of a sequence classifier on real tokens only.

    from cross_trainer import enable_padding_free

    handle = enable_padding_free(model)      # or: with enable_padding_free(model): ...
    model(**padded_batch)                    # as before: padded batch in, ordinary outputs out
    handle.remove()

A hook before the transformer takes the padding out of its inputs: [P, L] tokens become [1, T], the T real tokens of the batch
laid end to end, with their positions. The embeddings and every layer see nothing else; only attention must know which tokens
belong together (`attention.py`). A hook behind the last layer puts hidden states back to [P, L, H], zeros at the padding, so
that pooling, heads and callers find what they expect. Weights, config and saved files stay as they are. What a forward pass
needs travels in its own arguments: models, threads and nested calls don't see each other.

Shapes: P rows, L tokens of a padded row, T real tokens of the batch, H hidden size.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from cross_trainer.errors import ConfigurationError, UnsupportedModelError
from cross_trainer.execution.attention import Kernel, Layout, flat_attention
from cross_trainer.execution.dropout import CpuDropout

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from typing_extensions import Self

ENCODERS = frozenset(
    {"albert", "bert", "camembert", "distilbert", "electra", "eurobert", "modernbert", "roberta", "xlm-roberta"}
)
"""Model types of bidirectional models, whose first token must be real: right padding."""

DECODERS = frozenset({"gemma", "llama", "mistral", "qwen2", "qwen3"})
"""Model types of causal models, padded on either side."""

LEAST_PADDING = 0.05
"""Batches with a smaller share of padding run as they are: taking it out would cost more than it saves."""

_NAME = "cross_trainer_padding_free"
_KEYWORD = "padding_free_layout"


class PaddingFree:
    """Handle of a model that runs padding-free, made by `enable_padding_free`.

    It travels with the model: a copied or unpickled model is enabled and has a handle of its own, which
    `enable_padding_free(copy)` returns.
    """

    def __init__(self, base: PreTrainedModel, kernel: Kernel | None) -> None:
        self.kernel = kernel
        self.holders = 0
        self._base: Any = base
        self._left_padding = base.config.model_type in DECODERS
        self._parameters = tuple(inspect.signature(base.forward).parameters)
        self._attention: list[Any] = [m for m in base.modules() if hasattr(m, "is_causal") and hasattr(m, "config")]
        self._dropout: list[nn.Module] = [m for m in base.modules() if type(m) is nn.Dropout]
        self._handles: list[Any] = []

    def _install(self) -> None:
        _register_attention()
        for module in self._attention:
            module.config = _AttentionConfig(module.config)
        for module in self._dropout:
            module.__class__ = CpuDropout
        self._handles = [
            self._base.register_forward_pre_hook(self._flatten_inputs, with_kwargs=True),
            self._base.register_forward_hook(_pad_outputs, with_kwargs=True),
        ]
        if getattr(self._base, "pooler", None) is not None:  # it reads the first token of each row: pad before it
            self._handles.append(self._base.encoder.register_forward_hook(_pad_outputs, with_kwargs=True))

    def remove(self) -> None:
        """Restore the model, if no other holder of this handle still needs it: every enabling has its removing."""
        self.holders = max(self.holders - 1, 0)
        if self.holders or not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        for module in self._attention:
            module.config = module.config.wrapped
        for module in self._dropout:
            module.__class__ = nn.Dropout
        self._handles = []
        del self._base.padding_free_handle

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __setstate__(self, state: dict[str, Any]) -> None:
        _register_attention()  # a model unpickled in a new process
        self.__dict__.update(state)

    def _flatten_inputs(
        self, module: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        inputs = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
        index = inputs.pop("unpad_idx", None)
        layout = self._layout(module, inputs, index)
        return ((), inputs) if layout is None else ((), _flatten(module, inputs, layout))

    def _layout(self, module: PreTrainedModel, inputs: dict[str, Any], index: Tensor | None) -> Layout | None:
        """Where the real tokens are, or None for the plain path."""
        mask = inputs.get("attention_mask")
        if mask is None or not isinstance(mask, Tensor) or mask.dim() != 2 or not _is_plain_call(module, inputs):
            return None
        if torch.compiler.is_compiling():
            return None if index is None else Layout(index, mask.bool())
        return _find_tokens(mask.bool(), self.kernel, self._left_padding)


def enable_padding_free(model: nn.Module, kernel: Kernel | None = None) -> PaddingFree:
    """Let a sequence classifier compute on real tokens only, from now on and in place.

    Batches go in padded and outputs come back as ever: logits and gradients equal the padded model's to float precision,
    hidden states are zero at the padding. A batch runs on the plain path, equal to the bit, when it has no 2-D
    `attention_mask`, less padding than `LEAST_PADDING`, or gaps within a row; or when attentions, a key-value cache or
    embeddings as inputs are asked for. In training on CPUs, dropout of hidden states is that of `dropout.py` on either path: the
    same rate, other masks. Causal models return no cache unless `use_cache=True` is passed.

    Works with gradient checkpointing, autocast, PEFT adapters, DDP and FSDP: enable it before wrapping. In `torch.compile`
    pass `unpad_idx=unpad_indices(attention_mask)` among the inputs; without it the compiled model pads.

    Args:
        model: a classifier, a bare transformer, or either under PEFT, of one of the families `ENCODERS` and `DECODERS`.
        kernel: force a way to compute attention: "groups", "varlen" or "repad", see `attention.py`. Default: the fastest
            that the device, the precision and the attention dropout allow.

    Returns:
        A handle whose `remove()`, or the end of its `with` block, restores the model. Enabled twice, a model has one
        handle, which restores it when removed twice.

    Raises:
        UnsupportedModelError: the model's attention can't be run on flat tokens; the message says why.
        ConfigurationError: the model is enabled with another `kernel`; or, in a forward pass of a bidirectional model, a row
            is padded on the left.
    """
    base = _find_base(model)
    handle: PaddingFree | None = base.__dict__.get("padding_free_handle")
    if handle is None:
        _check(base)
        handle = PaddingFree(base, kernel)
        handle._install()  # noqa: SLF001
        base.padding_free_handle = handle
    elif handle.kernel != kernel:
        raise ConfigurationError(
            f"The model is padding-free with kernel={handle.kernel!r} already: remove that handle before asking for {kernel!r}."
        )
    handle.holders += 1
    return handle


def unpad_indices(attention_mask: Tensor) -> Tensor:
    """Positions of the real tokens, to pass as `unpad_idx` to a compiled padding-free model.

    Args:
        attention_mask: [P, L], nonzero for real tokens.

    Returns:
        [T] indices into the batch read as P * L tokens.
    """
    return attention_mask.flatten().nonzero().flatten()


# --- which models -------------------------------------------------------------------------------------------------------


def _find_base(model: nn.Module) -> Any:
    from transformers import PreTrainedModel

    inner: Any = getattr(model, "get_base_model", lambda: model)()
    if not isinstance(inner, PreTrainedModel):
        raise UnsupportedModelError(
            f"Padding-free execution needs a transformers model, found {type(model).__name__}: "
            "enable it on the model itself, before DDP, torch.compile or another wrapper."
        )
    return inner.base_model


def _check(base: Any) -> None:
    from transformers import MODEL_MAPPING

    config: Any = base.config
    name = type(base).__name__
    reason = None
    if config.model_type not in ENCODERS | DECODERS:
        supports = getattr(base, "_supports_attention_backend", False)
        reason = (
            f"models of type {config.model_type!r} aren't verified to be exact"
            if supports
            else f"the attention of {config.model_type!r} doesn't go through transformers' AttentionInterface"
        )
    elif not isinstance(base, cast("type", MODEL_MAPPING[type(config)])):
        reason = f"{name} isn't transformers' own {config.model_type!r} model"
    elif getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        reason = "it is set up as a decoder (config.is_decoder) with a cache or cross-attention"
    elif getattr(config, "chunk_size_feed_forward", 0):
        reason = "its feed-forward layers cut rows into chunks (config.chunk_size_feed_forward)"
    if reason is not None:
        raise UnsupportedModelError(
            f"{name} can't run padding-free: {reason}. Families that can: {', '.join(sorted(ENCODERS | DECODERS))}. "
            "For others, max_tokens=N cuts batches into pieces of similar lengths, which avoids most padding."
        )


# --- into the model and out again ---------------------------------------------------------------------------------------


def _is_plain_call(module: PreTrainedModel, inputs: dict[str, Any]) -> bool:
    """Token ids in, no cache, no attention weights out."""
    attentions = inputs.get("output_attentions")
    unusual = ("inputs_embeds", "past_key_values", "use_cache", "encoder_hidden_states")
    return (
        inputs.get("input_ids") is not None
        and not (module.config.output_attentions if attentions is None else attentions)
        and not any(inputs.get(name) is not None and inputs[name] is not False for name in unusual)
    )


def _find_tokens(mask: Tensor, kernel: Kernel | None, left_padding: bool) -> Layout | None:
    lengths = mask.sum(1)
    order = lengths.argsort(stable=True)  # equal lengths side by side
    values, counts = torch.unique_consecutive(lengths[order], return_counts=True)
    groups = [(n, s) for n, s in zip(counts.tolist(), values.tolist(), strict=True) if s > 0]
    total = sum(n * s for n, s in groups)
    if total == 0 or total > (1.0 - LEAST_PADDING) * mask.numel():
        return None
    rows, columns = mask[order].nonzero(as_tuple=True)
    ends = lengths[order].cumsum(0)
    filled = lengths[order] > 0
    starts = columns[(ends - lengths[order])[filled]]
    gaps = columns[ends[filled] - 1] - starts + 1 != lengths[order][filled]
    if gaps.any():
        return None
    if not left_padding and starts.any():
        raise ConfigurationError(
            f"Row {int(order[filled][starts > 0].min())} of the batch starts with padding, where a bidirectional model "
            'expects its first token: set tokenizer.padding_side = "right".'
        )
    return Layout(order[rows] * mask.shape[1] + columns, mask, tuple(groups), kernel)


def _flatten(module: PreTrainedModel, inputs: dict[str, Any], layout: Layout) -> dict[str, Any]:
    input_ids, index = inputs["input_ids"], layout.index
    flat = {
        **inputs,
        "input_ids": input_ids.flatten()[index].unsqueeze(0),
        "position_ids": _positions(module, inputs, index).unsqueeze(0),
        # Models hand four-dimensional masks to the layers as they are, where ours is ignored: none is built.
        "attention_mask": input_ids.new_zeros(1, 1, 1, 1),
        _KEYWORD: layout,
    }
    if inputs.get("token_type_ids") is not None:
        flat["token_type_ids"] = inputs["token_type_ids"].flatten()[index].unsqueeze(0)
    if module.config.model_type in DECODERS:
        flat["use_cache"] = False
    return flat


def _positions(module: PreTrainedModel, inputs: dict[str, Any], index: Tensor) -> Tensor:
    """[T] the position of every real token, given or by the rule of the model's family."""
    input_ids, positions = inputs["input_ids"], inputs.get("position_ids")
    if positions is not None:
        return cast("Tensor", positions.expand(input_ids.shape).flatten()[index])
    embeddings: Any = getattr(module, "embeddings", None)
    if not hasattr(embeddings, "create_position_ids_from_input_ids"):
        return index % int(input_ids.shape[1])
    counted: Tensor = embeddings.create_position_ids_from_input_ids(input_ids, embeddings.padding_idx)
    return counted.flatten()[index]


def _pad_outputs(_: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    layout: Layout | None = kwargs.get(_KEYWORD)
    return output if layout is None else _pad(output, layout)


def _pad(output: Any, layout: Layout) -> Any:
    """Put every flat hidden state [1, T, H] of an output, a tuple or a mapping back to [P, L, H]."""
    if isinstance(output, Tensor):
        is_flat = output.dim() == 3 and output.shape[0] == 1 and output.shape[1] == layout.index.shape[0]
        return layout.pad(output[0]) if is_flat else output
    if isinstance(output, (tuple, list)):
        return type(output)([_pad(item, layout) for item in output])
    if isinstance(output, dict):
        return type(output)(**{name: _pad(item, layout) for name, item in output.items()})
    return output


# --- attention ----------------------------------------------------------------------------------------------------------


class _AttentionConfig:
    """A view of a model's config for its attention modules, which read there which attention to call.

    The config itself stays as it is, in memory and in saved files.
    """

    _attn_implementation = _NAME

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        if name == "wrapped":  # not set yet, while being copied
            raise AttributeError(name)
        return getattr(self.wrapped, name)


def _register_attention() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, _attention)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What attention modules call: ours on flat tokens, on the plain path the one that the config names."""
    layout = kwargs.pop(_KEYWORD, None)
    if layout is None:
        original = _original_attention(module)
        return original(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    causal = module.is_causal if kwargs.get("is_causal") is None else kwargs["is_causal"]
    causal = causal and getattr(module.config, "is_causal", True)
    window = kwargs.get("sliding_window")
    return flat_attention(
        query, key, value, layout, dropout=dropout, scaling=scaling, causal=causal, window=window
    ), None


def _original_attention(module: Any) -> Callable[..., tuple[Tensor, Tensor | None]]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    sources: Iterator[Any] = (sys.modules[cls.__module__] for cls in type(module).__mro__)
    eager: Any = next((x.eager_attention_forward for x in sources if hasattr(x, "eager_attention_forward")), None)
    name = module.config.wrapped._attn_implementation  # noqa: SLF001
    function: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
    return function
