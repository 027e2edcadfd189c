"""What a metric reads and what it reports: what all metrics share.

`read` takes an evaluation's logits and labels, a metric measures them, and `report` makes the dict that the Trainer
logs: with bootstrap intervals if wanted, and one warning for whatever the set leaves undefined.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from cross_trainer.errors import ConfigurationError, DataError

logger = logging.getLogger(__name__)

MetricActivation = Literal["identity", "sigmoid"]
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Measured = tuple[dict[str, float], list[str]]
"""Values by key, and the reasons why any of them are NaN."""

IGNORED = -100
RESAMPLES_AT_ONCE = 2_000_000  # row indices, or signs, that scipy holds in memory at a time


class Evaluation(Protocol):
    """What a metric reads: a `transformers.EvalPrediction`, or any object with its first two attributes."""

    @property
    def predictions(self) -> Any:
        """Logits as an array, or a tuple that starts with them."""

    @property
    def label_ids(self) -> Any:
        """Labels as an array, or a tuple that starts with them."""


class Metric(Protocol):
    """The fields in which every metric says how its intervals are made."""

    @property
    def confidence(self) -> float | None:
        """Level of the intervals, between 0 and 1; None for no intervals."""

    @property
    def resamples(self) -> int:
        """Number of bootstrap draws."""

    @property
    def seed(self) -> int:
        """Seed of the bootstrap."""


def read(evaluation: Evaluation) -> tuple[Floats, Floats]:
    """Logits and labels in float64, in their own shapes; the first entries of tuples."""
    predictions, labels = evaluation.predictions, evaluation.label_ids
    logits = predictions[0] if isinstance(predictions, tuple) else predictions
    return np.asarray(logits, dtype=np.float64), finite_labels(labels[0] if isinstance(labels, tuple) else labels)


def finite_labels(labels: Any) -> Floats:
    """Labels in float64, in their own shape; a DataError names the first one that isn't a finite number."""
    try:
        values = np.asarray(labels, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"the labels aren't numbers ({error}); turn class names into their index first") from error
    wrong = np.argwhere(~np.isfinite(values))
    if wrong.size or not values.ndim:
        where = (
            f"the label at row {wrong[0][0]} is {values[tuple(wrong[0])]}" if values.ndim else f"label_ids is {labels}"
        )
        raise DataError(f"{where}; a metric needs labels that are finite numbers: label the set, or drop the row")
    return values


def misshaped(metric: Metric, logits: Floats, labels: Floats, expected: str) -> ConfigurationError:
    """The error for predictions and labels whose shapes a metric can't compare."""
    return ConfigurationError(
        f"{type(metric).__name__} takes {expected}; it got predictions {logits.shape} and labels {labels.shape}: "
        "choose the metrics that fit the model's num_labels and the data set's labels"
    )


def one_score(logits: Floats, labels: Floats, metric: Metric, two_classes: bool = False) -> tuple[Floats, Floats]:
    """One logit and one label for each labelled pair, from [P], [P, 1], [G, D] or, with `two_classes`, [P, 2]."""
    if labels.shape == (len(logits), 1) and logits.shape != labels.shape:
        labels = labels[:, 0]
    if logits.shape == (len(labels), 2) and labels.ndim == 1 and two_classes:
        with np.errstate(invalid="ignore"):
            logits = logits[:, 1] - logits[:, 0]
    if logits.shape == (len(labels), 1) and labels.ndim == 1:
        logits = logits[:, 0]
    if logits.shape != labels.shape or logits.ndim not in (1, 2):
        raise misshaped(
            metric, logits, labels, "one logit per pair: [P] or [P, 1], with labels [P], or [G, D] with labels [G, D]"
        )
    keep = labels != IGNORED
    return logits[keep], labels[keep]


def class_numbers(labels: Floats, classes: int) -> tuple[NDArray[np.bool_], Indices]:
    """Which rows of labels [P] are labelled [P], and their classes.

    Raises:
        DataError: A label isn't the number of a class.
    """
    keep = labels != IGNORED
    known = labels[keep]
    wrong = np.flatnonzero(~np.isin(known, np.arange(classes)))
    if wrong.size:
        raise DataError(
            f"the label at row {wrong[0]} is {known[wrong[0]]:g}; with {classes} classes, labels are whole numbers "
            f"from 0 to {classes - 1}: check the model's num_labels and the order of its label names"
        )
    return keep, known.astype(np.int64)


def not_finite(logits: Floats) -> list[str]:
    """Why rows of logits [P] or [P, C] can't be measured; empty if they can."""
    broken = len({int(row) for row in np.argwhere(~np.isfinite(logits))[:, 0]})
    return [f"{broken} of {len(logits)} rows have logits that are NaN or infinite"] if broken else []


def activate(logits: Floats, activation: MetricActivation) -> Floats:
    """Turn logits into scores."""
    if activation == "identity":
        return logits
    from scipy.special import expit

    return np.asarray(expit(logits))


def divide(numerator: Any, denominator: Any, empty: float = np.nan) -> Any:
    """The quotient; `empty` where the denominator is 0."""
    denominator = np.asarray(denominator)
    return np.where(denominator == 0, empty, numerator / np.where(denominator == 0, 1, denominator))


def check_options(
    metric: Metric,
    activation: str = "identity",
    threshold: float | None = None,
    names: tuple[str, ...] | None = None,
    reserved: tuple[str, ...] = (),
) -> None:
    """Raise a ConfigurationError for an option that a metric can't have."""
    check_interval(metric.confidence, metric.resamples)
    if activation not in ("identity", "sigmoid"):
        raise ConfigurationError(f"activation is {activation!r}; give 'identity' or 'sigmoid'")
    if threshold is not None and not np.isfinite(threshold):
        raise ConfigurationError(f"the threshold is {threshold}; give a finite number")
    if names is not None and (len(set(names)) < len(names) or set(names) & set(reserved)):
        raise ConfigurationError(
            f"the names are {', '.join(names)}; give different ones, none of them {', '.join(reserved)}"
        )


def check_interval(confidence: float | None, resamples: int) -> None:
    """Raise a ConfigurationError for a level or a number of draws that gives no interval."""
    if confidence is not None and not 0 < confidence < 1:
        raise ConfigurationError(f"confidence is {confidence}; give a level between 0 and 1, as in confidence=0.95")
    if resamples < 1:
        raise ConfigurationError(f"resamples is {resamples}; a bootstrap needs at least 1, usually 1000")


def report(metric: Metric, measure: Callable[[Indices], Measured], count: int) -> dict[str, float]:
    """What a metric returns: its values over all rows, and their intervals if it has a confidence.

    Args:
        metric: Gives confidence, resamples and seed, and its name for a warning.
        measure: Gives values by key, and why any are NaN, over the rows of the given indices.
        count: Number of rows.
    """
    values, reasons = measure(np.arange(count))
    if reasons:
        keys = ", ".join(key for key, value in values.items() if np.isnan(value))
        logger.warning("%s: NaN for %s, because %s", type(metric).__name__, keys, "; ".join(reasons))
    if metric.confidence is None:
        return values

    def entries(rows: Indices) -> Floats:
        measured = measure(rows)[0]  # may lack a key: some modules report only classes that occur
        return np.array([measured.get(key, np.nan) for key in values])

    undefined = np.isnan([*values.values()])
    draws = np.full((len(values), 1), np.nan)
    if not undefined.all():
        draws = bootstrap_rows(entries, count, metric.resamples, metric.seed)
    draws[undefined] = np.nan  # a resample may miss the rows that make a value undefined
    for key, drawn in zip(list(values), draws, strict=True):
        values[f"{key}_low"], values[f"{key}_high"] = percentiles(drawn, metric.confidence)
    return values


def bootstrap_rows(statistic: Callable[[Indices], Floats], count: int, resamples: int, seed: int) -> Floats:
    """A statistic with M values, over `resamples` draws of `count` rows with replacement.

    Returns:
        The values of each draw [M, resamples]; NaN [M, 1] if there are fewer than two rows to draw from.
    """
    if count < 2:
        return np.full((len(statistic(np.arange(count))), 1), np.nan)
    from scipy.stats import bootstrap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scipy's own interval can't handle NaN; the draws can
        result = bootstrap(
            (np.arange(count),),
            statistic,
            n_resamples=resamples,
            batch=max(1, RESAMPLES_AT_ONCE // count),
            vectorized=False,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    return np.asarray(result.bootstrap_distribution)


def percentiles(drawn: Floats, confidence: float) -> tuple[float, float]:
    """The bounds that contain a share `confidence` of the draws that aren't NaN."""
    defined = drawn[~np.isnan(drawn)]
    if not defined.size:
        return np.nan, np.nan
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
