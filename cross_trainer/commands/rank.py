"""Rank the documents of one table for the queries of another, as a TREC run or as jsonl.

    rank_files("queries.tsv", "corpus.jsonl.gz", "reranked.trec", "output/rerank", candidates="bm25.trec", top_k=100)

Queries and documents have an id and a text; candidates are a TREC run, or a table of query and document ids. Everything
is checked before the model is loaded. The pairs of all queries form one stream, so that short lists are scored
together; their scores are kept in the folder OUTPUT.partial until the output is written, so that a killed process
continues. Ids and candidates are kept in memory, texts on disk. `cross-trainer rank` calls this function, so its
messages name the options of the command line.

Shapes: D documents of a query.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from cross_trainer.commands.partial import PartialScores
from cross_trainer.commands.processes import on_main
from cross_trainer.commands.score import WINDOW, begin, fingerprint, finish, load_encoder, score_missing, sha256
from cross_trainer.data.columns import find_text
from cross_trainer.data.tables import (
    Format,
    Name,
    Row,
    check_output,
    checked_rows,
    column_names,
    open_writer,
    placed_rows,
    read_rows,
    require_columns,
    shortest,
    table_format,
    taking,
)
from cross_trainer.data.texts import TextStore
from cross_trainer.data.trec import add_document, check_id, next_lower, read_run, run_lines
from cross_trainer.disk import check_writable
from cross_trainer.errors import ConfigurationError, DataError, check_whole, short

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cross_trainer.saved.activation import Activation

logger = logging.getLogger(__name__)

Ranking: TypeAlias = tuple[str, dict[str, float]]
Plan: TypeAlias = Mapping[str, Sequence[str]]

QUERY_NAMES = ("qid", "query_id", "query-id")
DOCUMENT_NAMES = ("docid", "doc_id", "corpus-id", "corpus_id", "document_id", "pid")
ID_NAMES = ("id", "_id", *QUERY_NAMES, *DOCUMENT_NAMES)
RANKING_SUFFIXES = {".trec": "trec", ".run": "trec", ".txt": "trec", ".jsonl": "jsonl"}


def rank_files(
    queries: Name,
    corpus: Name,
    output: Name,
    model: str,
    *,
    candidates: Name | None = None,
    top_k: int | None = None,
    form: str | None = None,
    query_id: str | None = None,
    query_text: str | None = None,
    document_id: str | None = None,
    document_text: str | None = None,
    window: int = WINDOW,
    overwrite: bool = False,
    **options: Any,
) -> None:
    """Write the documents of each query, best first, as `CrossEncoder.rank` orders them; equal ones are ordered by id.

    Args:
        queries: A table with a column of ids and one of texts.
        corpus: A table of documents with such columns.
        output: The file to write. A jsonl has lines `{"query_id": ..., "ranking": [{"id": ..., "score": ...}, ...]}`.
        model: A name on the Hub or a folder, of a model with one label.
        candidates: The documents to rank: a TREC run, or a table of query and document ids. Default: all.
        top_k: Documents to write for each query. Default: all.
        form: "trec" or "jsonl". Default: according to the name of `output`.
        query_id: The column of ids in `queries`. Default: the first of `ID_NAMES`.
        query_text: The column of texts there. Default: `text`, or the first of text.
        document_id: As `query_id`, in `corpus`.
        document_text: As `query_text`, in `corpus`.
        window: Pairs that are sorted by length and scored together.
        overwrite: Replace `output`.
        options: Options of `CrossEncoder`, such as `device` and `max_length`.

    Raises:
        ConfigurationError: The model can't be loaded or has several labels, or `output` exists or has no known ending.
        DataError: A row can't be read, an id occurs twice or can't be written in a run, or a candidate isn't in the
            corpus.
    """
    if top_k is not None:
        check_whole("--top-k", top_k)
    output = Path(output)
    form, partial = _ranking_format(output, form), PartialScores(f"{output}.partial")
    if not on_main(partial.folder.exists):
        on_main(lambda: check_output(output, overwrite))
    on_main(lambda: check_writable(output))
    asked = TextStore(_identified(queries, query_id, query_text, "query"), kind="query")
    wanted = None if candidates is None else _read_candidates(Path(candidates), asked.ids)
    named = None if wanted is None else set(itertools.chain.from_iterable(wanted.values()))
    documents = TextStore(_identified(corpus, document_id, document_text, "document"), named)
    plan = _plan(asked, wanted, documents)
    if form == "trec":
        for name in plan:
            check_id(name, "a query")
        for name in documents.ids:
            check_id(name, "a document")
    encoder = load_encoder(model, **options)
    if encoder.num_labels != 1:
        raise ConfigurationError(
            f"{model} has {encoder.num_labels} labels, so there is no one score to rank by. Use `cross-trainer score`."
        )
    total = sum(map(len, plan.values()))
    settings = {
        "input": [sha256(Path(path)) for path in (queries, corpus, candidates) if path is not None],
        "--query-id, --query-text": [query_id, query_text],
        "--document-id, --document-text": [document_id, document_text],
        "--window": window,
        **fingerprint(encoder, model, options),
    }
    if not begin(partial, settings, output, -(-total // window), overwrite):
        return
    from cross_trainer.scoring.engine import with_logits

    named_pairs = ((query, name) for query, names in plan.items() for name in names)

    def read(pair: tuple[str, str]) -> tuple[str, str]:
        query, name = pair
        return asked[asked.ids[query]], documents[documents.ids[name]]

    logits = with_logits(encoder.activation_fn)
    score_missing(encoder, named_pairs, total, partial, window, read, activation=logits)

    def write(path: Path) -> None:
        scores = partial.scores(-(-total // window))
        _write(path, form, _rank(plan, scores, encoder.activation_fn, top_k, apart=form == "trec"))

    finish(partial, output, overwrite, write)


def choose_text(path: Name, first: Row, asked: str | None, option: str, ids: Collection[str] = ID_NAMES) -> str:
    """The column of a table's texts: the one asked for, or else by `find_text`.

    Args:
        path: The table, for messages.
        first: Its first row.
        asked: The column asked for.
        option: The option that asks for it.
        ids: The names of columns of ids.

    Raises:
        DataError: There is no such column, or it is ambiguous which one is meant.
    """
    if asked is not None:
        require_columns(path, list(first), [asked], option)
        return asked
    try:
        return find_text(first, option, ids)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


# -- reading -----------------------------------------------------------------------------------------------------------


def _ranking_format(output: Path, form: str | None) -> str:
    found = RANKING_SUFFIXES.get(output.suffix.lower()) if form is None else form
    if found not in {"trec", "jsonl"}:
        raise ConfigurationError(
            f"{output}: expected --format trec or jsonl, or a name that ends in {', '.join(RANKING_SUFFIXES)}."
        )
    return found


def _identified(path: Name, id_column: str | None, text_column: str | None, kind: str) -> Iterator[tuple[str, str]]:
    """The id and the text of each row of a table; ids that are numbers become strings, as in a run."""
    first = next(read_rows(path), None)
    if first is None:
        raise DataError(f"{path} has no rows. Check the file.")
    id_column = _first_of(ID_NAMES, first) if id_column is None else id_column
    if id_column is None:
        raise DataError(
            f"{path} has no column {', '.join(ID_NAMES)}, but {list(first)}. Name the ids with --{kind}-id."
        )
    require_columns(path, list(first), [id_column], f"--{kind}-id")
    text_column = choose_text(path, first, text_column, f"--{kind}-text", (*ID_NAMES, id_column))
    logger.info("%s: ids from %r, texts from %r", path, id_column, text_column)
    for place, row in checked_rows(path, [text_column], [id_column, text_column]):
        yield _read_id(row, id_column, place), row[text_column]


def _read_id(row: Row, column: str, place: str) -> str:
    name = row.get(column)
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise DataError(
            f"{place}, column {column!r}: {short(name)} is no id. Give every row a string or a whole number."
        )
    return str(name)


def _read_candidates(path: Path, queries: Collection[str]) -> Plan:
    """The document ids of each query among `queries`, from a TREC run or a table."""
    wanted: Mapping[str, Mapping[str, float]] = read_run(path) if table_format(path) is None else _read_id_pairs(path)
    unknown, without = sum(name not in queries for name in wanted), sum(name not in wanted for name in queries)
    if without == len(queries):
        raise DataError(f"{path} has candidates for none of the {without} queries. Check --query-id and the file.")
    if unknown or without:
        logger.warning(
            "Left out: %d queries without candidates, and the candidates of %d other queries.", without, unknown
        )
    return {name: list(documents) for name, documents in wanted.items() if name in queries}


def _read_id_pairs(path: Path) -> dict[str, dict[str, int]]:
    names = column_names(path)
    query, document = _first_of(QUERY_NAMES, names), _first_of(DOCUMENT_NAMES, names)
    if query is None or document is None:
        raise DataError(
            f"{path} has the columns {list(names)}. Rename those of the ids: one to {', '.join(QUERY_NAMES)}, and one "
            f"to {', '.join(DOCUMENT_NAMES)}."
        )
    wanted: dict[str, dict[str, int]] = {}
    for index, (place, row) in enumerate(placed_rows(path, [query, document])):
        add_document(wanted, _read_id(row, query, place), _read_id(row, document, place), index, place)
    return wanted


def _first_of(known: Iterable[str], names: Collection[str]) -> str | None:
    return next((name for name in known if name in names), None)


# -- ranking -----------------------------------------------------------------------------------------------------------


def _plan(queries: TextStore, wanted: Plan | None, documents: TextStore) -> Plan:
    """The documents to rank for each query, by id: a stable sort then leaves equal ones in a run's order."""
    if wanted is None:
        everything = sorted(documents.ids)
        logger.info(
            "No candidates: every query is scored against the whole corpus, %d x %d pairs.",
            len(queries),
            len(documents),
        )
        return dict.fromkeys(queries.ids, everything)
    for query, names in wanted.items():
        for name in names:
            if name not in documents.ids:
                raise DataError(
                    f"The corpus has no document {name!r}, a candidate for query {query!r}. Check --document-id and "
                    "the file."
                )
    return {query: sorted(wanted[query]) for query in queries.ids if query in wanted}


def _rank(
    plan: Plan, windows: Iterable[NDArray[np.float32]], activation: Activation, top_k: int | None, *, apart: bool
) -> Iterator[Ranking]:
    """The documents and scores of each query, best first, of the scores and logits [W, 2] of each window of pairs."""
    from cross_trainer.scoring.engine import best_first

    take = taking(windows)
    for query, names in plan.items():
        values, logits = take(len(names)).T
        best = best_first(values, logits, activation)[:top_k]
        scores = _apart(shortest(values[best]), logits[best]) if apart else shortest(values[best])
        yield query, dict(zip((names[index] for index in best), scores, strict=True))


def _apart(scores: list[float], logits: Sequence[Any]) -> list[float]:
    """Scores, best first, that fall wherever logits do, by the last digit of a float32 if need be.

    Tools sort a run by its scores alone, trec_eval in float32, and those of high logits are rounded to one number.
    """
    for place in range(1, len(scores)):
        before = scores[place - 1]
        highest = next_lower(before) if logits[place] < logits[place - 1] else before
        scores[place] = min(scores[place], highest)
    return scores


def _write(path: Path, form: str, rankings: Iterable[Ranking]) -> None:
    """Write the rankings, with one of them in memory at a time."""
    if form == "trec":
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for query, scores in rankings:
                file.writelines(run_lines(query, scores))
        return
    with open_writer(path, Format("jsonl"), ["query_id", "ranking"]) as write:
        for query, scores in rankings:
            write({"query_id": query, "ranking": [{"id": name, "score": value} for name, value in scores.items()]})
