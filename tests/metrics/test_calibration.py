"""Calibration error, Brier score and log loss against scikit-learn and against their formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve
from transformers import EvalPrediction

from cross_trainer.errors import ConfigurationError, DataError
from cross_trainer.metrics.calibration import calibration_metrics

DRAW = np.random.default_rng(0)
LOGITS = DRAW.normal(0, 2, 400)
LABELS = (DRAW.random(400) < expit(0.5 * LOGITS + 0.3)).astype(float)
CLASS_LOGITS = DRAW.normal(0, 2, (300, 3))
CLASSES = np.array([DRAW.choice(3, p=softmax(row / 2)) for row in CLASS_LOGITS])


def measure(logits, labels, **options):
    return calibration_metrics(**options)(EvalPrediction(logits, labels))


def test_scores_are_those_of_sklearn():
    found, chances = measure(LOGITS, LABELS), expit(LOGITS)
    assert found["brier"] == pytest.approx(sklearn_metrics.brier_score_loss(LABELS, chances))
    assert found["log_loss"] == pytest.approx(sklearn_metrics.log_loss(LABELS, chances))
    several, chances = measure(CLASS_LOGITS, CLASSES), softmax(CLASS_LOGITS, axis=1)
    assert several["log_loss"] == pytest.approx(sklearn_metrics.log_loss(CLASSES, chances))
    assert several["brier"] == pytest.approx(np.mean(np.sum((chances - np.eye(3)[CLASSES]) ** 2, axis=1)))


@pytest.mark.parametrize("bins", [1, 5, 10])
def test_the_error_is_the_mean_distance_of_bins_of_equal_mass(bins):
    chances = expit(LOGITS)  # no ties, so that every bin holds as many: their shares are equal
    seen, said = calibration_curve(LABELS, chances, n_bins=bins, strategy="quantile")
    assert measure(LOGITS, LABELS, bins=bins)["ece"] == pytest.approx(np.mean(np.abs(seen - said)))
    parts = np.array_split(np.argsort(chances), bins)
    by_hand = np.mean([abs(chances[part].mean() - LABELS[part].mean()) for part in parts])
    assert measure(LOGITS, LABELS, bins=bins)["ece"] == pytest.approx(by_hand)


def test_parts_of_the_brier_score_are_murphys_where_forecasts_repeat():
    chances, labels = np.repeat([0.1, 0.4, 0.8], [5, 10, 5]), np.tile([0, 1, 1, 0, 0], 4)
    found = measure(np.log(chances / (1 - chances)), labels, bins=20)
    rate, groups = labels.mean(), [chances == value for value in np.unique(chances)]
    reliability = sum(g.sum() * (chances[g].mean() - labels[g].mean()) ** 2 for g in groups) / 20
    resolution = sum(g.sum() * (labels[g].mean() - rate) ** 2 for g in groups) / 20
    assert found["brier_reliability"] == pytest.approx(reliability)
    assert found["brier_resolution"] == pytest.approx(resolution)
    assert found["brier_uncertainty"] == pytest.approx(rate * (1 - rate))


@pytest.mark.parametrize(("logits", "labels"), [(LOGITS, LABELS), (CLASS_LOGITS, CLASSES)])
def test_parts_add_up(logits, labels):
    found = measure(logits, labels)
    parts = found["brier_reliability"] - found["brier_resolution"] + found["brier_uncertainty"]
    assert parts == pytest.approx(found["brier"], abs=1e-12)


def test_classes_are_measured_by_the_likeliest():
    chances = softmax(CLASS_LOGITS, axis=1)
    top, right = chances.max(axis=1), chances.argmax(axis=1) == CLASSES
    logit = np.log(top / (1 - top))
    assert measure(CLASS_LOGITS, CLASSES)["ece"] == pytest.approx(measure(logit, right)["ece"])
    assert measure(CLASS_LOGITS, CLASSES[:, None]) == measure(CLASS_LOGITS, CLASSES)


def test_two_classes_are_one_probability():
    shift = np.linspace(-3, 3, 400)
    pairs = np.stack([shift, shift + LOGITS], axis=1)
    assert measure(pairs, LABELS) == pytest.approx(measure(LOGITS, LABELS))


def test_lists_and_columns_are_read_as_pairs():
    grid, labels = LOGITS.reshape(40, 10), LABELS.reshape(40, 10).copy()
    labels[3, 5:] = -100
    kept = labels.reshape(-1) != -100
    assert measure(grid, labels) == measure(LOGITS[kept], LABELS[kept])
    assert measure(LOGITS[:, None], LABELS) == measure((LOGITS,), (LABELS,)) == measure(LOGITS, LABELS)


def test_labels_may_be_shares():
    shares = np.tile([0.25, 0.75], 200)
    found, chances = measure(LOGITS, shares, bins=1), expit(LOGITS)
    assert found["ece"] == pytest.approx(abs(chances.mean() - 0.5))
    assert found["brier"] == pytest.approx(np.mean((chances - shares) ** 2))
    assert found["log_loss"] == pytest.approx(-np.mean(shares * np.log(chances) + (1 - shares) * np.log1p(-chances)))


def test_equal_probabilities_share_a_bin():
    found = measure(np.zeros(100), np.repeat([0, 1], 50))  # in order: any split would show as an error
    assert found["ece"] == 0
    assert found["brier"] == found["brier_uncertainty"] == 0.25


def test_the_interval_of_the_error_comes_down_to_that_of_a_calibrated_model():
    calibrated = (np.random.default_rng(1).random(400) < expit(LOGITS)).astype(float)
    found = measure(LOGITS, calibrated, confidence=0.95, resamples=200)
    assert found["ece_low"] < 0.01 < found["ece"]
    wrong = measure(3 * LOGITS, calibrated, confidence=0.95, resamples=200)
    assert 0 < wrong["ece_low"] < wrong["ece_high"]
    assert wrong["brier_low"] < wrong["brier"] < wrong["brier_high"]
    assert wrong == measure(3 * LOGITS, calibrated, confidence=0.95, resamples=200)


def test_large_logits_keep_their_loss():
    assert measure(np.array([800.0, -800.0]), np.array([0.0, 0.0]))["log_loss"] == pytest.approx(400)


def test_what_cannot_be_measured(caplog):
    broken = LOGITS.copy()
    broken[3] = np.nan
    assert all(map(np.isnan, measure(broken, LABELS, confidence=0.9, resamples=5).values()))
    assert "1 of 400 rows have logits that are NaN or infinite" in caplog.text
    with pytest.raises(
        DataError, match="the label at row 0 is 3; a probability is measured against labels from 0 to 1"
    ):
        measure(LOGITS[:2], np.array([3, 1]))
    with pytest.raises(DataError, match="the label at row 1 is 3; with 3 classes"):
        measure(CLASS_LOGITS[:2], np.array([1, 3]))
    with pytest.raises(ConfigurationError, match="CalibrationMetrics takes one logit per pair"):
        measure(CLASS_LOGITS, LABELS)
    with pytest.raises(ConfigurationError, match="bins=0"):
        calibration_metrics(bins=0)
    with pytest.raises(ConfigurationError, match="confidence is 95"):
        calibration_metrics(confidence=95)
