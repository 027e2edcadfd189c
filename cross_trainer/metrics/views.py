"""What an evaluation shows of a model: its figures, the error of each row, and what two models are compared by.

    first, second = (view(metrics, EvalPrediction(logits, labels)) for logits in (a, b))
    compare_views(first, second)["accuracy@0.5"].comparison     # Comparison(difference=0.02, ..., p_value=0.03, n=600)

P pairs, G groups (queries), D documents of the largest group, C classes or labels, R rows: pairs, or queries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy.special import expit, log_softmax
from scipy.stats import rankdata

from cross_trainer.errors import ConfigurationError, DataError
from cross_trainer.metrics.calibration import calibration_metrics
from cross_trainer.metrics.figures import (
    binary_figures,
    class_figures,
    label_figures,
    line,
    number_figures,
    ranking_figures,
)
from cross_trainer.metrics.pairs import (
    BinaryMetrics,
    CorrelationMetrics,
    MulticlassMetrics,
    MultilabelMetrics,
    _Cuts,
    correlation_metrics,
)
from cross_trainer.metrics.rankings import Comparison, RankingMetrics, compare, compare_statistic
from cross_trainer.metrics.report import IGNORED, Evaluation, Floats, Indices, activate, not_finite, one_score, read

Kind: TypeAlias = Literal["binary", "classes", "labels", "numbers", "ranking"]
Statistic: TypeAlias = Callable[[Floats, Indices], float]

DRAWN_ROWS = 20_000_000  # rows that a bootstrap of all metrics may read: fewer draws for more rows
SIGNED_ROWS = 100_000_000  # rows whose difference a permutation test may turn round
SWAPPED_ROWS = 100_000  # the most rows for tests of metrics that are no mean, which take minutes beyond
CUTOFF = "ndcg@10"  # by which queries are ordered


@dataclass(frozen=True)
class View:
    """What there is to show of a model on a data set.

    Attributes:
        kind: What labels are.
        metrics: Figures of all rows, with intervals.
        figures: What pictures are drawn from; see `figures.py`.
        errors: How wrong each row is [R].
        columns: By the name of a column, what a row's error consists of.
        places: The row of the data set, and the document in it, of each row [R, 2].
        by_row: Values of each row whose mean is a metric, by its key [R].
        by_set: Metrics that are no mean: what is swapped between models, their values [R], and the metric of them.
        ranks: A query's documents, best first; for rankings alone.
    """

    kind: Kind
    metrics: dict[str, float]
    figures: dict[str, Any]
    errors: Floats
    columns: dict[str, Callable[[int], Any]]
    places: Indices
    by_row: dict[str, Floats]
    by_set: dict[str, tuple[str, Floats, Statistic]] = dataclasses.field(default_factory=dict)
    ranks: Callable[[int], list[dict[str, Any]]] | None = None


@dataclass(frozen=True)
class Tested:
    """How two models differ in a metric, and what was exchanged between them to tell it from chance."""

    comparison: Comparison
    exchanged: str


def view(metrics: Any, evaluation: Evaluation, confidence: float | None = None) -> View:
    """What there is to show of an evaluation.

        >>> from transformers import EvalPrediction
        >>> from cross_trainer.metrics.pairs import binary_metrics
        >>> found = view(binary_metrics(), EvalPrediction(np.array([[2.0], [1.0], [-1.0]]), np.array([1, 0, 0])))
        >>> found.kind, found.errors.round(2).tolist(), round(found.metrics["accuracy@0.5"], 2)
        ('binary', [0.12, 0.73, 0.27], 0.67)

    Args:
        metrics: What fits the labels, such as `binary_metrics()`. None compares numbers with `correlation_metrics()`.
        evaluation: Logits and labels, all of them labelled but for lists and several labels at once.
        confidence: Level of the intervals. Above 20,000 rows they come from fewer than a thousand draws, at least 99.

    Raises:
        ConfigurationError: There is no view of such metrics.
        DataError: There are no rows, or logits are NaN or infinite.
    """
    metrics = correlation_metrics() if metrics is None else metrics
    draw = _VIEWS.get(type(metrics))
    if draw is None:
        raise ConfigurationError(
            f"There is nothing to show of {type(metrics).__name__}: leave the metrics to the labels."
        )
    logits, labels = read(evaluation)
    if not labels.size:
        raise DataError("The data set has no rows, so there is nothing to show.")
    if broken := not_finite(logits):
        raise DataError(f"{broken[0]}, so there is nothing to show. Train the model again, or score in float32.")
    return draw(metrics, evaluation, {"confidence": confidence, "resamples": draws(len(labels))})


def draws(rows: int) -> int:
    """How often a bootstrap draws that many rows.

    >>> draws(600), draws(1_000_000)
    (999, 99)
    """
    return int(np.clip(DRAWN_ROWS // max(rows, 1), 99, 999))


def compare_views(first: View, second: View, confidence: float = 0.95) -> dict[str, Tested]:
    """Whether two models differ by more than chance, metric by metric.

    Means over rows are compared by `compare`, which exchanges the two values of a row; other metrics by
    `compare_statistic`, which exchanges the ranks, scores or decisions that they follow from.

    Args:
        first: One model.
        second: The other, on the same rows.
        confidence: Level of the intervals.

    Returns:
        By the metric's key. Metrics that follow from others, or of one class alone, aren't tested, and of more than
            `SWAPPED_ROWS` rows only means are.

    Raises:
        ConfigurationError: The models are measured by different metrics.
    """
    if first.kind != second.kind or first.errors.shape != second.errors.shape:
        raise ConfigurationError(
            f"Labels are {first.kind} for one model and {second.kind} for the other, which have no figure in common."
        )
    rows = len(first.errors)
    signs = int(np.clip(SIGNED_ROWS // rows, 199, 9999))
    found = {
        key: Tested(compare(values, second.by_row[key], confidence, signs), "values of a row")
        for key, values in first.by_row.items()
    }
    for key, (exchanged, values, statistic) in first.by_set.items() if rows <= SWAPPED_ROWS else ():
        swapped = compare_statistic(statistic, values, second.by_set[key][1], confidence, draws(rows))
        found[key] = Tested(swapped, exchanged)
    return found


def _binary(metrics: Any, evaluation: Evaluation, interval: dict[str, Any]) -> View:
    logits, labels = one_score(*read(evaluation), metrics, two_classes=True)
    scores, positive = activate(logits, metrics.activation), labels == 1
    decided = scores >= 0.5

    def of_ranks(name: str) -> Statistic:
        def measure(values: Floats, rows: Indices) -> float:
            true = positive[rows]
            return float(getattr(_Cuts.of(values, true), name)()) if true.any() and not true.all() else np.nan

        return measure

    def f1(values: Floats, rows: Indices) -> float:
        both = values.sum() + positive[rows].sum()
        return float(2 * (values * positive[rows]).sum() / both) if positive[rows].any() else np.nan

    ranks = rankdata(logits)
    by_set = {name: ("ranks", ranks, of_ranks(name)) for name in ("average_precision", "roc_auc")}
    by_set["f1@0.5"] = ("decisions", decided.astype(np.float64), f1)
    return View(
        "binary",
        _measured(dataclasses.replace(metrics, threshold=0.5), evaluation, interval, calibration=True),
        binary_figures(scores, positive),
        np.abs(labels - scores),
        {"score": lambda row: float(scores[row]), "distance": lambda row: float(abs(labels[row] - scores[row]))},
        _rows(len(scores)),
        {
            "accuracy@0.5": (decided == positive).astype(np.float64),
            "brier": (labels - scores) ** 2,
            "log_loss": np.logaddexp(0, np.where(positive, -logits, logits)),
        },
        by_set if positive.any() and not positive.all() else {},
    )


def _classes(metrics: Any, evaluation: Evaluation, interval: dict[str, Any]) -> View:
    logits, labels = read(evaluation)
    classes = labels.reshape(-1).astype(np.int64)
    logs = log_softmax(logits, axis=1)
    chances, chosen, true = np.exp(logs), logits.argmax(axis=1), np.arange(len(logits))
    names = metrics.names or tuple(map(str, range(logits.shape[1])))

    def f1(values: Floats, rows: Indices) -> float:
        counts = [np.bincount(each.astype(np.int64), minlength=len(names)) for each in (values, classes[rows])]
        hits = np.bincount(classes[rows][values == classes[rows]], minlength=len(names))
        occurring = counts[0] + counts[1] > 0
        return float((2 * hits[occurring] / (counts[0] + counts[1])[occurring]).mean())

    right = chances[true, classes]
    return View(
        "classes",
        _measured(metrics, evaluation, interval, calibration=True),
        class_figures(chances, classes, names),
        1 - right,
        {
            "predicted": lambda row: names[chosen[row]],
            "probability of the label": lambda row: float(right[row]),
        },
        _rows(len(logits)),
        {
            "accuracy": (chosen == classes).astype(np.float64),
            "brier": ((chances - np.eye(len(names))[classes]) ** 2).sum(axis=1),
            "log_loss": -logs[true, classes],
        },
        {"f1_macro": ("decisions", chosen.astype(np.float64), f1)},
    )


def _labels(metrics: Any, evaluation: Evaluation, interval: dict[str, Any]) -> View:
    logits, labels = read(evaluation)
    chances, known = np.asarray(expit(logits)), labels != IGNORED
    names = metrics.names or tuple(map(str, range(logits.shape[1])))
    distance = np.where(known, np.abs(labels - chances), 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    wrong = ((chances >= 0.5) != (labels == 1)) & known
    asked = known.any(axis=1)
    return View(
        "labels",
        _measured(metrics, evaluation, interval),
        label_figures(chances, labels, names),
        np.where(asked, distance, -1),
        {
            "predicted": lambda row: ", ".join(name for name, p in zip(names, chances[row], strict=True) if p >= 0.5),
            "mean distance": lambda row: float(distance[row]),
        },
        _rows(len(logits)),
        {
            "subset_accuracy": np.where(asked, ~wrong.any(axis=1), np.nan),
            **(
                {"hamming_loss": wrong.mean(axis=1)} if known.all() else {}
            ),  # else a mean over decisions, not over rows
        },
    )


def _numbers(metrics: Any, evaluation: Evaluation, interval: dict[str, Any]) -> View:
    logits, grid = read(evaluation)
    places = np.argwhere(grid != IGNORED) if grid.ndim == 2 and grid.shape[1] > 1 else _rows(len(grid))
    logits, labels = one_score(logits, grid, metrics)
    scores = activate(logits, metrics.activation)
    slope, intercept = line(scores, labels)
    distance = np.abs(labels - (slope * scores + intercept))
    ranked = rankdata(labels)

    def correlation(targets: Floats) -> Statistic:
        def measure(values: Floats, rows: Indices) -> float:
            one, other = values - values.mean(), targets[rows] - targets[rows].mean()
            spread = np.sqrt((one @ one) * (other @ other))
            return float(one @ other / spread) if spread > 0 else np.nan

        return measure

    unit = (scores - scores.mean()) / (scores.std() or 1)
    varied = bool(np.ptp(labels) > 0)
    return View(
        "numbers",
        {**_measured(metrics, evaluation, interval), "distance_from_line": float(distance.mean())},
        number_figures(scores, labels),
        distance,
        {"score": lambda row: float(scores[row]), "distance": lambda row: float(distance[row])},
        places,
        {"distance_from_line": distance},
        {
            "pearson": ("standardised scores", unit, correlation(labels)),
            "spearman": ("ranks", rankdata(scores), correlation(ranked)),
        }
        if varied
        else {},
    )


def _ranking(metrics: Any, evaluation: Evaluation, interval: dict[str, Any]) -> View:
    scores, grades = read(evaluation)
    ids = evaluation.label_ids
    values = metrics.per_query(scores, grades, ids[1] if isinstance(ids, tuple) else None)
    quality, asked = values[CUTOFF], (grades != IGNORED).any(axis=1)
    relevant = ((grades != IGNORED) & (grades >= metrics.relevance_threshold)).sum(axis=1)

    def ranks(row: int) -> list[dict[str, Any]]:
        order = [index for index in np.argsort(-scores[row], kind="stable") if grades[row, index] != IGNORED]
        return [
            {"document": int(index), "score": float(scores[row, index]), "grade": float(grades[row, index])}
            for index in order
        ]

    return View(
        "ranking",
        _measured(metrics, evaluation, interval),
        ranking_figures(quality[asked]),
        np.where(asked, 1 - np.nan_to_num(quality) + 1e-6 * (relevant > 0), -1),  # without a relevant document: later
        {CUTOFF: lambda row: float(quality[row])},
        _rows(len(scores)),
        values,
        ranks=ranks,
    )


_VIEWS: dict[type, Callable[[Any, Evaluation, dict[str, Any]], View]] = {
    BinaryMetrics: _binary,
    MulticlassMetrics: _classes,
    MultilabelMetrics: _labels,
    CorrelationMetrics: _numbers,
    RankingMetrics: _ranking,
}


def _measured(
    metrics: Any, evaluation: Evaluation, interval: dict[str, Any], calibration: bool = False
) -> dict[str, float]:
    """All metrics of all rows, with intervals, those of calibration if wanted."""
    measures = [dataclasses.replace(metrics, **interval)]
    if calibration:
        measures.append(calibration_metrics(**interval))
    return {key: value for each in measures for key, value in each(evaluation).items()}


def _rows(count: int) -> Indices:
    return np.stack([np.arange(count), np.zeros(count, dtype=np.int64)], axis=1)
