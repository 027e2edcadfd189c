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
import functools
import logging
import math
import operator
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from cross_trainer.data.columns import Columns, Rows, check_text, plain_list
from cross_trainer.data.grouping import list_schema, new_schema, read_groups, to_dataset, to_table
from cross_trainer.data.survey import BATCH_ROWS
from cross_trainer.errors import ConfigurationError, DataError, MissingDependencyError, check_whole
from cross_trainer.scoring.cross_encoder import CrossEncoder
from cross_trainer.scoring.engine import best_first, with_logits

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

logger = logging.getLogger(__name__)

Retriever: TypeAlias = Callable[[list[str], int], Sequence[Sequence[Any]]]
Scorer: TypeAlias = Callable[[list[tuple[str, str]]], Any]
OutputFormat: TypeAlias = Literal["triplet", "n-tuple", "labeled-pair", "labeled-list"]
Floats: TypeAlias = NDArray[np.float64]
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


@dataclass(frozen=True)
class _Query:
    """A query, its distinct positives with their labels, and the keys of all texts that can't be negatives of it."""

    text: str
    positives: dict[str, int | float]
    excluded: frozenset[str]


@dataclass(frozen=True)
class _Settings:
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
    seed: int

    @property
    def limits(self) -> list[str]:
        """The names of the arguments given that compare scores."""
        names = ("absolute_margin", "relative_margin", "min_score", "max_score")
        return [name for name in names if getattr(self, name) is not None]


def mine_hard_negatives(
    dataset: Rows,
    corpus: Iterable[str] | None = None,
    *,
    retriever: Literal["bm25"] | Retriever = "bm25",
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
        retriever: "bm25" (extra `mining`), which finds documents that share a word with the query, or a callable on
            (Q queries, k), with k up to N, that returns for each query indices into the corpus, or tuples that start
            with one, best first. No more than k are read, and of scores in such tuples only the order counts. BM25
            (Lucene's, k1 1.5, b 0.75) splits texts into words of two or more letters and digits, in lower case and
            without English stop words, and keeps its index in memory. For languages written without spaces, pass a
            callable.
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
    settings = _Settings(
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
        seed,
    )
    _check_settings(settings, batch_size)
    _check_parts(settings, corpus, retriever, scorer)
    schema, queries, documents = _read(dataset, columns, settings)
    texts = _Corpus(documents if corpus is None else corpus)
    find = _finder(retriever, texts, show_progress)
    counts = Counter(queries=len(queries))
    tables = []
    for position, batch in _batches(queries, batch_size, show_progress):
        windows = _retrieve(batch, texts, find, settings, counts)
        rows: list[tuple[Any, ...]] = []
        for place, scores in enumerate(_score(batch, windows, scorer)):
            negatives = _choose(windows[place], scores, settings, counts, position + place)
            rows += _rows(batch[place], negatives, settings.output_format)
        tables.append(to_table(rows, schema))
    statistics = MiningStatistics(**counts, seconds=time.perf_counter() - start)
    return MinedNegatives(_joined(tables, statistics), statistics)


# -- checking ----------------------------------------------------------------------------------------------------------


def _check_settings(settings: _Settings, batch_size: int) -> None:
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
        _or(value, limit) for value, limit in ((settings.min_score, -math.inf), (settings.max_score, math.inf))
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


def _check_parts(settings: _Settings, corpus: Any, retriever: Any, scorer: Any) -> None:
    if not callable(retriever) and retriever != "bm25":
        raise ConfigurationError(f"retriever={retriever!r}: expected 'bm25' or a callable (queries, k).")
    if not callable(retriever):
        import_bm25s()
    elif corpus is None:
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
    if scorer is not None and settings.sampling_strategy == "random" and not settings.limits:
        raise ConfigurationError(
            "The scorer decides nothing: sampling_strategy='random' also needs a margin or a score limit. "
            "Set one, sample from the 'top', or leave the scorer out."
        )


# -- reading -----------------------------------------------------------------------------------------------------------


def _read(
    dataset: Rows, columns: Columns | Sequence[str] | None, settings: _Settings
) -> tuple[pa.Schema, list[_Query], list[str]]:
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
            queries.append(_Query(group.query, positives, own))
        for key, (text, _) in group.documents.items():
            documents.setdefault(key, text)
    if not queries:
        raise DataError(
            f"Column {resolved.label!r}: the labels range from {found.minimum:g} to {found.maximum:g}, and only one "
            "above 0 marks a positive. Shift the labels or name another column."
        )
    number = pa.float64() if graded and not found.integers else pa.int64()
    document = None if graded else resolved.documents[0]
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


def import_bm25s(asked_by: str = "retriever='bm25'", instead: str = "pass a retriever of your own") -> Any:
    """The module bm25s; a message names what asked for it, and what to do without.

    Raises:
        MissingDependencyError: It isn't installed.
    """
    try:
        import bm25s
    except ImportError as error:
        raise MissingDependencyError(
            f"{asked_by} needs bm25s: pip install 'cross-trainer[mining]'. Or {instead}."
        ) from error
    return bm25s


class Bm25:
    """BM25 over all words of a query. Of equal scores the document that comes first in the corpus wins, whatever is
    installed.

    Attributes:
        has_words: Whether any document has a word that could be found.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._bm25s = import_bm25s()
        tokens = self._bm25s.tokenize(texts, show_progress=False)
        self.has_words = bool(tokens.vocab)
        self._documents = len(tokens.ids)
        self._index = self._bm25s.BM25()
        if self.has_words:
            self._index.index(tokens, create_empty_token=False, show_progress=False)

    def scores(self, queries: list[str]) -> Iterator[NDArray[Any]]:
        """For each query the scores [N] of all documents, 0 for those without a word of it."""
        for words in self._bm25s.tokenize(queries, return_ids=False, show_progress=False):
            yield self._index.get_scores(words) if words and self.has_words else np.zeros(self._documents)

    def __call__(self, queries: list[str], k: int) -> list[list[int]]:
        """For each query the indices of the k best documents that have a word of it, best first."""
        return [_best(scores, k) for scores in self.scores(queries)]


def _best(scores: NDArray[Any], k: int) -> list[int]:
    """The indices of the k highest of N scores, best first, without those of score 0, which have no word in common."""
    found = np.flatnonzero(scores > 0)
    if len(found) > k:
        edge = np.partition(scores[found], -k)[-k]
        found = found[scores[found] >= edge]
    order = np.argsort(-scores[found], kind="stable")[:k]
    indices: list[int] = found[order].tolist()
    return indices


def _finder(retriever: Literal["bm25"] | Retriever, texts: _Corpus, show: bool | None) -> Retriever:
    """The retriever, after every document has been read, so that a bad one is an error before the long work."""
    checked = _bar(texts, "Reading the corpus", "document", show)
    if not callable(retriever):
        found = Bm25(checked)
        if not found.has_words:
            raise DataError(
                "The corpus has no word that BM25 could find: no two letters or digits in a row outside of English "
                "stop words. Pass a retriever of your own."
            )
        return found
    for _ in checked:
        pass
    return retriever


def _retrieve(
    batch: list[_Query], texts: _Corpus, find: Retriever, settings: _Settings, counts: Counter[str]
) -> list[list[str]]:
    """Each query's candidates in the window of ranks, best first."""
    wanted = [min(settings.range_max + len(query.excluded), len(texts)) for query in batch]
    answer = find([query.text for query in batch], max(wanted))
    # A query's candidates are cut to what it alone would have asked for: others of the batch don't change its result.
    found = [row[:k] for row, k in zip(_indices(answer, len(batch), len(texts)), wanted, strict=True)]
    distinct = sorted({index for row in found for index in row})
    documents = dict(zip(distinct, texts.take(distinct), strict=True))
    return [
        _window(query, [documents[index] for index in row], settings, counts)
        for query, row in zip(batch, found, strict=True)
    ]


def _window(query: _Query, candidates: list[str], settings: _Settings, counts: Counter[str]) -> list[str]:
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


def _indices(answer: Any, queries: int, documents: int) -> list[list[int]]:
    """What a retriever returned, as one list of indices a query.

    Raises:
        DataError: It isn't that, or an index lies outside the corpus.
    """
    try:
        rows = [[_index(entry) for entry in row] for row in answer]
    except (TypeError, IndexError) as error:
        raise DataError(
            f"The retriever returned {answer!r:.200}. Expected for each query a list of indices into the corpus, or of "
            f"tuples that start with one ({error})."
        ) from error
    if len(rows) != queries:
        raise DataError(
            f"The retriever returned {len(rows)} lists for {queries} queries. Return one for each, empty where nothing "
            "is found."
        )
    for row in rows:
        for index in row:
            if not 0 <= index < documents:
                raise DataError(
                    f"The retriever returned the index {index}, and the corpus has {documents} documents. Count from "
                    "0, and leave out what only fills a list up (-1 in FAISS)."
                )
    return rows


def _index(entry: Any) -> int:
    return operator.index(entry[0] if isinstance(entry, tuple | list) else entry)


# -- choosing ----------------------------------------------------------------------------------------------------------


def _score(
    batch: list[_Query], windows: list[list[str]], scorer: Scorer | None
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


def _choose(
    window: list[str], scores: tuple[Floats, Floats] | None, settings: _Settings, counts: Counter[str], position: int
) -> list[str]:
    """The negatives among a query's candidates, hardest first."""
    places = np.arange(len(window))
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
    return [window[place] for place in chosen]


def _by_score(positives: Floats, candidates: Floats, settings: _Settings, counts: Counter[str]) -> NDArray[np.intp]:
    """The places of the candidates that no limit drops, highest score first and equal ones by rank."""
    reference, logit = positives.min(0) if settings.margin_to == "lowest" else positives.max(0)
    logits, candidates = candidates[:, 1], candidates[:, 0]
    ceiling = math.inf
    if settings.absolute_margin is not None:
        ceiling = min(ceiling, reference - settings.absolute_margin)
    if settings.relative_margin is not None:
        ceiling = min(ceiling, reference - settings.relative_margin * abs(reference))
    above = (candidates > ceiling) | ((candidates == ceiling) & (ceiling == reference) & (logits > logit))
    outside = (candidates < _or(settings.min_score, -math.inf)) | (candidates > _or(settings.max_score, math.inf))
    counts["false_negatives"] += int(above.sum())
    counts["outside_scores"] += int((outside & ~above).sum())
    places = np.flatnonzero(~above & ~outside)
    return places[best_first(candidates[places], logits[places])]


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


# -- writing -----------------------------------------------------------------------------------------------------------


def _schema(query: str, document: str | None, number: pa.DataType, settings: _Settings) -> pa.Schema:
    """The columns of the result, for a document's name in the data (None for lists) and the type of labels."""
    import pyarrow as pa

    if settings.output_format == "labeled-list":
        return list_schema(query, number)
    if settings.output_format == "labeled-pair":
        return new_schema([(query, pa.string()), (document or "document", pa.string()), ("label", number)])
    count = settings.num_negatives if settings.output_format == "n-tuple" else 1
    negatives = ["negative", *(f"negative_{place}" for place in range(2, count + 1))]
    return new_schema([(name, pa.string()) for name in (query, document or "positive", *negatives)])


def _rows(query: _Query, negatives: list[str], output_format: str) -> list[tuple[Any, ...]]:
    """A query's rows of the result: none without negatives."""
    if not negatives:
        return []
    if output_format == "triplet":
        return [(query.text, positive, negative) for positive in query.positives for negative in negatives]
    if output_format == "n-tuple":
        return [(query.text, positive, *negatives) for positive in query.positives]
    documents = [*query.positives, *negatives]
    labels = [*query.positives.values(), *[0] * len(negatives)]
    if output_format == "labeled-pair":
        return [(query.text, document, label) for document, label in zip(documents, labels, strict=True)]
    return [(query.text, documents, labels)]


def _joined(tables: list[pa.Table], statistics: MiningStatistics) -> Dataset:
    logger.info("Mined: %s", statistics)
    if not statistics.taken:
        lost = {name: count for name, count in dataclasses.asdict(statistics).items() if count and name not in _NO_LOSS}
        raise DataError(
            f"No negatives for any of {statistics.queries} queries. Their {statistics.candidates} candidates: {lost}. "
            "Loosen what drops them, raise range_max, lower num_negatives or look in a larger corpus."
        )
    return to_dataset(tables)


def _batches(queries: list[_Query], size: int, show: bool | None) -> Iterator[tuple[int, list[_Query]]]:
    """(position of the first query, queries) of a batch at a time, below a bar."""
    with _bar(None, "Mining", "query", show, total=len(queries)) as bar:
        for position in range(0, len(queries), size):
            batch = queries[position : position + size]
            yield position, batch
            bar.update(len(batch))


def _bar(rows: Iterable[Any] | None, what: str, unit: str, show: bool | None, total: int | None = None) -> Any:
    from tqdm.auto import tqdm

    return tqdm(rows, desc=what, unit=unit, total=total, disable=None if show is None else not show)
