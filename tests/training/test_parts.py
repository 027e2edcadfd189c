"""A model whose weights are in parts on two processes: trained, saved and gone on with as on one."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from training.test_trainer import launch

from cross_trainer import CrossEncoder


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
