"""Judged collections: read from a folder, the Hub and ir_datasets, with the candidates of any first stage."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from hub_server import serve

from cross_trainer import Collection, DenseRetriever
from cross_trainer.data.collections import parse_measures
from cross_trainer.data.trec import as_ranked, read_run, write_run
from cross_trainer.errors import ConfigurationError, DataError, MissingDependencyError
from cross_trainer.metrics.runs import RunMetrics

CORPUS = {
    "d1": ("Eggs", "Boil an egg for eight minutes."),
    "d2": ("", "An egg is laid by a hen."),
    "d3": ("Kites", "A kite needs wind."),
    "d4": ("", "Wind moves the sails of a mill."),
    "d5": ("", "Nothing that was asked for."),
}
QUERIES = {"q1": "how to boil an egg", "q2": "wind for a kite", "q3": "zebra", "q4": "egg without a judgement"}
QRELS = {"q1": {"d1": 2, "d2": 0, "d5": 1}, "q2": {"d3": 1, "d4": -1}, "q3": {"d5": 1}}


def write_collection(folder, corpus=CORPUS, queries=QUERIES, qrels=QRELS, split="test"):
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    documents = [
        {"_id": name, "title": title, "text": text, "metadata": {name: 1}} for name, (title, text) in corpus.items()
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    asked = [{"_id": name, "text": text} for name, text in queries.items()]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    lines = [f"{query}\t{name}\t{grade}\n" for query, grades in qrels.items() for name, grade in grades.items()]
    (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_collection(tmp_path / "eggs")


def test_rows_are_judged_queries_with_their_candidates(folder, caplog):
    collection = Collection(folder, candidates="bm25", top_k=2)
    assert (collection.name, len(collection)) == ("eggs", 2)  # q3 has no candidate, q4 no judgement
    assert collection[0] == {
        "query": "how to boil an egg",
        "documents": ["Eggs Boil an egg for eight minutes.", "An egg is laid by a hen."],
        "labels": [2, 0],
        "num_relevant": 2,
    }
    assert collection[-1]["labels"] == [1, 0]
    assert [row["query"] for row in collection] == [row["query"] for row in collection[:]] == list(QUERIES.values())[:2]
    assert list(collection.candidates) == ["q1", "q2"]
    assert collection.missed == 2
    assert "1 of 3 queries have no candidates and count 0" in caplog.text
    with pytest.raises(IndexError):
        collection[2]


def test_candidates_of_every_kind(folder, tmp_path):
    run = {"q1": {"d5": 0.5, "d2": 0.5, "d1": 0.25}, "q2": {"d3": 1.0}, "q9": {"d1": 1.0}}
    write_run(tmp_path / "run.trec", run)
    from_file = Collection(folder, candidates=str(tmp_path / "run.trec"), top_k=2)
    assert from_file.first_stage == {"q1": {"d5": 0.5, "d2": 0.5}, "q2": {"d3": 1.0}}
    assert Collection(folder, candidates=run, top_k=2).first_stage == from_file.first_stage
    order = Collection(folder, candidates=lambda queries, k: [[4, 0, 1]] * len(queries), top_k=2)
    assert {query: list(found) for query, found in order.first_stage.items()} == {
        query: ["d5", "d1"] for query in QRELS
    }
    letters = DenseRetriever(lambda texts: [[text.lower().count(each) for each in "egkw"] for text in texts])
    assert next(iter(Collection(folder, candidates=letters, top_k=1).first_stage["q1"])) == "d1"


def test_the_query_itself_is_no_candidate(tmp_path):
    texts = {"a1": ("Title", "wind in the sails"), "q1": ("", "wind"), "a3": ("", "wind wind")}
    folder = write_collection(tmp_path, texts, {"q1": "wind"}, {"q1": {"a1": 1}})
    assert set(Collection(folder, top_k=2).first_stage["q1"]) == {"a1", "a3"}
    other = write_collection(tmp_path / "other", texts, {"q1": "wind sails"}, {"q1": {"a1": 1}})
    assert "q1" in Collection(other).first_stage["q1"]  # ids are alike by chance


@pytest.mark.parametrize("ties", [False, True])
def test_metrics_are_those_of_the_written_run(tmp_path, ties):
    draw = np.random.default_rng(1)
    corpus = {f"d{index}": ("", f"text {index}") for index in range(40)}
    queries = {f"q{index}": f"text {index}" for index in range(12)}
    qrels = {query: {f"d{each}": int(draw.integers(-1, 4)) for each in draw.permutation(40)[:15]} for query in queries}
    folder = write_collection(tmp_path, corpus, queries, qrels)
    names = "nDCG@10 RR@10 RR AP AP(rel=2) R@10 P@5 Success@1 Bpref Rprec Judged@10 nDCG"
    found = Collection(folder, candidates=lambda asked, k: [list(range(20 + 19))] * len(asked), top_k=39, metrics=names)
    logits = draw.normal(size=(12, 39)).astype(np.float32)
    if ties:
        logits = np.round(logits)
        logits[0] = 25 + np.arange(39) * np.float32(1e-9)  # equal in float32
    metrics = RunMetrics(found.qrels, found.candidates, found.measures, as_ranked)
    run = metrics.run(logits)
    write_run(tmp_path / "run.trec", run)
    expected = ir_measures.calc_aggregate(list(found.measures.values()), qrels, read_run(tmp_path / "run.trec"))
    evaluation = type("Evaluation", (), {"predictions": logits, "label_ids": None})
    assert metrics(evaluation) == pytest.approx(
        {key: expected[each] for key, each in found.measures.items()}, abs=1e-12
    )
    # Tools that break ties otherwise see the order that trec_eval sees in the plain scores.
    plain = {
        query: dict(zip(each, row.tolist(), strict=True))
        for (query, each), row in zip(found.candidates.items(), logits, strict=True)
    }
    assert ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, plain)[ir_measures.nDCG @ 10] == pytest.approx(
        metrics(evaluation)["ndcg@10"]
    )
    in_order = {query: {name: -rank for rank, name in enumerate(each)} for query, each in run.items()}
    assert metrics.report(metrics.per_query(in_order)) == metrics(evaluation)


def test_missed_documents_and_queries_lower_the_metrics(folder):
    found = Collection(
        folder, candidates={"q1": {"d1": 1.0, "d2": 0.5}, "q2": {"d3": 1.0}}, metrics="ndcg@10 R@10 mrr@10"
    )
    metrics = RunMetrics(found.qrels, found.candidates, found.measures, as_ranked, confidence=0.9)
    perfect = metrics(type("Evaluation", (), {"predictions": np.array([[1.0, 0.0], [1.0, -100]]), "label_ids": None}))
    ideal = 2 + 1 / np.log2(3)
    assert perfect["ndcg@10"] == pytest.approx((2 / ideal + 1 + 0) / 3)
    assert (perfect["recall@10"], perfect["mrr@10"]) == (pytest.approx(1.5 / 3), pytest.approx(2 / 3))
    assert perfect["ndcg@10_low"] <= perfect["ndcg@10"] <= perfect["ndcg@10_high"]


def test_a_score_that_is_no_number_makes_its_query_undefined(folder, caplog):
    found = Collection(folder, candidates={"q1": {"d1": 1.0, "d2": 0.5}, "q2": {"d3": 1.0}})
    metrics = RunMetrics(found.qrels, found.candidates, found.measures, as_ranked)
    values = metrics.per_query(metrics.run([[np.nan, 0.0], [1.0, -100]]))
    assert np.isnan(values["ndcg@10"]).tolist() == [True, False, False]
    assert np.isnan(metrics.report(values)["map"])
    assert "1 of 3 queries have scores that are NaN" in caplog.text
    with pytest.raises(ConfigurationError, match=r"2 queries of up to 2 candidates.*it got predictions \(2, 1\)"):
        metrics.run([[1.0], [1.0]])


def test_splits_and_compressed_files(folder):
    write_collection(folder, qrels={"q2": {"d4": 1}}, split="dev")
    assert Collection(folder).qrels == QRELS
    assert Collection(folder, "dev").qrels == {"q2": {"d4": 1}}
    (folder / "qrels" / "test.tsv").unlink()
    assert Collection(folder).qrels == {"q2": {"d4": 1}}  # the only one
    with gzip.open(folder / "corpus.jsonl.gz", "wt") as file:
        file.write((folder / "corpus.jsonl").read_text())
    (folder / "corpus.jsonl").unlink()
    assert Collection(folder)[0]["documents"][0] == "Kites A kite needs wind."


# -- what can go wrong -------------------------------------------------------------------------------------------------

BROKEN = {
    "no corpus": (lambda folder: (folder / "corpus.jsonl").unlink(), "has no corpus.jsonl: expected"),
    "no judgements": (
        lambda folder: (folder / "qrels" / "test.tsv").rename(folder / "test.tsv"),
        r"qrels has the splits \[\]",
    ),
    "no document": (
        lambda folder: append(folder / "qrels/test.tsv", "q1\td9\t1"),
        "the document 'd9', and the corpus doesn't",
    ),
    "no query": (
        lambda folder: append(folder / "qrels/test.tsv", "q9\td1\t1"),
        "the query 'q9', and the queries don't",
    ),
    "twice judged": (
        lambda folder: append(folder / "qrels/test.tsv", "q1\td1\t1"),
        "test.tsv, line 8: document 'd1' occurs a second",
    ),
    "no grade": (
        lambda folder: append(folder / "qrels/test.tsv", "q1\td3\thigh"),
        "test.tsv, line 8, column 'score': 'high' is no whole",
    ),
    "short line": (
        lambda folder: append(folder / "qrels/test.tsv", "q1\td3"),
        "test.tsv, line 8: 2 fields, but the first line has 3",
    ),
    "no header": (
        lambda folder: (folder / "qrels/test.tsv").write_text("q1\td1\t1\n"),
        r"no column 'query-id', but \['q1', 'd1', '1'\]",
    ),
    "no row": (
        lambda folder: (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n"),
        "has no judgement",
    ),
    "broken line": (lambda folder: append(folder / "corpus.jsonl", "{"), "corpus.jsonl, line 6: not JSON"),
    "no text": (
        lambda folder: append(folder / "corpus.jsonl", '{"_id": "d6", "text": null}'),
        "line 6, column 'text': expected a text",
    ),
    "no id": (
        lambda folder: append(folder / "corpus.jsonl", '{"_id": "d 6", "text": ""}'),
        "line 6, column '_id': 'd 6' is no id",
    ),
    "twice": (
        lambda folder: append(folder / "queries.jsonl", '{"_id": "q1", "text": ""}'),
        "query id 'q1' occurs twice",
    ),
    "empty": (lambda folder: (folder / "queries.jsonl").write_text(""), "queries.jsonl has no rows"),
}


def append(path, line):
    path.write_text(path.read_text() + line + "\n")


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_folder_is_named(folder, kind):
    damage, message = BROKEN[kind]
    damage(folder)
    with pytest.raises((DataError, ConfigurationError), match=message):
        Collection(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "train"}, r"splits \['test'\], and no 'train'"),
        ({"top_k": 0}, "top_k=0: expected a whole number"),
        ({"metrics": "nDCG@10 foo"}, "The metric 'foo' is none of ir_measures"),
        ({"metrics": "Recall"}, "The metric 'Recall' is none of"),
        ({"metrics": "RBP"}, "'RBP' needs a package that isn't installed"),
        ({"metrics": "NumRet"}, "'NumRet' is a count"),
        ({"metrics": " "}, "No metric is named"),
        ({"candidates": "nowhere.trec"}, "there is no such file"),
        ({"candidates": Path("nowhere")}, "there is no such file"),
        ({"candidates": 3}, "retriever=3: expected 'bm25'"),
    ],
)
def test_wrong_arguments_are_named_at_once(folder, options, message):
    (folder / "corpus.jsonl").write_text("{")  # nobody has read it
    with pytest.raises(ConfigurationError, match=message):
        Collection(folder, **options)


def test_candidates_are_checked(folder):
    with pytest.raises(DataError, match="no document 'd9', a candidate of query 'q1'"):
        _ = Collection(folder, candidates={"q1": {"d9": 1.0}}).first_stage
    with pytest.raises(DataError, match="no candidate for any of the 3 judged queries"):
        _ = Collection(folder, candidates={"q4": {"d1": 1.0}}).first_stage


@pytest.mark.parametrize("name", ["nowhere", "./nowhere/at/all", "/nowhere"])
def test_a_source_that_is_not_there(name):
    with pytest.raises(ConfigurationError, match="isn't there: expected a folder"):
        Collection(name)


def test_names_are_those_of_ranking_metrics():
    assert list(parse_measures("ndcg@5 mrr@10 map recall@3 precision@1 hit@1")) == [
        *("ndcg@5", "mrr@10", "map", "recall@3", "precision@1", "hit@1")
    ]


def test_without_ir_measures(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(MissingDependencyError, match=r"cross-trainer\[collections\]"):
        Collection(folder)


# -- elsewhere ---------------------------------------------------------------------------------------------------------

ON_HUB = """
import sys
from cross_trainer import Collection
from cross_trainer.errors import ConfigurationError

found = Collection("NanoEggs", candidates="bm25", top_k=2)
print(found.name, found.qrels, found[0])
for name, split in (("NanoNothing", None), ("zeta-alpha-ai/NanoEggs", "dev")):
    try:
        Collection(name, split)
    except ConfigurationError as error:
        print(error)
"""


def test_nano_beir_is_read_from_the_hub(tmp_path):
    parts = {
        "corpus": [{"_id": name, "text": text} for name, (_, text) in CORPUS.items()],
        "queries": [{"_id": name, "text": text} for name, text in QUERIES.items()],
        "qrels": [{"query-id": query, "corpus-id": name} for query, names in QRELS.items() for name in names],
    }
    configs = "".join(f"- config_name: {part}\n  data_files: {part}/train.jsonl\n" for part in parts)
    files = {"README.md": f"---\nconfigs:\n{configs}---\n".encode()}
    for part, rows in parts.items():
        files[f"{part}/train.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with serve() as hub:
        hub.repositories["datasets", "zeta-alpha-ai/NanoEggs"] = files
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", ON_HUB], capture_output=True, text=True, check=False, env=environment
        )
    lines = done.stdout.splitlines()
    assert lines, done.stderr
    assert lines[0].startswith("zeta-alpha-ai/NanoEggs {'q1': {'d1': 1, 'd2': 1, 'd5': 1}, 'q2': ")
    assert "'documents': ['Boil an egg for eight minutes.', 'An egg is laid by a hen.'], 'labels': [1, 1]" in lines[0]
    assert "'zeta-alpha-ai/NanoNothing' is neither a file nor a folder" in lines[1]
    assert "splits ['train'], and no 'dev'" in lines[2]


def test_ir_datasets_are_read_by_id(tmp_path):
    ir_datasets = pytest.importorskip("ir_datasets")
    (tmp_path / "docs.tsv").write_text("".join(f"{name}\t{text}\n" for name, (_, text) in CORPUS.items()))
    (tmp_path / "queries.tsv").write_text("".join(f"{name}\t{text}\n" for name, text in QUERIES.items()))
    (tmp_path / "qrels").write_text(
        "".join(f"{q} 0 {d} {g}\n" for q, grades in QRELS.items() for d, g in grades.items())
    )
    paths = {"docs_tsv": "docs.tsv", "queries_tsv": "queries.tsv", "qrels_trec": "qrels"}
    made = ir_datasets.create_dataset(**{name: str(tmp_path / file) for name, file in paths.items()})
    for name, dataset in (
        ("eggs/test", made),
        ("eggs", ir_datasets.create_dataset(docs_tsv=str(tmp_path / "docs.tsv"))),
    ):
        if name not in ir_datasets.registry:
            ir_datasets.registry.register(name, dataset)
    found = Collection("ir_datasets:eggs/test", top_k=2)
    assert (found.name, found.qrels) == ("ir_datasets:eggs/test", QRELS)
    assert found[0]["documents"] == ["Boil an egg for eight minutes.", "An egg is laid by a hen."]
    with pytest.raises(ConfigurationError, match="no data set 'nothing'"):
        Collection("ir_datasets:nothing")
    with pytest.raises(ConfigurationError, match="lacks documents, queries or judgements"):
        Collection("ir_datasets:eggs")
    with pytest.raises(ConfigurationError, match="the id names the split"):
        Collection("ir_datasets:eggs/test", "test")


def test_without_ir_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(MissingDependencyError, match=r"cross-trainer\[ir-datasets\]"):
        Collection("ir_datasets:vaswani")
