"""Load a saved sequence classifier as its files say: weights, tokenizer, length and the activation that makes scores of
logits.

Nothing of a repository is run, weights come from safetensors files, and an activation is a class of `torch.nn.modules`,
unless the caller asks for more.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import logging
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from cross_trainer.errors import ConfigurationError
from cross_trainer.saved.folder import position_limit

logger = logging.getLogger(__name__)

Activation: TypeAlias = "Callable[[Tensor], Tensor]"


def load_classifier(
    name: str, num_labels: int | None, dtype: torch.dtype | None, use_safetensors: bool, source: dict[str, Any]
) -> tuple[Any, bool]:
    """Load a saved model as a sequence classifier.

    Args:
        name: On the Hub, or a folder.
        num_labels: C; None for the saved number, or 1 for a model that is no classifier.
        dtype: Of the weights; None for the saved one.
        use_safetensors: Refuse pickles.
        source: Where to load from and what to trust: arguments of `from_pretrained`.

    Returns:
        The model, and whether its head is new.

    Raises:
        ConfigurationError: The only weights are pickles, and they are refused.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config: Any = AutoConfig.from_pretrained(name, **source)
    is_classifier = any("Classification" in architecture for architecture in config.architectures or [])
    wanted = num_labels if num_labels is not None else config.num_labels if is_classifier else 1
    replaced = wanted != config.num_labels
    if replaced:
        config.num_labels = wanted
        for key in ("sentence_transformers", "sbert_ce_default_activation_function", "problem_type"):
            if getattr(config, key, None) is not None:  # they describe the old head
                setattr(config, key, None)
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name,
            config=config,
            use_safetensors=use_safetensors,
            ignore_mismatched_sizes=replaced,
            output_loading_info=True,
            **source,
            **({} if dtype is None else {"dtype": dtype}),
        )
    except OSError as error:
        if use_safetensors and "safetensors" in str(error):
            raise ConfigurationError(
                f"{name} has no weights in safetensors files. Pickled weights can run code when they are loaded: "
                "pass use_safetensors=False if you trust their author."
            ) from error
        raise
    return model, bool(info["missing_keys"] or info["mismatched_keys"])


def load_tokenizer(name: str, source: dict[str, Any]) -> Any:
    """The tokenizer that lies beside a saved model."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, **source)


def check_loaded(model: Any, num_labels: int | None) -> Any:
    """A loaded model, if it is a classifier with so many labels.

    Raises:
        ConfigurationError: It isn't.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "num_labels"):
        raise ConfigurationError(f"Expected a name, a folder or a sequence classifier, found {type(model).__name__}.")
    if num_labels is not None and num_labels != config.num_labels:
        raise ConfigurationError(
            f"num_labels={num_labels}, but the loaded model has {config.num_labels}. Load it with "
            f"AutoModelForSequenceClassification.from_pretrained(..., num_labels={num_labels})."
        )
    return model


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A precision by its name.

    Raises:
        ConfigurationError: torch has no such floating-point type.
    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and (not isinstance(found, torch.dtype) or not found.is_floating_point):
        raise ConfigurationError(f'dtype={dtype!r}: expected "float32", "bfloat16", "float16" or such a torch.dtype.')
    return found


def default_device() -> torch.device:
    """The GPU of this process, if there is one, else the CPU."""
    from accelerate import PartialState  # type: ignore[import-untyped]

    return torch.device(PartialState().device)


def with_padding(tokenizer: Any, model: Any) -> Any:
    """The tokenizer with a padding token: its own, else the model's, else its end of text.

    Decoders, whose head is called `score`, find the end of a text by the model's padding token: it comes first there.

    Args:
        tokenizer: Copied where its padding token changes.
        model: A classifier. It may know no padding token.

    Raises:
        ConfigurationError: There is none of them.
    """
    known = getattr(model.config.get_text_config(), "pad_token_id", None)
    of_model = None if known is None or known < 0 else tokenizer.convert_ids_to_tokens(known)
    choices = [of_model, tokenizer.pad_token] if hasattr(model, "score") else [tokenizer.pad_token, of_model]
    token = next((token for token in [*choices, tokenizer.eos_token] if token is not None), None)
    if token is None:
        raise ConfigurationError(
            "The tokenizer has neither a padding token nor an end of text. Set tokenizer.pad_token to a token that no "
            "text holds, and model.config.pad_token_id to its id."
        )
    if token != tokenizer.pad_token:
        tokenizer = copy.deepcopy(tokenizer)  # the caller's stays as it is
        tokenizer.pad_token = token
    return tokenizer


def padding_side(model: Any, tokenizer: Any) -> str:
    """Where rows can be padded without a change of their scores: on the right, for almost every model.

    Models with absolute positions and those that read the first token need the right, decoders take either side, XLNet
    reads the last token. Of code that isn't transformers' own nothing is known, so the tokenizer's side counts there.
    """
    classifier = getattr(model, "get_base_model", lambda: model)()
    if not type(classifier).__module__.startswith("transformers.models."):
        return str(tokenizer.padding_side)
    return "left" if classifier.config.model_type == "xlnet" else "right"


def check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Check that a model has an embedding for every token of a tokenizer.

    Raises:
        ConfigurationError: Tokens were added, or the tokenizer is another model's; the message names the first one.
    """
    try:
        embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    except NotImplementedError:  # it hashes characters, for instance
        return
    rows = getattr(embeddings, "num_embeddings", None)
    if rows is None or len(tokenizer) <= rows:
        return
    beyond = {index: token for token, index in tokenizer.get_vocab().items() if index >= rows}
    first = min(beyond)
    raise ConfigurationError(
        f"The tokenizer has {len(tokenizer)} tokens and the model embeddings for {rows}: {beyond[first]!r} ({first}) "
        "has none. Call model.resize_token_embeddings(len(tokenizer)) after adding tokens, or load the model's own "
        "tokenizer."
    )


def choose_max_length(max_length: int | None, tokenizer: Any, config: Any) -> int | None:
    """Tokens of a pair: as asked for, else what the tokenizer says, at most what the model has positions for.

    Raises:
        ConfigurationError: More is asked for than the model has positions for.
    """
    limit = position_limit(config)
    if max_length is not None:
        if max_length < 1 or (limit is not None and max_length > limit):
            raise ConfigurationError(f"max_length={max_length}: the model has positions for 1 to {limit} tokens.")
        return max_length
    from transformers.tokenization_utils_base import LARGE_INTEGER

    known = tokenizer.model_max_length if tokenizer.model_max_length < LARGE_INTEGER else None
    return min((length for length in (known, limit) if length is not None), default=None)


def saved_activation(config: Any) -> Activation:
    """What turns a saved model's logits into scores, as sentence-transformers reads it.

    In this order: `sentence_transformers.activation_fn` of config.json, `sbert_ce_default_activation_function`, and by
    default a sigmoid for one label and the logits themselves for more. Only classes of `torch.nn.modules` are followed,
    so that no config can have other code run.

    Args:
        config: The model's config.

    Returns:
        A callable on logits [P, C].
    """
    paths = (
        (getattr(config, "sentence_transformers", None) or {}).get("activation_fn"),
        getattr(config, "sbert_ce_default_activation_function", None),
    )
    path = next((path for path in paths if path is not None), None)
    default: nn.Module = nn.Sigmoid() if config.num_labels == 1 else nn.Identity()
    if path is None:
        return default
    activation = _torch_module(path)
    if activation is None:
        logger.warning(
            "The config's activation %r is no class of torch.nn.modules and is not loaded; %s is used. "
            "Pass activation=... for another one.",
            path,
            default,
        )
        return default
    return activation


def _torch_module(path: Any) -> nn.Module | None:
    """An instance of the named class of torch.nn.modules, over the last dimension where it asks for one; else None."""
    home, _, name = str(path).rpartition(".")
    if home == "torch.nn":
        found = getattr(nn, name, None)
    elif home.startswith("torch.nn.modules."):
        try:
            found = getattr(importlib.import_module(home), name, None)
        except ImportError:
            found = None
    else:
        found = None
    if not (
        inspect.isclass(found) and issubclass(found, nn.Module) and found.__module__.startswith("torch.nn.modules.")
    ):
        return None
    return found(dim=-1) if "dim" in inspect.signature(found).parameters else found()
