"""Mining against examples worked by hand, BM25 against its formula, and every way in which it can be called wrongly."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SENTENCES, build_model, build_tokenizer
from datasets import ClassLabel, Dataset, Features, List, Value, load_from_disk
from datasets.arrow_dataset import Column

import cross_trainer
from cross_trainer import (
    Columns,
    ConfigurationError,
    CrossEncoder,
    DataError,
    DenseRetriever,
    HybridRetriever,
    MinedNegatives,
    MiningStatistics,
    MissingDependencyError,
    PairCollator,
    mine_hard_negatives,
)
from cross_trainer.data.columns import resolve_columns
from cross_trainer.data.survey import survey

FATES = ("positives", "duplicates", "outside_range", "false_negatives", "outside_scores", "taken", "left")
FORMATS = ("triplet", "n-tuple", "labeled-pair", "labeled-list")


class Ranking:
    """A retriever that answers from a table and remembers what it was asked."""

    def __init__(self, **rankings):
        self.rankings = rankings
        self.asked = []

    def __call__(self, queries, k):
        self.asked.append((list(queries), k))
        return [self.rankings.get(query, ())[:k] for query in queries]


class Scores:
    """A scorer that reads a document's score off a table and remembers the pairs it was given."""

    def __init__(self, **scores):
        self.scores = scores
        self.calls = []

    def __call__(self, pairs):
        self.calls.append(list(pairs))
        return [self.scores[document] for _, document in pairs]


class OnDemand(Sequence):
    """A corpus that remembers which of its documents were read."""

    def __init__(self, texts):
        self.texts = texts
        self.read = Counter()

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        self.read[index] += 1
        return self.texts[index]


def negatives(mined):
    """query -> its negatives, from triplets with one positive a query."""
    found = {}
    for row in mined.dataset:
        query, _, negative = row.values()
        found.setdefault(query, []).append(negative)
    return found


def fates(mined):
    values = dataclasses.asdict(mined.statistics)
    return {name: values[name] for name in FATES if values[name]}


def adds_up(mined):
    values = dataclasses.asdict(mined.statistics)
    return values["candidates"] == sum(values[name] for name in FATES)


def words(count, seed, vocabulary=40, longest=9):
    """Texts of random words; some occur twice."""
    rng = np.random.default_rng(seed)
    return [
        " ".join(f"word{index}" for index in rng.integers(vocabulary, size=rng.integers(1, longest)))
        for _ in range(count)
    ]


def some_pairs(count=30, seed=1):
    queries, documents = words(count, seed, longest=4), words(count, seed + 1)
    return [(queries[index % (count * 2 // 3)], document) for index, document in enumerate(documents)]


# -- what becomes of a candidate ---------------------------------------------------------------------------------------

CORPUS = ["The  Answer", "a", "b", "A ", "the answer", "c", "question", "d"]


def mine_by_hand(ranking=(4, 1, 2, 3, 0, 6, 5, 7), **options):
    retriever = Ranking(question=ranking)
    mined = mine_hard_negatives([("question", "the answer")], CORPUS, retriever=retriever, **options)
    assert adds_up(mined)
    return mined, retriever


def test_every_candidate_is_accounted_for():
    mined, _ = mine_by_hand(num_negatives=2, range_min=1, range_max=8)
    assert isinstance(mined, MinedNegatives)
    assert isinstance(mined.dataset, Dataset)
    # In order of rank: positive, a (rank 0), b (1), a again, positive again, the query itself, c (2), d (3).
    assert mined.dataset[:] == {
        "text_1": ["question"] * 2,
        "text_2": ["the answer"] * 2,
        "negative": ["b", "c"],
    }
    found = mined.statistics
    assert found.seconds > 0
    assert dataclasses.replace(found, seconds=0.0) == MiningStatistics(
        queries=1, candidates=8, positives=3, duplicates=1, outside_range=1, taken=2, left=1
    )


@pytest.mark.parametrize(
    ("options", "expected", "outside"),
    [
        ({}, "abc", 0),
        ({"num_negatives": 1}, "a", 0),
        ({"num_negatives": 9}, "abcdef", 0),
        ({"range_min": 2}, "cde", 2),
        ({"range_min": 1, "range_max": 4}, "bcd", 3),
        ({"range_min": 5, "num_negatives": 2}, "f", 5),
        ({"range_max": 3}, "abc", 2),
    ],
)
def test_the_window_of_ranks_and_the_number_taken(options, expected, outside):
    mined = mine_hard_negatives([("q", "p")], list("abcdef"), retriever=Ranking(q=range(6)), **options)
    assert negatives(mined) == {"q": list(expected)}
    assert mined.statistics.outside_range == outside


def test_places_of_positives_are_made_up_for_and_those_of_repeats_are_not():
    # 3 ranks, 1 positive and the query make 5 candidates: positive, a, b, a again, positive again.
    mined, retriever = mine_by_hand(range_max=3)
    assert retriever.asked == [(["question"], 5)]
    assert negatives(mined) == {"question": ["a", "b"]}
    mined, retriever = mine_by_hand(ranking=(4, 6, 1, 2, 5, 7), range_max=3)
    assert negatives(mined) == {"question": ["a", "b", "c"]}
    mined, retriever = mine_by_hand(range_max=100)
    assert retriever.asked == [(["question"], len(CORPUS))]


def test_default_range_is_100_ranks():
    corpus = [f"text {index}" for index in range(300)]
    retriever = Ranking(q=range(300))
    mined = mine_hard_negatives([("q", "p")], corpus, retriever=retriever, range_min=5, num_negatives=100)
    assert retriever.asked == [(["q"], 107)]
    assert negatives(mined) == {"q": corpus[5:105]}
    assert fates(mined) == {"outside_range": 7, "taken": 100}


def test_candidates_beyond_k_are_not_read():
    mined, _ = mine_by_hand(range_max=3)
    whole = mine_hard_negatives(
        [("question", "the answer")], CORPUS, range_max=3, retriever=lambda queries, k: [[4, 1, 2, 3, 0, 6, 5, 7]]
    )
    assert whole.dataset[:] == mined.dataset[:]
    assert whole.statistics.candidates == 5


def test_rows_of_equal_queries_are_one_query_with_all_their_positives():
    rows = [("Where  is it", "HERE"), ("else", "p"), ("where is IT", "there"), ("where is it", "here ")]
    retriever = Ranking(**{"Where  is it": [0, 1, 2], "else": [3, 2]})
    mined = mine_hard_negatives(rows, ["here", "There", "far", "p"], retriever=retriever, output_format="labeled-list")
    assert mined.dataset[:] == {
        "text_1": ["Where  is it", "else"],
        "documents": [["HERE", "there", "far"], ["p", "far"]],
        "labels": [[1, 1, 0], [1, 0]],
    }
    assert (mined.statistics.queries, mined.statistics.positives) == (2, 3)
    assert retriever.asked == [(["Where  is it", "else"], 4)]


def test_labels_above_0_mark_positives_and_the_corpus_defaults_to_all_documents():
    rows = Dataset.from_dict(
        {
            "id": ["1", "2", "3", "4", "5"],
            "question": ["red fox", "red fox", "red fox", "blue sky", "no positive"],
            "answer": ["fox one", "fox two", "FOX THREE", "sky high", "sky low"],
            "score": [2.0, 0.0, 0.25, 1.0, -1.0],
        }
    )
    mined = mine_hard_negatives(rows, output_format="labeled-list")
    assert mined.dataset[:] == {
        "question": ["red fox", "blue sky"],
        "documents": [["fox one", "FOX THREE", "fox two"], ["sky high", "sky low"]],
        "labels": [[1, 1, 0], [1, 0]],
    }
    assert mined.statistics.queries == 2


def test_the_corpus_of_a_data_set_holds_each_document_once():
    rows = [("red fox", "one"), ("blue fox", "a fox"), ("grey fox", "A  Fox")]
    mined = mine_hard_negatives(rows)
    assert negatives(mined) == {"red fox": ["a fox"]}
    assert fates(mined) == {"positives": 2, "taken": 1}


def test_columns_can_be_named():
    rows = Dataset.from_dict({"doc": ["p", "n"], "ask": ["q", "q"], "label": [1, 1], "relevant": [1, 0]})
    options = {"corpus": ["p", "n"], "retriever": Ranking(q=[0, 1]), "output_format": "labeled-list"}
    mined = mine_hard_negatives(rows, columns=("ask", "doc", "relevant"), **options)
    assert mined.dataset[:] == {"ask": ["q"], "documents": [["p", "n"]], "labels": [[1, 0]]}
    again = mine_hard_negatives(rows, columns=Columns("ask", ("doc",), "relevant"), **options)
    assert again.dataset[:] == mined.dataset[:]
    with pytest.raises(DataError, match="No negatives for any of 1 queries"):
        mine_hard_negatives(rows, columns=("ask", "doc"), **options)


def test_queries_that_lose_all_or_too_many_candidates():
    rows = [("none", "p"), ("one", "p"), ("two", "p")]
    options = {"retriever": Ranking(one=[0, 1], two=[2, 1]), "num_negatives": 2}
    mined = mine_hard_negatives(rows, ["p", "a", "b"], **options)
    assert negatives(mined) == {"one": ["a"], "two": ["b", "a"]}
    assert (mined.statistics.queries_without_negatives, mined.statistics.queries_with_too_few) == (1, 1)
    assert fates(mined) == {"positives": 1, "taken": 3}
    tuples = mine_hard_negatives(rows, ["p", "a", "b"], output_format="n-tuple", **options)
    assert tuples.dataset[:] == {"text_1": ["two"], "text_2": ["p"], "negative": ["b"], "negative_2": ["a"]}
    assert (tuples.statistics.queries_without_negatives, tuples.statistics.queries_with_too_few) == (1, 1)
    assert fates(tuples) == {"positives": 1, "taken": 2, "left": 1}


# -- scores ------------------------------------------------------------------------------------------------------------

SCORES = {"high": 0.75, "low": 0.5, "a": 0.4375, "b": 0.875, "c": 0.625, "d": -0.125, "e": 0.25}


def mine_by_score(scores=SCORES, **options):
    corpus = list("abcde")
    rows = [("q", "high"), ("q", "low")]
    options = {"num_negatives": 9, "output_format": "labeled-list", "range_max": 20, **options}
    mined = mine_hard_negatives(rows, corpus, retriever=Ranking(q=range(5)), scorer=Scores(**scores), **options)
    assert adds_up(mined)
    (documents,) = mined.dataset["documents"][:]
    return "".join(documents[2:]), {name: count for name, count in fates(mined).items() if name != "taken"}


@pytest.mark.parametrize(
    ("options", "expected", "dropped"),
    [
        ({}, "bcaed", {}),  # hardest first
        ({"num_negatives": 2}, "bc", {"left": 3}),
        # low - 0.125 = 0.375
        ({"absolute_margin": 0.125}, "ed", {"false_negatives": 3}),
        # high - 0.125 = 0.625, which c has: only what scores above is dropped
        ({"absolute_margin": 0.125, "margin_to": "highest"}, "caed", {"false_negatives": 1}),
        ({"absolute_margin": 0}, "aed", {"false_negatives": 2}),
        # 0.5 - 0.125 = 0.375; 0.75 - 0.1875 = 0.5625
        ({"relative_margin": 0.25}, "ed", {"false_negatives": 3}),
        ({"relative_margin": 0.25, "margin_to": "highest"}, "aed", {"false_negatives": 2}),
        # the tighter of 0.375 and 0.25, which e has
        ({"absolute_margin": 0.125, "relative_margin": 0.5}, "ed", {"false_negatives": 3}),
        ({"absolute_margin": 0.375, "relative_margin": 0.5}, "d", {"false_negatives": 4}),
        ({"min_score": 0.25}, "bcae", {"outside_scores": 1}),
        ({"max_score": 0.625}, "caed", {"outside_scores": 1}),
        ({"min_score": 0, "max_score": 0.5}, "ae", {"outside_scores": 3}),
        # what a margin drops is no score outside
        (
            {"absolute_margin": 0.0625, "max_score": 0.4, "min_score": 0},
            "e",
            {"false_negatives": 2, "outside_scores": 2},
        ),
        ({"range_min": 1, "range_max": 4, "num_negatives": 3}, "bcd", {"outside_range": 2}),
    ],
)
def test_margins_and_score_limits(options, expected, dropped):
    assert mine_by_score(**options) == (expected, dropped)


def test_a_relative_margin_lies_below_positives_of_negative_score():
    scores = {"high": 3.0, "low": -1.0, "a": -1.0, "b": -1.25, "c": -1.5, "d": -1.75, "e": 0.0}
    assert mine_by_score(scores, relative_margin=0.5) == ("cd", {"false_negatives": 3})


def test_equal_scores_keep_the_order_of_ranks():
    assert mine_by_score(dict.fromkeys(SCORES, 0.5))[0] == "abcde"


def test_without_a_scorer_ranks_decide():
    mined = mine_hard_negatives([("q", "p")], list("abcde"), retriever=Ranking(q=[3, 0, 4]), num_negatives=2)
    assert negatives(mined) == {"q": ["d", "a"]}


def test_each_batch_is_scored_in_one_call_with_its_positives_and_its_window():
    scorer = Scores(**dict.fromkeys("pxabcd", 0.0))
    rows = [("one", "p"), ("none", "p"), ("two", "p"), ("two", "x")]
    retriever = Ranking(one=[0, 1, 2, 3], two=[3, 2, 1, 0])
    mine_hard_negatives(
        rows, list("abcd"), retriever=retriever, scorer=scorer, range_max=2, num_negatives=1, batch_size=2
    )
    assert retriever.asked == [(["one", "none"], 4), (["two"], 4)]
    assert scorer.calls == [
        [("one", "p"), ("one", "a"), ("one", "b")],
        [("two", "p"), ("two", "x"), ("two", "d"), ("two", "c")],
    ]


def test_a_batch_without_candidates_is_not_scored():
    scorer = Scores(p=1.0, a=0.0)
    mine_hard_negatives([("none", "p"), ("one", "p")], ["a"], retriever=Ranking(one=[0]), scorer=scorer, batch_size=1)
    assert scorer.calls == [[("one", "p"), ("one", "a")]]


def test_a_cross_encoder_scores(tmp_path, tokenizer):
    build_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = CrossEncoder(str(tmp_path))
    corpus = ["the dog runs", "a person is cooking", "kids have lunch", "the sky is blue"]
    rows = [("how do i learn to cook", "a person is cooking"), ("who runs", "the dog runs")]
    mined = mine_hard_negatives(
        rows, corpus, retriever=lambda queries, k: [range(4)] * len(queries), scorer=encoder.predict, num_negatives=9
    )
    for query, positive in rows:
        others = [text for text in corpus if text != positive]
        scores = encoder.predict([(query, text) for text in others])
        assert negatives(mined)[query] == [others[index] for index in np.argsort(-scores)]
    assert [positive for _, positive in rows] == list(dict.fromkeys(mined.dataset["text_2"]))


# -- sampling and batches ----------------------------------------------------------------------------------------------


def mine_random(**options):
    queries = [f"q{index}" for index in range(12)]
    corpus = [f"text {index}" for index in range(40)]
    retriever = Ranking(**{query: range(40) for query in queries})
    rows = [(query, "p") for query in queries]
    options = {"sampling_strategy": "random", "num_negatives": 4, "range_min": 10, "range_max": 30, **options}
    return negatives(mine_hard_negatives(rows, corpus, retriever=retriever, **options)), corpus


def test_random_negatives_follow_from_the_seed_alone():
    first, corpus = mine_random()
    for batch_size in (1, 5, 12):
        assert mine_random(batch_size=batch_size)[0] == first
    assert mine_random(seed=1)[0] != first
    assert len(set(map(tuple, first.values()))) == len(first)
    for drawn in first.values():
        assert len(set(drawn)) == 4
        assert set(drawn) <= set(corpus[10:30])
        assert drawn == sorted(drawn)
    drawn = itertools.chain(*(texts for seed in range(10) for texts in mine_random(seed=seed)[0].values()))
    assert set(drawn) == set(corpus[10:30])
    assert mine_random(sampling_strategy="top")[0] == dict.fromkeys(first, corpus[10:14])


def test_random_negatives_are_drawn_from_what_the_limits_leave():
    corpus = [f"text {index}" for index in range(40)]
    scores = Scores(p=1.0, **{text: index / 40 for index, text in enumerate(corpus)})
    drawn = {}
    for seed in range(10):
        found, _ = mine_random(scorer=scores, max_score=0.5, seed=seed)
        drawn.update(dict.fromkeys(itertools.chain(*found.values())))
    assert set(drawn) == set(corpus[10:21])


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("sampling_strategy", ["top", "random"])
def test_batches_change_nothing(output_format, sampling_strategy):
    def mine(batch_size):
        mined = mine_hard_negatives(
            some_pairs(),
            words(80, 3),
            range_min=1,
            range_max=7,
            num_negatives=3,
            relative_margin=0.125,
            min_score=0.125,
            scorer=lambda pairs: [zlib.crc32(" ".join(pair).encode()) / 2**32 for pair in pairs],
            output_format=output_format,
            sampling_strategy=sampling_strategy,
            batch_size=batch_size,
        )
        assert adds_up(mined)
        return mined.dataset[:], dataclasses.replace(mined.statistics, seconds=0.0)

    rows, statistics = mine(256)
    assert all(getattr(statistics, name) for name in (*FATES, "queries_with_too_few", "queries_without_negatives"))
    for batch_size in (1, 2, 7):
        assert mine(batch_size) == (rows, statistics)


def test_a_neighbour_with_many_positives_changes_nothing():
    # Alone, "q" asks for 2 ranks, its positive and itself. Beside "many" the retriever returns more, which isn't read.
    corpus = ["A", "a", "b", "B", "c", "d"]
    rows = [("q", "p"), *(("many", f"p{index}") for index in range(9))]
    retriever = Ranking(q=range(6), many=range(6))
    options = {"retriever": retriever, "range_max": 2, "num_negatives": 2}
    alone = mine_hard_negatives(rows[:1], corpus, **options)
    beside = mine_hard_negatives(rows, corpus, output_format="labeled-list", **options)
    assert negatives(alone) == {"q": ["A", "b"]}
    assert fates(alone) == {"duplicates": 2, "taken": 2}
    assert beside.dataset[0]["documents"] == ["p", "A", "b"]
    assert beside.statistics.candidates == 4 + 6


# -- lists -------------------------------------------------------------------------------------------------------------

LISTS = [
    {"question": "q", "documents": ["good", "better", "bad"], "labels": [1, 2, 0]},
    {"question": "r", "documents": ["worse", "best"], "labels": [0, 3]},
    {"question": "Q ", "documents": ["BETTER", "fair"], "labels": [3, 1]},
]


def mine_lists(output_format, rows=LISTS, **options):
    retriever = Ranking(q=[0, 1], r=[1, 0])
    options = {"retriever": retriever, "num_negatives": 2, "output_format": output_format, **options}
    return mine_hard_negatives(rows, ["a", "b"], **options).dataset


def test_positives_of_lists_keep_their_grades():
    assert mine_lists("labeled-list")[:] == {
        "question": ["q", "r"],
        "documents": [["good", "better", "fair", "a", "b"], ["best", "b", "a"]],
        "labels": [[1, 3, 1, 0, 0], [3, 0, 0]],
    }
    pairs = mine_lists("labeled-pair")
    assert pairs.column_names == ["question", "document", "label"]
    assert [tuple(row.values()) for row in pairs][:5] == [
        ("q", "good", 1),
        ("q", "better", 3),
        ("q", "fair", 1),
        ("q", "a", 0),
        ("q", "b", 0),
    ]


def test_positives_of_lists_are_named_as_such_in_tuples():
    triplets, tuples = mine_lists("triplet"), mine_lists("n-tuple")
    assert triplets.column_names == ["question", "positive", "negative"]
    assert [tuple(row.values()) for row in triplets][-2:] == [("r", "best", "b"), ("r", "best", "a")]
    assert tuples.column_names == ["question", "positive", "negative", "negative_2"]
    assert [tuple(row.values()) for row in tuples][-1] == ("r", "best", "b", "a")
    assert resolve_columns(tuples).shape == "tuple"


@pytest.mark.parametrize(
    ("labels", "kept", "kind"),
    [([1, 2, 0], [1, 2], "int64"), ([0.5, 1.5, 0.0], [0.5, 1.5], "float64"), ([1, 0.5, 0], [1.0, 0.5], "float64")],
)
def test_labels_of_lists_stay_integers_or_floats(labels, kept, kind):
    rows = [{"question": "q", "documents": ["good", "better", "bad"], "labels": labels}]
    mined = mine_lists("labeled-list", rows)
    assert mined.features["labels"] == List(Value(kind))
    assert mined[0]["labels"] == [*kept, 0, 0]
    assert all(type(label) is type(kept[0]) for label in mined[0]["labels"])


def test_lists_are_mined_as_their_pairs_are():
    pairs = [
        {"question": row["question"], "document": document, "label": label}
        for row in LISTS
        for document, label in zip(row["documents"], row["labels"], strict=True)
    ]
    for output_format in FORMATS:
        lists, own = mine_lists(output_format), mine_lists(output_format, pairs)
        same = ["label", "labels"] if output_format.startswith("labeled") else []
        texts = [name for name in own.column_names if name not in same]
        renamed = own.rename_column("document", "positive") if "negative" in own.column_names else own
        assert renamed.column_names == lists.column_names
        for name, other in zip(texts, renamed.column_names, strict=False):
            assert own[name][:] == lists[other][:]
    graded = mine_lists("labeled-list", pairs)["labels"][:]  # a pair's label only says whether it is a positive
    assert graded == [[1, 1, 1, 0, 0], [1, 0, 0]]


def test_the_corpus_of_lists_is_all_their_documents():
    rows = [
        {"query": "red fox", "documents": ["one", "a fox"], "labels": [1, 0]},
        {"query": "grey fox", "documents": ["two", "A  Fox", "some foxes and a fox"], "labels": [1, 0, 0]},
    ]
    mined = mine_hard_negatives(rows)
    assert [(row["query"], row["negative"]) for row in mined.dataset] == [
        ("red fox", "a fox"),
        ("red fox", "some foxes and a fox"),
        ("grey fox", "a fox"),
        ("grey fox", "some foxes and a fox"),
    ]


def test_the_margin_of_a_list_is_measured_from_its_positives():
    scorer = Scores(good=0.5, better=0.75, fair=1.0, best=1.0, a=0.25, b=0.5)
    mined = mine_lists("labeled-list", scorer=scorer, absolute_margin=0.125)
    assert mined["documents"][:] == [["good", "better", "fair", "a"], ["best", "b", "a"]]


@pytest.mark.parametrize("answer", [[[1, 0], [0]], [np.array([1, 0]), np.array([0])]])
def test_tensors_are_read_as_what_they_hold(answer):
    tensors = [torch.tensor(np.asarray(row)) for row in answer]
    mined = mine_hard_negatives(
        [("q", "p"), ("r", "p")],
        ["a", "b"],
        retriever=lambda queries, k: tensors,
        scorer=lambda pairs: torch.full((len(pairs),), 0.5, requires_grad=True),
    )
    assert negatives(mined) == {"q": ["b", "a"], "r": ["a"]}


# -- output ------------------------------------------------------------------------------------------------------------


def mine_format(output_format):
    rows = [{"question": "q", "answer": "p1"}, {"question": "q", "answer": "p2"}, {"question": "r", "answer": "p3"}]
    return mine_hard_negatives(
        rows, ["a", "b"], retriever=Ranking(q=[0, 1], r=[1, 0]), num_negatives=2, output_format=output_format
    ).dataset


def test_output_formats():
    triplets = [
        ("q", "p1", "a"),
        ("q", "p1", "b"),
        ("q", "p2", "a"),
        ("q", "p2", "b"),
        ("r", "p3", "b"),
        ("r", "p3", "a"),
    ]
    dataset = mine_format("triplet")
    assert dataset.column_names == ["question", "answer", "negative"]
    assert [tuple(row.values()) for row in dataset] == triplets
    dataset = mine_format("n-tuple")
    assert dataset.column_names == ["question", "answer", "negative", "negative_2"]
    assert [tuple(row.values()) for row in dataset] == [
        ("q", "p1", "a", "b"),
        ("q", "p2", "a", "b"),
        ("r", "p3", "b", "a"),
    ]
    dataset = mine_format("labeled-pair")
    assert dataset.features == {"question": Value("string"), "answer": Value("string"), "label": Value("int64")}
    assert [tuple(row.values()) for row in dataset] == [
        ("q", "p1", 1),
        ("q", "p2", 1),
        ("q", "a", 0),
        ("q", "b", 0),
        ("r", "p3", 1),
        ("r", "b", 0),
        ("r", "a", 0),
    ]
    dataset = mine_format("labeled-list")
    assert dataset.features["labels"] == List(Value("int64"))
    assert dataset[:] == {
        "question": ["q", "r"],
        "documents": [["p1", "p2", "a", "b"], ["p3", "b", "a"]],
        "labels": [[1, 1, 0, 0], [1, 0, 0]],
    }


@pytest.mark.parametrize(
    ("output_format", "columns", "kind", "labels"),
    [
        ("triplet", Columns("question", ("answer", "negative"), None, "tuple"), "none", [[1, 0]] * 6),
        ("n-tuple", Columns("question", ("answer", "negative", "negative_2"), None, "tuple"), "none", [[1, 0, 0]] * 3),
        ("labeled-pair", Columns("question", ("answer",), "label", "pair"), "binary", [1, 1, 0, 0, 1, 0, 0]),
        (
            "labeled-list",
            Columns("question", ("documents",), "labels", "list"),
            "list",
            [[1, 1, 0, 0], [1, 0, 0, -100]],
        ),
    ],
)
def test_output_is_ready_for_training(tokenizer, output_format, columns, kind, labels):
    dataset = mine_format(output_format)
    assert resolve_columns(dataset) == columns
    assert survey(dataset, columns).kind == kind
    assert PairCollator(tokenizer)(list(dataset))["labels"].tolist() == labels


def test_the_result_holds_a_table_a_batch(tmp_path):
    mined = mine_hard_negatives(some_pairs(), words(80, 3), batch_size=4)
    assert mined.dataset.data.column("negative").num_chunks == math.ceil(mined.statistics.queries / 4)
    mined.dataset.save_to_disk(tmp_path / "mined")
    assert load_from_disk(str(tmp_path / "mined"))[:] == mined.dataset[:]


# -- retrievers and corpora --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        [[2, 0], []],
        ([2, 0], ()),
        [[(2, 9.5), (0, 1.0)], []],
        [[[2, 9.5], [0, 1.0]], []],
        [np.array([2, 0]), np.array([], dtype=np.int64)],
        [[np.int64(2), np.int32(0)], []],
        (row for row in ([2, 0], [])),
    ],
)
def test_what_a_retriever_may_return(answer):
    mined = mine_hard_negatives([("q", "p"), ("r", "p")], ["a", "b", "c"], retriever=lambda queries, k: answer)
    assert negatives(mined) == {"q": ["c", "a"]}


def test_a_retriever_may_return_a_matrix():
    mined = mine_hard_negatives(
        [("q", "p"), ("r", "p")], ["a", "b", "c"], retriever=lambda queries, k: np.array([[2, 0], [1, 2]])
    )
    assert negatives(mined) == {"q": ["c", "a"], "r": ["b", "c"]}


@pytest.mark.parametrize("retriever", ["bm25", Ranking(**{text: range(80) for text in words(30, 1, longest=4)})])
def test_a_corpus_of_any_kind(retriever, tmp_path, monkeypatch):
    texts = words(80, 3)
    Dataset.from_dict({"id": range(80), "text": texts}).save_to_disk(tmp_path / "corpus")
    stored = load_from_disk(str(tmp_path / "corpus"))
    expected = mine_hard_negatives(some_pairs(), texts, retriever=retriever, batch_size=7).dataset[:]
    look_up = Column.__getitem__

    def look_up_many(column, key):
        assert not isinstance(key, int), "the column was read row by row"
        return look_up(column, key)

    monkeypatch.setattr(Column, "__iter__", lambda self: pytest.fail("the column was read row by row, or as a whole"))
    monkeypatch.setattr(Column, "__getitem__", look_up_many)
    kinds = (
        tuple(texts),
        iter(texts),
        np.array(texts),
        OnDemand(texts),
        stored["text"],
        stored.with_format("numpy")["text"],
        stored.with_format("torch")["text"],
        stored.to_iterable_dataset()["text"],
    )
    for corpus in kinds:
        assert mine_hard_negatives(some_pairs(), corpus, retriever=retriever, batch_size=7).dataset[:] == expected


def test_documents_are_looked_up_for_candidates_only():
    corpus = OnDemand([f"text {index}" for index in range(50)])
    asked = Ranking(q=[7, 3], r=[3, 9])
    read = []

    def retriever(queries, k):
        read.append(dict(corpus.read))
        corpus.read.clear()
        return asked(queries, k)

    mine_hard_negatives([("q", "p"), ("r", "p")], corpus, retriever=retriever, batch_size=1, num_negatives=1)
    assert read == [dict.fromkeys(range(50), 1), {3: 1, 7: 1}]
    assert corpus.read == {3: 1, 9: 1}


# -- BM25 --------------------------------------------------------------------------------------------------------------


def bm25(query, corpus, k1=1.5, b=0.75):
    """Lucene's BM25 by its formula: N scores."""
    documents = [Counter(text.split()) for text in corpus]
    lengths = [sum(document.values()) for document in documents]
    scores = []
    for document, length in zip(documents, lengths, strict=True):
        norm = k1 * (1 - b + b * length / (sum(lengths) / len(lengths)))
        score = 0.0
        for word in query.split():
            holding = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
            score += idf * document[word] / (document[word] + norm)
        scores.append(score)
    return scores


def test_bm25_ranks_as_its_formula_does():
    corpus, queries = list(dict.fromkeys(words(120, 5))), list(dict.fromkeys(words(25, 6, longest=4)))
    mined = mine_hard_negatives([(query, "none of them") for query in queries], corpus, num_negatives=100)
    ranked = negatives(mined)
    sharing = 0
    for query in queries:
        scores = dict(zip(corpus, bm25(query, corpus), strict=True))
        own = {text: score for text, score in scores.items() if score > 0 and text != query}
        assert set(ranked.get(query, ())) == set(own), query
        found = [own[text] for text in ranked.get(query, ())]
        assert found == pytest.approx(sorted(own.values(), reverse=True), abs=1e-5)
        sharing += len(own)
    assert sharing > 10 * len(queries)
    assert mined.statistics.candidates - mined.statistics.positives == sharing


def test_bm25_reads_words_in_any_case_and_no_stop_words():
    corpus = ["The RED fox!", "is it the", "a x 1", "", "red-hot", "redfox"]
    rows = [("is it Red?", "p"), ("the", "p"), ("x 1", "p"), ("unheard", "p"), ("", "p")]
    mined = mine_hard_negatives(rows, corpus)
    assert {query: sorted(texts) for query, texts in negatives(mined).items()} == {
        "is it Red?": ["The RED fox!", "red-hot"]
    }
    assert mined.statistics.queries_without_negatives == 4
    assert mined.statistics.candidates == 2


def test_equal_bm25_scores_are_ranked_by_their_place_in_the_corpus():
    corpus = [f"fox number{index:03d}" for index in range(200)]
    corpus[150] = "fox"
    mined = mine_hard_negatives([("fox", "p")], corpus, range_max=5, num_negatives=5)
    # "fox" equals the query, which makes room for one more; all others score the same.
    assert negatives(mined) == {"fox": corpus[:5]}
    assert fates(mined) == {"positives": 1, "outside_range": 1, "taken": 5}


def test_bm25_repeats_words_of_the_query():
    corpus = ["fox", "hen", "owl"]
    for query, first in (("fox fox hen", "fox"), ("fox hen hen", "hen")):
        assert negatives(mine_hard_negatives([(query, "p")], corpus))[query][0] == first


def test_bm25_is_silent(capfd):
    mine_hard_negatives(some_pairs(), words(80, 3))
    assert capfd.readouterr() == ("", "")


def test_without_bm25s(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    message = re.escape("pip install 'cross-trainer[mining]'")
    with pytest.raises(MissingDependencyError, match=message):
        mine_hard_negatives([], ["a"])  # before anything is read
    assert negatives(mine_hard_negatives([("q", "p")], ["a"], retriever=Ranking(q=[0]))) == {"q": ["a"]}


# -- what can go wrong -------------------------------------------------------------------------------------------------

SCORER = Scores(p=0.0, a=0.0)
CONFIGURATIONS = {
    "num_negatives": ({"num_negatives": 0}, r"num_negatives=0: expected a whole number, 1 or more"),
    "fraction": ({"num_negatives": 1.5}, r"num_negatives=1\.5: expected a whole number"),
    "range_min": ({"range_min": -1}, r"range_min=-1: expected a whole number, 0 or more"),
    "range_max": ({"range_max": 0}, r"range_max=0: expected a whole number, 1 or more"),
    "window": (
        {"range_min": 4, "range_max": 6},
        (
            r"range_min=4 and range_max=6 leave fewer ranks than num_negatives=3\. Raise "
            r"range_max to 7"
        ),
    ),
    "batch_size": ({"batch_size": 0}, r"batch_size=0: expected a whole number, 1 or more"),
    "seed": ({"seed": -1}, r"seed=-1: expected a whole number, 0 or more"),
    "absolute": ({"absolute_margin": -0.1}, r"absolute_margin=-0\.1: expected a number from 0 up"),
    "NaN": ({"absolute_margin": math.nan}, r"absolute_margin=nan: expected"),
    "infinite": ({"absolute_margin": math.inf}, r"absolute_margin=inf: expected"),
    "relative": ({"relative_margin": 1.5}, r"relative_margin=1\.5: expected a number from 0 to 1"),
    "limits": ({"min_score": 0.5, "max_score": 0.25}, r"min_score=0\.5 and max_score=0\.25: no score lies between"),
    "NaN limit": ({"min_score": math.nan}, r"min_score=nan .* no score lies between"),
    "margin_to": ({"margin_to": "mean"}, r"margin_to='mean': expected one of 'lowest', 'highest'"),
    "strategy": ({"sampling_strategy": "best"}, r"sampling_strategy='best': expected one of 'top', 'random'"),
    "format": (
        {"output_format": "pairs"},
        r"output_format='pairs': expected one of 'triplet', 'n-tuple', 'labeled-pair'",
    ),
    "retriever": ({"retriever": 7}, r"retriever=7: expected 'bm25', the name of a SentenceTransformer"),
    "no corpus": (
        {"corpus": None, "retriever": Ranking()},
        r"A retriever of your own returns indices into a corpus: pass",
    ),
    "a text": ({"corpus": "a text"}, r"corpus is a str: expected the documents themselves, such as a list"),
    "a dict": ({"corpus": {"d1": "a"}}, r"corpus is a dict: .*list\(documents\.values\(\)\)"),
    "a table": ({"corpus": Dataset.from_dict({"text": ["a"]})}, r"corpus is a Dataset: .*a column dataset\['text'\]"),
    "no callable": ({"scorer": 5}, r"scorer is a int: expected a callable, such as cross_encoder\.predict"),
    "no scorer": ({"max_score": 0.5}, r"max_score compares scores, and there is no scorer\. Pass one"),
    "no scorer for margins": ({"relative_margin": 0.5}, r"relative_margin compares scores"),
    "idle scorer": (
        {"scorer": SCORER, "sampling_strategy": "random"},
        r"The scorer decides nothing: .*Set one, sample from the 'top'",
    ),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_wrong_arguments(case):
    options, message = CONFIGURATIONS[case]
    with pytest.raises(ConfigurationError, match=message):
        mine_hard_negatives([], **{"corpus": ["a"], **options})  # before the rows are read, of which there are none


def classes(names):
    features = Features({"q": Value("string"), "d": Value("string"), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"q": ["q"], "d": ["p"], "label": [1]}, features=features)


ROWS = {
    "empty": ([], {}, r"The data set is empty"),
    "None": ([("q", "p"), ("q", None)], {}, r"Column 'text_2', row 1: expected a text, found None .*Filter"),
    "no positive": (
        [("q", "p", 0), ("r", "p", -1)],
        {},
        r"Column 'label': the labels range from -1 to 0, and only one above 0 marks",
    ),
    "names": ([("q", "p", "yes")], {}, r"Column 'label' holds the class names \['yes'\], where a number is needed"),
    "classes": (
        classes(["entailment", "neutral", "contradiction"]),
        {},
        (
            r"Column 'label' holds the classes \['entailment', 'neutral', "
            r"'contradiction'\]: which one marks a positive"
        ),
    ),
    "triples": (
        [{"q": "q", "positive": "p", "negative": "n"}],
        {},
        (
            r"found a row of \['q', 'positive', 'negative'\].*"
            r"columns=\(query, document\)"
        ),
    ),
    "lists without labels": (
        [{"q": "q", "documents": ["p", "n"]}],
        {},
        r"The lists of column 'documents' have no labels, so .* Add a column 'labels'",
    ),
    "lists without positives": (
        [{"q": "q", "documents": ["p", "n"], "labels": [0, 0]}],
        {},
        r"Column 'labels': the labels range from 0 to 0, and only one above 0 marks a positive",
    ),
    "surrogate in corpus": (
        [("q", "p")],
        {"corpus": ["a", "b \ud800"]},
        r"The corpus, document 1: the text .* has half of a surrogate pair",
    ),
    "missing": ([("q", "p")], {"columns": ("text_1", "positive")}, r"Column 'positive' is missing"),
    "negative": (
        [{"question": "q", "negative": "p"}],
        {"columns": ("question", "negative")},
        r"with 'negative' twice\. Rename",
    ),
    "n-tuple": (
        [{"negative_3": "q", "answer": "p"}],
        {"output_format": "n-tuple", "columns": ("negative_3", "answer")},
        r"with 'negative_3' twice",
    ),
    "twice": (
        [{"question": "q", "grade": 1}],
        {"columns": ("question", "question", "grade")},
        r"with 'question' twice",
    ),
    "label": (
        [{"q": "q", "label": "p"}],
        {"columns": ("q", "label"), "output_format": "labeled-pair"},
        r"with 'label' twice",
    ),
    "documents": ([{"documents": "q", "answer": "p"}], {"output_format": "labeled-list"}, r"with 'documents' twice"),
    "empty corpus": ([("q", "p")], {"corpus": []}, r"The corpus is empty: there is no document"),
    "empty iterator": ([("q", "p")], {"corpus": iter(())}, r"The corpus is empty"),
    "None in corpus": (
        [("q", "p")],
        {"corpus": ["a", None]},
        r"The corpus, document 1: expected a text, found None \(NoneType\)\. Filter",
    ),
    "row in corpus": (
        [("q", "p")],
        {"corpus": [{"text": "a"}]},
        r"The corpus, document 0: expected a text, found \{'text': 'a'\} \(dict",
    ),
    "None in column": (
        [("q", "p")],
        {"corpus": Dataset.from_dict({"t": ["a", "b", None]})["t"]},
        r"The corpus, document 2: expected",
    ),
    "None for a callable": (
        [("q", "p")],
        {"corpus": ["a", None], "retriever": lambda queries, k: pytest.fail("too late")},
        r"The corpus, document 1",
    ),
    "no words": ([("q", "p")], {"corpus": ["the", "", "?!", "a b"]}, r"The corpus has no word that BM25 could find"),
}


@pytest.mark.parametrize("case", ROWS)
def test_wrong_data(case):
    dataset, options, message = ROWS[case]
    with pytest.raises(DataError, match=message):
        mine_hard_negatives(dataset, **{"corpus": ["some words"], **options})


def test_two_classes_are_told_apart_by_index():
    mined = mine_hard_negatives(classes(["other", "same"]), ["a"], retriever=Ranking(q=[0]))
    assert negatives(mined) == {"q": ["a"]}


ANSWERS = {
    "too few": ([[0]], r"returned 1 lists for 2 queries\. Return one for each"),
    "index": ([[0], [2]], r"returned the index 2, and the corpus has 2 documents\. Count from 0"),
    "filled": ([[0, -1], [1]], r"returned the index -1, .*leave out what only fills a list up \(-1 in FAISS\)"),
    "scores": ([[0.5], [1]], r"Expected for each query a list of indices .*'float' object"),
    "flat": ([0, 1], r"Expected for each query a list of indices"),
    "nothing": (None, r"The retriever returned None\. Expected"),
    "texts": ([["a"], ["b"]], r"Expected for each query a list of indices .*'str' object"),
    "hits": ([[{"corpus_id": 0}], []], r"or of tuples that start with one \('dict' object"),
    "empty hit": ([[()], []], r"or of tuples that start with one"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_a_retriever_that_answers_wrongly(case):
    answer, message = ANSWERS[case]
    with pytest.raises(DataError, match=message):
        mine_hard_negatives([("q", "p"), ("r", "p")], ["a", "b"], retriever=lambda queries, k: answer)


NUMBERS = {
    "short": ([0.5], r"numbers of shape \[1\] for 2 pairs\. Expected one for each"),
    "classes": (np.zeros((2, 3)), r"numbers of shape \[2, 3\] for 2 pairs.*model\.predict\(pairs\)\[:, 1\]"),
    "scalar": (0.5, r"numbers of shape \[\] for 2 pairs"),
    "ragged": ([[0.5], [0.5, 0.25]], r"The scorer returned \[\[0\.5\].*Expected one number for each pair"),
    "words": (["high", "low"], r"The scorer returned \['high', 'low'\]\. Expected one number"),
    "NaN": ([0.5, math.nan], r"The scorer returned nan for the pair \('q', 'a'\)\. Scores have to be finite"),
    "infinite": ([-math.inf, 0.5], r"The scorer returned -inf for the pair \('q', 'p'\)"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_a_scorer_that_answers_wrongly(case):
    answer, message = NUMBERS[case]
    with pytest.raises(DataError, match=message):
        mine_hard_negatives([("q", "p")], ["a"], retriever=Ranking(q=[0]), scorer=lambda pairs: answer)


def test_nothing_found_says_where_it_went():
    message = (
        r"No negatives for any of 1 queries\. Their 3 candidates: \{'positives': 1, 'false_negatives': 1, "
        r"'outside_scores': 1, 'queries_without_negatives': 1\}\. Loosen what drops them"
    )
    scorer = Scores(p=0.5, a=0.75, b=-1.0)
    with pytest.raises(DataError, match=message):
        mine_hard_negatives(
            [("q", "p")], list("pab"), retriever=Ranking(q=[0, 1, 2]), scorer=scorer, absolute_margin=0, min_score=0
        )
    with pytest.raises(DataError, match=r"No negatives .*'left': 2, 'queries_with_too_few': 1.*lower num_negatives"):
        mine_hard_negatives([("q", "p")], list("ab"), retriever=Ranking(q=[0, 1]), output_format="n-tuple")


# -- progress ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("show", "terminal", "shown"), [(True, False, True), (False, True, False), (None, False, False), (None, True, True)]
)
def test_progress(capsys, monkeypatch, show, terminal, shown):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    mine_hard_negatives(some_pairs(), words(80, 3), batch_size=8, show_progress=show)
    written = capsys.readouterr().err
    assert ("Mining" in written) == shown
    assert ("Reading the corpus: 100%" in written) == shown
    assert "BM25S" not in written
    if shown:
        assert re.search(r"Mining: 100%.* (\d+)/\1 ", written)


def test_statistics_are_logged(caplog):
    with caplog.at_level("INFO", logger="cross_trainer"):
        mined = mine_hard_negatives([("q", "p")], ["a"], retriever=Ranking(q=[0]))
    assert f"Mined: {mined.statistics}" in caplog.text


def test_it_is_public():
    assert cross_trainer.mine_hard_negatives is mine_hard_negatives
    assert Path(sys.modules[mine_hard_negatives.__module__].__file__).name == "mining.py"


# -- a CrossEncoder as scorer ------------------------------------------------------------------------------------------


def confident_encoder():
    """Its sigmoid is 1 in float32 for every pair; logits differ."""
    model = build_model()
    torch.nn.init.constant_(model.classifier.bias, 25.0)
    return CrossEncoder(model, tokenizer=build_tokenizer())


TEXTS = [f"{a} {b}" for a in SENTENCES for b in SENTENCES][:60]


def test_the_hardest_are_chosen_by_logits():
    encoder = confident_encoder()
    found = Ranking(**{"a man": range(60)})
    mined = mine_hard_negatives(
        [("a man", "zzz")], TEXTS, retriever=found, scorer=encoder.predict, num_negatives=10, output_format="n-tuple"
    )
    ranking = encoder.rank("a man", TEXTS, top_k=10, return_documents=True)
    assert {entry["score"] for entry in ranking} == {1.0}
    assert list(mined.dataset[0].values())[2:] == [entry["text"] for entry in ranking]


def test_a_margin_of_0_sees_past_the_rounding_of_scores():
    encoder = confident_encoder()
    logits = encoder.predict([("a man", text) for text in TEXTS], activation="logits")
    positive = TEXTS[int(np.argsort(logits)[30])]
    mined = mine_hard_negatives(
        [("a man", positive)],
        TEXTS,
        retriever=Ranking(**{"a man": range(60)}),
        scorer=encoder.predict,
        absolute_margin=0.0,
        num_negatives=60,
    )
    assert set(mined.dataset["negative"][:]) == {TEXTS[index] for index in np.argsort(logits)[:30]}
    assert mined.statistics.false_negatives == 29


def test_lists_of_numpy_are_mined():
    rows = {"query": "dog cat", "documents": ["dog one", "cat two"], "labels": [1, 0]}
    expected = mine_hard_negatives([rows], num_negatives=1).dataset[:]
    table = Dataset.from_list([rows])
    for dataset in (
        [{**rows, "documents": np.array(rows["documents"]), "labels": np.array(rows["labels"])}],
        *(table.with_format(kind) for kind in ("numpy", "pandas", "arrow", "torch")),
        table.to_pandas(),
    ):
        assert mine_hard_negatives(dataset, num_negatives=1).dataset[:] == expected


# -- a teacher's scores, and vectors -----------------------------------------------------------------------------------


def test_scores_are_kept_for_a_student():
    rows, corpus = [("q", "good"), ("q", "best")], ["a", "b", "c", "good"]
    scorer = Scores(good=2.0, best=3.5, a=1.5, b=-0.5, c=0.25)
    options = {"retriever": Ranking(q=[0, 1, 2, 3]), "scorer": scorer, "num_negatives": 2, "output_scores": True}
    found = {
        each: mine_hard_negatives(rows, corpus, output_format=each, **options).dataset[:]
        for each in ("triplet", "n-tuple", "labeled-pair", "labeled-list")
    }
    assert found["triplet"]["negative"] == ["a", "c", "a", "c"]
    assert found["triplet"]["scores"] == [[2.0, 1.5], [2.0, 0.25], [3.5, 1.5], [3.5, 0.25]]
    assert found["n-tuple"]["scores"] == [[2.0, 1.5, 0.25], [3.5, 1.5, 0.25]]
    assert (found["labeled-pair"]["text_2"], found["labeled-pair"]["score"]) == (
        ["good", "best", "a", "c"],
        [2.0, 3.5, 1.5, 0.25],
    )
    assert found["labeled-list"]["scores"] == [[2.0, 3.5, 1.5, 0.25]]
    plain = mine_hard_negatives(rows, corpus, output_format="triplet", **{**options, "output_scores": False}).dataset
    assert plain.column_names == ["text_1", "text_2", "negative"]
    with pytest.raises(ConfigurationError, match="output_scores=True keeps scores, and there is no scorer"):
        mine_hard_negatives(rows, corpus, **{**options, "scorer": None})


def test_kept_scores_of_a_model_are_its_logits_and_teach_one():
    encoder = CrossEncoder(build_model(), tokenizer=build_tokenizer())
    rows = [(query, SENTENCES[place - 1]) for place, query in enumerate(SENTENCES)]
    options = {"num_negatives": 2, "output_format": "n-tuple", "output_scores": True}
    found = mine_hard_negatives(
        rows, SENTENCES, retriever=lambda queries, k: [range(k)] * len(queries), scorer=encoder.predict, **options
    )
    mined = found.dataset
    assert len(mined) == 12
    for row in mined:
        texts = [row[name] for name in ("text_2", "negative", "negative_2")]
        logits = encoder.predict([(row["text_1"], text) for text in texts], activation="logits")
        assert row["scores"] == pytest.approx(logits.tolist(), abs=1e-5)
    found = resolve_columns(mined)
    assert (found.shape, found.label) == ("tuple", "scores")


def test_negatives_are_found_by_vectors_and_by_both():
    letters = DenseRetriever(lambda texts: [[text.count(each) for each in "abc"] for text in texts])
    rows, corpus = [("aab", "a b")], ["aaaa", "bb", "c aab", "ccc"]
    dense = mine_hard_negatives(rows, corpus, retriever=letters, num_negatives=2)
    assert dense.dataset["negative"][:] == ["aaaa", "c aab"]
    limited = mine_hard_negatives(rows, corpus, retriever=letters, scorer=letters.score, max_score=6, num_negatives=2)
    assert limited.dataset["negative"][:] == ["c aab", "bb"]
    both = mine_hard_negatives(rows, corpus, retriever=HybridRetriever(("bm25", letters)), num_negatives=1)
    assert both.dataset["negative"][:] == ["c aab"]
    assert mine_hard_negatives([("aab", "a b"), ("c", "cc")], retriever=letters, num_negatives=1).statistics.taken == 2


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_fused_negatives_depend_on_no_batch(batch_size):
    rows = [(query, SENTENCES[place - 1]) for place, query in enumerate(SENTENCES)] + [(SENTENCES[0], SENTENCES[5])]
    letters = DenseRetriever(lambda texts: [[text.count(each) for each in "aeinos"] for text in texts])
    retriever = HybridRetriever(("bm25", letters), depth=8)
    options = {"retriever": retriever, "num_negatives": 2, "range_max": 3}
    found = mine_hard_negatives(rows, batch_size=batch_size, **options).dataset
    assert found[:] == mine_hard_negatives(rows, batch_size=5, **options).dataset[:]
