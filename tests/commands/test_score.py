"""What scoring a table writes, what is refused in one line, and that a killed command continues to the same bytes."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import error, expected, make_rows, run, save, scores_in, stop_after, write_table
from conftest import build_model, build_tokenizer

from cross_trainer.commands import score as score_file_module
from cross_trainer.commands.partial import PartialScores
from cross_trainer.commands.score import score_file, show_progress
from cross_trainer.data.tables import read_rows
from cross_trainer.scoring.cross_encoder import CrossEncoder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return save(tmp_path_factory.mktemp("classes"), 3)


# -- score -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["csv", "tsv", "jsonl", "parquet", "csv.gz"])
@pytest.mark.parametrize("source", ["csv", "tsv", "jsonl", "parquet", "jsonl.gz"])
def test_any_format_to_any_format(tmp_path, model, source, target):
    rows = [{**row, "extra": "x" if "tsv" in source + target else row["extra"]} for row in make_rows(23)]
    write_table(tmp_path / f"in.{source}", rows)
    run("score", tmp_path / f"in.{source}", "-o", tmp_path / f"out.{target}", "--model", model, "--window", 10)
    read = list(read_rows(tmp_path / f"out.{target}"))
    assert [{name: value for name, value in row.items() if name != "score"} for row in read] == rows
    assert np.abs(scores_in(tmp_path / f"out.{target}") - expected(model, rows)).max() < 1e-6
    assert {path.name for path in tmp_path.iterdir()} == {f"in.{source}", f"out.{target}"}


def test_python_scores_as_the_command_does(tmp_path, model):
    rows = make_rows(9)
    source = write_table(tmp_path / "in.csv", rows)
    score_file(source, tmp_path / "out.csv", model, symmetric=True, window=4, max_length=20)
    run("score", source, "-o", tmp_path / "same.csv", "-m", model, "--symmetric", "--window", 4, "--max-length", 20)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "same.csv").read_bytes()


def test_several_labels_make_a_column_each(tmp_path, classes):
    rows = make_rows(9)
    write_table(tmp_path / "in.csv", rows)
    run("score", tmp_path / "in.csv", "-o", tmp_path / "out.csv", "-m", classes)
    names = ["score_no", "score_maybe", "score_yes"]
    assert list(next(read_rows(tmp_path / "out.csv"))) == [*rows[0], *names]
    assert np.abs(scores_in(tmp_path / "out.csv", names) - expected(classes, rows)).max() < 1e-6
    run("score", tmp_path / "in.csv", "-o", tmp_path / "out.parquet", "-m", classes, "--score-column", "p")
    assert np.array_equal(
        scores_in(tmp_path / "out.parquet", ["p_no", "p_maybe", "p_yes"]), scores_in(tmp_path / "out.csv", names)
    )


@pytest.mark.parametrize(
    ("options", "other", "call"),
    [
        (["--symmetric"], {}, {"symmetric": True}),
        (["--logits"], {}, {"activation": "logits"}),
        (["--max-length", "8"], {"max_length": 8}, {}),
        (["--dtype", "bfloat16"], {"dtype": "bfloat16"}, {}),
        (["--quantize", "int8"], {"quantize": "int8"}, {}),
        (["--text-columns", "second", "first"], {}, {"columns": ("second", "first")}),
    ],
)
def test_options_change_the_scores_as_they_do_in_python(tmp_path, model, options, other, call):
    rows = make_rows(12)
    write_table(tmp_path / "in.jsonl", rows)
    run("score", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl", "-m", model, *options)
    same = CrossEncoder(model, **other).predict(
        rows, show_progress_bar=False, **{"columns": ("first", "second"), **call}
    )
    assert np.abs(scores_in(tmp_path / "out.jsonl") - same).max() < 1e-6
    assert np.abs(scores_in(tmp_path / "out.jsonl") - expected(model, rows)).max() > 1e-5


def test_rows_are_checked_before_the_model_is_loaded(tmp_path, model, monkeypatch):
    monkeypatch.setattr(score_file_module, "load_encoder", None)
    rows = make_rows(5)
    write_table(tmp_path / "in.jsonl", [*rows, {**rows[0], "second": None}])
    told = error("score", tmp_path / "in.jsonl", "-o", tmp_path / "out.csv", "-m", model)
    assert "in.jsonl, line 6, column 'second': expected a text, found None (NoneType). Filter such rows out" in told
    write_table(tmp_path / "in.csv", rows)
    assert "has a tab or a line break" in error("score", tmp_path / "in.csv", "-o", tmp_path / "out.tsv", "-m", model)
    assert "no column 'nowhere'" in error(
        "score", tmp_path / "in.csv", "-o", tmp_path / "o.csv", "-m", model, "--text-columns", "first", "nowhere"
    )
    assert "error: " + str(tmp_path / "none.csv") + ": No such file" in error(
        "score", tmp_path / "none.csv", "-o", "out.csv", "-m", model
    )
    assert "is not the name of a table" in error("score", tmp_path / "in.csv", "-o", tmp_path / "out.xls", "-m", model)
    assert not list(tmp_path.glob("o*"))


def test_a_column_of_the_same_name_is_not_lost(tmp_path, model):
    write_table(tmp_path / "in.csv", [{**row, "score": "5"} for row in make_rows(3)])
    assert "column 'score' of its own" in error("score", tmp_path / "in.csv", "-o", tmp_path / "out.csv", "-m", model)
    run("score", tmp_path / "in.csv", "-o", tmp_path / "out.csv", "-m", model, "--score-column", "mine")
    assert {row["score"] for row in read_rows(tmp_path / "out.csv")} == {"5"}
    assert len(scores_in(tmp_path / "out.csv", ["mine"])) == 3


def test_nothing_is_replaced_unasked(tmp_path, model):
    source = write_table(tmp_path / "in.csv", make_rows(3))
    (tmp_path / "out.csv").write_text("a thesis")
    assert "--overwrite" in error("score", source, "-o", tmp_path / "out.csv", "-m", model)
    assert "is the input itself" in error("score", source, "-o", source, "-m", model, "--overwrite")
    assert (tmp_path / "out.csv").read_text() == "a thesis"
    run("score", source, "-o", tmp_path / "out.csv", "-m", model, "--overwrite")
    assert len(list(read_rows(tmp_path / "out.csv"))) == 3


@pytest.mark.parametrize("target", ["csv", "jsonl", "parquet"])
def test_an_empty_table_stays_empty(tmp_path, model, target):
    (tmp_path / "in.csv").write_text("a,b\n")
    run("score", tmp_path / "in.csv", "-o", tmp_path / f"out.{target}", "-m", model)
    assert list(read_rows(tmp_path / f"out.{target}")) == []


def test_scores_that_are_not_finite_and_empty_texts_are_told(tmp_path, caplog):
    broken = build_model()
    torch.nn.init.constant_(broken.classifier.bias, math.nan)
    broken.save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    write_table(tmp_path / "in.csv", [{"a": "x", "b": ""}, {"a": "x", "b": "y"}])
    with caplog.at_level(logging.INFO):
        run("score", tmp_path / "in.csv", "-o", tmp_path / "out.csv", "-m", tmp_path / "model")
    assert "2 scores are not finite" in caplog.text
    assert "1 of the texts are empty" in caplog.text


# -- killed, and gone on with ------------------------------------------------------------------------------------------

FORKS = """
import json, os, random, signal, sys, time
from pathlib import Path
from cross_trainer.commands import cli
from cross_trainer.data import tables

replace = os.replace

def reached(output, partial, point):
    if point == "joining":
        return (partial / "joined.tmp").exists()
    if point == "joined":
        return output.exists()
    return len(list(partial.glob("scores-*.npy"))) >= point

def start(argv, output, point):
    partial, child = Path(f"{output}.partial"), os.fork()
    if not child:
        def wait_to_be_killed(*names):
            if reached(output, partial, point):
                time.sleep(600)
            replace(*names)

        tables.os.replace = wait_to_be_killed
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        cli.app([*argv, "-o", str(output)])
    while not reached(output, partial, point):
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            sys.exit("It ended before it was killed.")
        time.sleep(0.0005)
    time.sleep(random.random() / 50)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1]), partial.exists(), output.exists()

argv, whole, outputs, points = json.loads(sys.argv[1])
for name in whole:  # uninterrupted, and everything is imported before the forks
    cli.app([*argv, "-o", name], standalone_mode=False)
print(json.dumps([[start(argv, Path(output), point) for point in points] for output in outputs]))
"""


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path, model):
    source = write_table(tmp_path / "in.jsonl", make_rows(95))
    argv = ["score", str(source), "--model", model, "--window", "6"]
    whole, outputs = (
        [str(tmp_path / f"{name}.{suffix}") for suffix in ("csv", "parquet")] for name in ("whole", "out")
    )
    points = [*sorted(random.Random(os.getpid()).sample(range(1, 17), 5)), "joining", "joining", "joined"]
    done = subprocess.run(
        [sys.executable, "-c", FORKS, json.dumps([argv, whole, outputs, points])],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    # Each was killed, with something half done; and the last one between the output and the end.
    assert json.loads(done.stdout) == [[[True, True, point == "joined"] for point in points]] * 2
    for one, other in zip(outputs, whole, strict=True):
        run(*argv, "-o", one)
        assert Path(one).read_bytes() == Path(other).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {
        "in.jsonl",
        "out.csv",
        "out.parquet",
        "whole.csv",
        "whole.parquet",
    }


def half_done(tmp_path, model, monkeypatch, *options):
    """A command that was stopped after two of four windows."""
    source = write_table(tmp_path / "in.csv", make_rows(20))
    argv = ["score", source, "-o", tmp_path / "out.csv", "-m", model, "--window", 5, *options]
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(RuntimeError):
            run(*argv)
    return argv


def test_what_is_done_is_not_done_again(tmp_path, model, monkeypatch, caplog):
    argv = half_done(tmp_path, model, monkeypatch)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.csv.partial").glob("scores-*")}
    assert len(before) == 2
    with caplog.at_level(logging.INFO), monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(RuntimeError):
            run(*argv)
    assert "Continuing: 2 of 4 windows of 5 pairs are done" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in before} == before
    run(*argv)
    assert np.abs(scores_in(tmp_path / "out.csv") - expected(model, make_rows(20))).max() < 1e-6


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--window", 4], "--window 5 there, 4 here"),
        (["--symmetric"], "--symmetric False there, True here"),
        (["--logits"], "--logits False there, True here"),
        (["--max-length", 20], "--max-length 64 there, 20 here"),
        (["--max-tokens", 500], "--max-tokens 1024 there, 500 here"),
        (["--dtype", "bfloat16"], "--dtype 'float32' there, 'bfloat16' here"),
        (["--quantize", "int8"], "--quantize None there, 'int8' here"),
        (["--text-columns", "second", "first"], "--text-columns ['first', 'second'] there, ['second', 'first'] here"),
        ("model", "another model"),
        ("file", "another input"),
    ],
)
def test_a_half_done_output_of_something_else_is_refused(tmp_path, model, monkeypatch, change, told):
    argv = half_done(tmp_path, model, monkeypatch)
    if change == "model":
        argv[5] = save(tmp_path / "other", seed=1)
    elif change == "file":
        write_table(tmp_path / "in.csv", make_rows(20, seed=1))
    else:
        argv += change
    refusal = error(*argv)
    assert f"out.csv.partial holds a half-done output of other settings ({told})" in refusal
    assert "delete that folder or pass --overwrite" in refusal
    run(*argv, "--overwrite")
    anew = tmp_path / "out.csv"
    first = anew.read_bytes()
    anew.unlink()
    run(*argv)
    assert anew.read_bytes() == first


def test_a_touched_file_and_a_moved_model_are_the_same(tmp_path, model, monkeypatch):
    argv = half_done(tmp_path, model, monkeypatch)
    os.utime(tmp_path / "in.csv", (1, 1))
    argv[5] = shutil.copytree(model, tmp_path / "moved")
    (tmp_path / "moved" / "README.md").write_text("a note")
    run(*argv)
    assert len(scores_in(tmp_path / "out.csv")) == 20


def test_a_file_that_changes_while_it_is_scored_is_refused(tmp_path, model, monkeypatch):
    source = write_table(tmp_path / "in.csv", make_rows(20))
    keep = PartialScores.save

    def change(self, index, scores):
        write_table(tmp_path / "in.csv", make_rows(20, seed=1))
        keep(self, index, scores)

    monkeypatch.setattr(PartialScores, "save", change)
    assert "was changed while it was being scored" in error("score", source, "-o", tmp_path / "out.csv", "-m", model)
    assert not (tmp_path / "out.csv").exists()


def test_overwriting_goes_on_too(tmp_path, model, monkeypatch, caplog):
    (tmp_path / "out.csv").write_text("a thesis")
    argv = half_done(tmp_path, model, monkeypatch, "--overwrite")
    assert "--overwrite" in error(*argv[:-1])
    assert (tmp_path / "out.csv").read_text() == "a thesis"
    with caplog.at_level(logging.INFO):
        run(*argv)
    assert "Continuing: 2 of 4 windows of 5 pairs are done" in caplog.text
    assert len(scores_in(tmp_path / "out.csv")) == 20


def test_killed_between_output_and_cleaning_up(tmp_path, model, monkeypatch, caplog):
    source = write_table(tmp_path / "in.csv", make_rows(7))
    argv = ["score", source, "-o", tmp_path / "out.csv", "-m", model, "--window", 5]
    for name, stop in (("finish", None), ("remove", stop_removing())):
        with monkeypatch.context() as patch:
            patch.setattr(PartialScores, name, stop)
            with pytest.raises(TypeError):
                run(*argv)
        whole = (tmp_path / "out.csv").read_bytes()
        with caplog.at_level(logging.INFO):
            run(*argv)
        assert (tmp_path / "out.csv").read_bytes() == whole
        assert {path.name for path in tmp_path.iterdir()} == {"in.csv", "out.csv"}
        if name == "finish":
            (tmp_path / "out.csv").unlink()
    assert "out.csv is complete" in caplog.text


def stop_removing():
    """The removal of what isn't there works, that of what is done doesn't."""
    remove = PartialScores.remove

    def stop(self):
        if (self.folder / "done.json").exists():
            raise TypeError
        remove(self)

    return stop


def test_another_file_in_the_outputs_place_is_kept(tmp_path, model, monkeypatch):
    source = write_table(tmp_path / "in.csv", make_rows(7))
    argv = ["score", source, "-o", tmp_path / "out.csv", "-m", model]
    with monkeypatch.context() as patch:
        patch.setattr(PartialScores, "finish", None)
        with pytest.raises(TypeError):
            run(*argv)
    (tmp_path / "out.csv").write_text("a thesis")
    assert "--overwrite" in error(*argv)
    assert (tmp_path / "out.csv").read_text() == "a thesis"
    run(*argv, "--overwrite")
    assert len(scores_in(tmp_path / "out.csv")) == 7


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stderr", [io.StringIO(), Terminal()])
def test_progress_is_shown_to_who_watches(monkeypatch, stderr):
    monkeypatch.setattr(sys, "stderr", stderr)
    windows = [np.zeros((20, 1)), np.zeros((10, 1))]
    assert list(map(len, show_progress(windows, 60))) == [20, 10]
    if stderr.isatty():
        assert "Scoring:   0%" in stderr.getvalue()
        assert re.search(r"Scoring:  50%.*30/60 \[00:00<00:.*pairs/s", stderr.getvalue())
    else:
        assert not stderr.getvalue()
