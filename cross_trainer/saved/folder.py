"""What a saved model says about itself, so that every tool which reads it gives the same score.

transformers' pipeline goes by `problem_type` and `id2label`, sentence-transformers by the activation's class path,
text-embeddings-inference and vLLM by those and by `sentence_bert_config.json`. The config keys are plain Hugging Face
ones or documented by the tool that reads them; no file of ours is needed to load a model. sentence-transformers'
`modules.json`, `sentence_bert_config.json` and `config_sentence_transformers.json` are always written, so that none of
an earlier model stays in the folder or the repository.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from cross_trainer.errors import ConfigurationError
from cross_trainer.saved.chat import write_chat_template
from cross_trainer.saved.naming import naming

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

ScoreActivation: TypeAlias = Literal["sigmoid", "softmax", "identity"]

READING = "cross_trainer"  # the entry of config.json

TRAINED_ROWS = "trained_rows.npy"
"""The file of a folder that holds fingerprints of rows; of no format in which tools look for weights."""

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
"""Entries of config.json that count something, of which transformers takes less than nothing for nothing."""

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
    name_activation(config, ACTIVATION_CLASSES[activation])


def name_activation(config: Any, path: str) -> None:
    """Write the class path of an activation under both keys that sentence-transformers has used."""
    config.sentence_transformers = {**(getattr(config, "sentence_transformers", None) or {}), "activation_fn": path}
    config.sbert_ce_default_activation_function = path


def activation_path(config: Any) -> str:
    """The class path of the activation that turns a model's logits [P, C] into scores.

    In this order: `sentence_transformers.activation_fn` of config.json, `sbert_ce_default_activation_function`,
    `problem_type` as transformers' pipelines follow it, and by default a sigmoid for one label and the logits for more,
    as in sentence-transformers.

    >>> from transformers import BertConfig
    >>> activation_path(BertConfig(num_labels=3, problem_type="single_label_classification"))
    'torch.nn.modules.activation.Softmax'
    """
    named = (getattr(config, "sentence_transformers", None) or {}).get("activation_fn")
    named = getattr(config, "sbert_ce_default_activation_function", None) if named is None else named
    if named is not None:
        return str(named)
    problem = getattr(config, "problem_type", None)
    if problem == "regression":
        return ACTIVATION_CLASSES["identity"]
    if problem == "multi_label_classification" or config.num_labels == 1:
        return ACTIVATION_CLASSES["sigmoid"]
    return ACTIVATION_CLASSES["softmax" if problem == "single_label_classification" else "identity"]


def forget_scores(config: Any) -> None:
    """Remove what a config says about the scores of a head that is replaced."""
    config.problem_type = None
    for key in ("sentence_transformers", "sbert_ce_default_activation_function"):
        if hasattr(config, key):  # a null would stop sentence-transformers and vLLM
            delattr(config, key)


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


def describe_reading(
    config: Any,
    truncation: str,
    text_columns: Sequence[str] | None = None,
    template: Mapping[str, Any] | None = None,
    max_query_length: int | None = None,
) -> None:
    """Write into a model's config how pairs were read in training, for this package to read them so again.

    It is one entry, `cross_trainer`, of config.json, which other tools pass over; nothing is written where training
    read pairs as every tool does.

    Args:
        config: The model's config.
        truncation: Which text of a pair that is too long was cut, see `cross_trainer.data.pairs.encode_pairs`.
        text_columns: The columns of the two texts, by which rows of further data are read. None keeps those known.
        template: The text that pairs stand in, as `cross_trainer.data.templates.Template.to_dict` gives it.
        max_query_length: Tokens of the first text at most.
    """
    known = dict(getattr(config, READING, None) or {})
    default = "longest_first" if template is None else "only_second"
    said: dict[str, Any] = {
        "truncation": None if truncation == default else truncation,
        "template": template,
        "max_query_length": max_query_length,
    }
    if text_columns is not None:
        said["text_columns"] = list(text_columns)
    known = {name: value for name, value in {**known, **said}.items() if value is not None}
    if known:
        setattr(config, READING, known)
    elif hasattr(config, READING):
        delattr(config, READING)


def describe_template(config: Any, template: Any) -> None:
    """Write into a config the template of its pairs, where it names none: see `saved_template`."""
    if saved_template(config) is None:
        setattr(config, READING, {**(getattr(config, READING, None) or {}), "template": template})


def saved_template(config: Any) -> Any:
    """The text that pairs stand in, by its name or its parts, as `cross_trainer.data.templates.Template.of` takes it;
    None where the tokenizer alone joins them.
    """
    return (getattr(config, READING, None) or {}).get("template")


def saved_query_length(config: Any) -> int | None:
    """Tokens that the model was trained to read of the first text at most; None for no limit."""
    found = (getattr(config, READING, None) or {}).get("max_query_length")
    return None if found is None else int(found)


def saved_truncation(config: Any) -> str:
    """Which text of a pair that is too long the model was trained to have cut. Where nothing is said, it is the second
    one in a template, and the longer one without.
    """
    default = "longest_first" if saved_template(config) is None else "only_second"
    return str((getattr(config, READING, None) or {}).get("truncation", default))


def saved_text_columns(config: Any) -> tuple[str, str] | None:
    """The columns of the two texts that the model was trained on, where the config knows them."""
    columns = (getattr(config, READING, None) or {}).get("text_columns")
    return None if columns is None else (str(columns[0]), str(columns[1]))


# -- reading -----------------------------------------------------------------------------------------------------------

LABEL_ENTRIES: dict[str, tuple[type, str]] = {
    "num_labels": (int, "a whole number"),
    "id2label": (dict, "names by index"),
    "label2id": (dict, "indices by name"),
    "problem_type": (str, "a text"),
}
"""Entries of config.json about labels, and what each is, unless it is null."""

NULLABLE = (*LABEL_ENTRIES, "auto_map")


def read_json(name: str, file: str, source: Mapping[str, Any]) -> Any:
    """A file of a folder or a repository, or None where there is none.

    Args:
        name: On the Hub, or a folder.
        file: Its name there.
        source: Where to load from: arguments of `from_pretrained`.
    """
    path = find_file(name, file, source)
    return None if path is None else json.loads(path.read_text(encoding="utf-8"))


def find_file(name: str, file: str, source: Mapping[str, Any]) -> Path | None:
    """Where a file of a folder or a repository lies on this machine, or None where there is none; as `read_json`."""
    from transformers.utils.hub import cached_file

    asked = ("revision", "token", "cache_dir", "local_files_only", "subfolder")
    where = {key: source[key] for key in asked if source.get(key) is not None}
    path = cached_file(
        name,
        file,
        **where,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)


def read_config(name: str, source: Mapping[str, Any]) -> Any:
    """The config of a saved model, where entries about labels that are null count as left out.

    Args:
        name: On the Hub, or a folder.
        source: Where to load from and what to trust: arguments of `from_pretrained`.

    Raises:
        ConfigurationError: An entry about labels isn't what it should be; the message names it and the file.
    """
    with naming(name):
        config: Any = _read_config(name, source)
    if getattr(config, "auto_map", 0) is None:
        del config.auto_map
    check_entries(name, vars(config))
    names = config.label2id
    if not config.id2label and names:
        config.id2label = {index: label for label, index in names.items()}
    if names is None and config.id2label:
        config.label2id = {label: index for index, label in config.id2label.items()}
    return config


def _read_config(name: str, source: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, **source)
    except (AttributeError, TypeError, ValueError) as error:  # transformers counts nulls and looks into them
        said = read_json(name, "config.json", source) or {}
        check_entries(name, said, error)
        null = [key for key in NULLABLE if said.get(key, 0) is None]
        if not null:
            raise
        return _without(null, name, said, error)


def check_entries(name: str, said: Mapping[str, Any], error: Exception | None = None) -> None:
    """Check entries of config.json about labels and sizes.

    Raises:
        ConfigurationError: One isn't what it should be; the message names it.
    """
    negative = [key for key in SIZES if isinstance(said.get(key), int) and said[key] < 0]
    if negative:
        raise ConfigurationError(f"{name}: config.json has {negative[0]}={said[negative[0]]}, expected 0 or more.")
    for key, (kind, words) in LABEL_ENTRIES.items():
        if said.get(key) is not None and not isinstance(said[key], kind):
            raise ConfigurationError(
                f"{name}: config.json has {key}={said[key]!r}, expected {words}. Correct it or leave it out."
            ) from error


def _without(null: Sequence[str], name: str, said: dict[str, Any], error: Exception) -> Any:
    """The config that config.json describes without some of its entries."""
    from transformers import AutoConfig

    kept = {key: value for key, value in said.items() if key not in null}
    if "auto_map" in kept or "model_type" not in kept:
        raise ConfigurationError(
            f"{name}: config.json has null for {', '.join(null)}, on which its own code fails. Leave the entry out."
        ) from error
    config: Any = AutoConfig.for_model(**kept)
    config.name_or_path = name
    return config


# -- writing -----------------------------------------------------------------------------------------------------------


def write_trained_rows(folder: str | Path, rows: NDArray[np.uint64]) -> None:
    """Write the fingerprints of the rows that a model was trained on, `TRAINED_ROWS`; nothing where there are none."""
    if len(rows):
        import numpy as np

        np.save(Path(folder, TRAINED_ROWS), rows)


def complete_folder(
    folder: str | Path,
    config: Any,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    prompts: Mapping[str, str] | None = None,
    default_prompt_name: str | None = None,
    answers: Sequence[int] = (),
) -> None:
    """Write all that a folder with a saved model lacks, so that every reader reads, cuts and scores pairs alike.

    The folder of an adapter has no config.json; `keep_config` writes what one would say. Keys that other tools have put
    into sentence-transformers' files stay. The tokenizer in memory stays as it is.

    Args:
        folder: Where the model is.
        config: The model's.
        tokenizer: Its tokenizer.
        max_length: Tokens of a pair at most; None for no limit.
        prompts: Texts by name that sentence-transformers may put before the first text of a pair.
        default_prompt_name: The one of them that it does put there.
        answers: The tokens that make the score of a causal language model; none for a classifier.
    """
    template = saved_template(config)
    _save_tokenizer(tokenizer, Path(folder), max_length, getattr(config, "pad_token_id", None), template)
    described = Path(folder, "config.json")
    content = _read_json(described)
    if content and not answers and not content.get("id2label"):  # transformers leaves out two labels without names
        labels = {"id2label": {str(i): name for i, name in config.id2label.items()}, "label2id": config.label2id}
        described.write_text(json.dumps({**content, **labels}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    reading = Path(folder, "sentence_bert_config.json")
    limit = {} if max_length is None else {"max_seq_length": max_length}
    was_adapter = bool(content) and OVER_BASE in _read_json(reading)
    dropped = (*OF_OTHER_MODELS, OVER_BASE, "model_kwargs") if was_adapter else OF_OTHER_MODELS
    task = READING_OF_ANSWERS if answers else READING_OF_CLASSIFIERS
    forms = ["text"] if template is None else ["text", "message"]
    read = {form: {**_FORWARD, **({"format": "flat"} if form == "message" else {})} for form in forms}
    _merge_json(reading, {**limit, "do_lower_case": False, **task, "modality_config": read}, dropped)
    scores = Path(folder, "config_sentence_transformers.json")
    ours = {
        "model_type": "CrossEncoder",
        "activation_fn": activation_path(config),
        "prompts": dict(prompts or {}),
        "default_prompt_name": default_prompt_name,
    }
    _merge_json(scores, ours)
    modules = [{"idx": 0, "name": "0", "path": "", "type": MODULE}]
    if answers:
        home = "1_LogitScore"
        modules.append({"idx": 1, "name": "1", "path": home, "type": ANSWERING_MODULE})
        Path(folder, home).mkdir(exist_ok=True)
        ends = dict(zip(("true_token_id", "false_token_id"), [*answers, None], strict=False))
        _write_json(Path(folder, home, "config.json"), ends)
    _write_json(Path(folder, "modules.json"), modules)


OVER_BASE = "config_kwargs"
"""The entry of `sentence_bert_config.json` by which sentence-transformers changes the config of an adapter's base."""

OPTIONAL = ("sentence_transformers", "sbert_ce_default_activation_function", READING)
"""Entries of config.json that not every config has."""

KEPT_OVER_BASE = ("id2label", "label2id", "problem_type", "pad_token_id", *OPTIONAL)


def keep_config(folder: str | Path, config: Any, more: Mapping[str, Any], resized: bool) -> None:
    """Write what a model's config says and its base's doesn't into an adapter's folder.

    A config.json there would have transformers look for the base's weights beside it. sentence-transformers sets these
    entries by itself.

    Args:
        folder: Where the adapter is.
        config: The model's.
        more: Further entries of a config.
        resized: Whether weights of the base have another shape, in whose place the adapter holds its own.
    """
    kept = {**{key: getattr(config, key) for key in KEPT_OVER_BASE if hasattr(config, key)}, **more}
    options = {"model_kwargs": {"ignore_mismatched_sizes": True}} if resized else {}
    _merge_json(Path(folder, "sentence_bert_config.json"), {OVER_BASE: kept, **options})


def apply_config(config: Any, kept: Mapping[str, Any]) -> None:
    """Write what `keep_config` has kept into the config of the adapter's base."""
    for key in KEPT_OVER_BASE:
        if key in kept:
            setattr(config, key, kept[key])
        elif key in OPTIONAL and hasattr(config, key):
            delattr(config, key)
    if not kept.get("id2label"):
        config.num_labels = kept.get("num_labels", config.num_labels)
    config.id2label = {int(index): label for index, label in config.id2label.items()}


MODULE = "sentence_transformers.base.modules.transformer.Transformer"
ANSWERING_MODULE = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"

_FORWARD = {"method": "forward", "method_output_name": "logits"}

READING_OF_CLASSIFIERS = {"transformer_task": "sequence-classification", "module_output_name": "scores"}
"""What sentence-transformers 6 asks of `sentence_bert_config.json`: without it, there are no scores. It makes messages
of pairs, by the tokenizer's chat template, where `modality_config` has them.
"""

READING_OF_ANSWERS = {"transformer_task": "text-generation", "module_output_name": "causal_logits"}
"""The same for causal language models, whose logits go through a `LogitScore`."""

OF_OTHER_MODELS = ("max_seq_length", "processing_kwargs")
"""Keys of `sentence_bert_config.json` that would change how pairs are read."""


def _save_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    max_length: int | None,
    pad_token_id: int | None,
    template: Mapping[str, Any] | None,
) -> None:
    """Save a tokenizer with the length and the padding of the model, in the form that every version reads."""
    saved = copy.deepcopy(tokenizer)
    saved.init_kwargs.pop("max_length", None)  # of the pretrained tokenizer.json; fastembed obeys it
    if saved.is_fast:  # nor the cutting and padding of the last call
        saved.backend_tokenizer.no_truncation()
        saved.backend_tokenizer.no_padding()
    if max_length is not None:
        saved.model_max_length = max_length
    if template is not None:
        saved.chat_template = write_chat_template(template)
    if saved.pad_token is None and pad_token_id is not None:
        saved.pad_token = saved.convert_ids_to_tokens(pad_token_id)
    saved.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    content = _read_json(path)
    if content.get("tokenizer_class") == "TokenizersBackend":  # unknown to transformers 4
        _write_json(path, {**content, "tokenizer_class": "PreTrainedTokenizerFast"})
    tokens = {name: getattr(saved, name) for name in saved.SPECIAL_TOKENS_ATTRIBUTES}
    named = {name: str(token) for name, token in tokens.items() if token is not None}
    _write_json(folder / "special_tokens_map.json", named)  # FlashRank reads it


def _read_json(path: Path) -> dict[str, Any]:
    """What a file says; nothing where there is none."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _merge_json(path: Path, ours: dict[str, Any], dropped: Sequence[str] = ()) -> None:
    """Write our keys, and after them those of others that are there."""
    kept = {key: value for key, value in _read_json(path).items() if key not in {*ours, *dropped}}
    _write_json(path, {**ours, **kept})


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
