"""What a page shows: the numbers behind pictures, errors by row, and tests of differences, each computed otherwise."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import classification_report, confusion_matrix
from transformers import EvalPrediction

from cross_trainer.errors import ConfigurationError, DataError
from cross_trainer.metrics import views
from cross_trainer.metrics.evaluate_modules import from_evaluate
from cross_trainer.metrics.figures import binary_figures, class_figures, line, number_figures, reliability
from cross_trainer.metrics.pairs import binary_metrics, correlation_metrics, multiclass_metrics, multilabel_metrics
from cross_trainer.metrics.rankings import compare_statistic, ranking_metrics
from cross_trainer.metrics.views import compare_views, view

RANDOM = np.random.default_rng(0)
COUNT = 80


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(views, "DRAWN_ROWS", 0)
    monkeypatch.setattr(views, "SIGNED_ROWS", 0)


def evaluation(kind, quality=1.0):
    """Labels of a kind, with logits that follow them."""
    draw = np.random.default_rng(5)
    noise = np.random.default_rng(int(10 * quality))
    if kind == "binary":
        labels = draw.integers(2, size=COUNT)
        return binary_metrics(), EvalPrediction((quality * labels + noise.normal(size=COUNT))[:, None], labels)
    if kind == "classes":
        labels = draw.integers(3, size=COUNT)
        logits = quality * np.eye(3)[labels] + noise.normal(size=(COUNT, 3))
        return multiclass_metrics(["no", "maybe", "yes"]), EvalPrediction(logits, labels)
    if kind == "labels":
        labels = draw.integers(2, size=(COUNT, 3))
        return multilabel_metrics(), EvalPrediction(quality * labels + noise.normal(size=(COUNT, 3)), labels)
    if kind == "numbers":
        labels = draw.random(COUNT)
        return correlation_metrics(), EvalPrediction((quality * labels + noise.normal(size=COUNT))[:, None], labels)
    labels = (draw.random((COUNT, 20)) < 0.1) * draw.integers(1, 3, size=(COUNT, 20))
    labels[:, 16:][::2] = -100
    return ranking_metrics(), EvalPrediction(quality * labels + noise.normal(size=labels.shape), labels)


KINDS = ("binary", "classes", "labels", "numbers", "ranking")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_compared_is_what_is_reported(kind):
    found = view(*evaluation(kind))
    assert found.kind == kind
    assert found.by_row
    for key, values in found.by_row.items():
        assert np.nanmean(values) == pytest.approx(found.metrics[key], abs=1e-9)
    for key, (_, values, statistic) in found.by_set.items():
        assert statistic(values, np.arange(len(values))) == pytest.approx(found.metrics[key], abs=1e-9)
    assert found.places.shape == (len(found.errors), 2)
    json.dumps(found.figures)


@pytest.mark.parametrize("kind", KINDS)
def test_models_differ_as_their_metrics_do(kind):
    good, bad = view(*evaluation(kind, 3.0)), view(*evaluation(kind, 0.1))
    tested, same = compare_views(good, bad), compare_views(good, good)
    for key, found in tested.items():
        difference = found.comparison
        assert difference.difference == pytest.approx(good.metrics[key] - bad.metrics[key], abs=1e-9)
        assert difference.low <= difference.difference <= difference.high
        assert difference.p_value < 0.05 or key == "hit@10"
        assert (same[key].comparison.difference, same[key].comparison.p_value) == (0, 1)


def test_many_rows_are_compared_by_means_alone(monkeypatch):
    monkeypatch.setattr(views, "SWAPPED_ROWS", COUNT - 1)
    found = view(*evaluation("binary"))
    assert found.by_set
    assert compare_views(found, found).keys() == found.by_row.keys()


def test_a_p_value_counts_swaps():
    labels, first, second = np.array([1, 2, 3, 4.0]), np.array([1, 2, 3, 4.0]), np.array([2, 1, 3, 1.0])

    def statistic(values, rows):
        return float(values @ labels[rows])

    swapped = []
    for swaps in itertools.product([False, True], repeat=4):
        one, other = np.where(swaps, second, first), np.where(swaps, first, second)
        swapped.append(one @ labels - other @ labels)
    swapped = np.array(swapped)
    difference = first @ labels - second @ labels
    expected = 2 * min((swapped >= difference).mean(), (swapped <= difference).mean())
    found = compare_statistic(statistic, first, second)
    assert (found.difference, found.p_value, found.n) == (difference, pytest.approx(expected), 4)
    undefined = compare_statistic(lambda values, _: float("nan") if np.ptp(values) == 0 else 1.0, first, np.ones(4))
    assert np.isnan(undefined.p_value)
    with pytest.raises(ConfigurationError, match="one value per row"):
        compare_statistic(statistic, first, second[:3])


def test_counts_at_every_threshold():
    scores, positive = np.round(RANDOM.random(500), 2), RANDOM.random(500) < 0.3
    positive |= scores > 0.9
    figures = binary_figures(scores, positive)
    for at in range(0, len(figures["thresholds"]), 37):
        chosen = scores >= figures["thresholds"][at]
        assert (figures["predicted"][at], figures["hits"][at]) == (chosen.sum(), (chosen & positive).sum())
    best = binary_metrics(activation="identity")(EvalPrediction(scores, positive.astype(int)))
    assert figures["best"] == {"F1": best["f1_threshold"], "accuracy": best["accuracy_threshold"]}
    assert {*figures["best"].values()} < {*figures["thresholds"]}
    assert np.sum(figures["counts"], axis=1).tolist() == [(~positive).sum(), positive.sum()]


def test_a_million_rows_take_no_more_room_than_some():
    scores = RANDOM.random(1_000_000) ** 9  # many of them between the first steps
    figures = binary_figures(scores, RANDOM.random(1_000_000) < scores)
    assert len(figures["thresholds"]) < 2_000
    assert len(json.dumps(figures)) < 150_000
    assert len(number_figures(scores, scores)["points"]) == 1_000


@pytest.mark.parametrize("label", [0, 1])
def test_one_label_alone_has_figures(label):
    found = view(binary_metrics(), EvalPrediction(RANDOM.normal(size=(9, 1)), np.full(9, label)))
    assert found.figures["positives"] == 9 * label
    assert found.by_set == {}


def test_reliability_is_scikit_learns():
    said = RANDOM.random(200)
    seen = RANDOM.random(200) < said
    share, mean = calibration_curve(seen, said, n_bins=10, strategy="quantile")
    bins = reliability(said, seen)
    assert [each["mean"] for each in bins] == pytest.approx(mean)
    assert [each["share"] for each in bins] == pytest.approx(share)
    assert all(each["low"] < each["share"] + 1e-9 and each["share"] - 1e-9 < each["high"] for each in bins)
    assert reliability(np.array([]), np.array([], dtype=bool)) == []


def test_classes_are_scikit_learns():
    logits, labels = RANDOM.random((90, 4)), RANDOM.integers(4, size=90)
    figures = class_figures(logits, labels, list("abcd"))
    assert figures["confusion"] == confusion_matrix(labels, logits.argmax(axis=1)).tolist()
    expected = classification_report(labels, logits.argmax(axis=1), target_names=list("abcd"), output_dict=True)
    for each in figures["classes"]:
        assert [each["precision"], each["recall"], each["f1"], each["rows"]] == pytest.approx(
            [expected[each["name"]][key] for key in ("precision", "recall", "f1-score", "support")]
        )


def test_of_many_classes_the_rare_ones_are_others():
    labels = np.concatenate([np.repeat(np.arange(19), 5), np.arange(19, 40)])
    figures = class_figures(np.eye(40)[labels], labels, [f"c{index}" for index in range(40)])
    assert figures["names"] == [*(f"c{index}" for index in range(19)), "others"]
    assert np.diag(figures["confusion"]).tolist() == [5] * 19 + [21]
    assert len(figures["classes"]) == 40


def test_a_line_is_that_of_least_squares():
    scores, labels = RANDOM.random(30), RANDOM.random(30)
    assert line(scores, labels) == pytest.approx(tuple(np.polyfit(scores, labels, 1)))
    assert line(np.ones(3), np.array([1.0, 2.0, 3.0])) == (0, 2)


def test_queries_without_relevant_documents_come_after_failures():
    labels = np.array([[0, 0], [1, 0], [0, 1], [-100, -100]])
    found = view(ranking_metrics(), EvalPrediction(np.array([[2.0, 1], [2, 1], [2, 1], [0, 0]]), labels))
    assert np.argsort(-found.errors).tolist() == [0, 2, 1, 3]
    assert [entry["document"] for entry in found.ranks(1)] == [0, 1]
    assert found.figures["queries"] == 3


def test_what_cannot_be_shown():
    labels = np.array([1, 0])
    with pytest.raises(DataError, match="1 of 2 rows have logits that are NaN"):
        view(binary_metrics(), EvalPrediction(np.array([[np.nan], [1.0]]), labels))
    with pytest.raises(DataError, match="no rows"):
        view(binary_metrics(), EvalPrediction(np.empty((0, 1)), np.empty(0)))
    with pytest.raises(ConfigurationError, match="nothing to show of EvaluateMetrics"):
        view(from_evaluate(type("Own", (), {"compute": lambda self, **_: {}})()), EvalPrediction(labels, labels))
    with pytest.raises(ConfigurationError, match="binary for one model and numbers"):
        compare_views(view(*evaluation("binary")), view(*evaluation("numbers")))
