"""Train a model on any labelled data; the data decide columns, loss and metrics.

    train_model(*parse_arguments(TrainArguments, GENERAL_DEFAULTS, ["--dataset", "pairs.csv"]))

Several data sets are a mapping in a YAML file, each a source or one with options of its own:

    dataset:
      duplicates: questions.tsv
      ranked: {dataset: answers.jsonl, loss: ListNetLoss}
    mixing: even

`cross-trainer train` calls this function, so its messages name the options of the command line.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import typer

import cross_trainer
from cross_trainer.commands.arguments import RecipeArguments, finish, load_tokenizer
from cross_trainer.commands.score import takes_instruction
from cross_trainer.data.columns import INSTRUCTION, resolve_columns
from cross_trainer.data.grouping import DOCUMENTS, LABELS, group_by_query
from cross_trainer.data.splits import load_splits
from cross_trainer.data.tables import require_columns
from cross_trainer.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import TrainingArguments

    from cross_trainer.training.trainer import CrossEncoderTrainer

logger = logging.getLogger(__name__)

BY_KIND = "by the labels"
GENERAL_DEFAULTS: dict[str, Any] = {
    "output_dir": "output",
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 64,
    "num_train_epochs": 4,
    "learning_rate": 2e-5,
    "warmup_steps": 0.1,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": BY_KIND,
    "logging_steps": 50,
}
MAIN_METRICS = {
    "BinaryMetrics": "average_precision",
    "CorrelationMetrics": "spearman",
    "MulticlassMetrics": "accuracy",
    "MultilabelMetrics": "f1_micro",
    "RankingMetrics": "ndcg@10",
}
"""The metric that chooses the best checkpoint, for each kind of metrics."""


@dataclass
class TrainArguments(RecipeArguments):
    """Arguments of `cross-trainer train`, in addition to all `TrainingArguments`."""

    swap: bool = field(default=False, metadata={"help": "Train on both orders of the two texts."})
    loss: str | None = field(
        default=None,
        metadata={"help": "A loss: MSELoss, \"MSELoss(activation='identity')\", ... Default: by the labels."},
    )
    truncation: Literal["longest_first", "only_first", "only_second"] | None = field(
        default=None, metadata={"help": "Which text of a long pair is cut. Default: as the model was trained."}
    )
    template: str | None = field(
        default=None,
        metadata={
            "help": "The text of a pair, with {query}, {document} and maybe {instruction}, or the name of one. "
            "Default: as the model was trained."
        },
    )
    instruction: str | None = field(
        default=None, metadata={"help": "The instruction in the template. Default: the model's."}
    )
    max_query_length: int | None = field(
        default=None, metadata={"help": "Tokens of the first text at most. Default: as the model was trained."}
    )
    tokens: list[str] | None = field(
        default=None,
        metadata={"help": "The answers of a causal language model, such as: yes no. Default: those of its files."},
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a model on the Hub."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run Python code from the model's folder or repository."}
    )
    card_examples: int = field(
        default=3, metadata={"help": "Rows of the training data that the model card may show; 0 for none."}
    )
    fingerprints: bool = field(
        default=True, metadata={"help": "Save hashes of the pairs trained on, by which calibrate refuses them."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Print what the training would do, and end."})
    in_batch_negatives: int = field(
        default=0, metadata={"help": "Positives of other rows to train each row (query, positive) against."}
    )
    mixing: str = field(
        default="proportional",
        metadata={
            "help": "How several data sets, a mapping in YAML, share the updates: proportional to their sizes, even, a "
            "temperature such as 2.0, or a mapping to weights."
        },
    )


OF_EACH = ("dataset", "dataset_config", "text_columns", "label_column", "loss")
"""What each of several data sets may have of its own."""


@dataclass(frozen=True)
class Part:
    """A data set as it is trained on.

    Attributes:
        splits: "train", "validation", and "test" if there is one.
        columns: Those to name, if any.
        loss: None lets it follow from the labels.
    """

    splits: DatasetDict
    columns: tuple[str, ...] | None
    loss: Any


def train_model(arguments: TrainArguments, training_arguments: TrainingArguments) -> None:
    """Train a model on a data set, evaluate it, save it and show its scores of three pairs; or only print the plan.

    Raises:
        ConfigurationError: The data set, the model or the loss isn't there.
        DataError: The data can't be trained on.
    """
    from cross_trainer.training.plan import default_collator
    from cross_trainer.training.several import check_arguments, plan_training
    from cross_trainer.training.trainer import CrossEncoderTrainer

    if not arguments.dataset:
        raise ConfigurationError("--dataset is missing: a file, a folder or the id of a data set on the Hub.")
    own = arguments.of_trainer()
    given: dict[str, Any] = {
        "revision": arguments.model_revision,
        "trust_remote_code": arguments.trust_remote_code or None,
    }
    source = {name: value for name, value in given.items() if value is not None}
    parts = {name: load_part(own, training_arguments.seed, source) for name, own in of_each(arguments).items()}
    splits = {name: _by_name(parts, name) for name in ("train", "validation", "test")}
    columns = {name: part.columns for name, part in parts.items() if name is not None and part.columns is not None}
    loss = {name: part.loss for name, part in parts.items()}
    kwargs = source if arguments.tokens is None else {**source, "tokens": arguments.tokens}
    options: dict[str, Any] = {
        "train_dataset": splits["train"],
        "eval_dataset": splits["validation"],
        "data_collator": default_collator(
            arguments.model,
            load_tokenizer(arguments.model, **source),
            arguments.truncation,
            kwargs,
            max_length=arguments.max_length,
            columns=parts[None].columns if None in parts else columns or None,
            swap=arguments.swap,
            in_batch_negatives=arguments.in_batch_negatives,
            template=arguments.template,
            instruction=arguments.instruction,
            max_query_length=arguments.max_query_length,
        ),
        "compute_loss_func": loss.get(None, loss),
        "model_kwargs": kwargs,
    }
    of_plan = {name: own[name] for name in ("padding_free", "max_tokens", "prior_bias")}
    mixing = read_mixing(arguments.mixing)
    if None not in parts and training_arguments.metric_for_best_model == BY_KIND:
        training_arguments.metric_for_best_model = f"{next(iter(parts))}_{BY_KIND}"
    if arguments.dry_run:
        check_arguments(training_arguments, splits["train"], splits["validation"], mixing)
        smoothing, device = training_arguments.label_smoothing_factor, training_arguments.device.type
        plans = plan_training(arguments.model, **options, **of_plan, label_smoothing_factor=smoothing, device=device)
        typer.echo("\n".join(map(repr, plans.values())))
        if arguments.lora:
            typer.echo(f"LoRA({', '.join(f'{name}={value!r}' for name, value in arguments.lora_settings().items())})")
        return
    options |= own | {name: getattr(arguments, name) for name in ("card_examples", "fingerprints")}
    options["mixing"] = mixing
    trainer = CrossEncoderTrainer(arguments.model, training_arguments, **options)
    _choose_best_by(trainer)
    trainer.train(resume_from_checkpoint=training_arguments.resume_from_checkpoint)
    finish(trainer, {name: rows for name, rows in splits.items() if rows})


def of_each(arguments: TrainArguments) -> dict[str | None, TrainArguments]:
    """The arguments of each data set by its name, or of the only one under None.

    >>> list(of_each(TrainArguments(dataset='{"pairs": "pairs.csv", "graded": {"dataset": "sts.csv"}}')))
    ['pairs', 'graded']

    Raises:
        ConfigurationError: A data set has an option that only all can have, or no source.
    """
    if not arguments.dataset.lstrip().startswith("{"):
        return {None: arguments}
    found: dict[str | None, TrainArguments] = {}
    for name, own in _read_json("dataset", arguments.dataset).items():
        options = own if isinstance(own, Mapping) else {"dataset": own}
        unknown = [option for option in options if option not in OF_EACH]
        if unknown or not isinstance(options.get("dataset"), str):
            problem = f"has the option {unknown[0]!r}" if unknown else "has no source"
            raise ConfigurationError(
                f"--dataset: {name!r} {problem}. Expected a file, a folder or an id on the Hub, or a mapping with "
                f"'dataset' and perhaps {', '.join(OF_EACH[1:])}."
            )
        found[name] = dataclasses.replace(arguments, **options)
    return found


def read_mixing(written: str) -> Any:
    """How data sets are mixed: a word, or a number or weights as JSON.

    >>> read_mixing("even"), read_mixing("2"), read_mixing('{"a": 1, "b": 0.5}')
    ('even', 2, {'a': 1, 'b': 0.5})
    """
    return written if written.isidentifier() else _read_json("mixing", written)


def _read_json(option: str, written: str) -> Any:
    try:
        return json.loads(written)
    except json.JSONDecodeError as error:
        raise ConfigurationError(
            f"--{option} {written}: {error}. Write mappings in a YAML file, or as JSON."
        ) from error


def load_part(arguments: TrainArguments, seed: int, source: Mapping[str, Any]) -> Part:
    """Load a data set, check its columns, and bring its rows into the form that its loss takes.

    Args:
        arguments: Those of this data set.
        seed: Of the draw of a validation split.
        source: Where the model is loaded from.

    Raises:
        ConfigurationError: The data set or the loss isn't there.
        DataError: There is no training data, no two texts or no label.
    """
    splits = load_splits(arguments.dataset, arguments.dataset_config, seed, arguments.columns())
    reading: dict[str, Any] = {"template": arguments.template, "tokens": arguments.tokens}
    names = splits["train"].column_names
    instructed = INSTRUCTION in names and takes_instruction(arguments.model, **reading, **source)
    columns, negatives = arguments.columns(), arguments.in_batch_negatives
    check_columns(arguments.dataset, splits["train"], columns, negatives, instructed=instructed)
    loss = None if arguments.loss is None else make_loss(arguments.loss)
    if getattr(loss, "couples_rows", False):
        splits, columns = grouped(splits, columns, instructed)
    return Part(splits, columns, loss)


def _by_name(parts: Mapping[str | None, Part], split: str) -> Any:
    """A split of the only data set, or of each that has it by its name; None or nothing where none has it."""
    if None in parts:
        return parts[None].splits.get(split)
    return {name: part.splits[split] for name, part in parts.items() if split in part.splits}


def grouped(
    splits: DatasetDict, columns: tuple[str, ...] | None, instructed: bool = False
) -> tuple[DatasetDict, tuple[str, ...] | None]:
    """Splits for a loss over the documents of a query: judged pairs are brought together by their query.

    Returns:
        The splits, and the columns to name: those of lists are found by their names.
    """
    from datasets import DatasetDict

    found = resolve_columns(splits["train"], columns, instructed=instructed)
    if found.shape != "pair" or found.label is None:
        return splits, columns
    lists = DatasetDict({name: group_by_query(rows, columns) for name, rows in splits.items()})
    logger.info("%d pairs are brought together as %d queries.", len(splits["train"]), len(lists["train"]))
    return lists, (found.query, DOCUMENTS, LABELS)


def make_loss(written: str) -> Any:
    """Build a loss from its name or its `repr`.

        >>> make_loss("MSELoss(activation='identity')")
        MSELoss(activation='identity')

    Raises:
        ConfigurationError: There is no such loss, or it doesn't take these arguments.
    """
    from cross_trainer.training import losses

    names = [name for name in dir(cross_trainer) if name.endswith("Loss")]
    try:
        call = ast.parse(written if "(" in written else f"{written}()", mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in names and not call.args:
            options = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
            return getattr(losses, call.func.id)(**options)
    except (SyntaxError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"--loss {written}: {error}. Expected a loss and its options, such as MSELoss(activation='identity')."
        ) from error
    raise ConfigurationError(
        f"--loss {written}: expected one of {', '.join(names)}, with named options in parentheses."
    )


def _choose_best_by(trainer: CrossEncoderTrainer) -> None:
    """Let the main metric for the data's labels choose the best checkpoint, unless the user asked for another.

    Of several data sets it is that of the first.
    """
    asked = trainer.args.metric_for_best_model or ""
    if not asked.endswith(BY_KIND):
        return
    plan = next(iter(trainer.plans.values()), trainer.plan)
    metrics = trainer.compute_metrics if plan is None else plan.metrics
    metric = asked.removesuffix(BY_KIND) + MAIN_METRICS.get(type(metrics).__name__, "loss")
    trainer.args.metric_for_best_model = metric
    trainer.args.greater_is_better = not metric.endswith("loss")
    if trainer.args.load_best_model_at_end:
        logger.info(
            "The best checkpoint is the one with the %s %s.",
            "highest" if trainer.args.greater_is_better else "lowest",
            metric,
        )


def check_columns(
    source: str,
    rows: Dataset,
    columns: tuple[str, ...] | None = None,
    in_batch_negatives: int = 0,
    trained_on: tuple[str, str] | None = None,
    instructed: bool = False,
) -> None:
    """Check that a data set has texts and labels, with messages that name the options of the command line.

    Raises:
        DataError: The data set has no column of a name that was given, no two texts, or no label.
    """
    names, option = rows.column_names, "--text-columns FIRST SECOND --label-column LABEL"
    require_columns(source, names, columns or (), option)
    try:
        found = resolve_columns(
            rows, columns, in_batch_negatives, trained_on=trained_on, option=option, instructed=instructed
        )
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    if found.label is None and not found.grouped:
        raise DataError(f"{source} has no label among the columns {names}. Name it with {option}.")
