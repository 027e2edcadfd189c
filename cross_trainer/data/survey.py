"""One reading of a whole data set, in batches, before any long work starts: what its labels are, and the first bad row.

>>> from cross_trainer.data.columns import resolve_columns
>>> rows = [{"a": "one", "b": "uno", "label": 1}, {"a": "two", "b": "tres", "label": 0}]
>>> found = survey(rows, resolve_columns(rows))
>>> found.kind, found.rows, found.minimum, found.maximum
('binary', 2, 0, 1)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cross_trainer.data.columns import (
    IGNORED_LABEL,
    Columns,
    Row,
    Rows,
    as_mapping,
    check_text,
    is_finite,
    is_list,
    is_transformed,
    iterate,
    plain,
    plain_rows,
    unknown_class,
)
from cross_trainer.errors import DataError, short

logger = logging.getLogger(__name__)

BATCH_ROWS = 10_000
MOST_COUNTS = 100


@dataclass
class Survey:
    """What one reading of a data set found.

    Attributes:
        rows: How many rows there are.
        texts: How many texts there are.
        empty_texts: How many of them are empty.
        kind: What the labels are: "none", "binary" (nothing but 0 and 1), "class" (other integers, or names), "real"
            (other numbers), "multi" (lists of C numbers), "list" (one number per document) or "margin" (one number for
            two documents).
        minimum: The lowest numeric label.
        maximum: The highest.
        class_names: The names of the classes, in the order of their index.
        width: C, where labels are lists of numbers.
        without_positive: How many lists have no label above 0.
        numbers: How many numbers labels consist of.
        total: Their sum.
        integers: Whether all labels are of an integer type.
        whole: Whether no label has a fraction.
        names: The class names that occur as labels.
        counts: How often each label occurs, or for lists of C numbers, how often each is above 0; None where there are
            more than `MOST_COUNTS` different ones.
    """

    rows: int = 0
    texts: int = 0
    empty_texts: int = 0
    kind: str = "none"
    minimum: float = math.inf
    maximum: float = -math.inf
    class_names: tuple[str, ...] | None = None
    width: int = 0
    without_positive: int = 0
    numbers: int = 0
    total: float = 0.0
    integers: bool = True
    whole: bool = True
    names: set[str] = field(default_factory=set)
    counts: dict[Any, int] | None = field(default_factory=dict)


def survey(dataset: Rows, columns: Columns) -> Survey:
    """Read a mapped data set once, a batch at a time, and check every row.

    Raises:
        DataError: A text is None or no string, a label is None, NaN, infinite, of another length than before or than
            its documents, or -100, which marks entries to ignore. The message names the column, the row and the remedy.
    """
    found = Survey()
    for start, batch in read_batches(dataset, columns.names):
        _look(batch, columns, start, found)
    if not found.rows:
        raise DataError(
            "The data set is empty: it has no row to train or evaluate on. Check the split and the filters."
        )
    if found.names:
        found.class_names = tuple(sorted(found.names))
    elif columns.class_names is not None:
        found.class_names = columns.class_names
    if found.kind == "number":
        found.kind = _number_kind(found, columns)
    if found.empty_texts and found.empty_texts == found.texts:
        raise DataError(
            f"All {found.texts} texts are empty. Name the columns of the texts with columns=(first text, second text)."
        )
    if found.empty_texts:
        logger.warning("%d of the texts are empty. They are scored as they are.", found.empty_texts)
    if found.without_positive:
        logger.info("%d of %d lists have no label above 0.", found.without_positive, found.rows)
    return found


@dataclass(frozen=True)
class Limits:
    """What labels a loss can be computed on.

    Attributes:
        low: The lowest.
        high: The highest.
        remedy: What to do about others; the end of a message.
        whole: Whether they must be integers, or numbers without a fraction.
    """

    low: float
    high: float
    remedy: str
    whole: bool = False

    def check(self, value: Any, where: str, found: str = "") -> None:
        """Check a row's label or labels.

        Raises:
            DataError: One lies outside; the message starts with `where` and has `found` before the remedy.
        """
        for entry in _flat(value):
            if isinstance(entry, str):
                continue
            if not self.low <= entry <= self.high:
                span = f"[{self.low:g}, {self.high:g}]"
                raise DataError(f"{where}: label {short(entry)} is outside {span}{found}. {self.remedy}")
            if self.whole and entry != int(entry):
                raise DataError(f"{where}: label {short(entry)} is no class. {self.remedy}")


class RowCheck:
    """Check the rows of a stream as they go by, like `survey` those of a mapped data set.

        >>> from cross_trainer.data.columns import resolve_columns
        >>> rows = [{"a": "one", "b": "uno", "label": 1.0}]
        >>> columns = resolve_columns(rows)
        >>> check = RowCheck(columns, survey(rows, columns), Limits(0, 1, "Scale the labels."))
        >>> check({"a": "two", "b": "dos", "label": 5.0}, 1000)
        Traceback (most recent call last):
        cross_trainer.errors.DataError: Column 'label', row 1000: label 5.0 is outside [0, 1]. Scale the labels.

    Args:
        columns: What the stream's columns are for.
        found: What reading its first rows found.
        limits: What labels the loss can be computed on; None for any.
    """

    def __init__(self, columns: Columns, found: Survey, limits: Limits | None) -> None:
        numbers = found.kind in {"binary", "real"} or (found.kind == "class" and not found.names)
        self.columns = columns
        self.limits = limits
        self.seen = Survey(kind="number" if numbers else found.kind, width=found.width)

    def __call__(self, row: Row, number: int) -> None:
        """Check a row.

        Raises:
            DataError: As `survey` does, or because a label is outside the limits or an unknown class.
        """
        columns = self.columns
        batch = _transpose([as_mapping(row)], columns.names, number)
        _look(batch, columns, number, self.seen)
        if columns.label is None:
            return
        label, place = batch[columns.label][0], f", row {number}"
        if self.limits is not None:
            self.limits.check(label, f"Column {columns.label!r}{place}")
        if columns.label2id is not None:
            columns.encode(label, place)


def _look(batch: Mapping[str, list[Any]], columns: Columns, start: int, found: Survey) -> None:
    """Check a batch of rows and widen what is known of them."""
    instruction = () if columns.instruction is None else (columns.instruction,)
    for name in (columns.query, *columns.documents, *instruction) if columns.shape != "tokens" else ():
        listed = columns.shape == "list" and name in columns.documents
        texts, empty = _check_texts(batch[name], name, start, listed=listed)
        found.texts += texts
        found.empty_texts += empty
    if columns.label is not None:
        _check_labels(batch, columns, start, found)
    found.rows += len(batch[columns.query])


def check_range(dataset: Rows, columns: Columns, found: Survey, low: float, high: float, remedy: str) -> None:
    """Check that numeric labels lie in [low, high].

    Raises:
        DataError: Names the column, the range found, the first row outside and the remedy.
    """
    if found.minimum >= low and found.maximum <= high:
        return
    assert columns.label is not None
    limits, span = Limits(low, high, remedy), f"; the labels range from {found.minimum:g} to {found.maximum:g}"
    for start, batch in read_batches(dataset, [columns.label]):
        for row, value in enumerate(batch[columns.label], start):
            limits.check(value, f"Column {columns.label!r}, row {row}", span)


def check_classes(dataset: Rows, columns: Columns, found: Survey, num_labels: int) -> None:
    """Check that every class has a place among the model's `num_labels`.

    Raises:
        DataError: A class index is outside [0, num_labels) or a class name is unknown to the model.
    """
    if found.class_names is not None and columns.label2id is not None:
        unknown = [name for name in found.class_names if name not in columns.label2id]
        if unknown:
            where = f"Column {columns.label!r}, row {_first_row_with(dataset, columns, unknown[0])}"
            raise DataError(unknown_class(where, unknown[0], columns.label2id))
    if not found.names:
        count = len(found.class_names) if found.class_names is not None else num_labels
        remedy = (
            f"The model has num_labels={num_labels}. Load it with more labels, or filter such rows out "
            "(-1 often means no label)."
        )
        check_range(dataset, columns, found, 0, count - 1, remedy)


def text_lengths(dataset: Rows, columns: Columns) -> list[int]:
    """Each row's length: tokens where it is tokenised, else characters over all its texts; for grouping by length."""
    if columns.shape == "tokens":
        return [len(ids) for _, batch in read_batches(dataset, [columns.query]) for ids in batch[columns.query]]
    lengths: list[int] = []
    names = [columns.query, *columns.documents]
    for _, batch in read_batches(dataset, names):
        per_column = [
            [sum(map(len, value)) if is_list(value) else len(value) for value in batch[name]] for name in names
        ]
        lengths.extend(map(sum, zip(*per_column, strict=True)))
    return lengths


def read_batches(dataset: Rows, names: list[str]) -> Iterator[tuple[int, Mapping[str, list[Any]]]]:
    """(index of the first row, {column: values}) of `BATCH_ROWS` rows at a time."""
    if hasattr(dataset, "select_columns") and hasattr(dataset, "with_format") and not is_transformed(dataset):
        table = plain_rows(dataset).select_columns(names)
        for number, batch in enumerate(table.iter(batch_size=BATCH_ROWS)):
            yield number * BATCH_ROWS, batch
        return
    start, rows = 0, []
    for row in iterate(dataset):
        rows.append(as_mapping(row))
        if len(rows) == BATCH_ROWS:
            yield start, _transpose(rows, names, start)
            start, rows = start + len(rows), []
    if rows:
        yield start, _transpose(rows, names, start)


def _transpose(rows: list[Mapping[str, Any]], names: list[str], start: int) -> dict[str, list[Any]]:
    for offset, row in enumerate(rows):
        for name in names:
            if name not in row:
                raise DataError(
                    f"Column {name!r}, row {start + offset}: missing; the row has {list(row)}. "
                    "Give every row the same columns."
                )
    return {name: [row[name] for row in rows] for name in names}


def _first_row_with(dataset: Rows, columns: Columns, name: str) -> int | None:
    assert columns.label is not None
    for start, batch in read_batches(dataset, [columns.label]):
        if name in batch[columns.label]:
            return start + batch[columns.label].index(name)
    return None


def _check_texts(values: list[Any], name: str, start: int, *, listed: bool) -> tuple[int, int]:
    """Check one column's texts; count them, and the empty ones."""
    texts = empty = 0
    for row, value in enumerate(values, start):
        where = f"Column {name!r}, row {row}"
        if listed and (not is_list(value) or not len(value)):
            raise DataError(
                f"{where}: expected a list of documents with at least one, found {short(value)}. Filter such rows out."
            )
        for text in value if listed else (value,):
            empty += not check_text(text, where)
            texts += 1
    return texts, empty


def _check_labels(batch: Mapping[str, list[Any]], columns: Columns, start: int, found: Survey) -> None:
    """Check one batch of labels and widen what is known of them."""
    assert columns.label is not None
    name = columns.label
    for offset, value in enumerate(batch[name]):
        row = start + offset
        label = plain(value)
        if isinstance(label, str):
            found.names.add(label)
        kind = "class" if isinstance(label, str) else "multi" if is_list(label) else "number"
        if columns.grouped:
            kind = "list" if is_list(label) else "margin"
            documents = batch[columns.documents[0]][offset] if columns.shape == "list" else columns.documents
            _check_list(label, documents, columns, row, found)
        _check_numbers(label, name, row, found)
        if found.kind not in {"none", kind}:
            raise DataError(
                f"Column {name!r}, row {row}: label {short(label)} is of another kind than those before it "
                f"({found.kind}). Make all labels numbers, class names or lists."
            )
        if kind == "multi":
            _check_width(label, name, row, found)
        _count(label, kind, found)
        found.kind = kind


def _count(label: Any, kind: str, found: Survey) -> None:
    """Count a label, or the entries of a list of them."""
    if found.counts is None:
        return
    entries = [place for place, entry in enumerate(label) if entry > 0] if kind == "multi" else _flat(label)
    for entry in entries:
        found.counts[entry] = found.counts.get(entry, 0) + 1
    if len(found.counts) > MOST_COUNTS:
        found.counts = None


def _check_numbers(label: Any, name: str, row: int, found: Survey) -> None:
    for entry in _flat(label):
        if isinstance(entry, str) and not is_list(label):
            continue
        if entry is None or not isinstance(entry, int | float):
            raise DataError(
                f"Column {name!r}, row {row}: expected a label, found {short(entry)}. Filter such rows out, "
                f"with dataset.filter(lambda row: row[{name!r}] is not None) for instance."
            )
        if not is_finite(entry):
            raise DataError(
                f"Column {name!r}, row {row}: label {short(entry)} is not finite in 32 bits. Filter such rows out or "
                "mend them."
            )
        if entry == IGNORED_LABEL:
            raise DataError(
                f"Column {name!r}, row {row}: label -100 marks entries to ignore. Filter the row out or rescale labels."
            )
        found.numbers += 1
        found.total += entry
        found.minimum = min(found.minimum, entry)
        found.maximum = max(found.maximum, entry)
        found.integers = found.integers and isinstance(entry, int)
        found.whole = found.whole and entry == int(entry)


def _check_list(label: Any, documents: Sequence[str], columns: Columns, row: int, found: Survey) -> None:
    if not is_list(label):
        if columns.shape == "tuple" and len(documents) == 2:  # a margin between positive and negative
            return
        raise DataError(
            f"Column {columns.label!r}, row {row}: expected a list of {len(documents)} labels, one a document, "
            f"found {short(label)}."
        )
    if len(label) != len(documents):
        raise DataError(
            f"Column {columns.label!r}, row {row}: {len(label)} labels for {len(documents)} documents. "
            "Give each document one label."
        )
    found.without_positive += not any(isinstance(entry, int | float) and entry > 0 for entry in label)


def _check_width(label: Sequence[Any], name: str, row: int, found: Survey) -> None:
    if found.width not in {0, len(label)} or not label:
        raise DataError(
            f"Column {name!r}, row {row}: a list of {len(label)} labels, where earlier rows have "
            f"{found.width or 'some'}. Give every row one number (0 or 1) for each label."
        )
    found.width = len(label)


def _number_kind(found: Survey, columns: Columns) -> str:
    if columns.class_names is not None and len(columns.class_names) > 2:
        return "class"
    if found.minimum >= 0 and found.maximum <= 1 and found.whole:
        return "binary"
    return "class" if found.integers else "real"


def _flat(value: Any) -> list[Any]:
    return list(value) if is_list(value) else [value]
