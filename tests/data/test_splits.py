"""Data sets from folders and files, and one line of error where neither those nor the Hub have them."""

from __future__ import annotations

import datetime
import functools
import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset
from pyarrow import parquet

from cross_trainer.data import splits, tables
from cross_trainer.data.splits import load_split, load_splits, load_table
from cross_trainer.data.tables import table_format
from cross_trainer.errors import ConfigurationError, DataError

ROWS = [{"a": f"text {index}", "b": "null" if index % 2 else "", "label": index % 2} for index in range(20)]


def write(path, rows=ROWS):
    dataset = Dataset.from_list(rows)
    if ".csv" in path.name:
        dataset.to_csv(path, index=False)
    elif ".tsv" in path.name:
        lines = ["\t".join(map(str, row.values())) for row in rows]
        text = "\n".join(["\t".join(rows[0]), *lines]) + "\n"
        with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
            file.write(text)
    elif ".parquet" in path.name:
        dataset.to_parquet(path)
    else:
        dataset.to_json(path)


def write_fields(path, rows):
    with tables.open_writer(path, tables.Format.of(path), list(rows[0])) as add:
        for row in rows:
            add(row)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_folder_has_one_file_a_split(tmp_path, suffix):
    write(tmp_path / f"train.{suffix}")
    write(tmp_path / f"dev.{suffix}", ROWS[:3])
    (tmp_path / "notes.txt").write_text("nothing of ours")
    found = load_splits(str(tmp_path))
    assert {name: len(rows) for name, rows in found.items()} == {"train": 20, "validation": 3}
    # Neither "null" nor an empty field turns into a missing text.
    assert found["train"].to_list() == ROWS


def test_a_file_goes_by_its_split_column(tmp_path):
    quoted = [
        {**row, "a": f'an "odd {row["a"]}', "split": "dev" if index < 4 else "train"} for index, row in enumerate(ROWS)
    ]
    path = tmp_path / "all.tsv.gz"
    write(path, quoted)
    with gzip.open(path, "rt") as file:
        assert file.readline() == "a\tb\tlabel\tsplit\n"
    found = load_splits(str(path))
    assert {name: len(rows) for name, rows in found.items()} == {"train": 16, "validation": 4}
    assert found["train"]["a"][0] == 'an "odd text 4'


def test_a_file_without_splits_holds_out_a_tenth(tmp_path):
    write(tmp_path / "pairs.csv")
    first, again, other = (load_splits(str(tmp_path / "pairs.csv"), seed=seed) for seed in (0, 0, 1))
    assert {name: len(rows) for name, rows in first.items()} == {"train": 18, "validation": 2}
    assert first["validation"]["a"][:] == again["validation"]["a"][:] != other["validation"]["a"][:]
    assert sorted([*first["train"]["a"], *first["validation"]["a"]]) == sorted(row["a"] for row in ROWS)


def test_one_split_needs_no_other(tmp_path):
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "test.csv")
    assert load_split(str(tmp_path / "folder"), "test").to_list() == ROWS
    write(tmp_path / "pairs.jsonl")
    for split in ("validation", "anything"):
        assert load_split(str(tmp_path / "pairs.jsonl"), split).to_list() == ROWS
    write(tmp_path / "all.csv", [{**row, "split": "dev" if index < 4 else "train"} for index, row in enumerate(ROWS)])
    for split in ("validation", "dev"):
        assert load_split(str(tmp_path / "all.csv"), split).to_list() == ROWS[:4]
    with pytest.raises(DataError, match=r"has the splits \['validation', 'train'\], but no 'test'.*--split"):
        load_split(str(tmp_path / "all.csv"), "test")
    with pytest.raises(DataError, match=r"is not a table: expected a name that ends in \.csv"):
        load_split(str(Path(__file__)), "train")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.b.CSV", "csv"),
        ("a.tsv.gz", "tsv"),
        ("a.json", "jsonl"),
        ("a.parquet", "parquet"),
        ("a.txt", None),
        ("csv", None),
    ],
)
def test_formats_go_by_the_name(name, expected):
    assert table_format(Path(name)) == expected


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match="has no file of a split"):
        load_splits(str(tmp_path))
    write(tmp_path / "test.csv")
    with pytest.raises(DataError, match=r"has the splits \['test'\], but no 'train'"):
        load_splits(str(tmp_path))
    write(tmp_path / "all.csv", [{**row, "split": "held"} for row in ROWS])
    with pytest.raises(DataError, match=r"all.csv, line 2, column 'split': 'held' is no split"):
        load_splits(str(tmp_path / "all.csv"))


def test_without_the_hub_one_line_names_the_ways_out(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConfigurationError, match=r"neither a file nor a folder, and the Hub can't be reached.*folder or a file.*--demo"
    ):
        load_splits("nobody/has-this-set", "pair-class")


# -- types -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz"])
def test_fields_stay_texts_whatever_they_look_like(tmp_path, suffix):
    rows = [{"a": text, "b": "7", "label": "1"} for text in ("007", "7", "NA", "", "1e3", "true", "2020-01-01")]
    write_fields(tmp_path / f"odd.{suffix}", rows)
    loaded = load_split(str(tmp_path / f"odd.{suffix}"), "train")
    assert loaded.to_list() == [{**row, "label": 1} for row in rows]
    assert loaded.features.arrow_schema.types == [pa.string(), pa.string(), pa.int64()]
    assert loaded.cache_files  # on disk


@pytest.mark.parametrize(
    ("fields", "values", "kind"),
    [
        (["0", "1", "-7", "+2", " 3 "], [0, 1, -7, 2, 3], "int64"),
        (["0", "1.5", ".5", "2.", "1e-3"], [0, 1.5, 0.5, 2, 0.001], "float64"),
        (["1", str(10**19)], [1, 1e19], "float64"),
        (["true", "False", "TRUE"], [True, False, True], "bool"),
        (["yes", "no", "yes"], ["yes", "no", "yes"], "string"),
        (["true", "maybe"], ["true", "maybe"], "string"),
        (["1_000", "2_000"], ["1_000", "2_000"], "string"),
        (["\u0661", "\u0662"], ["\u0661", "\u0662"], "string"),
        (["nan", "inf"], ["nan", "inf"], "string"),
    ],
)
def test_labels_of_a_csv_get_a_type(tmp_path, fields, values, kind):
    write_fields(tmp_path / "t.csv", [{"a": "x", "b": "y", "label": field} for field in fields])
    loaded = load_split(str(tmp_path / "t.csv"), "train")
    assert (loaded["label"][:], loaded.features["label"].dtype) == (values, kind)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            ["1", "0.5", "n/a"],
            r"t.csv, line 6, column 'label': 'n/a' is no number, as 'label' holds in the lines before",
        ),
        (["1", ""], r"line 5, column 'label': the field is empty.*filter such rows out"),
        (["1", "true"], r"line 5, column 'label': 'true' is no number"),
        (["yes", "no", "1"], r"line 6, column 'label': '1' is a number, and 'label' holds none in the lines before"),
        (["", "1.5"], r"line 2, column 'label': the field is empty"),
        (["yes", " "], r"line 5, column 'label': the field is empty"),
    ],
)
def test_numbers_among_other_labels_name_their_line(tmp_path, fields, message):
    first, *rest = fields
    two_lines_and_a_blank_one = f'"two\nlines",y,{first}\n\n'
    lines = "".join(f"x,y,{field}\n" for field in rest)
    (tmp_path / "t.csv").write_text(f"a,b,label\n{two_lines_and_a_blank_one}{lines}")
    with pytest.raises(DataError, match=message):
        load_split(str(tmp_path / "t.csv"), "train")


def test_the_column_asked_for_is_the_label(tmp_path):
    rows = [{"score": "1", "b": "2", "gold": "3", "num_relevant": "4"}] * 9
    write_fields(tmp_path / "t.csv", rows)
    write_fields(tmp_path / "qrels.csv", [{"query-id": "1", "corpus-id": "2", "score": "3"}])

    def values(*columns):
        return list(load_split(str(tmp_path / "t.csv"), "train", columns=columns)[0].values())

    assert values("score", "b", "gold") == ["1", "2", 3, 4]
    assert values("b", "gold") == [1, "2", "3", 4]
    assert values("score", "b") == ["1", "2", "3", 4]
    assert (
        load_splits(str(tmp_path / "t.csv"), columns=("score", "b", "gold"))["train"].features["gold"].dtype == "int64"
    )
    assert load_split(str(tmp_path / "qrels.csv"), "train")[0] == {"query-id": "1", "corpus-id": "2", "score": 3}


def test_a_jsonl_gets_the_types_that_hold_its_values(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROW_GROUP", 2)
    values = [None, 1, 2, 2.5, None]
    rows = [{"first": "2020-01-01", "second": "y", "n": value, "tags": [1], "label": 1} for value in values] + [
        {"second": "y", "first": "x", "late": [1]}
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_split(str(tmp_path / "t.jsonl"), "train")
    assert loaded["n"][:] == [None, 1.0, 2.0, 2.5, None, None]
    assert (loaded["first"][0], loaded["late"][:]) == ("2020-01-01", [None] * 5 + [[1]])
    (tmp_path / "mixed.jsonl").write_text(json.dumps(rows[0]) + "\n" + json.dumps({**rows[0], "tags": "x"}) + "\n")
    with pytest.raises(DataError, match=r"mixed.jsonl, lines 1 to 2, column 'tags': the values are of several types"):
        load_split(str(tmp_path / "mixed.jsonl"), "train")


def test_a_parquet_keeps_its_types(tmp_path):
    source = Dataset.from_dict(
        {"a": ["x"] * 2, "b": ["y"] * 2, "label": [1, 0], "when": [datetime.datetime(2020, 1, 1, 0, 0, 0, 123)] * 2}
    ).cast_column("label", ClassLabel(names=["no", "yes"]))
    source.to_parquet(tmp_path / "t.parquet")
    loaded = load_split(str(tmp_path / "t.parquet"), "train")
    assert (loaded.features, loaded.to_list()) == (source.features, source.to_list())
    coded = pa.table({"a": ["x", "y", "x"], "n": [1, 2, 3]}).set_column(
        0, "a", pa.array(["x", "y", "x"]).dictionary_encode()
    )
    parquet.write_table(coded, tmp_path / "coded.parquet")
    assert load_split(str(tmp_path / "coded.parquet"), "train").to_list() == coded.to_pylist()


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"first": "a", "second": None}, None, "column 'second': expected a text, found None"),
        ({"first": None, "second": "b"}, ("second", "first"), "column 'first': expected a text, found None"),
        (
            {"query": "a", "documents": ["b", None], "labels": [1, 0]},
            None,
            "column 'documents': expected a text, found None",
        ),
    ],
)
def test_a_bad_text_names_file_and_line(tmp_path, name, row, columns, message):
    good = {key: ["x", "y"] if key == "documents" else value or "x" for key, value in row.items()}
    if name == "t.jsonl":
        (tmp_path / name).write_text("".join(json.dumps(entry) + "\n\n" for entry in (good, row)))
    else:
        parquet.write_table(pa.Table.from_pylist([good, row]), tmp_path / name)
    place = "t.jsonl, line 3" if name == "t.jsonl" else "t.parquet, row 1"
    for load in (load_splits, functools.partial(load_split, split="train")):
        with pytest.raises(DataError, match=f"{place}, {message}"):
            load(str(tmp_path / name), columns=columns)


# -- from disk ---------------------------------------------------------------------------------------------------------


def rewrite(path, line):
    """Another line of the same size, a second later by the file's clock."""
    before = path.stat().st_mtime_ns
    path.write_text(f"a,b,label\n{line}\n")
    os.utime(path, ns=(before, before + 10**9))


def test_a_file_is_converted_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text("a,b,label\nx,y,1\n")
    first = load_table(path).to_list()
    with monkeypatch.context() as patch:
        patch.setattr(splits, "read_rows", None)
        assert load_table(path).to_list() == first == [{"a": "x", "b": "y", "label": 1}]
    assert load_table(path, ("a", "b", "a"))["label"][:] == ["1"]  # another column is the label
    rewrite(path, "z,y,1")
    assert load_table(path)["a"][:] == ["z"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x,y", "t.csv, line 2: 2 fields, but the first line has 3"),
        ("z,y,1", "t.csv was changed while it was being read"),
    ],
)
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch, line, message):
    path = tmp_path / "t.csv"
    path.write_text("a,b,label\nx,y,1\n")
    scan = splits.scan_table

    def scan_and_change(*args, **options):
        found = scan(*args, **options)
        rewrite(path, line)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(splits, "scan_table", scan_and_change)
        with pytest.raises(DataError, match=message):
            load_table(path)
    rewrite(path, "w,y,1")
    assert load_table(path)["a"][:] == ["w"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_file_without_rows_is_an_empty_set(tmp_path, suffix):
    schema = pa.schema([("a", pa.string()), ("b", pa.string())])
    with tables.open_writer(tmp_path / f"t.{suffix}", tables.Format(suffix), ["a", "b"], schema):
        pass
    loaded = load_table(tmp_path / f"t.{suffix}")
    assert (len(loaded), loaded.column_names) == (0, ["a", "b"])


def test_one_split_reads_one_file(tmp_path):
    write(tmp_path / "test.csv", ROWS[:3])
    (tmp_path / "train.csv").write_text("a,b\nx\n")
    assert load_split(str(tmp_path), "test").to_list() == ROWS[:3]
    with pytest.raises(DataError, match=r"train.csv, line 2: 1 fields"):
        load_splits(str(tmp_path))
