"""A model whose weights are in parts on two processes: trained, saved and gone on with as on one."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from training.test_trainer import launch

from cross_trainer import CrossEncoder
from cross_trainer.errors import ConfigurationError
from cross_trainer.training.parts import check_resumable

KEPT = {
    "FSDP": ("pytorch_model_fsdp_0/x.distcp", {"fsdp_plugin": object()}),
    "ZeRO-3": (
        "global_step2/zero_pp_rank_0_mp_rank_00_model_states.pt",
        {"deepspeed_plugin": SimpleNamespace(zero_stage=3)},
    ),
    "ZeRO up to 2": ("global_step2/mp_rank_00_model_states.pt", {"deepspeed_plugin": SimpleNamespace(zero_stage=2)}),
    "all states in each process": ("optimizer.pt", {}),
}


@pytest.mark.parametrize("writer", KEPT)
@pytest.mark.parametrize("runs", KEPT)
def test_checkpoints_of_another_way_are_refused(tmp_path, writer, runs):
    """DeepSpeed's would go on silently without it, with a new optimizer."""
    file = tmp_path / KEPT[writer][0]
    file.parent.mkdir(exist_ok=True)
    file.touch()
    accelerator = SimpleNamespace(state=SimpleNamespace(**KEPT[runs][1]))
    with contextlib.nullcontext() if writer == runs else pytest.raises(ConfigurationError, match=f"{writer}.* {runs}"):
        check_resumable(tmp_path, accelerator)


def test_fsdp_trains_as_one_process_does(tmp_path):
    """Padding-free, in pieces of a token budget of which processes have different numbers, for both kinds of losses."""
    script = Path(__file__).parents[1] / "sharded.py"
    for processes in (1, 2):
        launch(processes, script, str(tmp_path / str(processes)))
    one, two = tmp_path / "1", tmp_path / "2"
    for case, folder in [("pairs", "pairs"), ("lists", "lists"), ("pairs", "in parts"), ("pairs", "resumed")]:
        expected = load_file(one / case / "saved" / "model.safetensors")
        found = load_file(two / folder / "saved" / "model.safetensors")
        assert found.keys() == expected.keys()
        difference = max(float((found[name] - expected[name]).abs().max()) for name in expected)
        assert difference < 1e-5, (folder, difference)
        moved = load_file(one / case / "checkpoint-2" / "model.safetensors")
        assert any(not torch.equal(moved[name], expected[name]) for name in expected)
    for case in ("pairs", "lists"):
        losses = [json.loads((folder / case / "loss.json").read_text()) for folder in (one, two)]
        assert abs(losses[0] - losses[1]) < 1e-4  # of weights that differ by rounding
    pair = [("a man is playing a guitar", "someone plays an instrument")]
    scores = [CrossEncoder(folder / "pairs" / "saved").predict(pair) for folder in (one, two)]
    assert abs(scores[0] - scores[1]) < 1e-5
