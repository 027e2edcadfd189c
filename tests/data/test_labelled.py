"""Pairs and their labels from any shape of row, in chunks or at once."""

from __future__ import annotations

import pytest
import torch

from cross_trainer.data import labelled
from cross_trainer.data.columns import Columns
from cross_trainer.data.labelled import LabelledPairs
from cross_trainer.errors import DataError

LISTS = [
    {"q": "one", "docs": ["a", "b"], "labels": [1, 0]},
    {"q": "two", "docs": ["c"], "labels": [2]},
    {"q": "three", "docs": ["d", "e", "f"], "labels": [0, 1, 0]},
]


@pytest.mark.parametrize("chunk", [1, 2, 1000])
def test_lists_of_all_chunks_have_one_width(monkeypatch, chunk):
    monkeypatch.setattr(labelled, "CHUNK", chunk)
    pairs = LabelledPairs(LISTS, Columns("q", ("docs",), "labels", shape="list"))
    for _ in range(2):  # each reading starts anew
        assert list(pairs) == [*(("one", text) for text in "ab"), ("two", "c"), *(("three", text) for text in "def")]
        expected = [[1.0, 0.0, -100.0], [2.0, -100.0, -100.0], [0.0, 1.0, 0.0]]
        assert torch.equal(pairs.targets()["labels"], torch.tensor(expected))


def test_rows_without_texts_or_labels_are_refused():
    with pytest.raises(DataError, match="'input_ids' holds tokens"):
        LabelledPairs([{"input_ids": [1]}], Columns("input_ids", shape="tokens"))
    with pytest.raises(DataError, match="has no label to compare scores with"):
        LabelledPairs([{"a": "one", "b": "two"}], Columns("a", ("b",)))
    assert list(LabelledPairs([{"a": "q", "b": "x", "c": "y"}], Columns("a", ("b", "c"), shape="tuple"))) == [
        ("q", "x"),
        ("q", "y"),
    ]
