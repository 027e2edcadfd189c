"""Exported folders are scored as torch scores them: what needs weights is refused."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import signal

import numpy as np
import pytest
import torch
from conftest import SENTENCES, build_model, build_tokenizer
from torch import nn

from cross_trainer.errors import ConfigurationError, UnsupportedModelError
from cross_trainer.execution.padding_free import enable_padding_free
from cross_trainer.saved import export
from cross_trainer.scoring.cross_encoder import CrossEncoder
from cross_trainer.scoring.exported import Export

for package in ("onnxscript", "onnxruntime", "openvino", "nncf"):
    pytest.importorskip(package)

PAIRS = [(first, second) for first in SENTENCES for second in SENTENCES[:6]]
PRECISIONS = [("onnx", "fp32"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "int8"), ("openvino", "bf16")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model with a default prompt, whose tokenizer cuts at 40 tokens."""
    path = tmp_path_factory.mktemp("model")
    encoder = CrossEncoder(build_model(num_hidden_layers=1), tokenizer=build_tokenizer(40), truncation="only_second")
    encoder.prompts, encoder.default_prompt_name = {"web": "search "}, "web"
    encoder.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def reports(folder):
    """The model exported in every way; the graph, which takes seconds, is recorded once."""
    record, kept = export._record, folder.parent / "recorded.onnx"

    def record_once(model, batch, path):
        if not kept.exists():
            record(model, batch, kept)
        shutil.copy(kept, path)

    encoder = CrossEncoder(folder)
    enable_padding_free(encoder.model)  # which a graph has nothing of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_record", record_once)
        return {each: encoder.export(folder, *each) for each in PRECISIONS}


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_exports_lie_where_other_tools_look_for_them(folder, reports):
    assert [file for file in files(folder) if "/" in file] == [
        "onnx/model.onnx",
        "onnx/model_quantized.onnx",
        "openvino/openvino_model.bin",
        "openvino/openvino_model.xml",
        "openvino/openvino_model_bf16.bin",
        "openvino/openvino_model_bf16.xml",
        "openvino/openvino_model_qint8_quantized.bin",
        "openvino/openvino_model_qint8_quantized.xml",
    ]


@pytest.mark.parametrize(("to", "precision"), PRECISIONS)
def test_the_report_tells_how_far_scores_are_from_those_of_torch(folder, reports, to, precision):
    report = reports[to, precision]
    assert (report.pairs, report.longest) == (70, 40)
    assert 0 < report.largest_score_difference < report.largest_logit_difference
    assert report.largest_logit_difference < (1e-5 if precision == "fp32" else 0.5)
    assert report.rank_correlation > (0.99999 if precision == "fp32" else 0.98)
    assert f"largest difference of logits {report.largest_logit_difference:.2g}, of scores" in str(report)
    assert str(report).startswith(f"{folder}/{to}/")


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_an_exported_folder_is_scored_as_by_torch(folder, reports, backend):
    plain, exported = CrossEncoder(folder), CrossEncoder(folder, backend=backend)
    assert (exported.max_length, exported.truncation, exported.prompts) == (40, "only_second", {"web": "search "})
    assert str(exported.device) == "cpu"
    assert all(weight.is_meta for weight in exported.model.parameters())
    long = [("a dog", " ".join(SENTENCES * 3)), ("", ""), PAIRS[0]]
    np.testing.assert_allclose(exported.predict(PAIRS + long), plain.predict(PAIRS + long), atol=1e-5)
    exported.default_prompt_name = plain.default_prompt_name = None
    for options in ({"symmetric": True}, {"activation": "logits"}, {"batch_size": 3}):
        np.testing.assert_allclose(exported.predict(PAIRS, **options), plain.predict(PAIRS, **options), atol=1e-5)
    texts = [*SENTENCES, " ".join(SENTENCES * 3)]
    ranked = [each.rank("a man", texts, long_documents="max") for each in (plain, exported)]
    assert [[entry["corpus_id"] for entry in ranking] for ranking in ranked] == [
        [entry["corpus_id"] for entry in ranked[0]]
    ] * 2
    batch = exported.tokenizer(["a man"], ["a dog"], return_tensors="pt")
    np.testing.assert_allclose(exported.model(**batch).logits, plain.model(**batch).logits.detach(), atol=1e-5)


def test_a_copy_opens_the_file_again(folder, reports):
    exported = CrossEncoder(folder, backend="onnx")
    expected = exported.predict(PAIRS[:3])
    for again in (copy.deepcopy(exported), pickle.loads(pickle.dumps(exported))):
        np.testing.assert_array_equal(again.predict(PAIRS[:3]), expected)


def test_signals_are_handled_after_openvino_models_are_gone(folder, reports):
    first, second = (CrossEncoder(folder, backend="openvino") for _ in range(2))
    first.predict(PAIRS[:1]), second.predict(PAIRS[:1])
    del first
    del second
    child = os.fork()
    if not child:  # with the signal stack of this thread
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.raise_signal(signal.SIGUSR1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_precision_of_an_openvino_file_is_the_one_it_was_made_for(folder, reports):
    scores = {}
    for precision in ("fp32", "bf16"):
        name = export.EXPORTED["openvino"][precision]
        scores[precision] = CrossEncoder(folder, backend="openvino", file_name=name).predict(PAIRS, activation="logits")
    # In float32 whatever OpenVINO would choose on this processor.
    torchs = CrossEncoder(folder).predict(PAIRS, activation="logits")
    assert np.abs(scores["fp32"] - torchs).max() < 1e-5 < np.abs(scores["bf16"] - torchs).max()


def test_another_folder_stands_alone(folder, reports, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_record", lambda _, __, path: shutil.copy(folder.parent / "recorded.onnx", path))
    encoder = CrossEncoder(folder, max_length=30)
    encoder.export(tmp_path / "alone", pairs=PAIRS)
    assert "model.safetensors" not in files(tmp_path / "alone")
    alone = CrossEncoder(tmp_path / "alone", backend="onnx")
    assert alone.config.architectures == ["BertForSequenceClassification"]
    assert (alone.max_length, alone.truncation, alone.default_prompt_name) == (30, "only_second", "web")
    np.testing.assert_allclose(alone.predict(PAIRS), encoder.predict(PAIRS), atol=1e-5)


def test_a_graph_of_other_scores_leaves_nothing_behind(folder, reports, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_record", lambda _, __, path: shutil.copy(folder.parent / "recorded.onnx", path))
    other = CrossEncoder(build_model(num_hidden_layers=1, seed=1), tokenizer=build_tokenizer())
    for target in (tmp_path, tmp_path / "new"):
        with pytest.raises(UnsupportedModelError, match=r"gives logits that differ from torch's by [\d.]+, so it was"):
            other.export(target)
    assert list(tmp_path.iterdir()) == []
    kept = files(folder)
    with pytest.raises(UnsupportedModelError, match="differ"):
        other.export(folder)
    assert files(folder) == kept


@pytest.mark.parametrize(
    ("option", "value"), [("dtype", "bfloat16"), ("quantize", "int8"), ("compile", True), ("device", "cuda")]
)
def test_options_that_need_the_weights_are_refused_by_name(folder, option, value):
    with pytest.raises(ConfigurationError, match=rf'{option}={value!r} is for torch, but backend="?\'?onnx'):
        CrossEncoder(folder, backend="onnx", **{option: value})


def test_methods_that_need_the_weights_are_refused_by_name(folder, reports, tmp_path):
    exported = CrossEncoder(folder, backend="onnx")
    exported.default_prompt_name = None
    calls = {
        r"fit\(\)": lambda: exported.fit([]),
        r"save_pretrained\(\)": lambda: exported.save_pretrained(tmp_path),
        r"export\(\)": lambda: exported.export(tmp_path),
    }
    for name, call in calls.items():
        with pytest.raises(ConfigurationError, match=rf'{name} needs the weights of torch, .* backend="onnx"'):
            call()
    assert list(tmp_path.iterdir()) == []


def test_what_can_not_be_loaded_is_refused(folder, reports, tmp_path):
    with pytest.raises(ConfigurationError, match=r"backend='tensorrt': expected"):
        CrossEncoder(folder, backend="tensorrt")
    with pytest.raises(ConfigurationError, match=r"file_name='model.onnx' names an exported file: pass backend="):
        CrossEncoder(folder, file_name="model.onnx")
    with pytest.raises(ConfigurationError, match="give the folder of the model, not a BertForSequenceClassification"):
        CrossEncoder(build_model(), tokenizer=build_tokenizer(), backend="onnx")
    with pytest.raises(ConfigurationError, match="num_labels=3, but the loaded model has 1"):
        CrossEncoder(folder, num_labels=3, backend="onnx")
    three = CrossEncoder(build_model(3), tokenizer=build_tokenizer())
    three.save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match=r"has no onnx/model.onnx. To write it: cross-trainer export .* onnx$"):
        CrossEncoder(tmp_path, backend="onnx")
    shutil.copytree(folder / "onnx", tmp_path / "onnx")
    with pytest.raises(ConfigurationError, match=r"has 1 outputs, but config\.json 3 labels"):
        CrossEncoder(tmp_path, backend="onnx")
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(UnsupportedModelError, match=r"model.onnx fails in onnx: .* Score with torch instead"):
        CrossEncoder(tmp_path, backend="onnx")


def test_the_report_of_scores_that_are_not_numbers_is_an_error(folder, reports, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_record", lambda _, __, path: shutil.copy(folder.parent / "recorded.onnx", path))
    model = build_model(num_hidden_layers=1)
    nn.init.constant_(model.classifier.bias, float("nan"))
    with pytest.raises(UnsupportedModelError, match="differ from torch's by nan"):
        CrossEncoder(model, tokenizer=build_tokenizer()).export(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert isinstance(reports["onnx", "fp32"], Export)
    assert torch.isfinite(torch.tensor(reports["onnx", "fp32"].largest_logit_difference))


def test_a_file_is_named_as_in_sentence_transformers(folder, reports):
    both = {"backend": "onnx", "model_kwargs": {"file_name": "model_quantized.onnx"}}
    scores = CrossEncoder(folder, **both).predict(PAIRS)
    np.testing.assert_array_equal(
        scores, CrossEncoder(folder, backend="onnx", file_name="model_quantized.onnx").predict(PAIRS)
    )
    for options in ({"config_kwargs": {"classifier_dropout": 0.1}}, {"model_kwargs": {"provider": "x"}}):
        with pytest.raises(ConfigurationError, match=r"_kwargs=.* is for torch"):
            CrossEncoder(folder, backend="onnx", **options)
    exported = CrossEncoder(folder, backend="onnx")
    for option, value in (("device", "cuda"), ("devices", ["cpu"])):
        with pytest.raises(ConfigurationError, match=rf"{option}=.*needs the weights of torch"):
            exported.predict(PAIRS, **{option: value})
    np.testing.assert_allclose(exported.predict(PAIRS, device="cpu"), CrossEncoder(folder).predict(PAIRS), atol=1e-5)
