"""Rows about the same query, brought together: one label a row becomes one list of labels a query.

    >>> pairs = [("how to cook", "boil it", 1), ("why is it blue", "it scatters", 1), ("how to cook", "eat it raw", 0)]
    >>> group_by_query(pairs)[0]
    {'text_1': 'how to cook', 'documents': ['boil it', 'eat it raw'], 'labels': [1, 0]}

Ranking losses and metrics need this shape, which `cross_trainer.data.columns` calls a list. Mining reads its rows with
the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cross_trainer.data.columns import Columns, Rows, resolve_columns
from cross_trainer.data.survey import Survey, read_batches, survey
from cross_trainer.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

DOCUMENTS, LABELS = "documents", "labels"
TABLE_ROWS = 1_000  # queries in a table: a column of lists holds 2 GiB of text at most


@dataclass
class Group:
    """A query and its judged documents.

    Args:
        query: The text of its first row.
        documents: Each document once, in order of first appearance: its key, its text and the highest of its labels (1
            if the rows have none).
        instruction: That of its rows, where they have one.
    """

    query: str
    documents: dict[str, tuple[str, float]] = field(default_factory=dict)
    instruction: str | None = None


def group_by_query(dataset: Rows, columns: Columns | Sequence[str] | None = None) -> Dataset:
    """Turn rows `(query, document, label)` into one row per query, in the order in which queries first appear.

    >>> group_by_query([("egg", "boil it", 1), ("sky", "it scatters", 1), ("egg", "eat it raw", 0)])[0]
    {'text_1': 'egg', 'documents': ['boil it', 'eat it raw'], 'labels': [1, 0]}

    Two texts are the same if they are equal letter by letter. A document that occurs more than once for a query is kept
    once, in its first place and with its highest label. A column `instruction` stays, and a query under another
    instruction is another one.

    Args:
        dataset: Rows of any type that `cross_trainer.data.columns` reads, each with a number as its label.
        columns: The names `(query, document)` or `(query, document, label)`. Default: by their names and types.

    Returns:
        Rows `(query, documents, labels)`, with the data's own name for the query: a list of texts and a list of as many
        labels, integers if all labels are (booleans count as such), else floats.

    Raises:
        DataError: There is no row, a text or label is missing or of the wrong type, rows have another shape, or the
            query column has the name of one of the other two. The message names the column and the row.
        ConfigurationError: `columns` holds neither two nor three names.

    Example:
        >>> judged = [{"query": "capital of France", "document": "Paris.", "label": 2}]
        >>> judged += [{"query": "capital of France", "document": "Lyon is a city.", "label": 0}]
        >>> group_by_query(judged)[0]
        {'query': 'capital of France', 'documents': ['Paris.', 'Lyon is a city.'], 'labels': [2, 0]}
    """
    import pyarrow as pa

    resolved, found, groups = read_groups(dataset, columns, instructed=True)
    if resolved.label is None:
        raise DataError(
            "Grouping needs labels, and no column is called 'label', 'score' or the like. "
            "Name it with columns=(query, document, label)."
        )
    number = pa.int64() if found.integers else pa.float64()
    schema = list_schema(resolved.query, number)
    rows: list[tuple[Any, ...]] = [
        (group.query, *map(list, zip(*group.documents.values(), strict=True))) for group in groups
    ]
    if resolved.instruction is not None:
        schema = schema.append(pa.field(resolved.instruction, pa.string()))
        rows = [(*row, group.instruction) for row, group in zip(rows, groups, strict=True)]
    return to_dataset([to_table(rows[at : at + TABLE_ROWS], schema) for at in range(0, len(rows), TABLE_ROWS)])


def read_groups(
    dataset: Rows,
    columns: Columns | Sequence[str] | None = None,
    key: Callable[[str], str] = str,
    *,
    lists: bool = False,
    instructed: bool = False,
) -> tuple[Columns, Survey, list[Group]]:
    """Check all rows, then read them query by query.

    Args:
        dataset: Rows `(query, document[, label])`.
        columns: As in `resolve_columns`.
        key: What two texts have in common if they count as the same.
        lists: Accept rows `(query, documents, labels)` too.
        instructed: Keep queries under different texts of a column `instruction` apart.

    Returns:
        The columns, what `survey` found, and the groups in the order in which queries first appear. Labels are integers
        if all of them are, else floats.

    Raises:
        DataError: A row can't be read, rows have another shape, or labels aren't numbers.
    """
    rows = list(dataset) if isinstance(dataset, Iterator) else dataset  # reading its first row uses up an iterator
    resolved = resolve_columns(rows, columns, instructed=instructed)
    _check_shape(resolved, lists)
    found = survey(rows, resolved)
    if found.kind == "multi" or found.names:
        what = "lists" if found.kind == "multi" else f"the class names {sorted(found.names)[:5]}"
        raise DataError(
            f"Column {resolved.label!r} holds {what}, where a number is needed that says how well a document answers "
            "its query. Map them to numbers with dataset.map, or name another column."
        )
    groups: dict[tuple[str, str | None], Group] = {}
    for query, document, label, instruction in _judgements(rows, resolved):
        group = groups.setdefault((key(query), instruction), Group(query, instruction=instruction))
        name, value = key(document), int(label) if found.integers else float(label)
        text, highest = group.documents.get(name, (document, value))
        group.documents[name] = (text, max(highest, value))
    return resolved, found, list(groups.values())


def list_schema(query: str, number: pa.DataType, labels: str = LABELS) -> pa.Schema:
    """The columns `(query, documents, labels)`, the last one under another name if asked for.

    Raises:
        DataError: See `new_schema`.
    """
    import pyarrow as pa

    return new_schema([(query, pa.string()), (DOCUMENTS, pa.list_(pa.string())), (labels, pa.list_(number))])


def new_schema(fields: Sequence[tuple[str, pa.DataType]]) -> pa.Schema:
    """The columns of a result.

    Raises:
        DataError: A column of the data set has the name of another column of the result.
    """
    import pyarrow as pa

    names = [name for name, _ in fields]
    for name in names:
        if names.count(name) > 1:
            raise DataError(
                f"The result's columns would be {names}, with {name!r} twice. Rename that column first, with "
                f"dataset.rename_column({name!r}, ...) for instance."
            )
    return pa.schema(fields)


def to_table(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table, so that a whole result never exists as Python objects at once."""
    import pyarrow as pa

    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.table([pa.array(values, kind) for values, kind in zip(columns, schema.types, strict=True)], schema=schema)


def to_dataset(tables: Sequence[pa.Table]) -> Dataset:
    """Tables of equal columns as one data set, without copying them."""
    import pyarrow as pa
    from datasets import Dataset

    return Dataset(pa.concat_tables(tables))


def _check_shape(columns: Columns, lists: bool) -> None:
    shapes = ["(query, document)", "(query, document, label)", *(["(query, documents, labels)"] if lists else [])]
    if columns.shape != "pair" and not (lists and columns.shape == "list"):
        raise DataError(
            f"Expected rows {' or '.join(shapes)}, found a row of {columns.names}. Name the two columns of text with "
            "columns=(query, document)."
        )
    if columns.shape == "list" and columns.label is None:
        raise DataError(
            f"The lists of column {columns.documents[0]!r} have no labels, so nothing says which documents are "
            "relevant. Add a column 'labels' with a list of as many numbers."
        )


def _judgements(dataset: Rows, columns: Columns) -> Iterator[tuple[str, str, Any, str | None]]:
    """Each (query, document, label, instruction), with label 1 and None if there are none."""
    (name,) = columns.documents
    for _, batch in read_batches(dataset, columns.names):
        queries, documents = batch[columns.query], batch[name]
        labels = batch[columns.label] if columns.label is not None else [1] * len(queries)
        own = batch[columns.instruction] if columns.instruction is not None else [None] * len(queries)
        if columns.shape == "pair":
            yield from zip(queries, documents, labels, own, strict=True)
            continue
        for query, texts, given, instruction in zip(queries, documents, labels, own, strict=True):
            yield from ((query, text, label, instruction) for text, label in zip(texts, given, strict=True))
