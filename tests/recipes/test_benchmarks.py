"""The benchmarks write what they measured, and the chart shows it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from conftest import SENTENCES, build_model, build_tokenizer
from datasets import Dataset

FOLDER = Path(__file__).parents[2] / "recipes" / "benchmarks"
TRAINING = {
    "work": "training",
    "data": "some/where/stsb/train.csv",
    "pairs_per_second": {
        "cross_trainer": 58.4,
        "sentence-transformers": 24.0,
        "Trainer": 25.0,
        "Trainer, grouped by length": 44.0,
    },
}
SCORING = {
    "work": "scoring",
    "data": "trecqa/train.csv",
    "pairs_per_second": {
        "cross_trainer": 159.0,
        "sentence-transformers, batch 16": 111.0,
        "sentence-transformers, batch 32": 108.0,
        "pipeline, batch 32": 89.0,
    },
}


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(monkeypatch, name, *argv):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, argv)])
    load(name).main()


@pytest.fixture
def files(tmp_path):
    """A model and some pairs, as the benchmarks read them."""
    build_model().save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    rows = {"a": SENTENCES, "b": SENTENCES[::-1], "label": [index % 2 for index in range(12)]}
    Dataset.from_dict(rows).to_csv(tmp_path / "pairs.csv", index=False)
    return tmp_path


def test_training_speeds_are_written_as_printed(files, monkeypatch, capsys):
    argv = [files / "pairs.csv", "--model", files / "model", "--steps", 1, "--rounds", 1, "--batch_size", 4]
    call(monkeypatch, "training", *argv, "--json", files / "training.json")
    (record,) = json.loads((files / "training.json").read_text())
    assert (record["work"], record["data"]) == ("training", str(files / "pairs.csv"))
    assert list(record["pairs_per_second"]) == list(TRAINING["pairs_per_second"])
    printed = capsys.readouterr().out
    for name, speed in record["pairs_per_second"].items():
        row = next(line for line in printed.splitlines() if line.startswith(f"{name}  "))
        assert row.removeprefix(name).split()[1] == f"{speed:.0f}"
    assert len(load("chart").speeds(record)) == 3


def test_scoring_speeds_are_written_as_printed(files, monkeypatch, capsys):
    argv = [files / "pairs.csv", "--model", files / "model", "--rounds", 1, "--batch_sizes", 32, "--documents", 0]
    call(monkeypatch, "scoring", *argv, "--json", files / "scoring.json")
    (record,) = json.loads((files / "scoring.json").read_text())
    assert (record["work"], record["data"]) == ("scoring", str(files / "pairs.csv"))
    printed = capsys.readouterr().out
    for name, speed in record["pairs_per_second"].items():
        row = next(line for line in printed.splitlines() if line.startswith(f"  {name}  "))
        assert row.strip().removeprefix(name).split()[0] == f"{speed:.1f}"
    assert len(load("chart").speeds(record)) == 3


def test_the_chart_compares_defaults():
    chart = load("chart")
    assert chart.speeds(TRAINING) == [58.4, 24.0, 25.0]
    assert chart.speeds(SCORING) == [159.0, 108.0, 89.0]
    without = {name: 1.0 for name in SCORING["pairs_per_second"] if not name.startswith("pipeline")}
    with pytest.raises(ValueError, match=r"scoring on trecqa/train.csv: 'pipeline, batch 32' wasn't measured"):
        chart.speeds({**SCORING, "pairs_per_second": without})


def test_the_chart_shows_the_speeds(tmp_path, monkeypatch):
    chart = load("chart")
    panels = chart.draw([TRAINING, SCORING]).axes
    assert [[bar.get_width() for bar in panel.patches] for panel in panels] == [
        [58.4, 24.0, 25.0],
        [159.0, 108.0, 89.0],
    ]
    for name, record in (("training", TRAINING), ("scoring", SCORING)):
        (tmp_path / f"{name}.json").write_text(json.dumps([record]))
    argv = [tmp_path / "training.json", tmp_path / "scoring.json"]
    for name in ("one.svg", "two.svg", "three.png"):
        call(monkeypatch, "chart", *argv, "-o", tmp_path / name)
    drawn = (tmp_path / "one.svg").read_text()
    for text in ("cross_trainer", "sentence-transformers", "58", "24", "159", "stsb/train.csv"):
        assert text in drawn
    assert (tmp_path / "two.svg").read_text() == drawn
    assert (tmp_path / "three.png").read_bytes().startswith(b"\x89PNG")
