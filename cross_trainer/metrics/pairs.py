"""Metrics for pairs and classes, each a `compute_metrics` of any `transformers.Trainer`.

A factory returns a small immutable callable, which `repr` describes in full. It takes an `EvalPrediction`, or any
object with arrays `predictions` and `label_ids`, and returns plain floats:

    compute_metrics=binary_metrics(confidence=0.95)        # {"accuracy": 0.81, ..., "accuracy_low": 0.79, ...}

P pairs, G groups (queries), D documents of the largest group, C classes or labels, U distinct scores.

All metrics of this room have in common:

- `predictions` are raw logits. If the model returns a tuple, its first entry is used; the same goes for `label_ids`.
- Entries labelled -100, the Trainer's padding, are ignored.
- What a set leaves undefined (no rows, only one class, constant scores, NaN scores) is NaN, and one warning says why.
- `confidence=0.95` adds `<key>_low` and `<key>_high`: a percentile bootstrap over the rows (over the queries for
  rankings) with `resamples` draws from a fixed `seed`. Resamples that leave a metric undefined don't count for it. The
  percentile method is used because BCa would need one more evaluation per row.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cross_trainer.errors import ConfigurationError, DataError
from cross_trainer.metrics.report import (
    IGNORED,
    Evaluation,
    Floats,
    Indices,
    Measured,
    MetricActivation,
    activate,
    check_options,
    class_numbers,
    divide,
    misshaped,
    not_finite,
    one_score,
    read,
    report,
)


@dataclass(frozen=True)
class CorrelationMetrics:
    """See `correlation_metrics`, which makes it."""

    activation: MetricActivation = "identity"
    confidence: float | None = None
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_options(self, activation=self.activation)

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        """Pearson, Spearman and Kendall of logits [P], [P, 1] or [G, D] against labels of as many entries."""
        logits, labels = one_score(*read(evaluation), self)
        scores = activate(logits, self.activation)
        return report(self, lambda rows: _correlations(scores[rows], labels[rows]), len(labels))


def correlation_metrics(
    activation: MetricActivation = "identity", confidence: float | None = None, resamples: int = 1000, seed: int = 0
) -> CorrelationMetrics:
    """How well scores follow graded labels: keys `pearson`, `spearman`, `kendall` (tau-b), each in [-1, 1].

        >>> from transformers import EvalPrediction
        >>> logits, labels = np.array([0.1, 0.4, 0.2, 0.9]), np.array([0.0, 0.6, 0.4, 1.0])
        >>> {key: round(value, 4) for key, value in correlation_metrics()(EvalPrediction(logits, labels)).items()}
        {'pearson': 0.9448, 'spearman': 1.0, 'kendall': 1.0}

    Takes logits [P], [P, 1] or [G, D] and the same number of float labels, of any range.

    Args:
        activation: "sigmoid" correlates probabilities instead of logits. This only changes `pearson`: ranks stay.
        confidence: Level of the bootstrap intervals, between 0 and 1; None for no intervals.
        resamples: Number of bootstrap draws.
        seed: Seed of the bootstrap.

    Raises:
        ConfigurationError: An argument is out of its range; in a call, the shapes don't match.
        DataError: In a call, a label isn't finite.
    """
    return CorrelationMetrics(activation, confidence, resamples, seed)


def _correlations(scores: Floats, labels: Floats) -> Measured:
    reasons = _degenerate(scores)
    if not reasons and np.ptp(labels) == 0:
        reasons = [f"all {len(labels)} labels are {labels[0]:g}"]
    if reasons:
        return dict.fromkeys(("pearson", "spearman", "kendall"), np.nan), reasons
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nearly constant scores: the value stands, to fewer digits
        return {
            "pearson": float(stats.pearsonr(scores, labels).statistic),
            "spearman": float(stats.spearmanr(scores, labels).statistic),
            # The exact p-value would take longer than the correlation, and isn't used; the other needs three rows.
            "kendall": float(
                stats.kendalltau(scores, labels, method="asymptotic" if len(labels) > 2 else "auto").statistic
            ),
        }, []


@dataclass(frozen=True)
class BinaryMetrics:
    """See `binary_metrics`, which makes it."""

    threshold: float | None = None
    activation: MetricActivation = "sigmoid"
    confidence: float | None = None
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_options(self, activation=self.activation, threshold=self.threshold)

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        """All metrics of logits [P], [P, 1], [P, 2] or [G, D] against labels 0 and 1."""
        logits, labels = one_score(*read(evaluation), self, two_classes=True)
        wrong = np.flatnonzero((labels != 0) & (labels != 1))
        if wrong.size:
            raise DataError(
                f"the label at row {wrong[0]} is {labels[wrong[0]]:g}; binary_metrics takes labels 0 and 1: "
                "turn grades into 0 and 1 first, or use correlation_metrics()"
            )
        scores, positive = activate(logits, self.activation), labels == 1
        return report(self, lambda rows: self._measure(logits[rows], scores[rows], positive[rows]), len(labels))

    def _measure(self, logits: Floats, scores: Floats, positive: NDArray[np.bool_]) -> Measured:
        values, reasons = _threshold_free(logits, scores, positive)
        if self.threshold is not None:
            values |= _at_threshold(scores, positive, self.threshold)
        return values, reasons


def binary_metrics(
    threshold: float | None = None,
    activation: MetricActivation = "sigmoid",
    confidence: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> BinaryMetrics:
    """How well one score separates positive from negative pairs.

        >>> from transformers import EvalPrediction
        >>> logits, labels = np.array([2.0, 1.0, -1.0, -2.0]), np.array([1, 0, 1, 0])
        >>> values = binary_metrics(threshold=0.5)(EvalPrediction(logits, labels))
        >>> {key: round(value, 4) for key, value in values.items()}
        {'accuracy': 0.75, 'accuracy_threshold': 0.8059, 'f1': 0.8, 'f1_threshold': 0.1941, 'precision': 0.6667,
         'recall': 1.0, 'mcc': 0.5774, 'average_precision': 0.8333, 'roc_auc': 0.75, 'accuracy@0.5': 0.5, 'f1@0.5': 0.5,
         'precision@0.5': 0.5, 'recall@0.5': 0.5}

    Takes logits [P], [P, 1] or [G, D], or [P, 2] from a two-class model, whose difference is used: its sigmoid is
    softmax's probability of class 1. Labels are 0 and 1.

    Keys:
        accuracy, accuracy_threshold: the highest accuracy of any threshold on this set, and that threshold.
        f1, f1_threshold: the same for F1.
        precision, recall, mcc: at `f1_threshold`. mcc, Matthews' correlation, is 0 if all predictions are the same.
        average_precision: sum over recall steps of the precision at each (Buckley and Voorhees 2000), not interpolated.
        roc_auc: probability that a positive scores higher than a negative, where ties count half.
        accuracy@t, f1@t, precision@t, recall@t: at the given threshold t. Unlike the best thresholds, it isn't fitted
            to the set that it is measured on.

    A threshold is in units of the activated score, and a pair is predicted positive if its score >= threshold, so the
    reported threshold reproduces the reported value exactly. It lies midway between neighbouring scores, equal scores
    are never split, and the highest of equally good thresholds is used.

    Args:
        threshold: A threshold chosen beforehand, to be measured as well.
        activation: What turns a logit into a score. Computed in float64, where sigmoid only reaches 1.0 above 36.
        confidence: Level of the bootstrap intervals, between 0 and 1; None for no intervals. Each resample finds its
            own best thresholds.
        resamples: Number of bootstrap draws.
        seed: Seed of the bootstrap.

    Raises:
        ConfigurationError: An argument is out of its range; in a call, the shapes don't match.
        DataError: In a call, a label is neither 0 nor 1.
    """
    return BinaryMetrics(threshold, activation, confidence, resamples, seed)


def _threshold_free(logits: Floats, scores: Floats, positive: NDArray[np.bool_]) -> Measured:
    """Everything that needs no given threshold. Ranks are by logit, since logits tie less often than scores."""
    keys = ("accuracy", "accuracy_threshold", "f1", "f1_threshold", "precision", "recall", "mcc")
    reasons = _degenerate(logits)
    if not reasons and positive.all() | ~positive.any():
        reasons = [f"all {len(positive)} labels are {int(positive[0])}"]
    if reasons:
        return dict.fromkeys((*keys, "average_precision", "roc_auc"), np.nan), reasons
    cuts = _Cuts.of(scores, positive)
    accuracy, f1 = cuts.accuracy(), cuts.f1()
    most, best = int(accuracy.argmax()), int(f1.argmax())
    chosen = (accuracy[most], cuts.threshold[most], f1[best], cuts.threshold[best])
    values = dict(zip(keys, (*chosen, cuts.precision()[best], cuts.recall()[best], cuts.mcc()[best]), strict=True))
    by_logit = _Cuts.of(logits, positive)
    values |= {"average_precision": by_logit.average_precision(), "roc_auc": by_logit.roc_auc()}
    return {key: float(value) for key, value in values.items()}, []


def _at_threshold(scores: Floats, positive: NDArray[np.bool_], threshold: float) -> dict[str, float]:
    """Accuracy, and F1, precision and recall, which are undefined if no pair is positive."""
    predicted = scores >= threshold
    hits = int((predicted & positive).sum())
    f1, precision, recall = np.nan, np.nan, np.nan
    if positive.any() and not np.isnan(scores).any():
        f1 = 2 * hits / (predicted.sum() + positive.sum())
        precision = hits / max(int(predicted.sum()), 1)
        recall = hits / positive.sum()
    known = positive.size and not np.isnan(scores).any()
    accuracy = (predicted == positive).mean() if known else np.nan
    values = {"accuracy": accuracy, "f1": f1, "precision": precision, "recall": recall}
    return {f"{key}@{threshold:g}": float(value) for key, value in values.items()}


@dataclass(frozen=True)
class _Cuts:
    """Counts for each way to split pairs by score, from "none is positive" to "all are": U + 1 entries each.

    One sort serves F1, accuracy, MCC, average precision and ROC AUC. scikit-learn, the tests' oracle, takes a hundred
    times as long for them: mostly checks of its input, which a bootstrap repeats a thousand times.
    """

    threshold: Floats
    hits: Floats
    predicted: Floats
    rows: int

    @classmethod
    def of(cls, scores: Floats, positive: NDArray[np.bool_]) -> _Cuts:
        """Counts for scores [P], at least one and none NaN, and positive [P]."""
        order = np.argsort(-scores)
        ranked = scores[order]
        last = np.append(np.flatnonzero(ranked[1:] < ranked[:-1]), len(ranked) - 1)  # of each run of equal scores
        upper, lower = ranked[last[:-1]], ranked[last[:-1] + 1]
        middle = upper / 2 + lower / 2
        middle = np.where((lower < middle) & (middle <= upper), middle, upper)  # neighbours in floating point
        threshold = np.concatenate(([np.nextafter(ranked[0], np.inf)], middle, ranked[-1:]))
        hits = np.cumsum(positive[order], dtype=np.float64)[last]
        return cls(threshold, np.append(0.0, hits), np.append(0.0, last + 1.0), len(scores))

    def accuracy(self) -> Floats:
        right: Floats = 2 * self.hits - self.predicted - self.hits[-1] + self.rows
        return right / self.rows

    def f1(self) -> Floats:
        both: Floats = self.predicted + self.hits[-1]
        return 2 * self.hits / both

    def precision(self) -> Floats:
        return self.hits / np.maximum(self.predicted, 1.0)

    def recall(self) -> Floats:
        positives: np.float64 = self.hits[-1]
        return self.hits / positives

    def mcc(self) -> Floats:
        predicted, positives, rows = self.predicted, self.hits[-1], self.rows
        spread: Floats = predicted * (rows - predicted) * positives * (rows - positives)
        above_chance: Floats = self.hits * rows - predicted * positives
        return above_chance / np.sqrt(np.where(spread == 0, np.inf, spread))

    def average_precision(self) -> float:
        return float(np.sum(np.diff(self.recall()) * self.precision()[1:]))

    def roc_auc(self) -> float:
        false = self.predicted - self.hits
        area = np.sum(np.diff(false) * (self.hits[1:] + self.hits[:-1]) / 2)
        return float(area / (false[-1] * self.hits[-1]))


# --- classes
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MulticlassMetrics:
    """See `multiclass_metrics`, which makes it."""

    names: tuple[str, ...] | None = None
    confidence: float | None = None
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_options(self, names=self.names, reserved=("macro", "micro", "weighted"))

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        """All metrics of logits [P, C] against class numbers [P]."""
        logits, labels = read(evaluation)
        labels = labels.reshape(-1) if labels.shape == (len(logits), 1) else labels
        if logits.ndim != 2 or logits.shape[1] < 2 or labels.shape != logits.shape[:1]:
            raise misshaped(self, logits, labels, "logits [P, C] of at least two classes and labels [P]")
        names = _names(self.names, logits.shape[1])
        keep, true = class_numbers(labels, len(names))
        logits = logits[keep]
        chosen = logits.argmax(axis=1)
        broken = not_finite(logits)
        return report(self, lambda rows: _classification(true[rows], chosen[rows], names, broken), len(true))


def multiclass_metrics(
    names: Iterable[str] | None = None, confidence: float | None = None, resamples: int = 1000, seed: int = 0
) -> MulticlassMetrics:
    """How often the class of the highest logit is the right one. Takes logits [P, C] and class numbers [P].

        >>> from transformers import EvalPrediction
        >>> logits, labels = np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 3.0, 1.0]]), np.array([0, 1, 2])
        >>> values = multiclass_metrics(["no", "maybe", "yes"])(EvalPrediction(logits, labels))
        >>> {key: round(value, 4) for key, value in values.items()}
        {'accuracy': 0.6667, 'f1_macro': 0.5556, 'f1_micro': 0.6667, 'f1_weighted': 0.5556, 'f1_no': 1.0,
         'f1_maybe': 0.6667, 'f1_yes': 0.0, 'mcc': 0.6124}

    Keys: `accuracy`, `f1_macro`, `f1_micro` (equal to accuracy), `f1_weighted` (by the frequency of each class),
    `f1_<name>` for each class, and `mcc`, Matthews' correlation for several classes (Gorodkin 2004), 0 if all
    predictions are the same.

    A class that neither occurs nor is predicted has no F1: it is NaN, and `f1_macro` is the mean of the others. If only
    one class occurs, `mcc` is NaN.

    Args:
        names: Names of the classes in the order of the logits; by default their numbers.
        confidence: Level of the bootstrap intervals, between 0 and 1; None for no intervals.
        resamples: Number of bootstrap draws.
        seed: Seed of the bootstrap.

    Raises:
        ConfigurationError: An argument is out of its range; in a call, the shapes or the number of names don't match.
        DataError: In a call, a label isn't the number of a class.
    """
    return MulticlassMetrics(None if names is None else tuple(names), confidence, resamples, seed)


def _classification(true: Indices, chosen: Indices, names: tuple[str, ...], reasons: list[str]) -> Measured:
    classes = len(names)
    if reasons or not true.size:
        keys = ("accuracy", "f1_macro", "f1_micro", "f1_weighted", *(f"f1_{name}" for name in names), "mcc")
        return dict.fromkeys(keys, np.nan), reasons or ["there are no labelled rows"]
    confusion = np.bincount(true * classes + chosen, minlength=classes**2).reshape(classes, classes).astype(np.float64)
    occurs, predicted, hits = confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal()
    accuracy = hits.sum() / len(true)
    by_class = divide(2 * hits, occurs + predicted)
    values = {
        "accuracy": accuracy,
        "f1_macro": np.nanmean(by_class),
        "f1_micro": accuracy,
        "f1_weighted": np.average(by_class[occurs > 0], weights=occurs[occurs > 0]),
        **{f"f1_{name}": value for name, value in zip(names, by_class, strict=True)},
    }
    spread = np.sqrt((len(true) ** 2 - occurs @ occurs) * (len(true) ** 2 - predicted @ predicted))
    values["mcc"] = (hits.sum() * len(true) - occurs @ predicted) / spread if spread else 0.0
    absent = [name for name, value in zip(names, by_class, strict=True) if np.isnan(value)]
    reasons = [f"no label and no prediction is of class {', '.join(absent)}"] if absent else []
    if occurs.max() == len(true):
        values["mcc"] = np.nan
        reasons.append(f"all {len(true)} labels are of class {names[occurs.argmax()]}")
    return {key: float(value) for key, value in values.items()}, reasons


@dataclass(frozen=True)
class MultilabelMetrics:
    """See `multilabel_metrics`, which makes it."""

    threshold: float = 0.5
    names: tuple[str, ...] | None = None
    activation: MetricActivation = "sigmoid"
    confidence: float | None = None
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_options(
            self,
            activation=self.activation,
            threshold=self.threshold,
            names=self.names,
            reserved=("macro", "micro", "weighted"),
        )

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        """All metrics of logits [P, C] against labels [P, C] of 0 and 1."""
        logits, labels = read(evaluation)
        if logits.ndim != 2 or labels.shape != logits.shape:
            raise misshaped(self, logits, labels, "logits [P, C] and labels [P, C]")
        names = _names(self.names, logits.shape[1])
        wrong = np.argwhere(~np.isin(labels, (0, 1, IGNORED)))
        if wrong.size:
            row, column = wrong[0]
            raise DataError(
                f"the label at row {row} for {names[column]} is {labels[row, column]:g}; multilabel_metrics takes "
                "labels 0 and 1, and -100 for unknown: turn grades into 0 and 1 first"
            )
        keep = (labels != IGNORED).any(axis=1)
        logits, labels = logits[keep], labels[keep]
        predicted = activate(logits, self.activation) >= self.threshold
        broken = not_finite(logits)
        return report(
            self, lambda rows: _multilabel(logits[rows], predicted[rows], labels[rows], names, broken), len(labels)
        )


def multilabel_metrics(
    threshold: float = 0.5,
    names: Iterable[str] | None = None,
    activation: MetricActivation = "sigmoid",
    confidence: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> MultilabelMetrics:
    """How well several independent labels, each true or false, are predicted.

        >>> from transformers import EvalPrediction
        >>> logits, labels = np.array([[2.0, -1.0], [-1.0, 1.0], [1.0, 3.0]]), np.array([[1, 0], [1, 1], [0, 1]])
        >>> values = multilabel_metrics(names=["fresh", "long"])(EvalPrediction(logits, labels))
        >>> {key: round(value, 4) for key, value in values.items()}
        {'f1_micro': 0.75, 'f1_macro': 0.75, 'f1_weighted': 0.75, 'f1_fresh': 0.5, 'f1_long': 1.0,
         'average_precision_micro': 0.8542, 'average_precision_macro': 0.9167, 'subset_accuracy': 0.3333,
         'hamming_loss': 0.3333}

    Takes logits [P, C] and labels [P, C] of 0 and 1; a single -100 marks an unknown label, which is ignored.

    Keys:
        f1_micro, f1_macro, f1_weighted, f1_<name>: over all decisions; as a mean over the labels; weighted by how often
            each label is true; and for each label.
        average_precision_micro, average_precision_macro: the same, without a threshold.
        subset_accuracy: share of rows whose labels are all right.
        hamming_loss: share of wrong decisions.

    A label that is never true and never predicted has no F1. One that is never true, or whose scores are all the same,
    has no average precision. These are NaN, and the mean is that of the others.

    Args:
        threshold: An activated score >= threshold predicts the label.
        names: Names of the labels in the order of the logits; by default their numbers.
        activation: What turns a logit into a score.
        confidence: Level of the bootstrap intervals, between 0 and 1; None for no intervals.
        resamples: Number of bootstrap draws.
        seed: Seed of the bootstrap.

    Raises:
        ConfigurationError: An argument is out of its range; in a call, the shapes or the number of names don't match.
        DataError: In a call, a label is none of 0, 1 and -100.
    """
    return MultilabelMetrics(
        threshold, None if names is None else tuple(names), activation, confidence, resamples, seed
    )


def _multilabel(
    logits: Floats, predicted: NDArray[np.bool_], labels: Floats, names: tuple[str, ...], reasons: list[str]
) -> Measured:
    per_label = tuple(f"f1_{name}" for name in names)
    precision_keys = ("average_precision_micro", "average_precision_macro")
    if reasons or not labels.size:
        keys = ("f1_micro", "f1_macro", "f1_weighted", *per_label, *precision_keys, "subset_accuracy", "hamming_loss")
        return dict.fromkeys(keys, np.nan), reasons or ["there are no labelled rows"]
    known, true = labels != IGNORED, labels == 1
    hits, chosen, occurs = ((entries & known).sum(axis=0) for entries in (predicted & true, predicted, true))
    by_label = divide(2.0 * hits, chosen + occurs)
    values = {
        "f1_micro": divide(2.0 * hits.sum(), chosen.sum() + occurs.sum()),
        "f1_macro": _mean(by_label),
        "f1_weighted": divide((by_label * occurs)[occurs > 0].sum(), occurs.sum()),
        **dict(zip(per_label, by_label, strict=True)),
    }
    pairs = [(logits[:, c][known[:, c]], true[:, c][known[:, c]]) for c in range(len(names))]
    precisions = [_average_precision(*pair) for pair in ((logits[known], true[known]), *pairs)]
    values |= dict(zip(precision_keys, (precisions[0], _mean(np.array(precisions[1:]))), strict=True))
    wrong = (predicted != true) & known
    values |= {"subset_accuracy": 1 - wrong.any(axis=1).mean(), "hamming_loss": wrong.sum() / known.sum()}
    undefined = [name for name, value in zip(names, precisions[1:], strict=True) if np.isnan(value)]
    reasons = [f"no row is of label {', '.join(undefined)}, or its scores are constant"] if undefined else []
    return {key: float(value) for key, value in values.items()}, reasons


def _average_precision(logits: Floats, true: NDArray[np.bool_]) -> float:
    return _Cuts.of(logits, true).average_precision() if true.any() and np.ptp(logits) > 0 else np.nan


def _names(names: tuple[str, ...] | None, count: int) -> tuple[str, ...]:
    if names is not None and len(names) != count:
        raise ConfigurationError(
            f"{len(names)} names for {count} logits: {', '.join(names)}; give one for each logit, in order"
        )
    return names or tuple(str(number) for number in range(count))


def _degenerate(scores: Floats) -> list[str]:
    """Why these scores can't be measured; empty if they can."""
    if len(scores) < 2:
        return ["there is only one labelled row" if len(scores) else "there are no labelled rows"]
    if broken := not_finite(scores):
        return broken
    return [f"all {len(scores)} scores are {scores[0]:g}"] if np.ptp(scores) == 0 else []


def _mean(values: Floats) -> float:
    """The mean of the values that are defined."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else np.nan
