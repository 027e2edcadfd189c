"""Every metric against scipy, scikit-learn, ir-measures or a naive loop; what is undefined; intervals; comparisons."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import warnings
from types import SimpleNamespace

import ir_measures
import numpy as np
import pytest
from ir_measures import AP, RR, P, R, Success, nDCG
from scipy import special, stats
from sklearn import metrics as sk

from cross_trainer.errors import ConfigurationError, DataError, MissingDependencyError
from cross_trainer.metrics.evaluate_modules import from_evaluate
from cross_trainer.metrics.pairs import binary_metrics, correlation_metrics, multiclass_metrics, multilabel_metrics
from cross_trainer.metrics.rankings import Comparison, compare, ranking_metrics


def evaluation(predictions, label_ids):
    return SimpleNamespace(predictions=predictions, label_ids=label_ids)


@pytest.fixture(autouse=True)
def _no_numerical_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def same(left, right):
    """Equal keys and values, NaN being equal to NaN."""
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k], equal_nan=True) for k in left)


def pairs(seed=0, rows=300, decimals=1, shift=1.0):
    """Logits in float32 with many ties, and labels that follow them to a degree."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < 0.35).astype(np.int64)
    return np.round(rng.normal(size=rows) + shift * labels, decimals).astype(np.float32), labels


# --- one score per pair


def test_two_rows_have_correlations():
    values = correlation_metrics(activation="identity")(SimpleNamespace(predictions=[0.2, 0.1], label_ids=[0.0, 1.0]))
    assert (values["pearson"], values["spearman"], values["kendall"]) == pytest.approx((-1, -1, -1))


def test_correlations_equal_scipy():
    rng = np.random.default_rng(0)
    labels = np.round(rng.random(200) * 5, 1)
    logits = (labels + rng.normal(size=200)).astype(np.float32)[:, None]
    found = correlation_metrics()(evaluation(logits, labels))
    x = logits[:, 0].astype(np.float64)
    assert found == pytest.approx(
        {
            "pearson": np.corrcoef(x, labels)[0, 1],
            "spearman": np.corrcoef(stats.rankdata(x), stats.rankdata(labels))[0, 1],
            "kendall": stats.kendalltau(x, labels).statistic,
        }
    )
    squashed = correlation_metrics(activation="sigmoid")(evaluation(logits, labels))
    assert squashed["pearson"] == pytest.approx(np.corrcoef(special.expit(x), labels)[0, 1])
    assert squashed["pearson"] != pytest.approx(found["pearson"], abs=1e-3)
    assert squashed["spearman"] == pytest.approx(found["spearman"])


@pytest.mark.parametrize("seed", range(4))
def test_binary_equals_scikit_learn_and_a_loop_over_all_thresholds(seed):
    logits, labels = pairs(seed, decimals=1 + seed)
    found = binary_metrics(threshold=0.6)(evaluation(logits[:, None], labels))
    scores = special.expit(logits.astype(np.float64))
    distinct = np.unique(scores)
    candidates = [distinct[0], *(distinct[1:] + distinct[:-1]) / 2, 2.0]
    assert found["accuracy"] == max(sk.accuracy_score(labels, scores >= t) for t in candidates)
    assert found["f1"] == max(sk.f1_score(labels, scores >= t) for t in candidates)
    for key, t in (("accuracy", found["accuracy_threshold"]), ("f1", found["f1_threshold"])):
        assert t in candidates
        assert getattr(sk, f"{key}_score")(labels, scores >= t) == found[key]
    best = scores >= found["f1_threshold"]
    assert found["precision"] == sk.precision_score(labels, best)
    assert found["recall"] == sk.recall_score(labels, best)
    assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(labels, best))
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(labels, logits))
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(labels, logits))
    for key in ("accuracy", "f1", "precision", "recall"):
        assert found[f"{key}@0.6"] == pytest.approx(getattr(sk, f"{key}_score")(labels, scores >= 0.6))
    assert "accuracy@0.6" not in binary_metrics()(evaluation(logits, labels))


def test_binary_reads_every_shape_of_one_score():
    logits, labels = pairs()
    expected = binary_metrics()(evaluation(logits, labels))
    two = np.stack([np.full_like(logits, 0.25), logits + 0.25], axis=1)
    grid, grid_labels = np.full((4, 100), -100.0), np.full((4, 100), -100.0)
    grid[:3], grid_labels[:3] = logits.reshape(3, 100), labels.reshape(3, 100)
    for predictions, label_ids in (
        (logits[:, None], labels[:, None]),
        ((logits[:, None], np.zeros(7)), (labels.astype(bool), np.zeros(3))),
        (logits.tolist(), labels.tolist()),
        (grid, grid_labels),
    ):
        assert binary_metrics()(evaluation(predictions, label_ids)) == expected
    by_two = binary_metrics()(evaluation(two.astype(np.float64), labels))
    probability = special.softmax(two.astype(np.float64), axis=1)[:, 1]
    assert by_two["f1"] == sk.f1_score(labels, probability >= by_two["f1_threshold"])
    assert by_two["roc_auc"] == pytest.approx(expected["roc_auc"])


def test_thresholds_lie_midway_split_no_ties_and_take_units_of_the_score():
    found = binary_metrics(activation="identity")(evaluation(np.array([3.0, 1.0, 1.0, 0.0]), np.array([1, 1, 0, 0])))
    assert found["accuracy_threshold"] == 2.0  # 3 | 1 1 0, as good as 3 1 1 | 0; the higher threshold is taken
    assert found["accuracy"] == 0.75
    assert found["f1_threshold"] == 0.5
    assert found["f1"] == pytest.approx(0.8)
    found = binary_metrics()(evaluation(np.array([2.0, 0.0]), np.array([1, 0])))
    assert found["f1_threshold"] == pytest.approx((0.5 + 1 / (1 + math.exp(-2))) / 2)


def test_no_pair_and_every_pair_can_be_the_best_prediction():
    reversed_order = binary_metrics(activation="identity")(evaluation(np.arange(5.0), np.array([1, 0, 0, 0, 0])))
    assert reversed_order["accuracy"] == 0.8
    assert not (np.arange(5.0) >= reversed_order["accuracy_threshold"]).any()
    mostly_right = binary_metrics(activation="identity")(evaluation(np.arange(5.0), np.array([1, 1, 1, 1, 0])))
    assert mostly_right["f1_threshold"] == 0.0
    assert mostly_right["f1"] == pytest.approx(8 / 9)
    assert mostly_right["mcc"] == 0.0


def test_large_logits_and_neighbouring_floats_do_not_tie():
    logits, labels = np.array([30.0, 25.0, 20.0, 18.0], dtype=np.float32), np.array([1, 1, 0, 0])
    assert len(np.unique(1 / (1 + np.exp(-logits)))) < 4  # in float32 they do
    found = binary_metrics()(evaluation(logits, labels))
    assert found["f1"] == found["accuracy"] == found["roc_auc"] == 1.0
    assert (special.expit(logits.astype(np.float64)) >= found["f1_threshold"]).tolist() == [True, True, False, False]
    assert binary_metrics()(evaluation(np.array([90.0, 60.0]), np.array([1, 0])))["roc_auc"] == 1.0
    above = np.nextafter(1.0, 2.0)
    found = binary_metrics(activation="identity")(evaluation(np.array([above, 1.0]), np.array([1, 0])))
    assert (found["f1"], found["f1_threshold"]) == (1.0, above)


def test_ignored_rows_count_for_nothing():
    logits, labels = pairs()
    padded = np.append(logits, [np.float32(50), np.float32("nan")]), np.append(labels, [-100, -100])
    assert binary_metrics(0.5)(evaluation(*padded)) == binary_metrics(0.5)(evaluation(logits, labels))
    assert correlation_metrics()(evaluation(*padded)) == correlation_metrics()(evaluation(logits, labels))


@pytest.mark.parametrize(
    ("metric", "logits", "labels", "reason"),
    [
        (correlation_metrics(), [], [], "no labelled rows"),
        (correlation_metrics(), [1.0, 2.0], [-100, -100], "no labelled rows"),
        (correlation_metrics(), [1.0], [0.5], "only one labelled row"),
        (correlation_metrics(), [0.5, 0.5, 0.5], [0.1, 0.2, 0.3], "all 3 scores are 0.5"),
        (correlation_metrics(), [0.1, 0.2, 0.3], [4, 4, 4], "all 3 labels are 4"),
        (correlation_metrics(), [0.1, float("nan"), 0.3], [1, 2, 3], "1 of 3 rows have logits that are NaN"),
        (binary_metrics(), [], [], "no labelled rows"),
        (binary_metrics(), [2.0], [1], "only one labelled row"),
        (binary_metrics(), [2.0, 3.0], [1, 1], "all 2 labels are 1"),
        (binary_metrics(), [2.0, 3.0], [0, 0], "all 2 labels are 0"),
        (binary_metrics(), [2.0, 2.0], [0, 1], "all 2 scores are 2"),
        (binary_metrics(0.5), [float("inf"), float("nan")], [0, 1], "2 of 2 rows have logits that are NaN or infinite"),
        (multiclass_metrics(), np.zeros((0, 3)), [], "no labelled rows"),
        (multiclass_metrics(), [[1.0, float("nan")], [1.0, 2.0]], [0, 1], "1 of 2 rows"),
        (multilabel_metrics(), np.zeros((2, 3)), np.full((2, 3), -100), "no labelled rows"),
        (multilabel_metrics(), [[1.0, float("nan")], [1.0, 2.0]], [[0, 1], [1, 0]], "1 of 2 rows"),
        (ranking_metrics(), np.zeros((2, 3)), np.full((2, 3), -100), "no labelled rows"),
        (ranking_metrics(), np.zeros((0, 0)), np.zeros((0, 0)), "no labelled rows"),
        (ranking_metrics(), [[1.0, 2.0]], [[0, 0]], "highest label is 0, relevance starts at 1"),
    ],
)
@pytest.mark.parametrize("confidence", [None, 0.9])
def test_degenerate_sets_give_nan_and_one_warning(metric, logits, labels, reason, confidence, caplog):
    metric = type(metric)(**{**vars(metric), "confidence": confidence, "resamples": 20})
    with caplog.at_level(logging.WARNING, logger="cross_trainer"):
        found = metric(evaluation(np.array(logits), np.array(labels)))
    healthy = {type(value) for value in found.values()}
    assert healthy == {float}
    assert [key for key, value in found.items() if not math.isnan(value)] == []
    assert len(caplog.records) == 1
    assert type(metric).__name__ in caplog.text
    assert reason in caplog.text
    assert any(key.endswith("_low") for key in found) == (confidence is not None)


def test_a_given_threshold_measures_what_is_defined_in_a_degenerate_set(caplog):
    found = binary_metrics(threshold=0.5)(evaluation(np.array([1.0, -1.0]), np.array([0, 0])))
    assert found["accuracy@0.5"] == 0.5
    assert math.isnan(found["f1@0.5"])
    assert math.isnan(found["f1"])
    assert len(caplog.records) == 1
    found = binary_metrics(threshold=0.5)(evaluation(np.array([1.0, 1.0]), np.array([0, 1])))
    assert (found["accuracy@0.5"], found["recall@0.5"], found["precision@0.5"]) == (0.5, 1.0, 0.5)


@pytest.mark.parametrize(
    ("metric", "logits", "labels", "message"),
    [
        (binary_metrics(), [1.0, 2.0], [0, 0.4], "label at row 1 is 0.4; binary_metrics takes labels 0 and 1"),
        (binary_metrics(), [1.0, 2.0], [2, 1], "label at row 0 is 2"),
        (correlation_metrics(), [1.0, 2.0], [0.3, float("nan")], "label at row 1 is nan"),
        (correlation_metrics(), [1.0, 2.0], None, "label_ids is None"),
        (multiclass_metrics(), np.zeros((2, 3)), [0, 3], "label at row 1 is 3; with 3 classes.* from 0 to 2"),
        (multiclass_metrics(), np.zeros((2, 3)), [0.5, 1], "label at row 0 is 0.5"),
        (multilabel_metrics(names=["a", "b"]), np.zeros((2, 2)), [[0, 1], [0, 2]], "label at row 1 for b is 2"),
        (ranking_metrics(), np.zeros((1, 2)), ([[1, 1]], [1]), "num_relevant of query 0 is 1, but 2"),
        (ranking_metrics(), np.zeros((1, 2)), ([[1, 1]], [2.5]), "num_relevant of query 0 is 2.5"),
    ],
)
def test_labels_that_do_not_fit_are_named(metric, logits, labels, message):
    with pytest.raises(DataError, match=message):
        metric(evaluation(np.array(logits), labels))


@pytest.mark.parametrize(
    ("metric", "predictions", "labels"),
    [
        (correlation_metrics(), (5, 3), (5,)),
        (correlation_metrics(), (5, 2), (5,)),
        (correlation_metrics(), (4,), (5,)),
        (binary_metrics(), (5, 3), (5,)),
        (multiclass_metrics(), (5,), (5,)),
        (multiclass_metrics(), (5, 1), (5,)),
        (multiclass_metrics(), (5, 3), (5, 3)),
        (multilabel_metrics(), (5, 3), (5,)),
        (ranking_metrics(), (5, 1), (5,)),
        (ranking_metrics(), (5, 3), (5, 4)),
    ],
)
def test_shapes_that_do_not_fit_are_named(metric, predictions, labels):
    with pytest.raises(ConfigurationError, match=r"takes .*; it got predictions") as caught:
        metric(evaluation(np.zeros(predictions), np.zeros(labels)))
    assert str(predictions) in str(caught.value)
    assert str(labels) in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: correlation_metrics(confidence=95), "confidence is 95"),
        (lambda: binary_metrics(confidence=True), "confidence is True"),
        (lambda: binary_metrics(threshold=float("nan")), "threshold is nan"),
        (lambda: binary_metrics(activation="softmax"), "activation is 'softmax'"),
        (lambda: ranking_metrics(resamples=0), "resamples is 0"),
        (lambda: ranking_metrics(k=0), "k is"),
        (lambda: ranking_metrics(k=[]), "k is"),
        (lambda: ranking_metrics(k=(5, 5)), "k is"),
        (lambda: ranking_metrics(relevance_threshold=float("inf")), "threshold is inf"),
        (lambda: multiclass_metrics(names=["a", "a"]), "names are a, a"),
        (lambda: multilabel_metrics(names=["a", "micro"]), "none of them macro, micro, weighted"),
        (lambda: multiclass_metrics(names=["a"])(evaluation(np.zeros((1, 2)), [0])), "1 names for 2 logits: a"),
        (from_evaluate, "no module"),
        (lambda: from_evaluate(3), "3 has no compute"),
        (lambda: compare([1.0], [1.0, 2.0]), "shapes"),
        (lambda: compare([1.0], [1.0], confidence=2), "confidence is 2"),
    ],
)
def test_arguments_out_of_range_are_named(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


# --- classes


def test_multiclass_equals_scikit_learn():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 200)
    logits = rng.normal(size=(200, 5)) + 2 * np.eye(5)[labels]
    logits[:, 4] = -9.0  # a class that doesn't occur
    chosen = logits.argmax(1)
    names = ["no", "yes", "maybe", "so", "never"]
    found = multiclass_metrics(names=names)(evaluation((logits.astype(np.float32), None), labels))
    assert found == pytest.approx(
        {
            "accuracy": sk.accuracy_score(labels, chosen),
            **{
                f"f1_{average}": sk.f1_score(labels, chosen, average=average)
                for average in ("macro", "micro", "weighted")
            },
            **{f"f1_{n}": f for n, f in zip(names, sk.f1_score(labels, chosen, average=None), strict=False)},
            "f1_never": math.nan,
            "mcc": sk.matthews_corrcoef(labels, chosen),
        },
        nan_ok=True,
    )
    padded = np.vstack([logits, np.zeros((2, 5))]), np.append(labels, [-100, -100])[:, None]
    assert same(multiclass_metrics(names=names)(evaluation(*padded)), found)
    numbered = multiclass_metrics()(evaluation(logits, labels))
    assert numbered["f1_2"] == found["f1_maybe"]


def test_multiclass_of_one_class_says_what_is_undefined(caplog):
    found = multiclass_metrics()(evaluation(np.array([[1.0, 0, 0], [0, 1.0, 0], [1.0, 0, 0]]), np.zeros(3)))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert math.isnan(found["mcc"])
    assert math.isnan(found["f1_2"])
    assert len(caplog.records) == 1
    assert "NaN for f1_2, mcc" in caplog.text
    found = multiclass_metrics()(evaluation(np.array([[1.0, 0], [1.0, 0]]), np.array([0, 1])))
    assert found["mcc"] == 0.0


def test_multilabel_equals_scikit_learn():
    rng = np.random.default_rng(2)
    labels = (rng.random((300, 4)) < [0.5, 0.3, 0.1, 0.7]).astype(np.float32)
    logits = np.round(rng.normal(size=(300, 4)) + labels, 1)
    names = ["a", "b", "c", "d"]
    for threshold in (0.5, 0.7):
        predicted = special.expit(logits) >= threshold
        found = multilabel_metrics(threshold, names)(evaluation(logits, labels))
        assert found == pytest.approx(
            {
                **{
                    f"f1_{average}": sk.f1_score(labels, predicted, average=average)
                    for average in ("micro", "macro", "weighted")
                },
                **{f"f1_{n}": f for n, f in zip(names, sk.f1_score(labels, predicted, average=None), strict=True)},
                "average_precision_micro": sk.average_precision_score(labels, logits, average="micro"),
                "average_precision_macro": sk.average_precision_score(labels, logits, average="macro"),
                "subset_accuracy": sk.accuracy_score(labels, predicted),
                "hamming_loss": sk.hamming_loss(labels, predicted),
            }
        )
    raw = multilabel_metrics(0.0, activation="identity")(evaluation(logits, labels))
    assert raw["f1_macro"] == multilabel_metrics()(evaluation(logits, labels))["f1_macro"]


def test_multilabel_leaves_out_unknown_labels_and_padding(caplog):
    rng = np.random.default_rng(3)
    labels = (rng.random((50, 3)) < 0.4).astype(np.float64)
    logits = rng.normal(size=(50, 3)) + labels
    known = rng.random((50, 3)) < 0.7
    known[:5] = False
    found = multilabel_metrics()(evaluation(logits, np.where(known, labels, -100)))
    predicted = logits >= 0
    for c in range(3):
        assert found[f"f1_{c}"] == pytest.approx(sk.f1_score(labels[known[:, c], c], predicted[known[:, c], c]))
    assert found["f1_micro"] == pytest.approx(sk.f1_score(labels[known], predicted[known]))
    assert found["hamming_loss"] == pytest.approx((labels != predicted)[known].mean())
    right = [(labels[p] == predicted[p])[known[p]].all() for p in range(50) if known[p].any()]
    assert found["subset_accuracy"] == pytest.approx(np.mean(right))
    assert not caplog.records


def test_multilabel_names_the_labels_that_never_occur(caplog):
    labels = np.array([[1, 0], [0, 0], [1, 0]])
    found = multilabel_metrics(names=["x", "y"])(evaluation(np.array([[2.0, -3], [-1, -2], [1, -1]]), labels))
    assert (found["f1_x"], found["f1_macro"], found["average_precision_macro"]) == (1.0, 1.0, 1.0)
    assert math.isnan(found["f1_y"])
    assert "no row is of label y" in caplog.text
    assert len(caplog.records) == 1


# --- rankings


def run_of(seed, groups=40, documents=25, decimals=8, grades=4, fractions=False):
    """Scores and grades [G, D] of ragged groups, padded; the first row is padding alone."""
    rng = np.random.default_rng(seed)
    labels = np.maximum(rng.integers(-2, grades, (groups, documents)), 0).astype(np.float64)
    labels[1] = 0  # a query without anything relevant
    scores = np.round(rng.normal(size=(groups, documents)) + 0.5 * labels, decimals)
    sizes = rng.integers(1, documents + 1, groups)
    sizes[0] = 0
    padding = np.arange(documents) >= sizes[:, None]
    order = rng.permuted(np.tile(np.arange(documents), (groups, 1)), axis=1)  # padding stands anywhere
    labels, scores = np.where(padding, -100, labels), np.where(padding, rng.normal(size=labels.shape) * 100, scores)
    return np.take_along_axis(scores, order, 1).astype(np.float32), np.take_along_axis(labels, order, 1)


def ir_values(measures, scores, labels, missing=None, ascending=False):
    """ir-measures' value of each query; document ids sort so that its breaking of ties is pessimistic.

    trec_eval puts the greater id first among equal scores, its provider of RR with a cutoff the smaller one.
    """
    run, qrels = {}, {}
    for g in range(len(labels)):
        documents = [d for d in range(labels.shape[1]) if labels[g, d] != -100]
        if not documents:
            continue
        rank = sorted(documents, key=lambda d: labels[g, d], reverse=not ascending)
        ids = {d: f"{position:03d}" for position, d in enumerate(rank)}
        run[f"{g:03d}"] = {ids[d]: float(scores[g, d]) for d in documents}
        qrels[f"{g:03d}"] = {ids[d]: int(labels[g, d]) for d in documents}
        qrels[f"{g:03d}"] |= {f"missing{m}": 1 for m in range(0 if missing is None else missing[g])}
    values = {measure: np.full(len(labels), np.nan) for measure in measures}
    for one in ir_measures.iter_calc(measures, qrels, run):
        values[one.measure][int(one.query_id)] = one.value
    return values


@pytest.mark.parametrize("decimals", [8, 0])
@pytest.mark.parametrize(("grades", "threshold"), [(2, 1), (4, 1), (4, 2)])
def test_rankings_equal_ir_measures(decimals, grades, threshold):
    cutoffs = (1, 3, 10, 40)
    scores, labels = run_of(decimals + grades, decimals=decimals, grades=grades)
    metric = ranking_metrics(k=cutoffs, relevance_threshold=threshold)
    found = metric.per_query(scores, labels)
    expected = ir_values([AP(rel=threshold)], scores, labels)
    assert found["map"] == pytest.approx(expected[AP(rel=threshold)], nan_ok=True)
    for k in cutoffs:
        theirs = {
            f"ndcg@{k}": nDCG @ k,
            f"recall@{k}": R(rel=threshold) @ k,
            f"precision@{k}": P(rel=threshold) @ k,
            f"hit@{k}": Success(rel=threshold) @ k,
            f"mrr@{k}": RR(rel=threshold) @ k,
        }
        for key, measure in theirs.items():
            values = ir_values([measure], scores, labels, ascending=key.startswith("mrr"))[measure]
            if key.startswith("mrr"):
                values = np.where(np.isnan(values) & ~np.isnan(found[key]), 0, values)  # its provider skips misses
            assert found[key] == pytest.approx(values, nan_ok=True), key
    means = metric(evaluation(scores, labels))
    assert list(means) == list(found)
    assert means == pytest.approx({key: np.nanmean(values) for key, values in found.items()})


def test_queries_without_anything_relevant_count_zero_as_in_ir_measures():
    scores, labels = run_of(7)
    assert (labels[1] <= 0).all()
    found = ranking_metrics()(evaluation(scores, labels))
    run = {
        str(g): {str(d): float(scores[g, d]) for d in np.flatnonzero(labels[g] != -100)} for g in range(1, len(labels))
    }
    qrels = {g: {d: int(labels[int(g), int(d)]) for d in docs} for g, docs in run.items()}
    theirs = ir_measures.calc_aggregate([nDCG @ 10, AP, R @ 10], qrels, run)
    assert found["ndcg@10"] == pytest.approx(theirs[nDCG @ 10])
    assert found["map"] == pytest.approx(theirs[AP])
    assert found["recall@10"] == pytest.approx(theirs[R @ 10])


def test_missing_positives_lower_recall_map_and_ndcg_as_in_ir_measures():
    scores, labels = run_of(11, grades=2)
    missing = np.random.default_rng(0).integers(0, 4, len(labels))
    found_positives = (labels >= 1).sum(1)
    counts = np.where(missing == 0, -100, found_positives + missing)  # -100: only those among the candidates
    metric = ranking_metrics(k=(2, 10, 50))
    found = metric.per_query(scores, labels, counts)
    without = metric.per_query(scores, labels)
    for k in (2, 10, 50):
        theirs = ir_values([nDCG @ k, R @ k, AP], scores, labels, missing)
        assert found[f"ndcg@{k}"] == pytest.approx(theirs[nDCG @ k], nan_ok=True)
        assert found[f"recall@{k}"] == pytest.approx(theirs[R @ k], nan_ok=True)
        assert found["map"] == pytest.approx(theirs[AP], nan_ok=True)
        assert same({0: found[f"mrr@{k}"]}, {0: without[f"mrr@{k}"]})
        assert same({0: found[f"precision@{k}"]}, {0: without[f"precision@{k}"]})
    assert np.nanmean(found["map"]) < np.nanmean(without["map"])
    as_tuple = metric(evaluation((scores, None), (labels, counts[:, None])))
    assert as_tuple == pytest.approx({key: np.nanmean(values) for key, values in found.items()})
    graded = ranking_metrics(k=2, relevance_threshold=3).per_query([[1.0, 0.0]], [[3, 1]], [2])
    assert graded["ndcg@2"][0] == pytest.approx((3 + 1 / np.log2(3)) / (3 + 3 / np.log2(3)))
    with pytest.raises(ConfigurationError, match="num_relevant has 2 entries for 1 queries"):
        ranking_metrics().per_query([[1.0]], [[1]], [1, 2])


def test_a_set_whose_only_positives_are_missing_scores_zero():
    found = ranking_metrics()(evaluation(np.array([[1.0, 0.5]]), (np.array([[0, 0]]), np.array([2]))))
    assert set(found.values()) == {0.0}


def test_ties_count_against_the_system_in_whatever_order_the_documents_came():
    labels = np.array([[1, 0, 0, 2], [0, 2, 1, 0], [2, 1, 0, 0]])
    found = ranking_metrics(k=(1, 3, 4)).per_query(np.zeros((3, 4)), labels)
    for values in found.values():
        assert (values == values[0]).all()
    assert found["mrr@4"][0] == pytest.approx(1 / 3)
    assert found["hit@1"][0] == 0
    worst = 1 / np.log2(4) + 2 / np.log2(5)
    assert found["ndcg@4"][0] == pytest.approx(worst / (2 + 1 / np.log2(3)))


def test_soft_grades_and_negative_grades():
    found = ranking_metrics(k=3).per_query([[3.0, 2.0, 1.0]], [[0.2, -5.0, 0.9]])
    assert found["ndcg@3"][0] == pytest.approx((0.2 + 0.9 / 2) / (0.9 + 0.2 / np.log2(3)))
    assert found["map"][0] == 0
    found = ranking_metrics(k=3, relevance_threshold=0.5).per_query([[3.0, 2.0, 1.0]], [[0.2, -5.0, 0.9]])
    assert found["map"][0] == pytest.approx(1 / 3)


def test_soft_grades_below_the_threshold_leave_ndcg_defined(caplog):
    found = ranking_metrics(k=2)(evaluation(np.array([[2.0, 1.0]]), np.array([[0.4, 0.2]])))
    assert found["ndcg@2"] == 1.0
    assert math.isnan(found["map"])
    assert "highest label is 0.4, relevance starts at 1" in caplog.text


def test_a_score_that_is_nan_makes_its_query_nan(caplog):
    scores, labels = np.array([[1.0, np.nan], [1.0, np.nan]]), np.array([[1, 0], [1, -100]])
    assert np.isnan(ranking_metrics().per_query(scores, labels)["map"]).tolist() == [True, False]
    assert math.isnan(ranking_metrics()(evaluation(scores, labels))["ndcg@10"])
    assert "1 of 2 queries have scores that are NaN" in caplog.text
    assert len(caplog.records) == 1


# --- intervals and comparisons


def test_intervals_hold_the_value_narrow_with_n_and_are_reproducible():
    widths = []
    for rows in (100, 1600):
        logits, labels = pairs(rows=rows, decimals=4)
        found = binary_metrics(confidence=0.9, resamples=200)(evaluation(logits, labels))
        assert found == binary_metrics(confidence=0.9, resamples=200)(evaluation(logits, labels))
        point = binary_metrics()(evaluation(logits, labels))
        assert found.keys() == {name for key in point for name in (key, f"{key}_low", f"{key}_high")}
        for key, value in point.items():
            assert found[key] == value
            assert found[f"{key}_low"] <= value <= found[f"{key}_high"], key
        widths.append(found["roc_auc_high"] - found["roc_auc_low"])
    assert 2.5 < widths[0] / widths[1] < 6  # four times, in the long run
    other = binary_metrics(confidence=0.9, resamples=200, seed=1)(evaluation(logits, labels))
    assert other["roc_auc_low"] != found["roc_auc_low"]
    wider = binary_metrics(confidence=0.99, resamples=200)(evaluation(logits, labels))
    assert wider["roc_auc_high"] - wider["roc_auc_low"] > widths[1]


def test_intervals_are_scipys_and_cover_the_truth():
    rng = np.random.default_rng(0)
    x, y = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 80).T
    found = correlation_metrics(confidence=0.95, resamples=300)(evaluation(x, y))
    theirs = stats.bootstrap(
        (x, y),
        lambda a, b: stats.pearsonr(a, b).statistic,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=300,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert (found["pearson_low"], found["pearson_high"]) == pytest.approx(tuple(theirs))
    covered = 0
    for seed in range(60):
        x, y = np.random.default_rng(seed).multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 80).T
        found = correlation_metrics(confidence=0.8, resamples=60)(evaluation(x, y))
        covered += found["pearson_low"] <= 0.6 <= found["pearson_high"]
    assert 38 <= covered <= 57  # 48 expected


def test_resamples_that_are_degenerate_do_not_make_the_interval_nan(caplog):
    logits, labels = np.arange(12.0), np.array([0] * 11 + [1])
    found = binary_metrics(confidence=0.95, resamples=100)(evaluation(logits, labels))
    assert found["roc_auc_low"] == found["roc_auc_high"] == 1.0
    assert not caplog.records


def test_intervals_of_classes_labels_and_rankings():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 150)
    logits = rng.normal(size=(150, 3)) + 1.5 * np.eye(3)[labels]
    for metric, label_ids in (
        (multiclass_metrics(confidence=0.95, resamples=100), labels),
        (multilabel_metrics(confidence=0.95, resamples=100), np.eye(3)[labels]),
        (ranking_metrics(confidence=0.95, resamples=100), np.eye(3)[labels]),
    ):
        found = metric(evaluation(logits, label_ids))
        points = [key for key in found if not key.endswith(("_low", "_high"))]
        assert len(found) == 3 * len(points)
        for key in points:
            assert found[f"{key}_low"] <= found[key] <= found[f"{key}_high"], key
    by_query = ranking_metrics().per_query(logits, np.eye(3)[labels])["map"]
    expected = stats.bootstrap(
        (by_query,), np.mean, method="percentile", n_resamples=100, rng=np.random.default_rng(0)
    ).confidence_interval
    assert (found["map_low"], found["map_high"]) == pytest.approx(tuple(expected))


def test_compare_finds_a_difference_where_there_is_one():
    rng = np.random.default_rng(0)
    base = rng.random(200)
    better, noise = base + 0.05 + 0.1 * rng.normal(size=200), base + 0.1 * rng.normal(size=200)
    found = compare(better, base)
    assert isinstance(found, Comparison)
    assert found.p_value < 0.001
    assert found.n == 200
    assert found.difference == pytest.approx((better - base).mean())
    assert 0 < found.low < found.difference < found.high
    mirrored = compare(base, better)
    assert (mirrored.difference, mirrored.p_value) == pytest.approx((-found.difference, found.p_value))
    nothing = compare(noise, base)
    assert nothing.p_value > 0.05
    assert nothing.low < 0 < nothing.high
    assert compare(base, base).p_value == 1
    assert compare(better, base) == found
    assert repr(found).startswith("Comparison(difference=0.0")
    narrower = compare(better, base, confidence=0.5)
    assert narrower.high - narrower.low < found.high - found.low


def test_compare_counts_all_sign_patterns_of_a_few_queries():
    a, b = np.array([0.9, 0.8, 0.4, 0.7]), np.array([0.5, 0.6, 0.5, 0.4])
    differences = a - b
    signs = np.array(np.meshgrid(*[[-1, 1]] * 4)).reshape(4, -1).T
    extreme = np.abs((signs * differences).mean(1)) >= abs(differences.mean()) - 1e-12
    assert compare(a, b).p_value == pytest.approx(extreme.mean())


def test_compare_takes_per_query_values_and_leaves_out_padding(caplog):
    scores, labels = run_of(5)
    metric = ranking_metrics()
    new = metric.per_query(scores + np.where(labels > 0, 1.0, 0.0), labels)["ndcg@10"]
    old = metric.per_query(scores, labels)["ndcg@10"]
    found = compare(new, old, resamples=999)
    assert found.n == len(labels) - 1
    assert found.p_value < 0.01
    with pytest.raises(DataError, match="value 0 is NaN for only one system"):
        compare(new, np.zeros(len(new)))
    assert not caplog.records
    assert math.isnan(compare([0.5], [0.25]).p_value)
    assert compare([0.5], [0.25]).difference == 0.25
    assert math.isnan(compare([], []).difference)
    assert "0 queries have a value" in caplog.text


# --- evaluate's modules


@pytest.fixture(scope="module")
def modules():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets
        import evaluate

    def module(label, dtype, compute):
        features = datasets.Features({"predictions": dtype, "references": dtype})

        def info(self):
            return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

        def run(self, predictions, references, **options):
            return compute(np.array(predictions), np.array(references), **options)

        return type(label, (evaluate.Metric,), {"_info": info, "_compute": run})(keep_in_memory=True)

    integer, floating = datasets.Value("int32"), datasets.Value("float32")
    return SimpleNamespace(
        accuracy=module("Accuracy", integer, lambda p, r: {"accuracy": float((p == r).mean())}),
        f1=module("F1", integer, lambda p, r, average=None: {"f1": sk.f1_score(r, p, average=average)}),
        pearson=module("Pearson", floating, lambda p, r: {"pearsonr": stats.pearsonr(p, r).statistic}),
        subset=module("Subset", datasets.List(integer), lambda p, r: {"subset": (p == r).all(1).mean()}),
        words=module("Words", integer, lambda p, r: {"words": "many"}),
        combine=evaluate.combine,
    )


def test_evaluate_modules_get_labels_or_scores_by_their_features(modules):
    logits, labels = pairs()
    scores = special.expit(logits.astype(np.float64))
    found = from_evaluate(modules.accuracy, modules.pearson)(evaluation(logits[:, None], labels))
    assert found == pytest.approx(
        {"accuracy": sk.accuracy_score(labels, scores >= 0.5), "pearsonr": stats.pearsonr(scores, labels).statistic}
    )
    assert found["accuracy"] != (labels == 0).mean()  # what scores cut off to 0 would give
    strict = from_evaluate(modules.accuracy, threshold=0.8)(evaluation(logits, labels))
    assert strict["accuracy"] == pytest.approx(sk.accuracy_score(labels, scores >= 0.8))
    raw = from_evaluate(modules.pearson, activation="identity")(evaluation(logits, labels))
    assert raw["pearsonr"] == pytest.approx(stats.pearsonr(logits, labels).statistic, abs=1e-6)
    as_labels = from_evaluate(modules.pearson, predictions="labels")(evaluation(logits, labels))
    assert as_labels["pearsonr"] == pytest.approx(stats.pearsonr(scores >= 0.5, labels).statistic)
    padded = np.append(logits, 9.0), np.append(labels, -100)
    assert from_evaluate(modules.accuracy)(evaluation(*padded))["accuracy"] == found["accuracy"]


def test_evaluate_modules_read_classes_and_several_labels(modules, caplog):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    logits = rng.normal(size=(60, 3)) + np.eye(3)[labels]
    metric = from_evaluate(modules.f1)
    by_class = sk.f1_score(labels, logits.argmax(1), average=None)
    assert metric(evaluation(logits, labels)) == pytest.approx(
        dict(zip(("f1_0", "f1_1", "f1_2"), by_class, strict=True))
    )
    macro = from_evaluate(modules.f1, average="macro")(evaluation(logits, labels))
    assert macro == {"f1": pytest.approx(by_class.mean())}
    truth = np.eye(3)[labels]
    several = from_evaluate(modules.subset)(evaluation(logits, truth))
    assert several == {"subset": pytest.approx(((logits >= 0) == truth).all(1).mean())}
    both = from_evaluate(modules.combine([modules.accuracy, modules.f1]))(evaluation(logits, labels))
    assert set(both) == {"accuracy", "f1_0", "f1_1", "f1_2"}
    assert from_evaluate(modules.accuracy)(evaluation(np.zeros((0, 3)), np.zeros(0))) == {}
    assert "no labelled rows" in caplog.text


def test_any_object_with_compute_will_do():
    class Spread:
        def compute(self, *, predictions, references):
            return {
                "shape": len(predictions.shape),
                "spread": predictions.max() - predictions.min(),
                "ints": references.dtype.kind == "i",
            }

    logits, labels = np.array([[0.0], [2.0]]), np.array([0.0, 1.0])
    found = from_evaluate(Spread(), activation="identity")(evaluation(logits, labels))
    assert found == {"shape": 1.0, "spread": 2.0, "ints": 1.0}
    found = from_evaluate(Spread(), predictions="scores")(evaluation(np.log([[1.0, 3.0], [1.0, 1.0]]), labels))
    assert found == {"shape": 2.0, "spread": pytest.approx(0.5), "ints": 1.0}
    assert from_evaluate(Spread())(evaluation(np.zeros((2, 3)), labels))["shape"] == 1


def test_modules_whose_argument_is_called_prediction_scores():
    class Area:
        features = {"prediction_scores": None, "references": None}  # noqa: RUF012

        def compute(self, *, prediction_scores, references):
            return {"roc_auc": sk.roc_auc_score(references, prediction_scores)}

    logits, labels = pairs()
    assert from_evaluate(Area())(evaluation(logits, labels))["roc_auc"] == pytest.approx(
        sk.roc_auc_score(labels, logits)
    )


def test_evaluate_modules_that_do_not_go_together_are_named(modules):
    logits, labels = pairs()
    with pytest.raises(ConfigurationError, match="two modules report 'accuracy'"):
        from_evaluate(modules.accuracy, modules.accuracy)(evaluation(logits, labels))
    with pytest.raises(ConfigurationError, match="labels with modules for scores"):
        from_evaluate(modules.combine([modules.accuracy, modules.pearson]))(evaluation(logits, labels))
    with pytest.raises(ConfigurationError, match="words='many', which isn't a number"):
        from_evaluate(modules.words)(evaluation(logits, labels))
    with pytest.raises(ConfigurationError, match="EvaluateMetrics takes"):
        from_evaluate(modules.accuracy)(evaluation(np.zeros((5, 3)), np.zeros(4)))


def test_evaluate_modules_take_intervals(modules):
    logits, labels = pairs()
    found = from_evaluate(modules.accuracy, confidence=0.9, resamples=30)(evaluation(logits, labels))
    assert found["accuracy_low"] < found["accuracy"] < found["accuracy_high"]


def test_a_name_without_evaluate_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)
    with pytest.raises(MissingDependencyError, match=r"cross-trainer\[evaluate\]"):
        from_evaluate("accuracy")


def test_a_name_is_loaded_by_evaluate(monkeypatch):
    class Named:
        name = "half"

        def compute(self, **inputs):
            return {"half": 0.5}

    monkeypatch.setitem(sys.modules, "evaluate", SimpleNamespace(load=lambda name: Named() if name == "half" else None))
    metric = from_evaluate("half")
    assert metric(evaluation(np.array([1.0, 2.0]), np.array([0, 1]))) == {"half": 0.5}
    assert "names=('half',)" in repr(metric)


# --- all of them


def test_repr_is_the_specification_and_equal_metrics_are_equal():
    assert repr(ranking_metrics(k=[1, 10], confidence=0.95)) == (
        "RankingMetrics(k=(1, 10), relevance_threshold=1, confidence=0.95, resamples=1000, seed=0)"
    )
    assert repr(binary_metrics(0.5)).startswith("BinaryMetrics(threshold=0.5, activation='sigmoid', confidence=None")
    assert "names=('a', 'b')" in repr(multiclass_metrics(names=iter("ab")))
    assert ranking_metrics(k=10) == ranking_metrics(k=(10,))
    assert len({correlation_metrics(), correlation_metrics(), multilabel_metrics(names=["a"])}) == 2


def test_import_is_light():
    heavy = ("torch", "transformers", "sklearn", "scipy", "evaluate")
    code = f"import sys, cross_trainer.metrics; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_transformers_evalprediction_is_read():
    from transformers.trainer_utils import EvalPrediction

    logits, labels = pairs()
    given = EvalPrediction(predictions=(logits[:, None],), label_ids=labels)
    assert binary_metrics()(given) == binary_metrics()(evaluation(logits, labels))
