"""dtype="auto": scores of the precision that it says it has chosen, chosen once, and nothing saved in it."""

from __future__ import annotations

import copy
import logging
import re
import time

import numpy as np
import pytest
import torch
from commands import error, expected, make_rows, run, save, scores_in, stop_after, write_table
from conftest import SENTENCES, build_model, build_tokenizer
from execution.test_view import FAMILIES
from torch import nn
from torch.utils.data import DataLoader
from transformers import BertForSequenceClassification, Qwen3Config

from cross_trainer import BatchScorer, CrossEncoder
from cross_trainer.errors import ConfigurationError
from cross_trainer.scoring import precision

PAIRS = list(zip(SENTENCES, reversed(SENTENCES), strict=True))
CPU = torch.device("cpu")
CHOSEN = {"bfloat16": (2.0, 1.0), "float32": (1.0, 2.0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"))


@pytest.fixture
def measured(monkeypatch):
    """Seconds that products take from here on, and what was measured."""
    asked = []

    def take(name):
        precision._decide.cache_clear()
        monkeypatch.setattr(precision, "seconds", lambda *what: asked.append(what) or CHOSEN[name])
        return asked

    yield take
    precision._decide.cache_clear()


def logits(encoder):
    return encoder.predict(PAIRS, activation="logits")


# -- the decision ------------------------------------------------------------------------------------------------------


def test_this_machine_is_measured_in_a_moment():
    before, started = torch.random.get_rng_state(), time.process_time()
    times = precision.seconds(CPU, (64, 256))
    assert time.process_time() - started < 0.5
    assert len(times) == 2
    assert all(0 < value < 0.1 for value in times)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_this_machine_is_decided_for(folder):
    precision._decide.cache_clear()
    assert CrossEncoder(folder, dtype="auto").model.dtype in {torch.float32, torch.bfloat16}


def test_a_device_without_bfloat16_computes_in_float32(monkeypatch, caplog):
    multiply = torch.nn.functional.linear

    def refuse(states, weight):
        if states.dtype == torch.bfloat16:
            raise RuntimeError("BFloat16 is not supported")
        return multiply(states, weight)

    monkeypatch.setattr(precision.F, "linear", refuse)
    with caplog.at_level(logging.INFO):
        assert precision.seconds(CPU, (8, 8))[1] == float("inf")
    assert "cpu doesn't multiply bfloat16: BFloat16 is not supported" in caplog.text


@pytest.mark.parametrize(("plain", "half", "chosen"), [(1.2, 1.0, "float32"), (1.4, 1.0, "bfloat16")])
def test_a_narrow_win_changes_no_scores(folder, measured, monkeypatch, plain, half, chosen):
    measured("float32")
    monkeypatch.setattr(precision, "seconds", lambda *_: (plain, half))
    assert str(CrossEncoder(folder, dtype="auto").model.dtype) == f"torch.{chosen}"


def test_it_is_decided_and_said_once(folder, measured, caplog):
    asked = measured("bfloat16")
    with caplog.at_level(logging.INFO, "cross_trainer"):
        for _ in range(3):
            CrossEncoder(folder, dtype="auto")
    assert asked == [(CPU, (32, 64))]
    said = 'dtype="auto" is bfloat16: 128 tokens times 32 x 64 weights take 2e+03 ms in float32, 1e+03 ms in'
    assert caplog.text.count(said) == 1


def test_wide_models_are_measured_by_a_part_of_their_widths(measured):
    asked = measured("float32")
    precision.faster_dtype(Qwen3Config(hidden_size=4096, intermediate_size=12_288), CPU)
    assert asked == [(CPU, (1024, 1024))]


# -- the scores --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", CHOSEN)
@pytest.mark.parametrize("saved", ["float32", "bfloat16", "float16"])
def test_a_folder_scores_as_in_the_precision_chosen(tmp_path, measured, chosen, saved):
    measured(chosen)
    build_model().to(getattr(torch, saved)).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    encoder, explicit = CrossEncoder(tmp_path, dtype="auto"), CrossEncoder(tmp_path, dtype=chosen)
    assert str(encoder.model.dtype) == f"torch.{chosen}"
    assert {parameter.dtype for parameter in encoder.model.parameters()} == {encoder.model.dtype}
    np.testing.assert_array_equal(logits(encoder), logits(explicit))
    if (saved, chosen) == ("bfloat16", "float32"):
        assert all(torch.equal(found, found.bfloat16().float()) for found in encoder.model.state_dict().values())


@pytest.mark.parametrize("chosen", CHOSEN)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_model_scores_as_in_the_precision_chosen(measured, chosen, family):
    measured(chosen)
    model, tokenizer = FAMILIES[family](), build_tokenizer()
    if family in {"llama", "modernbert"}:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    explicit = CrossEncoder(copy.deepcopy(model), tokenizer=copy.deepcopy(tokenizer), dtype=chosen)
    encoder = CrossEncoder(model, tokenizer=tokenizer, dtype="auto")
    assert str(encoder.model.dtype) == f"torch.{chosen}"
    np.testing.assert_array_equal(logits(encoder), logits(explicit))


def test_compiled_and_on_several_devices(folder, measured):
    measured("bfloat16")
    scores = logits(CrossEncoder(folder, dtype="auto"))
    encoder = CrossEncoder(folder, dtype="auto")
    np.testing.assert_array_equal(encoder.predict(PAIRS, activation="logits", devices=["cpu", "cpu"]), scores)
    assert CrossEncoder(folder, dtype="auto", compile=True).model.dtype == torch.bfloat16


@pytest.mark.parametrize("loaded", [True, False])
def test_a_head_that_would_round_scores_keeps_float32(folder, measured, monkeypatch, caplog, loaded):
    measured("bfloat16")
    build = BertForSequenceClassification.__init__

    def with_other_head(model, *args, **kwargs):
        build(model, *args, **kwargs)
        model.classifier = _Other(model.config.hidden_size, model.config.num_labels)

    monkeypatch.setattr(BertForSequenceClassification, "__init__", with_other_head)
    exact = CrossEncoder(folder)
    scores = logits(exact)
    given = (exact.model, exact.tokenizer) if loaded else (folder, None)
    with caplog.at_level(logging.INFO):
        encoder = CrossEncoder(given[0], tokenizer=given[1], dtype="auto")
    assert encoder.model.dtype == torch.float32
    assert 'dtype="auto" is float32: the head of BertForSequenceClassification has layers that would' in caplog.text
    np.testing.assert_array_equal(logits(encoder), scores)


class _Other(nn.Linear):
    """A layer that isn't torch's own."""


# -- what it doesn't go with -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"quantize": "int8"}, "dtype=\"auto\" with quantize='int8': the layers multiply 8-bit integers"),
        ({"model_kwargs": {"dtype": "bfloat16"}}, "'dtype': 'bfloat16'} contradicts dtype=\"auto\""),
        ({"model_kwargs": {"torch_dtype": "auto"}}, 'as in transformers, "auto" means as saved'),
        (
            {"model_kwargs": {"device_map": "auto"}},
            "plain weights on one device. Name the precision, such as",
        ),
        ({"model_kwargs": {"quantization_config": {}}}, "plain weights on one device"),
        ({"backend": "onnx"}, "dtype='auto' is for torch, but backend='onnx'"),
        ({"backend": "openvino"}, "dtype='auto' is for torch, but backend='openvino'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("chosen", CHOSEN)
def test_arguments_that_leave_nothing_to_choose(folder, measured, chosen, given, message):
    measured(chosen)
    with pytest.raises(ConfigurationError) as caught:
        CrossEncoder(folder, dtype="auto", **given)
    assert message in str(caught.value)


def test_a_model_on_several_devices_is_refused(folder, measured):
    measured("bfloat16")
    model = build_model()
    model.hf_device_map = {"bert": "cpu", "classifier": "disk"}
    with pytest.raises(ConfigurationError, match="the model lies on several"):
        CrossEncoder(model, tokenizer=build_tokenizer(), dtype="auto")


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_auto_of_transformers_is_as_saved(tmp_path, measured, name):
    asked = measured("float32")
    build_model().bfloat16().save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    assert CrossEncoder(tmp_path, model_kwargs={name: "auto"}).model.dtype == torch.bfloat16
    with pytest.raises(ConfigurationError, match=r"contradicts dtype=torch\.float32"):
        CrossEncoder(tmp_path, dtype="float32", model_kwargs={name: "auto"})
    assert asked == []


@pytest.mark.parametrize("chosen", CHOSEN)
def test_nothing_is_trained_or_saved_in_it(folder, measured, tmp_path, chosen):
    measured(chosen)
    encoder = CrossEncoder(folder, dtype="auto")
    calls = {
        "fit()": lambda: encoder.fit(DataLoader([{"a": "x", "b": "y", "label": 1.0}])),
        "calibrate()": lambda: encoder.calibrate([]),
        "save_pretrained()": lambda: encoder.save_pretrained(tmp_path / "saved"),
        "export()": lambda: encoder.export(tmp_path / "saved"),
        "push_to_hub()": lambda: encoder.push_to_hub("user/name"),
    }
    for name, call in calls.items():
        told = f"{re.escape(name)} needs weights whose precision doesn't depend on the machine, .* made them {chosen}"
        with pytest.raises(ConfigurationError, match=told):
            call()
    assert not (tmp_path / "saved").exists()


def test_workers_that_would_decide_each_for_itself_are_refused(folder):
    with pytest.raises(ConfigurationError, match='dtype="auto": each worker would decide for its own machine'):
        BatchScorer(folder, dtype="auto")


# -- commands ----------------------------------------------------------------------------------------------------------


def test_calibrating_is_refused_before_anything_is_read(folder, tmp_path):
    told = error("calibrate", folder, "nowhere.csv", "-o", tmp_path / "out", "--dtype", "auto")
    assert "--dtype auto: what is saved shall not depend on this machine" in told


def test_a_half_done_output_goes_on_in_its_precision_alone(tmp_path, folder, measured, monkeypatch):
    rows = make_rows(20)
    source = write_table(tmp_path / "in.csv", rows)
    argv = ["score", source, "-o", tmp_path / "out.csv", "-m", folder, "--window", 5, "--dtype"]
    measured("bfloat16")
    run(*argv[:3], tmp_path / "whole.csv", *argv[4:], "auto")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(RuntimeError):
            run(*argv, "auto")
    measured("float32")
    assert "(--dtype 'bfloat16' there, 'float32' here)" in error(*argv, "auto")
    run(*argv, "bfloat16")
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert np.abs(scores_in(tmp_path / "out.csv") - expected(folder, rows)).max() > 1e-5
