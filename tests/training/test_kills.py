"""A training that `kill -9` ends at any moment goes on to the same bits as one that runs through."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import build_model, build_tokenizer
from training.test_trainer import arguments, pairs, weights

import cross_trainer
from cross_trainer import ConfigurationError, CrossEncoderTrainer
from cross_trainer.training.checkpoints import last_complete_checkpoint
from cross_trainer.training.saving import SavingTrainer

KILLS = 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked from a process that has imported torch")
def test_a_killed_training_goes_on_as_if_nothing_had_been(tmp_path):
    """In steps, saves and evaluations; of rows, lists, a stream, a budget of tokens and negatives of a batch."""
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), str(Path(cross_trainer.__file__).parents[1])])
    settings = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(tests / "killed_trainings.py"), str(tmp_path), str(KILLS)]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results) == KILLS
    assert all(each["killed"] for each in results)
    assert set(Counter((each["case"], each["at"][0]) for each in results).values()) <= {1, 2}  # all 15 kinds
    assert any(False in each["left"].values() for each in results), "no kill left a part of a checkpoint"
    assert [each for each in results if each["differs"]] == []


def build(folder, **options):
    return CrossEncoderTrainer(
        build_model(dropout=0.1),
        arguments(folder, save_strategy="steps", save_steps=1, **options),
        train_dataset=pairs(),
        processing_class=build_tokenizer(),
    )


def test_a_checkpoint_that_is_written_again_is_whole_only_at_its_end(tmp_path, monkeypatch):
    build(tmp_path).train()
    whole = build(tmp_path / "whole")
    whole.train()
    again = build(tmp_path, learning_rate=0.5)

    def die(*_args, **_kwargs):
        if again.state.global_step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(SavingTrainer, "_complete", die)
    with pytest.raises(KeyboardInterrupt):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    monkeypatch.undo()
    assert (tmp_path / "checkpoint-3" / "model.safetensors").exists()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    resumed = build(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(weights(resumed.model), weights(whole.model))


@pytest.mark.parametrize("left", [None, "", "{"])
def test_no_part_of_a_checkpoint_is_gone_on_from(tmp_path, left):
    trainer, folder = build(tmp_path), tmp_path / "checkpoint-1"
    with pytest.raises(ConfigurationError, match=r"checkpoint-1 isn't there. Name another one"):
        trainer.train(resume_from_checkpoint=str(folder))
    trainer.model.save_pretrained(folder)
    if left is not None:
        (folder / "trainer_state.json").write_text(left)
    with pytest.raises(ConfigurationError, match=r"checkpoint-1 was not written to its end. .* pass True"):
        trainer.train(resume_from_checkpoint=str(folder))
    shutil.rmtree(folder)
