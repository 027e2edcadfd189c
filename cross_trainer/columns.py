"""What a row is: which columns hold the texts and which one the label, and whether all of them can be trained on.

A data set may be a `datasets.Dataset` or `IterableDataset`, a torch `Dataset` or a plain list, and its rows dicts, tuples
`(a, b)` or `(a, b, label)`, or `InputExample(texts=[a, b], label=...)`. `resolve_columns` decides once per data set what each
column is for, and `survey` reads the whole of it once, in batches, before any long work starts:

    columns = resolve_columns(dataset)     # Columns(query='question', documents=('answer',), label='label', shape='pair', ...)
    found = survey(dataset, columns)       # raises DataError at the first row that can't be trained on

Four shapes of row are told apart:

    pair    (query, document[, label])                     label: a number, a class or, for several labels at once, a list
    list    (query, [document, ...][, [label, ...]])       one label a document
    tuple   (query, positive, negative, negative_2, ...)   no label; or a margin; or a list of one score a document
    tokens  (input_ids, ..., [label])                      tokenised already
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from cross_trainer.errors import ConfigurationError, DataError, short

logger = logging.getLogger(__name__)

LABEL_NAMES = ("label", "labels", "score", "scores")
NUM_RELEVANT = "num_relevant"
IGNORED_LABEL = -100
BATCH_ROWS = 10_000
_IDENTIFIERS = re.compile(r"(.*_)?(id|idx|guid|uid|uuid|qid|pid|docid|pairid)", re.IGNORECASE)
_NEGATIVE = re.compile(r"negative(_\d+)?")

Shape: TypeAlias = Literal["pair", "list", "tuple", "tokens"]
Rows: TypeAlias = Any  # Dataset | IterableDataset | torch Dataset | Sequence: they share no type
Row: TypeAlias = "Mapping[str, Any] | Sequence[Any] | InputExample"


@dataclass
class InputExample:
    """A pair of texts and its label, by the name that sentence-transformers' users know.

    Args:
        texts: The two texts, in the order in which the model reads them.
        label: A number, a class index, a class name or a list of 0 and 1 for several labels at once.
        guid: An identifier of your own; not read.
    """

    texts: Sequence[str]
    label: Any = None
    guid: str | None = None


@dataclass(frozen=True)
class Columns:
    """What each column of a data set is for.

    Args:
        query: The column of the first text.
        documents: The column of the second text, or of the lists of documents; for tuples the positive's and the negatives'.
        label: The column of the label, if there is one.
        shape: What a row is; see the module.
        num_relevant: A column counting each query's relevant documents, also those missing from its list.
        class_names: The names behind integer labels in the data, in the data's order.
        label2id: The model's id of each class name; integer labels are translated by name where `class_names` is known.
        float_labels: Labels are real numbers, even where one looks like an integer.
        label_width: C, where a label is a list for several labels at once.
    """

    query: str
    documents: tuple[str, ...] = ()
    label: str | None = None
    shape: Shape = "pair"
    num_relevant: str | None = None
    class_names: tuple[str, ...] | None = None
    label2id: Mapping[str, int] | None = None
    float_labels: bool = False
    label_width: int = 0

    @property
    def names(self) -> list[str]:
        """Every column that is read, texts first."""
        return [name for name in (self.query, *self.documents, self.label, self.num_relevant) if name is not None]

    @property
    def grouped(self) -> bool:
        """A row is a query with several documents, so labels are [G, D]."""
        return self.shape in {"list", "tuple"}

    def encode(self, value: Any) -> Any:
        """A label as the model counts it: class names become ids, integers are translated by name, numbers stay.

        Raises:
            DataError: The class name is unknown to the model.
        """
        if isinstance(value, list | tuple):
            return [self.encode(entry) for entry in value]
        if isinstance(value, str):
            if self.label2id is None or value not in self.label2id:
                raise DataError(_unknown_class(self.label, None, value, self.label2id))
            return self.label2id[value]
        if self.class_names is not None and self.label2id is not None and not isinstance(value, float):
            return self.label2id[self.class_names[value]]
        return value


@dataclass
class Survey:
    """What one reading of a data set found.

    `kind` is what the labels are: "none", "binary" (nothing but 0 and 1), "class" (other integers, or names), "real" (other
    numbers), "multi" (lists of C numbers), "list" (one number a document) or "margin" (one number for two documents).
    `minimum` and `maximum` are the range of numeric labels, `integers` tells that all were of an integer type, `whole` that none
    had a fraction, `names` holds the class names found as labels, `class_names` all of them in the order of their index.
    """

    rows: int = 0
    empty_texts: int = 0
    kind: str = "none"
    minimum: float = math.inf
    maximum: float = -math.inf
    class_names: tuple[str, ...] | None = None
    width: int = 0
    without_positive: int = 0
    integers: bool = True
    whole: bool = True
    names: set[str] = field(default_factory=set)


def as_mapping(row: Row) -> Mapping[str, Any]:
    """A row as a mapping. Tuples and examples get the columns `text_1`, `text_2` and `label`.

    Raises:
        DataError: The row is neither a mapping nor `(a, b)`, `(a, b, label)` or an example with two texts.
    """
    if isinstance(row, Mapping):
        return row
    if _is_example(row):
        texts, label = row.texts, [] if row.label is None else [row.label]  # type: ignore[union-attr]
    elif isinstance(row, Sequence) and not isinstance(row, str):
        texts, label = row[:2], list(row[2:])
    else:
        texts, label = (), []
    if len(texts) != 2 or len(label) > 1:
        raise DataError(
            f"A row is {short(row)}. Expected a dict, a tuple (a, b) or (a, b, label), or InputExample(texts=[a, b], "
            "label=...). For more texts in a row use dicts, whose keys name the columns."
        )
    return dict(zip(("text_1", "text_2", "label"), (*texts, *label), strict=False))


def resolve_columns(
    dataset: Rows, columns: Columns | Sequence[str] | None = None, in_batch_negatives: int = 0
) -> Columns:
    """Decide what each column is for, and log it in one line.

    Texts are the first two columns of text in order, the label is `label`, `labels`, `score` or `scores`. Columns named as
    identifiers (`id`, `qid`, `doc_id`, ...) are no texts.

    Args:
        dataset: Any data set whose first row can be read.
        columns: The names `(first text, second text)` or `(first text, second text, label)`, or all of it as `Columns`.
        in_batch_negatives: Above 0, a pair without a label is a query and its positive.

    Raises:
        DataError: The data set is empty, a named column is missing, or no two text columns are found.
    """
    first = first_row(dataset)
    names = list(first)
    if isinstance(columns, Columns):
        resolved = columns
    elif columns is not None:
        resolved = _from_names(columns, first)
    else:
        resolved = _from_row(first, text_columns(dataset, first))
    missing = [name for name in resolved.names if name not in names]
    if missing:
        raise DataError(f"Column {missing[0]!r} is missing. The data set has the columns {names}: name the right ones "
                        "with PairCollator(columns=(first text, second text, label)).")  # fmt: skip
    if resolved.class_names is None and resolved.label is not None:
        resolved = dataclasses.replace(resolved, class_names=_class_names(dataset, resolved.label))
    if in_batch_negatives and resolved.shape == "pair" and resolved.label is None:
        resolved = dataclasses.replace(resolved, shape="tuple")
    ignored = [name for name in names if name not in resolved.names] if resolved.shape != "tokens" else []
    logger.info("Columns: %s", _describe(resolved, ignored))
    return resolved


def first_row(dataset: Rows) -> Mapping[str, Any]:
    """The first row of any data set, as a mapping.

    Raises:
        DataError: The data set has no row.
    """
    row = next(_iterate(dataset), None)
    if row is None:
        raise DataError(
            "The data set is empty: it has no row to train or evaluate on. Check the split and the filters."
        )
    return as_mapping(row)


def is_stream(dataset: Rows) -> bool:
    """Whether rows can only be read in order, so that nothing can be checked ahead."""
    return not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__")


def survey(dataset: Rows, columns: Columns) -> Survey:
    """Read a mapped data set once, a batch at a time, and check every row.

    Raises:
        DataError: A text is None or no string, a label is None, NaN, infinite, of another length than before or than its
            documents, or -100, which marks entries to ignore. The message names the column, the row and the remedy.
    """
    found = Survey()
    for start, batch in read_batches(dataset, columns.names):
        for name in (columns.query, *columns.documents) if columns.shape != "tokens" else ():
            found.empty_texts += _check_texts(
                batch[name], name, start, listed=columns.shape == "list" and name != columns.query
            )
        if columns.label is not None:
            _check_labels(batch, columns, start, found)
        found.rows += len(batch[columns.query])
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
    if found.empty_texts:
        logger.warning("%d of the texts are empty. They are scored as they are.", found.empty_texts)
    if found.without_positive:
        logger.info("%d of %d lists have no label above 0.", found.without_positive, found.rows)
    return found


def check_range(dataset: Rows, columns: Columns, found: Survey, low: float, high: float, remedy: str) -> None:
    """Check that numeric labels lie in [low, high].

    Raises:
        DataError: Names the column, the range found, the first row outside and the remedy.
    """
    if found.minimum >= low and found.maximum <= high:
        return
    assert columns.label is not None
    for start, batch in read_batches(dataset, [columns.label]):
        for offset, value in enumerate(batch[columns.label]):
            outside = [entry for entry in _flat(value) if not low <= entry <= high]
            if outside:
                raise DataError(
                    f"Column {columns.label!r}, row {start + offset}: label {short(outside[0])} is outside [{low:g}, {high:g}]; "
                    f"the labels range from {found.minimum:g} to {found.maximum:g}. {remedy}"
                )


def check_classes(dataset: Rows, columns: Columns, found: Survey, num_labels: int) -> None:
    """Check that every class has a place among the model's `num_labels`.

    Raises:
        DataError: A class index is outside [0, num_labels) or a class name is unknown to the model.
    """
    if found.class_names is not None and columns.label2id is not None:
        unknown = [name for name in found.class_names if name not in columns.label2id]
        if unknown:
            row = _first_row_with(dataset, columns, unknown[0])
            raise DataError(_unknown_class(columns.label, row, unknown[0], columns.label2id))
    if not found.names:
        count = len(found.class_names) if found.class_names is not None else num_labels
        remedy = f"The model has num_labels={num_labels}. Load it with more labels, or filter such rows out (-1 often means no label)."
        check_range(dataset, columns, found, 0, count - 1, remedy)


def text_lengths(dataset: Rows, columns: Columns) -> list[int]:
    """Each row's length: tokens where it is tokenised, else characters over all its texts; for grouping by length."""
    if columns.shape == "tokens":
        return [len(ids) for _, batch in read_batches(dataset, [columns.query]) for ids in batch[columns.query]]
    lengths: list[int] = []
    names = [columns.query, *columns.documents]
    for _, batch in read_batches(dataset, names):
        per_column = [
            [sum(map(len, value)) if isinstance(value, list) else len(value) for value in batch[name]] for name in names
        ]
        lengths.extend(map(sum, zip(*per_column, strict=True)))
    return lengths


# -- choosing columns --------------------------------------------------------------------------------------------------


def _from_names(names: Sequence[str], first: Mapping[str, Any]) -> Columns:
    if isinstance(names, str) or not 2 <= len(names) <= 3:
        raise ConfigurationError(
            f"columns={names!r}: expected (first text, second text) or (first text, second text, label)."
        )
    label = (
        names[2]
        if len(names) == 3
        else next((name for name in LABEL_NAMES if name in first and name not in names), None)
    )
    shape: Shape = "list" if isinstance(first.get(names[1]), list | tuple) else "pair"
    return Columns(names[0], (names[1],), label, shape, _num_relevant(first, shape))


def _from_row(first: Mapping[str, Any], texts: list[str]) -> Columns:
    label = next((name for name in LABEL_NAMES if name in first), None)
    if "input_ids" in first:
        return Columns("input_ids", (), label or ("label_ids" if "label_ids" in first else None), "tokens")
    texts = [name for name in texts if name != label]
    if len(texts) < 2:
        raise DataError(f"Found {len(texts)} text columns ({texts}) among {list(first)}: two are needed. "
                        "Name them with PairCollator(columns=(first text, second text, label)).")  # fmt: skip
    query, *documents = texts
    if isinstance(first[documents[0]], list | tuple):
        return Columns(query, (documents[0],), label, "list", _num_relevant(first, "list"))
    negatives = [name for name in documents if _NEGATIVE.fullmatch(name)]
    if negatives or (label is None and len(documents) > 1):
        return Columns(query, tuple(documents), label, "tuple", _num_relevant(first, "tuple"))
    return Columns(query, (documents[0],), label, "pair")


def _num_relevant(first: Mapping[str, Any], shape: Shape) -> str | None:
    return NUM_RELEVANT if NUM_RELEVANT in first and shape != "pair" else None


def text_columns(dataset: Rows, first: Mapping[str, Any]) -> list[str]:
    """Columns of strings or lists of strings, in order; a None counts as text, so that its row gets named later."""
    features = getattr(dataset, "features", None) or {}
    candidates = [name for name in first if name not in LABEL_NAMES and not _IDENTIFIERS.fullmatch(name)]

    def is_text(name: str) -> bool:
        if name in features:
            entry = getattr(features[name], "feature", features[name])
            return str(getattr(entry, "dtype", "")) in {"string", "large_string", "string_view", "null"}
        value = first[name]
        return (
            value is None
            or isinstance(value, str)
            or (_is_list(value) and all(isinstance(entry, str) for entry in value))
        )

    return [name for name in candidates if is_text(name)]


def _class_names(dataset: Rows, label: str) -> tuple[str, ...] | None:
    names = getattr((getattr(dataset, "features", None) or {}).get(label), "names", None)
    return tuple(names) if names else None


def _describe(columns: Columns, ignored: list[str]) -> str:
    what = {
        "pair": "pairs",
        "list": "lists of documents",
        "tuple": "positive and negatives",
        "tokens": "tokenised pairs",
    }[columns.shape]
    texts = ", ".join(map(repr, (columns.query, *columns.documents)))
    text = f"{what} from {texts}, label {columns.label!r}" if columns.label else f"{what} from {texts}, no label"
    return f"{text}, ignored {ignored}" if ignored else text


# -- reading -----------------------------------------------------------------------------------------------------------


def _is_example(row: Any) -> bool:
    return hasattr(row, "texts") and hasattr(row, "label")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _iterate(dataset: Rows) -> Iterator[Row]:
    if not hasattr(dataset, "__iter__"):
        return (dataset[index] for index in range(len(dataset)))
    return iter(dataset)


def read_batches(dataset: Rows, names: list[str]) -> Iterator[tuple[int, Mapping[str, list[Any]]]]:
    """(index of the first row, {column: values}) of `BATCH_ROWS` rows at a time."""
    if hasattr(dataset, "select_columns") and hasattr(dataset, "with_format"):
        plain = dataset.with_format(None).select_columns(names)
        for number, batch in enumerate(plain.iter(batch_size=BATCH_ROWS)):
            yield number * BATCH_ROWS, batch
        return
    start, rows = 0, []
    for row in _iterate(dataset):
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
                    f"Column {name!r}, row {start + offset}: missing; the row has {list(row)}. Give every row the same columns."
                )
    return {name: [row[name] for row in rows] for name in names}


def _first_row_with(dataset: Rows, columns: Columns, name: str) -> int | None:
    assert columns.label is not None
    for start, batch in read_batches(dataset, [columns.label]):
        if name in batch[columns.label]:
            return start + batch[columns.label].index(name)
    return None


# -- checking ----------------------------------------------------------------------------------------------------------


def _check_texts(values: list[Any], name: str, start: int, *, listed: bool) -> int:
    """Check one column's texts and count the empty ones."""
    empty = 0
    for offset, value in enumerate(values):
        if listed and (not _is_list(value) or not value):
            raise DataError(f"Column {name!r}, row {start + offset}: expected a list of documents with at least one, "
                            f"found {short(value)}. Filter such rows out.")  # fmt: skip
        for text in value if listed else (value,):
            if not isinstance(text, str):
                raise DataError(
                    f"Column {name!r}, row {start + offset}: expected a text, found {short(text)} ({type(text).__name__}). "
                    f"Filter such rows out, with dataset.filter(lambda row: row[{name!r}] is not None) for instance, "
                    "or turn them into strings."
                )
            empty += not text
    return empty


def _check_labels(batch: Mapping[str, list[Any]], columns: Columns, start: int, found: Survey) -> None:
    """Check one batch of labels and widen what is known of them."""
    assert columns.label is not None
    name = columns.label
    for offset, value in enumerate(batch[name]):
        row = start + offset
        label = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(label, str):
            found.names.add(label)
        kind = "class" if isinstance(label, str) else "multi" if _is_list(label) else "number"
        if columns.grouped:
            kind = "list" if _is_list(label) else "margin"
            documents = batch[columns.documents[0]][offset] if columns.shape == "list" else columns.documents
            _check_list(label, documents, columns, row, found)
        _check_numbers(label, name, row, found)
        if found.kind not in {"none", kind}:
            raise DataError(f"Column {name!r}, row {row}: label {short(label)} is of another kind than those before it "
                            f"({found.kind}). Make all labels numbers, class names or lists.")  # fmt: skip
        if kind == "multi":
            _check_width(label, name, row, found)
        found.kind = kind


def _check_numbers(label: Any, name: str, row: int, found: Survey) -> None:
    for entry in _flat(label):
        if isinstance(entry, str):
            continue
        if entry is None or not isinstance(entry, int | float):
            raise DataError(f"Column {name!r}, row {row}: expected a label, found {short(entry)}. Filter such rows out, "
                            f"with dataset.filter(lambda row: row[{name!r}] is not None) for instance.")  # fmt: skip
        if not math.isfinite(entry):
            raise DataError(
                f"Column {name!r}, row {row}: label {entry} is not finite. Filter such rows out or mend them."
            )
        if entry == IGNORED_LABEL:
            raise DataError(
                f"Column {name!r}, row {row}: label -100 marks entries to ignore. Filter the row out or rescale labels."
            )
        found.minimum = min(found.minimum, entry)
        found.maximum = max(found.maximum, entry)
        found.integers = found.integers and isinstance(entry, int)
        found.whole = found.whole and entry == int(entry)


def _check_list(label: Any, documents: Sequence[str], columns: Columns, row: int, found: Survey) -> None:
    if not _is_list(label):
        if columns.shape == "tuple" and len(documents) == 2:  # a margin between positive and negative
            return
        raise DataError(f"Column {columns.label!r}, row {row}: expected a list of {len(documents)} labels, one a document, "
                        f"found {short(label)}.")  # fmt: skip
    if len(label) != len(documents):
        raise DataError(f"Column {columns.label!r}, row {row}: {len(label)} labels for {len(documents)} documents. "
                        "Give each document one label.")  # fmt: skip
    found.without_positive += not any(isinstance(entry, int | float) and entry > 0 for entry in label)


def _check_width(label: Sequence[Any], name: str, row: int, found: Survey) -> None:
    if found.width not in {0, len(label)} or not label:
        raise DataError(f"Column {name!r}, row {row}: a list of {len(label)} labels, where earlier rows have {found.width or 'some'}. "
                        "Give every row one number (0 or 1) for each label.")  # fmt: skip
    found.width = len(label)


def _number_kind(found: Survey, columns: Columns) -> str:
    if columns.class_names is not None and len(columns.class_names) > 2:
        return "class"
    if found.minimum >= 0 and found.maximum <= 1 and found.whole:
        return "binary"
    return "class" if found.integers else "real"


def _flat(value: Any) -> list[Any]:
    return list(value) if _is_list(value) else [value]


def _unknown_class(name: str | None, row: int | None, value: str, known: Mapping[str, int] | None) -> str:
    where = f"Column {name!r}, row {row}" if row is not None else f"Column {name!r}"
    if known is None:
        return (f"{where}: label {value!r} is a class name, and no ids of classes are known. Let CrossEncoderTrainer resolve "
                "them, or give PairCollator(columns=Columns(..., label2id={name: id, ...})).")  # fmt: skip
    return f"{where}: class {value!r} is unknown to the model, whose classes are {list(known)}. Mend the label or load the model with it."
