"""Pictures show what was measured: their points are compared with independent computations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, confusion_matrix

from cross_trainer.metrics.figures import reliability
from cross_trainer.metrics.plots import BINS, _equal_bins, evaluation_pictures, learning_curve

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 2, 300)
LOGITS = RANDOM.normal(2 * LABELS - 1.0, 1.5)


def pictures(*args, **options):
    return {picture.name: picture for picture in evaluation_pictures(*args, **options)}


def points(picture, line=0):
    return picture.figure.axes[0].lines[line].get_xydata()


def test_pairs_have_all_pictures_that_fit():
    lengths = RANDOM.integers(5, 90, 300)
    drawn = pictures("binary", LOGITS[:, None], LABELS, threshold=0.4, lengths=lengths)
    assert list(drawn) == ["score_distribution", "precision_recall", "reliability", "confusion", "length_error"]
    assert f"average precision {average_precision_score(LABELS, LOGITS):.3f}" in drawn["precision_recall"].caption
    shown = [text.get_text().split("\n")[0] for text in drawn["confusion"].figure.axes[0].texts]
    assert list(map(int, shown)) == confusion_matrix(LABELS, expit(LOGITS) >= 0.4).ravel().tolist()


def test_the_point_of_the_threshold():
    drawn = pictures("binary", LOGITS, LABELS, threshold=0.4)["precision_recall"]
    chosen = expit(LOGITS) >= 0.4
    recall, precision = points(drawn, 2)[0]
    assert recall == pytest.approx(chosen[LABELS == 1].mean())
    assert precision == pytest.approx(LABELS[chosen].mean())


def test_reliability_shows_shares_of_equal_bins():
    drawn = points(pictures("binary", LOGITS, LABELS)["reliability"], 1)
    order = np.argsort(LOGITS)
    wanted = [(expit(LOGITS[rows]).mean(), LABELS[rows].mean()) for rows in np.array_split(order, BINS)]
    np.testing.assert_allclose(drawn, wanted, atol=0.02)


def test_bins_dont_part_equal_values():
    values = np.array([0.5] * 50 + [0.7] * 5 + [0.9] * 5)
    bins = _equal_bins(values)
    assert sorted(np.concatenate(bins).tolist()) == list(range(60))
    assert sum(len(set(values[rows])) for rows in bins) == 3


@pytest.mark.parametrize(("hits", "trials"), [(0, 8), (3, 8), (50, 60)])
def test_intervals_of_shares(hits, trials):
    (found,) = reliability(np.full(trials, 0.5), np.arange(trials) < hits)
    wanted = binomtest(hits, trials).proportion_ci(method="wilson")
    assert (found["low"], found["high"]) == pytest.approx((wanted.low, wanted.high), abs=1e-4)


def test_classes_labels_numbers_and_rankings():
    classes, grid = RANDOM.normal(size=(60, 3)), RANDOM.integers(0, 3, (20, 6))
    grid[:10, 4:] = -100
    assert list(
        pictures("classes", classes, RANDOM.integers(0, 3, 60), activation="softmax", names=["a", "b", "c"])
    ) == [
        "score_distribution",
        "reliability",
        "confusion",
    ]
    assert list(pictures("labels", classes, classes > 0)) == ["score_distribution", "reliability"]
    numbers = pictures("numbers", classes[:, 0], RANDOM.random(60), activation="identity", lengths=range(60))
    assert list(numbers) == ["score_distribution", "length_error"]
    ranking = pictures("ranking", RANDOM.normal(size=(20, 6)), grid, activation="identity", lengths=range(20))
    assert list(ranking) == ["score_distribution", "quality_per_query", "length_error"]


def test_two_classes_are_drawn_like_one_score():
    both = np.stack([np.zeros(300), LOGITS], axis=1)
    one, two = pictures("binary", LOGITS, LABELS), pictures("binary", both, LABELS, activation="softmax")
    np.testing.assert_allclose(points(one["precision_recall"]), points(two["precision_recall"]))


@pytest.mark.parametrize(("logits", "labels"), [([np.nan, 1.0], [0, 1]), ([1.0], [1]), ([], [])])
def test_nothing_is_drawn_of_what_isnt_there(logits, labels):
    assert pictures("binary", logits, labels) == {}


def test_a_set_of_one_label():
    assert list(pictures("binary", LOGITS, np.ones(300))) == ["reliability", "confusion"]


def test_a_curve_needs_two_losses():
    assert learning_curve([{"step": 1, "loss": 0.5}, {"step": 1, "eval_loss": 0.4}]) is None
    history = [{"step": step, "loss": 1 / step, "eval_f1": step / 10} for step in range(1, 5001)]
    drawn = learning_curve(history, "eval_f1", best=7)
    assert len(drawn.figure.axes) == 2
    assert len(points(drawn)) <= 2000
