"""What a row is: which columns hold the two texts, and which one the label.

A data set may be a `datasets.Dataset` or `IterableDataset`, a torch `Dataset` or a plain list, and its rows dicts,
tuples `(a, b)` or `(a, b, label)`, or `InputExample(texts=[a, b], label=...)`. `resolve_columns` decides what each
column is for:

    >>> resolve_columns([{"qid1": "7", "question1": "Why?", "question2": "How?", "is_duplicate": 0}])
    Columns(query='question1', documents=('question2',), label='is_duplicate')

There are four shapes of row:

    pair    (query, document[, label])                     label: a number, a class, or a list for several labels at
    once list    (query, [document, ...][, [label, ...]])       one label per document
    tuple   (query, positive, negative, negative_2, ...)   no label; or a margin; or a list of one score per document
    tokens  (input_ids, ..., [label])                      already tokenised

Columns are recognised by their names, compared without case, spaces and punctuation:

- texts: a pair of `KNOWN_PAIRS`, or else the only two text columns that there are;
- negatives: `negative`, `negatives`, `negative_1`, `hard_negative`, `neg`, `neg_2`, ...;
- the label: `label`, `labels`, `score` or `scores`; else another of `LABEL_NAMES`, or the only `ClassLabel`;
- never a text: identifiers (`id`, `qid1`, `pairID`, `doc_ids`, `guid`, ...) and `split`.

What is still ambiguous is an error that names the columns, what each could be, and the argument that decides.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from cross_trainer.errors import ConfigurationError, DataError, short

_QUERIES = ("query", "question")
_DOCUMENTS = (
    *("document", "documents", "doc", "docs", "passage", "passages", "paragraph", "context", "text"),
    *("answer", "answers", "response", "positive", "pos"),
)
KNOWN_PAIRS = (
    *(("sentence1", "sentence2"), ("sentence_a", "sentence_b"), ("question1", "question2"), ("premise", "hypothesis")),
    *(("text1", "text2"), ("text_a", "text_b"), ("text", "text_pair"), ("first", "second"), ("anchor", "positive")),
    *((query, document) for query in _QUERIES for document in _DOCUMENTS),
)
"""Names of columns that are read as the first and the second text."""

LABEL_NAMES = (
    *("label", "labels", "score", "scores"),
    *(
        "gold_label",
        "is_duplicate",
        "similarity_score",
        "similarity",
        "relevance",
        "relevance_score",
        "relatedness_score",
    ),
    *("entailment_judgment", "target", "targets", "grade", "grades", "rating", "ratings"),
)
"""Names of a label's column; the first four take precedence over the others."""

NUM_RELEVANT = "num_relevant"
INSTRUCTION = "instruction"
"""The column of a pair's own instruction, for a model whose template takes one."""

IGNORED_LABEL = -100
LARGEST = (2 - 2**-23) * 2.0**127  # of 32 bits
_WORDS = re.compile(r"IDs|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_IDENTIFIERS = re.compile(r"([qpd]|doc|pair|gu|u|uu)?ids?|idxs?")
_NEGATIVES = re.compile(r"(hard)?neg(ative)?s?[0-9]*")
BY_ARGUMENT = "columns=(first text, second text, label)"

Shape: TypeAlias = Literal["pair", "list", "tuple", "tokens"]
Rows: TypeAlias = Any  # Dataset | IterableDataset | torch Dataset | Sequence: they share no type
Row: TypeAlias = "Mapping[str, Any] | Sequence[Any] | InputExample"


@dataclass
class InputExample:
    """A pair of texts and its label, by the name that users of sentence-transformers know.

        >>> InputExample(texts=["How do I pay?", "What does it cost?"], label=0)
        InputExample(texts=['How do I pay?', 'What does it cost?'], label=0, guid=None)

    Args:
        texts: The two texts, in the order in which the model reads them.
        label: A number, a class index, a class name, or a list of 0 and 1 for several labels at once.
        guid: An identifier of your own; not read.
    """

    texts: Sequence[str]
    label: Any = None
    guid: str | None = None


@dataclass(frozen=True)
class Columns:
    """What each column of a data set is for.

    >>> Columns("question", ("answer", "wrong", "worse"), shape="tuple").names
    ['question', 'answer', 'wrong', 'worse']

    Args:
        query: The column of the first text.
        documents: The column of the second text, or of the lists of documents; for tuples the positive's and the
            negatives'.
        label: The column of the label, if there is one.
        shape: What a row is; see the module.
        num_relevant: A column counting each query's relevant documents, also those missing from its list.
        class_names: The names behind integer labels in the data, in the data's order.
        label2id: The model's id of each class name; integer labels are translated by name where `class_names` is known.
        float_labels: Labels are real numbers, even where one looks like an integer.
        label_width: C, where a label is a list for several labels at once.
        instruction: The column of the instruction that stands in the model's template.
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
    instruction: str | None = None

    def __repr__(self) -> str:
        """The fields that differ from their defaults."""
        given = [each for each in dataclasses.fields(self) if getattr(self, each.name) != each.default]
        return f"Columns({', '.join(f'{each.name}={getattr(self, each.name)!r}' for each in given)})"

    @property
    def names(self) -> list[str]:
        """Every column that is read, texts first."""
        others = (self.label, self.num_relevant, self.instruction)
        return [name for name in (self.query, *self.documents, *others) if name is not None]

    @property
    def grouped(self) -> bool:
        """A row is a query with several documents, so labels are [G, D]."""
        return self.shape in {"list", "tuple"}

    def encode(self, value: Any, place: str = "") -> Any:
        """A label as the model counts it: class names become ids, integers are translated by name, numbers stay.

        Args:
            value: The label.
            place: What ends the column's name in a message: ", row 7".

        Raises:
            DataError: The class name is unknown to the model, or an integer is no index of the data's classes.
        """
        if isinstance(value, list | tuple):
            return [self.encode(entry, place) for entry in value]
        where = f"Column {self.label!r}{place}"
        if isinstance(value, str):
            if self.label2id is None or value not in self.label2id:
                raise DataError(unknown_class(where, value, self.label2id))
            return self.label2id[value]
        if self.class_names is not None and self.label2id is not None and isinstance(value, int):
            if not 0 <= value < len(self.class_names):
                raise DataError(
                    f"{where}: label {value} is no index of the classes {list(self.class_names)}. Filter such rows out "
                    "(-1 often means no label)."
                )
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
    return value if type(value) is str else str(value)  # numpy's strings, for instance


def as_mapping(row: Row) -> Mapping[str, Any]:
    """A row as a mapping. Tuples and examples get the columns `text_1`, `text_2` and `label`.

    Raises:
        DataError: The row is neither a mapping nor `(a, b)`, `(a, b, label)` or an example with two texts.
    """
    if isinstance(row, Mapping):
        return row if not any(map(_has_arrays, row.values())) else {name: plain(row[name]) for name in row}
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
    return dict(zip(("text_1", "text_2", "label"), (*texts, *map(plain, label)), strict=False))


def resolve_columns(
    dataset: Rows,
    columns: Columns | Sequence[str] | None = None,
    in_batch_negatives: int = 0,
    *,
    trained_on: Sequence[str] | None = None,
    option: str = BY_ARGUMENT,
    instructed: bool = False,
) -> Columns:
    """Decide what each column is for; see the module for the rules.

    Args:
        dataset: Any data set whose first row can be read.
        columns: The names `(first text, second text)` or `(first text, second text, label)`, or all of it as `Columns`.
        in_batch_negatives: Above 0, a pair without a label is a query and its positive.
        trained_on: The two text columns that a model was trained on, which decide where the data set has them.
        option: What the caller's user decides with, for error messages.
        instructed: Whether the model takes an instruction, so that a column `instruction` is no text of a pair.

    Raises:
        DataError: The data set is empty, a named column is missing, there are no two text columns, or it is ambiguous
            which ones are meant.
        ConfigurationError: `columns` holds neither two nor three names.
    """
    given = first_row(dataset)
    first = without_instruction(given) if instructed else given
    if isinstance(columns, Columns):
        resolved, first = columns, given
    elif "input_ids" in first and columns is None:
        label = "label_ids" if "label_ids" in first else _find_label(dataset, first, (), option)
        resolved = Columns("input_ids", (), label, "tokens")
    else:
        texts, label = _named(columns, dataset, first, trained_on, option)
        shape: Shape = "list" if is_list(first.get(texts[1])) else "tuple" if len(texts) > 2 else "pair"
        counted = NUM_RELEVANT if NUM_RELEVANT in first and shape != "pair" else None
        resolved = Columns(texts[0], tuple(texts[1:]), label, shape, counted)
    if instructed and INSTRUCTION in given and resolved.shape != "tokens" and INSTRUCTION not in resolved.names:
        resolved = dataclasses.replace(resolved, instruction=INSTRUCTION)
    missing = next((name for name in resolved.names if name not in given), None)
    if missing is not None:
        raise DataError(
            f"Column {missing!r} is missing. The data set has the columns {list(first)}: name the right ones with "
            f"{option}."
        )
    if resolved.class_names is None and resolved.label is not None:
        resolved = dataclasses.replace(resolved, class_names=_class_names(dataset, resolved.label))
    if in_batch_negatives and resolved.shape == "pair" and resolved.label is None:
        resolved = dataclasses.replace(resolved, shape="tuple")
    return resolved


def without_instruction(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row without its instruction, for finding the texts among its columns."""
    return {name: value for name, value in row.items() if name != INSTRUCTION}


def find_texts(
    dataset: Rows, first: Mapping[str, Any], trained_on: Sequence[str] | None = None, option: str = BY_ARGUMENT
) -> list[str]:
    """The columns of the first and the second text, and of negatives behind them, by the rules of the module.

    Args:
        dataset: A data set, whose features are read if it has any.
        first: Its first row.
        trained_on: The two text columns that a model was trained on, which decide where the row has them.
        option: What the caller's user decides with, for error messages.

    Raises:
        DataError: There are no two text columns, or it is ambiguous which ones are meant.
    """
    texts = text_columns(dataset, first)
    negatives = [name for name in texts if _NEGATIVES.fullmatch(_plain(name))]
    others = [name for name in texts if name not in negatives]
    known = [
        [query, document]
        for query in others
        for document in others
        if (_plain(query), _plain(document)) in _PLAIN_PAIRS and not is_list(first[query])
    ]
    if trained_on is not None and all(name in first for name in trained_on):
        known = [list(trained_on)]
    if len(others) == 2 and not known:
        known = [sorted(others, key=lambda name: is_list(first[name]))]
    if len(known) == 1:
        return known[0] + ([] if is_list(first[known[0][1]]) else negatives)
    if len(others) < 2:
        raise DataError(
            f"Found {len(others)} text columns ({others}) among {list(first)}: two are needed. Name them with {option}."
        )
    pairs = " or ".join(f"{query!r} with {document!r}" for query, document in known)
    choice = f"they could be {pairs}" if known else f"{', '.join(map(repr, others))} all hold texts"
    raise DataError(
        f"It is ambiguous which columns are the two texts: {choice}. Name them with {option}. Columns of negatives are "
        "called 'negative', 'negative_1' and so on, or named in Columns(query, (positive, ...), shape='tuple')."
    )


def choose_texts(
    dataset: Rows,
    row: Mapping[str, Any],
    trained_on: Sequence[str] | None = None,
    option: str = "columns=(first, second)",
) -> tuple[str, str]:
    """The columns of a pair's two texts: those trained on where a row has them, else by `find_texts`.

    Raises:
        DataError: There are no two text columns, it is ambiguous which ones are meant, or they hold lists of documents.
    """
    first, second, *_ = find_texts(dataset, row, trained_on, option)
    if is_list(row[second]):
        raise DataError(
            f"Column {second!r} holds a list of documents, not a text. Use rank(query, documents), write one pair per "
            f"row, or name two columns of texts with {option}."
        )
    return first, second


def find_text(first: Mapping[str, Any], option: str, ids: Collection[str] = ()) -> str:
    """The column of a table of queries or documents that holds their texts.

    It is called `text`, or is the only text column, or the only one called like a query or a document in `KNOWN_PAIRS`.

    Args:
        first: The table's first row.
        option: What the caller's user decides with, for error messages.
        ids: Columns that hold identifiers, whatever they are called.

    Raises:
        DataError: There is no text column, or it is ambiguous which one is meant.
    """
    texts = [name for name in text_columns(None, first) if name not in ids and not is_list(first[name])]
    known = [name for name in texts if _plain(name) in {*_QUERIES, *_DOCUMENTS}]
    named = [name for name in texts if _plain(name) == "text"]
    for found in (named, texts, known):
        if len(found) == 1:
            return found[0]
    if not texts:
        raise DataError(f"There is no column of text, only {', '.join(map(repr, first))}. Name it with {option}.")
    raise DataError(
        f"It is ambiguous which column holds the texts: it could be {' or '.join(map(repr, texts))}. "
        f"Name it with {option}."
    )


def is_label(name: str) -> bool:
    """Whether a column is a label by its name."""
    return _plain(name) in _PLAIN_LABELS


def is_identifier(name: str) -> bool:
    """Whether a column is an identifier by its name: `id`, `qid1`, `pairID`, `doc_ids`, `guid`, ..."""
    words = [word.lower() for word in _WORDS.findall(name) if not word.isdigit()]
    last = words[-2:] if words and len(words[-1]) == 1 else words[-1:]  # "id_a"
    return any(_IDENTIFIERS.fullmatch(word) for word in last)


def first_row(dataset: Rows) -> Mapping[str, Any]:
    """The first row of any data set, as a mapping.

    Raises:
        DataError: The data set has no row, or can be read only once.
    """
    if isinstance(dataset, Iterator):
        raise DataError(
            f"The rows are a {type(dataset).__name__}, which can be read only once. Give a list of them, or "
            "IterableDataset.from_generator(function)."
        )
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


def _plain(name: str) -> str:
    """A name without case, spaces and punctuation."""
    return "".join(character for character in name.lower() if character.isalnum())


_PLAIN_PAIRS = {(_plain(first), _plain(second)) for first, second in KNOWN_PAIRS}
_PLAIN_LABELS = [_plain(name) for name in LABEL_NAMES]


def _named(
    columns: Sequence[str] | None,
    dataset: Rows,
    first: Mapping[str, Any],
    trained_on: Sequence[str] | None,
    option: str,
) -> tuple[list[str], str | None]:
    """The texts and the label: as named, else by their names and types."""
    if columns is None:
        texts = find_texts(dataset, first, trained_on, option)
        return texts, _find_label(dataset, first, texts, option)
    if isinstance(columns, str) or not 2 <= len(columns) <= 3:
        raise ConfigurationError(
            f"columns={columns!r}: expected (first text, second text) or (first text, second text, label)."
        )
    texts = list(columns[:2])
    return texts, columns[2] if len(columns) == 3 else _find_label(dataset, first, texts, option)


def _find_label(dataset: Rows, first: Mapping[str, Any], texts: Sequence[str], option: str) -> str | None:
    named = [name for name in first if is_label(name) and name not in texts]
    usual = [name for name in named if _plain(name) in _PLAIN_LABELS[:4]]
    classes = [name for name in first if name not in texts and _class_names(dataset, name)]
    found = usual or named or classes
    if len(found) > 1:
        raise DataError(
            f"It is ambiguous which column is the label: it could be {' or '.join(map(repr, found))}. "
            f"Name it with {option}, or remove the others."
        )
    return found[0] if found else None


def text_columns(dataset: Rows, first: Mapping[str, Any]) -> list[str]:
    """Columns of strings or lists of strings, in order, that aren't labels, identifiers or the split by their names.

    A None counts as a text, so that its row is named later.
    """
    features = getattr(dataset, "features", None) or {}

    def is_text(name: str) -> bool:
        if name in features:
            entry = getattr(features[name], "feature", features[name])
            return str(getattr(entry, "dtype", "")) in {"string", "large_string", "string_view", "null"}
        value = first[name]
        entries = value if is_list(value) else [value]
        return all(isinstance(entry, str | None) for entry in entries)

    return [
        name for name in first if not is_label(name) and not is_identifier(name) and name != "split" and is_text(name)
    ]


def _class_names(dataset: Rows, label: str) -> tuple[str, ...] | None:
    names = getattr((getattr(dataset, "features", None) or {}).get(label), "names", None)
    return tuple(names) if names else None


def describe_columns(columns: Columns, names: Iterable[str]) -> str:
    """What is read of a data set with columns of these names, in one line."""
    ignored = [name for name in names if name not in columns.names] if columns.shape != "tokens" else []
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


def _has_arrays(value: Any) -> bool:
    """Whether a value is of NumPy's or torch's types, or a list that starts with one."""
    return hasattr(value, "tolist") or (isinstance(value, list | tuple) and bool(value) and hasattr(value[0], "tolist"))


def _is_example(row: Any) -> bool:
    return hasattr(row, "texts") and hasattr(row, "label")


def is_list(value: Any) -> bool:
    """Whether a value is a list, a tuple, an array or a tensor, and no text."""
    return (isinstance(value, Sequence) and not isinstance(value, str)) or getattr(value, "ndim", 0) > 0


def plain_list(values: Any) -> list[Any]:
    """A column as a list of Python values, be it one of pandas, polars, numpy or pyarrow."""
    for name in ("to_pylist", "to_list", "tolist"):
        if hasattr(values, name):
            return list(getattr(values, name)())
    return list(values)


def plain_rows(rows: Any) -> Any:
    """Rows that give Python values: those of a table of pandas, polars or pyarrow, and of a data set with a format.

        >>> import pandas
        >>> list(plain_rows(pandas.DataFrame({"question": ["Why?"], "answer": ["Because."]})))
        [{'question': 'Why?', 'answer': 'Because.'}]

    A transform that a user has set stays, as it makes the rows what they are; so does everything else.
    """
    library = type(rows).__module__.split(".")[0]
    if library == "datasets" and hasattr(rows, "with_format"):
        if not hasattr(rows, "format"):  # a stream: its transforms are no format
            return rows if isinstance(rows, Mapping) else rows.with_format(None)
        if rows.format["type"] not in {None, "custom"}:
            return rows.with_format(None, columns=rows.format["columns"])
    elif library == "pandas" and hasattr(rows, "iloc") and hasattr(rows, "columns"):
        return [dict(zip(map(str, rows.columns), row, strict=True)) for row in rows.itertuples(index=False, name=None)]
    elif library == "polars" and hasattr(rows, "to_dicts"):
        return rows.to_dicts()
    elif library == "pyarrow" and hasattr(rows, "column_names"):
        return rows.to_pylist()
    return rows


def iterate(dataset: Rows) -> Iterator[Row]:
    """The rows of any data set, one after the other."""
    dataset = plain_rows(dataset)
    if not hasattr(dataset, "__iter__"):
        return (dataset[index] for index in range(len(dataset)))
    return iter(dataset)


def is_transformed(dataset: Rows) -> bool:
    """Whether rows are made by `Dataset.set_transform`, which may give them other columns than the table has."""
    given = getattr(dataset, "format", None)
    return isinstance(given, Mapping) and given.get("type") == "custom"


def select(dataset: Rows, columns: Columns) -> Rows:
    """A mapped `datasets.Dataset` with the columns that count; any other data set as it is."""
    is_table = hasattr(dataset, "select_columns") and not is_stream(dataset) and not is_transformed(dataset)
    return dataset.select_columns(columns.names) if is_table and columns.shape != "tokens" else dataset


def is_finite(number: float) -> bool:
    """Whether a number is one that 32 bits hold, as batches do. Python's go further.

    >>> is_finite(3), is_finite(float("nan")), is_finite(1e39), is_finite(10**400)
    (True, False, False, False)
    """
    return -LARGEST <= number <= LARGEST


def plain(value: Any) -> Any:
    """A value without NumPy's or torch's types: arrays become lists, numbers Python's own."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple) and any(hasattr(entry, "tolist") for entry in value):
        return [plain(entry) for entry in value]
    return value


# -- messages ----------------------------------------------------------------------------------------------------------


def unknown_class(where: str, value: str, known: Mapping[str, int] | None) -> str:
    """The message for a class name that has no id. `where` is its place: "Column 'label', row 3"."""
    if known is None:
        return (
            f"{where}: label {value!r} is a class name, and no ids of classes are known. Let CrossEncoderTrainer "
            "resolve them, or give PairCollator(columns=Columns(..., label2id={name: id, ...}))."
        )
    return (
        f"{where}: class {value!r} is unknown to the model, whose classes are {list(known)}. "
        "Correct the label, or load the model with it."
    )
