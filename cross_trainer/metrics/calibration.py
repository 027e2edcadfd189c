"""Whether a probability means what it says: of all pairs with 0.8, are 80 % positive?

    compute_metrics=calibration_metrics(confidence=0.95)   # {"ece": 0.02, "brier": 0.07, ..., "log_loss": 0.24, ...}

P pairs, G groups (queries), D documents of the largest group, C classes. `pairs.py` says what all metrics have in
common.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cross_trainer.errors import DataError, check_whole
from cross_trainer.metrics.report import (
    Evaluation,
    Floats,
    Indices,
    Measured,
    check_options,
    class_numbers,
    not_finite,
    one_score,
    read,
    report,
)

KEYS = ("ece", "brier", "brier_reliability", "brier_resolution", "brier_uncertainty", "log_loss")


@dataclass(frozen=True)
class CalibrationMetrics:
    """See `calibration_metrics`, which makes it."""

    bins: int = 10
    confidence: float | None = None
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_options(self)
        check_whole("bins", self.bins)

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        """All metrics of logits [P], [P, 1] or [G, D] against labels in [0, 1], or [P, C] against classes [P]."""
        logits, targets = _columns(*read(evaluation), self)
        values = report(self, lambda rows: self._measure(logits[rows], targets[rows]), len(logits))
        if self.confidence is not None:
            low, high = (2 * values["ece"] - values[f"ece_{bound}"] for bound in ("high", "low"))
            values |= {"ece_low": float(np.clip(low, 0, 1)), "ece_high": float(np.clip(high, 0, 1))}
        return values

    def _measure(self, logits: Floats, targets: Floats) -> Measured:
        """Values of logits [P, C], which a softmax turns into probabilities, against their probabilities [P, C]."""
        reasons = not_finite(logits) if len(logits) else ["there are no labelled rows"]
        if reasons:
            return dict.fromkeys(KEYS, np.nan), reasons
        from scipy.special import log_softmax

        logs = log_softmax(logits, axis=1)
        chances = np.exp(logs)
        several = logits.shape[1] > 2
        best = chances.argmax(axis=1)[:, None] if several else np.ones((len(logits), 1), dtype=np.int64)
        said, seen = (np.take_along_axis(each, best, axis=1)[:, 0] for each in (chances, targets))
        error, _ = _in_bins(said, seen, self.bins)
        counted = range(logits.shape[1]) if several else [1]
        reliability = sum(_in_bins(chances[:, index], targets[:, index], self.bins)[1] for index in counted)
        brier = ((chances - targets) ** 2)[:, counted].mean(axis=0).sum()
        uncertainty = targets[:, counted].var(axis=0).sum()
        loss = -(targets * logs).sum(axis=1).mean()
        values = (error, brier, reliability, reliability + uncertainty - brier, uncertainty, loss)
        return dict(zip(KEYS, map(float, values), strict=True)), []


def calibration_metrics(
    bins: int = 10, confidence: float | None = None, resamples: int = 1000, seed: int = 0
) -> CalibrationMetrics:
    """How far probabilities are from how often they come true.

        >>> from transformers import EvalPrediction
        >>> logits, labels = np.array([2.0, 1.0, -1.0, -2.0]), np.array([1, 0, 1, 0])
        >>> values = calibration_metrics(bins=2)(EvalPrediction(logits, labels))
        >>> {key: round(value, 4) for key, value in values.items()}
        {'ece': 0.3059, 'brier': 0.2743, 'brier_reliability': 0.0936, 'brier_resolution': 0.0693,
         'brier_uncertainty': 0.25, 'log_loss': 0.7201}

    Takes logits [P], [P, 1] or [G, D] with labels in [0, 1], of which the sigmoid is measured, or logits [P, C] with
    class numbers [P], of which the softmax is. A label between 0 and 1 is the share of those who say yes. The decisions
    about several labels at once, [P, C] with labels [P, C], are measured together.

    Keys, of which all but `brier_resolution` are better when lower:
        ece: expected calibration error. Pairs are sorted by their probability into bins of as many pairs each; this is
            the mean distance between a bin's mean probability and its mean label (Naeini, Cooper and Hauskrecht 2015).
            For more than two classes, the probability of the likeliest class and whether it is the right one (Guo and
            others 2017).
        brier: mean squared distance between probability and label (Brier 1950). For more than two classes it is added
            up over classes, so that it lies between 0 and 2.
        brier_reliability, brier_resolution, brier_uncertainty: its parts, over the same bins: how far probabilities are
            from what comes true, how much they tell apart, and how much there is to tell (Murphy 1973). brier =
            reliability - resolution + uncertainty: what probabilities differ within a bin counts for the resolution
            (Stephenson, Coelho and Jolliffe 2008).
        log_loss: mean negative logarithm of the probability of what came true, in nats.

    Chance alone gives a calibrated model an error above 0, 0.03 or so for 500 pairs in 10 bins, and each resample of
    the bootstrap adds its own. The interval of `ece` is therefore the basic one, reflected at the value (Davison and
    Hinkley
    1997): it comes down to about 0 for a calibrated model, and needn't include the value.

    Args:
        bins: Number of bins. Equal probabilities are never split, so fewer may be filled.
        confidence: Level of the bootstrap intervals, between 0 and 1; None for no intervals.
        resamples: Number of bootstrap draws of pairs.
        seed: Seed of the bootstrap.

    Raises:
        ConfigurationError: An argument is out of its range; in a call, the shapes don't match.
        DataError: In a call, a label is outside of [0, 1] or isn't the number of a class.
    """
    return CalibrationMetrics(bins, confidence, resamples, seed)


def _columns(logits: Floats, labels: Floats, metric: CalibrationMetrics) -> tuple[Floats, Floats]:
    """Logits for a softmax [P, C] and the probabilities [P, C] that labels stand for; one logit has 0 beside it."""
    if logits.ndim == 2 and logits.shape[1] > 1 and labels.shape in {(len(logits),), (len(logits), 1)}:
        kept, classes = class_numbers(labels.reshape(-1), logits.shape[1])
        return logits[kept], np.eye(logits.shape[1])[classes]
    logits, labels = one_score(logits, labels, metric)
    wrong = np.flatnonzero((labels < 0) | (labels > 1))
    if wrong.size:
        raise DataError(
            f"the label at row {wrong[0]} is {labels[wrong[0]]:g}; a probability is measured against labels from 0 to "
            "1: turn grades into 0 and 1 first"
        )
    return np.stack([np.zeros_like(logits), logits], axis=1), np.stack([1 - labels, labels], axis=1)


def _in_bins(said: Floats, seen: Floats, bins: int) -> tuple[float, float]:
    """Calibration error and reliability of probabilities [P] against labels [P], over bins of as many pairs each."""
    edges = np.quantile(said, np.linspace(0, 1, bins + 1)[1:-1])
    places: Indices = np.searchsorted(edges, said)
    counts = np.bincount(places, minlength=bins)
    distance = np.bincount(places, said - seen, minlength=bins)[counts > 0] / counts[counts > 0]
    share = counts[counts > 0] / len(said)
    return float(share @ np.abs(distance)), float(share @ distance**2)
