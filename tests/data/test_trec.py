"""TREC files: round trips, what other tools read from them, and what is refused."""

from __future__ import annotations

import ir_measures
import numpy as np
import pytest

from cross_trainer.data.trec import read_qrels, read_run, write_qrels, write_run
from cross_trainer.errors import DataError


def test_run_round_trip_keeps_every_score(tmp_path):
    rng = np.random.default_rng(0)
    run = {
        f"q{q}": {f"d{d}": float(s) for d, s in enumerate(rng.normal(size=20) * 10.0 ** rng.integers(-30, 30))}
        for q in range(5)
    }
    run["ünï"] = {"döc": np.float32(0.1), "d/2": -0.0, "d:3": 5}
    write_run(tmp_path / "run.trec", run)
    assert read_run(tmp_path / "run.trec") == run


def test_run_lines_stand_by_falling_score_with_ranks_from_one(tmp_path):
    write_run(tmp_path / "run", {"q": {"b": 1.0, "a": 1.0, "c": 2.5}}, tag="mine")
    assert (tmp_path / "run").read_text() == "q Q0 c 1 2.5 mine\nq Q0 a 2 1.0 mine\nq Q0 b 3 1.0 mine\n"


def test_ir_measures_reads_our_files_and_we_read_trec_lines(tmp_path):
    run = {"q1": {"d1": 0.25, "d2": 1.75}, "q2": {"d9": -3.0}}
    qrels = {"q1": {"d1": 2, "d2": 0}, "q2": {"d9": 1}}
    write_run(tmp_path / "run", run)
    write_qrels(tmp_path / "qrels", {"q1": {"d1": 2.0, "d2": 0.0}, "q2": {"d9": True}})
    theirs = list(ir_measures.read_trec_run(str(tmp_path / "run")))
    assert {(r.query_id, r.doc_id, r.score) for r in theirs} == {(q, d, s) for q in run for d, s in run[q].items()}
    assert {(r.query_id, r.doc_id, r.relevance) for r in ir_measures.read_trec_qrels(str(tmp_path / "qrels"))} == {
        (q, d, g) for q in qrels for d, g in qrels[q].items()
    }
    assert read_qrels(tmp_path / "qrels") == qrels
    value = ir_measures.calc_aggregate([ir_measures.AP], read_qrels(tmp_path / "qrels"), read_run(tmp_path / "run"))
    assert value[ir_measures.AP] == pytest.approx(0.75)
    (tmp_path / "tabs").write_text("q1\tQ0\td1\t7\t1e-3\tbm25\r\n\n  q1 Q0 d2 1 2 bm25\n")
    assert read_run(tmp_path / "tabs") == {"q1": {"d1": 0.001, "d2": 2.0}}


@pytest.mark.parametrize("bad", ["a b", "", "a\tb", "a\n", " a", "a\u00a0b", 7])
@pytest.mark.parametrize("where", ["query", "document", "tag"])
def test_ids_that_would_not_come_back_are_refused(tmp_path, bad, where):
    ids = {"query": "q", "document": "d", "tag": "t", where: bad}
    with pytest.raises(DataError, match="without whitespace") as caught:
        write_run(tmp_path / "run", {ids["query"]: {ids["document"]: 1.0}}, tag=ids["tag"])
    assert repr(bad) in str(caught.value)
    assert where in str(caught.value)
    assert not (tmp_path / "run").exists()
    if where != "tag":
        with pytest.raises(DataError, match="without whitespace"):
            write_qrels(tmp_path / "qrels", {ids["query"]: {ids["document"]: 1}})


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_refused(tmp_path, score):
    with pytest.raises(DataError, match="document 'd' of query 'q' has the score"):
        write_run(tmp_path / "run", {"q": {"d": score}})


@pytest.mark.parametrize("grade", [0.5, float("nan"), float("inf")])
def test_grades_that_are_not_whole_are_refused(tmp_path, grade):
    with pytest.raises(DataError, match="whole numbers"):
        write_qrels(tmp_path / "qrels", {"q": {"d": grade}})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 d 1 2.0", "line 2: 5 fields instead of 6.*query Q0 document rank score tag"),
        ("q Q0 d 1 2.0 my run", "line 2: 7 fields instead of 6"),
        ("q Q0 d 1 two r", "line 2: the score 'two'"),
        ("q Q0 d 1 nan r", "line 2: the score 'nan'"),
        ("q0 Q0 d0 2 9 r", "line 2: document 'd0' occurs a second time for query 'q0'"),
    ],
)
def test_bad_run_lines_are_named(tmp_path, line, message):
    path = tmp_path / "bad.run"
    path.write_text(f"q0 Q0 d0 1 1.0 r\n{line}\n")
    with pytest.raises(DataError, match=f"bad.run, {message}"):
        read_run(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q 0 d", "line 2: 3 fields instead of 4.*query 0 document grade"),
        ("q 0 d 0.5", "line 2: the grade '0.5' is not a whole number"),
        ("q0 0 d0 1", "line 2: document 'd0' occurs a second time"),
    ],
)
def test_bad_qrels_lines_are_named(tmp_path, line, message):
    path = tmp_path / "bad.qrels"
    path.write_text(f"q0 0 d0 1\n{line}\n")
    with pytest.raises(DataError, match=f"bad.qrels, {message}"):
        read_qrels(path)


def test_empty_files_are_empty_and_missing_files_say_so(tmp_path):
    write_run(tmp_path / "run", {})
    assert read_run(tmp_path / "run") == {}
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_qrels(tmp_path / "nowhere")
