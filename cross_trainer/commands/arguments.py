"""What `cross-trainer train` and the recipes share: reading arguments, and evaluating, saving and showing a model."""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer

from cross_trainer.errors import ConfigurationError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, TrainingArguments

    from cross_trainer.training.trainer import CrossEncoderTrainer

NO_QUALITY = {"runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "epoch"}
"""Entries of an evaluation's result that don't say how good a model is."""


@dataclass
class RecipeArguments:
    """The model, the data and how they are read. All `TrainingArguments` are arguments too."""

    model: str = field(default="distilroberta-base", metadata={"help": "Name or folder of any pretrained model."})
    dataset: str = field(
        default="",
        metadata={"help": "Hub id, folder or file (csv, tsv, jsonl, parquet) with train, validation and test."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    text_columns: list[str] | None = field(default=None, metadata={"help": "The columns of the two texts."})
    label_column: str | None = field(default=None, metadata={"help": "The column of the label."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens of a pair at most. Default: the model's."})
    max_tokens: int | None = field(default=None, metadata={"help": "Tokens of a forward pass at most; same gradient."})
    padding_free: bool = field(default=True, metadata={"help": "Compute no padding in the transformer layers."})
    layer_decay: float | None = field(
        default=None, metadata={"help": "Each layer's learning rate, as a share of that of the layer above it."}
    )
    prior_bias: bool = field(
        default=True, metadata={"help": "Start a new head's bias at the labels' average instead of 0."}
    )
    lora: bool = field(
        default=False,
        metadata={"help": "Freeze the model; train a LoRA and the head. It takes about ten times the learning rate."},
    )
    lora_r: int | None = field(default=None, metadata={"help": "Rank of the LoRA. Default: 16."})
    lora_alpha: float | None = field(default=None, metadata={"help": "Its weight times its rank. Default: twice that."})
    lora_dropout: float | None = field(default=None, metadata={"help": "Dropout before it. Default: 0.05."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "The layers that it is put on. Default: all-linear, without the head."}
    )
    merge_adapters: bool = field(
        default=False, metadata={"help": "Save the model whole, with the adapter in its weights."}
    )

    def columns(self) -> tuple[str, ...] | None:
        """The columns asked for, as `PairCollator` takes them."""
        return name_columns(self.text_columns, self.label_column)

    def lora_settings(self) -> dict[str, Any]:
        """What `--lora` asks for, by the names of `peft.LoraConfig`."""
        rank = 16 if self.lora_r is None else self.lora_r
        targets: Any = self.lora_target_modules
        return {
            "r": rank,
            "lora_alpha": 2 * rank if self.lora_alpha is None else self.lora_alpha,
            "lora_dropout": 0.05 if self.lora_dropout is None else self.lora_dropout,
            "target_modules": "all-linear" if targets in (None, ["all-linear"]) else targets,
        }

    def of_trainer(self) -> dict[str, Any]:
        """Arguments of `CrossEncoderTrainer` that have the names of these, and the adapter asked for.

        Raises:
            ConfigurationError: An option of the LoRA is given without `--lora`.
            MissingDependencyError: peft isn't installed.
        """
        from cross_trainer.saved.adapters import import_peft

        names = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
        given = [f"--{name}" for name in names if getattr(self, name) is not None]
        if given and not self.lora:
            raise ConfigurationError(f"{', '.join(given)} without --lora: no adapter is made. Give --lora too.")
        settings = import_peft("--lora").LoraConfig(**self.lora_settings()) if self.lora else None
        same = ("padding_free", "max_tokens", "layer_decay", "prior_bias", "merge_adapters")
        return {"peft_config": settings, **{name: getattr(self, name) for name in same}}


Arguments = TypeVar("Arguments", bound=RecipeArguments)


def name_columns(texts: Sequence[str] | None, label: str | None) -> tuple[str, ...] | None:
    """The columns asked for, as `PairCollator` takes them.

    Raises:
        ConfigurationError: Only one text column is named, or a label without the texts.
    """
    if texts is None:
        if label is not None:
            raise ConfigurationError("--label-column needs --text-columns too: name both texts.")
        return None
    if len(texts) != 2:
        raise ConfigurationError(f"--text-columns names {len(texts)} columns. Name the two texts.")
    return (*texts, label) if label else tuple(texts)


def parse_arguments(
    kind: type[Arguments], defaults: dict[str, Any], argv: Sequence[str] | None = None, **parser_options: Any
) -> tuple[Arguments, TrainingArguments]:
    """Read a dataclass of arguments and all `TrainingArguments` from the command line.

    `--resume_from_checkpoint true` means the last checkpoint, and `false` none.

    Args:
        kind: The dataclass.
        defaults: Defaults of either that differ from its own.
        argv: The arguments. Default: those of the process.
        parser_options: Options of `argparse.ArgumentParser` that shape the help.

    Raises:
        ConfigurationError: Arguments are unknown or contradict each other.
    """
    import torch
    from transformers import HfArgumentParser, TrainingArguments

    kinds: Any = [kind, TrainingArguments]
    parser = HfArgumentParser(kinds, **parser_options)
    vars(parser)["error"] = _refuse
    parser.set_defaults(
        disable_tqdm=not sys.stderr.isatty(),
        dataloader_pin_memory=torch.accelerator.is_available(),
        use_cpu=not torch.accelerator.is_available(),  # else the processes of a run don't find one another
        **defaults,
    )
    try:
        arguments, training_arguments, unknown = parser.parse_args_into_dataclasses(
            list(sys.argv[1:] if argv is None else argv), return_remaining_strings=True
        )
    except ValueError as error:  # arguments that contradict each other
        raise ConfigurationError(str(error)) from error
    if unknown:
        raise ConfigurationError(f"Unknown arguments {' '.join(unknown)!r}. See --help.")
    resume: Any = training_arguments.resume_from_checkpoint
    training_arguments.resume_from_checkpoint = {"true": True, "false": None}.get(str(resume).lower(), resume)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    level = logging.INFO if training_arguments.process_index == 0 else logging.ERROR
    logging.getLogger("cross_trainer").setLevel(level)
    return arguments, training_arguments


def _refuse(message: str) -> NoReturn:
    """What argparse does about arguments that it can't read."""
    raise ConfigurationError(f"{message}. See --help.")


def read_config(path: str | Path, kind: type[RecipeArguments]) -> list[str]:
    """Arguments from a YAML file, as a command line that flags may follow and override.

    Scalars are read as they are written, so that `eval_strategy: no` is no boolean and `learning_rate: 2e-5` a number.
    Keys without a value (`null`) keep their default.

    Args:
        path: One level of `name: value`, where a value may be a list; mappings are for the arguments that take JSON.
        kind: The dataclass of arguments, in addition to all `TrainingArguments`.

    Raises:
        ConfigurationError: The file is no such YAML, or an argument is unknown; the message names it.
    """
    import yaml
    from transformers import TrainingArguments

    try:
        text = Path(path).read_text(encoding="utf-8")
        written, values = yaml.load(text, yaml.BaseLoader), yaml.safe_load(text)  # noqa: S506  # BaseLoader makes only strings
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}: expected lines of `name: value`, found {str(values)[:60]!r}.")
    known = [entry.name for group in (kind, TrainingArguments) for entry in dataclasses.fields(group) if entry.init]
    argv: list[str] = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" Is {near[0]!r} meant?" if near else " See --help."
            raise ConfigurationError(f"{path}: unknown argument {key!r}.{hint}")
        if isinstance(value, list):
            argv += [f"--{name}", *written[key]]
        elif value is not None:
            argv.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else written[key]}")
    return argv


def load_tokenizer(name: str, **source: Any) -> PreTrainedTokenizerBase:
    """A model's tokenizer; `source` are arguments of `from_pretrained` that say where to load from.

    Raises:
        ConfigurationError: The model is neither a folder nor on the Hub, or the Hub can't be reached.
    """
    from cross_trainer.saved import reading

    try:
        tokenizer: PreTrainedTokenizerBase = reading.load_tokenizer(name, source)
    except ConfigurationError as error:
        raise ConfigurationError(f"--model: {error} The recipes also have --demo, which needs none.") from error
    return tokenizer


def finish(trainer: CrossEncoderTrainer, splits: Mapping[str, Any]) -> None:
    """Evaluate the model, save it, read it back from disk, show its scores of three pairs, and end the run.

    Only the main process prints.

    Args:
        trainer: A trainer after `train`, which holds the best checkpoint if it was asked to load that.
        splits: "validation", and "test" if there is one; of several data sets, their rows by name.
    """
    results = {
        name: trainer.evaluate(splits[name], metric_key_prefix=name)
        for name in ("validation", "test")
        if name in splits
    }
    trainer.save_model()
    if trainer.is_world_process_zero():
        shown = [_show_metrics(name, metrics) for name, metrics in results.items()]
        shown += [_show_scores(trainer, splits["validation"]), f"Saved in {trainer.args.output_dir}"]
        typer.echo("\n" + "\n\n".join(shown))
    trainer.accelerator.wait_for_everyone()
    trainer.end()


def _show_metrics(split: str, metrics: dict[str, float]) -> str:
    named = {key.removeprefix(f"{split}_"): value for key, value in metrics.items()}
    lines = [
        f"  {name:<24} {value:.4f}"
        for name, value in named.items()
        if isinstance(value, float) and not name.endswith(tuple(NO_QUALITY))
    ]
    return "\n".join([split, *lines])


def _show_scores(trainer: CrossEncoderTrainer, rows: Dataset | Mapping[str, Dataset]) -> str:
    """The scores that the saved model gives the first three pairs, of the first of several data sets."""
    from cross_trainer.scoring.cross_encoder import CrossEncoder

    plan = next(iter(trainer.plans.values()), trainer.plan)
    assert plan is not None  # it has trained
    rows = next(iter(rows.values())) if isinstance(rows, Mapping) else rows
    columns = plan.for_dataset(rows).columns
    is_remote = bool(getattr(trainer.accelerator.unwrap_model(trainer.model).config, "auto_map", None))
    model = CrossEncoder(str(trainer.args.output_dir), trust_remote_code=is_remote)  # it has been run already
    pairs = []
    for row in rows.select(range(min(3, len(rows)))):
        document = row[columns.documents[0]]
        own = () if columns.instruction is None else (row[columns.instruction],)
        pairs.append((row[columns.query], document[0] if isinstance(document, list) else document, *own))
    names = list((model.config.id2label or {}).values()) if model.num_labels > 1 else ["score"]
    lines = [f"Scores of the saved model, read back from {trainer.args.output_dir}"]
    lines.append("  " + "".join(f"{name:>15}" for name in names) + "  pair")
    for (query, document, *_), scores in zip(pairs, model.predict(pairs).reshape(len(pairs), -1), strict=True):
        lines.append("  " + "".join(f"{score:>15.4f}" for score in scores) + f"  {query} | {document}")
    return "\n".join(lines)
