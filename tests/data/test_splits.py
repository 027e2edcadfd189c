"""Data sets from folders and files, and one line of error where neither those nor the Hub have them."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from datasets import Dataset

from cross_trainer.data.splits import load_split, load_splits
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


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_folder_has_one_file_a_split(tmp_path, suffix):
    write(tmp_path / f"train.{suffix}")
    write(tmp_path / f"dev.{suffix}", ROWS[:3])
    (tmp_path / "notes.txt").write_text("nothing of ours")
    splits = load_splits(str(tmp_path))
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 20, "validation": 3}
    # Neither "null" nor an empty field turns into a missing text.
    assert splits["train"].to_list() == ROWS


def test_a_file_goes_by_its_split_column(tmp_path):
    quoted = [
        {**row, "a": f'an "odd {row["a"]}', "split": "dev" if index < 4 else "train"} for index, row in enumerate(ROWS)
    ]
    path = tmp_path / "all.tsv.gz"
    write(path, quoted)
    with gzip.open(path, "rt") as file:
        assert file.readline() == "a\tb\tlabel\tsplit\n"
    splits = load_splits(str(path))
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 16, "validation": 4}
    assert splits["train"]["a"][0] == 'an "odd text 4'


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
    with pytest.raises(DataError, match=r"is no table: expected a name that ends in \.csv"):
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
    with pytest.raises(DataError, match="No file of a split"):
        load_splits(str(tmp_path))
    write(tmp_path / "test.csv")
    with pytest.raises(DataError, match=r"has the splits \['test'\], but no 'train'"):
        load_splits(str(tmp_path))
    write(tmp_path / "all.csv", [{**row, "split": "held"} for row in ROWS])
    with pytest.raises(DataError, match="Column 'split', row 0: 'held' is no split"):
        load_splits(str(tmp_path / "all.csv"))


def test_without_the_hub_one_line_names_the_ways_out(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConfigurationError, match=r"neither a file nor a folder, and the Hub can't be reached.*folder or a file.*--demo"
    ):
        load_splits("nobody/has-this-set", "pair-class")
