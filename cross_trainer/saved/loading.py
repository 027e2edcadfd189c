"""Load a saved sequence classifier as its files say, whichever tool wrote them.

Nothing of a repository is run, and weights come from safetensors files, unless the caller asks for more.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cross_trainer.errors import ConfigurationError, check_whole, short
from cross_trainer.internals import process_state
from cross_trainer.saved.activation import torch_module
from cross_trainer.saved.adapters import SETTINGS, Adapter
from cross_trainer.saved.chat import read_chat_template
from cross_trainer.saved.folder import (
    ACTIVATION_CLASSES,
    OVER_BASE,
    TRAINED_ROWS,
    activation_path,
    check_entries,
    describe_template,
    find_file,
    forget_scores,
    name_activation,
    name_labels,
    read_config,
    read_json,
    saved_template,
)
from cross_trainer.saved.modular import Modular, fold, read_head
from cross_trainer.saved.naming import naming
from cross_trainer.saved.reading import load_tokenizer
from cross_trainer.saved.rerankers import (
    Answers,
    check_family,
    describe_answers,
    find_answers,
    is_causal,
    is_reranker,
    published,
    published_length,
    saved_answers,
    to_classifier,
)
from cross_trainer.saved.st_files import SentenceTransformersFiles, kinds_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A saved classifier.

    Attributes:
        model: The plain transformers model, or a `PeftModel` of one.
        is_new: Whether its head is new, with random weights.
        max_length: Tokens of a pair at most, where sentence-transformers' files say so.
        prompts: Texts by name that sentence-transformers may put before the first text of a pair.
        default_prompt_name: The one of them that it does put there, or None.
    """

    model: Any
    is_new: bool
    max_length: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None


def read_model(
    name: str, source: Mapping[str, Any], use_safetensors: bool = True, tokens: Answers | None = None
) -> tuple[Any, SentenceTransformersFiles]:
    """What the files of a saved model or an adapter say: its config, completed by what stands elsewhere or its
    publisher says of it: the tokens that a causal language model answers with, and the template of its pairs.

    Args:
        name: On the Hub, or a folder.
        source: Where to load from and what to trust: arguments of `from_pretrained`.
        use_safetensors: Refuse pickles.
        tokens: The answers of a causal language model, instead of those that are known; see `find_answers`.

    Returns:
        The config, and what sentence-transformers' files say.

    Raises:
        ConfigurationError: The config can't be read; or the model is no causal language model or doesn't have these
            tokens.
    """
    config = load_config(name, source, use_safetensors)
    return config, complete_config(name, config, source, tokens)


def complete_config(
    name: str, config: Any, source: Mapping[str, Any], tokens: Answers | None = None
) -> SentenceTransformersFiles:
    """Complete a config as `read_model` does, and return what sentence-transformers' files say."""
    told = SentenceTransformersFiles.read(name, source)
    if find_file(name, SETTINGS, source) is not None:  # an adapter's config says all, and its base is no answer
        return told
    if told.chat is not None and told.obstacle is None and saved_template(config) is None:
        describe_template(config, read_chat_template(load_tokenizer(name, source), told.chat))
    if not is_causal(config):
        if tokens is not None:
            raise ConfigurationError(
                f"tokens={tokens!r} are the answers of a causal language model, and {name} has the architecture "
                f"{_architecture(config)}."
            )
        return told
    rule = published(name)
    if told.answers:
        describe_answers(config, told.answers)
    elif rule is not None and not saved_answers(config):
        describe_answers(config, find_answers(load_tokenizer(name, source), rule.tokens))
        describe_template(config, rule.template)
        if rule.raw and told.activation is None:
            name_activation(config, ACTIVATION_CLASSES["identity"])
    if tokens is not None:
        describe_answers(config, find_answers(load_tokenizer(name, source), tokens))
    if is_reranker(config):
        check_family(config)
    return told


def load_classifier(
    name: str,
    num_labels: int | None,
    dtype: torch.dtype | None,
    use_safetensors: bool,
    source: dict[str, Any],
    model_kwargs: Mapping[str, Any] | None = None,
    config_kwargs: Mapping[str, Any] | None = None,
    tokens: Answers | None = None,
) -> Loaded:
    """Load a saved model, or an adapter with its base model, as a sequence classifier.

    Args:
        name: On the Hub, or a folder.
        num_labels: C, for which a model that has another head gets a new one; None for the saved head.
        dtype: Of the weights; None for the saved one.
        use_safetensors: Refuse pickles.
        source: Where to load from and what to trust: arguments of `from_pretrained`.
        model_kwargs: More of them for the weights, which come before `source`.
        config_kwargs: Settings of the config, and more arguments for loading it, which come before `source`.
        tokens: As for `read_model`.

    Raises:
        ConfigurationError: No classification head is saved, and no `num_labels` asks for a new one; its modules aren't
            those of a plain classifier; the only weights are pickles, and they are refused; the config has no such
            setting; or an adapter can't be put on its base model.
        UnsupportedModelError: An adapter is of a kind that isn't supported.
        MissingDependencyError: There is an adapter, and peft isn't installed.
    """
    _check_model_kwargs(model_kwargs or {}, dtype)
    weights_source = {**source, **(model_kwargs or {})}
    adapter = Adapter.read(name, source, use_safetensors)
    config = read_config(name, source) if adapter is None else adapter.config()
    _apply_settings(config, config_kwargs or {})
    told = complete_config(name, config, source, tokens)
    answers = adapter is None and is_reranker(config)
    has_one = adapter is not None or has_head(config) or answers or bool(told.modules)
    if num_labels is None and (told.obstacle is not None or not has_one):
        remedy = ' If it answers with tokens, pass tokens=("yes", "no") or what they are.' if is_causal(config) else ""
        found = told.obstacle or f"the architecture {_architecture(config)}"
        raise ConfigurationError(_no_head(name, found) + remedy)
    if told.activation is not None:
        name_activation(config, told.activation)
    if told.obstacle is None and ((told.modules and num_labels is None) or (answers and num_labels in {None, 1})):
        return _load_other(name, config, told, dtype, use_safetensors, weights_source)
    if num_labels is not None and num_labels != config.num_labels:
        if adapter is not None or _says_its_labels(name, source):
            forget_scores(config)
        config.num_labels = num_labels
    if adapter is not None:
        options = {"use_safetensors": use_safetensors, "dtype": dtype, **(model_kwargs or {})}
        model, is_new = adapter.load(config, num_labels is not None, **options)
    else:
        model, missing = _load_weights(name, config, dtype, use_safetensors, num_labels is not None, weights_source)
        if missing and num_labels is None:
            raise ConfigurationError(_no_head(name, f"no weights for {', '.join(sorted(missing)[:3])}"))
        is_new = bool(missing)
    _align(model)
    if is_new:
        forget_scores(model.config)  # they were the old head's
        return Loaded(model, is_new=True)
    if told.obstacle is not None:
        raise ConfigurationError(
            f"{name}: found {told.obstacle}. To score with its classifier alone, load it with "
            "AutoModelForSequenceClassification and pass it together with its tokenizer."
        )
    return Loaded(model, False, told.max_length, told.prompts, told.default_prompt_name)


def _load_other(
    name: str,
    config: Any,
    told: SentenceTransformersFiles,
    dtype: torch.dtype | None,
    use_safetensors: bool,
    source: Mapping[str, Any],
) -> Loaded:
    """What isn't saved as a classifier and becomes one: a model that answers, or modules."""
    if told.modules:
        model = load_modular(name, config, told, dtype, use_safetensors, source)
        name_activation(model.config, activation_path(config))
    else:
        model = load_reranker(name, config, dtype, use_safetensors, source)
    limit = told.max_length or (None if told.modules else published_length(name, config))
    return Loaded(model, False, limit, told.prompts, told.default_prompt_name)


def load_structure(name: str, num_labels: int | None, source: dict[str, Any]) -> Loaded:
    """A saved sequence classifier without its weights, on torch's device "meta": what its files say about it.

    Args:
        name: On the Hub, or a folder.
        num_labels: C, if it must be that.
        source: Where to load from and what to trust: arguments of `from_pretrained`.

    Raises:
        ConfigurationError: It is no plain classifier, or has another number of labels.
    """
    from transformers import AutoModelForSequenceClassification

    config, told = read_model(name, source)
    if told.obstacle is not None or not has_head(config):
        raise ConfigurationError(_no_head(name, told.obstacle or f"the architecture {_architecture(config)}"))
    if told.activation is not None:
        name_activation(config, told.activation)
    with torch.device("meta"):
        remote = {"trust_remote_code": source.get("trust_remote_code", False)}
        model: Any = AutoModelForSequenceClassification.from_config(config, **remote)  # type: ignore[no-untyped-call]
    check_loaded(model, num_labels, {})
    return Loaded(model.eval(), False, told.max_length, told.prompts, told.default_prompt_name)


def load_reranker(
    name: str,
    config: Any,
    dtype: torch.dtype | None = None,
    use_safetensors: bool = True,
    source: Mapping[str, Any] | None = None,
) -> Any:
    """Load a causal language model whose config names its answers, as a classifier of one label.

    Args:
        name: On the Hub, or a folder.
        config: See `read_model`.
        dtype: Of the weights; None for the saved one.
        use_safetensors: Refuse pickles.
        source: More arguments of `from_pretrained`.

    Raises:
        UnsupportedModelError: See `cross_trainer.saved.rerankers.to_classifier`.
        ConfigurationError: The files hold no weights of the head, or only pickles.
    """
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    model, missing = _load_weights(
        name, config, dtype, use_safetensors, False, dict(source or {}), AutoModelForCausalLM
    )
    if missing:
        raise ConfigurationError(
            f"{name} doesn't answer: there are no weights for {', '.join(sorted(missing)[:3])} in its files."
        )
    _align(model)
    return to_classifier(model, saved_answers(config))


def load_modular(
    name: str,
    config: Any,
    told: SentenceTransformersFiles,
    dtype: torch.dtype | None = None,
    use_safetensors: bool = True,
    source: Mapping[str, Any] | None = None,
) -> Any:
    """Load a cross-encoder of several modules: the classifier of its family that computes the same, or else those.

    Args:
        name: On the Hub, or a folder.
        config: The transformer's.
        told: What the files say, without an obstacle.
        dtype: Of the weights; None for the saved one.
        use_safetensors: Refuse pickles.
        source: More arguments of `from_pretrained`.

    Raises:
        ConfigurationError: A file isn't there, or holds only pickles.
    """
    from transformers import AutoModel

    source = dict(source or {})
    base, _ = _load_weights(name, copy.deepcopy(config), dtype, use_safetensors, False, source, AutoModel)
    kinds = kinds_of(list(told.modules))
    files = functools.partial(read_json, name, source=source)
    _align(base)
    head = read_head(told.modules, kinds, files, functools.partial(_read_tensors, name, source), torch_module)
    head = dataclasses.replace(head, layers=tuple(layer.to(base.dtype) for layer in head.layers))
    model = fold(head, base)
    if model is None:
        model = Modular(base, head).eval()
        base.config.num_labels = head.num_labels
    logger.info("The modules %s are scored as %s.", ", ".join(kinds), type(model).__name__)
    return model


def _read_tensors(name: str, source: Mapping[str, Any], folder: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    path = find_file(name, f"{folder}/model.safetensors", source)
    if path is None:
        raise ConfigurationError(f"{name} has no weights in {folder}/model.safetensors.")
    return load_file(path)


_OF_CROSS_ENCODER = {
    "config": "pass config_kwargs, or load the model yourself and pass it with its tokenizer.",
    "num_labels": "pass num_labels to CrossEncoder.",
    "output_loading_info": "load the model yourself and pass it with its tokenizer.",
    **dict.fromkeys(
        ("file_name", "provider", "export"), "it belongs to ONNX and OpenVINO, and these weights are PyTorch's."
    ),
}
"""Entries that `model_kwargs` can't have, and what to do instead."""


def _check_model_kwargs(model_kwargs: Mapping[str, Any], dtype: torch.dtype | None) -> None:
    for key, value in model_kwargs.items():
        advice = _OF_CROSS_ENCODER.get(key)
        if key in {"dtype", "torch_dtype"} and dtype is not None and (value == "auto" or as_dtype(value) != dtype):
            advice = f"it contradicts dtype={dtype}. Give one of them."
        if advice is not None:
            raise ConfigurationError(f"model_kwargs={{{key!r}: {short(value)}}}: {advice}")


def _apply_settings(config: Any, settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if not hasattr(config, name):
            raise ConfigurationError(
                f"config_kwargs={{{name!r}: {value!r}}}: {type(config).__name__} has no such setting, so it would "
                "change nothing."
            )
        setattr(config, name, value)


def load_config(name: str, source: Mapping[str, Any], use_safetensors: bool = True) -> Any:
    """The config of a saved model or of an adapter's, without its weights; arguments as in `load_classifier`.

    Raises:
        ConfigurationError: It can't be read; the message names the entry and the file, or the adapter's base model.
    """
    adapter = Adapter.read(name, source, use_safetensors)
    return read_config(name, source) if adapter is None else adapter.config()


def read_settings(name: str, source: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says about a saved model, or in its place the files of an adapter."""
    from transformers import PretrainedConfig

    if find_file(name, SETTINGS, source) is not None:
        return dict((read_json(name, "sentence_bert_config.json", source) or {}).get(OVER_BASE) or {})
    said, _ = PretrainedConfig.get_config_dict(name, **source)
    return said


def _says_its_labels(name: str, source: dict[str, Any]) -> bool:
    """Whether a config.json holds the number of labels; without it, transformers assumes two."""
    said = read_settings(name, source)
    return bool(said.get("id2label") or said.get("num_labels"))


def _take_names(config: Any, label2id: Mapping[str, int]) -> None:
    """Name a config's labels by `label2id`, where it knows as many."""
    names = {index: label for label, index in label2id.items()}
    if sorted(names) == list(range(config.num_labels)):
        name_labels(config, [names[index] for index in sorted(names)])


def _load_weights(
    name: str,
    config: Any,
    dtype: torch.dtype | None,
    use_safetensors: bool,
    new_head: bool,
    source: dict[str, Any],
    kind: Any = None,
) -> tuple[Any, list[str]]:
    """The model, and the names of its weights that the files don't hold."""
    from transformers import AutoModelForSequenceClassification

    options = {"use_safetensors": use_safetensors, "ignore_mismatched_sizes": True, **source}
    if dtype is not None:
        options["dtype"] = dtype
    with naming(name), refusing_pickles(name):
        model, info = (kind or AutoModelForSequenceClassification).from_pretrained(
            name, config=config, output_loading_info=True, **options
        )
    other = [(key, tuple(found), tuple(built)) for key, found, built in info["mismatched_keys"]]
    if other and not new_head:
        key, found, built = other[0]
        if found[0] != built[0] == config.num_labels and not _says_its_labels(name, source):  # the head's weights do
            config.num_labels = found[0]
            said = read_settings(name, source)
            check_entries(name, said)
            _take_names(config, said.get("label2id") or {})
            return _load_weights(name, config, dtype, use_safetensors, new_head, source)
        if built[0] != config.num_labels:
            raise ConfigurationError(
                f"{name}: the weights {key} have the shape {found}, and config.json asks for {built}, so it is another "
                "model's. Take the config.json that was saved with these weights."
            )
        raise ConfigurationError(
            f"{name}: the weights {key} have the shape {found}, and config.json, with {config.num_labels} labels, asks "
            f"for {built}. Correct id2label in config.json, or pass num_labels={found[0]}."
        )
    return model, [*info["missing_keys"], *(key for key, _, _ in other)]


ALIGNMENT = 64
"""Bytes: a line of a processor's cache, and where torch places what it allocates."""


def _align(model: Any) -> None:
    """Move weights to where torch would have placed them.

    Those of a file are mapped wherever they lie in it, and kernels on CPUs choose by the address how they round: scores
    would depend on the length of the file's header.
    """
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


@contextlib.contextmanager
def refusing_pickles(name: str, remedy: str = "use_safetensors=False") -> Iterator[None]:
    """Say what to do where a model has no weights in safetensors files.

    Raises:
        ConfigurationError: It has none.
    """
    try:
        yield
    except OSError as error:
        if "safetensors" not in str(error):
            raise
        raise ConfigurationError(
            f"{name} has no weights in safetensors files. Pickled weights can run code when they are loaded: "
            f"pass {remedy} if you trust their author."
        ) from error


def _architecture(config: Any) -> str:
    return ", ".join(config.architectures or []) or f"of a {config.model_type} without a named class"


def has_head(config: Any) -> bool:
    """Whether a config is a sequence classifier's, as far as it says."""
    if not config.architectures:
        return True  # the weights tell
    own = getattr(config, "auto_map", None) or {}
    named = any("SequenceClassification" in architecture for architecture in config.architectures)
    return named or "AutoModelForSequenceClassification" in own


def _no_head(name: str, found: str) -> str:
    return (
        f"{name} is no sequence classifier: found {found}. Scores need a trained head. For a new one, to be trained, "
        "pass num_labels=1 or the number of classes."
    )


def load_trained_rows(name: str, source: Mapping[str, Any]) -> NDArray[np.uint64] | None:
    """Fingerprints of the rows that a model was trained on, where its folder or repository has them."""
    path = find_file(name, TRAINED_ROWS, source)
    return None if path is None else np.load(path, allow_pickle=False).astype(np.uint64)


def agreed(name: str, given: Any, elsewhere: str, found: Any) -> Any:
    """An argument that can be given in two places.

    Raises:
        ConfigurationError: They contradict each other.
    """
    if given is not None and found is not None and given != found:
        raise ConfigurationError(f"{name}={given} contradicts {found} in {elsewhere}: give one of them.")
    return found if given is None else given


def agreed_number(name: str, given: Any, elsewhere: str, found: Any) -> Any:
    """A number of 1 or more, or None, that can be given in two places.

    Raises:
        ConfigurationError: They contradict each other, or it is something else.
    """
    number = agreed(name, given, elsewhere, found)
    if number is not None:
        check_whole(name, number)
    return number


def check_device(device: Any) -> None:
    """Check that this names a device, or is None.

    Raises:
        ConfigurationError: It is something else.
    """
    if device is not None and not isinstance(device, str | int | torch.device):
        raise ConfigurationError(
            f'device={short(device)}: expected one, such as "cuda:0" or torch.device("cpu"). An activation goes by its '
            "name, activation=...; for several devices run one process each, with accelerate launch, and let all of "
            "them call predict(distributed=True)."
        )


def place_loading(device: Any, model_kwargs: Mapping[str, Any]) -> tuple[str | torch.device | None, dict[str, Any]]:
    """Where to move a model once it is loaded, None where loading places it, and the arguments to load it with.

    Raises:
        ConfigurationError: Two places are named.
    """
    if "device_map" in model_kwargs and device is not None:
        raise ConfigurationError(f"device={device!r} contradicts model_kwargs['device_map']: give one of them.")
    if "device_map" in model_kwargs:
        return None, dict(model_kwargs)
    device = default_device() if device is None else device
    if "quantization_config" in model_kwargs:  # such weights are made on their device
        return None, {**model_kwargs, "device_map": {"": device}}
    return device, dict(model_kwargs)


def as_answering(model: Any, tokenizer: Any, tokens: Answers | None) -> Any:
    """A loaded model; a causal language model as a classifier, by the tokens that it answers with.

    Raises:
        ConfigurationError: It answers, and no tokens or no tokenizer are given; or it doesn't, and they are.
        UnsupportedModelError: See `cross_trainer.saved.rerankers.to_classifier`.
    """
    answers = hasattr(model, "get_output_embeddings") and model.get_output_embeddings() is not None
    if answers and tokens is not None and tokenizer is not None:
        describe_answers(model.config, find_answers(tokenizer, tokens))
        return to_classifier(model, saved_answers(model.config))
    if answers or tokens is not None:
        raise ConfigurationError(
            f"{type(model).__name__} with tokens={tokens!r}: a causal language model answers with tokens, and a "
            "classifier doesn't. Give CrossEncoder(model, tokenizer=tokenizer, tokens=(..., ...)) for the one, and "
            "leave tokens out for the other."
        )
    return model


def check_loaded(model: Any, num_labels: int | None, of_loading: Mapping[str, Any]) -> Any:
    """A loaded model, if it is a classifier with so many labels.

    Args:
        model: Perhaps one.
        num_labels: C; None for any number.
        of_loading: Arguments by which a model is loaded, and which mean nothing for one that is.

    Raises:
        ConfigurationError: It isn't, or one of those arguments is given.
    """
    needless = [name for name, value in of_loading.items() if value]
    if needless:
        raise ConfigurationError(
            f"{needless[0]}={short(of_loading[needless[0]])} is for a model given by its name, and this one is loaded "
            "already. Load it with that."
        )
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
        raise ConfigurationError(
            f'dtype={dtype!r}: expected "auto", "float32", "bfloat16", "float16" or such a torch.dtype.'
        )
    return found


def default_device() -> torch.device:
    """The GPU of this process, if there is one, else the CPU."""
    return torch.device(process_state().device)
