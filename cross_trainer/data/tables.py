"""Tables as files: csv, tsv, jsonl and parquet, read, checked and written in constant memory.

    found = check_table("pairs.csv", Format.of("scored.parquet"))      # one cheap reading before the long work starts
    for row in read_rows("pairs.csv"):                                 # {"a": "...", "b": "..."}
        ...
    with replacing("scored.parquet") as path:                          # scored.parquet is never half-written
        join_scores("pairs.csv", path, Format.of("scored.parquet"), found, ["score"], windows)

The fields of csv and tsv files are texts and stay texts: "NA" and "007" come out as they went in. In a csv, quotes
enclose fields; in a tsv, a quote is an ordinary character, and a field can hold neither a tab nor a line break. A jsonl
has one JSON object per line. All of them are UTF-8, and all but parquet may be compressed, with `.gz` at the end of the
name. The same rows always produce the same bytes.

Error messages name the file and the line, counted from 1 and with the header, or the row of a parquet file, counted
from 0. They also name the command-line options that choose columns and replace files.

Shapes: P rows, W rows of a window, C columns of scores.
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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from cross_trainer.data.columns import INSTRUCTION, check_text, choose_texts, without_instruction
from cross_trainer.disk import check_writable, telling_full
from cross_trainer.errors import ConfigurationError, DataError, short

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from pyarrow import parquet

Row: TypeAlias = dict[str, Any]
Name: TypeAlias = "str | PathLike[str]"
Write: TypeAlias = Callable[[Row], object]

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
ROW_GROUP = 10_000  # rows that are in memory at a time
READ_BUFFER = 1 << 20  # bytes; without it, pyarrow would read a whole column of a row group at once


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
        """The format of a file by its name.

            >>> Format.of("pairs.tsv.gz")
            Format(name='tsv', compressed=True)

        Raises:
            ConfigurationError: The name says nothing about a format.
        """
        name, compressed = table_format(Path(path)), Path(path).suffix.lower() == ".gz"
        if name is None or (compressed and name == "parquet"):
            raise ConfigurationError(
                f"{path} is not the name of a table: expected a name that ends in {', '.join(FORMATS)}, or in one of "
                "the text formats and .gz."
            )
        return cls(name, compressed)


@dataclass(frozen=True)
class Found:
    """What one reading of a table found.

    Args:
        rows: P.
        names: Its columns, in order; those of a jsonl in the order in which they first occur.
        texts: The columns of texts that were checked.
        schema: The columns' types in Arrow, or None if they weren't needed.
        empty: How many of the texts are empty.
    """

    rows: int
    names: tuple[str, ...]
    texts: tuple[str, ...]
    schema: pa.Schema | None = None
    empty: int = 0


def table_format(path: Path) -> str | None:
    """The format of a file by its name: "csv", "tsv", "jsonl" or "parquet", or None for other names.

    >>> table_format(Path("pairs.json.gz"))
    'jsonl'
    """
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    return FORMATS.get(suffixes[-1].lower()) if suffixes else None


# -- reading -----------------------------------------------------------------------------------------------------------


def read_rows(path: Name, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of a table, one after the other.

    Args:
        path: A csv, tsv, jsonl or parquet file, recognised by its name.
        columns: The columns to read from a parquet file; other formats are read whole. Default: all.

    Yields:
        {column: value} of each row. The values of csv and tsv files are strings; blank lines are skipped.

    Raises:
        DataError: The file isn't what its name says; the message names the line.
    """
    for _, row in placed_rows(path, columns):
        yield row


def placed_rows(path: Name, columns: Sequence[str] | None = None) -> Iterator[tuple[str, Row]]:
    """Like `read_rows`, with the place of each row for messages: "pairs.csv, line 12"."""
    form = Format.of(path)
    if form.name == "parquet":
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in _batches(path, columns))
        yield from ((f"{path}, row {index}", row) for index, row in enumerate(rows))
    elif form.name == "jsonl":
        yield from _read_jsonl(path)
    else:
        yield from _read_delimited(path, form.name)


def checked_rows(
    path: Name, texts: Sequence[str], columns: Sequence[str] | None = None, lists: Collection[str] = ()
) -> Iterator[tuple[str, Row]]:
    """Like `placed_rows`, with a check of the texts.

    Args:
        path: The table.
        texts: The columns that hold texts.
        columns: As for `read_rows`.
        lists: Those of `texts` that hold lists of texts.

    Raises:
        DataError: A text is missing or isn't a text; the message names the file, the line and the column.
    """
    columns_of_texts = [(name, f", column {name!r}", name in lists) for name in texts]
    for place, row in placed_rows(path, columns):
        for name, column, listed in columns_of_texts:
            if name not in row:
                raise DataError(f"{place}{column}: missing; the row has {list(row)}. Filter such rows out.")
            value = row[name]
            for text in value if listed and isinstance(value, list) else (value,):
                check_text(text, place + column)
        yield place, row


def column_names(path: Name) -> tuple[str, ...]:
    """The columns of a table, in order; those of a jsonl are those of its first row.

    Raises:
        DataError: A csv has no header, or a name occurs twice.
    """
    form = Format.of(path)
    if form.name == "jsonl":
        return tuple(next((row for _, row in _read_jsonl(path)), {}))
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


def _read_delimited(path: Name, name: str) -> Iterator[tuple[str, Row]]:
    names, before = column_names(path), f"{path}, line "
    with _open_text(path) as file:
        lines = _split(file, name)
        next(lines)
        number = lines.line_num + 1
        for fields in lines:
            place, number = f"{before}{number}", lines.line_num + 1  # a quoted field may span several lines
            if fields and len(fields) != len(names):
                raise DataError(
                    f"{place}: {len(fields)} fields, but the first line has {len(names)}. Correct the line"
                    + (", or put quotes around fields with commas." if name == "csv" else ".")
                )
            if fields:
                yield place, dict(zip(names, fields, strict=True))


def _split(file: IO[str], name: str) -> Any:  # csv's own type has no name
    csv.field_size_limit(2**31 - 1)  # a text may be longer than csv's 131,072 characters
    if name == "tsv":
        return csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    return csv.reader(file, strict=True)  # otherwise an open quote would swallow the rest of the file


def _read_jsonl(path: Name) -> Iterator[tuple[str, Row]]:
    with _open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            place = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{place}: not JSON ({error}). Write one object per line.") from error
            if not isinstance(row, dict):
                raise DataError(
                    f"{place}: expected an object with named values, found {short(row)}. Write one object per line; "
                    "`jq -c '.[]'` does that with an array."
                )
            yield place, row


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
            f"{path} is not UTF-8 ({error.reason}). Convert it, with `iconv -t UTF-8` for instance."
        ) from error
    except csv.Error as error:
        raise DataError(f"{path} can't be read as csv ({error}). Correct the quotes, or write it as jsonl.") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is not a complete gzip file ({error}). Copy it again, or rename it.") from error


def _open_parquet(path: Name) -> parquet.ParquetFile:
    import pyarrow as pa
    from pyarrow import parquet

    with open(path, "rb"):  # if that fails, it is with an error of Python's, which names the file
        pass
    try:
        return parquet.ParquetFile(path, buffer_size=READ_BUFFER)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not a parquet file ({error}). Copy it again, or name it by what it is.") from error


def _batches(path: Name, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """The rows of a parquet file, so many at a time."""
    import pyarrow as pa

    count = 0
    try:
        for batch in _open_parquet(path).iter_batches(ROW_GROUP, columns=None if columns is None else list(columns)):
            yield batch
            count += len(batch)
    except (pa.ArrowInvalid, OSError) as error:
        if getattr(error, "filename", None) is not None:
            raise
        raise DataError(f"{path}: the rows after {count} can't be read ({error}). Write or copy it again.") from error


# -- checking ----------------------------------------------------------------------------------------------------------


def check_table(
    path: Name,
    target: Format,
    texts: Sequence[str] | None = None,
    trained_on: Sequence[str] | None = None,
    *,
    instructed: bool = False,
) -> Found:
    """Read a table of pairs to count its rows, check its texts, and make sure that it can be written in another format.

    Args:
        path: The table.
        target: The format that it will be written in.
        texts: The columns of the two texts. Default: those that the model was trained on, else by their names.
        trained_on: The two text columns that the model was trained on.
        instructed: Whether the model takes an instruction, so that a column `instruction` is a third text.

    Raises:
        DataError: A text is missing, None or not a string, or a value can't be written in that format. The message
            names the file, the line, the column and the remedy.
    """
    if texts is None:
        texts = _choose_texts(path, trained_on, instructed)
    elif names := column_names(path):
        require_columns(path, names, texts, "--text-columns FIRST SECOND")
    if instructed and texts and INSTRUCTION not in texts and INSTRUCTION in column_names(path):
        texts = (*texts, INSTRUCTION)
    if target.name == "parquet":
        copied = Format.of(path).name == "parquet"  # column by column, so only the texts need to be read
        remedy = "Write .jsonl, or make the values alike."
        return scan_table(path, texts, columns=texts if copied else None, remedy=remedy)
    encode = _encoder(target)

    def check(place: str, row: Row) -> None:
        try:
            encode(row)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{place}: {error}. Choose another format for the output, or leave the column out."
            ) from error

    return scan_table(path, texts, typed=False, check=check)


def scan_table(
    path: Name,
    texts: Sequence[str],
    *,
    columns: Sequence[str] | None = None,
    lists: Collection[str] = (),
    typed: bool = True,
    check: Callable[[str, Row], object] = lambda _place, _row: None,
    remedy: str = "Make the values alike, or leave the column out.",
) -> Found:
    """Read a table once, check its texts and find out its types.

    Args:
        path: The table.
        texts: The columns that hold texts.
        columns: As for `read_rows`.
        lists: Those of `texts` that hold lists of texts.
        typed: Find the types: those of a parquet file, those that hold all values of a jsonl, strings for csv and tsv.
        check: Called with the place and the values of each row.
        remedy: What to do about values of several types, for the message.

    Raises:
        DataError: A text is missing or isn't a text, or the values of a column are of several types. The message names
            the file, the lines and the column.
    """
    source = Format.of(path).name
    seen = dict.fromkeys(column_names(path))
    types: dict[str, pa.DataType] = {}
    count = empty = 0
    rows = checked_rows(path, texts, columns, lists)
    while group := list(itertools.islice(rows, ROW_GROUP)):
        for place, row in group:
            check(place, row)
            empty += sum(not row[name] for name in texts)
            if row.keys() != seen.keys():
                seen.update(dict.fromkeys(row))
        if typed and source == "jsonl":
            for name in seen:
                types[name] = _widened(name, types.get(name), group, remedy)
        count += len(group)
    schema = None
    if typed:
        schema = _open_parquet(path).schema_arrow if source == "parquet" else _make_schema(seen, types)
    return Found(count, tuple(seen), tuple(texts), schema, empty)


def require_columns(path: Name, names: Sequence[str], wanted: Iterable[str], option: str) -> None:
    """Check that columns are there.

    Raises:
        DataError: A column isn't there; the message names those that are, and the option that chooses.
    """
    for name in wanted:
        if name not in names:
            raise DataError(f"{path} has no column {name!r}, but {list(names)}. Name the right one with {option}.")


def _choose_texts(path: Name, trained_on: Sequence[str] | None, instructed: bool) -> tuple[str, ...]:
    first: Any = next(read_rows(path), None)
    if first is None:
        return ()
    first = without_instruction(first) if instructed else first
    try:
        return choose_texts([first], first, trained_on, "--text-columns FIRST SECOND")
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _make_schema(names: Iterable[str], types: Mapping[str, pa.DataType]) -> pa.Schema:
    """A type for each column; a column of unknown type, or with nothing but null, is one of strings."""
    import pyarrow as pa

    found = {name: types.get(name, pa.null()) for name in names}
    return pa.schema([(name, pa.string() if pa.types.is_null(kind) else kind) for name, kind in found.items()])


def _widened(name: str, known: pa.DataType | None, group: Sequence[tuple[str, Row]], remedy: str) -> pa.DataType:
    """The type that holds a column's values in these rows, and in those before them."""
    import pyarrow as pa

    try:
        found = pa.array([row.get(name) for _, row in group]).type
        pair = [pa.schema([(name, kind)]) for kind in (known or pa.null(), found)]
        return pa.unify_schemas(pair, promote_options="permissive").field(name).type
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        (place, first), (_, last) = (place.rsplit(" ", 1) for place, _ in (group[0], group[-1]))
        raise DataError(
            f"{place}s {first} to {last}, column {name!r}: the values are of several types, and a column takes one "
            f"({error}). {remedy}"
        ) from error


# -- writing -----------------------------------------------------------------------------------------------------------


def check_output(path: Name, overwrite: bool) -> None:
    """Refuse to replace a file without being asked to, and one that can't be written.

    Raises:
        ConfigurationError: The file exists, and `overwrite` is False; or it can't be written there.
    """
    if Path(path).exists() and not overwrite:
        raise ConfigurationError(f"{path} exists. Pass --overwrite to replace it, or name another output.")
    check_writable(path)


@contextlib.contextmanager
def replacing(path: Name, temporary: Name | None = None) -> Iterator[Path]:
    """A temporary file to write, which replaces `path` when the block ends without an error, and is removed otherwise.

    Raises:
        DiskFullError: The disk is full.

    Args:
        path: The file to replace, in one step. Its folder is made if necessary.
        temporary: The file to write, on the same disk. Default: `path` with `.tmp` at the end.
    """
    written = Path(f"{path}.tmp") if temporary is None else Path(temporary)
    written.parent.mkdir(parents=True, exist_ok=True)
    try:
        with telling_full(path):
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
        form: Its format.
        names: Its columns. A value that a row lacks becomes an empty field, and null in parquet; a jsonl leaves it out.
        schema: The columns' types, needed for parquet.

    Yields:
        A function that writes one row.
    """
    if form.name == "parquet":
        with _parquet_writer(path, schema) as writer:
            yield writer
        return
    encode = _encoder(form, names)
    with open(path, "wb") as raw:
        # The header is to hold neither the time nor the name of the file.
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
    """A function that turns a row into the bytes of its line. Default: the row's own columns, in their order."""
    if form.name == "jsonl":
        return lambda row: (json.dumps(row, ensure_ascii=False, default=_as_json) + "\n").encode()

    def fields(row: Row) -> list[str]:
        return [_as_field(row.get(name)) for name in (row if names is None else names)]

    if form.name == "tsv":
        return lambda row: _tsv_line(fields(row)).encode()
    # csv quotes whatever is part of its own line end, so a carriage return inside a text needs this one.
    line = csv.writer(_Echo(), lineterminator="\r\n")
    return lambda row: (line.writerow(fields(row))[:-2] + "\n").encode()


class _Echo:
    """Returns the lines that `csv` writes to it."""

    def write(self, line: str) -> str:
        return line


def _tsv_line(fields: list[str]) -> str:
    for field in fields:
        if "\t" in field or "\n" in field or "\r" in field:
            raise ValueError(f"{short(field)} has a tab or a line break, which a tsv can't hold")
    return "\t".join(fields) + "\n"


def _as_field(value: object) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=_as_json)
    if isinstance(value, bytes):
        raise TypeError(f"{short(value)} is of type bytes, which a text format can't hold")
    return str(value)


def _as_json(value: object) -> str:
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | decimal.Decimal):
        return str(value)
    raise TypeError(f"{short(value)} is of type {type(value).__name__}, which JSON can't hold")


# -- scores ------------------------------------------------------------------------------------------------------------


def shortest(scores: Iterable[np.float32]) -> list[float]:
    """Scores with as few digits as it takes to read the same float32 back: 0.1, not 0.10000000149011612."""
    return [float(str(score)) for score in scores]


def taking(windows: Iterable[NDArray[np.float32]]) -> Callable[[int], NDArray[np.float32]]:
    """A function that returns the next n rows [n, C] of windows [W, C], whatever the windows' sizes.

    >>> import numpy as np
    >>> take = taking([np.zeros((3, 1)), np.ones((3, 1))])
    >>> take(4).T
    array([[0., 0., 0., 1.]])
    """
    import numpy as np

    left = iter(windows)
    held: list[NDArray[np.float32]] = []

    def take(count: int) -> NDArray[np.float32]:
        parts = []
        while count:
            window = held.pop() if held else next(left)
            parts.append(window[:count])
            if len(window) > count:
                held.append(window[count:])
            count -= len(parts[-1])
        return np.concatenate(parts)

    return take


def join_scores(
    source: Name, path: Name, form: Format, found: Found, names: Sequence[str], windows: Iterable[NDArray[np.float32]]
) -> None:
    """Write a table with its scores after its own columns.

    Args:
        source: The table.
        path: The file to write.
        form: The format to write.
        found: The result of `check_table`.
        names: [C] columns of scores.
        windows: [W, C] scores of the rows, in order.
    """
    if Format.of(source).name == "parquet" == form.name:
        _join_parquet(source, path, names, windows)
        return
    schema = None if found.schema is None else _with_scores(found.schema, names)
    scores = itertools.chain.from_iterable(windows)
    with open_writer(path, form, [*found.names, *names], schema) as write:
        for row, values in zip(read_rows(source), scores, strict=True):
            write({**row, **dict(zip(names, shortest(values), strict=True))})


def _join_parquet(source: Name, path: Name, names: Sequence[str], windows: Iterable[NDArray[np.float32]]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    file, take = _open_parquet(source), taking(windows)
    with parquet.ParquetWriter(path, _with_scores(file.schema_arrow, names)) as writer:
        for batch in _batches(source):
            scores = [pa.array(column, pa.float32()) for column in take(len(batch)).T]
            writer.write_batch(pa.record_batch([*batch.columns, *scores], writer.schema))


def _with_scores(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    import pyarrow as pa

    for name in names:
        schema = schema.append(pa.field(name, pa.float32()))
    return schema
