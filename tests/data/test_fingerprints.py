"""Pairs are known again by their fingerprints, in any order and shape, and a notable share of them is refused."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from cross_trainer.data import fingerprints as module
from cross_trainer.data.columns import Columns
from cross_trainer.data.fingerprints import Recorder, check_unseen, fingerprints, fingerprints_of, joined, trained_on
from cross_trainer.errors import DataError

PAIRS = Columns("a", ("b",), "label")
LISTS = Columns("a", ("docs",), "labels", shape="list")
TUPLES = Columns("a", ("b", "c"), shape="tuple")


def rows_of(numbers):
    return [{"a": f"query {number}", "b": f"answer {number}", "label": number % 2} for number in numbers]


def test_a_pair_has_one_number_whatever_its_order():
    found = fingerprints([("a", "b"), ("b", "a"), ("ab", ""), ("a", "c"), ("漢", "🎸")])
    assert found.dtype == np.uint64
    assert found[0] == found[1]
    assert len(set(found.tolist())) == 4
    assert found[0] == fingerprints([("a", "b")])[0] == 11797832347080049151


@pytest.mark.parametrize("kind", [list, Dataset.from_list])
def test_each_document_makes_a_pair(kind):
    expected = fingerprints([("q", "x"), ("q", "y")])
    assert (fingerprints_of(kind([{"a": "q", "docs": ["x", "y"], "labels": [1, 0]}]), LISTS) == expected).all()
    assert (fingerprints_of(kind([{"a": "q", "b": "x", "c": "y"}]), TUPLES) == expected).all()
    assert fingerprints_of(kind([{"input_ids": [1, 2]}]), Columns("input_ids", shape="tokens")).size == 0


def test_a_notable_share_is_refused():
    known = joined(fingerprints_of(rows_of(range(50)), PAIRS))
    check_unseen(rows_of(range(50, 100)), PAIRS, known)
    check_unseen(rows_of([*range(50, 100), 1, 2]), PAIRS, known)  # repetitions by chance
    with pytest.raises(
        DataError, match=r"trained on 9 of 59 of these pairs, the first in row 50: \('query 1', 'answer 1'"
    ):
        check_unseen(rows_of([*range(50, 100), *range(1, 10)]), PAIRS, known)
    lists = [{"a": "q", "docs": ["x", "y"], "labels": [1, 0]}, {"a": "query 3", "docs": ["answer 3"], "labels": [1]}]
    with pytest.raises(DataError, match="1 of 3 of these pairs, the first in row 1"):
        check_unseen(lists, LISTS, known)
    check_unseen(rows_of(range(50)), PAIRS, joined())


def test_of_many_pairs_a_sample_is_kept(monkeypatch):
    monkeypatch.setattr(module, "KEPT", 200)
    known = joined(fingerprints_of(rows_of(range(1000)), PAIRS), None)
    assert len(known) == 200
    with pytest.raises(DataError) as raised:
        check_unseen(rows_of(range(500, 1500)), PAIRS, known)
    trained, comparable = [int(word) for word in str(raised.value).split() if word.isdigit()][:2]
    assert trained / comparable == pytest.approx(0.5, abs=0.1)  # as among all
    assert trained_on(fingerprints_of(rows_of(range(2000, 3000)), PAIRS), known).size == 0


def test_rows_of_a_stream_are_remembered(monkeypatch):
    monkeypatch.setattr(module, "KEPT", 20)
    checked = []
    record = Recorder(lambda row, number: checked.append(number), PAIRS)
    for number, row in enumerate(rows_of(range(100))):
        record(row, number)
    assert checked == list(range(100))
    assert (record.fingerprints() == joined(fingerprints_of(rows_of(range(100)), PAIRS))).all()
    assert len(record.seen) <= 40
