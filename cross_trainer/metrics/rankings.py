"""Metrics of rankings, and a test of whether two systems differ.

    compute_metrics=ranking_metrics(k=(1, 10))      # {"map": 0.61, "ndcg@1": 0.58, "mrr@1": ..., "ndcg@10": 0.66, ...}

G groups (queries), D documents of the largest group. `pairs.py` says what all metrics have in common.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cross_trainer.errors import ConfigurationError, DataError
from cross_trainer.metrics.report import (
    IGNORED,
    RESAMPLES_AT_ONCE,
    Evaluation,
    Floats,
    Indices,
    Measured,
    bootstrap_rows,
    check_interval,
    check_options,
    divide,
    finite_labels,
    misshaped,
    percentiles,
    read,
    report,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankingMetrics:
    """See `ranking_metrics`, which makes it."""

    k: tuple[int, ...] = (10,)
    relevance_threshold: float = 1
    confidence: float | None = None
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_options(self, threshold=self.relevance_threshold)
        if not self.k or len(set(self.k)) < len(self.k) or any(k != int(k) or k < 1 for k in self.k):
            raise ConfigurationError(
                f"k is {self.k}; give different whole numbers of 1 or more, as in ranking_metrics(k=(5, 10))"
            )

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        """Means over the queries of scores [G, D] against labels [G, D], or (labels [G, D], num_relevant [G])."""
        scores, labels = read(evaluation)
        ids = evaluation.label_ids
        counts = ids[1] if isinstance(ids, tuple) and len(ids) > 1 else None
        by_query = self.per_query(scores, labels, counts)
        asked = (labels != IGNORED).any(axis=1)
        values = {key: value[asked] for key, value in by_query.items()}
        undefined, reasons = self._undefined(
            values, labels[asked], None if counts is None else np.asarray(counts)[asked]
        )

        def means(rows: Indices) -> Measured:
            return {k: np.nan if k in undefined else float(v[rows].mean()) for k, v in values.items()}, reasons

        return report(self, means, int(asked.sum()))

    def per_query(
        self, predictions: ArrayLike, labels: ArrayLike, num_relevant: ArrayLike | None = None
    ) -> dict[str, Floats]:
        """The value of each query, for `compare`.

        Args:
            predictions: Scores [G, D].
            labels: Grades [G, D], -100 where there is no document.
            num_relevant: Number of relevant documents of each query [G], including those that aren't candidates.

        Returns:
            By key, one value per query [G]: NaN for a row of only -100, or with a NaN score.

        Raises:
            ConfigurationError: The shapes don't match.
            DataError: A label isn't finite, or a num_relevant is below the number of relevant candidates.
        """
        scores, grades = np.asarray(predictions, dtype=np.float64), finite_labels(labels)
        if scores.ndim != 2 or scores.shape != grades.shape:
            raise misshaped(self, scores, grades, "scores [G, D] and labels [G, D]: a row per query, padded with -100")
        real = grades != IGNORED
        found = (real & (grades >= self.relevance_threshold)).sum(axis=1)
        total = found if num_relevant is None else _totals(num_relevant, found, real.any(axis=1))
        # The last key sorts first: padding goes to the end, then by score, the least relevant first among equal scores.
        order = np.lexsort((grades, -scores, ~real), axis=-1)
        ranked, real = np.take_along_axis(grades, order, axis=-1), np.take_along_axis(real, order, axis=-1)
        values = self._values(np.where(real, ranked, -np.inf), total, total - found)
        broken = ~real.any(axis=1) | (np.isnan(scores) & (grades != IGNORED)).any(axis=1)
        return {key: np.where(broken, np.nan, value) for key, value in values.items()}

    def _values(self, ranked: Floats, total: Indices, missing: Indices) -> dict[str, Floats]:
        """Values for grades in the order of ranks [G, D], -inf where there is none, and counts of documents [G]."""
        documents, deepest = ranked.shape[1], max(self.k)
        relevant, gains = ranked >= self.relevance_threshold, np.maximum(ranked, 0)
        hits = np.pad(np.cumsum(relevant, axis=1), ((0, 0), (1, 0)))  # [G, D + 1], by number of documents read
        unseen = np.where(np.arange(deepest) < missing[:, None], max(1, self.relevance_threshold), 0)
        ideal = -np.sort(-np.concatenate((gains, unseen), axis=1), axis=1)
        discount = 1 / np.log2(np.arange(2, documents + deepest + 2))
        precision = hits[:, 1:] / np.arange(1, documents + 1)
        values = {"map": divide((relevant * precision).sum(axis=1), total, empty=0)}
        for k in (int(k) for k in self.k):
            depth, best = min(k, documents), ideal[:, :k] @ discount[:k]
            first = (hits[:, : depth + 1] == 0).sum(axis=1)  # rank of the first hit, or k + 1
            values |= {
                f"ndcg@{k}": divide(gains[:, :depth] @ discount[:depth], best, empty=0),
                f"mrr@{k}": np.where(first <= depth, 1 / first, 0),
                f"recall@{k}": divide(hits[:, depth], total, empty=0),
                f"precision@{k}": hits[:, depth] / k,
                f"hit@{k}": (hits[:, depth] > 0).astype(np.float64),
            }
        return values

    def _undefined(
        self, values: Mapping[str, Floats], labels: Floats, counts: NDArray[Any] | None
    ) -> tuple[set[str], list[str]]:
        """Keys that are undefined on the whole set, and why."""
        if not len(labels):
            return set(values), ["there are no labelled rows"]
        more = counts is not None and bool((counts > 0).any())
        relevant, gain = more or labels.max() >= self.relevance_threshold, more or labels.max() > 0
        undefined = {key for key in values if not (gain if key.startswith("ndcg") else relevant)}
        reasons = (
            [f"the highest label is {labels.max():g}, relevance starts at {self.relevance_threshold:g}"]
            if undefined
            else []
        )
        broken = int(np.isnan(values["map"]).sum())
        return undefined, [
            *reasons,
            *([f"{broken} of {len(labels)} queries have scores that are NaN"] if broken else []),
        ]


def ranking_metrics(
    k: int | Sequence[int] = 10,
    relevance_threshold: float = 1,
    confidence: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> RankingMetrics:
    """How well scores order the documents of each query.

        >>> from transformers import EvalPrediction
        >>> scores, grades = np.array([[0.9, 0.8, 0.1], [0.3, 0.7, 0.0]]), np.array([[0, 1, 1], [1, 0, -100]])
        >>> values = ranking_metrics(k=2)(EvalPrediction(scores, grades))
        >>> {key: round(value, 4) for key, value in values.items()}
        {'map': 0.5417, 'ndcg@2': 0.5089, 'mrr@2': 0.5, 'recall@2': 0.75, 'precision@2': 0.5, 'hit@2': 1.0}

    Takes scores [G, D] and grades [G, D]; both are padded where grades are -100, and rows of only -100 aren't queries.
    `label_ids` may also be a tuple (grades [G, D], num_relevant [G]), which the Trainer makes from
    `label_names=["labels", "num_relevant"]`. num_relevant counts all relevant documents of a query, so that those that
    the first stage missed lower recall, map and ndcg; -100 means "those among the candidates". As in trec_eval and
    ir-measures, values are means over the queries, and a query without relevant documents counts 0.

    Keys:
        ndcg@k: gain of the first k divided by that of the best order. The gain is the grade, 0 if negative, discounted
            by log2(1 + rank) (Jarvelin and Kekalainen 2002). A missing document's grade is taken to be 1, or
            `relevance_threshold` if that is higher.
        mrr@k: 1 / rank of the first relevant document, 0 if it isn't among the first k.
        map: mean over the relevant documents of the precision at their rank, 0 for missing ones. No cutoff.
        recall@k, precision@k: number of relevant documents among the first k, divided by that of all relevant ones, and
            by k even if there are fewer candidates.
        hit@k: 1 if one of the first k is relevant.

    Ties are broken against the system: of equal scores the least relevant document ranks first, so that a model which
    scores everything the same isn't rewarded for the order of its input.

    `ranking_metrics(...).per_query(scores, labels, num_relevant=None)` gives each query's values, for `compare`.

    Args:
        k: One cutoff or several.
        relevance_threshold: A document is relevant if its grade >= this. ndcg uses the grades themselves.
        confidence: Level of the bootstrap intervals, between 0 and 1; None for no intervals.
        resamples: Number of bootstrap draws of queries.
        seed: Seed of the bootstrap.

    Raises:
        ConfigurationError: An argument is out of its range; in a call, the shapes don't match.
        DataError: In a call, a label isn't finite, or a num_relevant is below the number of relevant candidates.
    """
    cutoffs = tuple(k) if isinstance(k, Sequence) else (k,)
    return RankingMetrics(cutoffs, relevance_threshold, confidence, resamples, seed)


def _totals(num_relevant: ArrayLike, found: Indices, asked: NDArray[np.bool_]) -> Indices:
    """Number of relevant documents of each query [G], checked against those found among its candidates."""
    total = np.asarray(num_relevant, dtype=np.float64).reshape(-1)
    if total.shape != found.shape:
        raise ConfigurationError(
            f"num_relevant has {total.size} entries for {found.size} queries; it holds one per query"
        )
    total = np.where(~asked | (total == IGNORED), found, total)
    wrong = np.flatnonzero(~(total >= found) | (total != np.floor(total)))
    if wrong.size:
        row = wrong[0]
        raise DataError(
            f"num_relevant of query {row} is {total[row]:g}, but {found[row]} of its candidates are relevant; it "
            "counts all relevant documents, including the candidates: give such a count, or -100"
        )
    return total.astype(np.int64)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        difference: Mean of a minus mean of b.
        low: Lower end of its bootstrap interval.
        high: Upper end.
        p_value: Probability of a difference at least as large, of either sign, if a and b were interchangeable.
        n: Queries or rows compared.
    """

    difference: float
    low: float
    high: float
    p_value: float
    n: int


def compare(a: ArrayLike, b: ArrayLike, confidence: float = 0.95, resamples: int = 9999, seed: int = 0) -> Comparison:
    """Whether two systems differ by more than chance: a paired permutation test of their values on the same queries.

        >>> grades = np.tile([0, 1, 0], (8, 1))
        >>> new, old = np.tile([0.1, 0.9, 0.5], (8, 1)), np.tile([0.9, 0.5, 0.1], (8, 1))
        >>> metric = ranking_metrics(k=3)
        >>> compare(metric.per_query(new, grades)["mrr@3"], metric.per_query(old, grades)["mrr@3"])
        Comparison(difference=0.5, low=0.5, high=0.5, p_value=0.0078125, n=8)

    Under the null hypothesis each query's two values may be swapped, which flips the sign of their difference (Smucker,
    Allan and Carterette 2007). With few queries all sign patterns are counted, otherwise `resamples` random ones.

    Args:
        a: One value per query or row [G].
        b: The other system's, in the same order. Queries that are NaN for both are ignored.
        confidence: Level of the percentile bootstrap interval of the difference, between 0 and 1.
        resamples: Permutations of the test, and draws of the bootstrap; 9999 take about a second per thousand queries.
        seed: Seed of both.

    Returns:
        Difference, interval and p-value; NaN, and a warning, for fewer than two queries.

    Raises:
        ConfigurationError: `a` and `b` differ in length, or an argument is out of its range.
        DataError: A value is NaN for only one system.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ConfigurationError(
            f"a and b have shapes {first.shape} and {second.shape}; give each of them one value per query"
        )
    check_interval(confidence, resamples)
    lone = np.flatnonzero(np.isnan(first) != np.isnan(second))
    if lone.size:
        raise DataError(f"value {lone[0]} is NaN for only one system; leave that query out of both")
    difference = (first - second)[~np.isnan(first)]
    if difference.size < 2:
        logger.warning("compare: only %d queries have a value; what is undefined is NaN", difference.size)
        return Comparison(
            float(difference.mean()) if difference.size else np.nan, np.nan, np.nan, np.nan, difference.size
        )
    from scipy.stats import permutation_test

    test = permutation_test(
        (difference,),
        np.mean,
        permutation_type="samples",  # of one sample: random signs
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, RESAMPLES_AT_ONCE // difference.size),
        rng=np.random.default_rng(seed),
    )
    draws = bootstrap_rows(lambda rows: difference[rows].mean(keepdims=True), difference.size, resamples, seed)
    low, high = percentiles(draws[0], confidence)
    return Comparison(float(difference.mean()), low, high, float(test.pvalue), difference.size)


def compare_statistic(
    statistic: Callable[[Floats, Indices], float],
    a: ArrayLike,
    b: ArrayLike,
    confidence: float = 0.95,
    resamples: int = 999,
    seed: int = 0,
) -> Comparison:
    """`compare` for a figure of all rows together that is no mean, such as a correlation or an average precision.

        >>> labels = np.array([1.0, 2, 3, 4, 5, 6])
        >>> found = compare_statistic(
        ...     lambda values, rows: np.corrcoef(values, labels[rows])[0, 1], labels, [4.0, 1, 3, 5, 6, 2], resamples=99
        ... )
        >>> round(found.difference, 3), found.n
        (0.8, 6)

    Under the null hypothesis each row's two values may be swapped. That needs values on one scale: give ranks where the
    figure depends on the order alone, and decisions where it depends on them.

    Args:
        statistic: Gives the figure for one system's values of all rows, as drawn [P], and the rows' indices [P]; NaN
            where it is undefined.
        a: One value per row [P].
        b: The other system's, in the same order.
        confidence: As for `compare`.
        resamples: As for `compare`; each takes two values of the statistic, for the test and for the interval.
        seed: As for `compare`.

    Returns:
        As for `compare`; NaN, and a warning, where the figure is undefined.

    Raises:
        ConfigurationError: `a` and `b` differ in length, or an argument is out of its range.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ConfigurationError(
            f"a and b have shapes {first.shape} and {second.shape}; give each of them one value per row"
        )
    check_interval(confidence, resamples)
    rows = np.arange(len(first))

    def difference(one: Floats, other: Floats) -> float:
        return statistic(one, rows) - statistic(other, rows)

    if len(first) < 2 or np.isnan(difference(first, second)):
        logger.warning("compare_statistic: the figure of %d rows is undefined, so it isn't compared", len(first))
        return Comparison(np.nan, np.nan, np.nan, np.nan, len(first))
    from scipy.stats import permutation_test

    test = permutation_test(
        (first, second),
        difference,
        permutation_type="samples",  # of paired samples: random swaps
        vectorized=False,
        n_resamples=resamples,
        batch=max(1, RESAMPLES_AT_ONCE // len(first)),
        rng=np.random.default_rng(seed),
    )
    draws = bootstrap_rows(
        lambda drawn: np.array([statistic(first[drawn], drawn) - statistic(second[drawn], drawn)]),
        *(len(first), resamples, seed),
    )
    low, high = percentiles(draws[0], confidence)
    return Comparison(float(test.statistic), low, high, float(test.pvalue), len(first))
