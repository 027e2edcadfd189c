"""The numbers behind the pictures of an evaluation: few, however many rows there are, and ready for JSON.

    binary_figures(scores, positive)["reliability"]     # [{"mean": 0.04, "share": 0.05, ...}, ...]

P pairs, G groups (queries), C classes or labels. What is undefined is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cross_trainer.metrics.pairs import _Cuts
from cross_trainer.metrics.report import IGNORED, Floats, Indices, divide

STEPS = 1_000  # of the threshold between 0 and 1
CUTS = 900  # thresholds at quantiles of the scores besides, where scores lie closer than steps
BINS = 40  # of a histogram
RELIABILITY_BINS = 10  # with as many rows each
POINTS = 1_000  # of a scatter plot
QUERIES = 400  # of a curve over queries
MOST_CLASSES = 20  # of a confusion matrix that can still be read


def binary_figures(scores: Floats, positive: NDArray[np.bool_]) -> dict[str, Any]:
    """What probabilities decide at each threshold, how they are distributed, and how often they come true.

    >>> figures = binary_figures(np.array([0.9, 0.7, 0.4, 0.2]), np.array([True, False, True, False]))
    >>> at = figures["thresholds"].index(0.5)
    >>> figures["predicted"][at], figures["hits"][at], figures["best"]["F1"]
    (2, 1, 0.30000000000000004)

    Args:
        scores: Probabilities [P].
        positive: Labels [P].

    Returns:
        `thresholds`, and for each the number of pairs `predicted` positive, which score at least that, and of `hits`
        among them; `rows` and `positives`; the thresholds that are `best`; a histogram, `edges` and `counts` by label;
        `reliability`.
    """
    cuts = _Cuts.of(scores, positive)
    best = {"F1": cuts.f1(), "accuracy": cuts.accuracy()} if positive.any() else {"accuracy": cuts.accuracy()}
    chosen = {name: float(np.clip(cuts.threshold[values.argmax()], 0, 1)) for name, values in best.items()}
    places = np.unique(np.linspace(0, len(cuts.threshold) - 1, CUTS).astype(np.int64))
    steps, quantiles = np.arange(STEPS + 1) / STEPS, np.clip(cuts.threshold[places], 0, 1)
    thresholds: Floats = np.unique(np.concatenate([steps, quantiles, np.array([*chosen.values()])]))
    edges = np.linspace(0, 1, BINS + 1)
    return {
        "thresholds": thresholds.tolist(),
        "predicted": _at_least(scores, thresholds),
        "hits": _at_least(scores[positive], thresholds),
        "rows": len(scores),
        "positives": int(positive.sum()),
        "best": chosen,
        "edges": edges.tolist(),
        "counts": [np.histogram(scores[which], edges)[0].tolist() for which in (~positive, positive)],
        "reliability": reliability(scores, positive),
    }


def _at_least(scores: Floats, thresholds: Floats) -> list[int]:
    return (len(scores) - np.searchsorted(np.sort(scores), thresholds)).tolist()  # type: ignore[no-any-return]


def class_figures(chances: Floats, classes: Indices, names: Sequence[str]) -> dict[str, Any]:
    """Which class is taken for which, and how often the chosen class's probability comes true.

    >>> figures = class_figures(np.array([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]]), np.array([0, 1, 1]), ["no", "yes"])
    >>> figures["confusion"], figures["classes"][1]
    ([[1, 0], [1, 1]], {'name': 'yes', 'rows': 2, 'precision': 1.0, 'recall': 0.5, 'f1': 0.6666666666666666})

    Args:
        chances: Probabilities [P, C].
        classes: Labels [P].
        names: Of the classes.

    Returns:
        `classes`, each with its rows, precision, recall and F1; `confusion`, a row for each label and a column for each
        prediction; its `names`, which end with "others" if only the most frequent classes have their own; `reliability`
        of the likeliest class.
    """
    chosen, count = chances.argmax(axis=1), len(names)
    table = np.bincount(classes * count + chosen, minlength=count**2).reshape(count, count)
    shown = list(names)
    counts = _by_class(names, table.diagonal(), table.sum(axis=0), table.sum(axis=1))
    if count > MOST_CLASSES:
        frequent = np.sort(np.argsort(-table.sum(axis=1), kind="stable")[: MOST_CLASSES - 1])
        places = np.full(count, MOST_CLASSES - 1)
        places[frequent] = np.arange(MOST_CLASSES - 1)
        small = np.zeros((MOST_CLASSES, MOST_CLASSES), dtype=np.int64)
        np.add.at(small, (places[:, None], places[None, :]), table)
        table, shown = small, [*(names[index] for index in frequent), "others"]
    right = reliability(chances.max(axis=1), chosen == classes)
    return {"classes": counts, "names": shown, "confusion": table.tolist(), "reliability": right}


def label_figures(chances: Floats, labels: Floats, names: Sequence[str]) -> dict[str, Any]:
    """How well each of several labels at once is predicted, with 0.5 as the threshold.

        >>> scores, labels = np.array([[0.8, 0.2], [0.6, 0.7]]), np.array([[1, 0], [0, -100]])
        >>> label_figures(scores, labels, ["fresh", "long"])["classes"]
        [{'name': 'fresh', 'rows': 1, 'precision': 0.5, 'recall': 1.0, 'f1': 0.6666666666666666},
         {'name': 'long', 'rows': 0, 'precision': nan, 'recall': nan, 'f1': nan}]

    Args:
        chances: Probabilities [P, C].
        labels: 0 and 1, or -100 for unknown [P, C].
        names: Of the labels.

    Returns:
        `classes` as those of `class_figures`, and the `reliability` of all decisions together.
    """
    known, true, predicted = labels != IGNORED, labels == 1, chances >= 0.5
    counts = ((entries & known).sum(axis=0) for entries in (predicted & true, predicted, true))
    return {"classes": _by_class(names, *counts), "reliability": reliability(chances[known], true[known])}


def _by_class(names: Sequence[str], hits: Indices, predicted: Indices, occurs: Indices) -> list[dict[str, Any]]:
    columns = (divide(hits, predicted), divide(hits, occurs), divide(2 * hits, predicted + occurs))
    return [
        {"name": name, "rows": int(rows), "precision": float(first), "recall": float(second), "f1": float(third)}
        for name, rows, first, second, third in zip(names, occurs, *columns, strict=True)
    ]


def number_figures(scores: Floats, labels: Floats, seed: int = 0) -> dict[str, Any]:
    """Scores and labels of up to `POINTS` random rows, and the line that predicts labels from scores best.

    >>> number_figures(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0]))["points"]
    [[0.0, 1.0], [1.0, 3.0], [2.0, 5.0]]

    Args:
        scores: [P].
        labels: [P].
        seed: Of the draw.

    Returns:
        `points`, `rows`, and the `slope` and `intercept` of `line`.
    """
    rows = np.arange(len(scores))
    if len(rows) > POINTS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, POINTS, replace=False))
    slope, intercept = line(scores, labels)
    points = np.stack([scores[rows], labels[rows]], axis=1)
    return {"points": points.tolist(), "rows": len(scores), "slope": slope, "intercept": intercept}


def line(scores: Floats, labels: Floats) -> tuple[float, float]:
    """Slope and intercept of the labels as a linear function of scores, by least squares; flat for constant scores.

    >>> line(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0]))
    (2.0, 1.0)
    """
    spread = scores - scores.mean()
    slope = float(divide(spread @ labels, spread @ spread, empty=0))
    return slope, float(labels.mean() - slope * scores.mean())


def ranking_figures(values: Floats) -> dict[str, Any]:
    """The quality of queries [G], worst first; of more than `QUERIES`, that of as many evenly chosen ones.

    >>> ranking_figures(np.array([0.9, 0.2, 0.5]))
    {'queries': 3, 'sorted': [0.2, 0.5, 0.9]}
    """
    ordered = np.sort(values)
    places = np.unique(np.linspace(0, len(ordered) - 1, QUERIES).astype(np.int64))
    return {"queries": len(ordered), "sorted": ordered[places].tolist()}


def reliability(said: Floats, seen: NDArray[np.bool_], bins: int = RELIABILITY_BINS) -> list[dict[str, float]]:
    """How often what has a probability comes true, in bins of as many rows each.

    >>> reliability(np.array([0.1, 0.1, 0.8, 0.8]), np.array([False, False, True, False]), bins=2)
    [{'mean': 0.1, 'share': 0.0, 'low': 0.0, 'high': 0.657..., 'rows': 2},
     {'mean': 0.8, 'share': 0.5, 'low': 0.094..., 'high': 0.905..., 'rows': 2}]

    Args:
        said: Probabilities [P].
        seen: What came true [P].
        bins: How many; equal probabilities are never parted, so fewer may be filled.

    Returns:
        For each bin the mean probability, and the share that came true with its 95 % interval (Wilson 1927).
    """
    if not len(said):
        return []
    edges = np.quantile(said, np.linspace(0, 1, bins + 1)[1:-1])
    places = np.searchsorted(edges, said)
    counts = np.bincount(places, minlength=bins)
    filled, rows = counts > 0, counts[counts > 0]
    mean, share = (np.bincount(places, each, minlength=bins)[filled] / rows for each in (said, seen))
    z = 1.96
    middle = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z * np.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2)) / (1 + z**2 / rows)
    columns = (mean, share, np.maximum(middle - half, 0), np.minimum(middle + half, 1), rows)
    names = ("mean", "share", "low", "high", "rows")
    return [dict(zip(names, (each.item() for each in entry), strict=True)) for entry in zip(*columns, strict=True)]
