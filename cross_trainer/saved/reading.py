"""How a saved model reads texts: its tokenizer, padding, vocabulary and length."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

from cross_trainer.errors import ConfigurationError
from cross_trainer.saved.adapters import Adapter
from cross_trainer.saved.folder import (
    find_file,
    position_limit,
    read_config,
)
from cross_trainer.saved.modular import Modular
from cross_trainer.saved.naming import naming

logger = logging.getLogger(__name__)


def load_tokenizer(name: str, source: Mapping[str, Any]) -> Any:
    """The tokenizer that lies beside a saved model, or where an adapter has none, the one of its base model."""
    with naming(name):
        tokenizer = _load_tokenizer(name, source)
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):  # made of nothing but the model's family
        raise ConfigurationError(
            f"{name} has no tokenizer: its vocabulary is empty. Save one beside the model, with "
            "tokenizer.save_pretrained(folder)."
        )
    return tokenizer


def _load_tokenizer(name: str, source: Mapping[str, Any]) -> Any:
    from transformers import AutoTokenizer

    adapter = Adapter.read(name, source)
    if adapter is not None and find_file(name, "tokenizer_config.json", source) is None:
        return AutoTokenizer.from_pretrained(adapter.base, **adapter.base_source)
    config = {} if adapter is None else {"config": adapter.base_config()}  # some tokenizers go by it
    try:
        return AutoTokenizer.from_pretrained(name, **config, **source)
    except TypeError:  # transformers looks into entries of config.json that are null
        return AutoTokenizer.from_pretrained(name, config=read_config(name, source), **source)


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
    if isinstance(classifier, Modular):
        classifier = classifier.base_model
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
