"""Encoders under modules of their own score as in sentence-transformers: as a classifier, or as the modules."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SENTENCES, build_tokenizer
from sentence_transformers import CrossEncoder as TheirEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling
from torch import nn
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForSequenceClassification, TrainingArguments

from cross_trainer.errors import ConfigurationError, UnsupportedModelError
from cross_trainer.saved.modular import FOLDED, Modular
from cross_trainer.scoring import precision
from cross_trainer.scoring.cross_encoder import CrossEncoder
from cross_trainer.training.trainer import CrossEncoderTrainer

PAIRS = list(zip(SENTENCES, SENTENCES[::-1], strict=True))
SETTINGS = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
OTHERS = {
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "electra": {"embedding_size": 32},
    "modernbert": {"reference_compile": False, "classifier_bias": True},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
}


def save(folder: Path, family: str, *modules: nn.Module, **options: object) -> str:
    """A folder as sentence-transformers writes it, with these modules behind the transformer."""
    config = CONFIG_MAPPING[family](**SETTINGS | OTHERS.get(family, {}) | options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder / "plain")
    build_tokenizer().save_pretrained(folder / "plain")
    transformer = Transformer(str(folder / "plain"), transformer_task="feature-extraction", max_seq_length=60)
    encoder = TheirEncoder(modules=[transformer, *modules], device="cpu", activation_fn=nn.Sigmoid())
    encoder.save_pretrained(str(folder / "theirs"))
    return str(folder / "theirs")


def scores(width: int = 32, labels: int = 1, bias: bool = True) -> Dense:
    return Dense(width, labels, bias=bias, activation_function=nn.Identity(), module_output_name="scores")


def check(folder: str, **options: object) -> CrossEncoder:
    encoder = CrossEncoder(folder, **options)
    expected = TheirEncoder(folder, device="cpu").predict(PAIRS, show_progress_bar=False)
    np.testing.assert_allclose(encoder.predict(PAIRS), expected, atol=1e-5)
    return encoder


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("family", sorted(FOLDED))
def test_modules_that_a_classifier_computes(tmp_path, family, labels):
    rule = FOLDED[family]
    norm = [] if rule.norm is None else [LayerNorm(32)]
    middle = Dense(32, 32, activation_function=rule.activation())
    folder = save(tmp_path, family, Pooling(32, rule.poolings[-1]), middle, Dropout(0.1), *norm, scores(32, labels))
    encoder = check(folder)
    assert "ForSequenceClassification" in type(encoder.model).__name__
    assert encoder.num_labels == labels
    encoder.save_pretrained(tmp_path / "saved")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    again = CrossEncoder(plain, tokenizer=build_tokenizer(), max_length=60).predict(PAIRS, activation="logits")
    np.testing.assert_allclose(again, encoder.predict(PAIRS, activation="logits"), atol=1e-5)
    theirs = TheirEncoder(str(tmp_path / "saved"), device="cpu").predict(PAIRS, show_progress_bar=False)
    np.testing.assert_allclose(theirs, encoder.predict(PAIRS), atol=1e-5)


def test_the_last_token_of_a_decoder(tmp_path):
    encoder = check(save(tmp_path, "qwen3", Pooling(32, "lasttoken"), scores(bias=False)))
    assert type(encoder.model).__name__ == "Qwen3ForSequenceClassification"


MODULES = {
    "one layer": lambda: (Pooling(32, "mean"), scores()),
    "joined poolings": lambda: (Pooling(32, ("cls", "mean", "max", "lasttoken")), scores(128)),
    "other poolings": lambda: (Pooling(32, ("weightedmean", "mean_sqrt_len_tokens")), scores(64)),
    "normalized": lambda: (Pooling(32, "cls"), Dense(32, 16), Normalize(), LayerNorm(16), scores(16, 3)),
    "an activation at the end": lambda: (Pooling(32, "cls"), Dense(32, 1, module_output_name="scores")),
}


@pytest.mark.parametrize("options", [{}, {"padding_free": False}, {"max_tokens": 4096}])
@pytest.mark.parametrize("modules", MODULES)
def test_modules_that_no_classifier_computes(tmp_path, modules, options):
    encoder = check(save(tmp_path, "bert", *MODULES[modules]()), **options)
    assert isinstance(encoder.model, Modular)
    assert encoder.max_length == 60


def test_half_precision_has_a_head_in_float32(tmp_path, monkeypatch):
    folder = save(tmp_path, "bert", Pooling(32, "mean"), scores())
    exact, half = CrossEncoder(folder), CrossEncoder(folder, dtype="bfloat16")
    found = half.predict(PAIRS, activation="logits")
    np.testing.assert_allclose(found, exact.predict(PAIRS, activation="logits"), atol=0.1)
    assert not np.array_equal(found, torch.from_numpy(found).bfloat16().float())
    monkeypatch.setattr(precision, "_decide", lambda *_: torch.bfloat16)
    np.testing.assert_array_equal(CrossEncoder(folder, dtype="auto").predict(PAIRS, activation="logits"), found)


def test_modules_are_not_saved_as_a_classifier(tmp_path):
    encoder = CrossEncoder(save(tmp_path, "bert", Pooling(32, "mean"), scores()))
    with pytest.raises(UnsupportedModelError, match=r"no classifier of a bert computes.*Keep its own folder"):
        encoder.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "the pooling median"),
        ("2_Dense/config.json", {"use_residual": True}, "a residual connection"),
        (
            "2_Dense/config.json",
            {"module_output_name": "sentence_embedding"},
            "writes 'sentence_embedding' where 'scores'",
        ),
        ("2_Dense/model.safetensors", None, "no weights in 2_Dense/model.safetensors"),
    ],
)
def test_what_is_not_understood_is_named(tmp_path, file, change, message):
    path = Path(save(tmp_path, "bert", Pooling(32, "mean"), scores()), file)
    if change is None:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigurationError, match=message):
        CrossEncoder(str(path.parents[1]))


def test_no_code_of_a_repository_is_run(tmp_path):
    folder = Path(save(tmp_path, "bert", Pooling(32, "cls"), Dense(32, 32), scores()))
    path = folder / "2_Dense" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"activation_function": "os.abort"}))
    check(str(folder))  # sentence-transformers falls back to a Tanh, too


@pytest.mark.parametrize("folded", [True, False])
def test_training_starts_from_the_modules_that_become_a_classifier(tmp_path, folded, caplog):
    middle = [Dense(32, 32)] if folded else []
    folder = save(tmp_path, "bert", Pooling(32, "cls"), *middle, scores())
    expected = CrossEncoder(folder).predict(PAIRS, activation="logits")
    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True)
    rows = [{"sentence1": first, "sentence2": second, "label": at % 2} for at, (first, second) in enumerate(PAIRS)]
    trainer = CrossEncoderTrainer(folder, arguments, train_dataset=rows)
    found = trainer.predict(rows).predictions[:, 0]
    assert np.allclose(found, expected, atol=1e-5) == folded
    assert ("its head is new" in caplog.text) == (not folded)
