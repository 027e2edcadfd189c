"""Run the layers of a sequence classifier on real tokens only.

    from cross_trainer import enable_padding_free

    handle = enable_padding_free(model)      # or: with enable_padding_free(model): ...
    model(**padded_batch)                    # as before: padded batch in, ordinary outputs out
    handle.remove()

A hook before the transformer takes the padding out of its inputs: [P, L] tokens become [1, T], the T real tokens of the
batch laid end to end, with their positions. The embeddings and the layers see nothing else; only attention needs to
know which tokens belong together (`attention.py`). A hook after the last layer puts hidden states back to [P, L, H],
zeros at the padding, so that pooling, heads and callers find what they expect. Weights, config and saved files stay as
they are. What a forward pass needs travels in its own arguments, so models, threads and nested calls don't see each
other.

Traced models pad: what `torch.jit.trace`, `torch.export` and the ONNX exporters record is the original model, for
batches of any shape.

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
from cross_trainer.execution.attention import KEYWORD, Kernel, Layout, flat_attention
from cross_trainer.execution.dropout import CpuDropout, exchange_class
from cross_trainer.execution.first_token import FirstTokenLayer, reads_first_token
from cross_trainer.execution.transfer import on_cpu, send
from cross_trainer.internals import AttentionConfig, attention_name, has_hooks

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
"""Batches with a smaller share of padding run as they are: removing it would cost more than it saves.

Where the last layer computes first tokens alone, all run flat, which saves more.

In half precision on GPUs all run flat: attention takes flat tokens at no cost there, and transformers would read a
padded batch's mask back from the device, to see whether it holds padding.
"""

_NAME = "cross_trainer_padding_free"
_CLASSIFIES = "padding_free_classifies"  # the argument by which the transformer knows that its classifier calls


class PaddingFree:
    """Handle of a model that runs padding-free, made by `enable_padding_free`.

    It belongs to the model: a copied or unpickled model is enabled too and has a handle of its own, which
    `enable_padding_free(copy)` returns.
    """

    def __init__(self, model: Any, kernel: Kernel | None) -> None:
        base = _base(model)
        self.kernel = kernel
        self.least_padding: float | None = None  # a share of its own, instead of the one that the device calls for
        self.holders = 0
        self._base: Any = base
        self._left_padding = base.config.model_type in DECODERS
        self._parameters = tuple(inspect.signature(base.forward).parameters)
        _register_attention()
        module: Any
        for module in base.modules():
            if hasattr(module, "is_causal") and hasattr(module, "config"):
                module.config = AttentionConfig(module.config, _NAME)
        exchange_class(base, nn.Dropout, CpuDropout)
        self._handles: list[Any] = [
            self._base.register_forward_pre_hook(self._flatten_inputs, with_kwargs=True),
            self._base.register_forward_hook(_pad_outputs, with_kwargs=True),
        ]
        if getattr(base, "pooler", None) is not None:  # it reads each row's first token: pad before it
            encoder: Any = base.encoder
            self._handles.append(encoder.register_forward_hook(_pad_outputs, with_kwargs=True))
        self._last_layer: FirstTokenLayer | None = None
        classifier = _classifier(model)
        if classifier is not base and reads_first_token(classifier):
            own_hooks = {base: 2, base.encoder: int(getattr(base, "pooler", None) is not None)}
            self._last_layer = FirstTokenLayer(classifier, own_hooks)
            for module in {model, classifier}:  # adapters call the classifier's forward pass, past its hooks
                self._handles.append(module.register_forward_pre_hook(_say_who_calls, with_kwargs=True))

    def remove(self) -> None:
        """Restore the model, once this has been called as often as the model was enabled.

        Nothing of this package stays in the model: it can be pickled for a process that doesn't have it.
        """
        self.holders = max(self.holders - 1, 0)
        if self.holders or not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        module: Any
        for module in self._base.modules():
            if isinstance(getattr(module, "config", None), AttentionConfig):
                module.config = module.config.wrapped
        exchange_class(self._base, CpuDropout, nn.Dropout)
        if self._last_layer is not None:
            self._last_layer.remove()
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
        classifies = inputs.pop(_CLASSIFIES, False)
        mask: Any = inputs.get("attention_mask")
        if not _can_be_flat(module, inputs, mask):
            return (), inputs
        if self._left_padding:
            inputs["use_cache"] = False
        if torch.compiler.is_compiling():
            return (), inputs if index is None else _flatten(module, inputs, Layout(index, mask.bool()))
        real = on_cpu(mask).bool()
        first_only = classifies and self._only_first_read(module, inputs)
        found = _find_tokens(real, self._left_padding, self._least_padding(module, mask.device, first_only))
        if found is not None:
            layout = Layout(send(found[0], mask.device), mask.bool(), found[1], self.kernel, first_only)
            return (), _flatten(module, inputs, layout)
        if not self._left_padding and bool(real.all()):
            # A mask that hides nothing: transformers would read it back from the device to find that out.
            inputs["attention_mask"] = None
        return (), inputs

    def _only_first_read(self, module: PreTrainedModel, inputs: dict[str, Any]) -> bool:
        """Whether the classifier reads nothing of the last layer but first tokens."""
        asked = inputs.get("output_hidden_states")
        hidden_states = module.config.output_hidden_states if asked is None else asked
        return self._last_layer is not None and not hidden_states and self._last_layer.suffices()

    def _least_padding(self, module: PreTrainedModel, device: torch.device, first_only: bool) -> float:
        """The share of padding from which on it is taken out."""
        if self.least_padding is not None:
            return self.least_padding
        if first_only:
            return 0.0
        if device.type != "cuda":
            return LEAST_PADDING
        autocast = torch.is_autocast_enabled(device.type)
        embedding: Any = module.get_input_embeddings()  # replicas of `nn.DataParallel` have no list of parameters
        dtype = torch.get_autocast_dtype(device.type) if autocast else embedding.weight.dtype
        return 0.0 if dtype in (torch.float16, torch.bfloat16) else LEAST_PADDING


def enable_padding_free(model: nn.Module, kernel: Kernel | None = None) -> PaddingFree:
    """Let a sequence classifier compute only real tokens from now on; the model is changed in place.

        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=1)
        >>> model = BertForSequenceClassification(config).eval()
        >>> batch = {"input_ids": torch.tensor([[1, 7, 8, 9, 2], [1, 7, 2, 0, 0]])}
        >>> batch["attention_mask"] = (batch["input_ids"] != 0).long()
        >>> padded = model(**batch).logits
        >>> with enable_padding_free(model):
        ...     logits = model(**batch).logits
        >>> logits.shape, torch.allclose(logits, padded, atol=1e-5)
        (torch.Size([2, 1]), True)

    Inputs and outputs stay what they were: padded batches in; logits and gradients out, equal to the padded model's to
    float precision; hidden states, zero at the padding. A batch runs on the plain path, with bit-identical results, if
    it has no 2-D `attention_mask`, less padding than `LEAST_PADDING` or gaps within a row, if attentions, a key-value
    cache or embeddings as inputs are asked for, or while the model is traced. On CPUs, training takes the dropout of
    `dropout.py` for hidden states on
    either path: the same rate, but other masks. Causal models return no cache unless `use_cache=True` is passed.

    Forward hooks on the model, its head and its input embeddings see padded shapes [P, L, ...]. Hooks on layers see
    what layers compute, [1, T, H].

    Where a classifier's head reads only first tokens (`FIRST_TOKEN_FAMILIES`), its last layer computes only these, and
    dropout there draws fewer numbers. Who asks for hidden states, calls the transformer itself or has put hooks on it,
    on its encoder or on the head gets all tokens; a hook on the last layer sees [1, rows, H], one on its attention
    nothing.

    Works with gradient checkpointing, autocast, PEFT adapters, DDP and FSDP: enable it before wrapping. For
    `torch.compile` pass `unpad_idx=unpad_indices(attention_mask)` with the inputs; without it the compiled model pads.

    Args:
        model: a classifier, a bare transformer, or either under PEFT, of one of the families `ENCODERS` and `DECODERS`.
        kernel: how to compute attention: "groups", "varlen" or "repad", see `attention.py`. Default: the fastest that
            the device, the precision and the attention dropout allow.

    Returns:
        A handle that restores the model by `remove()` or at the end of its `with` block. A model that is enabled twice
        has one handle, which restores it when removed twice.

    Raises:
        UnsupportedModelError: the model can't run padding-free; the message is that of `padding_free_obstacle`.
        ConfigurationError: the model is enabled with another `kernel`; or, in a forward pass of a bidirectional model,
            a row is padded on the left.
    """
    obstacle = padding_free_obstacle(model)
    if obstacle is not None:
        raise UnsupportedModelError(obstacle)
    base = _base(model)
    handle: PaddingFree | None = base.__dict__.get("padding_free_handle")
    if handle is None:
        handle = base.padding_free_handle = PaddingFree(model, kernel)
    elif handle.kernel != kernel:
        raise ConfigurationError(
            f"The model already runs padding-free with kernel={handle.kernel!r}: remove that handle before asking for "
            f"{kernel!r}."
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
    return send(on_cpu(attention_mask).flatten().nonzero().flatten(), attention_mask.device)


# --- which models
# -------------------------------------------------------------------------------------------------------


def padding_free_obstacle(model: nn.Module) -> str | None:
    """Why a model can't run padding-free, or None if it can; the model isn't changed.

        >>> from torch import nn
        >>> padding_free_obstacle(nn.Linear(2, 1))
        'Padding-free execution needs a transformers model, not Linear: enable it on the model itself, before ...'

    Args:
        model: see `enable_padding_free`, which raises an UnsupportedModelError with this message.
    """
    from transformers import PreTrainedModel

    base = _base(model)
    if not isinstance(base, PreTrainedModel):
        return (
            f"Padding-free execution needs a transformers model, not {type(model).__name__}: "
            "enable it on the model itself, before DDP, torch.compile or another wrapper."
        )
    reason = _unsupported(base)
    return reason and (
        f"{type(base).__name__} can't run padding-free: {reason}. Families that can: "
        f"{', '.join(sorted(ENCODERS | DECODERS))}. For others, max_tokens=N cuts batches into pieces of similar "
        "lengths, which avoids most padding."
    )


def _classifier(model: Any) -> Any:
    """The classifier, or the bare transformer, under PEFT or not."""
    return getattr(model, "get_base_model", lambda: model)()


def _base(model: nn.Module) -> Any:
    """The transformer in a classifier, under PEFT or not."""
    inner = _classifier(model)
    return getattr(inner, "base_model", inner)


def _unsupported(base: Any) -> str | None:
    from transformers import MODEL_MAPPING

    config: Any = base.config
    if config.model_type not in ENCODERS | DECODERS:
        if base.is_backend_compatible():
            return f"models of type {config.model_type!r} haven't been verified to be exact"
        return f"the attention of {config.model_type!r} doesn't go through transformers' AttentionInterface"
    if not isinstance(base, cast("type", MODEL_MAPPING[type(config)])):
        return f"{type(base).__name__} isn't transformers' own {config.model_type!r} model"
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        return "it is configured as a decoder (config.is_decoder) with a cache or cross-attention"
    if getattr(config, "chunk_size_feed_forward", 0):
        return "its feed-forward layers cut rows into chunks (config.chunk_size_feed_forward)"
    return None


# --- into the model and out again
# ---------------------------------------------------------------------------------------


def _can_be_flat(module: PreTrainedModel, inputs: dict[str, Any], mask: Any) -> bool:
    """Whether a call asks for nothing that flat tokens can't give."""
    from transformers.utils.import_utils import is_tracing

    if not isinstance(mask, Tensor) or mask.dim() != 2 or not _is_plain_call(module, inputs):
        return False
    # What is recorded must not depend on this batch's lengths.
    return torch.compiler.is_compiling() or not is_tracing(mask)


def _is_plain_call(module: PreTrainedModel, inputs: dict[str, Any]) -> bool:
    """Token ids in, no cache, no attention weights out."""
    attentions = inputs.get("output_attentions")
    unusual = ("inputs_embeds", "past_key_values", "use_cache", "encoder_hidden_states")
    return (
        inputs.get("input_ids") is not None
        and not (module.config.output_attentions if attentions is None else attentions)
        and not any(inputs.get(name) is not None and inputs[name] is not False for name in unusual)
    )


def _find_tokens(mask: Tensor, left_padding: bool, least: float) -> tuple[Tensor, tuple[tuple[int, int], ...]] | None:
    """`index` and `groups` of a `Layout`, by a mask on the CPU; None for the plain path."""
    lengths = mask.sum(1)
    order = lengths.argsort(stable=True)  # equal lengths side by side
    values, counts = torch.unique_consecutive(lengths[order], return_counts=True)
    groups = [(n, s) for n, s in zip(counts.tolist(), values.tolist(), strict=True) if s > 0]
    total = sum(n * s for n, s in groups)
    if total == 0 or total > (1.0 - least) * mask.numel():
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
            f"Row {int(order[filled][starts > 0].min())} of the batch starts with padding, but a bidirectional model "
            'expects its first token there: set tokenizer.padding_side = "right".'
        )
    return order[rows] * mask.shape[1] + columns, tuple(groups)


def _flatten(module: PreTrainedModel, inputs: dict[str, Any], layout: Layout) -> dict[str, Any]:
    input_ids, index = inputs["input_ids"], layout.index
    flat = {
        **inputs,
        "input_ids": input_ids.flatten()[index].unsqueeze(0),
        "position_ids": _positions(module, inputs, index).unsqueeze(0),
        # Models pass four-dimensional masks to their layers unchanged, and our attention ignores this one: none is
        # built.
        "attention_mask": input_ids.new_zeros(1, 1, 1, 1),
        KEYWORD: layout,
    }
    embedding: Any = module.get_input_embeddings()
    if has_hooks(embedding):  # of NEFTune for one, whose noise is scaled by the length of a row
        flat |= {"input_ids": None, "inputs_embeds": layout.flatten(embedding(input_ids)).unsqueeze(0)}
    if inputs.get("token_type_ids") is not None:
        flat["token_type_ids"] = inputs["token_type_ids"].flatten()[index].unsqueeze(0)
    return flat


def _positions(module: PreTrainedModel, inputs: dict[str, Any], index: Tensor) -> Tensor:
    """[T] the position of each real token: the given one, or by the rule of the model's family."""
    input_ids, positions = inputs["input_ids"], inputs.get("position_ids")
    if positions is not None:
        return cast("Tensor", positions.expand(input_ids.shape).flatten()[index])
    embeddings: Any = getattr(module, "embeddings", None)
    if not hasattr(embeddings, "create_position_ids_from_input_ids"):
        return index % int(input_ids.shape[1])
    counted: Tensor = embeddings.create_position_ids_from_input_ids(input_ids, embeddings.padding_idx)
    return counted.flatten()[index]


def _say_who_calls(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    from transformers.utils.import_utils import is_tracing

    traced = torch.compiler.is_compiling() or is_tracing(kwargs.get("input_ids"))
    return None if traced else (args, {**kwargs, _CLASSIFIES: True})


def _pad_outputs(_: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    layout: Layout | None = kwargs.get(KEYWORD)
    return output if layout is None else _pad(output, layout)


def _pad(output: Any, layout: Layout) -> Any:
    """Put each flat hidden state in an output, a tuple or a mapping back to [P, L, H]: [1, T, H], or [1, sequences, H]
    of first tokens.
    """
    if isinstance(output, Tensor):
        if output.dim() != 3 or output.shape[0] != 1:
            return output
        if output.shape[1] == layout.index.shape[0]:
            return layout.pad(output[0])
        is_first = layout.first_only and output.shape[1] == layout.starts.shape[0]
        return layout.pad(output[0], first=True) if is_first else output
    if isinstance(output, (tuple, list)):
        return type(output)([_pad(item, layout) for item in output])
    if isinstance(output, dict):
        return type(output)(**{name: _pad(item, layout) for name, item in output.items()})
    return output


# --- attention
# ----------------------------------------------------------------------------------------------------------


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
    """What attention modules call: ours on flat tokens, the one that the config names on the plain path."""
    layout = kwargs.pop(KEYWORD, None)
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
    name = attention_name(module.config.wrapped)
    function: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
    return function
