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
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from cross_trainer.errors import ConfigurationError, DataError, short

logger = logging.getLogger(__name__)

LABEL_NAMES = ("label", "labels", "score", "scores")
NUM_RELEVANT = "num_relevant"
IGNORED_LABEL = -100
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
                raise DataError(unknown_class(self.label, None, value, self.label2id))
            return self.label2id[value]
        if self.class_names is not None and self.label2id is not None and not isinstance(value, float):
            return self.label2id[self.class_names[value]]
        return value


def check_text(value: Any, where: str) -> str:
    """A value that is a text, as every reader of rows checks it.

    Args:
        value: What stands where a text should.
        where: Its place, as a message begins: "Column 'question', row 3".

    Raises:
        DataError: It is no string, or one with half of a surrogate pair, which is no character and can't be encoded.
    """
    if not isinstance(value, str):
        raise DataError(
            f"{where}: expected a text, found {short(value)} ({type(value).__name__}). "
            "Filter such rows out, or turn the value into a string."
        )
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{where}: the text {short(value)} has half of a surrogate pair, which is no character. "
                "Filter such rows out, or mend it with text.encode(errors='ignore').decode()."
            ) from None
    return value


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
        raise DataError(
            f"Column {missing[0]!r} is missing. The data set has the columns {names}: name the right ones "
            "with PairCollator(columns=(first text, second text, label))."
        )
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
    row = next(iterate(dataset), None)
    if row is None:
        raise DataError(
            "The data set is empty: it has no row to train or evaluate on. Check the split and the filters."
        )
    return as_mapping(row)


def is_stream(dataset: Rows) -> bool:
    """Whether rows can only be read in order, so that nothing can be checked ahead."""
    return not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__")


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
        raise DataError(
            f"Found {len(texts)} text columns ({texts}) among {list(first)}: two are needed. "
            "Name them with PairCollator(columns=(first text, second text, label))."
        )
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
            or (is_list(value) and all(isinstance(entry, str) for entry in value))
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


def is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def iterate(dataset: Rows) -> Iterator[Row]:
    if not hasattr(dataset, "__iter__"):
        return (dataset[index] for index in range(len(dataset)))
    return iter(dataset)


# -- checking ----------------------------------------------------------------------------------------------------------


def unknown_class(name: str | None, row: int | None, value: str, known: Mapping[str, int] | None) -> str:
    where = f"Column {name!r}, row {row}" if row is not None else f"Column {name!r}"
    if known is None:
        return (
            f"{where}: label {value!r} is a class name, and no ids of classes are known. Let CrossEncoderTrainer resolve "
            "them, or give PairCollator(columns=Columns(..., label2id={name: id, ...}))."
        )
    return f"{where}: class {value!r} is unknown to the model, whose classes are {list(known)}. Mend the label or load the model with it."
