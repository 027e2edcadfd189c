"""The recipe that knows no task: train on any labelled data and measure on it; columns, loss and metrics follow from the data.

    train_model(*parse_arguments(TrainArguments, GENERAL_DEFAULTS, ["--dataset", "pairs.csv"]))
    measure_model(CrossEncoder("output"), rows, confidence=0.95)     # {"average_precision": 0.9, ...}

`cross-trainer train` and `cross-trainer evaluate` are these functions.
"""

from __future__ import annotations

import ast
import dataclasses
import logging
import sys
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cross_trainer
from cross_trainer.columns import resolve_columns
from cross_trainer.errors import ConfigurationError, DataError
from cross_trainer.files import load_splits
from cross_trainer.recipe import NO_QUALITY, RecipeArguments, finish, load_tokenizer
from cross_trainer.tables import require_columns

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainingArguments

    from cross_trainer.cross_encoder import CrossEncoder
    from cross_trainer.trainer import CrossEncoderTrainer

logger = logging.getLogger(__name__)

BY_KIND = "by the labels"
GENERAL_DEFAULTS = {"output_dir": "output", "metric_for_best_model": BY_KIND}
MAIN_METRICS = {
    "BinaryMetrics": "average_precision",
    "CorrelationMetrics": "spearman",
    "MulticlassMetrics": "accuracy",
    "MultilabelMetrics": "f1_micro",
    "RankingMetrics": "ndcg@10",
}
"""By which metric the best checkpoint is chosen, for each kind of labels."""


@dataclass
class TrainArguments(RecipeArguments):
    """Arguments of `cross-trainer train`, beside all `TrainingArguments`."""

    demo: bool = field(default=False, init=False)  # the recipes' affair, which know a task
    swap: bool = field(default=False, metadata={"help": "Train on the texts in either order."})
    loss: str | None = field(
        default=None,
        metadata={"help": "A loss, as MSELoss or \"MSELoss(activation='identity')\". Default: by the labels."},
    )
    in_batch_negatives: int = field(
        default=0, metadata={"help": "Other rows' positives that a row (query, positive) is trained against."}
    )


def train_model(arguments: TrainArguments, training_arguments: TrainingArguments) -> None:
    """Train a model on a data set, evaluate it, save it and show what it makes of three pairs.

    Raises:
        ConfigurationError: The data set, the model or the loss isn't there.
        DataError: The data can't be trained on.
    """
    from cross_trainer.collator import PairCollator
    from cross_trainer.trainer import CrossEncoderTrainer

    if not arguments.dataset:
        raise ConfigurationError("--dataset is missing: a file, a folder or the id of a data set on the Hub.")
    splits = load_splits(arguments.dataset, arguments.dataset_config, training_arguments.seed)
    check_columns(arguments.dataset, splits["train"], arguments.columns(), arguments.in_batch_negatives)
    trainer = CrossEncoderTrainer(
        arguments.model,
        training_arguments,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=PairCollator(
            load_tokenizer(arguments.model),
            arguments.max_length,
            columns=arguments.columns(),
            swap=arguments.swap,
            in_batch_negatives=arguments.in_batch_negatives,
        ),
        compute_loss_func=None if arguments.loss is None else make_loss(arguments.loss),
        padding_free=arguments.padding_free,
        max_tokens=arguments.max_tokens,
    )
    _choose_best_by(trainer)
    trainer.train(resume_from_checkpoint=training_arguments.resume_from_checkpoint)
    finish(trainer, splits)


def make_loss(written: str) -> Any:
    """A loss from how it is written: "LambdaLoss", or "MSELoss(activation='identity')".

    Raises:
        ConfigurationError: There is no such loss, or it doesn't take these arguments.
    """
    from cross_trainer import losses

    names = [name for name in cross_trainer.__all__ if name.endswith("Loss")]
    try:
        call = ast.parse(written if "(" in written else f"{written}()", mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in names and not call.args:
            options = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
            return getattr(losses, call.func.id)(**options)
    except (SyntaxError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"--loss {written}: {error}. Expected a loss and its options: MSELoss(activation='identity')."
        ) from error
    raise ConfigurationError(
        f"--loss {written}: expected one of {', '.join(names)}, with options by name in parentheses."
    )


def _choose_best_by(trainer: CrossEncoderTrainer) -> None:
    """Let the metric that matters for the data's labels choose the best checkpoint, unless one was asked for."""
    if trainer.args.metric_for_best_model != BY_KIND:
        return
    metric = MAIN_METRICS.get(type(trainer.compute_metrics).__name__, "loss")
    trainer.args.metric_for_best_model = metric
    trainer.args.greater_is_better = metric != "loss"
    if trainer.args.load_best_model_at_end:
        logger.info(
            "The best checkpoint is the one with the %s %s.", "lowest" if metric == "loss" else "highest", metric
        )


def check_columns(
    source: str, rows: Dataset, columns: tuple[str, ...] | None = None, in_batch_negatives: int = 0
) -> None:
    """Find out what is missing in words of the command line.

    Raises:
        DataError: The data set lacks a column that was named, two texts, or a label.
    """
    names, option = rows.column_names, "--text-columns FIRST SECOND --label-column LABEL"
    require_columns(source, names, columns or (), option)
    try:
        found = resolve_columns(rows, columns, in_batch_negatives)
    except DataError as error:
        raise DataError(
            f"{source}: two texts aren't to be found in {len(rows)} rows of {names}. Name them with {option}."
        ) from error
    if found.label is None and not found.grouped:
        raise DataError(f"{source} has no label among the columns {names}. Name it with {option}.")


def measure_model(
    encoder: CrossEncoder,
    rows: Dataset,
    columns: tuple[str, ...] | None = None,
    confidence: float | None = None,
    batch_size: int = 64,
) -> dict[str, float]:
    """Measure a model on labelled rows; the metrics follow from the labels.

    Args:
        encoder: The model.
        rows: Pairs, or lists of documents, with labels.
        columns: The columns of the two texts, and of the label. Default: by their names and types.
        confidence: The level of bootstrap intervals, 0.95 say, in `<metric>_low` and `<metric>_high`. Default: none.
        batch_size: Rows that are scored together.

    Raises:
        DataError: A row can't be evaluated on; the message names it.
    """
    import torch
    from transformers import PrinterCallback, TrainingArguments

    from cross_trainer.collator import PairCollator
    from cross_trainer.trainer import CrossEncoderTrainer

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_eval_batch_size=batch_size,
            report_to="none",
            disable_tqdm=not sys.stderr.isatty(),
            dataloader_pin_memory=torch.accelerator.is_available(),
        )
        collator = PairCollator(encoder.tokenizer, encoder.max_length, columns=columns)
        options: dict[str, Any] = {"args": arguments, "eval_dataset": rows, "data_collator": collator}
        trainer = CrossEncoderTrainer(encoder.model, **options)
        if confidence is not None and trainer.compute_metrics is not None:
            chosen: Any = trainer.compute_metrics
            metrics = dataclasses.replace(chosen, confidence=confidence)
            trainer = CrossEncoderTrainer(encoder.model, **options, compute_metrics=metrics)
        trainer.remove_callback(PrinterCallback)
        measured = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
    return {name: value for name, value in measured.items() if name not in NO_QUALITY}
