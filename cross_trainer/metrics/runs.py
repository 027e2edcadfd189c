"""Metrics of a judged collection: a run of all its queries, measured by ir_measures.

    metrics = RunMetrics(collection.qrels, collection.candidates, measures)
    metrics.per_query(run)["ndcg@10"]                       # one value per judged query, for `compare`
    metrics(evaluation)                                     # {"ndcg@10": 0.66, ...}, as the Trainer calls it

The judgements count, and not the labels of the rows: a relevant document that is no candidate is missed, and a judged
query without candidates counts 0.

G queries with candidates, D documents of the longest list, Q judged queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from cross_trainer.errors import ConfigurationError
from cross_trainer.metrics.report import Evaluation, Floats, Indices, Measured, check_interval, report

Run: TypeAlias = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class RunMetrics:
    """See the module.

    Args:
        qrels: Query id to document id to grade.
        candidates: Query id to document ids, in the order of the rows and columns of scores.
        measures: Measures of ir_measures by the keys of their values.
        rank: From a query's scores by document id to those that are measured, which have no ties.
        confidence: Level of the bootstrap intervals, between 0 and 1; None for no intervals.
        resamples: Number of bootstrap draws of queries.
        seed: Seed of the bootstrap.
    """

    qrels: Mapping[str, Mapping[str, int]] = field(repr=False)
    candidates: Mapping[str, Sequence[str]] = field(repr=False)
    measures: Mapping[str, Any]
    rank: Callable[[dict[str, float]], dict[str, float]] = field(default=dict, repr=False)
    confidence: float | None = None
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_interval(self.confidence, self.resamples)

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        """Means over the judged queries of scores [G, D], padded at the ends of rows."""
        predictions = evaluation.predictions
        return self.report(self.per_query(self.run(predictions[0] if isinstance(predictions, tuple) else predictions)))

    def report(self, values: Mapping[str, Floats]) -> dict[str, float]:
        """Means of the values [Q] of `per_query`, with their intervals."""
        broken = int(np.isnan(next(iter(values.values()))).sum())
        reasons = [f"{broken} of {len(self.qrels)} queries have scores that are NaN or infinite"] if broken else []

        def means(rows: Indices) -> Measured:
            return {key: float(value[rows].mean()) for key, value in values.items()}, reasons

        return report(self, means, len(self.qrels))

    def run(self, predictions: ArrayLike) -> dict[str, dict[str, float]]:
        """Scores [G, D] as a run, with a query's documents best first.

        Raises:
            ConfigurationError: They aren't those of the candidates.
        """
        scores = np.asarray(predictions)
        longest = max(map(len, self.candidates.values()))
        if scores.ndim != 2 or len(scores) != len(self.candidates) or scores.shape[1] < longest:
            raise ConfigurationError(
                f"A collection with {len(self.candidates)} queries of up to {longest} candidates takes one score for "
                f"each; it got predictions {scores.shape}: choose a model with one label."
            )
        rows = zip(self.candidates.items(), scores, strict=True)
        return self.ranked({query: row[: len(names)].tolist() for (query, names), row in rows})

    def ranked(self, scores: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
        """Each query's scores, in the order of its candidates, as a run."""
        run = {}
        for query, names in self.candidates.items():
            given = dict(zip(names, scores[query], strict=True))
            run[query] = self.rank(given) if np.isfinite([*given.values()]).all() else given
        return run

    def per_query(self, run: Run) -> dict[str, Floats]:
        """The value of each judged query [Q] by key, in the order of the judgements, as ir_measures computes it.

        NaN for a query with a score that isn't finite.
        """
        import ir_measures

        broken = [query for query, scores in run.items() if not np.isfinite([*scores.values()]).all()]
        whole = {query: dict(scores) for query, scores in run.items() if query not in set(broken)}
        places = {query: place for place, query in enumerate(self.qrels)}
        values: dict[str, Floats] = {key: np.zeros(len(places)) for key in self.measures}
        keys = {str(measure): key for key, measure in self.measures.items()}
        qrels = {query: dict(grades) for query, grades in self.qrels.items()}
        for found in ir_measures.iter_calc(list(self.measures.values()), qrels, whole):
            values[keys[str(found.measure)]][places[found.query_id]] = found.value
        for value in values.values():
            value[[places[query] for query in broken]] = np.nan
        return values
