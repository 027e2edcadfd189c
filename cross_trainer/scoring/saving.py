"""What a CrossEncoder saves: its folder with a model card, and exports for other runtimes; its methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from cross_trainer.data.pairs import Pair
from cross_trainer.disk import check_writable, telling_full
from cross_trainer.errors import ConfigurationError, UnsupportedModelError
from cross_trainer.execution.shown import run_usage
from cross_trainer.saved.activation import describe_activation
from cross_trainer.saved.adapters import SETTINGS, adapter_folders, write_model
from cross_trainer.saved.card import CardFacts, carry_card, never_fatal, write_card
from cross_trainer.saved.export import Precision, Target
from cross_trainer.saved.folder import complete_folder, describe_reading, find_file, write_trained_rows
from cross_trainer.saved.modular import Modular
from cross_trainer.saved.rerankers import saved_answers
from cross_trainer.saved.rerankers import to_causal as to_causal_model
from cross_trainer.saved.usage import NEUTRAL_PAIRS, Usage
from cross_trainer.scoring.exported import Export, export_model
from cross_trainer.spellings import REFUSED, spelled

CrossEncoder: TypeAlias = Any  # of `cross_encoder.py`, which imports this module


@dataclass(frozen=True)
class Origin:
    """Where a model was loaded from, whose card is its own until it is trained.

    Args:
        name: On the Hub, or a folder.
        source: Where to load from: arguments of `from_pretrained`.
        weights: Numbers that training changes. Fused optimisers leave torch's own counters of changes as they are.
    """

    name: str
    source: Mapping[str, Any]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, model: Any, name: str, source: Mapping[str, Any]) -> Origin:
        """Of a model that has just been loaded."""
        return cls(name, source, _weights(model))

    def file(self, file: str) -> Path | None:
        """Where one of its files lies, or None where there is none."""
        return find_file(self.name, file, self.source)


def _weights(model: Any) -> tuple[float, ...]:
    here = (parameter.detach() for parameter in model.parameters() if not parameter.is_meta)  # others are offloaded
    return tuple(float(parameter.reshape(-1)[:8].float().sum()) for parameter in here)


@spelled(REFUSED["save_pretrained"])
def save_pretrained(
    self: CrossEncoder,
    folder: str | Path,
    *,
    merge_adapters: bool = False,
    create_model_card: bool = True,
    to_causal: bool = False,
) -> None:
    """Save model, tokenizer, maximal length, activation and prompts for every tool that reads Hugging Face files.

    `save` is the same.

    Args:
        self: The model.
        folder: Made if it isn't there.
        merge_adapters: Save a plain classifier with the adapters of peft in its weights; the model in memory stays as
            it is. Without it, the folder holds the active adapter, and names its base model.
        create_model_card: Write the model card too. A model that hasn't been trained since it was loaded keeps its own.
        to_causal: Save a model that was a causal language model as one again, without a card, for servers that know its
            base: its answers' logits differ by the same scores.

    Raises:
        ConfigurationError: The folder can't hold the model, there are no adapters to merge, or `to_causal` is asked
            for, and the model has never answered with tokens.
        UnsupportedModelError: The adapters can't be merged; the model isn't a linear layer over a causal language
            model's transformer; or it is scored through modules that no classifier computes.
    """
    if to_causal:
        _save_causal(self, folder)
        return
    save_for(self, folder, Path(folder).resolve().name if create_model_card else None, merge_adapters)


def save_for(self: CrossEncoder, folder: str | Path, address: str | None, merge_adapters: bool = False) -> None:
    """Save the model with a card that says where it will be loaded from.

    Args:
        self: The model.
        folder: Made if it isn't there.
        address: The folder's or the repository's name. None writes no card.
        merge_adapters: As in `save_pretrained`.
    """
    check_changeable(self, "save_pretrained()")
    _describe(self)
    check_writable(folder, folder=True)
    with telling_full(folder, "Free some space, and save it again."):
        write_model(self.model, folder, merge_adapters)
        for place in [Path(folder)] if merge_adapters else adapter_folders(self.model, folder):
            _complete(self, place)
    if address is not None:
        with never_fatal(folder):
            _write_card(self, folder, address)


def _save_causal(self: CrossEncoder, folder: str | Path) -> None:
    check_changeable(self, "save_pretrained()")
    _describe(self)
    answers = saved_answers(self.config)
    if not answers:
        raise ConfigurationError(
            f"to_causal=True: {self.config.name_or_path!r} was never a causal language model that answers with tokens."
        )
    to_causal_model(self.model, answers).save_pretrained(folder)
    prompts = (self.prompts, self.default_prompt_name)
    complete_folder(folder, self.config, self.tokenizer, self.max_length, *prompts, answers)


def _describe(self: CrossEncoder) -> None:
    """Write into the config how pairs are read and scored."""
    template = None if self.template is None else self.template.to_dict()
    describe_reading(self.config, self.truncation, None, template, self.max_query_length)
    describe_activation(self.config, self.activation_fn)


def _complete(self: CrossEncoder, folder: str | Path) -> None:
    """Write the tokenizer and what else the folder of a model or of a config lacks."""
    complete_folder(folder, self.config, self.tokenizer, self.max_length, self.prompts, self.default_prompt_name)
    write_trained_rows(folder, self.trained_rows())


def _write_card(self: CrossEncoder, folder: str | Path, address: str) -> None:
    """Write the model card: the one that the model was loaded with, if it hasn't been trained since."""
    usage = Usage()
    if not self.is_untrained and self.default_prompt_name is None:
        usage = run_usage(self.model, self.tokenizer, NEUTRAL_PAIRS, self.max_length, self.truncation)
    name = address.rpartition("/")[2]
    if self.card_facts is not None:
        write_card(folder, replace(self.card_facts, name=name, address=address, usage=usage))
        return
    facts = CardFacts(name, self.config, self.max_length, address, truncation=self.truncation, usage=usage)
    origin: Origin | None = self.origin
    unchanged = origin is not None and origin.weights == _weights(self.model)
    carry_card(folder, origin.file if origin is not None and unchanged else lambda _: None, facts)


def check_has_weights(self: CrossEncoder, what: str) -> None:
    """Check that the model computes with torch.

    Raises:
        ConfigurationError: It has been exported.
        UnsupportedModelError: It isn't a classifier.
    """
    if isinstance(self.model, Modular):
        raise UnsupportedModelError(
            f"{what} needs a classifier, but the model is scored through the modules of sentence-transformers that it "
            f"was saved with, which no classifier of a {self.config.model_type} computes. Keep its own folder."
        )
    if self.backend != "torch":
        raise ConfigurationError(
            f'{what} needs the weights of torch, but the model was loaded with backend="{self.backend}". Load it '
            "without."
        )


def check_changeable(self: CrossEncoder, what: str) -> None:
    """Check that the model computes with torch, in a precision that doesn't depend on this machine.

    Raises:
        ConfigurationError: It has been exported, or "auto" has chosen the precision.
        UnsupportedModelError: It isn't a classifier.
    """
    check_has_weights(self, what)
    if self.scores_only:
        raise ConfigurationError(
            f'{what} needs weights whose precision doesn\'t depend on the machine, but dtype="auto" has made them '
            f"{str(self.model.dtype).removeprefix('torch.')} for scoring. Load the model without dtype, or name one."
        )


def export(
    self: CrossEncoder,
    folder: str | Path,
    to: Target = "onnx",
    precision: Precision = "fp32",
    *,
    pairs: Sequence[Pair] | None = None,
) -> Export:
    """Write the model as ONNX or OpenVINO, for `CrossEncoder(folder, backend=...)` and other tools to score with.

    The scores of pairs of several lengths are compared with torch's. The file lies where `saved.export.EXPORTED` says,
    and reads any number of pairs and tokens.

    Args:
        self: The model.
        folder: The model's own, to which the file is added; or another one, in which config and tokenizer are saved
            along.
        to: "onnx" or "openvino".
        precision: "fp32"; "int8" with 8-bit weights; "bf16", for OpenVINO, in half the space and computed in bfloat16
            where the processor has it.
        pairs: What to compare scores on. Default: English questions and answers from 5 tokens to as many as the model
            takes, but at most 2048.

    Returns:
        The file, and how far its logits and scores are from torch's. In float32 they may differ by a thousandth;
            otherwise nothing is written.

    Raises:
        ConfigurationError: There is no such format or precision.
        MissingDependencyError: The extra `export` isn't installed.
        UnsupportedModelError: The model can't be exported, or scores otherwise afterwards.
    """
    check_changeable(self, "export()")
    target, own = Path(folder), Path(self.config.name_or_path or "?")
    if (target / SETTINGS).is_file():
        raise ConfigurationError(
            f"{folder} holds an adapter, beside which readers would take the export's config.json for a whole model's. "
            "Export to another folder."
        )
    exported = export_model(self.model, self.engine(), self.activation_fn, target, to, precision, pairs)
    if not (own.is_dir() and own.samefile(target)):
        _describe(self)
        self.config.architectures = [type(getattr(self.model, "get_base_model", lambda: self.model)()).__name__]
        self.config.save_pretrained(target)
        _complete(self, target)
    return exported
