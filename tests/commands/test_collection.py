"""Measuring on judged collections from the command line: the figures of the written run, and what is refused."""

from __future__ import annotations

import json

import ir_measures
import pytest
from commands import error, run, save, write_collection
from conftest import SENTENCES

from cross_trainer import Collection, CrossEncoder, compare
from cross_trainer.data.trec import read_qrels, read_run, write_qrels, write_run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_collection(tmp_path_factory.mktemp("kitchen"))


def test_figures_are_those_of_ir_measures_on_the_written_run(tmp_path, model, folder):
    first = {f"q{query}": {f"d{(query + step) % 12}": 12.0 - step // 2 for step in range(10)} for query in range(7)}
    write_run(tmp_path / "first.trec", first)
    argv = ["evaluate", model, "--collection", folder, "--candidates", tmp_path / "first.trec", "--top-k", 9]
    argv += ["--metrics", "nDCG@10 mrr@10 AP Success@1", "--run", tmp_path / "out.trec", "-o", tmp_path / "out.json"]
    told = run(*argv, "--confidence", 0.9).stdout
    written, found = read_run(tmp_path / "out.trec"), json.loads((tmp_path / "out.json").read_text())
    cut = Collection(folder, candidates=first, top_k=9)
    assert {name: set(each) for name, each in written.items()} == {n: set(each) for n, each in cut.first_stage.items()}
    write_qrels(tmp_path / "qrels", cut.qrels)
    qrels = read_qrels(tmp_path / "qrels")
    for key, name in {"ndcg@10": "nDCG@10", "mrr@10": "RR@10", "map": "AP", "hit@1": "Success@1"}.items():
        systems = []
        for system, figure in ((written, found[key]), (cut.first_stage, found["first_stage"][key])):
            values = ir_measures.iter_calc([ir_measures.parse_measure(name)], qrels, system)
            each = {value.query_id: value.value for value in values}
            assert figure == pytest.approx(sum(each.values()) / 8, abs=1e-12)
            systems.append([each[query] for query in qrels])
        difference, given = compare(*systems, 0.9), found["difference"][key]
        assert (given["p_value"], given["low"]) == (difference.p_value, pytest.approx(difference.low))
        assert f"[{difference.low:+.4f}, {difference.high:+.4f}]  {difference.p_value:.4f}" in told
    assert found["map_low"] <= found["map"] <= found["map_high"]
    assert "8 queries, 63 candidates, " in told
    assert "90 % interval" in told
    encoder = CrossEncoder(model)
    for query, text in zip(written, SENTENCES, strict=False):
        names = list(written[query])
        logits = encoder.predict([(text, SENTENCES[int(name[1:])]) for name in names], activation="logits")
        assert list(written[query].values()) == pytest.approx(logits.tolist(), abs=1e-4)


def test_bm25_is_the_default_first_stage(model, folder):
    assert "map " in run("evaluate", model, "--collection", folder, "--top-k", 3).stdout


def test_what_cannot_be_measured_is_named(tmp_path, model, folder):
    argv = ["evaluate", model, "--collection", folder]
    assert "splits ['test'], and no 'dev'" in error(*argv, "--split", "dev")
    assert "The metric 'foo'" in error(*argv, "--metrics", "foo")
    assert "there is no such file" in error(*argv, "--candidates", tmp_path / "no.trec")
    assert "DATASET, --calibration say how to read labelled rows" in error(
        *argv[:2], "rows.csv", *argv[2:], "--calibration"
    )
    assert "--top-k, --run say how to read a --collection" in error(*argv[:2], "rows.csv", "--top-k", 3, "--run", "x")
    assert "name a DATASET or a --collection" in error(*argv[:2])
    (tmp_path / "run.trec").write_text("")
    assert "run.trec" in error(*argv, "--run", tmp_path / "run.trec")
    classes = save(tmp_path / "classes", 3)
    assert "has 3 labels, so there is no one score" in error("evaluate", classes, "--collection", folder)
