"""Every kind of model in a folder, as the tools of recipes/interop read it that CI installs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from interop import readers
from interop.folders import KINDS, PAIRS
from interop.matrix import KINDS as ROWS
from interop.matrix import REQUIREMENTS, TOOLS, describe

SOME = PAIRS[::3]
TEXTS = [(first, second) for first, second, _ in SOME]
EMPTY = np.array([group == "empty" for _, _, group in SOME])

ACTIVATED_ALWAYS = {"multilabel", "ranking", "regression"}
"""Kinds whose activation text-embeddings-inference doesn't read."""


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "binary"])  # which is larger than the others
def test_readers_give_our_scores(tmp_path, kind):
    torch.manual_seed(0)
    KINDS[kind](tmp_path / kind)
    told = {name: np.array(values)[::3] for name, values in json.loads((tmp_path / f"{kind}.json").read_text()).items()}
    folder = str(tmp_path / kind)
    for read in (readers.ours, readers.score, readers.sentence_transformers):
        np.testing.assert_allclose(read(folder, TEXTS), told["scores"], atol=1e-5, err_msg=read.__name__)
    np.testing.assert_allclose(readers.automodel(folder, TEXTS), told["logits"], atol=1e-5)
    shown = np.array(readers.pipeline(folder, TEXTS))
    np.testing.assert_allclose(shown[~EMPTY], told["scores"][~EMPTY], atol=1e-5)
    servers = (readers.vllm, readers.text_embeddings_inference)
    if kind == "lora":
        for read in servers:
            with pytest.raises(FileNotFoundError, match=r"config\.json"):
                read(folder, TEXTS)
        return
    for read in servers[: 1 if kind in ACTIVATED_ALWAYS else 2]:
        np.testing.assert_allclose(read(folder, TEXTS), told["scores"], atol=1e-5, err_msg=read.__name__)


def test_a_cell_tells_what_the_numbers_are():
    logits = [0.5, -1.0, 2.0]
    expected = {"scores": (1 / (1 + np.exp(-np.array(logits)))).tolist(), "logits": logits}
    groups = ["plain", "long", "plain"]
    assert describe({"scores": expected["scores"]}, expected, groups) == "0e+00"
    assert describe({"scores": [0.5, -1.25, 2.0]}, expected, groups) == "logits 0e+00; not long"
    assert describe({"scores": [9.0, 9.0, 9.0]}, expected, groups) == "other numbers"
    assert describe({"error": "no such file"}, expected, groups) == "no"
    several = {"scores": [[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]], "logits": [[0.0, 1.0], [2.0, 1.0], [1.0, 1.0]]}
    assert describe({"scores": [0.8, 0.4, 0.5]}, several, groups) == "class 1 0e+00"


def test_every_tool_has_a_reader_and_requirements():
    assert set(TOOLS) - {"transformers_js"} == set(readers.READERS)
    assert {tool.environment for tool in TOOLS.values()} - {None} == set(REQUIREMENTS)
    assert set(ROWS) == set(KINDS)
