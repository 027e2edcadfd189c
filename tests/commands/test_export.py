"""`cross-trainer export`, and the commands that score with what it has written."""

from __future__ import annotations

import json

import numpy as np
import pytest
from commands import error, expected, labelled, make_rows, run, save, scores_in, stop_after, write_table

for package in ("onnxscript", "onnxruntime"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"), 3)


@pytest.fixture(scope="module")
def told(model):
    return run("export", model, "--to", "onnx").stdout


def test_the_largest_difference_is_printed(model, told):
    assert told.startswith(f"{model}/onnx/model.onnx\n")
    assert "largest difference of logits" in told


def test_an_export_is_not_replaced_unasked(model, told):
    assert "model.onnx exists. Pass --overwrite" in error("export", model, "--to", "onnx")


def test_what_can_not_be_exported_is_one_line(model, tmp_path):
    assert "to='onxx': expected" in error("export", model, "--to", "onxx")
    assert "no bfloat16" in error("export", model, "--to", "onnx", "--precision", "bf16")
    assert "Name the folder to write to with -o" in error("export", "some/name", "--to", "onnx")


def test_scores_and_metrics_are_those_of_torch(model, told, tmp_path):
    rows = make_rows(20)
    table = write_table(tmp_path / "rows.csv", rows)
    run("score", table, "-o", tmp_path / "scored.csv", "-m", model, "--backend", "onnx")
    names = [f"score_{name}" for name in ("no", "maybe", "yes")]
    np.testing.assert_allclose(scores_in(tmp_path / "scored.csv", names), expected(model, rows), atol=1e-5)
    table = write_table(tmp_path / "labelled.csv", labelled(lambda index: ["no", "maybe", "yes"][index % 3]))
    metrics = []
    for backend in ("torch", "onnx"):
        run("evaluate", model, table, "--backend", backend, "-o", tmp_path / f"{backend}.json")
        metrics.append(json.loads((tmp_path / f"{backend}.json").read_text()))
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-5)


def test_half_done_scores_of_another_backend_are_not_used(model, told, tmp_path, monkeypatch):
    table = write_table(tmp_path / "rows.csv", make_rows(20))
    arguments = ("score", table, "-o", tmp_path / "scored.csv", "-m", model, "--window", 5)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(RuntimeError):
            run(*arguments, "--backend", "onnx")
    assert "--backend" in error(*arguments)


def test_a_missing_export_names_the_command(model, tmp_path):
    pytest.importorskip("openvino")
    table = write_table(tmp_path / "rows.csv", make_rows(3))
    arguments = ("score", table, "-o", tmp_path / "scored.csv", "-m", model, "--backend")
    assert f"To write it: cross-trainer export {model} --to openvino" in error(*arguments, "openvino")
    assert "quantize='int8' is for torch" in error(*arguments, "onnx", "--quantize", "int8")
