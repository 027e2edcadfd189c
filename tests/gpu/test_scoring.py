"""Scores on a GPU: those of the CPU, in each precision, on several devices, compiled, ranked, and without waits.

The same functions run on the CPU with fewer cases.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CUDA, SENTENCES, build_tokenizer
from execution.test_padding_free import FAMILIES, build

from cross_trainer import CrossEncoder
from cross_trainer.errors import ConfigurationError

GPU = pytest.mark.cuda
PAIRS = [(a, f"{b} {a}" if place % 3 else b) for a in SENTENCES for place, b in enumerate(SENTENCES)]
DTYPES = ("float32", "bfloat16", "float16")
DEVICES = [["cpu", "cpu"], *(pytest.param(names, marks=GPU) for names in (["cuda:0", "cpu"], ["cuda:0", "cuda:0"]))]
CASES = [("cpu", "bert", "float32"), ("cpu", "modernbert-mean", "bfloat16")]
CASES += [pytest.param("cuda", family, dtype, marks=GPU) for family in FAMILIES for dtype in DTYPES]


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    """Saves a model of a family."""

    def save(family: str) -> Path:
        build(family, num_labels=1, vocab_size=200, pad_token_id=0).save_pretrained(tmp_path)
        build_tokenizer().save_pretrained(tmp_path)
        return tmp_path

    return save


@pytest.mark.parametrize(("device", "family", "dtype"), CASES)
def test_scores_are_those_of_the_cpu_in_float32(folder, device, family, dtype) -> None:
    """In half precision, as near as the padded model's in half precision are."""
    path = folder(family)
    exact = CrossEncoder(path, device="cpu", padding_free=False).predict(PAIRS)
    options = {"device": device, "dtype": dtype, "max_tokens": 400}
    off, theirs = (np.abs(CrossEncoder(path, padding_free=x, **options).predict(PAIRS) - exact) for x in (True, False))
    if dtype == "float32":
        assert off.max() < 1e-3
    else:
        assert off.max() < 2 * theirs.max() + 5e-3
        assert off.mean() < 2 * theirs.mean() + 1e-3


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_ranking_is_that_of_the_cpu(folder, device) -> None:
    path, documents = folder("bert"), SENTENCES
    expected = CrossEncoder(path, device="cpu").rank("a man is cooking", documents, top_k=5)
    found = CrossEncoder(path, device=device).rank("a man is cooking", documents, top_k=5)
    assert [hit["corpus_id"] for hit in found] == [hit["corpus_id"] for hit in expected]
    np.testing.assert_allclose([hit["score"] for hit in found], [hit["score"] for hit in expected], atol=1e-3)


@pytest.mark.parametrize("devices", DEVICES, ids=" ".join)
def test_several_devices(folder, devices) -> None:
    path = folder("bert")
    expected = CrossEncoder(path, device="cpu").predict(PAIRS)
    found = CrossEncoder(path, device=devices[0], max_tokens=300).predict(PAIRS, devices=devices)
    np.testing.assert_allclose(found, expected, atol=1e-3)


@GPU
def test_eight_bits_are_refused(folder) -> None:
    with pytest.raises(ConfigurationError, match=r'there is "int8", on the CPU. On GPUs use dtype="bfloat16"'):
        CrossEncoder(folder("bert"), device="cuda", quantize="int8").predict(PAIRS)


@GPU
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_compiled_model(folder, dtype) -> None:
    torch.compiler.reset()
    path = folder("bert")
    expected = CrossEncoder(path, device="cuda", dtype=dtype).predict(PAIRS)
    found = CrossEncoder(path, device="cuda", dtype=dtype, compile=True).predict(PAIRS)
    np.testing.assert_allclose(found, expected, atol=1e-3 if dtype == "float32" else 0.05)


@GPU
@pytest.mark.parametrize("family", ["bert", "modernbert-mean", "qwen3"])
def test_scoring_waits_once_a_window(folder, family) -> None:
    """And where the last layer is spared most of its work, once more for a batch with a little padding."""
    encoder = CrossEncoder(folder(family), device="cuda", dtype="bfloat16", max_tokens=300)
    encoder.predict(PAIRS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            windows = len(list(encoder.score_windows(PAIRS)))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [f"{each.filename}:{each.lineno}" for each in caught if "synchronizing" in str(each.message)]
    own = [wait for wait in waits if "masking_utils" not in wait]
    assert len(own) <= windows, own
    assert family == "bert" or own == waits
