"""Full disks and places that can't be written to: told before anything long, and nothing is lost during it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commands import error, expected, invoke, labelled, make_rows, run, save, scores_in, write_table
from conftest import build_model, build_tokenizer
from training.test_trainer import arguments, pairs

import cross_trainer
from cross_trainer import ConfigurationError, CrossEncoder, CrossEncoderTrainer, DiskFullError
from cross_trainer.commands.partial import PartialScores
from cross_trainer.commands.rank import TextStore
from cross_trainer.disk import check_space, check_writable
from cross_trainer.training import checkpoints
from cross_trainer.training.checkpoints import checkpoint_size, last_complete_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"))


@pytest.fixture
def full(monkeypatch):
    """Sets how long a file may become, as a disk that fills up does; it is lifted at the end."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def build(folder, model=None, **options):
    return CrossEncoderTrainer(
        build_model() if model is None else model,
        arguments(folder, **options),
        train_dataset=pairs(),
        processing_class=build_tokenizer(),
        card_figures=False,
    )


# -- before ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("file/deep/out.csv", "file is a file, so nothing can be written below it"),
        ("/proc/nowhere/out.csv", "out.csv can't be written: "),
        ("folder", "folder is a folder. Name a file"),
        ("nul\0byte.csv", "no file can have a NUL"),
    ],
)
def test_places_that_cannot_be_written(tmp_path, place, told):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigurationError, match=told):
        check_writable(tmp_path / place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigurationError, match="Permission denied"):
        check_writable(tmp_path / "out.csv")


def test_a_disk_without_space(tmp_path, full):
    full(100)
    with pytest.raises(DiskFullError, match=r"can't be written to its end: the disk is full .* Free some space"):
        check_writable(tmp_path / "deep" / "out.csv")
    with pytest.raises(DiskFullError, match=r"A model takes 1000000000.0 GB, and [0-9.]+ .B are free where .* lies"):
        check_space(tmp_path / "deep", 10**18, "A model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["score", "rank", "mine", "evaluate", "report", "calibrate", "export"])
def test_commands_say_so_before_a_model_is_loaded(tmp_path, model, command, monkeypatch):
    monkeypatch.setattr("cross_trainer.scoring.cross_encoder.CrossEncoder", None)
    rows, queries = tmp_path / "rows.csv", tmp_path / "queries.csv"
    write_table(rows, labelled())
    write_table(queries, [{"id": "q", "text": "a"}])
    suffix = {"rank": ".trec", "report": ".html"}.get(command, ".csv")
    output = tmp_path / "rows.csv" / f"deep{suffix}"
    argv = {
        "score": [rows, "-m", model],
        "rank": [queries, queries, "-m", model],
        "mine": [rows, "-m", model],
        "export": [model, "--to", "onnx"],
    }.get(command, [model, rows])
    assert "rows.csv is a file, so nothing can be written below it" in error(command, *argv, "-o", output)


def test_training_says_so_before_a_model_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="file is a file, so nothing can be written below it"):
        CrossEncoderTrainer("no/model", arguments(tmp_path / "file" / "output"), train_dataset=pairs())
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "file" / "logs"))
    args = arguments(tmp_path / "output")
    args.report_to = ["tensorboard"]
    with pytest.raises(ConfigurationError, match=r"logs: .*file is a file"):
        CrossEncoderTrainer("no/model", args, train_dataset=pairs())


def test_room_for_checkpoints(tmp_path, monkeypatch, caplog):
    trainer = build(tmp_path, save_strategy="epoch", num_train_epochs=5)
    weights = sum(each.numel() * 4 for each in trainer.model.parameters())
    assert checkpoint_size(trainer.args, trainer.model) == 3 * weights
    assert checkpoint_size(arguments(tmp_path, optim="sgd"), trainer.model) == weights
    assert checkpoint_size(arguments(tmp_path, save_only_model=True), trainer.model) == weights
    monkeypatch.setattr("cross_trainer.disk.shutil.disk_usage", lambda _: SimpleNamespace(free=2 * weights))
    with pytest.raises(DiskFullError, match=r"A checkpoint in .* takes .* kB, and .* kB are free"):
        trainer.train()
    assert trainer.state.global_step == 0
    monkeypatch.setattr("cross_trainer.disk.shutil.disk_usage", lambda _: SimpleNamespace(free=13 * weights))
    checkpoints.check_room(trainer.args, trainer.model)
    assert "5 checkpoints of" in caplog.text
    caplog.clear()
    for options in ({"save_total_limit": 2, "save_strategy": "epoch"}, {"save_strategy": "steps", "max_steps": 600}):
        checkpoints.check_room(arguments(tmp_path, **options), trainer.model)
    assert not caplog.text
    build(tmp_path).train()  # saves nothing


# -- during ------------------------------------------------------------------------------------------------------------


def test_scores_outlive_a_disk_that_fills_up(tmp_path, model, full):
    rows = make_rows(300)
    source, output = write_table(tmp_path / "in.csv", rows), tmp_path / "out.csv"
    argv = ["score", source, "-o", output, "-m", model, "--window", 50]
    size = source.stat().st_size
    full(size)  # the scores fit, and the table with them doesn't
    told = error(*argv)
    full(resource.RLIM_INFINITY)
    assert "out.csv can't be written to its end: the disk is full" in told
    assert "Run the same command again: it continues" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv.partial"]
    assert PartialScores(f"{output}.partial").missing(6) == []
    run(*argv)
    assert np.allclose(scores_in(output), expected(model, rows), atol=1e-6)


def test_texts_that_do_not_fit_beside(full):
    full(1000)
    with pytest.raises(DiskFullError, match="TMPDIR"):
        TextStore((str(index), "a text") for index in range(100_000))


SCRIPT = """
import resource, sys
from test_disk import build
from cross_trainer import DiskFullError
from transformers import TrainerCallback

class Fills(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

trainer = build(sys.argv[1], save_strategy="steps", save_steps=1)
trainer.add_callback(Fills())
try:
    trainer.train()
except DiskFullError as error:
    print(error)
"""


def test_checkpoints_outlive_a_disk_that_fills_up(tmp_path):
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests), str(Path(cross_trainer.__file__).parents[1])])
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "checkpoint-2 can't be written to its end: the disk is full" in done.stdout
    assert "Earlier checkpoints are as they were" in done.stdout
    assert not (tmp_path / "checkpoint-2").exists()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
    trainer = build(tmp_path, save_strategy="steps", save_steps=1)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3


def test_saving_says_so(tmp_path, model, full):
    encoder, trainer = CrossEncoder(model), build(tmp_path)
    full(20_000)
    with pytest.raises(DiskFullError, match=r"saved can't be written to its end.*save it again"):
        encoder.save_pretrained(tmp_path / "saved")
    with pytest.raises(DiskFullError, match=r"trained can't be written to its end.*save it again"):
        trainer.save_model(str(tmp_path / "trained"))
    full(resource.RLIM_INFINITY)
    encoder.save_pretrained(tmp_path / "saved")
    assert CrossEncoder(str(tmp_path / "saved")).predict([("a", "b")]) == encoder.predict([("a", "b")])


def test_a_calibration_is_told_before_it_is_saved(tmp_path, model, full):
    scores = expected(model, make_rows(60))
    is_high = (scores > np.median(scores)).tolist()
    rows = labelled(lambda index: int(is_high[index] != (index % 4 == 0)), 60)
    source = write_table(tmp_path / "rows.csv", rows)
    full(50_000)
    result = invoke("calibrate", model, source, "-o", tmp_path / "out")
    assert "Calibration(" in result.stdout, result.stderr
    assert "the disk is full" in result.stderr
