"""The synthetic search set: its shape, that it can be trained on, and that counting words doesn't solve it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rankings import HeldOut

RECIPES = Path(__file__).parents[2] / "recipes"

import demo_search  # noqa: E402
import demo_words  # noqa: E402

SPLITS = ("train", "validation", "test")
QUERIES = demo_search.search_queries()
FINGERPRINT = """
import hashlib, json, demo_search as demo
rows = [list(rows) for rows in demo.search_queries().values()]
print(hashlib.sha256(json.dumps([rows, demo.search_collection()[1]]).encode()).hexdigest())
"""


@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_ragged_and_graded(split):
    rows = list(QUERIES[split])
    assert all(len(row["documents"]) == len(row["labels"]) == len(set(row["documents"])) for row in rows)
    assert all(2 in row["labels"] and 0 in row["labels"] for row in rows)
    assert {label for row in rows for label in row["labels"]} == {0, 1, 2}
    assert len({len(row["labels"]) for row in rows}) >= 4
    assert len({row["query"] for row in rows}) == len(rows) >= 100


def test_there_is_enough_to_train_on():
    assert set(QUERIES) == set(SPLITS)
    assert sum(len(row["labels"]) for row in QUERIES["train"]) >= 2000


def test_the_collection_holds_every_positive_and_answers_nobody_labelled():
    dataset, corpus = demo_search.search_collection()
    assert dataset.column_names == ["query", "positive"]
    assert len(set(corpus)) == len(corpus) >= 2000
    assert set(dataset["positive"]) <= set(corpus)
    train = {row["query"]: row for row in QUERIES["train"]}
    assert {(row["query"], row["positive"]) for row in dataset} == {
        (query, text)
        for query, row in train.items()
        for text, label in zip(row["documents"], row["labels"], strict=True)
        if label == 2
    }


def test_held_out_queries_ask_about_other_places():
    kinds = {split: demo_words.NAMES[split][2].split(", ") for split in SPLITS}
    for split in SPLITS:
        queries = QUERIES[split]["query"]
        assert all(any(kind in query for kind in kinds[split]) for query in queries)
        others = [kind for other in SPLITS if other != split for kind in kinds[other]]
        assert not any(kind in query for kind in others for query in queries)


def test_held_out_documents_are_new():
    trained = {document for row in QUERIES["train"] for document in row["documents"]}
    assert not any(
        document in trained for split in SPLITS[1:] for row in QUERIES[split] for document in row["documents"]
    )


@pytest.mark.parametrize("split", SPLITS)
def test_every_query_has_hard_negatives_that_name_its_place(split):
    heads, _, kinds = demo_words.NAMES[split]
    shares = []
    for row in QUERIES[split]:
        (kind,) = [kind for kind in kinds.split(", ") if kind in row["query"]]
        town = next(word for word in row["query"].split() if word.startswith(tuple(heads.split())))
        irrelevant = [text for text, label in zip(row["documents"], row["labels"], strict=True) if label == 0]
        shares.append(np.mean([f"{town} {kind}" in text for text in irrelevant]))
    assert np.mean([share > 0 for share in shares]) > 0.98
    assert 0.3 < np.mean(shares) < 0.6  # and others that don't


@pytest.mark.parametrize("split", SPLITS)
def test_bm25_finds_something_and_leaves_much_to_learn(split):
    held_out = HeldOut.of(split, QUERIES[split])
    held_out.add_first_stage("bm25")
    rng = np.random.default_rng(0)
    held_out.add("chance", np.where(held_out.labels == -100, -100, rng.random(held_out.labels.shape)))
    found = {name: held_out.means(name)["ndcg@10"] for name in ("BM25", "chance")}
    assert found["chance"] + 0.02 < found["BM25"] < 0.75


def test_every_process_sees_the_same_rows(capsys):
    exec(FINGERPRINT, {})
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(RECIPES)}
    output = subprocess.run(
        [sys.executable, "-c", FINGERPRINT], env=environment, capture_output=True, text=True, check=True
    )
    assert output.stdout == capsys.readouterr().out


def test_it_says_that_it_is_synthetic():
    assert all(
        "ynthetic" in function.__doc__ for function in (demo_search.search_queries, demo_search.search_collection)
    )
    assert "ynthetic" in demo_search.__doc__
