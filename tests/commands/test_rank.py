"""Rankings are those of the model's scores, in either format; what can't be ranked is refused before a model loads."""

from __future__ import annotations

import json
import logging

import ir_measures
import numpy as np
import pytest
import torch
from commands import error, run, save, write_table
from conftest import SENTENCES, build_model, build_tokenizer

from cross_trainer.commands import rank as rank_files_module
from cross_trainer.commands.rank import TextStore, rank_files
from cross_trainer.data import tables
from cross_trainer.data.tables import read_rows
from cross_trainer.data.trec import read_run, write_run
from cross_trainer.errors import ConfigurationError, DataError
from cross_trainer.saved.folder import describe_scores
from cross_trainer.scoring.cross_encoder import CrossEncoder

QUERIES = [{"id": f"q{index}", "text": text} for index, text in enumerate(SENTENCES[:5])]
CORPUS = [{"id": f"d{index}", "text": f"{text} {index % 5}"} for index, text in enumerate(SENTENCES * 2)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return save(tmp_path_factory.mktemp("classes"), 3)


@pytest.fixture(scope="module")
def encoder(model):
    return CrossEncoder(model)


@pytest.fixture
def search(tmp_path):
    return [write_table(tmp_path / "queries.tsv", QUERIES), write_table(tmp_path / "corpus.jsonl", CORPUS)]


def by_hand(encoder, wanted=None, top_k=None):
    """What `CrossEncoder.rank` makes of each query by itself."""
    run = {}
    for query in QUERIES:
        documents = [row for row in CORPUS if wanted is None or row["id"] in wanted.get(query["id"], ())]
        ranked = encoder.rank(query["text"], [row["text"] for row in documents], show_progress_bar=False)
        scores = sorted((-entry["score"], documents[entry["corpus_id"]]["id"]) for entry in ranked)[:top_k]
        if documents:
            run[query["id"]] = {name: -score for score, name in scores}
    return run


def same_run(one, other):
    assert {query: set(scores) for query, scores in one.items()} == {
        query: set(scores) for query, scores in other.items()
    }
    assert all(abs(one[query][name] - score) < 1e-6 for query in other for name, score in other[query].items())


@pytest.mark.parametrize("window", [7, 4096])
def test_every_query_against_the_whole_corpus(tmp_path, model, encoder, search, caplog, window):
    with caplog.at_level(logging.INFO):
        run("rank", *search, "-o", tmp_path / "out.trec", "-m", model, "--window", window)
    same_run(read_run(tmp_path / "out.trec"), by_hand(encoder))
    assert "No candidates: every query is scored against the whole corpus, 5 x 24 pairs" in caplog.text
    assert len(list(ir_measures.read_trec_run(str(tmp_path / "out.trec")))) == 120
    lines = [line.split() for line in (tmp_path / "out.trec").read_text().splitlines()]
    assert [(line[0], int(line[3])) for line in lines] == [
        (query["id"], rank) for query in QUERIES for rank in range(1, 25)
    ]


def test_python_ranks_as_the_command_does(tmp_path, model, search):
    rank_files(*search, tmp_path / "out.run", model, top_k=3, window=9, max_length=20)
    run("rank", *search, "-o", tmp_path / "same.run", "-m", model, "--top-k", 3, "--window", 9, "--max-length", 20)
    assert (tmp_path / "out.run").read_bytes() == (tmp_path / "same.run").read_bytes()


@pytest.mark.parametrize("form", ["run", "table"])
def test_candidates_are_ranked_and_cut(tmp_path, model, encoder, search, form, caplog):
    wanted = {"q3": ["d9", "d1", "d7"], "q0": ["d2", "d11"], "unknown": ["d0", "nowhere"]}
    if form == "run":
        candidates = tmp_path / "first.trec"
        write_run(candidates, {query: dict.fromkeys(names, 0.0) for query, names in wanted.items()})
    else:
        pairs = [
            {"query-id": query, "corpus-id": name, "score": "1"} for query, names in wanted.items() for name in names
        ]
        candidates = write_table(tmp_path / "first.tsv", pairs)
    argv = ["rank", *search, "-m", model, "--candidates", candidates]
    with caplog.at_level(logging.INFO):
        run(*argv, "-o", tmp_path / "all.run")
    same_run(read_run(tmp_path / "all.run"), by_hand(encoder, wanted))
    assert "3 queries without candidates, and the candidates of 1 other" in caplog.text
    run(*argv, "-o", tmp_path / "two.jsonl", "--top-k", 2)
    read = list(read_rows(tmp_path / "two.jsonl"))
    assert [row["query_id"] for row in read] == ["q0", "q3"]
    same_run(
        {row["query_id"]: {entry["id"]: entry["score"] for entry in row["ranking"]} for row in read},
        by_hand(encoder, wanted, 2),
    )
    assert all(row["ranking"] == sorted(row["ranking"], key=lambda entry: -entry["score"]) for row in read)


def test_equal_scores_stand_by_id_in_either_format(tmp_path, model, search):
    corpus = write_table(tmp_path / "same.csv", [{"id": name, "text": "a man"} for name in ("b", "c", "a10", "a9")])
    for name in ("out.trec", "out.jsonl"):
        run("rank", search[0], corpus, "-o", tmp_path / name, "-m", model, "--top-k", 3)
    assert list(read_run(tmp_path / "out.trec")["q0"]) == ["a10", "a9", "b"]
    assert [entry["id"] for entry in next(read_rows(tmp_path / "out.jsonl"))["ranking"]] == ["a10", "a9", "b"]


def test_little_is_in_memory_at_a_time(tmp_path, model, search, monkeypatch):
    run("rank", *search, "-o", tmp_path / "whole.trec", "-m", model)
    monkeypatch.setattr(tables, "ROW_GROUP", 5)
    run("rank", *search, "-o", tmp_path / "parts.trec", "-m", model)
    assert (tmp_path / "parts.trec").read_bytes() == (tmp_path / "whole.trec").read_bytes()
    assert not list(tmp_path.glob("*.part*.*part"))


def test_columns_are_found_and_can_be_named(tmp_path, model, encoder):
    queries = write_table(
        tmp_path / "q.parquet", [{"n": "x", "qid": int(row["id"][1:]), "query": row["text"]} for row in QUERIES]
    )
    corpus = write_table(
        tmp_path / "c.jsonl",
        [{"_id": row["id"], "title": "t", "text": row["text"], "other": row["text"][::-1]} for row in CORPUS],
    )
    argv = ["rank", queries, corpus, "-m", model]
    run(*argv, "-o", tmp_path / "out.jsonl", "--query-text", "query")
    run(*argv, "-o", tmp_path / "out.trec", "--query-text", "query", "--format", "jsonl")
    assert (tmp_path / "out.trec").read_bytes() == (tmp_path / "out.jsonl").read_bytes()
    read = {
        f"q{row['query_id']}": {entry["id"]: entry["score"] for entry in row["ranking"]}
        for row in read_rows(tmp_path / "out.jsonl")
    }
    same_run(read, by_hand(encoder))
    run(
        *argv,
        "-o",
        tmp_path / "title.jsonl",
        "--query-id",
        "query",
        "--query-text",
        "n",
        "--document-id",
        "text",
        "--document-text",
        "title",
    )
    row = next(read_rows(tmp_path / "title.jsonl"))
    assert row["query_id"] == SENTENCES[0]
    assert [entry["score"] for entry in row["ranking"]] == pytest.approx(
        [float(encoder.predict(("x", "t"), show_progress_bar=False))] * 24
    )


@pytest.mark.parametrize(
    ("queries", "corpus", "options", "message"),
    [
        ([{"id": "q 1", "text": "a"}], CORPUS, [], "a query has the id 'q 1'"),
        (QUERIES, [*CORPUS, {"id": "d\xa01", "text": "a"}], [], "has the id 'd\\xa01'"),
        ([*QUERIES, QUERIES[0]], CORPUS, [], "query id 'q0' occurs twice"),
        (QUERIES, [*CORPUS, CORPUS[3]], [], "id 'd3' occurs twice"),
        ([{"id": None, "text": "a"}], CORPUS, [], "queries.jsonl, line 1, column 'id': None is no id"),
        (
            QUERIES,
            [*CORPUS, {"id": "x", "text": None}],
            [],
            "corpus.jsonl, line 25, column 'text': expected a text, found None",
        ),
        ([{"name": "q", "text": "a"}], CORPUS, [], "no column id, _id, qid"),
        ([{"id": "q"}], CORPUS, [], "no column of text, only 'id'.*--query-text"),
        (QUERIES, CORPUS, ["--document-id", "key"], "no column 'key'.*--document-id"),
        (QUERIES, CORPUS, ["--format", "xml"], "--format trec or jsonl"),
        (QUERIES, CORPUS, ["-o", "out.csv"], "--format trec or jsonl"),
        ([], CORPUS, [], "queries.jsonl has no rows"),
    ],
)
def test_what_cannot_be_ranked_is_told_before_the_model_is_loaded(
    tmp_path, model, monkeypatch, queries, corpus, options, message
):
    monkeypatch.setattr(rank_files_module, "load_encoder", None)
    paths = [tmp_path / "queries.jsonl", tmp_path / "corpus.jsonl"]
    for path, rows in zip(paths, (queries, corpus), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = error("rank", *paths, "-o", tmp_path / "out.trec", "-m", model, *options)
    assert all(part in told for part in message.split(".*"))


def test_candidates_that_do_not_fit_are_told(tmp_path, model, classes, search):
    argv = ["rank", *search, "-o", tmp_path / "out.jsonl", "-m", model, "--candidates"]
    write_run(tmp_path / "missing.run", {"q0": {"d0": 1.0, "nowhere": 2.0}})
    assert "The corpus has no document 'nowhere', a candidate for query 'q0'" in error(*argv, tmp_path / "missing.run")
    write_run(tmp_path / "others.run", {"other": {"d0": 1.0}})
    assert "candidates for none of the 5 queries" in error(*argv, tmp_path / "others.run")
    write_table(tmp_path / "names.csv", [{"query": "q0", "doc": "d0"}])
    assert "Rename those of the ids" in error(*argv, tmp_path / "names.csv")
    write_table(tmp_path / "twice.csv", [{"qid": "q0", "docid": "d0"}] * 2)
    assert "twice.csv, line 3: document 'd0' occurs a second time for query 'q0'" in error(
        *argv, tmp_path / "twice.csv"
    )
    assert "3 labels" in error("rank", *search, "-o", tmp_path / "out.trec", "-m", classes)
    assert not list(tmp_path.glob("out*"))


def test_texts_are_found_by_id():
    entries = [(f"d{index}", f"text {index} 漢字") for index in range(10)]
    store = TextStore(iter(entries))
    assert [(name, store[position]) for name, position in store.ids.items()] == entries
    some = TextStore(iter(entries), {"d8", "d2", "nowhere"})
    assert (len(some), {name: some[position] for name, position in some.ids.items()}) == (
        2,
        {"d2": entries[2][1], "d8": entries[8][1]},
    )
    with pytest.raises(DataError, match="id 'd0' occurs twice"):
        TextStore([*entries, entries[0]])
    assert len(TextStore([])) == 0


@pytest.fixture
def confident(tmp_path):
    """A saved model whose sigmoid is 1 in float32 for every pair."""
    model = build_model()
    torch.nn.init.constant_(model.classifier.bias, 25.0)
    describe_scores(model.config, "sigmoid")
    model.save_pretrained(tmp_path / "confident")
    build_tokenizer().save_pretrained(tmp_path / "confident")
    return str(tmp_path / "confident")


@pytest.mark.parametrize("name", ["out.trec", "out.jsonl"])
def test_scores_rounded_to_one_number_keep_their_order(tmp_path, confident, search, name):
    """A run is sorted by its scores alone, by trec_eval in float32, so they differ there in the last digit of that."""
    run("rank", *search, "-o", tmp_path / name, "-m", confident)
    encoder = CrossEncoder(confident)
    if name == "out.trec":
        found = read_run(tmp_path / name)
    else:
        rows = read_rows(tmp_path / name)
        found = {row["query_id"]: {entry["id"]: entry["score"] for entry in row["ranking"]} for row in rows}
    for query in QUERIES:
        pairs = [(query["text"], row["text"]) for row in CORPUS]
        logits = dict(zip((row["id"] for row in CORPUS), encoder.predict(pairs, activation="logits"), strict=True))
        assert list(found[query["id"]]) == sorted(logits, key=lambda name: (-logits[name], name))
        scores = list(found[query["id"]].values())
        assert min(scores) >= 1 - 1e-5
        assert scores == sorted(scores, reverse=True)
        assert len(set(map(np.float32, scores))) == (len(set(logits.values())) if name == "out.trec" else 1)


@pytest.mark.parametrize("top_k", [0, -1, 1.5])
def test_top_k_is_a_number_of_documents(tmp_path, model, search, top_k):
    with pytest.raises(ConfigurationError, match=r"--top-k=.*: expected a whole number, 1 or more"):
        rank_files(*search, tmp_path / "out.trec", model, top_k=top_k)
    assert not (tmp_path / "out.trec").exists()
