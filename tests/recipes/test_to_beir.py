"""Judged rows of any shape become a collection that is read as such."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from cross_trainer import Collection

RECIPES = Path(__file__).parents[2] / "recipes"
PAIRS = [
    {"query": "a cat", "answer": "it\tpurrs", "label": 2},
    {"query": "a cat", "answer": "it barks", "label": 0},
    {"query": "a dog", "answer": "it barks", "label": 1},
]
LISTS = [
    {"query": "a cat", "documents": ["it\tpurrs", "it barks"], "labels": [2, 0]},
    {"query": "a dog", "documents": ["it barks"], "labels": [1]},
]


@pytest.fixture
def convert(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    recipe = importlib.import_module("to_beir")

    def call(*argv):
        monkeypatch.setattr(sys, "argv", ["to_beir.py", *map(str, argv)])
        recipe.run(recipe.main)

    return call


@pytest.mark.parametrize("rows", [PAIRS, LISTS])
def test_rows_become_a_collection(tmp_path, convert, rows):
    Dataset.from_list(rows).to_json(tmp_path / "rows.jsonl")
    convert(tmp_path / "rows.jsonl", tmp_path / "folder", "--split", "dev")
    found = Collection(tmp_path / "folder", candidates=lambda queries, k: [[1, 0]] * len(queries))
    assert found.qrels == {"q0": {"d0": 2, "d1": 0}, "q1": {"d1": 1}}
    assert found[:] == [
        {"query": "a cat", "documents": ["it barks", "it\tpurrs"], "labels": [0, 2], "num_relevant": 1},
        {"query": "a dog", "documents": ["it barks", "it\tpurrs"], "labels": [1, 0], "num_relevant": 1},
    ]


def test_labels_are_grades(tmp_path, convert, capsys):
    Dataset.from_list([{**row, "label": row["label"] / 2} for row in PAIRS[1:]]).to_json(tmp_path / "rows.jsonl")
    with pytest.raises(SystemExit, match="2"):
        convert(tmp_path / "rows.jsonl", tmp_path / "folder")
    assert "labels from 0 to 0.5 are no grades of relevance" in capsys.readouterr().err
    assert not (tmp_path / "folder").exists()
