"""Adapters that the trainer puts on a model: what is trained, in which precision, and what is saved."""

from __future__ import annotations

import re

import numpy as np
import peft
import pytest
import torch
from conftest import build_model, build_tokenizer
from rerankers import build
from training.test_trainer import arguments, lists, pairs
from transformers import (
    AutoModelForSequenceClassification,
    DebertaV2Config,
    DistilBertConfig,
    ModernBertConfig,
    RobertaConfig,
)

from cross_trainer import CrossEncoder, CrossEncoderTrainer, PairCollator
from cross_trainer.errors import ConfigurationError, MissingDependencyError
from cross_trainer.saved.rerankers import to_classifier
from cross_trainer.training.adapting import head_modules, put_adapter_on

SMALL = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "pad_token_id": 0,
}
HEADS = {
    "bert": (build_model, {"classifier", "pooler"}),
    "roberta": (lambda: RobertaConfig(**SMALL), {"classifier"}),
    "distilbert": (
        lambda: DistilBertConfig(vocab_size=200, dim=32, n_layers=1, n_heads=4, hidden_dim=64),
        {"pre_classifier", "classifier"},
    ),
    "deberta": (lambda: DebertaV2Config(**SMALL), {"pooler", "classifier"}),
    "modernbert": (
        lambda: ModernBertConfig(**SMALL, cls_token_id=1, sep_token_id=1, bos_token_id=1, eos_token_id=1),
        {"head", "classifier"},
    ),
    "qwen3": (lambda: to_classifier(build("qwen3"), (5, 6)), {"score"}),
}


def linear(**options) -> peft.LoraConfig:
    return peft.LoraConfig(**{"r": 4, "target_modules": "all-linear", **options})


@pytest.mark.parametrize("family", HEADS)
def test_the_head_is_trained_whole_and_every_other_linear_layer_by_an_adapter(family):
    made, heads = HEADS[family][0](), HEADS[family][1]
    model = made if isinstance(made, torch.nn.Module) else AutoModelForSequenceClassification.from_config(made)
    assert set(head_modules(model)) == heads
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    inside = {name for name in linears if heads & set(name.split("."))}
    whole = {name for name, _ in model.named_parameters() if heads & set(name.split("."))}
    settings = linear()
    adapted = put_adapter_on(model, settings)
    assert (settings.modules_to_save, settings.target_modules) == (None, "all-linear")
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    under = {re.sub(r"\.lora_[AB]\.default\.weight", "", name) for name in trained if "lora_" in name}
    assert {name.removeprefix("base_model.model.") for name in under} == linears - inside
    rest = {name.replace(".modules_to_save.default", "") for name in trained if "lora_" not in name}
    assert {name.removeprefix("base_model.model.") for name in rest} == whole


def test_what_is_trained_is_in_float32_and_the_rest_as_it_was():
    adapted = put_adapter_on(build_model().bfloat16(), linear())
    kinds = {parameter.requires_grad: parameter.dtype for parameter in adapted.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}


@pytest.fixture
def base(tmp_path):
    build_model().save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def trained(model, folder, **options):
    trainer = CrossEncoderTrainer(
        model,
        arguments(folder, learning_rate=0.02, max_steps=3, per_device_train_batch_size=4),
        train_dataset=pairs(12),
        processing_class=build_tokenizer(),
        **options,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("given", ["name", "model", "model_init"])
def test_the_trainer_trains_the_adapter_alone_and_saves_both_forms(tmp_path, base, given):
    load = AutoModelForSequenceClassification.from_pretrained
    model = {"name": base, "model": load(base), "model_init": None}[given]
    init = {"model_init": lambda: load(base)} if given == "model_init" else {}
    trainer = trained(model, tmp_path / "run", peft_config=linear(), **init)
    frozen = {
        name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", "."): tensor
        for name, tensor in trainer.model.named_parameters()
        if not tensor.requires_grad
    }
    before = load(base).state_dict()
    assert frozen.keys() == before.keys()
    assert all(torch.equal(tensor.cpu(), before[name]) for name, tensor in frozen.items())
    rows = pairs(12)
    expected = trainer.predict(rows).predictions.reshape(-1)
    assert np.abs(expected - CrossEncoder(base).predict(texts(rows), activation="logits")).max() > 1e-2
    trainer.save_model(tmp_path / "adapter")
    trainer.save_model(tmp_path / "merged", merge_adapters=True)
    for folder in ("adapter", "merged"):
        found = CrossEncoder(tmp_path / folder).predict(texts(rows), activation="logits")
        np.testing.assert_allclose(found, expected, atol=1e-5)


def texts(rows):
    return [tuple(row.values())[:2] for row in rows]


def test_the_seed_decides_the_adapter(tmp_path, base):
    def first(seed):
        trainer = CrossEncoderTrainer(
            base, arguments(tmp_path, seed=seed), train_dataset=pairs(4), peft_config=linear()
        )
        return next(tensor for name, tensor in trainer.model.named_parameters() if "lora_A" in name)

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_checkpointing_gradients_and_a_budget_change_no_step(tmp_path):
    def weights(**options):
        ours = {name: options.pop(name) for name in ("max_tokens",) if name in options}
        trainer = CrossEncoderTrainer(
            to_classifier(build("qwen3"), (5, 6)),
            arguments(tmp_path, learning_rate=0.02, optim="sgd", max_steps=2, per_device_train_batch_size=4, **options),
            train_dataset=lists(8),
            data_collator=PairCollator(build_tokenizer()),
            peft_config=linear(lora_dropout=0.0),
            **ours,
        )
        trainer.train()
        return torch.cat([tensor.flatten() for tensor in trainer.model.parameters() if tensor.requires_grad])

    plain = weights()
    for options in (
        {"gradient_checkpointing": True},
        {"max_tokens": 64},
        {"gradient_checkpointing": True, "max_tokens": 64},
    ):
        torch.testing.assert_close(weights(**options), plain, atol=2e-5, rtol=0)


def test_what_does_not_fit_is_refused(tmp_path, base, monkeypatch):
    trained(base, tmp_path / "run", peft_config=linear()).save_model(tmp_path / "adapter")
    with pytest.raises(ConfigurationError, match=r"has adapters already.*Leave peft_config \(--lora\) out"):
        trained(str(tmp_path / "adapter"), tmp_path / "run", peft_config=linear())
    with pytest.raises(
        ConfigurationError, match=r"doesn't fit a BertForSequenceClassification: No modules were targeted"
    ):
        trained(base, tmp_path / "run", peft_config=linear(target_modules=["q_proj"]))
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(MissingDependencyError, match=r"peft_config needs peft: pip install 'cross-trainer\[lora\]'"):
        trained(base, tmp_path / "run", peft_config=object())
