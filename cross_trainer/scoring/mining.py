"""Hard negatives: documents that a first stage ranks high for a query, and that don't answer it.

    mined = mine_hard_negatives(dataset, corpus, scorer=cross_encoder.predict, relative_margin=0.05, num_negatives=4)
    mined.dataset       # (query, positive, negative), ready for training
    mined.statistics    # what was looked at, what was dropped and why

For each query: retrieve candidates; drop its positives, by their text, and repeated texts; keep the window of ranks;
score what is left; drop what scores like a positive, as it probably is one that nobody labelled; take n of the rest.

Queries are processed in batches, so a corpus may stay on disk (a column of a `datasets.Dataset`): only one batch's
candidates are in memory as texts and scored at a time. The result never depends on how the queries were batched.

Q queries of a batch, N documents of the corpus, P pairs to score.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from cross_trainer.data.columns import Columns, Rows, check_text, plain_list
from cross_trainer.data.grouping import list_schema, new_schema, read_groups, to_dataset, to_table
from cross_trainer.data.retrieval import (
    DenseRetriever,
    HybridRetriever,
    Retriever,
    check_retriever,
    read_hits,
    start_retriever,
)
from cross_trainer.data.survey import BATCH_ROWS
from cross_trainer.errors import ConfigurationError, DataError, check_whole
from cross_trainer.scoring.choosing import Floats, Query, Scorer, Settings, choose, limit_or, score_candidates

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

logger = logging.getLogger(__name__)

OutputFormat: TypeAlias = Literal["triplet", "n-tuple", "labeled-pair", "labeled-list"]
DEFAULT_RANGE = 100
_NO_LOSS = {"queries", "candidates", "seconds"}


@dataclass(frozen=True)
class MiningStatistics:
    """What happened to every candidate and every query.

    >>> MiningStatistics(queries=2, candidates=4, positives=1, taken=3).left
    0

    `candidates` is the sum of `positives`, `duplicates`, `outside_range`, `false_negatives`, `outside_scores`, `taken`
    and `left`.

    Args:
        queries: Distinct queries with a positive.
        candidates: Documents that the retriever returned for them.
        positives: Candidates dropped because their text is that of one of the query's positives, or of the query.
        duplicates: Candidates dropped because they repeat the text of an earlier one of the same query.
        outside_range: Candidates outside the window of ranks.
        false_negatives: Candidates dropped by a margin, because they score like a positive.
        outside_scores: Candidates dropped by `min_score` or `max_score`.
        taken: Candidates that became negatives.
        left: Candidates that could have been taken, including those of queries that aren't in the result.
        queries_without_negatives: Queries that lost all their candidates; they aren't in the result.
        queries_with_too_few: Queries with some negatives, but fewer than `num_negatives`; as n-tuples they aren't in
            the result.
        seconds: How long it took, including indexing and scoring.
    """

    queries: int = 0
    candidates: int = 0
    positives: int = 0
    duplicates: int = 0
    outside_range: int = 0
    false_negatives: int = 0
    outside_scores: int = 0
    taken: int = 0
    left: int = 0
    queries_without_negatives: int = 0
    queries_with_too_few: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class MinedNegatives:
    """The mined rows, and statistics of where they come from; see `mine_hard_negatives`.

    >>> rows = [("boil an egg", "boil it for eight minutes"), ("fly a kite", "boil nothing, wait for wind")]
    >>> isinstance(mine_hard_negatives(rows, num_negatives=1), MinedNegatives)
    True

    Args:
        dataset: Rows in the format asked for.
        statistics: What was taken, what was dropped and why.
    """

    dataset: Dataset
    statistics: MiningStatistics


def mine_hard_negatives(
    dataset: Rows,
    corpus: Iterable[str] | None = None,
    *,
    retriever: str | DenseRetriever | HybridRetriever | Retriever = "bm25",
    scorer: Scorer | None = None,
    columns: Columns | Sequence[str] | None = None,
    num_negatives: int = 3,
    range_min: int = 0,
    range_max: int | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    margin_to: Literal["lowest", "highest"] = "lowest",
    min_score: float | None = None,
    max_score: float | None = None,
    sampling_strategy: Literal["top", "random"] = "top",
    output_format: OutputFormat = "triplet",
    output_scores: bool = False,
    batch_size: int = 256,
    seed: int = 0,
    show_progress: bool | None = None,
) -> MinedNegatives:
    """Find negatives that are hard to tell from the positives.

    >>> rows = [("boil an egg", "boil it for eight minutes"), ("fly a kite", "boil nothing, wait for wind")]
    >>> mine_hard_negatives(rows, num_negatives=1).dataset[0]
    {'text_1': 'boil an egg', 'text_2': 'boil it for eight minutes', 'negative': 'boil nothing, wait for wind'}

    Texts count as equal if they are so after lowering case and joining white space. Rows with an equal query are one
    query, with all of their positives. A document equal to the query isn't a negative either, as in matching questions
    with questions.

    For each query `range_max` candidates are retrieved, plus one for the query itself and one for each of its
    positives, as those may take up places. Repeated texts take up places too, and nothing is retrieved to replace them:
    from a corpus with many of them, a query may get fewer negatives than there are further down its ranks.

    Args:
        dataset: Rows `(query, positive)`, or `(query, document, label)` or `(query, documents, labels)`, in which a
            label above 0 marks a positive.
        corpus: The documents to look in: a list or another sequence, a column of a data set on disk, which stays there,
            or any other iterable, which is read into memory. Default: the distinct documents of `dataset`, including
            those with label 0.
        retriever: "bm25" (extra `mining`), which finds documents that share a word with the query; the name of a
            SentenceTransformer or a `DenseRetriever` (extra `dense`), by vectors; "bm25+" and such a name or a
            `HybridRetriever` for both; or a callable on (Q queries, k), with k up to N, that returns for each query
            indices into the corpus, or tuples that start with one, best first. No more than k are read, and of scores
            in such tuples only the order counts. BM25 (Lucene's, k1 1.5, b 0.75) splits texts into words of two or more
            letters and digits, in lower case and without English stop words, and keeps its index in memory. For
            languages written without spaces, choose another.
        scorer: A callable on a list of P `(query, document)` that returns P numbers, higher for more relevant. It is
            called once per batch of queries, with their positives and all candidates in the window. Of
            `CrossEncoder.predict` the logits are read as well: they order documents whose scores are rounded to one.
        columns: The names `(query, document)` or `(query, document, label)`. Default: by their names and types.
        num_negatives: The most negatives to take for a query.
        range_min: The first rank to take. Ranks count from 0 in the retriever's order, without positives and repeated
            texts.
        range_max: The rank to stop before. Default: 100 after `range_min`.
        absolute_margin: Drop what scores above the positive's score minus this, 0 or more.
        relative_margin: Drop what scores above the positive's score minus this share, 0 to 1, of its magnitude: 0.05
            keeps up to 95 % of a score above 0 (Moreira et al. 2024, "NV-Retriever", TopK-PercPos). For scores that
            have a zero, such as probabilities and cosines, not for logits.
        margin_to: Of several positives, measure from the "lowest"-scored one, so that no negative outscores any
            positive, or from the "highest", for data whose positives aren't all good.
        min_score: Drop what scores below: too easy.
        max_score: Drop what scores above: too good to be wrong.
        sampling_strategy: "top" takes the hardest, by score if there is a scorer, else by rank; "random" draws from all
            that are left, the same for the same seed whatever the batch size.
        output_format: With the data's own names for query and positive (of lists, the document is called "positive" in
            the first two formats and "document" in the third),
            "triplet": a row `(query, positive, negative)` for each positive and each negative;
            "n-tuple": a row `(query, positive, negative, negative_2, ...)` for each positive;
            "labeled-pair": rows `(query, document, label)`;
            "labeled-list": a row `(query, documents, labels)` for each query, positives first.
            Negatives have label 0. Positives have label 1, but those of lists keep the label that they have there.
        output_scores: Keep the scorer's numbers for a student to learn, of `CrossEncoder.predict` the logits: of
            triplets and n-tuples in a column `scores`, the positive's first; of pairs and lists in a column `score` or
            `scores` instead of the label.
        batch_size: How many queries are retrieved and scored at a time.
        seed: For random sampling, 0 or more.
        show_progress: True or False; None shows progress only on a terminal.

    Returns:
        The rows, query by query in the order in which queries first appear, and the statistics.

    Raises:
        ConfigurationError: Arguments are out of range or contradict each other: margins and score limits without a
            scorer, a scorer that decides nothing, a retriever of your own without a corpus, a window of fewer than
            `num_negatives` ranks.
        DataError: There is no row, no positive or no document, a text is None, a list has no labels, a column has the
            name of one of the result, a retriever or scorer returned something of the wrong shape, or nothing was found
            for any query.
        MissingDependencyError: bm25s isn't installed.

    Example:
        >>> rows = [{"query": "how tall is Everest", "answer": "8,849 metres."}]
        >>> corpus = ["Everest lies in Nepal.", "Logan is tall.", "Everest is tall.", "8,849 metres."]
        >>> mined = mine_hard_negatives(rows, corpus, num_negatives=2)
        >>> mined.dataset["negative"][:]
        ['Everest is tall.', 'Logan is tall.']
        >>> mined.statistics.candidates, mined.statistics.taken, mined.statistics.left
        (3, 2, 1)
    """
    start = time.perf_counter()
    settings = Settings(
        num_negatives,
        range_min,
        range_min + DEFAULT_RANGE if range_max is None else range_max,
        absolute_margin,
        relative_margin,
        margin_to,
        min_score,
        max_score,
        sampling_strategy,
        output_format,
        output_scores,
        seed,
    )
    _check_settings(settings, batch_size)
    _check_parts(settings, corpus, retriever, scorer)
    schema, queries, documents = _read(dataset, columns, settings)
    texts = _Corpus(documents if corpus is None else corpus)
    # Every document is read before the long work, so that a bad one is an error before it.
    find = start_retriever(retriever, _bar(texts, "Reading the corpus", "document", show_progress))
    counts = Counter(queries=len(queries))
    tables = []
    for position, batch in _batches(queries, batch_size, show_progress):
        windows = _retrieve(batch, texts, find, settings, counts)
        rows: list[tuple[Any, ...]] = []
        for place, scores in enumerate(score_candidates(batch, windows, scorer)):
            chosen = choose(len(windows[place]), scores, settings, counts, position + place)
            negatives = [windows[place][index] for index in chosen]
            kept = None if scores is None or not output_scores else _Scores.of(scores, chosen)
            rows += _rows(batch[place], negatives, settings.output_format, kept)
        tables.append(to_table(rows, schema))
    statistics = MiningStatistics(**counts, seconds=time.perf_counter() - start)
    return MinedNegatives(_joined(tables, statistics), statistics)


# -- checking ----------------------------------------------------------------------------------------------------------


def _check_settings(settings: Settings, batch_size: int) -> None:
    for name, lowest in (("num_negatives", 1), ("range_min", 0), ("range_max", 1), ("seed", 0), ("batch_size", 1)):
        check_whole(name, batch_size if name == "batch_size" else getattr(settings, name), lowest)
    if settings.range_max - settings.range_min < settings.num_negatives:
        raise ConfigurationError(
            f"range_min={settings.range_min} and range_max={settings.range_max} leave fewer ranks than "
            f"num_negatives={settings.num_negatives}. Raise range_max to {settings.range_min + settings.num_negatives} "
            "or more."
        )
    for name, highest in (("absolute_margin", math.inf), ("relative_margin", 1)):
        value = getattr(settings, name)
        if value is not None and not (0 <= value <= highest and math.isfinite(value)):
            raise ConfigurationError(f"{name}={value!r}: expected a number from 0 {'up' if highest > 1 else 'to 1'}.")
    low, high = (
        limit_or(value, limit) for value, limit in ((settings.min_score, -math.inf), (settings.max_score, math.inf))
    )
    if not low <= high:  # also where one of them is NaN
        raise ConfigurationError(f"min_score={low!r} and max_score={high!r}: no score lies between them.")
    for name, choices in (
        ("margin_to", ("lowest", "highest")),
        ("sampling_strategy", ("top", "random")),
        ("output_format", get_args(OutputFormat)),
    ):
        if getattr(settings, name) not in choices:
            raise ConfigurationError(
                f"{name}={getattr(settings, name)!r}: expected one of {', '.join(map(repr, choices))}."
            )


def _check_parts(settings: Settings, corpus: Any, retriever: Any, scorer: Any) -> None:
    check_retriever(retriever)
    own = not isinstance(retriever, str | DenseRetriever | HybridRetriever) and not hasattr(retriever, "encode_query")
    if own and corpus is None:
        raise ConfigurationError("A retriever of your own returns indices into a corpus: pass the corpus too.")
    if isinstance(corpus, str | Mapping) or hasattr(corpus, "column_names") or hasattr(corpus, "columns"):
        raise ConfigurationError(
            f"corpus is a {type(corpus).__name__}: expected the documents themselves, such as a list of texts, "
            "a column dataset['text'] or list(documents.values())."
        )
    if scorer is not None and not callable(scorer):
        raise ConfigurationError(
            f"scorer is a {type(scorer).__name__}: expected a callable, such as cross_encoder.predict."
        )
    if scorer is None and settings.limits:
        raise ConfigurationError(
            f"{settings.limits[0]} compares scores, and there is no scorer. Pass one, such as "
            "scorer=cross_encoder.predict."
        )
    if scorer is None and settings.output_scores:
        raise ConfigurationError(
            "output_scores=True keeps scores, and there is no scorer. Pass one, such as scorer=cross_encoder.predict."
        )
    decides = settings.sampling_strategy == "top" or settings.limits or settings.output_scores
    if scorer is not None and not decides:
        raise ConfigurationError(
            "The scorer decides nothing: sampling_strategy='random' also needs a margin or a score limit. "
            "Set one, sample from the 'top', or leave the scorer out."
        )


# -- reading -----------------------------------------------------------------------------------------------------------


def _read(
    dataset: Rows, columns: Columns | Sequence[str] | None, settings: Settings
) -> tuple[pa.Schema, list[Query], list[str]]:
    """The columns of the result, the queries that have a positive, and all distinct documents.

    Raises:
        DataError: A row can't be read, or none has a positive.
    """
    import pyarrow as pa

    resolved, found, groups = read_groups(dataset, columns, normalized, lists=True)
    if resolved.class_names is not None and len(resolved.class_names) > 2:
        raise DataError(
            f"Column {resolved.label!r} holds the classes {list(resolved.class_names)}: which one marks a positive "
            "isn't known. Map them to 0 and 1 first, or name another column."
        )
    graded = resolved.shape == "list"
    queries = []
    documents: dict[str, str] = {}
    for group in groups:
        positives = {text: label if graded else 1 for text, label in group.documents.values() if label > 0}
        if positives:
            own = frozenset(map(normalized, (group.query, *positives)))
            queries.append(Query(group.query, positives, own))
        for key, (text, _) in group.documents.items():
            documents.setdefault(key, text)
    if not queries:
        raise DataError(
            f"Column {resolved.label!r}: the labels range from {found.minimum:g} to {found.maximum:g}, and only one "
            "above 0 marks a positive. Shift the labels or name another column."
        )
    number = pa.float64() if graded and not found.integers else pa.int64()
    document = None if graded else resolved.documents[0]
    number = pa.float64() if settings.output_scores else number
    return _schema(resolved.query, document, number, settings), queries, list(documents.values())


def normalized(text: str) -> str:
    """What equal texts have in common: lower case, one space between words."""
    return " ".join(text.lower().split())


class _Corpus:
    """The documents by index; each is checked when it is read.

    Raises:
        DataError: There is no document, or one that is read isn't a text.
    """

    def __init__(self, documents: Iterable[str]) -> None:
        from datasets.arrow_dataset import Column

        self._documents = documents if isinstance(documents, Sequence) else plain_list(documents)
        self._is_column = isinstance(documents, Column)
        if not len(self._documents):
            raise DataError("The corpus is empty: there is no document to take negatives from.")

    def __len__(self) -> int:
        return len(self._documents)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BATCH_ROWS):
            yield from self.take(range(start, min(start + BATCH_ROWS, len(self))))

    def take(self, indices: Sequence[int]) -> list[str]:
        """The texts of these documents."""
        documents: Any = self._documents
        # A column takes all indices at once: one look-up in an Arrow table costs as much as a hundred rows of it.
        texts = list(documents[indices]) if self._is_column else [documents[index] for index in indices]
        return [check_text(text, f"The corpus, document {index}") for index, text in zip(indices, texts, strict=True)]


# -- retrieving --------------------------------------------------------------------------------------------------------


def _retrieve(
    batch: list[Query], texts: _Corpus, find: Retriever, settings: Settings, counts: Counter[str]
) -> list[list[str]]:
    """Each query's candidates in the window of ranks, best first."""
    wanted = [min(settings.range_max + len(query.excluded), len(texts)) for query in batch]
    answer = find([query.text for query in batch], max(wanted))
    # A query's candidates are cut to what it alone would have asked for: others of the batch don't change its result.
    found = [row[:k] for row, k in zip(read_hits(answer, len(batch), len(texts)), wanted, strict=True)]
    distinct = sorted({index for row in found for index in row})
    documents = dict(zip(distinct, texts.take(distinct), strict=True))
    return [
        _window(query, [documents[index] for index in row], settings, counts)
        for query, row in zip(batch, found, strict=True)
    ]


def _window(query: Query, candidates: list[str], settings: Settings, counts: Counter[str]) -> list[str]:
    seen: set[str] = set()
    kept = []
    for text in candidates:
        key = normalized(text)
        if key in query.excluded:
            counts["positives"] += 1
        elif key in seen:
            counts["duplicates"] += 1
        else:
            seen.add(key)
            kept.append(text)
    window = kept[settings.range_min : settings.range_max]
    counts["candidates"] += len(candidates)
    counts["outside_range"] += len(kept) - len(window)
    return window


# -- writing -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scores:
    """The scores of a query's positives, and of its negatives in their order."""

    positives: list[float]
    negatives: list[float]

    @classmethod
    def of(cls, scores: tuple[Floats, Floats], chosen: list[int]) -> _Scores:
        """Those that a student learns: the second of the two of a pair."""
        return cls(scores[0][:, 1].tolist(), scores[1][chosen, 1].tolist())


def _schema(query: str, document: str | None, number: pa.DataType, settings: Settings) -> pa.Schema:
    """The columns of the result, for a document's name in the data (None for lists) and the type of labels."""
    import pyarrow as pa

    label = "score" if settings.output_scores else "label"
    if settings.output_format == "labeled-list":
        return list_schema(query, number, f"{label}s")
    if settings.output_format == "labeled-pair":
        return new_schema([(query, pa.string()), (document or "document", pa.string()), (label, number)])
    count = settings.num_negatives if settings.output_format == "n-tuple" else 1
    negatives = ["negative", *(f"negative_{place}" for place in range(2, count + 1))]
    scores = [("scores", pa.list_(number))] if settings.output_scores else []
    return new_schema([*((name, pa.string()) for name in (query, document or "positive", *negatives)), *scores])


def _rows(query: Query, negatives: list[str], output_format: str, scores: _Scores | None) -> list[tuple[Any, ...]]:
    """A query's rows of the result: none without negatives."""
    if not negatives:
        return []
    documents = [*query.positives, *negatives]
    labels: list[float] = [*query.positives.values(), *[0] * len(negatives)]
    if scores is not None:
        labels = [*scores.positives, *scores.negatives]
    first = len(query.positives)
    if output_format == "labeled-list":
        return [(query.text, documents, labels)]
    if output_format == "labeled-pair":
        return [(query.text, document, label) for document, label in zip(documents, labels, strict=True)]
    others = range(first, len(documents))
    groups = [list(others)] if output_format == "n-tuple" else [[place] for place in others]
    return [
        (query.text, documents[place], *(documents[at] for at in group), *_kept(scores, labels, [place, *group]))
        for place in range(first)
        for group in groups
    ]


def _kept(scores: _Scores | None, labels: list[float], places: list[int]) -> list[list[float]]:
    return [] if scores is None else [[labels[place] for place in places]]


def _joined(tables: list[pa.Table], statistics: MiningStatistics) -> Dataset:
    logger.info("Mined: %s", statistics)
    if not statistics.taken:
        lost = {name: count for name, count in dataclasses.asdict(statistics).items() if count and name not in _NO_LOSS}
        raise DataError(
            f"No negatives for any of {statistics.queries} queries. Their {statistics.candidates} candidates: {lost}. "
            "Loosen what drops them, raise range_max, lower num_negatives or look in a larger corpus."
        )
    return to_dataset(tables)


def _batches(queries: list[Query], size: int, show: bool | None) -> Iterator[tuple[int, list[Query]]]:
    """(position of the first query, queries) of a batch at a time, below a bar."""
    with _bar(None, "Mining", "query", show, total=len(queries)) as bar:
        for position in range(0, len(queries), size):
            batch = queries[position : position + size]
            yield position, batch
            bar.update(len(batch))


def _bar(rows: Iterable[Any] | None, what: str, unit: str, show: bool | None, total: int | None = None) -> Any:
    from tqdm.auto import tqdm

    return tqdm(rows, desc=what, unit=unit, total=total, disable=None if show is None else not show)
