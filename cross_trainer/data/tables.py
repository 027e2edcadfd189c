"""Tables as files: csv, tsv, jsonl and parquet, read, checked and written in constant memory.

    found = check_table("pairs.csv", Format.of("scored.parquet"))      # one cheap reading, before anything that takes long
    for row in read_rows("pairs.csv"):                                 # {"a": "...", "b": "..."}
        ...
    with replacing("scored.parquet") as path:                          # nothing half-written is ever called scored.parquet
        join_scores("pairs.csv", path, Format.of("scored.parquet"), found, ["score"], scores)

Fields of csv and tsv are texts and stay so: "NA" and "007" come out as they went in. In a csv, quotes enclose fields; in a tsv a quote is a
quote, and a field can hold neither a tab nor a line break. A jsonl has one JSON object a line. All are UTF-8, also with `.gz` behind the
name. The same rows always make the same bytes.

Messages name the options of the command line by which columns are chosen and files are replaced.

Shapes: P rows, C columns of scores.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import decimal
import gzip
import io
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from cross_trainer.data.columns import resolve_columns
from cross_trainer.errors import ConfigurationError, DataError, short

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

Row: TypeAlias = dict[str, Any]
Name: TypeAlias = "str | PathLike[str]"
Write: TypeAlias = Callable[[Row], Any]

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
ROW_GROUP = 10_000  # rows of a parquet file that are in memory at a time
READ_BUFFER = 1 << 20  # bytes; without it, a whole column of a row group would be read at once


@dataclass(frozen=True)
class Format:
    """How a table is laid out in a file.

    Args:
        name: "csv", "tsv", "jsonl" or "parquet".
        compressed: By gzip.
    """

    name: str
    compressed: bool = False

    @classmethod
    def of(cls, path: Name) -> Format:
        """The format that a file's name tells.

        Raises:
            ConfigurationError: It tells none.
        """
        name, compressed = table_format(Path(path)), Path(path).suffix.lower() == ".gz"
        if name is None or (compressed and name == "parquet"):
            raise ConfigurationError(
                f"{path} is no name of a table: expected one that ends in {', '.join(FORMATS)}, or .gz after one "
                "of the text formats."
            )
        return cls(name, compressed)


@dataclass(frozen=True)
class Found:
    """What one reading of a table found.

    Args:
        rows: P.
        names: Its columns, in order; of a jsonl, in the order in which they first occur.
        texts: The columns of the two texts. Empty for a table without rows, where none were named.
        schema: The columns' types in parquet, where that is written.
        empty: Texts that are empty.
    """

    rows: int
    names: tuple[str, ...]
    texts: tuple[str, ...]
    schema: pa.Schema | None = None
    empty: int = 0


def table_format(path: Path) -> str | None:
    """What a file holds by its name, with or without `.gz`: "csv", "tsv", "jsonl" or "parquet"; None for other names."""
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    return FORMATS.get(suffixes[-1].lower()) if suffixes else None


# -- reading -----------------------------------------------------------------------------------------------------------


def read_rows(path: Name, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Rows of a table, one after the other.

    Args:
        path: A csv, tsv, jsonl or parquet file, by its name.
        columns: What is needed, to read no more than that of a parquet file. Default: all.

    Yields:
        {column: value} of each row. Values of csv and tsv are strings; blank lines are no rows.

    Raises:
        DataError: The file isn't what its name says; the message names the line.
    """
    form = Format.of(path)
    if form.name == "parquet":
        for batch in _open_parquet(path).iter_batches(ROW_GROUP, columns=None if columns is None else list(columns)):
            yield from batch.to_pylist()
    elif form.name == "jsonl":
        yield from _read_jsonl(path)
    else:
        yield from _read_delimited(path, form.name)


def column_names(path: Name) -> tuple[str, ...]:
    """The columns of a table, in order; of a jsonl those of its first row.

    Raises:
        DataError: A csv without a header, or a name that occurs twice.
    """
    form = Format.of(path)
    if form.name == "jsonl":
        return tuple(next(_read_jsonl(path), {}))
    if form.name == "parquet":
        names = _open_parquet(path).schema_arrow.names
    else:
        with _open_text(path) as file:
            names = next(_split(file, form.name), None)
    if names is None:
        raise DataError(f"{path} is empty: expected a first line with the names of the columns.")
    twice = [name for index, name in enumerate(names) if name in names[:index]]
    if twice:
        raise DataError(f"{path} has two columns {twice[0]!r}. Rename one of them.")
    return tuple(names)


def _read_delimited(path: Name, name: str) -> Iterator[Row]:
    names = column_names(path)
    with _open_text(path) as file:
        lines = _split(file, name)
        next(lines)
        for fields in lines:
            if fields and len(fields) != len(names):
                raise DataError(
                    f"{path}, line {lines.line_num}: {len(fields)} fields where the first line has {len(names)}. Mend the line"
                    + (", or put quotes around fields with commas." if name == "csv" else ".")
                )
            if fields:
                yield dict(zip(names, fields, strict=True))


def _split(file: IO[str], name: str) -> Any:  # csv's own type has no name
    csv.field_size_limit(2**31 - 1)  # a text may be longer than csv's 131,072 characters
    if name == "tsv":
        return csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    return csv.reader(file, strict=True)  # else an open quote would swallow the rest of the file


def _read_jsonl(path: Name) -> Iterator[Row]:
    with _open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: no JSON ({error}). Write one object a line.") from error
            if not isinstance(row, dict):
                raise DataError(
                    f"{path}, line {number}: expected an object with named values, found {short(row)}. Write one object "
                    "a line, as `jq -c '.[]'` makes of an array."
                )
            yield row


@contextlib.contextmanager
def _open_text(path: Name) -> Iterator[IO[str]]:
    compressed = Format.of(path).compressed
    try:
        with open(path, "rb") as raw:
            plain: Any = gzip.GzipFile(fileobj=raw) if compressed else raw
            with io.TextIOWrapper(plain, encoding="utf-8-sig", newline="") as file:
                yield file
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is no UTF-8 ({error.reason}). Convert it, with `iconv -t UTF-8` for instance."
        ) from error
    except csv.Error as error:
        raise DataError(
            f"{path} is no csv that can be read ({error}). Mend the quotes, or write it as jsonl."
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is no complete gzip file ({error}). Copy it again, or rename it.") from error


def _open_parquet(path: Name) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    with open(path, "rb"):  # an error of Python's, which names the file
        pass
    try:
        return parquet.ParquetFile(path, buffer_size=READ_BUFFER)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is no parquet file ({error}).") from error


# -- checking ----------------------------------------------------------------------------------------------------------


def check_table(path: Name, target: Format, texts: Sequence[str] | None = None) -> Found:
    """Read a table of pairs: count its rows, check its texts, and that all of it can be written in another format.

    Args:
        path: The table.
        target: What it will be written as.
        texts: The columns of the two texts. Default: the first two columns of text.

    Raises:
        DataError: A text is missing, None or no string, or a value can't be written in that format. The message names the column, the row
            (counted from 0, without the header) and the remedy.
    """
    names = column_names(path)
    if texts is None:
        texts = _choose_texts(path)
    elif names:
        require_columns(path, names, texts, "--text-columns FIRST SECOND")
    copied = Format.of(path).name == "parquet" == target.name  # by columns, so only the texts are looked at
    encode = None if target.name == "parquet" else _encoder(target)
    seen = dict.fromkeys(names)
    count = empty = 0
    for index, row in enumerate(read_rows(path, texts if copied else None)):
        for name in texts:
            _check_text(path, name, index, row)
            empty += not row[name]
        if encode is not None:
            try:
                encode(row)
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"{path}, row {index}: {error}. Choose another format for the output, or leave the column out."
                ) from error
        seen.update(dict.fromkeys(row))
        count += 1
    return Found(count, tuple(seen), tuple(texts), _schema(path, target, tuple(seen)), empty)


def require_columns(path: Name, names: Sequence[str], wanted: Iterable[str], option: str) -> None:
    """Check that columns are there.

    Raises:
        DataError: One isn't; the message names those that are, and the option to choose by.
    """
    for name in wanted:
        if name not in names:
            raise DataError(f"{path} has no column {name!r}, but {list(names)}. Name the right one with {option}.")


def _choose_texts(path: Name) -> tuple[str, ...]:
    first = next(read_rows(path), None)
    if first is None:
        return ()
    try:
        found = resolve_columns([first])
    except DataError as error:
        raise DataError(
            f"{path}: no two columns of text among {list(first)}. Name them with --text-columns FIRST SECOND."
        ) from error
    if found.shape not in {"pair", "tuple"}:
        raise DataError(
            f"{path} holds lists of documents or tokens ({list(first)}), not pairs of texts. Write one pair a row."
        )
    return found.query, found.documents[0]


def _check_text(path: Name, name: str, index: int, row: Row) -> None:
    value = row.get(name)
    if name not in row:
        problem = f"missing; the row has {list(row)}. Filter such rows out of {path}."
    elif not isinstance(value, str):
        problem = f"expected a text, found {short(value)} ({type(value).__name__}). Filter such rows out of {path}, or make it a string."
    elif value.encode(errors="ignore").decode() != value:
        problem = f"{short(value)} holds half of a surrogate pair, which is no character. Filter such rows out of {path}, or mend it."
    else:
        return
    raise DataError(f"Column {name!r}, row {index}: {problem}")


def _schema(path: Name, target: Format, names: Sequence[str]) -> pa.Schema | None:
    """The columns' types where a table is written as parquet, which for a jsonl its values tell."""
    if target.name != "parquet":
        return None
    import pyarrow as pa

    source = Format.of(path).name
    if source == "parquet":
        return _open_parquet(path).schema_arrow
    known, start = dict.fromkeys(names, pa.null()), 0
    rows = read_rows(path) if source == "jsonl" else iter(())
    while group := list(itertools.islice(rows, ROW_GROUP)):
        for name in names:
            known[name] = _widened(name, known[name], group, start)
        start += len(group)
    # A column of nothing but null would be of no use to whoever reads it.
    return pa.schema([(name, pa.string() if pa.types.is_null(kind) else kind) for name, kind in known.items()])


def _widened(name: str, known: pa.DataType, rows: Sequence[Row], start: int) -> pa.DataType:
    """The type that holds a column's values in these rows, and those before them."""
    import pyarrow as pa

    try:
        found = pa.array([row.get(name) for row in rows]).type
        pair = [pa.schema([(name, kind)]) for kind in (known, found)]
        return pa.unify_schemas(pair, promote_options="permissive").field(name).type
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise DataError(
            f"Column {name!r}, rows {start} to {start + len(rows) - 1}: the values are of several types, and parquet takes "
            f"one ({error}). Write .jsonl, or make them alike."
        ) from error


# -- writing -----------------------------------------------------------------------------------------------------------


def check_output(path: Name, overwrite: bool) -> None:
    """Refuse to replace a file that nobody asked to replace.

    Raises:
        ConfigurationError: It is there.
    """
    if Path(path).exists() and not overwrite:
        raise ConfigurationError(f"{path} exists. Pass --overwrite to replace it, or name another output.")


@contextlib.contextmanager
def replacing(path: Name, temporary: Name | None = None) -> Iterator[Path]:
    """A file to write, which takes the place of `path` when the block has ended well, and is gone when it hasn't.

    Args:
        path: What is replaced, in one step; its folder is made if it isn't there.
        temporary: The file to write, on the same disk. Default: beside `path`.
    """
    written = Path(f"{path}.tmp") if temporary is None else Path(temporary)
    written.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield written
        with written.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(written, path)
    finally:
        written.unlink(missing_ok=True)


@contextlib.contextmanager
def open_writer(path: Name, form: Format, names: Sequence[str], schema: pa.Schema | None = None) -> Iterator[Write]:
    """Write rows to a file.

    Args:
        path: The file, whatever its name.
        form: How to lay it out.
        names: Its columns. What a row lacks is an empty field, null in parquet, and still missing in jsonl.
        schema: The columns' types, which parquet needs.

    Yields:
        A function that takes one row.
    """
    if form.name == "parquet":
        with _parquet_writer(path, schema) as writer:
            yield writer
        return
    encode = _encoder(form, names)
    with open(path, "wb") as raw:
        # Neither the time nor the name of the file goes into the header.
        file: Any = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if form.compressed else contextlib.nullcontext(raw)
        with file as target:
            if form.name != "jsonl":
                target.write(encode(dict(zip(names, names, strict=True))))
            yield lambda row: target.write(encode(row))


@contextlib.contextmanager
def _parquet_writer(path: Name, schema: pa.Schema | None) -> Iterator[Write]:
    import pyarrow as pa
    from pyarrow import parquet

    rows: list[Row] = []

    def flush() -> None:
        writer.write_table(pa.Table.from_pylist(rows, schema))
        rows.clear()

    def write(row: Row) -> None:
        rows.append(row)
        if len(rows) == ROW_GROUP:
            flush()

    with parquet.ParquetWriter(path, schema) as writer:
        yield write
        if rows:
            flush()


def _encoder(form: Format, names: Sequence[str] | None = None) -> Callable[[Row], bytes]:
    """A row as the bytes of its line. Without `names`, its own columns in their order."""
    if form.name == "jsonl":
        return lambda row: (json.dumps(row, ensure_ascii=False, default=_as_json) + "\n").encode()

    def fields(row: Row) -> list[str]:
        return [_as_field(row.get(name)) for name in (row if names is None else names)]

    if form.name == "tsv":
        return lambda row: _tsv_line(fields(row)).encode()
    # csv quotes what is part of its line's end, so a carriage return inside a text needs this one.
    line = csv.writer(_Echo(), lineterminator="\r\n")
    return lambda row: (line.writerow(fields(row))[:-2] + "\n").encode()


class _Echo:
    """Gives the lines back that `csv` writes to it."""

    def write(self, line: str) -> Any:
        return line


def _tsv_line(fields: list[str]) -> str:
    for field in fields:
        if "\t" in field or "\n" in field or "\r" in field:
            raise ValueError(f"{short(field)} holds a tab or a line break, which a tsv can't")
    return "\t".join(fields) + "\n"


def _as_field(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=_as_json)
    if isinstance(value, bytes):
        raise TypeError(f"{short(value)} are bytes, which a text format can't hold")
    return str(value)


def _as_json(value: Any) -> str:
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | decimal.Decimal):
        return str(value)
    raise TypeError(f"{short(value)} is of type {type(value).__name__}, which JSON can't hold")


# -- scores ------------------------------------------------------------------------------------------------------------


def shortest(scores: Iterable[np.float32]) -> list[float]:
    """Scores as numbers of the fewest digits that are read back as the same float32: 0.1, not 0.10000000149011612."""
    return [float(str(score)) for score in scores]


def join_scores(
    source: Name, path: Name, form: Format, found: Found, names: Sequence[str], scores: Iterator[NDArray[np.float32]]
) -> None:
    """Write a table with its scores behind its own columns.

    Args:
        source: The table.
        path: The file to write.
        form: How to lay it out.
        found: What `check_table` made of the table.
        names: [C] columns of scores.
        scores: [C] of each row, in order.
    """
    if Format.of(source).name == "parquet" == form.name:
        _join_parquet(source, path, names, scores)
    else:
        schema = None if found.schema is None else _with_scores(found.schema, names)
        with open_writer(path, form, [*found.names, *names], schema) as write:
            for row, values in zip(read_rows(source), scores, strict=True):
                write({**row, **dict(zip(names, shortest(values), strict=True))})


def _join_parquet(source: Name, path: Name, names: Sequence[str], scores: Iterator[NDArray[np.float32]]) -> None:
    import numpy as np
    import pyarrow as pa
    from pyarrow import parquet

    file = _open_parquet(source)
    with parquet.ParquetWriter(path, _with_scores(file.schema_arrow, names)) as writer:
        for batch in file.iter_batches(ROW_GROUP):
            values = np.stack(list(itertools.islice(scores, len(batch))))
            for name, column in zip(names, values.T, strict=True):
                batch = batch.append_column(name, pa.array(column, pa.float32()))  # noqa: PLW2901
            writer.write_batch(batch)


def _with_scores(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    import pyarrow as pa

    for name in names:
        schema = schema.append(pa.field(name, pa.float32()))
    return schema
