"""What a saved model says about itself, so that every tool which reads it gives the same score.

transformers' pipeline goes by `problem_type` and `id2label`, sentence-transformers by the activation's class path,
text-embeddings- inference and vLLM by those and by `sentence_bert_config.json`. The config keys are plain Hugging Face
ones or documented by the tool that reads them; no file of ours is needed to load a model.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ScoreActivation: TypeAlias = Literal["sigmoid", "softmax", "identity"]

READING = "cross_trainer"  # the entry of config.json

ACTIVATION_CLASSES: dict[ScoreActivation, str] = {
    "sigmoid": "torch.nn.modules.activation.Sigmoid",
    "softmax": "torch.nn.modules.activation.Softmax",
    "identity": "torch.nn.modules.linear.Identity",
}


def describe_scores(config: Any, activation: ScoreActivation) -> None:
    """Write into a model's config which activation turns its logits [P, C] into scores.

    One label under a sigmoid leaves `problem_type` unset, because pipelines show a "regression" as raw logits.
    """
    problem_types = {"softmax": "single_label_classification", "identity": "regression"}
    several = "multi_label_classification" if config.num_labels > 1 else None
    config.problem_type = problem_types.get(activation, several)
    path = ACTIVATION_CLASSES[activation]
    config.sentence_transformers = {**(getattr(config, "sentence_transformers", None) or {}), "activation_fn": path}
    config.sbert_ce_default_activation_function = path


def name_labels(config: Any, names: Sequence[str]) -> None:
    """Write class names in the order of their index into `id2label` and `label2id`."""
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}


def has_own_labels(config: Any) -> bool:
    """Whether a config names its labels itself, instead of transformers' LABEL_0, LABEL_1, ..."""
    return list(config.id2label.values()) != [f"LABEL_{index}" for index in range(len(config.id2label))]


COUNTED_FROM_PADDING = frozenset(
    {
        *(
            "camembert",
            "data2vec-text",
            "esm",
            "ibert",
            "layoutlmv3",
            "lilt",
            "longformer",
            "luke",
            "markuplm",
            "mpnet",
        ),
        *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
    }
)
"""Model types of RoBERTa's kind: their positions start at `pad_token_id` + 1, so 514 of them hold 512 tokens."""


def position_limit(config: Any) -> int | None:
    """Tokens that a model has positions for, or None where its config sets no limit.

    >>> from transformers import BertConfig, RobertaConfig
    >>> position_limit(BertConfig(max_position_embeddings=512))
    512
    >>> position_limit(RobertaConfig(max_position_embeddings=514, pad_token_id=1))
    512
    """
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    # MPT's is the number of tokens that its table of biases reaches.
    limit: int | None = getattr(
        config, "max_seq_len" if config.model_type == "mpt" else "max_position_embeddings", None
    )
    if limit is None or limit <= 0:
        return None
    counted = config.model_type in COUNTED_FROM_PADDING and getattr(config, "position_embedding_type", "") != "rotary"
    padding = 1 if config.model_type == "mpnet" else config.pad_token_id or 0  # MPNet doesn't read its config there
    return limit - padding - 1 if counted else limit


def describe_reading(config: Any, truncation: str, text_columns: Sequence[str] | None = None) -> None:
    """Write into a model's config how pairs were read in training, for this package to read them so again.

    It is one entry, `cross_trainer`, of config.json, which other tools pass over; nothing is written where training
    read pairs as every tool does.

    Args:
        config: The model's config.
        truncation: Which text of a pair that is too long was cut, see `cross_trainer.data.pairs.encode_pairs`.
        text_columns: The columns of the two texts, by which rows of further data are read. None keeps those known.
    """
    known = {**(getattr(config, READING, None) or {}), "truncation": truncation}
    if text_columns is not None:
        known["text_columns"] = list(text_columns)
    if truncation == "longest_first":
        del known["truncation"]
    if known:
        setattr(config, READING, known)
    elif hasattr(config, READING):
        delattr(config, READING)


def saved_truncation(config: Any) -> str:
    """Which text of a pair that is too long the model was trained to have cut; the longer one where nothing is said."""
    return str((getattr(config, READING, None) or {}).get("truncation", "longest_first"))


def saved_text_columns(config: Any) -> tuple[str, str] | None:
    """The columns of the two texts that the model was trained on, where the config knows them."""
    columns = (getattr(config, READING, None) or {}).get("text_columns")
    return None if columns is None else (str(columns[0]), str(columns[1]))


def save_tokenizer(
    tokenizer: PreTrainedTokenizerBase, folder: str | Path, max_length: int | None, pad_token_id: int | None = None
) -> None:
    """Save a tokenizer so that every reader cuts and pads pairs as training did.

    Writes `model_max_length` into the tokenizer's files, and `sentence_bert_config.json`, which
    text-embeddings-inference and vLLM read. The tokenizer in memory stays as it is.

    Args:
        tokenizer: The tokenizer.
        folder: Where to.
        max_length: Tokens of a pair at most; None for no limit.
        pad_token_id: The model's padding token, for a tokenizer without one.
    """
    saved = copy.deepcopy(tokenizer)
    if max_length is not None:
        saved.model_max_length = max_length
    if saved.pad_token is None and pad_token_id is not None:
        saved.pad_token = saved.convert_ids_to_tokens(pad_token_id)
    saved.save_pretrained(folder)
    if max_length is not None:
        content = {"max_seq_length": max_length, "do_lower_case": False}
        Path(folder, "sentence_bert_config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
