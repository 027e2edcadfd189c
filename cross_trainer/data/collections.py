"""Judged collections, as search is evaluated: documents, queries, judgements, and a first stage's candidates.

    collection = Collection("data/scifact", "test", candidates="bm25", top_k=100, metrics="nDCG@10 RR@10")
    CrossEncoderTrainer(..., eval_dataset=collection)       # metric_for_best_model="ndcg@10"

A collection comes from a folder in BEIR's layout, from the Hub or from ir_datasets:

    corpus.jsonl      {"_id": "d1", "title": "...", "text": "..."}      other columns are ignored, and .gz is read
    queries.jsonl     {"_id": "q1", "text": "..."}
    qrels/test.tsv    query-id <tab> corpus-id <tab> score

It is also a sequence of rows `(query, documents, labels, num_relevant)`: each judged query with its candidates. Ids are
kept in memory, texts on disk.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from cross_trainer.data.columns import NUM_RELEVANT, Columns
from cross_trainer.data.grouping import DOCUMENTS, LABELS
from cross_trainer.data.retrieval import QUERIES_AT_ONCE, check_retriever, read_hits, start_retriever
from cross_trainer.data.sources import find_source
from cross_trainer.data.texts import TextStore
from cross_trainer.data.trec import as_ranked, read_run
from cross_trainer.errors import ConfigurationError, DataError, MissingDependencyError, check_whole

logger = logging.getLogger(__name__)

Run: TypeAlias = Mapping[str, Mapping[str, float]]
"""Query id to document id to score."""

DEFAULT_METRICS = "nDCG@10 RR@10 AP R@10 R@100"
OUR_NAMES = {"nDCG": "ndcg", "RR": "mrr", "AP": "map", "R": "recall", "P": "precision", "Success": "hit"}
"""What `ranking_metrics` calls the measures of ir_measures."""

RUN_SUFFIXES = (".trec", ".run", ".txt")


class Collection(Sequence[dict[str, Any]]):
    r"""Judged queries with a first stage's candidates, to be evaluated on.

        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> files = {
        ...     "corpus.jsonl": ['{"_id": "d1", "text": "Boil it."}', '{"_id": "d2", "text": "Fly it."}'],
        ...     "queries.jsonl": ['{"_id": "q1", "text": "how to boil an egg"}'],
        ...     "qrels/test.tsv": ["query-id\tcorpus-id\tscore", "q1\td1\t1"],
        ... }
        >>> (folder / "qrels").mkdir()
        >>> for name, lines in files.items():
        ...     _ = (folder / name).write_text("\n".join(lines))
        >>> collection = Collection(folder)
        >>> collection[0]
        {'query': 'how to boil an egg', 'documents': ['Boil it.'], 'labels': [1], 'num_relevant': 1}

    Only queries with a judgement are evaluated. A query for which the first stage finds nothing is no row, and counts 0
    in every metric. Documents without a judgement count as irrelevant. Relevant documents that aren't among the
    candidates count as missed: metrics read the judgements, not the labels of rows. In a run of several processes, each
    of them looks for the candidates itself; a TREC run spares them that.

    Args:
        source: A folder in BEIR's layout; "NanoMSMARCO" or another name of NanoBEIR, or the id of a data set on the Hub
            with the configurations corpus, queries and qrels; or "ir_datasets:" and an id of ir_datasets (extra
            `ir-datasets`).
        split: The file in `qrels`, or the split on the Hub. Default: "test", or the only one.
        candidates: What the model re-ranks: a TREC run, as a path or as a mapping; or a retriever, as
            `mine_hard_negatives` takes it: "bm25", the name of a SentenceTransformer, "bm25+" and such a name, a
            `DenseRetriever`, a `HybridRetriever`, or a callable on (queries, k).
        top_k: Candidates of a query at most.
        metrics: Names of ir_measures, separated by spaces, or those of `ranking_metrics`, such as "ndcg@10". Default:
            `DEFAULT_METRICS`.

    Attributes:
        name: What the source is called.
        measures: The measures of ir_measures, by the keys that metrics have in results.
        qrels: The judgements of the split: query id to document id to grade. Relevant from 1 on.

    Raises:
        ConfigurationError: There is no such collection, split, metric or retriever.
        DataError: A row can't be read, or a judgement or a candidate has an unknown id; the message names it.
        MissingDependencyError: A package isn't installed; the message names the extra.
    """

    columns = Columns("query", (DOCUMENTS,), LABELS, shape="list", num_relevant=NUM_RELEVANT)

    def __init__(
        self,
        source: str | os.PathLike[str],
        split: str | None = None,
        *,
        candidates: Any = "bm25",
        top_k: int = 100,
        metrics: str | None = None,
    ) -> None:
        check_whole("top_k", top_k)
        self.measures = parse_measures(DEFAULT_METRICS if metrics is None else metrics)
        self._candidates = _choose_candidates(candidates)
        self.top_k = top_k
        found = find_source(source)
        self.name = found.name
        self.qrels = found.read_qrels(split)
        self._queries = TextStore(found.queries(), kind="query")
        self._documents = TextStore(found.documents())
        self._check()
        check_measures(self.measures, self.qrels)

    def __repr__(self) -> str:
        return f"Collection({self.name!r}, {len(self.qrels)} judged queries, {len(self._documents)} documents)"

    # -- rows ----------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._ranked)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        query, names = self._ranked[index]
        grades = self.qrels[query]
        return {
            "query": self._queries[self._queries.ids[query]],
            DOCUMENTS: [self._documents[self._documents.ids[name]] for name in names],
            LABELS: [max(grades.get(name, 0), 0) for name in names],
            NUM_RELEVANT: sum(grade > 0 for grade in grades.values()),
        }

    @property
    def pairs(self) -> Iterator[tuple[str, str]]:
        """All (query, document), row by row."""
        return ((row["query"], document) for row in self for document in row[DOCUMENTS])

    @functools.cached_property
    def first_stage(self) -> Run:
        """The candidates with the first stage's scores; a retriever looks for them when they are first needed."""
        found: Run
        if isinstance(self._candidates, Mapping):
            found = self._candidates
            self._check_candidates(found)
        else:
            found = self._retrieve()
        judged = {
            name: dict(itertools.islice(as_ranked(found.get(name, {})).items(), self.top_k)) for name in self.qrels
        }
        without = sum(not names for names in judged.values())
        if without == len(judged):
            raise DataError(f"{self.name}: the first stage has no candidate for any of the {without} judged queries.")
        if without:
            logger.warning("%s: %d of %d queries have no candidates and count 0.", self.name, without, len(judged))
        return {name: {each: found[name][each] for each in ranked} for name, ranked in judged.items() if ranked}

    @functools.cached_property
    def _ranked(self) -> list[tuple[str, list[str]]]:
        """The queries that are rows, and their candidates."""
        return [(query, list(scores)) for query, scores in self.first_stage.items()]

    @property
    def candidates(self) -> Mapping[str, Sequence[str]]:
        """The ids behind the rows: each query's documents in the order of its row."""
        return dict(self._ranked)

    @property
    def missed(self) -> int:
        """How many relevant documents aren't among the candidates of their query."""
        found = {query: set(names) for query, names in self._ranked}
        return sum(
            grade > 0 and name not in found.get(query, ())
            for query, grades in self.qrels.items()
            for name, grade in grades.items()
        )

    def _retrieve(self) -> Run:
        find = start_retriever(self._candidates, self._documents)
        names, queries = list(self._documents.ids), list(self.qrels)
        k = min(self.top_k + 1, len(names))  # one may be the query itself
        run: dict[str, dict[str, float]] = {}
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            part = queries[start : start + QUERIES_AT_ONCE]
            texts = [self._queries[self._queries.ids[name]] for name in part]
            answer = [list(row)[:k] for row in find(texts, k)]
            rows = read_hits(answer, len(part), len(names))
            for name, text, row, places in zip(part, texts, answer, rows, strict=True):
                scores = [_score(hit, rank) for rank, hit in enumerate(row)]
                kept = [
                    (names[place], score)
                    for place, score in zip(places, scores, strict=True)
                    if names[place] != name or text not in self._documents[place]
                ]
                run[name] = dict(kept[: self.top_k])
        return run

    # -- checks --------------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        for query, grades in self.qrels.items():
            if query not in self._queries.ids:
                raise DataError(f"{self.name}: the judgements have the query {query!r}, and the queries don't.")
            for name in grades:
                if name not in self._documents.ids:
                    raise DataError(
                        f"{self.name}: the judgements of query {query!r} have the document {name!r}, and the corpus "
                        "doesn't."
                    )
        logger.info(
            "%s: %d documents, %d judged queries; %d queries without judgements are left out.",
            *(self.name, len(self._documents), len(self.qrels), len(self._queries) - len(self.qrels)),
        )

    def _check_candidates(self, run: Run) -> None:
        for query in self.qrels:
            for name in run.get(query, {}):
                if name not in self._documents.ids:
                    raise DataError(
                        f"{self.name}: the corpus has no document {name!r}, a candidate of query {query!r}."
                    )


def _score(hit: Any, rank: int) -> float:
    """What a retriever gave a document, or a number that falls with its rank."""
    return float(hit[1]) if isinstance(hit, tuple | list) and len(hit) > 1 else float(-rank)


def _choose_candidates(given: Any) -> Any:
    """A run as a mapping, or a retriever that can be started."""
    if isinstance(given, Mapping):
        return given
    if isinstance(given, str | os.PathLike):
        path = Path(given)
        if path.is_file():
            return read_run(path)
        if isinstance(given, os.PathLike) or path.suffix in RUN_SUFFIXES:
            raise ConfigurationError(f"candidates={str(given)!r}: there is no such file.")
    check_retriever(given)
    return given


# -- metrics -----------------------------------------------------------------------------------------------------------


def parse_measures(names: str) -> dict[str, Any]:
    """Measures of ir_measures, by what they are called here.

        >>> parse_measures("nDCG@10 mrr@10 AP AP(rel=2) Bpref")
        {'ndcg@10': nDCG@10, 'mrr@10': RR@10, 'map': AP, 'map(rel=2)': AP(rel=2), 'bpref': Bpref}

    Args:
        names: Separated by spaces; those of `ranking_metrics` are taken, too.

    Raises:
        ConfigurationError: There is no such measure, its package isn't installed, or its values aren't averaged.
        MissingDependencyError: ir_measures isn't installed.
    """
    try:
        import ir_measures
    except ImportError as error:
        raise MissingDependencyError(
            "Collections are measured by ir_measures: pip install 'cross-trainer[collections]'."
        ) from error
    theirs = {ours: name for name, ours in OUR_NAMES.items()}
    parsed = {}
    for name in names.split():
        stem, at, rest = name.partition("@")
        try:
            measure: Any = ir_measures.parse_measure(theirs.get(stem, stem) + at + rest)
            pipeline: Any = ir_measures.DefaultPipeline
            known = pipeline.supports(measure)
        except (ValueError, NameError, AssertionError) as error:
            raise ConfigurationError(
                f"The metric {name!r} is none of ir_measures ({error}). Name some such as {DEFAULT_METRICS}."
            ) from error
        if not known or not isinstance(measure.aggregator(), ir_measures.MeanAgg):
            problem = "is a count, which has no mean over queries" if known else "needs a package that isn't installed"
            raise ConfigurationError(f"The metric {name!r} {problem}. Name others, such as {DEFAULT_METRICS}.")
        parsed[OUR_NAMES.get(measure.NAME, measure.NAME.lower()) + str(measure).removeprefix(measure.NAME)] = measure
    if not parsed:
        raise ConfigurationError(f"No metric is named. Name some, such as {DEFAULT_METRICS}.")
    return parsed


def check_measures(measures: Mapping[str, Any], qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Compute measures of one query, so that what fails does so before the long work.

    Raises:
        ConfigurationError: One fails.
    """
    import ir_measures

    query, grades = next(iter(qrels.items()))
    run = {query: dict.fromkeys(grades, 1.0)}
    try:
        list(ir_measures.iter_calc(list(measures.values()), {query: dict(grades)}, run))
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        raise ConfigurationError(f"ir_measures can't compute all of {list(measures)}: {error}.") from error
