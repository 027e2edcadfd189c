"""Tables come back as they were written, and bad rows are named before anything long."""

from __future__ import annotations

import datetime
import gzip
import json

import datasets
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from cross_trainer.data import tables
from cross_trainer.data.tables import (
    Format,
    check_table,
    column_names,
    join_scores,
    open_writer,
    read_rows,
    replacing,
    shortest,
    taking,
)
from cross_trainer.errors import ConfigurationError, DataError

ODD = [
    "NA",
    "007",
    "",
    "null",
    'say "hi"',
    "a,b;c",
    "'",
    "naïve 漢字 🎸",
    "line\u2028separator",
    " spaces ",
    "\\n",
    "#",
]
BREAKS = ["tab\there", "two\nlines", "carriage\rreturn", "both\r\n"]
WHEN = datetime.datetime(2020, 1, 1, 0, 0, 0, 123)
NAMES = ["id", "first", "second"]


def rows_for(name):
    texts = ODD if "tsv" in name else ODD + BREAKS
    return [
        {"id": f"{index:03}", "first": text, "second": text[::-1] if "\r" not in text else text}
        for index, text in enumerate(texts)
    ]


def write(path, rows, schema=None):
    form, names = Format.of(path), list(dict.fromkeys(name for row in rows for name in row))
    if form.name == "parquet" and schema is None:
        schema = pa.Table.from_pylist(rows).schema
    with open_writer(path, form, names, schema) as add:
        for row in rows:
            add(row)
    return path


def joined(source, target, scores, names=("score",)):
    found = check_table(source, Format.of(target))
    windows = np.split(np.asarray(scores, np.float32), range(3, len(scores), 3))
    join_scores(source, target, Format.of(target), found, names, windows if len(scores) else [])
    return found


# -- formats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet", "t.csv.gz", "t.tsv.gz", "t.jsonl.gz", "T.CSV", "a.b.json"]
)
def test_what_is_written_is_read(tmp_path, name):
    rows = rows_for(name)
    write(tmp_path / name, rows)
    assert list(read_rows(tmp_path / name)) == rows
    assert column_names(tmp_path / name) == tuple(NAMES)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_datasets_reads_the_same(tmp_path, name):
    rows = [
        {"id": f"n{index}", "first": text, "second": "b"}
        for index, text in enumerate(["a", 'say "hi"', "two\nlines", "naïve, 漢字"])
    ]
    write(tmp_path / name, rows)
    loader = {"csv": "csv", "jsonl": "json", "parquet": "parquet"}[name.split(".")[1]]
    read = datasets.load_dataset(
        loader, data_files=str(tmp_path / name), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert read.to_list() == rows


@pytest.mark.parametrize("name", ["t.csv.gz", "t.jsonl.gz", "t.parquet"])
def test_the_same_rows_make_the_same_bytes(tmp_path, name, monkeypatch):
    rows = rows_for(name)
    first = write(tmp_path / name, rows).read_bytes()
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert write(tmp_path / f"another.{name}", rows).read_bytes() == first
    if name.endswith(".gz"):
        assert first[4:8] == b"\0\0\0\0"  # no time in the header


def test_files_of_other_tools_are_read(tmp_path):
    (tmp_path / "windows.csv").write_bytes(b'\xef\xbb\xbfa,b\r\n"x, y",z\r\n\r\n1,\r\n')
    assert list(read_rows(tmp_path / "windows.csv")) == [{"a": "x, y", "b": "z"}, {"a": "1", "b": ""}]
    (tmp_path / "quotes.tsv").write_text('a\tb\n"x\t5" y\n')
    assert list(read_rows(tmp_path / "quotes.tsv")) == [{"a": '"x', "b": '5" y'}]
    (tmp_path / "long.csv").write_text("a,b\n" + "w" * 200_000 + ",b\n")
    assert len(next(read_rows(tmp_path / "long.csv"))["a"]) == 200_000
    (tmp_path / "lines.jsonl").write_text('{"a": 1}\n\n  \n{"a": null, "b": [1]}')
    assert list(read_rows(tmp_path / "lines.jsonl")) == [{"a": 1}, {"a": None, "b": [1]}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv is empty: expected a first line"),
        ("a.csv", b"a,b,a\n1,2,3\n", "two columns 'a'"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "line 3: 3 fields, but the first line has 2.*quotes around"),
        ("a.tsv", b"a\tb\n1\n", "line 2: 1 fields, but the first line has 2"),
        ("a.csv", b'a,b\n1,"open\n1,2\n', "can't be read as csv.*Correct the quotes"),
        ("a.csv", "a,b\nnaïve,2\n".encode("latin-1"), "not UTF-8.*iconv"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "line 2: not JSON.*one object per line"),
        ("a.json", b'[{"a": 1}]', "line 1: expected an object.*jq -c"),
        ("a.parquet", b"a,b\n", "not a parquet file"),
        ("a.csv.gz", b"a,b\n", "not a complete gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9], "not a complete gzip file"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        list(
            read_rows(tmp_path / name)
            if name.endswith("jsonl.gz")
            else (column_names(tmp_path / name), *read_rows(tmp_path / name))
        )
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["a.xls", "a", "a.parquet.gz", "csv"])
def test_other_names_are_refused(name):
    with pytest.raises(ConfigurationError, match=r"not the name of a table.*\.csv.*\.parquet"):
        Format.of(name)


def test_missing_files_name_themselves(tmp_path):
    for name in ("no.csv", "no.jsonl", "no.parquet"):
        with pytest.raises(FileNotFoundError) as caught:
            check_table(tmp_path / name, Format("csv"))
        assert caught.value.filename == str(tmp_path / name)


# -- checking ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["csv", "parquet"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet"])
def test_one_reading_counts_and_finds_the_texts(tmp_path, name, target):
    rows = [{**row, "label": "x"} for row in rows_for(name)]
    found = check_table(write(tmp_path / name, rows), Format(target))
    assert (found.rows, found.names, found.texts, found.empty) == (len(rows), (*NAMES, "label"), ("first", "second"), 2)
    assert (found.schema is None) == (target == "csv")
    assert check_table(tmp_path / name, Format(target), ["label", "first"]).texts == ("label", "first")
    with pytest.raises(DataError, match=r"no column 'third', but \['id', 'first'.*--text-columns"):
        check_table(tmp_path / name, Format(target), ["first", "third"])


@pytest.mark.parametrize("target", ["jsonl", "parquet"])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("value", "message"), [(None, "found None .NoneType."), (7, "found 7 .int."), (["x"], r"found \['x'\] .list.")]
)
def test_a_bad_text_names_column_row_and_remedy(tmp_path, suffix, target, value, message, monkeypatch):
    monkeypatch.setattr(tables, "ROW_GROUP", 2)
    rows = [{"first": "a", "second": "b"}] * 3 + [{"first": "a", "second": value}]
    if suffix == "parquet" and value is not None:
        rows = [{"first": "a", "second": value}]  # a column has one type there
    path = tmp_path / f"t.{suffix}"
    write(path, rows) if suffix == "jsonl" else parquet.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(
        DataError,
        match=f"t.{suffix}, {'line 4' if suffix == 'jsonl' else f'row {len(rows) - 1}'}, column 'second': "
        f"expected a text, {message}.*Filter such rows out",
    ):
        check_table(path, Format(target), ["first", "second"])


def test_texts_that_are_not_there_are_named(tmp_path):
    write(tmp_path / "t.jsonl", [{"a": "x", "b": "y"}, {"a": "x", "c": "y"}])
    with pytest.raises(DataError, match=r"t.jsonl, line 2, column 'b': missing; the row has \['a', 'c'\]"):
        check_table(tmp_path / "t.jsonl", Format("jsonl"))
    (tmp_path / "half.jsonl").write_text('{"a": "x", "b": "\\ud800"}\n')
    with pytest.raises(DataError, match=r"half.jsonl, line 1, column 'b': .* half of a surrogate pair"):
        check_table(tmp_path / "half.jsonl", Format("jsonl"))
    write(tmp_path / "one.csv", [{"id": "1", "a": "x", "label": "1"}])
    with pytest.raises(
        DataError, match=r"one.csv: Found 1 text columns \(\['a'\]\) among \['id', 'a', 'label'\].*--text-columns"
    ):
        check_table(tmp_path / "one.csv", Format("csv"))
    write(tmp_path / "lists.jsonl", [{"a": "x", "documents": ["y", "z"], "labels": [0, 1]}])
    with pytest.raises(DataError, match=r"write one pair per row"):
        check_table(tmp_path / "lists.jsonl", Format("csv"))


@pytest.mark.parametrize(
    ("value", "target", "message"),
    [
        ("x\ty", "tsv", "t.parquet, row 1: 'x.ty' has a tab or a line break"),
        ("x\ry", "tsv", "row 1: .* has a tab or a line break"),
        (b"\x00", "csv", "row 1: .* is of type bytes, which a text format can't hold"),
        (b"\x00", "jsonl", "row 1: .* is of type bytes, which JSON can't hold"),
        ([{"k": b"\x00"}], "tsv", "row 1: .* is of type bytes"),
    ],
)
def test_what_the_output_cannot_hold_is_found_before_scoring(tmp_path, value, target, message):
    schema = pa.Table.from_pylist([{"a": "x", "b": "y", "other": value}]).schema
    write(tmp_path / "t.parquet", [{"a": "x", "b": "y"}, {"a": "x", "b": "y", "other": value}], schema)
    with pytest.raises(DataError, match=message + ".*Choose another format"):
        check_table(tmp_path / "t.parquet", Format(target), ("a", "b"))
    assert check_table(tmp_path / "t.parquet", Format("parquet"), ("a", "b")).rows == 2


def test_parquet_takes_one_type_a_column(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROW_GROUP", 2)
    values = [None, 1, 2, 2.5, None]
    rows = [{"a": "x", "b": "y", "n": value, "empty": None} for value in values] + [
        {"a": "x", "b": "y", "late": [True]}
    ]
    schema = check_table(write(tmp_path / "t.jsonl", rows), Format("parquet"), ("a", "b")).schema
    assert {field.name: str(field.type) for field in schema} == {
        "a": "string",
        "b": "string",
        "n": "double",
        "empty": "string",
        "late": "list<item: bool>",
    }
    write(tmp_path / "mixed.jsonl", [*rows, {"a": "x", "b": "y", "n": "three"}])
    with pytest.raises(
        DataError, match=r"mixed.jsonl, lines 7 to 7, column 'n': the values are of several types.*Write \.jsonl"
    ):
        check_table(tmp_path / "mixed.jsonl", Format("parquet"), ("a", "b"))


@pytest.mark.parametrize("target", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_a_table_without_rows_stays_one(tmp_path, name, target):
    schema = pa.schema([("a", pa.string()), ("b", pa.string())])
    with open_writer(tmp_path / name, Format.of(name), ["a", "b"], schema):
        pass
    found = joined(tmp_path / name, tmp_path / f"out.{target}", [])
    assert (found.rows, found.texts) == (0, ())
    assert list(read_rows(tmp_path / f"out.{target}")) == []
    if target == "csv":
        assert (tmp_path / "out.csv").read_text() == ("score\n" if name == "t.jsonl" else "a,b,score\n")


# -- joining -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["csv", "tsv", "jsonl", "parquet", "csv.gz"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet", "t.jsonl.gz"])
def test_all_columns_are_kept_and_scores_come_back_as_float32(tmp_path, name, target, monkeypatch):
    monkeypatch.setattr(tables, "ROW_GROUP", 5)
    rows = rows_for("tsv" if "tsv" in target else name)
    scores = np.random.default_rng(0).normal(size=(len(rows), 2)).astype(np.float32)
    joined(write(tmp_path / name, rows), tmp_path / f"out.{target}", scores, ["x", "y"])
    read = list(read_rows(tmp_path / f"out.{target}"))
    assert [{name: row[name] for name in NAMES} for row in read] == rows
    assert list(read[0]) == [*NAMES, "x", "y"]
    assert np.array_equal(np.array([[row["x"], row["y"]] for row in read]).astype(np.float32), scores)
    if target == "parquet":
        groups = parquet.ParquetFile(tmp_path / "out.parquet").metadata
        assert [groups.row_group(index).num_rows for index in range(3)] == [
            5,
            5,
            len(rows) - 10 if len(rows) < 15 else 5,
        ]


def test_scores_have_no_more_digits_than_they_need():
    patterns = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32)
    edges = np.array([0.1, 1e-45, 3.4028235e38, -0.0, 1.17549435e-38, 16777216, 1 / 3], np.float32)
    scores = np.concatenate([patterns[np.isfinite(patterns)], edges])
    written = shortest(scores)
    assert np.array_equal(np.array(written, np.float64).astype(np.float32), scores)
    assert [repr(value) for value in shortest(edges)][:2] == ["0.1", "1e-45"]
    assert max(len(repr(value).replace("-", "").replace(".", "").split("e")[0].strip("0")) for value in written) <= 9
    assert json.dumps(shortest(np.array([0.1], np.float32))) == "[0.1]"


def test_parquet_keeps_its_types(tmp_path):
    source = datasets.Dataset.from_dict(
        {"a": ["x", "y"], "b": ["z", "w"], "when": [WHEN] * 2, "nested": [{"k": [1]}] * 2, "c": [0, 1]}
    ).cast_column("c", datasets.ClassLabel(names=["no", "yes"]))
    source.to_parquet(tmp_path / "t.parquet")
    joined(tmp_path / "t.parquet", tmp_path / "out.parquet", [[0.1], [0.2]])
    read = datasets.Dataset.from_parquet(str(tmp_path / "out.parquet"), cache_dir=str(tmp_path / "cache"))
    assert read.features == {**source.features, "score": datasets.Value("float32")}
    assert read.remove_columns("score").to_list() == source.to_list()
    joined(tmp_path / "t.parquet", tmp_path / "out.jsonl", [[0.1], [0.2]])
    assert (tmp_path / "out.jsonl").read_text().splitlines()[1] == (
        '{"a": "y", "b": "w", "when": "2020-01-01 00:00:00.000123", "nested": {"k": [1]}, "c": 1, "score": 0.2}'
    )
    joined(tmp_path / "t.parquet", tmp_path / "out.csv", [[0.1], [0.2]])
    assert (tmp_path / "out.csv").read_text().splitlines()[1] == 'x,z,2020-01-01 00:00:00.000123,"{""k"": [1]}",0,0.1'


def test_rows_of_a_jsonl_may_differ(tmp_path):
    rows = [{"a": "x", "b": "y"}, {"b": "y", "a": "x", "extra": True}, {"a": "x", "b": "y", "other": None}]
    write(tmp_path / "t.jsonl", rows)
    scores = [[1], [2], [3]]
    joined(tmp_path / "t.jsonl", tmp_path / "out.jsonl", scores)
    assert list(read_rows(tmp_path / "out.jsonl")) == [
        {**row, "score": float(index)} for index, row in enumerate(rows, 1)
    ]
    joined(tmp_path / "t.jsonl", tmp_path / "out.csv", scores)
    assert (tmp_path / "out.csv").read_text() == "a,b,extra,other,score\nx,y,,,1.0\nx,y,True,,2.0\nx,y,,,3.0\n"
    joined(tmp_path / "t.jsonl", tmp_path / "out.parquet", scores)
    assert [row["extra"] for row in read_rows(tmp_path / "out.parquet")] == [None, True, None]


def test_nothing_half_written_takes_a_files_place(tmp_path):
    (tmp_path / "out").write_text("before")

    def fail():
        with replacing(tmp_path / "out") as path:
            path.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "before"
    with replacing(tmp_path / "out") as path:
        path.write_text("whole")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "whole"


def test_rows_of_windows_are_taken_whatever_the_windows_sizes():
    rows = np.arange(20, dtype=np.float32).reshape(10, 2)
    for window in (1, 3, 10):
        take = taking(np.split(rows, range(window, 10, window)))
        assert np.array_equal(take(4), rows[:4])
        assert np.array_equal(take(1), rows[4:5])
        assert np.array_equal(take(5), rows[5:])
    whole = taking([rows])(10)
    assert np.array_equal(whole, rows)
