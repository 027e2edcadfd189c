"""What the ranking recipes share: rows of every shape as lists, cuts, negatives, and the table against ir_measures."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace

import ir_measures
import numpy as np
import pytest
from conftest import build_model, build_tokenizer
from datasets import ClassLabel, Dataset, Features, Value
from rankings import (
    HeldOut,
    RandomRetriever,
    RankingArguments,
    as_lists,
    cap_documents,
    load_ranker,
    mine,
    read_corpus,
    set_batch_size,
)

from cross_trainer import ConfigurationError, DataError, MissingDependencyError, compare, ranking_metrics
from cross_trainer.data.columns import resolve_columns
from cross_trainer.data.trec import read_qrels, read_run


def lists_of(*rows):
    return Dataset.from_list(
        [{"query": query, "documents": list(graded), "labels": list(graded.values())} for query, graded in rows]
    )


def read(rows, **options):
    return [tuple(row.values()) for row in as_lists(rows, resolve_columns(rows, **options))]


# -- lists -------------------------------------------------------------------------------------------------------------


def test_lists_keep_their_documents_once_with_the_highest_grade():
    rows = Dataset.from_list(
        [
            {"id": 7, "q": "a", "texts": ["x", "y", "x"], "labels": [0, 1, 2]},
            {"id": 8, "q": "a", "texts": ["z"], "labels": [0]},
        ]
    )
    assert read(rows) == [("a", ["x", "y"], [2, 1]), ("a", ["z"], [0])]


def test_lists_without_labels_get_zeros():
    assert read(Dataset.from_list([{"q": "a", "texts": ["x", "y"]}])) == [("a", ["x", "y"], [0, 0])]


def test_pairs_are_brought_together_by_query():
    rows = Dataset.from_list(
        [
            {"q": "a", "text": "x", "label": 1},
            {"q": "b", "text": "y", "label": 0},
            {"q": "a", "text": "z", "label": 0},
        ]
    )
    assert read(rows) == [("a", ["x", "z"], [1, 0]), ("b", ["y"], [0])]


def test_class_labels_count_as_their_index():
    features = Features({"q": Value("string"), "text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    rows = Dataset.from_dict({"q": ["a", "a"], "text": ["x", "y"], "label": ["yes", "no"]}, features=features)
    assert read(rows) == [("a", ["x", "y"], [1, 0])]


def test_positives_without_label_are_relevant():
    rows = Dataset.from_list([{"q": "a", "positive": "x"}, {"q": "a", "positive": "y"}])
    assert read(rows) == [("a", ["x", "y"], [1, 1])]


@pytest.mark.parametrize("margin", [{}, {"score": -3.5}])
def test_a_tuple_s_positive_is_relevant_whatever_a_teacher_says(margin):
    rows = Dataset.from_list(
        [
            {"q": "a", "positive": "x", "negative": "y", **margin},
            {"q": "a", "positive": "x", "negative": "z", **margin},
        ]
    )
    assert read(rows) == [("a", ["x", "y", "z"], [1, 0, 0])]


def test_a_bad_row_is_named():
    rows = Dataset.from_list([{"q": "a", "texts": ["x"], "labels": [1]}, {"q": "b", "texts": ["y"], "labels": [1, 0]}])
    with pytest.raises(DataError, match="row 1: 2 labels for 1 documents"):
        read(rows)


def test_names_hold_in_training_and_in_other_splits_that_have_them():
    arguments = RankingArguments(text_columns=["question", "answer"], label_column="good")
    pairs = Dataset.from_list([{"answer": "x", "question": "a", "good": 1}])
    lists = Dataset.from_list([{"query": "a", "documents": ["x"], "labels": [1]}])
    assert arguments.columns_in(pairs, training=True).names == ["question", "answer", "good"]
    assert arguments.columns_in(pairs).names == ["question", "answer", "good"]
    assert arguments.columns_in(lists).names == ["query", "documents", "labels"]
    with pytest.raises(DataError, match="'question' is missing"):
        arguments.columns_in(lists, training=True)


# -- cuts --------------------------------------------------------------------------------------------------------------


def test_a_cut_keeps_relevant_documents_first_and_always_an_irrelevant_one():
    few = {f"good {n}": 1 for n in range(2)} | {f"bad {n}": 0 for n in range(20)}
    many = {f"good {n}": n % 2 + 1 for n in range(20)} | {"bad": 0}
    only = {f"good {n}": 1 for n in range(20)}
    short = {"good": 1, "bad": 0}
    cut = cap_documents(lists_of(("a", few), ("b", many), ("c", only), ("d", short)), 5, seed=0)
    assert [len(labels) for labels in cut["labels"]] == [5, 5, 5, 2]
    assert [sum(label > 0 for label in labels) for labels in cut["labels"]] == [2, 4, 5, 1]
    for row, graded in zip(cut, (few, many, only, short), strict=True):
        assert [graded[document] for document in row["documents"]] == row["labels"]
        assert row["documents"] == [document for document in graded if document in row["documents"]]  # in their order


def test_a_cut_is_drawn_by_seed():
    graded = {"good": 1} | {f"bad {n}": 0 for n in range(50)}
    lists = lists_of(("a", graded), ("b", graded))
    first, again, other = (cap_documents(lists, 9, seed)["documents"][:] for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert first[0] != first[1]


def test_a_cut_to_one_document_is_refused():
    with pytest.raises(ConfigurationError, match="two or more"):
        RankingArguments(documents_per_query=1)


# -- negatives ---------------------------------------------------------------------------------------------------------

QUERIES = lists_of(
    ("learn cooking", {"best way to learn cooking": 2, "a person is cooking": 1, "why is the sky blue": 0}),
    ("dog park", {"the dog runs in the park": 1, "kids have lunch": 0, "learn to cook in the park": 0}),
)


def test_mined_negatives_take_the_place_of_others_and_grades_stay():
    mined = mine(QUERIES, 1)
    assert [dict(zip(row["documents"], row["labels"], strict=True)) for row in mined] == [
        {"best way to learn cooking": 2, "a person is cooking": 1, "learn to cook in the park": 0},
        {"the dog runs in the park": 1, "learn to cook in the park": 0},
    ]


def test_queries_that_mining_takes_for_one_keep_their_grades():
    first, second = QUERIES[0], QUERIES[1]
    shouted = {**second, "query": first["query"].upper(), "documents": [text.upper() for text in second["documents"]]}
    (row,) = mine(Dataset.from_list([first, shouted]), 1)
    grades = dict(zip(row["documents"], row["labels"], strict=True))
    for judged in (first, shouted):
        for document, label in zip(judged["documents"], judged["labels"], strict=True):
            assert not label or grades[document] == label


def test_random_negatives_differ_in_nothing_else():
    mined, drawn, again, other = (
        mine(QUERIES, 2, retriever=retriever, seed=seed)
        for retriever, seed in (("bm25", 0), ("random", 0), ("random", 0), ("random", 3))
    )
    assert drawn.column_names == mined.column_names
    assert drawn[:] == again[:]
    assert drawn[:] != other[:]
    for row, own in zip(drawn, QUERIES, strict=True):
        grades = dict(zip(own["documents"], own["labels"], strict=True))
        assert [label for label in row["labels"] if label] == [label for label in own["labels"] if label]
        assert all(
            grades.get(document, 0) == label for document, label in zip(row["documents"], row["labels"], strict=True)
        )
        assert row["labels"].count(0) == 2


def test_a_random_draw_depends_on_query_and_seed_alone():
    draw = RandomRetriever(100, seed=4)
    together, (alone,) = draw(["a", "b"], 10), draw(["b"], 10)
    assert together[1] == alone
    assert together[0] != alone
    assert len(set(alone)) == 10
    assert sorted(draw(["a"], 1000)[0]) == list(range(100))


def test_negatives_come_from_a_corpus_and_pass_a_scorer():
    corpus = ["cooking one", "cooking two", "cooking three", "park"]
    scores = {"cooking one": 0.9, "cooking two": 0.2, "cooking three": 0.4, "park": 0.0}

    def scorer(pairs):
        return [scores.get(document, 1.0) for _, document in pairs]

    bad = [
        [text for text in row["documents"] if text in scores]
        for row in mine(QUERIES, 2, corpus=corpus, scorer=scorer, margin=0.3)
    ]
    assert bad == [["cooking three", "cooking two"], ["park"]]


def test_tuples_for_in_batch_negatives():
    rows = mine(QUERIES, 1, as_tuples=True)
    assert rows.column_names == ["query", "positive", "negative"]
    assert resolve_columns(rows).shape == "tuple"
    assert len(rows) == 3


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("corpus.txt", "one\n\ntwo words\n", ["one", "two words"]),
        ("corpus.csv", "id,title,text\n1,t,one\n2,u,two\n", ["one", "two"]),
        ("corpus.jsonl", '{"n": 1, "body": "one"}\n{"n": 2, "body": "two"}\n', ["one", "two"]),
    ],
)
def test_a_corpus_is_read(tmp_path, name, content, texts):
    (tmp_path / name).write_text(content)
    assert read_corpus(str(tmp_path / name)) == texts


def test_what_is_no_corpus_is_an_error(tmp_path):
    with pytest.raises(ConfigurationError, match="is not a file"):
        read_corpus(str(tmp_path / "nothing.csv"))
    (tmp_path / "numbers.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"it could be 'a' or 'b'"):
        read_corpus(str(tmp_path / "numbers.csv"))
    (tmp_path / "numbers.jsonl").write_text('{"a": 1, "b": 2}\n')
    with pytest.raises(DataError, match=r"There is no column of text, only 'a', 'b'"):
        read_corpus(str(tmp_path / "numbers.jsonl"))


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    build_model().bert.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_ranker_has_one_label_and_the_layers_asked_for(pretrained):
    whole, cut = load_ranker(pretrained, seed=0), load_ranker(pretrained, seed=0, layers=1)
    assert (whole.config.num_labels, cut.config.num_labels) == (1, 1)
    assert (len(whole.bert.encoder.layer), len(cut.bert.encoder.layer)) == (2, 1)
    assert cut.config.num_hidden_layers == 1
    for name, weights in cut.state_dict().items():
        assert weights.equal(whole.state_dict()[name])
    assert not whole.classifier.weight.equal(load_ranker(pretrained, seed=1).classifier.weight)
    with pytest.raises(ConfigurationError, match="3 layers are asked for"):
        load_ranker(pretrained, seed=0, layers=3)


def test_batch_sizes_follow_the_rows_unless_one_is_given():
    for given, lists, expected in ((0, True, 2), (0, False, 16), (7, True, 7), (7, False, 7)):
        arguments = SimpleNamespace(per_device_train_batch_size=given)
        set_batch_size(arguments, lists=lists)
        assert arguments.per_device_train_batch_size == expected


# -- evaluation --------------------------------------------------------------------------------------------------------


def test_queries_without_an_order_are_left_out_and_counted():
    lists = lists_of(("a", {"x": 1, "y": 0}), ("b", {"x": 1}), ("c", {"y": 0, "z": 0}), ("d", {"x": 0, "y": 2}))
    held_out = HeldOut.of("validation", lists)
    assert (held_out.lists["query"][:], held_out.total) == (["a", "d"], 4)
    assert len(HeldOut.of("validation", lists, all_queries=True).lists) == 4
    with pytest.raises(DataError, match="None of the 2 queries of split 'test'"):
        HeldOut.of("test", lists.select([1, 2]))


@pytest.mark.parametrize("label", [-1, 0.5])
def test_labels_that_are_no_grades_are_refused(label):
    with pytest.raises(DataError, match=f"label {label}: rankings are evaluated by grades"):
        HeldOut.of("validation", lists_of(("a", {"x": 1.0, "y": float(label)})))


def many(seed=0, queries=12):
    """Lists of different lengths, graded 0 to 2, and scores without ties."""
    rng = np.random.default_rng(seed)
    rows, scores = [], []
    for number in range(queries):
        texts = rng.choice(40, size=rng.integers(2, 15), replace=False)
        grades = rng.integers(0, 3, size=len(texts))
        grades[:2] = 0, 1
        rows.append(
            (f"query {number}", {f"text {text}": int(grade) for text, grade in zip(texts, grades, strict=True)})
        )
        scores.append(rng.normal(size=len(texts)))
    return HeldOut.of("validation", lists_of(*rows)), np.concatenate(scores)


def test_flat_scores_and_grids_are_the_same():
    held_out, scores = many()
    held_out.add("flat", scores)
    assert len(held_out.pairs) == len(scores)
    held_out.add("grid", held_out.systems["flat"].astype(np.float32))
    assert np.allclose(held_out.systems["flat"], held_out.systems["grid"])
    assert ((held_out.systems["flat"] == -100) == (held_out.labels == -100)).all()


def test_the_table_is_what_other_tools_measure_in_the_files(tmp_path):
    held_out, scores = many()
    held_out.add("system", scores)
    held_out.write_trec("system", tmp_path)
    held_out.write_trec("system", tmp_path, "test.")
    run, qrels = read_run(tmp_path / "run.trec"), read_qrels(tmp_path / "qrels.trec")
    assert (tmp_path / "test.run.trec").read_bytes() == (tmp_path / "run.trec").read_bytes()
    asked = [ir_measures.AP, ir_measures.RR @ 10, ir_measures.nDCG @ 10]
    measured = ir_measures.calc_aggregate(asked, qrels, run)
    row = next(line for line in held_out.table([]).splitlines() if line.startswith("  system")).split()
    assert [row[index] for index in (1, 4, 7)] == [f"{measured[each]:.4f}" for each in asked]
    assert held_out.table([]).splitlines()[1] == "validation: means of 12 of 12 queries with 95 % intervals"
    means = ranking_metrics(confidence=0.95)(
        SimpleNamespace(predictions=held_out.systems["system"], label_ids=held_out.labels)
    )
    assert row[2:4] == [f"[{means['map_low']:.4f},", f"{means['map_high']:.4f}]"]


def test_a_document_of_several_queries_has_one_number(tmp_path):
    held_out = HeldOut.of("validation", lists_of(("a", {"x": 1, "y": 0}), ("b", {"y": 2, "z": 0})))
    held_out.add("system", np.arange(4.0))
    held_out.write_trec("system", tmp_path)
    assert read_qrels(tmp_path / "qrels.trec") == {"q0": {"d0": 1, "d1": 0}, "q1": {"d1": 2, "d2": 0}}
    assert read_run(tmp_path / "run.trec") == {"q0": {"d1": 1.0, "d0": 0.0}, "q1": {"d2": 3.0, "d1": 2.0}}


def test_a_contrast_is_the_paired_test():
    held_out, scores = many()
    held_out.add("good", scores + 2 * held_out.labels[held_out.labels != -100])
    held_out.add("bad", scores)
    metric = ranking_metrics()
    good, bad = (metric.per_query(held_out.systems[name], held_out.labels)["map"] for name in ("good", "bad"))
    expected = compare(good, bad)
    assert held_out.contrast("good", "bad")["map"] == expected
    lines = held_out.table([("good", "bad")]).splitlines()
    assert f"{expected.difference:+.4f} [{expected.low:+.4f}, {expected.high:+.4f}]" in lines[-2]
    assert lines[-1].split()[:2] == ["p", f"{expected.p_value:.4f}"]


def test_bm25_is_its_formula_over_the_split():
    held_out = HeldOut.of(
        "validation",
        lists_of(("sky dog", {"blue sky": 1, "dog dog park": 0, "lunch": 0}), ("lunch", {"lunch": 1, "blue sky": 0})),
    )
    assert held_out.add_first_stage("bm25") == "BM25"
    documents = ["blue sky", "dog dog park", "lunch"]
    mean = sum(len(text.split()) for text in documents) / 3

    def weight(word, text):
        count, holding = text.split().count(word), sum(word in other.split() for other in documents)
        idf = math.log(1 + (3 - holding + 0.5) / (holding + 0.5))
        return idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(text.split()) / mean))

    expected = [
        [sum(weight(word, text) for word in query.split()) for text in texts]
        for query, texts in (("sky dog", documents), ("lunch", ["lunch", "blue sky"]))
    ]
    assert np.allclose(held_out.systems["BM25"][0], expected[0], rtol=1e-5)
    assert np.allclose(held_out.systems["BM25"][1], [*expected[1], -100], rtol=1e-5)


def test_bm25_without_a_word_gives_nothing():
    held_out = HeldOut.of("validation", lists_of(("the", {"a": 1, "of": 0})))
    held_out.add_first_stage("bm25")
    assert held_out.systems["BM25"].tolist() == [[0, 0]]


def test_the_order_given_is_a_first_stage(caplog):
    held_out = HeldOut.of("validation", lists_of(("a", {"x": 0, "y": 1, "z": 0})))
    assert held_out.add_first_stage("order") == "order given"
    assert held_out.systems["order given"].tolist() == [[3, 2, 1]]
    assert not caplog.records
    perfect = HeldOut.of("validation", lists_of(("a", {"y": 1, "x": 0})))
    perfect.add_first_stage("order")
    assert "not the order of a first stage" in caplog.text


def test_without_bm25s_the_order_stands_in(monkeypatch, caplog):
    held_out = HeldOut.of("validation", lists_of(("a", {"x": 0, "y": 1})))
    with caplog.at_level(logging.INFO, "cross_trainer"):
        assert held_out.add_first_stage() == "BM25"
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert held_out.add_first_stage() == "order given"
    assert "First stage of validation: order" in caplog.text
    monkeypatch.setitem(__import__("sys").modules, "bm25s", None)
    with pytest.raises(MissingDependencyError, match=r"cross-trainer\[mining\]"):
        held_out.add_first_stage("bm25")
