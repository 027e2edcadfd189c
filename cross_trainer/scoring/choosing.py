"""What becomes of a query's candidates: scored beside its positives, dropped by limits, taken as negatives.

P pairs to score.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cross_trainer.errors import DataError
from cross_trainer.scoring.cross_encoder import CrossEncoder
from cross_trainer.scoring.engine import best_first, with_logits

Scorer: TypeAlias = Callable[[list[tuple[str, str]]], Any]
Floats: TypeAlias = "NDArray[np.float64]"


@dataclass(frozen=True)
class Query:
    """A query, its distinct positives with their labels, and the keys of all texts that can't be negatives of it."""

    text: str
    positives: dict[str, int | float]
    excluded: frozenset[str]


@dataclass(frozen=True)
class Settings:
    """The arguments of `mine_hard_negatives` that decide what becomes of a candidate."""

    num_negatives: int
    range_min: int
    range_max: int
    absolute_margin: float | None
    relative_margin: float | None
    margin_to: str
    min_score: float | None
    max_score: float | None
    sampling_strategy: str
    output_format: str
    output_scores: bool
    seed: int

    @property
    def limits(self) -> list[str]:
        """The names of the arguments given that compare scores."""
        names = ("absolute_margin", "relative_margin", "min_score", "max_score")
        return [name for name in names if getattr(self, name) is not None]


def score_candidates(
    batch: list[Query], windows: list[list[str]], scorer: Scorer | None
) -> Iterator[tuple[Floats, Floats] | None]:
    """For each query the scores [P, 2] of its positives and of its candidates; None where there are none to compare."""
    texts = [[*query.positives, *window] if window else [] for query, window in zip(batch, windows, strict=True)]
    pairs = [(query.text, text) for query, row in zip(batch, texts, strict=True) for text in row]
    if scorer is None or not pairs:
        yield from [None] * len(batch)
        return
    scores = _scores_and_logits(scorer, pairs)
    end = 0
    for query, row in zip(batch, texts, strict=True):
        start, end = end, end + len(row)
        first = start + len(query.positives)
        yield (scores[start:first], scores[first:end]) if row else None


def _scores_and_logits(scorer: Scorer, pairs: list[tuple[str, str]]) -> Floats:
    """[P, 2]: the scores, and what orders those that are equal: the logits of a `CrossEncoder`, else the scores."""
    # A partial of `predict` that says where to score is as good; one that chooses the activation isn't.
    predict: Any = scorer.func if isinstance(scorer, functools.partial) and not scorer.args else scorer
    options = dict(getattr(scorer, "keywords", {}))
    encoder = getattr(predict, "__self__", None)
    is_ours = isinstance(encoder, CrossEncoder) and predict == encoder.predict and encoder.num_labels == 1
    if encoder is None or not is_ours or "activation" in options:
        return np.repeat(_numbers(scorer(pairs), pairs)[:, None], 2, axis=1)
    found = predict(pairs, **{"show_progress_bar": False, **options}, activation=with_logits(encoder.activation_fn))
    return np.stack([_numbers(column, pairs) for column in found.T], 1)


def _numbers(answer: Any, pairs: list[tuple[str, str]]) -> Floats:
    """What a scorer returned, as P floats.

    Raises:
        DataError: It isn't that, or a number isn't finite.
    """
    try:
        # A tensor on a GPU, or with a gradient, becomes an array only through a list.
        scores = np.asarray(answer.tolist() if hasattr(answer, "tolist") else answer, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"The scorer returned {answer!r:.200}. Expected one number for each pair.") from error
    if scores.shape != (len(pairs),):
        raise DataError(
            f"The scorer returned numbers of shape {list(scores.shape)} for {len(pairs)} pairs. Expected one for each; "
            "if the model has several labels, pick one, as in lambda pairs: model.predict(pairs)[:, 1]."
        )
    for pair in np.flatnonzero(~np.isfinite(scores))[:1]:
        raise DataError(
            f"The scorer returned {scores[pair]} for the pair {pairs[pair]!r:.200}. Scores have to be finite."
        )
    return scores


def choose(
    candidates: int, scores: tuple[Floats, Floats] | None, settings: Settings, counts: Counter[str], position: int
) -> list[int]:
    """The places of the negatives among a query's candidates, hardest first.

    Args:
        candidates: How many there are.
        scores: Of its positives and of its candidates, as `score_candidates` gives them.
        settings: What drops a candidate.
        counts: What became of candidates, counted on.
        position: The query's number, from which what is drawn follows.
    """
    places = np.arange(candidates)
    if scores is not None:
        places = _by_score(*scores, settings, counts)
    chosen = places[: settings.num_negatives]
    if settings.sampling_strategy == "random":
        # From the query's own position, so that neither the batch nor what other queries drew plays a part.
        draw = np.random.default_rng([settings.seed, position]).permutation(len(places))[: settings.num_negatives]
        chosen = places[np.sort(draw)]
    too_few = len(chosen) < settings.num_negatives
    if too_few:
        counts["queries_with_too_few" if len(chosen) else "queries_without_negatives"] += 1
    if too_few and settings.output_format == "n-tuple":
        chosen = chosen[:0]
    counts["taken"] += len(chosen)
    counts["left"] += len(places) - len(chosen)
    taken: list[int] = chosen.tolist()
    return taken


def _by_score(positives: Floats, candidates: Floats, settings: Settings, counts: Counter[str]) -> NDArray[np.intp]:
    """The places of the candidates that no limit drops, highest score first and equal ones by rank."""
    reference, logit = positives.min(0) if settings.margin_to == "lowest" else positives.max(0)
    logits, candidates = candidates[:, 1], candidates[:, 0]
    ceiling = math.inf
    if settings.absolute_margin is not None:
        ceiling = min(ceiling, reference - settings.absolute_margin)
    if settings.relative_margin is not None:
        ceiling = min(ceiling, reference - settings.relative_margin * abs(reference))
    above = (candidates > ceiling) | ((candidates == ceiling) & (ceiling == reference) & (logits > logit))
    outside = (candidates < limit_or(settings.min_score, -math.inf)) | (
        candidates > limit_or(settings.max_score, math.inf)
    )
    counts["false_negatives"] += int(above.sum())
    counts["outside_scores"] += int((outside & ~above).sum())
    places = np.flatnonzero(~above & ~outside)
    return places[best_first(candidates[places], logits[places])]


def limit_or(value: float | None, default: float) -> float:
    """A limit, or where there is none, what stands for it."""
    return default if value is None else value
