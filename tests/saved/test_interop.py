"""Every kind of model in a folder, as the tools of recipes/interop read it that CI installs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from interop import readers
from interop.folders import KINDS, PAIRS
from interop.matrix import KINDS as TITLES
from interop.matrix import describe

SOME = PAIRS[::3]
TEXTS = [(first, second) for first, second, _ in SOME]
EMPTY = np.array([group == "empty" for _, _, group in SOME])


@pytest.mark.parametrize("kind", KINDS)
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
