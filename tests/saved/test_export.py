"""A classifier as a graph: any number of pairs and tokens, the inputs that it reads, and what can't be exported."""

from __future__ import annotations

import io
import logging

import pytest
import torch
import transformers
from conftest import build_model, build_tokenizer
from torch import nn

from cross_trainer.errors import ConfigurationError, MissingDependencyError, UnsupportedModelError
from cross_trainer.saved import export
from cross_trainer.saved.export import exported_file, find_exported, require_packages, write_graph
from cross_trainer.scoring.cross_encoder import CrossEncoder
from cross_trainer.scoring.exported import ExportedModel

LENGTH = 40
SMALL = {
    "vocab_size": 100,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": LENGTH,
    "pad_token_id": 0,
    "num_labels": 2,
    "initializer_range": 0.5,
}
FAMILIES = {
    "DebertaV2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0},
    "ModernBert": {"num_hidden_layers": 2, "local_attention": 8, "global_attn_every_n_layers": 2},
    "Qwen3": {"num_key_value_heads": 1, "head_dim": 8},
}


def make_batch(pairs: int, length: int, side: str = "right") -> dict[str, torch.Tensor]:
    """Rows of random tokens, the first one full, the others with padding."""
    draw = torch.Generator().manual_seed(pairs * 100 + length)
    ids = torch.randint(5, 100, (pairs, length), generator=draw)
    counts = torch.randint(1, length + 1, (pairs, 1), generator=draw)
    counts[0] = length
    places = torch.arange(length)
    mask = places < counts if side == "right" else places >= length - counts
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


@torch.no_grad()
def largest_difference(model: nn.Module, exported: ExportedModel, batch: dict[str, torch.Tensor]) -> float:
    return float((model(**batch).logits - exported(**batch).logits).abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_any_number_of_pairs_and_tokens_gives_the_logits_of_torch(tmp_path, monkeypatch, family):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **FAMILIES[family]})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
    batch = make_batch(3, 7)
    if family == "DebertaV2":  # it takes token types and, without an embedding for them, doesn't read them
        batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    if family == "Qwen3":  # as if its weights were more than a protobuf can hold
        monkeypatch.setattr(export, "LARGEST_FILE", 1000)
    write_graph(model, batch, tmp_path / "model.onnx", "onnx", "fp32")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert [entry.name for entry in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [(entry.name, entry.type, entry.shape) for entry in session.get_outputs()] == [
        ("logits", "tensor(float)", ["batch", 2])
    ]
    exported = ExportedModel(tmp_path / "model.onnx", "onnx")
    files = ["model.onnx", "model.onnx_data"] if family == "Qwen3" else ["model.onnx"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in exported.files] == files
    for side in ("right", "left") if family == "Qwen3" else ("right",):
        for pairs, length in ((1, 5), (7, 33), (9, LENGTH), (1, 1)):
            assert largest_difference(model, exported, make_batch(pairs, length, side)) < 1e-4


class Branching(nn.Module):
    """What a graph can't hold: another path for other values."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return input_ids if attention_mask.sum() > 5 else -input_ids


def test_what_can_not_be_recorded_is_refused_with_the_reason(tmp_path):
    pytest.importorskip("onnxscript")
    with pytest.raises(UnsupportedModelError, match=r"Branching can't be exported to onnx: .* Score it with torch"):
        write_graph(Branching(), make_batch(2, 6), tmp_path / "model.onnx", "onnx", "fp32")
    assert list(tmp_path.iterdir()) == []


def test_formats_and_precisions_are_named():
    assert exported_file("openvino", "bf16") == "openvino/openvino_model_bf16.xml"
    with pytest.raises(ConfigurationError, match=r"to='tflite': expected \"onnx\" or \"openvino\"\."):
        exported_file("tflite")
    with pytest.raises(ConfigurationError, match=r"expected \"fp32\" or \"int8\" for onnx\. .* no bfloat16"):
        exported_file("onnx", "bf16")


def test_a_missing_package_is_named_with_its_extra():
    with pytest.raises(MissingDependencyError, match=r"nonesuch is missing: pip install \"cross-trainer\[export\]\""):
        require_packages("json", "nonesuch")


def test_a_file_is_found_in_the_folder_and_in_that_of_its_format(tmp_path):
    (tmp_path / "onnx").mkdir()
    for name in ("onnx/model_quantized.onnx", "own.onnx"):
        (tmp_path / name).touch()
    assert find_exported(str(tmp_path), "onnx", "own.onnx", {}) == tmp_path / "own.onnx"
    for name in ("model_quantized.onnx", "onnx/model_quantized.onnx"):
        assert find_exported(str(tmp_path), "onnx", name, {}) == tmp_path / "onnx/model_quantized.onnx"
    with pytest.raises(ConfigurationError, match=r"no onnx/model.onnx. There is file_name='model_quantized.onnx'. .*"):
        find_exported(str(tmp_path), "onnx", None, {})
    command = r"cross-trainer export .* --to openvino --precision bf16$"
    with pytest.raises(ConfigurationError, match=command):
        find_exported(str(tmp_path), "openvino", "openvino_model_bf16.xml", {})


@pytest.mark.parametrize(("to", "precision"), [("onnx", "int8"), ("openvino", "int8")])
def test_an_export_leaves_logging_as_it_was(tmp_path, to, precision):
    root, ours = logging.getLogger(), logging.StreamHandler(io.StringIO())
    ours.setLevel(logging.INFO)
    root.addHandler(ours)
    try:
        before = [(handler, handler.level) for handler in root.handlers]
        CrossEncoder(build_model(), tokenizer=build_tokenizer()).export(tmp_path, to, precision)
        assert [(handler, handler.level) for handler in root.handlers] == before
    finally:
        root.removeHandler(ours)


@pytest.mark.parametrize(("widths", "size"), [((64, 256), 64), ((384, 1536), 128), ((16, 96), 16), ((33, 64), 1)])
def test_the_group_of_inputs_divides_every_layers_width(widths, size):
    assert export._group_size(nn.Sequential(*(nn.Linear(width, 2) for width in widths), nn.ReLU())) == size


def test_8_bits_of_openvino_are_rounded_in_groups(tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("nncf")
    openvino = pytest.importorskip("openvino")
    config = transformers.BertConfig(**{**SMALL, "hidden_size": 64, "intermediate_size": 128})
    torch.manual_seed(1)
    model = transformers.BertForSequenceClassification(config).eval()
    path = tmp_path / "graph.xml"
    write_graph(model, make_batch(2, 5), path, "openvino", "int8")
    core = openvino.Core()
    assert core.read_model(path).get_rt_info(export.GROUP_SIZE).astype(str) == "64"
    assert core.compile_model(path, "CPU").get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 64
    assert largest_difference(model, ExportedModel(path, "openvino"), make_batch(4, 20)) < 0.5
