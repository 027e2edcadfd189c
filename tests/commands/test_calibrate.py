"""A calibrated folder from the command line, its figures, and what is refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
from commands import error, labelled, run, save
from datasets import Dataset

from cross_trainer.data.fingerprints import fingerprints, joined
from cross_trainer.errors import DataError
from cross_trainer.saved.folder import write_trained_rows
from cross_trainer.scoring.cross_encoder import CrossEncoder
from cross_trainer.training import calibrating


def draw(index):
    return int(np.random.default_rng(index).integers(2))


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(calibrating, "RESAMPLES", 20)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model whose scores rise with the labels."""
    for seed in range(9):
        folder = save(tmp_path_factory.mktemp("model"), seed=seed)
        try:
            CrossEncoder(folder).calibrate(labelled(draw, 60), columns=("first", "second", "label"))
        except DataError:
            continue
        return folder
    raise AssertionError


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.csv"
    Dataset.from_list(labelled(draw, 60)).to_csv(path, index=False)
    return path


OPTIONS = ("--text-columns", "first", "second", "--label-column", "label")


def test_a_calibrated_folder_and_its_figures(tmp_path, model, table):
    told = run("calibrate", model, table, "-o", tmp_path / "new", *OPTIONS, "--confidence", "0.9").stdout
    rows = [(row["first"], row["second"]) for row in labelled(draw, 60)]
    before, after = (CrossEncoder(folder).predict(rows, activation="logits") for folder in (model, tmp_path / "new"))
    slope, bias = np.polyfit(before, after, 1)
    assert float(told.split("temperature=")[1].split(",")[0]) == pytest.approx(1 / slope, rel=1e-3)
    assert after == pytest.approx(slope * before + bias, abs=1e-4)
    assert told.splitlines()[1].split() == ["before", "after"]
    assert [line.split()[0] for line in told.splitlines()[2:12]] == [
        *("ece", "brier", "brier_reliability", "brier_resolution", "brier_uncertainty", "log_loss"),
        *("accuracy@0.5", "f1@0.5", "precision@0.5", "recall@0.5"),
    ]
    assert "[90 % intervals]" in told
    assert "60 pairs, on which it was fitted: measure it on others. Saved in" in told
    measured = run("evaluate", tmp_path / "new", table, *OPTIONS, "--calibration").stdout
    ece = next(line.split()[1] for line in measured.splitlines() if line.startswith("ece "))
    shown = next(line.split() for line in told.splitlines() if line.startswith("ece "))
    assert shown[4] == ece != shown[1]


def test_a_threshold_is_shown_on_both_sides(tmp_path, model, table):
    told = run("calibrate", model, table, "-o", tmp_path / "new", *OPTIONS, "--threshold", "recall>=0.9").stdout
    assert told.splitlines()[1].split(maxsplit=2) == ["before", "calibrated", "0.5 moved"]
    recall = next(line for line in told.splitlines() if line.startswith("recall@0.5"))
    assert float(recall.split()[7]) >= 0.9


def test_what_is_refused(tmp_path, model, table):
    argv = ["calibrate", model, table, "-o", tmp_path / "new", *OPTIONS]
    assert "threshold='best': expected" in error(*argv, "--threshold", "best")
    assert "can't be reached on these 60 rows: the highest precision is" in error(
        *argv[:2], low_precision(tmp_path / "low.csv", model), *argv[3:], "--threshold", "precision>=0.99"
    )
    assert "calibrate the model's own weights" in error(*argv, "--quantize", "int8")
    assert not (tmp_path / "new").exists()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "notes").write_text("mine")
    assert "is there and not empty. Name another folder, or pass --overwrite" in error(*argv)
    run(*argv, "--overwrite")
    one = tmp_path / "one.csv"
    Dataset.from_list(labelled(lambda _: 1)).to_csv(one, index=False)
    assert "all 24 labels are 1" in error("calibrate", model, one, "-o", tmp_path / "other", *OPTIONS)


def low_precision(path, model):
    """Rows, of which the one that the model likes best is negative, and every other one of the rest."""
    rows = labelled(draw, 60)
    scores = CrossEncoder(model).predict([(row["first"], row["second"]) for row in rows], show_progress_bar=False)
    for rank, index in enumerate(np.argsort(-scores)):
        rows[index]["label"] = int(rank % 2 == 1 and rank < 40)
    Dataset.from_list(rows).to_csv(path, index=False)
    return path


def test_rows_trained_on_are_refused(tmp_path, table):
    folder = tmp_path / "model"
    save(folder)
    write_trained_rows(folder, joined(fingerprints((row["first"], row["second"]) for row in labelled(draw, 20))))
    told = error("calibrate", folder, table, "-o", tmp_path / "new", *OPTIONS)
    assert "The model was trained on 22 of 60 of these pairs, the first in row 0: (" in told
