"""Pairs of texts from rows of any form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cross_trainer.data.columns import resolve_columns
from cross_trainer.errors import DataError, short

Pair: TypeAlias = "tuple[str, str]"


def is_single(rows: Any) -> bool:
    """Whether what is to be scored is one pair: two texts, a dict of texts or an example, rather than rows of them."""
    if isinstance(rows, Mapping):
        return any(isinstance(value, str) for value in rows.values())
    if hasattr(rows, "texts"):
        return True
    is_flat = isinstance(rows, list | tuple) or (isinstance(rows, np.ndarray) and rows.ndim == 1)
    return is_flat and len(rows) > 0 and isinstance(rows[0], str)


def read_pairs(rows: Any, columns: Sequence[str] | None = None) -> Iterator[Pair]:
    """Pairs of texts from rows of any form, each checked as it is read.

    Args:
        rows: An iterable of tuples, lists, arrays, dicts or examples with `texts`; a `datasets.Dataset`; an array [P, 2]; or two
            columns `{"first": [...], "second": [...]}`. Of dicts and data sets the first two text columns are taken.
        columns: The names of the two text columns, instead.

    Yields:
        (first text, second text) of every row.

    Raises:
        DataError: A row isn't a pair of texts; the message names the row.
    """
    if isinstance(rows, Mapping):
        yield from _from_columns(rows, columns)
        return
    if isinstance(rows, str) or not isinstance(rows, Iterable):
        raise DataError(f"Expected pairs of texts, found {short(rows)}. Give rows such as [(a, b), ...].")
    names = columns
    for index, row in enumerate(rows):
        if isinstance(row, Mapping):
            if names is None:
                names = _text_columns(row)
            missing = [name for name in names if name not in row]
            if missing:
                raise DataError(
                    f"Row {index} has no column {missing[0]!r}, but {list(row)}. "
                    "Name the columns of the texts with columns=(first, second)."
                )
            texts: Any = tuple(row[name] for name in names)
        else:
            texts = row.texts if hasattr(row, "texts") else row
        yield _check_pair(texts, index)


def _from_columns(columns: Mapping[str, Any], names: Sequence[str] | None) -> Iterator[Pair]:
    lists = {name: list(values) for name, values in columns.items()}
    if not any(lists.values()) and (names is not None or len(lists) > 1):
        return
    first_row = {name: values[0] for name, values in lists.items() if values}
    first, second = _text_columns(first_row) if names is None else names
    for name in (first, second):
        if name not in lists:
            raise DataError(f"Column {name!r} is missing; there are {list(lists)}.")
    if len(lists[first]) != len(lists[second]):
        raise DataError(
            f"Column {first!r} has {len(lists[first])} rows and column {second!r} has {len(lists[second])}. "
            "Give both columns the same length."
        )
    for index, texts in enumerate(zip(lists[first], lists[second], strict=True)):
        yield _check_pair(texts, index)


def _text_columns(row: Mapping[str, Any]) -> tuple[str, str]:
    try:
        columns = resolve_columns([row])
    except DataError as error:
        raise DataError(
            f"Found no two text columns among {list(row)}: name them with columns=(first, second)."
        ) from error
    if columns.shape not in {"pair", "tuple"}:
        raise DataError(
            f"Columns {list(row)} hold lists of documents or tokens, not pairs of texts. Use rank(query, documents), or name "
            "two columns of texts with columns=(first, second)."
        )
    return columns.query, columns.documents[0]


def _check_pair(row: Any, index: int) -> Pair:
    texts = row.tolist() if isinstance(row, np.ndarray) else row
    if isinstance(texts, str) or not isinstance(texts, Sequence) or len(texts) != 2:
        count = "" if isinstance(texts, str) or not isinstance(texts, Sequence) else f" with {len(texts)} entries"
        raise DataError(
            f"Row {index}: expected two texts, found {short(texts)} ({type(row).__name__}{count}). "
            "Give each row as (first text, second text)."
        )
    first, second = texts
    if isinstance(first, str) and isinstance(second, str):
        return first, second
    number, text = (2, second) if isinstance(first, str) else (1, first)
    raise DataError(
        f"Row {index}: text {number} is {short(text)} ({type(text).__name__}), expected a string. "
        "Filter such rows out, or give an empty string."
    )


def unique_pairs(pairs: Sequence[Pair]) -> tuple[list[Pair], NDArray[np.int64]]:
    """Each distinct pair once, in the order of first appearance, and for every pair its place among them [P]."""
    places: dict[Pair, int] = {}
    inverse = np.fromiter((places.setdefault(pair, len(places)) for pair in pairs), dtype=np.int64, count=len(pairs))
    return list(places), inverse
