"""TREC run and qrels files: the plain text that every evaluation tool for search reads.

A run has one line per scored document, `query Q0 document rank score tag`; qrels have one per judged document,
`query 0 document grade`. Here both are dicts of dicts, which `ir_measures` reads as well:

    run = {"q1": {"d7": 4.2, "d3": 1.5}}
    write_run("run.trec", run)
    ir_measures.calc_aggregate([nDCG @ 10], read_qrels("qrels.trec"), read_run("run.trec"))
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from os import PathLike
from typing import TypeVar

from cross_trainer.errors import DataError

_T = TypeVar("_T", int, float)
_RUN_LINE = "query Q0 document rank score tag"
_QRELS_LINE = "query 0 document grade"


def write_run(path: str | PathLike[str], run: Mapping[str, Mapping[str, float]], tag: str = "cross_trainer") -> None:
    """Write scores as a TREC run. The documents of a query are ordered by descending score, and equal scores by id.

    A score is written with as many digits as it takes to read the same float back.

        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), "run.trec")
        >>> write_run(path, {"q1": {"d3": 1.5, "d7": 4.25}}, tag="mine")
        >>> print(path.read_text(), end="")
        q1 Q0 d7 1 4.25 mine
        q1 Q0 d3 2 1.5 mine
        >>> read_run(path)
        {'q1': {'d7': 4.25, 'd3': 1.5}}

    Args:
        path: The file to write, in UTF-8. An existing file is replaced.
        run: Query id to document id to score.
        tag: The name of the run, which is the last field of each line.

    Raises:
        DataError: An id or the tag is empty or has whitespace, or a score isn't finite.
    """
    check_id(tag, "the tag")
    _write(path, [line for query, scores in run.items() for line in run_lines(query, scores, tag)])


def run_lines(query: str, scores: Mapping[str, float], tag: str = "cross_trainer") -> list[str]:
    r"""The lines of one query as `write_run` writes them, for runs that are larger than memory.

        >>> run_lines("q1", {"d3": 1.5, "d7": 4.25})
        ['q1 Q0 d7 1 4.25 cross_trainer\n', 'q1 Q0 d3 2 1.5 cross_trainer\n']

    Raises:
        DataError: An id is empty or has whitespace, or a score isn't finite.
    """
    check_id(query, "a query")
    for document, score in scores.items():
        check_id(document, f"a document of query {query!r}")
        if not math.isfinite(score):
            raise DataError(
                f"document {document!r} of query {query!r} has the score {score}; a run needs finite scores"
            )
    ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    return [f"{query} Q0 {doc} {rank} {float(score)!r} {tag}\n" for rank, (doc, score) in enumerate(ranked, 1)]


def read_run(path: str | PathLike[str]) -> dict[str, dict[str, float]]:
    """Read a TREC run: query id to document id to score, in the order of the file. Its ranks are ignored.

    Raises:
        DataError: A line doesn't have six fields, a score isn't a finite number, or a query has a document twice. The
            message names the file and the line.
    """
    run: dict[str, dict[str, float]] = {}
    for where, (query, _, document, _, score, _) in _fields(path, _RUN_LINE):
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{where}: the score {score!r} is not a finite number; a line reads `{_RUN_LINE}`")
        add_document(run, query, document, value, where)
    return run


def write_qrels(path: str | PathLike[str], qrels: Mapping[str, Mapping[str, float]]) -> None:
    """Write judgements as TREC qrels, in the order given.

    Args:
        path: The file to write, in UTF-8. An existing file is replaced.
        qrels: Query id to document id to grade. The format only has whole numbers; `1.0` counts as one.

    Raises:
        DataError: An id is empty or has whitespace, or a grade isn't a whole number.
    """
    lines = []
    for query, grades in qrels.items():
        check_id(query, "a query")
        for document, grade in grades.items():
            check_id(document, f"a document of query {query!r}")
            if not math.isfinite(grade) or grade != int(grade):
                raise DataError(
                    f"document {document!r} of query {query!r} has the grade {grade}; qrels hold whole numbers: "
                    "scale or round the grades"
                )
            lines.append(f"{query} 0 {document} {int(grade)}\n")
    _write(path, lines)


def read_qrels(path: str | PathLike[str]) -> dict[str, dict[str, int]]:
    """Read TREC qrels: query id to document id to grade, in the order of the file.

    Raises:
        DataError: A line doesn't have four fields, a grade isn't a whole number, or a query has a document twice. The
            message names the file and the line.
    """
    qrels: dict[str, dict[str, int]] = {}
    for where, (query, _, document, grade) in _fields(path, _QRELS_LINE):
        try:
            value = int(grade)
        except ValueError:
            raise DataError(
                f"{where}: the grade {grade!r} is not a whole number; a line reads `{_QRELS_LINE}`"
            ) from None
        add_document(qrels, query, document, value, where)
    return qrels


def next_lower(score: float) -> float:
    """The next lower score that trec_eval can tell from a score: it reads them in float32.

    >>> next_lower(1.0)
    0.99999994
    """
    import numpy as np

    return float(str(np.nextafter(np.float32(score), np.float32(-np.inf))))


def as_ranked(scores: Mapping[str, float]) -> dict[str, float]:
    """The documents of a query in the order in which trec_eval ranks them, with scores that no tool can take for equal.

        >>> as_ranked({"d1": 0.5, "d2": 0.75, "d3": 0.5})
        {'d2': 0.75, 'd3': 0.5, 'd1': 0.49999997}

    trec_eval orders by scores in float32 and equal ones by id, the highest id first; other tools have other rules. So a
    score that isn't below the one before it becomes the next lower float32.

    Args:
        scores: Document id to score, a finite float32.
    """
    import numpy as np

    ranked: dict[str, float] = {}
    last = math.inf
    for name in sorted(scores, key=lambda name: (np.float32(scores[name]), name), reverse=True):
        last = scores[name] if np.float32(scores[name]) < np.float32(last) else next_lower(last)
        ranked[name] = last
    return ranked


def check_id(text: object, what: str) -> None:
    """Refuse an id that wouldn't be read back as one field: whitespace separates the fields, and there are no quotes.

    Args:
        text: The id.
        what: What it identifies, for the message.

    Raises:
        DataError: The id is empty or has whitespace.
    """
    if not isinstance(text, str) or text.split() != [text]:
        raise DataError(
            f"{what} has the id {text!r}; an id is a string of at least one character, without whitespace: "
            "replace the whitespace, or number the ids"
        )


def _write(path: str | PathLike[str], lines: list[str]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)


def _fields(path: str | PathLike[str], form: str) -> Iterator[tuple[str, list[str]]]:
    """The place of each line, for messages, and its fields. Blank lines are skipped."""
    expected = len(form.split())
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: not UTF-8 ({error.reason}); convert it, with `iconv -t UTF-8` for instance"
                ) from error
            where, fields = f"{path}, line {number}", line.split()
            if fields and len(fields) != expected:
                raise DataError(
                    f"{where}: {len(fields)} fields instead of {expected}; a line reads `{form}`, with whitespace "
                    f"between the fields and none inside: {line.strip()[:100]!r}"
                )
            if fields:
                yield where, fields


def add_document(table: dict[str, dict[str, _T]], query: str, document: str, value: _T, where: str) -> None:
    """Add a value to a table of query id to document id to value.

    Args:
        table: The table.
        query: The query's id.
        document: The document's id.
        value: The value.
        where: Its place, for the message.

    Raises:
        DataError: The query already has the document.
    """
    documents = table.setdefault(query, {})
    if document in documents:
        raise DataError(
            f"{where}: document {document!r} occurs a second time for query {query!r}; keep one of its lines"
        )
    documents[sys.intern(document)] = value  # once in memory, however many queries it is a candidate of
