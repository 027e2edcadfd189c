"""Measure a model on labelled data: the metrics of its scores, and the loss that training would have.

    measure(CrossEncoder("output"), rows, confidence=0.95)     # {"average_precision": 0.9, ..., "loss": 0.21}

`cross-trainer evaluate` is `evaluate_dataset`, so the messages name the options of the command line.

Shapes: P pairs, C classes, G queries, D documents of the longest list.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from cross_trainer.commands.arguments import name_columns
from cross_trainer.commands.processes import are_several, is_main, on_main
from cross_trainer.commands.score import load_encoder, show_progress, takes_instruction, trained_columns
from cross_trainer.commands.train import check_columns
from cross_trainer.data.columns import INSTRUCTION, NUM_RELEVANT, Rows
from cross_trainer.data.splits import load_split
from cross_trainer.data.tables import Name, check_output, replacing

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import EvalPrediction

    from cross_trainer.scoring.cross_encoder import CrossEncoder
    from cross_trainer.training.plan import Plan


def evaluate_dataset(
    model: str,
    dataset: str,
    split: str = "validation",
    dataset_config: str | None = None,
    *,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    confidence: float | None = None,
    calibration: bool = False,
    output: Name | None = None,
    overwrite: bool = False,
    batch_size: int = 64,
    **options: Any,
) -> None:
    """Print the metrics of a model on a data set, and write them to a file if asked to.

    Args:
        model: A saved classifier: a name on the Hub or a folder.
        dataset: A Hub id, a folder of splits or a file, with labels.
        split: The split to measure on. A file without a column `split` is read whole.
        dataset_config: The configuration of a data set on the Hub.
        text_columns: The columns of the two texts. Default: by their names and types.
        label_column: The column of the label.
        confidence: As for `measure`.
        calibration: As for `measure`.
        output: A JSON file for the metrics; a metric that is undefined becomes null.
        overwrite: Replace `output`.
        batch_size: As for `measure`.
        options: Options of `CrossEncoder`, such as `device` and `max_length`.

    Raises:
        ConfigurationError: The model or the data set isn't there, or `output` exists.
        DataError: A row can't be evaluated on; the message names it.
    """
    if output is not None:
        on_main(lambda: check_output(output, overwrite))
    columns = name_columns(text_columns, label_column)
    rows = load_split(dataset, split, dataset_config, columns)
    instructed = INSTRUCTION in rows.column_names and takes_instruction(model, **options)
    check_columns(dataset, rows, columns, trained_on=trained_columns(model, **options), instructed=instructed)
    values = measure(load_encoder(model, **options), rows, columns, confidence, batch_size, calibration=calibration)
    if not is_main():
        return
    _print_metrics(values, len(rows), confidence)
    if output is not None:
        write_metrics(output, values)


def write_metrics(output: Name, values: Mapping[str, Any]) -> None:
    """Write metrics, and mappings of metrics, as JSON; one that is undefined becomes null."""
    with replacing(output) as path:
        path.write_text(json.dumps(_defined(values), indent=2) + "\n", encoding="utf-8")


def _defined(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values without NaN, which JSON doesn't have."""
    return {
        name: _defined(value) if isinstance(value, Mapping) else None if math.isnan(value) else value
        for name, value in values.items()
    }


def measure(
    encoder: CrossEncoder,
    rows: Rows,
    columns: Sequence[str] | None = None,
    confidence: float | None = None,
    batch_size: int = 64,
    *,
    calibration: bool = False,
) -> dict[str, float]:
    """Measure a model on labelled rows. The labels decide which metrics, as in `CrossEncoderTrainer.evaluate`.

    Args:
        encoder: The model.
        rows: Pairs, or queries with several documents, with labels.
        columns: The columns of the two texts, and of the label. Default: by their names and types.
        confidence: The level of bootstrap intervals `<metric>_low` and `<metric>_high`, such as 0.95. Default: none.
        batch_size: Pairs that are scored together at most.
        calibration: Add those of `calibration_metrics`.

    Returns:
        The metrics, and the `loss` of all rows.

    Raises:
        ConfigurationError: The model has another number of labels than the data.
        DataError: A row can't be evaluated on; the message names it.
    """
    from transformers.modeling_outputs import SequenceClassifierOutput

    from cross_trainer.metrics.calibration import calibration_metrics

    plan = plan_evaluation(encoder, rows, columns)
    metrics, loss = plan.for_dataset(rows).metrics, plan.loss
    assert loss is not None  # as there are labels
    measures = [each for each in (metrics, calibration_metrics() if calibration else None) if each is not None]
    if confidence is not None:
        measures = [dataclasses.replace(each, confidence=confidence) for each in measures]  # type: ignore[type-var]
    found = score_labelled(encoder, rows, plan, batch_size)
    values = [measure(found.evaluation) for measure in measures]
    return {
        **{name: value for each in values for name, value in each.items()},
        "loss": loss(SequenceClassifierOutput(logits=found.logits), found.labels).item(),
    }


@dataclass(frozen=True)
class Scored:
    """Labelled rows and what a model makes of them.

    Attributes:
        logits: [P, C]; [G, D] for lists, padded with -100.
        labels: [P] or [P, C]; [G, D] for lists, padded with -100.
        num_relevant: Each query's number of relevant documents [G], where the data has that column.
    """

    logits: Tensor
    labels: Tensor
    num_relevant: Tensor | None

    @property
    def evaluation(self) -> EvalPrediction:
        """What metrics read."""
        from transformers import EvalPrediction

        labels, counts = self.labels.numpy(), self.num_relevant
        references: Any = labels if counts is None else (labels, counts.numpy())
        return EvalPrediction(self.logits.numpy(), references)


def plan_evaluation(encoder: CrossEncoder, rows: Rows, columns: Sequence[str] | None = None) -> Plan:
    """What a model is measured by on labelled rows, all of which are checked.

    Raises:
        ConfigurationError: The model has another number of labels than the data.
        DataError: A row can't be evaluated on; the message names it.
    """
    from cross_trainer.data.collator import PairCollator
    from cross_trainer.training.plan import make_plan

    collator = PairCollator(encoder.tokenizer, **encoder.reading, columns=columns)
    return make_plan(encoder.model, None, rows, collator, padding_free=False)


def score_labelled(encoder: CrossEncoder, rows: Rows, plan: Plan, batch_size: int = 64) -> Scored:
    """Score labelled rows; of several processes, each its share.

    Args:
        encoder: The model.
        rows: The data set.
        plan: From `plan_evaluation`.
        batch_size: Pairs that are scored together at most.

    Raises:
        DataError: Rows hold tokens, or no label.
    """
    import numpy as np
    import torch

    from cross_trainer.data.labelled import LabelledPairs
    from cross_trainer.training.losses import to_grid

    columns = plan.for_dataset(rows).columns
    pairs = LabelledPairs(rows, columns)
    windows = encoder.score_windows(pairs, batch_size=batch_size, activation="logits", distributed=are_several())
    logits = torch.from_numpy(np.concatenate(list(show_progress(windows))))
    targets = pairs.targets()
    labels = targets["labels"]
    return Scored(to_grid(logits, labels) if columns.grouped else logits, labels, targets.get(NUM_RELEVANT))


def _print_metrics(values: Mapping[str, float], rows: int, confidence: float | None) -> None:
    bounds = ("_low", "_high")
    heading = "" if confidence is None else f"   {100 * confidence:g} % interval"
    typer.echo(f"{'metric':<28} {'value':>9}{heading}")
    for name, value in values.items():
        if name.endswith(bounds) and name.rsplit("_", 1)[0] in values:
            continue
        interval = [values[name + bound] for bound in bounds if name + bound in values]
        typer.echo(f"{name:<28} {value:>9.4f}" + (f"   [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else ""))
    typer.echo(f"{'rows':<28} {rows:>9}")
