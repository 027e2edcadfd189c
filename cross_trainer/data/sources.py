"""Where judged collections are read from: a folder in BEIR's layout, the Hub, or ir_datasets.

    source = find_source("data/scifact")
    source.read_qrels("test")       # {"q1": {"d7": 1}}
    dict(source.queries())          # {"q1": "..."}

Each source gives ids and texts one after the other, and an error names the line or the row.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cross_trainer.data.columns import check_text
from cross_trainer.data.splits import load_from_hub
from cross_trainer.data.tables import FORMATS, checked_rows, column_names, placed_rows, read_rows, table_format
from cross_trainer.data.trec import add_document
from cross_trainer.errors import ConfigurationError, DataError, MissingDependencyError, short

NANO_BEIR = "zeta-alpha-ai"
IR_DATASETS = "ir_datasets:"
QRELS_COLUMNS = ("query-id", "corpus-id", "score")


class Source(Protocol):
    """What a collection is read from."""

    @property
    def name(self) -> str:
        """What it is called."""

    def documents(self) -> Iterator[tuple[str, str]]:
        """The id and the text of each document; a title stands before its text."""

    def queries(self) -> Iterator[tuple[str, str]]:
        """The id and the text of each query."""

    def read_qrels(self, split: str | None) -> dict[str, dict[str, int]]:
        """The judgements of a split: query id to document id to grade."""


@dataclass(frozen=True)
class Folder:
    """A folder in BEIR's layout."""

    path: Path

    @property
    def name(self) -> str:
        """The folder's."""
        return self.path.resolve().name

    def documents(self) -> Iterator[tuple[str, str]]:
        """The id and the text of each document."""
        return _texts(self._table("corpus"))

    def queries(self) -> Iterator[tuple[str, str]]:
        """The id and the text of each query."""
        return _texts(self._table("queries"))

    def read_qrels(self, split: str | None) -> dict[str, dict[str, int]]:
        """The judgements of a split: query id to document id to grade."""
        folder = self.path / "qrels"
        if not folder.is_dir():
            raise ConfigurationError(f"{self.path} has no folder 'qrels', with a file such as test.tsv.")
        files = {each.name.split(".")[0]: each for each in sorted(folder.iterdir()) if table_format(each)}
        path = files[_choose_split(str(folder), split, files)]
        _require(str(path), column_names(path), QRELS_COLUMNS)
        return _judged(str(path), placed_rows(path))

    def _table(self, stem: str) -> Path:
        found = [each for each in sorted(self.path.iterdir()) if each.name.split(".")[0] == stem and table_format(each)]
        if not found:
            raise ConfigurationError(
                f"{self.path} has no {stem}.jsonl: expected corpus.jsonl, queries.jsonl and a folder qrels. Other "
                f"formats are {', '.join(FORMATS)}."
            )
        return found[0]


def _require(source: str, names: Iterable[str], wanted: Iterable[str]) -> None:
    found = list(names)
    for name in wanted:
        if name not in found:
            raise DataError(f"{source} has no column {name!r}, but {found}. Call it so: that is BEIR's layout.")


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    """The id and the text of each row; a title stands before its text."""
    first = next(read_rows(path), None)
    if first is None:
        raise DataError(f"{path} has no rows.")
    _require(str(path), first, ("_id", "text"))
    for place, row in checked_rows(path, ("text",)):
        yield _id(row, "_id", place), _whole_text(row, place)


def _whole_text(row: Mapping[str, Any], place: str) -> str:
    title, text = row.get("title"), check_text(row["text"], f"{place}, column 'text'")
    return f"{check_text(title, place)} {text}".strip() if title else text


def _id(row: Mapping[str, Any], column: str, place: str) -> str:
    name = row.get(column)
    if not isinstance(name, str | int) or isinstance(name, bool) or str(name).split() != [str(name)]:
        raise DataError(
            f"{place}, column {column!r}: {short(name)} is no id. Give every row a string without spaces, or a number."
        )
    return str(name)


def _judged(source: str, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, dict[str, int]]:
    """Judgements by query, of rows with their places."""
    qrels: dict[str, dict[str, int]] = {}
    for place, row in rows:
        try:
            grade = int(str(row["score"]))
        except ValueError:
            raise DataError(f"{place}, column 'score': {short(row['score'])} is no whole number.") from None
        add_document(qrels, _id(row, "query-id", place), _id(row, "corpus-id", place), grade, place)
    if not qrels:
        raise DataError(f"{source} has no judgement.")
    return qrels


def _choose_split(source: str, split: str | None, splits: Iterable[str]) -> str:
    names = list(splits)
    chosen = split if split is not None else names[0] if len(names) == 1 else "test"
    if chosen not in names:
        asked = f"no {split!r}" if split is not None else "none is named"
        raise ConfigurationError(f"{source} has the splits {names}, and {asked}. Name one of those as split.")
    return chosen


@dataclass(frozen=True)
class HubDataset:
    """A data set on the Hub with the configurations corpus, queries and qrels."""

    name: str

    def documents(self) -> Iterator[tuple[str, str]]:
        """The id and the text of each document."""
        return self._texts("corpus")

    def queries(self) -> Iterator[tuple[str, str]]:
        """The id and the text of each query."""
        return self._texts("queries")

    def read_qrels(self, split: str | None) -> dict[str, dict[str, int]]:
        """The judgements of a split: query id to document id to grade."""
        splits = load_from_hub(self.name, "qrels")
        rows = splits[_choose_split(f"{self.name}, qrels,", split, splits)]
        _require(f"{self.name}, qrels", rows.column_names, QRELS_COLUMNS[:2])
        return _judged(self.name, ((self._place("qrels", at), {"score": 1, **row}) for at, row in enumerate(rows)))

    def _texts(self, config: str) -> Iterator[tuple[str, str]]:
        splits = load_from_hub(self.name, config)
        for rows in splits.values():
            _require(f"{self.name}, {config}", rows.column_names, ("_id", "text"))
            for index, row in enumerate(rows):
                place = self._place(config, index)
                yield _id(row, "_id", place), _whole_text(row, place)

    def _place(self, config: str, index: int) -> str:
        return f"{self.name}, {config}, row {index}"


@dataclass(frozen=True)
class IrDataset:
    """A data set of ir_datasets, which downloads it when it is first read."""

    id: str
    dataset: Any

    @classmethod
    def of(cls, name: str) -> IrDataset:
        """The one of an id.

        Raises:
            ConfigurationError: There is none, or it lacks documents, queries or judgements.
            MissingDependencyError: ir_datasets isn't installed.
        """
        try:
            import ir_datasets
        except ImportError as error:
            raise MissingDependencyError(
                f"{IR_DATASETS}{name} needs ir_datasets: pip install 'cross-trainer[ir-datasets]'."
            ) from error
        try:
            dataset = ir_datasets.load(name)
        except KeyError as error:
            raise ConfigurationError(f"ir_datasets has no data set {name!r}. See https://ir-datasets.com.") from error
        if not (dataset.has_docs() and dataset.has_queries() and dataset.has_qrels()):
            raise ConfigurationError(
                f"{IR_DATASETS}{name} lacks documents, queries or judgements. Name a part of it that has them, such as "
                f"{name}/test."
            )
        return cls(name, dataset)

    @property
    def name(self) -> str:
        """Its id, told from other names."""
        return f"{IR_DATASETS}{self.id}"

    def documents(self) -> Iterator[tuple[str, str]]:
        """The id and the text of each document."""
        return ((each.doc_id, each.default_text()) for each in self._read(self.dataset.docs_iter))

    def queries(self) -> Iterator[tuple[str, str]]:
        """The id and the text of each query."""
        return ((each.query_id, each.default_text()) for each in self._read(self.dataset.queries_iter))

    def read_qrels(self, split: str | None) -> dict[str, dict[str, int]]:
        """The judgements of a split: query id to document id to grade."""
        if split is not None:
            raise ConfigurationError(f"{self.name}: the id names the split. Leave split={split!r} out.")
        qrels: dict[str, dict[str, int]] = {}
        for each in self._read(self.dataset.qrels_iter):
            qrels.setdefault(each.query_id, {})[each.doc_id] = int(each.relevance)
        if not qrels:
            raise DataError(f"{self.name} has no judgement.")
        return qrels

    def _read(self, rows: Any) -> Iterator[Any]:
        try:
            yield from rows()
        except (OSError, RuntimeError) as error:
            raise ConfigurationError(f"{self.name} can't be downloaded or read: {error}") from error


def find_source(source: str | os.PathLike[str]) -> Source:
    """Where a collection is read from, by its name.

    Raises:
        ConfigurationError: There is no such collection.
        MissingDependencyError: It is one of ir_datasets, which isn't installed.
    """
    if Path(source).is_dir():
        return Folder(Path(source))
    name = os.fspath(source)
    if name.startswith(IR_DATASETS):
        return IrDataset.of(name.removeprefix(IR_DATASETS))
    if name.startswith("Nano") and "/" not in name:
        return HubDataset(f"{NANO_BEIR}/{name}")
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return HubDataset(name)
    raise ConfigurationError(
        f"The collection {name!r} isn't there: expected a folder with corpus.jsonl, queries.jsonl and qrels, a name of "
        f"NanoBEIR, the id of a data set on the Hub, or {IR_DATASETS}ID."
    )
