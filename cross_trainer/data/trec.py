"""TREC run and qrels files: the plain text that every evaluation tool for search reads.

A run holds one line per scored document, `query Q0 document rank score tag`; qrels one per judged document,
`query 0 document grade`. Both travel here as dicts of dicts, which `ir_measures` takes as they are:

    run = {"q1": {"d7": 4.2, "d3": 1.5}}
    write_run("run.trec", run)
    ir_measures.calc_aggregate([nDCG @ 10], read_qrels("qrels.trec"), read_run("run.trec"))
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from os import PathLike
from typing import TypeVar

from cross_trainer.errors import DataError

_T = TypeVar("_T", int, float)
_RUN_LINE = "query Q0 document rank score tag"
_QRELS_LINE = "query 0 document grade"


def write_run(path: str | PathLike[str], run: Mapping[str, Mapping[str, float]], tag: str = "cross_trainer") -> None:
    """Write scores as a TREC run: per query by falling score, equal scores by document id.

    A score is written with as many digits as it takes to read the same float back.

    Args:
        path: File to write, in UTF-8; what stood there is replaced.
        run: Query id to document id to score.
        tag: Name of the run, the last field of each line.

    Raises:
        DataError: An id or the tag is empty or holds whitespace, or a score isn't finite.
    """
    check_id(tag, "the tag")
    _write(path, [line for query, scores in run.items() for line in run_lines(query, scores, tag)])


def run_lines(query: str, scores: Mapping[str, float], tag: str = "cross_trainer") -> list[str]:
    """One query's lines of a run, as `write_run` writes them, for runs that are larger than memory.

    Raises:
        DataError: An id is empty or holds whitespace, or a score isn't finite.
    """
    check_id(query, "a query")
    for document, score in scores.items():
        check_id(document, f"a document of query {query!r}")
        if not math.isfinite(score):
            raise DataError(f"document {document!r} of query {query!r} has the score {score}; a run needs finite ones")
    ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    return [f"{query} Q0 {doc} {rank} {float(score)!r} {tag}\n" for rank, (doc, score) in enumerate(ranked, 1)]


def read_run(path: str | PathLike[str]) -> dict[str, dict[str, float]]:
    """Read a TREC run: query id to document id to score, in the file's order. The ranks it states are ignored.

    Raises:
        DataError: A line without six fields, a score that is no finite number, or a document twice in one query.
            The message names file and line.
    """
    run: dict[str, dict[str, float]] = {}
    for where, (query, _, document, _, score, _) in _fields(path, _RUN_LINE):
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{where}: the score {score!r} is no finite number; a line reads `{_RUN_LINE}`")
        add_document(run, query, document, value, where)
    return run


def write_qrels(path: str | PathLike[str], qrels: Mapping[str, Mapping[str, float]]) -> None:
    """Write judgements as TREC qrels, in the order given.

    Args:
        path: File to write, in UTF-8; what stood there is replaced.
        qrels: Query id to document id to grade. Grades are whole numbers (`1.0` will do): the format has no others.

    Raises:
        DataError: An id is empty or holds whitespace, or a grade is no whole number.
    """
    lines = []
    for query, grades in qrels.items():
        check_id(query, "a query")
        for document, grade in grades.items():
            check_id(document, f"a document of query {query!r}")
            if not math.isfinite(grade) or grade != int(grade):
                raise DataError(
                    f"document {document!r} of query {query!r} has the grade {grade}; qrels hold whole numbers: "
                    "scale or round the grades first"
                )
            lines.append(f"{query} 0 {document} {int(grade)}\n")
    _write(path, lines)


def read_qrels(path: str | PathLike[str]) -> dict[str, dict[str, int]]:
    """Read TREC qrels: query id to document id to grade, in the file's order.

    Raises:
        DataError: A line without four fields, a grade that is no whole number, or a document twice in one query.
            The message names file and line.
    """
    qrels: dict[str, dict[str, int]] = {}
    for where, (query, _, document, grade) in _fields(path, _QRELS_LINE):
        try:
            value = int(grade)
        except ValueError:
            raise DataError(f"{where}: the grade {grade!r} is no whole number; a line reads `{_QRELS_LINE}`") from None
        add_document(qrels, query, document, value, where)
    return qrels


def check_id(text: object, what: str) -> None:
    """Refuse what would not come back as one field: the format separates by whitespace and knows no quotes.

    Raises:
        DataError: It is empty or holds whitespace.
    """
    if not isinstance(text, str) or text.split() != [text]:
        raise DataError(
            f"{what} has the id {text!r}; an id is a string of at least one character and without whitespace: "
            "replace the whitespace, or number the ids"
        )


def _write(path: str | PathLike[str], lines: list[str]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)


def _fields(path: str | PathLike[str], form: str) -> Iterator[tuple[str, list[str]]]:
    """Each line that isn't blank, as (its place for messages, its fields)."""
    expected = len(form.split())
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            where, fields = f"{path}, line {number}", line.split()
            if fields and len(fields) != expected:
                raise DataError(
                    f"{where}: {len(fields)} fields instead of {expected}; a line reads `{form}`, with whitespace "
                    f"between the fields and none inside: {line.strip()[:100]!r}"
                )
            if fields:
                yield where, fields


def add_document(table: dict[str, dict[str, _T]], query: str, document: str, value: _T, where: str) -> None:
    """Put a value into a table of query id to document id.

    Raises:
        DataError: The query has the document already; `where` is the place for the message.
    """
    documents = table.setdefault(query, {})
    if document in documents:
        raise DataError(
            f"{where}: document {document!r} occurs a second time for query {query!r}; keep one of its lines"
        )
    documents[document] = value
