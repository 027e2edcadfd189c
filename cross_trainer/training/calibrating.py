"""Rows to a calibrated model: what `CrossEncoderTrainer.calibrate` and `CrossEncoder.calibrate` have in common.

Shapes: P pairs, C classes, G queries, D documents of the longest list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import EvalPrediction

from cross_trainer.data.collator import PairCollator
from cross_trainer.data.columns import IGNORED_LABEL, Columns, Rows, is_stream, iterate
from cross_trainer.data.fingerprints import Fingerprints, check_unseen
from cross_trainer.data.labelled import LabelledPairs
from cross_trainer.data.pairs import Pair
from cross_trainer.metrics.calibration import KEYS, calibration_metrics
from cross_trainer.metrics.pairs import binary_metrics
from cross_trainer.saved.calibration import Calibration, calibrate, check_labels, check_threshold
from cross_trainer.training.losses import MSELoss, to_grid
from cross_trainer.training.plan import make_plan

CrossEncoder: TypeAlias = Any  # of `cross_encoder.py`, which imports this module
Array: TypeAlias = NDArray[Any]

DECISIONS = ("accuracy", "f1", "precision", "recall")
"""What decisions at 0.5 are measured by."""

RESAMPLES = 1000  # draws of the bootstrap


def calibrate_on(
    model: Any,
    rows: Rows,
    columns: Columns,
    known: Fingerprints,
    predict: Callable[[list[Pair], Tensor], tuple[Array, Array]],
    threshold: str | None = None,
    relevance_threshold: float | None = None,
    confidence: float | None = None,
) -> Calibration:
    """Calibrate a model on labelled rows, and measure it on them before and after.

    Args:
        model: The classifier, changed in place.
        rows: A mapped data set of texts.
        columns: What its columns are for.
        known: Fingerprints of the pairs that the model was trained on.
        predict: Gives logits [P, C] or [G, D] of pairs, and labels; called with all pairs and their labels.
        threshold: As in `calibrate`.
        relevance_threshold: As in `calibrate`.
        confidence: The level of bootstrap intervals. Default: none.

    Raises:
        UnsupportedModelError, ConfigurationError: As in `calibrate`.
        DataError: As in `calibrate`; a row can't be read, or a notable share was trained on.
    """
    check_threshold(threshold)  # before a row is read
    source = LabelledPairs(rows, columns)
    pairs = list(source)
    labels = source.targets()["labels"]
    if columns.label is not None:  # else there may be negatives to come
        check_labels(model, labels, threshold, relevance_threshold)
    check_unseen(rows, columns, known)
    logits, references = predict(pairs, labels)
    found = calibrate(model, logits, references, threshold, relevance_threshold=relevance_threshold)
    return _measured(found, logits, references, relevance_threshold, confidence)


def calibrate_scores(
    encoder: CrossEncoder,
    rows: Rows,
    columns: Sequence[str] | None = None,
    batch_size: int | None = None,
    threshold: str | None = None,
    relevance_threshold: float | None = None,
    confidence: float | None = None,
) -> Calibration:
    """Calibrate an encoder's model in place; see `CrossEncoder.calibrate`."""
    rows = list(iterate(rows)) if is_stream(rows) else rows
    collator = PairCollator(encoder.tokenizer, **encoder.reading, columns=columns)
    graded = None if relevance_threshold is None else MSELoss(activation="identity")  # takes any number
    loss = graded if encoder.num_labels == 1 else None
    plan = make_plan(encoder.model, None, rows, collator, compute_loss_func=loss, padding_free=False)
    columns_found = plan.for_dataset(rows).columns

    def predict(pairs: list[Pair], labels: Tensor) -> tuple[Array, Array]:
        logits = torch.from_numpy(encoder.predict(pairs, batch_size, activation="logits"))
        return (to_grid(logits, labels) if columns_found.grouped else logits).numpy(), labels.numpy()

    return calibrate_on(
        *(encoder.model, rows, columns_found, encoder.trained_rows(), predict),
        *(threshold, relevance_threshold, confidence),
    )


def _measured(
    found: Calibration,
    logits: Array,
    labels: Array,
    relevance_threshold: float | None,
    confidence: float | None,
) -> Calibration:
    """A calibration with its figures on the rows that it was fitted on."""
    if relevance_threshold is not None:
        labels = np.where(labels == IGNORED_LABEL, labels, labels >= relevance_threshold)
    metrics: list[Callable[..., dict[str, float]]] = [calibration_metrics(confidence=confidence, resamples=RESAMPLES)]
    if found.activation == "sigmoid" and np.isin(labels, (0, 1, IGNORED_LABEL)).all():
        metrics.append(binary_metrics(0.5, confidence=confidence, resamples=RESAMPLES))
    before, calibrated, after = (
        _chosen({key: value for metric in metrics for key, value in metric(EvalPrediction(each, labels)).items()})
        for each in (logits, found.before_threshold(logits), found(logits))
    )
    return dataclasses.replace(found, before=before, calibrated=calibrated, after=after)


def _chosen(values: Mapping[str, float]) -> dict[str, float]:
    """The figures of calibration, and those of decisions at 0.5."""
    names = (*KEYS, *(f"{name}@0.5" for name in DECISIONS))
    return {key: value for key, value in values.items() if key.removesuffix("_low").removesuffix("_high") in names}
