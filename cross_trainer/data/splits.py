"""Data sets from the Hub, a folder or a file, with the splits `train`, `validation` and `test`.

    splits = load_splits("questions.csv", columns=("question1", "question2", "is_duplicate"))
    splits["train"]                                     # a datasets.Dataset, on disk and memory-mapped

Files are read by `cross_trainer.data.tables`, so that training and evaluation see the texts that `cross-trainer score`
sees. Every field of a csv or tsv is a text; only the label's column and `num_relevant` are turned into numbers:

| the values of the column are    | its type |
|---------------------------------|----------|
| all integers                    | int64    |
| all numbers                     | float64  |
| all true or false, in any case  | bool     |
| none of them a number           | string   |

A jsonl gets the types that its values have, and a parquet file keeps its own, with the names of its classes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cross_trainer
from cross_trainer.data.columns import NUM_RELEVANT, is_label, resolve_columns
from cross_trainer.data.tables import (
    FORMATS,
    ROW_GROUP,
    Name,
    Row,
    placed_rows,
    read_rows,
    replacing,
    scan_table,
    table_format,
)
from cross_trainer.errors import ConfigurationError, DataError, short

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)

SPLITS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
SPLIT_COLUMN = "split"
SAMPLE = 1_000  # rows in which a column's first value is looked for
HELD_OUT = 0.1  # share of the rows without a split that become the validation split

# Not Python's idea of numbers, which includes "1_000" and digits of all scripts.
_INTEGER = re.compile(r" *[+-]?[0-9]{1,18} *")
_NUMBER = re.compile(r" *[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)? *")
_BOOLEANS = {"true": True, "false": False}
_CONVERT: dict[str, Callable[[str], object]] = {
    "int64": int,
    "float64": float,
    "bool": lambda field: _BOOLEANS[field.strip().lower()],
    "string": str,
}


def load_splits(
    source: str, config: str | None = None, seed: int = 0, columns: Sequence[str] | None = None
) -> DatasetDict:
    """Load a data set with at least the splits "train" and "validation".

    Args:
        source: A folder with one file per split (`train.csv`, `validation.csv` or `dev.csv`, `test.csv`), a file, or
            the id of a data set on the Hub. Files are csv, tsv, jsonl or parquet; the text formats may be compressed
            (`.gz`). The rows of a file are divided by its column `split`. Without one, a tenth of them, drawn by
            `seed`, become the validation split.
        config: The configuration of a data set on the Hub.
        seed: Seed of the draw.
        columns: The columns of the texts and of the label, `(first text, second text[, label])`. Default: by their
            names and types.

    Raises:
        ConfigurationError: There is no such file or folder, and the Hub can't be reached or doesn't have it.
        DataError: There is no training data, or a file can't be read; the message names the file and the line.
    """
    path = Path(source)
    if path.is_dir():
        splits = _as_splits({name: load_table(file, columns) for name, file in _find_files(path).items()})
    elif path.is_file():
        rows = load_table(path, columns)
        splits = _divide(path, rows) if SPLIT_COLUMN in rows.column_names else _as_splits({"train": rows})
    else:
        splits = load_from_hub(source, config)
    if "train" not in splits:
        raise DataError(
            f"{source!r} has the splits {list(splits)}, but no 'train'. Call the file of training data train.csv, say."
        )
    return splits if "validation" in splits else _hold_out(splits, seed)


def load_split(source: str, split: str, config: str | None = None, columns: Sequence[str] | None = None) -> Dataset:
    """Load one split of a data set, or all rows of a file that has no column `split`.

    Args:
        source: As for `load_splits`, but no other split is needed.
        split: Its name, or another name for it in `SPLITS`.
        config: The configuration of a data set on the Hub.
        columns: As for `load_splits`.

    Raises:
        ConfigurationError: There is no such file or folder, and the Hub can't be reached or doesn't have it.
        DataError: There is no such split, or a file can't be read; the message names the file and the line.
    """
    path = Path(source)
    if path.is_dir():
        files = _find_files(path)
        return load_table(files[_choose(source, split, files)], columns)
    if path.is_file():
        rows = load_table(path, columns)
        if SPLIT_COLUMN not in rows.column_names:
            return rows
        splits = _divide(path, rows)
    else:
        splits = load_from_hub(source, config)
    return splits[_choose(source, split, splits)]


def load_table(path: Name, columns: Sequence[str] | None = None) -> Dataset:
    """Load a file as a data set that stays on disk, in the cache of `datasets`. An unchanged file is read only once.

    Args:
        path: A csv, tsv, jsonl or parquet file, recognised by its name.
        columns: The columns of the texts, at most two, and of the label. Default: by their names and types.

    Raises:
        DataError: A text isn't a text, a label's column mixes numbers with something else, or the file can't be read.
            The message names the file, the line and the column.
    """
    from datasets import Dataset, DatasetInfo, config

    if table_format(Path(path)) is None:
        raise DataError(
            f"{path} is not a table: expected a name that ends in {', '.join(FORMATS)}, or in one of these and .gz."
        )
    state = _state(path)
    identity = json.dumps([os.path.abspath(path), *state, columns, cross_trainer.__version__])
    name = hashlib.sha256(identity.encode()).hexdigest()
    cached = Path(config.HF_DATASETS_CACHE, "cross_trainer", f"{name}.arrow")
    if not cached.exists():
        with replacing(cached, f"{cached}.{os.getpid()}") as temporary:  # other processes may be writing it, too
            _convert(path, temporary, columns)
            if _state(path) != state:
                raise DataError(f"{path} was changed while it was being read. Try again.")
    return Dataset.from_file(str(cached), info=DatasetInfo(dataset_name=Path(path).name))


def _state(path: Name) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def _convert(path: Name, target: Path, columns: Sequence[str] | None) -> None:
    """Write a table as the file of a data set, with the types of its values."""
    import pyarrow as pa
    from datasets import Features

    used = _find_columns(path, columns)
    kinds: dict[str, str] = {}

    def widen(place: str, row: Row) -> None:
        for name in used.labels:
            kinds[name] = _join_kinds(kinds.get(name), row[name], f"{place}, column {name!r}", name)

    found = scan_table(path, used.texts, columns=used.texts, lists=used.lists, check=widen)
    schema = Features.from_arrow_schema(_with_kinds(found.schema, kinds)).arrow_schema
    rows = read_rows(path)
    with pa.ipc.new_stream(target, schema) as writer:
        while group := list(itertools.islice(rows, ROW_GROUP)):
            for name, kind in kinds.items():
                for row in group:
                    row[name] = _CONVERT[kind](row[name])
            writer.write_batch(pa.RecordBatch.from_pylist(group, schema))


# -- columns and their types -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Used:
    """Columns of texts, those of them that hold lists of texts, and columns of labels that have no type yet."""

    texts: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


def _find_columns(path: Name, columns: Sequence[str] | None) -> _Used:
    """What the columns of a table are used for: as asked, or else by its first row."""
    first = _typical_row(path)
    first.pop(SPLIT_COLUMN, None)
    named = tuple(name for name in first if is_label(name))
    if columns is not None:
        texts = tuple(name for name in columns[:2] if name in first)
        labels = tuple(columns[2:]) or tuple(name for name in named if name not in texts)
    else:
        try:
            found = resolve_columns([first])
            texts, labels = (found.query, *found.documents), (found.label,) if found.label else ()
        except DataError:  # not every data set has two texts, and a command that needs them says so itself
            texts, labels = (), named
    untyped = table_format(Path(path)) in {"csv", "tsv"}
    return _Used(
        texts,
        tuple(name for name in texts if isinstance(first[name], list)),
        tuple(name for name in (*labels, NUM_RELEVANT) if untyped and name in first),
    )


def _typical_row(path: Name) -> Row:
    """The first row of a table, with values of the next rows instead of None."""
    rows = itertools.islice(read_rows(path), SAMPLE)
    first = next(rows, {})
    while None in first.values() and (row := next(rows, None)) is not None:
        first = {name: row.get(name) if value is None else value for name, value in first.items()}
    return first


def _join_kinds(known: str | None, field: str, where: str, name: str) -> str:
    """The type that holds a field and those before it.

    Raises:
        DataError: The field is empty, or some of them are numbers, and some are not.
    """
    if not field.strip():
        raise DataError(f"{where}: the field is empty. Fill it in, or filter such rows out.")
    kind = _kind(field)
    if known is None or known == kind:
        return kind
    numbers = {"int64", "float64"}
    if {known, kind} == numbers:
        return "float64"
    if not {known, kind} & numbers:
        return "string"
    problem = (
        f"{short(field)} is no number, as {name!r} holds in the lines before"
        if known in numbers
        else f"{short(field)} is a number, and {name!r} holds none in the lines before"
    )
    raise DataError(f"{where}: {problem}. Filter such rows out, or write jsonl, whose values have types.")


def _kind(field: str) -> str:
    if _INTEGER.fullmatch(field):
        return "int64"
    if _NUMBER.fullmatch(field):
        return "float64"
    return "bool" if field.strip().lower() in _BOOLEANS else "string"


def _with_kinds(schema: pa.Schema, kinds: dict[str, str]) -> pa.Schema:
    import pyarrow as pa

    for name, kind in kinds.items():
        schema = schema.set(schema.get_field_index(name), pa.field(name, pa.type_for_alias(kind)))
    return schema


# -- splits ------------------------------------------------------------------------------------------------------------


def _find_files(folder: Path) -> dict[str, Path]:
    """The file of each split in a folder."""
    stems = [(path.name.split(".")[0].lower(), path) for path in sorted(folder.iterdir()) if table_format(path)]
    found = {SPLITS[stem]: path for stem, path in stems if stem in SPLITS}
    if not found:
        raise DataError(
            f"{str(folder)!r} has no file of a split: expected train, validation and test as .csv, .tsv, .jsonl or "
            ".parquet."
        )
    return found


def _choose(source: str, split: str, splits: dict[str, Path] | DatasetDict) -> str:
    name = split if split in splits else SPLITS.get(split, split)
    if name not in splits:
        raise DataError(f"{source!r} has the splits {list(splits)}, but no {split!r}. Name one of those with --split.")
    return name


def _divide(path: Path, rows: Dataset) -> DatasetDict:
    """The rows of a file by their column `split`."""
    indices: dict[str, list[int]] = {}
    for index, name in enumerate(rows[SPLIT_COLUMN]):
        if name not in SPLITS:
            place = next(place for place, row in placed_rows(path) if row.get(SPLIT_COLUMN) == name)
            raise DataError(f"{place}, column {SPLIT_COLUMN!r}: {name!r} is no split. Expected one of {list(SPLITS)}.")
        indices.setdefault(SPLITS[name], []).append(index)
    rest = rows.remove_columns(SPLIT_COLUMN)
    return _as_splits({split: rest.select(chosen) for split, chosen in indices.items()})


def load_from_hub(name: str, config: str | None) -> DatasetDict:
    """A data set on the Hub with all its splits.

    Raises:
        ConfigurationError: The Hub can't be reached, or has no such data set or configuration.
    """
    from datasets import load_dataset
    from huggingface_hub.errors import HfHubHTTPError

    try:
        loaded: DatasetDict = load_dataset(name, config)
    except (OSError, ValueError, HfHubHTTPError) as error:  # a ValueError for names and configurations
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise ConfigurationError(
            f"{name!r} is neither a file nor a folder, and the Hub can't be reached or doesn't have it ({reason}). "
            "Name a folder or a file; the recipes also have --demo, which needs neither."
        ) from error
    return loaded


def _hold_out(splits: DatasetDict, seed: int) -> DatasetDict:
    parts = splits["train"].train_test_split(test_size=HELD_OUT, seed=seed)
    logger.info("There is no validation split: %d of %d rows are held out.", len(parts["test"]), len(splits["train"]))
    return _as_splits({**splits, "train": parts["train"], "validation": parts["test"]})


def _as_splits(splits: dict[str, Dataset]) -> DatasetDict:
    from datasets import DatasetDict

    return DatasetDict(splits)
