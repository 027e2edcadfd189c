"""Adapters of peft: a folder with `adapter_config.json` read as a classifier, and written so that nothing is lost.

    adapter = Adapter.read("output/lora", {})
    model, _ = adapter.load(adapter.config())       # the base model, the head and the adapter, ready to be trained on
    write_model(model, "output/merged", merge_adapters=True)     # a plain classifier

peft saves the adapter and the modules that it trains. A reader needs more, which `write_model` adds: weights of the
head that neither the base's files nor peft's hold, and in `sentence_bert_config.json` what the model's config says
about labels and scores. There is no config.json, because transformers looks for the base's weights beside one.
"""

from __future__ import annotations

import copy
import fnmatch
import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cross_trainer.errors import ConfigurationError, MissingDependencyError, UnsupportedModelError
from cross_trainer.saved.folder import (
    OVER_BASE,
    apply_config,
    find_file,
    forget_scores,
    keep_config,
    read_config,
    read_json,
)
from cross_trainer.saved.naming import naming

SETTINGS, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
WHOLE_MODEL = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
PREFIX = "base_model.model."  # of every name in an adapter's file


def import_peft(asked_by: str) -> Any:
    """The package peft.

    Raises:
        MissingDependencyError: It isn't installed.
    """
    try:
        import peft
    except ImportError as error:
        raise MissingDependencyError(f"{asked_by} needs peft: pip install 'cross-trainer[lora]'.") from error
    return peft


# -- reading -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adapter:
    """A saved adapter of a sequence classifier.

    Attributes:
        name: On the Hub, or a folder.
        folder: Where its files lie on this machine.
        settings: The `PeftConfig`.
        base: The name or folder of the base model.
        source: Where to load the adapter from and what to trust: arguments of `from_pretrained`.
        use_safetensors: Whether pickled weights are refused.
    """

    name: str
    folder: Path
    settings: Any
    base: str
    source: Mapping[str, Any]
    use_safetensors: bool = True

    @classmethod
    def read(cls, name: str, source: Mapping[str, Any], use_safetensors: bool = True) -> Adapter | None:
        """Read a folder or a repository; None where it holds no adapter.

        Args:
            name: On the Hub, or a folder.
            source: Where to load from and what to trust: arguments of `from_pretrained`.
            use_safetensors: Refuse pickles.

        Raises:
            ConfigurationError: The adapter isn't a classifier's, names no base model or lies beside a whole model; or
                adapters lie in folders within.
            UnsupportedModelError: It puts states of its own before a text.
            MissingDependencyError: peft isn't installed.
        """
        with naming(name):
            path = find_file(name, SETTINGS, source)
        if path is None:
            _refuse_folders_within(name)
            return None
        settings = _read_settings(name, path.parent)
        whole = next((file for file in WHOLE_MODEL if find_file(name, file, source) is not None), None)
        if whole is not None:
            raise ConfigurationError(
                f"{name} holds a whole model, {whole}, and an adapter, {SETTINGS}: the adapter may be in the model's "
                "weights already. Leave only one of them there."
            )
        return cls(name, path.parent, settings, settings.base_model_name_or_path, source, use_safetensors)

    @functools.cached_property
    def weights(self) -> dict[str, Tensor]:
        """Its tensors by their names in the file."""
        return _read_weights(self.name, self.source, self.use_safetensors)

    @functools.cached_property
    def kept(self) -> dict[str, Any]:
        """What its files say about the model's config; nothing where peft alone has saved it."""
        return dict((read_json(self.name, "sentence_bert_config.json", self.source) or {}).get(OVER_BASE) or {})

    @property
    def base_source(self) -> dict[str, Any]:
        """Where to load the base from: its own revision, and what holds for every download."""
        own = ("revision", "code_revision", "subfolder")
        shared = {key: value for key, value in self.source.items() if key not in own}
        return {**shared, "revision": self.settings.revision} if self.settings.revision else shared

    def base_config(self) -> Any:
        """The base's config.

        Raises:
            ConfigurationError: The base can't be found; the message names it and the remedy.
        """
        try:
            return read_config(self.base, self.base_source)
        except ConfigurationError as error:
            raise self._no_base(error) from error

    def config(self) -> Any:
        """The base's config with the adapter's labels: those saved with it, else as many as its head has.

        Raises:
            ConfigurationError: The base can't be found, or the adapter's weights.
        """
        config = self.base_config()
        if self.kept:
            apply_config(config, self.kept)
        num_labels, num_tokens = self._sizes(config)
        if not self.kept and num_labels != config.num_labels:
            forget_scores(config)  # of another head
            config.num_labels = num_labels
        if num_tokens is not None:
            config.get_text_config().vocab_size = num_tokens
        return config

    def load(self, config: Any, new_head: bool = False, **options: Any) -> tuple[Any, bool]:
        """The base model with the head and the adapter, which can be trained on, in evaluation mode.

        Args:
            config: As `config` gives it.
            new_head: Whether a head of another size is replaced by a new one.
            options: More arguments of `from_pretrained` for the base.

        Returns:
            The model, and whether its head is new.

        Raises:
            ConfigurationError: The base can't be loaded or is another model, or weights are missing.
        """
        from transformers import AutoModelForSequenceClassification

        options = {**self.base_source, "dtype": self.kept.get("dtype"), **_given(options)}
        try:
            base, info = AutoModelForSequenceClassification.from_pretrained(
                self.base, config=config, ignore_mismatched_sizes=True, output_loading_info=True, **_given(options)
            )
        except OSError as error:
            raise self._no_base(error) from error
        held = self._held()
        built = dict(base.named_parameters())
        other = [key for key, found in held.items() if key in built and built[key].shape != found.shape]
        if other and not new_head:
            raise ConfigurationError(
                f"{self.name}: the adapter's weights {other[0]} have the shape {tuple(held[other[0]].shape)}, and the "
                f"base model {self.base!r} with {config.num_labels} labels asks for {tuple(built[other[0]].shape)}. "
                f"Correct num_labels, or base_model_name_or_path in {SETTINGS}."
            )
        missing = {*info["missing_keys"], *(key for key, _, _ in info["mismatched_keys"])}
        lost = sorted(missing - set(held))
        if lost:
            raise ConfigurationError(
                f"{self.name}: neither the adapter nor its base model {self.base!r} holds the weights "
                f"{', '.join(lost[:3])}, without which there are no scores. They were lost when the adapter was saved: "
                "save it with modules_to_save naming them, or by this package."
            )
        model = self._put_on(base, other)
        self._check_fit(model, built)
        return model, bool(other)

    def _put_on(self, base: Any, replaced: Sequence[str]) -> Any:
        """A `PeftModel` of the base with the adapter's weights, but those replaced by the base's own."""
        peft = import_peft(f"{self.name}, an adapter,")
        settings = copy.deepcopy(self.settings)
        options = {"config": settings, "is_trainable": True, "torch_device": "cpu"}
        try:
            if not replaced:
                return peft.PeftModel.from_pretrained(base, str(self.folder), **options)
            own = {name: parameter.detach() for name, parameter in base.named_parameters() if name in replaced}
            weights = {key: own.get(plain_name(key), tensor) for key, tensor in self.weights.items()}
            with tempfile.TemporaryDirectory() as folder:
                settings.save_pretrained(folder)
                save_file(weights, Path(folder, WEIGHTS), metadata={"format": "pt"})
                return peft.PeftModel.from_pretrained(base, folder, **options)
        except (ValueError, RuntimeError) as error:
            raise ConfigurationError(
                f"{self.name}: the adapter doesn't fit its base model {self.base!r}: "
                f"{' '.join(str(error).split())[:300]} Correct base_model_name_or_path in {SETTINGS}."
            ) from error

    def _held(self) -> dict[str, Tensor]:
        """The adapter's tensors by the name that a plain classifier would give them."""
        return {plain_name(key): tensor for key, tensor in self.weights.items()}

    def _sizes(self, config: Any) -> tuple[int, int | None]:
        """How many labels the adapter's head has, and how many tokens its embeddings, where it holds them."""
        from transformers import AutoModelForSequenceClassification

        with torch.device("meta"):
            built = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
                config, trust_remote_code=self.source.get("trust_remote_code", False)
            )
        held, parameters = self._held(), dict(built.named_parameters())
        other = [key for key, tensor in parameters.items() if key in held and tensor.shape != held[key].shape]
        table = {
            id(parameter)
            for module in built.modules()
            if isinstance(module, nn.Embedding)
            for parameter in module.parameters()
        }
        rows = [
            len(held[key])
            for key in other
            if id(parameters[key]) not in table and len(parameters[key]) == config.num_labels
        ]
        tokens = [len(held[key]) for key in other if id(parameters[key]) in table]
        return (rows[0] if rows else int(config.num_labels)), (tokens[0] if tokens else None)

    def _check_fit(self, model: Any, built: Mapping[str, Tensor]) -> None:
        """Check that every weight of the adapter came from its file, and every weight of the file went somewhere."""
        wanted = set(_adapter_weights(model, "default"))
        lacking = sorted(wanted - set(self.weights))
        unknown = sorted(key for key in set(self.weights) - wanted if plain_name(key) not in built)
        if lacking or unknown:
            what = f"lacks {lacking[0]}" if lacking else f"has {unknown[0]}, which the base model {self.base!r} hasn't"
            raise ConfigurationError(
                f"{self.name}: the adapter's file {what}. It belongs to another base model or to other settings: "
                f"correct {SETTINGS}."
            )

    def _no_base(self, error: Exception) -> ConfigurationError:
        path = Path(self.base)
        is_path = path.is_absolute() or self.base.startswith(".") or self.base.count("/") != 1
        where = f"the folder {str(path.absolute())!r}, which" if is_path else f"{self.base!r}, which"
        return ConfigurationError(
            f"{self.name} is an adapter of the base model in {where} can't be loaded: {str(error).splitlines()[0]} Put "
            f"the base model there, or name it in base_model_name_or_path of {self.folder / SETTINGS}."
        )


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `from_pretrained` that say something: safetensors are never refused."""
    return {
        key: value for key, value in options.items() if value is not None and (key, value) != ("use_safetensors", False)
    }


def plain_name(key: str) -> str:
    """The name that a plain classifier gives a weight in an adapter's file.

    >>> plain_name("base_model.model.bert.pooler.dense.base_layer.weight")
    'bert.pooler.dense.weight'
    """
    return key.removeprefix(PREFIX).replace(".base_layer.", ".")


def _refuse_folders_within(name: str) -> None:
    """Refuse a folder of adapters that are all called otherwise than "default", as peft saves them."""
    within = sorted(path.parent.name for path in Path(name).glob(f"*/{SETTINGS}")) if Path(name).is_dir() else []
    is_model = any(Path(name, file).is_file() for file in ("config.json", *WHOLE_MODEL))
    adapters = [each for each in within if not each.startswith("checkpoint-")]
    if adapters and not is_model:
        raise ConfigurationError(
            f"{name} holds the adapters {', '.join(adapters)} in folders of their own. Name one: {name}/{adapters[0]}."
        )


def _read_settings(name: str, folder: Path) -> Any:
    peft = import_peft(f"{name}, an adapter,")
    try:
        settings = peft.PeftConfig.from_pretrained(str(folder))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{name}: {SETTINGS} can't be read by peft {peft.__version__}: {error}") from error
    kind = str(getattr(settings.peft_type, "value", settings.peft_type))
    if settings.is_prompt_learning or settings.is_adaption_prompt:
        raise UnsupportedModelError(
            f"{name}: {kind} puts states of its own before a text, which isn't supported. LoRA and its relatives are."
        )
    task = None if settings.task_type is None else str(getattr(settings.task_type, "value", settings.task_type))
    of_class = (settings.auto_mapping or {}).get("base_model_class") or "SequenceClassification"
    if task not in {None, "SEQ_CLS"} or (task is None and "SequenceClassification" not in of_class):
        raise ConfigurationError(
            f"{name} is an adapter for {task or of_class}, not of a sequence classifier: {SETTINGS} needs "
            'task_type="SEQ_CLS". Train one with peft.LoraConfig(task_type="SEQ_CLS").'
        )
    if not settings.base_model_name_or_path:
        raise ConfigurationError(
            f"{name}: {SETTINGS} doesn't name the base model. Write its name or folder to base_model_name_or_path "
            "there, or load it yourself and pass PeftModel.from_pretrained(base, folder, is_trainable=True)."
        )
    return settings


def _read_weights(name: str, source: Mapping[str, Any], use_safetensors: bool) -> dict[str, Tensor]:
    path = find_file(name, WEIGHTS, source)
    if path is not None:
        return load_file(path)
    pickled = find_file(name, PICKLED, source)
    if pickled is None:
        raise ConfigurationError(f"{name} has {SETTINGS}, but no weights: {WEIGHTS} is missing.")
    if use_safetensors:
        raise ConfigurationError(
            f"{name} has no weights in safetensors files. Pickled weights can run code when they are loaded: "
            "pass use_safetensors=False if you trust their author."
        )
    loaded: dict[str, Tensor] = torch.load(pickled, map_location="cpu", weights_only=True)
    return loaded


# -- models in memory --------------------------------------------------------------------------------------------------


def is_adapted(model: Any) -> bool:
    """Whether a model holds adapters, of peft itself or by transformers' `add_adapter`."""
    return bool(getattr(model, "peft_config", None))


def size_of(model: nn.Module) -> int:
    """Bytes of the weights that saving a model writes: of one with adapters, those that are trained."""
    adapted = is_adapted(model)
    return sum(each.nbytes for each in model.parameters() if each.requires_grad or not adapted)


def active_adapter(model: Any) -> str:
    """The one adapter that a model computes with.

    Raises:
        ConfigurationError: There are several, or none is switched on.
    """
    found = model.active_adapters() if callable(model.active_adapters) else model.active_adapters
    found = [found] if isinstance(found, str) else list(found)
    _check_switched_on(model)
    if len(found) != 1:
        raise ConfigurationError(
            f"The adapters {', '.join(found)} are active together, and a folder holds one. Save the model with "
            "merge_adapters=True, or choose one by set_adapter."
        )
    return str(found[0])


def _check_switched_on(model: Any) -> None:
    layers = [module for module in model.modules() if hasattr(module, "disable_adapters") and hasattr(module, "merged")]
    if layers and all(module.disable_adapters is True for module in layers):
        raise ConfigurationError(
            "The model's adapters are switched off, and its folder would score with them. Switch them on before saving."
        )


def check_mergeable(model: Any) -> None:
    """Check that `merged` can be told of a model.

    Raises:
        ConfigurationError: It has no adapters.
        UnsupportedModelError: Its adapters or its weights can't be merged.
    """
    if not is_adapted(model):
        raise ConfigurationError(
            f"merge_adapters=True, but the {type(model).__name__} has no adapters. Leave it out: it is saved whole."
        )
    if not hasattr(model, "get_base_model") or not hasattr(model.base_model, "merge_and_unload"):
        raise UnsupportedModelError(
            "merge_adapters=True needs a model of peft.get_peft_model(...) whose adapters change weights. Save the "
            "adapter, and load its folder with CrossEncoder."
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise UnsupportedModelError(
            "merge_adapters=True would round the adapters to the precision of a quantized base model. Save the adapter "
            "and merge it into the base loaded in full precision: CrossEncoder(folder).save_pretrained(another, "
            "merge_adapters=True)."
        )


def merged(model: Any) -> Any:
    """A plain classifier with the active adapters in its weights; the model itself stays as it is.

    Takes as much memory again as the model.

    Raises:
        ConfigurationError: It has no adapters.
        UnsupportedModelError: They can't be merged.
    """
    check_mergeable(model)
    _check_switched_on(model)
    try:
        plain = copy.deepcopy(model).merge_and_unload()
    except (NotImplementedError, ValueError, AttributeError) as error:
        raise UnsupportedModelError(f"merge_adapters=True: these adapters can't be merged: {error}") from error
    return plain


# -- writing -----------------------------------------------------------------------------------------------------------


def write_model(model: Any, folder: str | Path, merge_adapters: bool = False) -> None:
    """Save a model's own files: a plain classifier's, or an adapter's with all that its base lacks.

    Args:
        model: A classifier, under PEFT or not.
        folder: Made if it isn't there. What an earlier model of the other form left there is removed.
        merge_adapters: Save a plain classifier with the active adapters in its weights.

    Raises:
        ConfigurationError: Several adapters are active, or the folder is the base model's own.
        UnsupportedModelError: The adapters can't be merged.
    """
    plain = merged(model) if merge_adapters else model
    check_place(plain, folder)
    plain.save_pretrained(folder)
    complete_weights(plain, folder)


def check_place(model: Any, folder: str | Path) -> None:
    """Check that a model can be saved to a folder.

    Raises:
        ConfigurationError: An adapter's would be its base model's own.
    """
    if not is_adapted(model):
        return
    for settings in model.peft_config.values():
        base = settings.base_model_name_or_path
        if base and Path(base).is_dir() and Path(base).resolve() == Path(folder).resolve():
            raise ConfigurationError(
                f"{str(folder)!r} is the folder of the base model, beside which its adapter can't be saved. Name "
                "another folder."
            )


def complete_weights(
    model: Any, folder: str | Path, state: Mapping[str, Tensor] | None = None, is_checkpoint: bool = False
) -> None:
    """Write what a folder lacks after a model's `save_pretrained`; remove an earlier model of the other form.

    The active adapter is written to the folder itself, whatever its name, and others to folders of their names within.

    Args:
        model: A classifier, under PEFT or not.
        folder: Where it is.
        state: All weights by name, where the model in memory holds only a part of them.
        is_checkpoint: Leave several adapters where transformers' Trainer looks for them.

    Raises:
        ConfigurationError: Several adapters are active; or they are merged into weights that have to be saved.
    """
    folder = Path(folder)
    if not is_adapted(model):
        _remove(folder, [SETTINGS, WEIGHTS, PICKLED])
        return
    if any(settings.is_prompt_learning for settings in model.peft_config.values()):
        return  # peft has saved all that there is
    several = len(model.peft_config) > 1
    root = "default" if is_checkpoint and several else active_adapter(model)
    for name in model.peft_config:
        _write_adapter(model, name, folder if name == root else folder / name, state)
    _remove(folder, files_of_other_form(folder))
    if root != "default":  # where peft has put it
        _remove(folder / root, [SETTINGS, WEIGHTS])
        if (folder / root).is_dir() and not any((folder / root).iterdir()):
            (folder / root).rmdir()


def _remove(folder: Path, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink()


def files_of_other_form(folder: str | Path) -> list[str]:
    """Patterns of the files that mustn't lie beside those of a folder: an adapter's, or a whole model's."""
    is_adapter = Path(folder, SETTINGS).is_file()
    return ["config.json", *WHOLE_MODEL, "model-*-of-*.safetensors"] if is_adapter else [SETTINGS, WEIGHTS, PICKLED]


def remove_other_form(repo_id: str, folder: str | Path, token: str | None, revision: str | None) -> None:
    """Remove from a repository on the Hub what mustn't lie beside the files of a folder that was uploaded to it."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    patterns = files_of_other_form(folder)
    stale = [
        file
        for file in api.list_repo_files(repo_id, revision=revision)
        if any(fnmatch.fnmatch(file, pattern) for pattern in patterns)
    ]
    if stale:
        api.delete_files(repo_id, stale, revision=revision, commit_message="Remove the model's earlier form")


def adapter_folders(model: Any, folder: str | Path) -> list[Path]:
    """A saved model's folder, and those within that hold adapters of it."""
    within = [Path(folder, name) for name in getattr(model, "peft_config", None) or ()]
    return [Path(folder), *(path for path in within if (path / SETTINGS).is_file())]


def _write_adapter(model: Any, name: str, folder: Path, state: Mapping[str, Tensor] | None) -> None:
    settings = copy.deepcopy(model.peft_config[name])
    settings.inference_mode = True
    classifier = model.get_base_model() if hasattr(model, "get_base_model") else model
    base = settings.base_model_name_or_path or classifier.name_or_path or None
    if base is not None and Path(base).is_dir():
        base = str(Path(base).absolute())  # as it was meant, wherever the adapter is loaded
    settings.base_model_name_or_path = base
    known, tokens = _base_config(settings), _num_tokens(classifier)
    embeddings: bool | str = "auto"  # peft asks the Hub
    if known is not None:
        embeddings = tokens is not None and tokens != known.get_text_config().vocab_size
    weights = {**_adapter_weights(model, name, state, embeddings), **_of_base(model, state)}
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in weights.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    Path(folder, PICKLED).unlink(missing_ok=True)
    mapping = None
    if settings.task_type is None:
        mapping = {"base_model_class": type(classifier).__name__, "parent_library": type(classifier).__module__}
    settings.save_pretrained(str(folder), auto_mapping_dict=mapping)
    kept = {"num_labels": classifier.config.num_labels, "dtype": str(classifier.dtype).removeprefix("torch.")}
    if embeddings is True:
        kept["vocab_size"] = tokens
    resized = embeddings is True or (known is not None and known.num_labels != classifier.config.num_labels)
    keep_config(folder, classifier.config, kept, resized)


def _adapter_weights(
    model: Any, name: str, state: Mapping[str, Tensor] | None = None, embeddings: bool | str = False
) -> dict[str, Tensor]:
    """What peft saves of an adapter, by the names of its file."""
    found: dict[str, Tensor] = import_peft("Saving adapters").get_peft_model_state_dict(
        model, state, adapter_name=name, save_embedding_layers=embeddings
    )
    return {key if key.startswith(PREFIX) else PREFIX + key: tensor for key, tensor in found.items()}


def _of_base(model: Any, state: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Weights that the base's files may lack, by the names of the adapter's file: the head, the pooler, those trained.

    Those that a module to save replaces aren't among them.
    """
    classifier = model.get_base_model() if hasattr(model, "get_base_model") else model
    body = f"{classifier.base_model_prefix}."
    found = {}
    for name, parameter in classifier.named_parameters():
        parts = name.split(".")
        if "original_module" in parts or any(part in model.peft_config for part in parts):
            continue
        if not name.startswith(body) or "pooler" in parts or parameter.requires_grad:
            found[PREFIX + name] = parameter if state is None else state.get(PREFIX + name, parameter)
    layers = {name for name, module in classifier.named_modules() if getattr(module, "merged", False)}
    held = [key for key in found if key.removeprefix(PREFIX).rpartition(".base_layer.")[0] in layers]
    if held:
        raise ConfigurationError(
            f"The adapters are merged into the weights {plain_name(held[0])}, which are saved with them. Call "
            "model.unmerge_adapter() before saving, or save with merge_adapters=True."
        )
    return found


def _base_config(settings: Any) -> Any:
    """The config of an adapter's base as its files have it; None where they aren't on this machine."""
    if not settings.base_model_name_or_path:
        return None
    try:
        return read_config(settings.base_model_name_or_path, {"revision": settings.revision, "local_files_only": True})
    except (OSError, ValueError):
        return None


def _num_tokens(classifier: Any) -> int | None:
    """How many tokens a model has embeddings for, where it has a table of them and its config counts them."""
    try:
        table = classifier.get_input_embeddings()
    except NotImplementedError:
        return None
    counted = hasattr(classifier.config.get_text_config(), "vocab_size")
    return getattr(table, "num_embeddings", None) if counted else None
