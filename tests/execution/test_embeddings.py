"""Embeddings get the gradients that they always get, in memory that serves every update."""

from __future__ import annotations

import pytest
import torch
from conftest import SENTENCES, build_model, build_tokenizer
from datasets import Dataset
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from cross_trainer import CrossEncoderTrainer, PairCollator
from cross_trainer.execution import embeddings
from cross_trainer.execution.embeddings import sparse_gradients

ROWS = Dataset.from_dict({"a": SENTENCES, "b": SENTENCES[::-1], "label": [place % 2 / 1.0 for place in range(12)]})


class Watcher(TrainerCallback):
    """Copies of the word embeddings' gradients before each update, and where they lie."""

    def __init__(self):
        self.gradients, self.places = [], []

    def on_pre_optimizer_step(self, *_, model=None, **__):
        gradient = model.get_input_embeddings().weight.grad
        self.gradients.append(gradient.clone())
        self.places.append(gradient.data_ptr())


def train(folder, model=None, **more):
    watcher = Watcher()
    options = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "weight_decay": 0.1, "max_grad_norm": 0.1}
    trainer = CrossEncoderTrainer(
        build_model(dropout=0.1) if model is None else model,
        TrainingArguments(str(folder), use_cpu=True, report_to="none", save_strategy="no", **options | more),
        train_dataset=ROWS,
        data_collator=PairCollator(build_tokenizer()),
        callbacks=[watcher],
    )
    trainer.train()
    return trainer, watcher


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("bf16", [False, True])
def test_kept_memory_gives_the_same_training(tmp_path, monkeypatch, steps, bf16):
    more = {"gradient_accumulation_steps": steps, "bf16": bf16}
    expected, fresh = train(tmp_path, **more)
    monkeypatch.setattr(embeddings, "LARGE", 0)
    trainer, kept = train(tmp_path, **more)
    assert len(set(kept.places)) == 1
    for one, other in zip(kept.gradients, fresh.gradients, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(trainer.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not trainer._gradients


@pytest.mark.parametrize(("large", "held"), [(10**6, 0), (0, 3)])
def test_only_large_gradients_are_kept(tmp_path, monkeypatch, large, held):
    found = []
    monkeypatch.setattr(embeddings, "LARGE", large)
    monkeypatch.setattr(
        "cross_trainer.training.trainer.sparse_gradients",
        lambda model, kept: found.append(len(kept)) or sparse_gradients(model, kept),
    )
    train(tmp_path)
    assert found == [0] + [held] * 5  # words, positions and kinds of tokens


def test_frozen_embeddings_get_no_gradient(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "LARGE", 0)
    model = build_model()
    model.bert.embeddings.requires_grad_(False)
    weight = model.get_input_embeddings().weight
    before = weight.clone()
    trainer = CrossEncoderTrainer(
        model,
        TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", save_strategy="no", max_steps=2),
        train_dataset=ROWS,
        data_collator=PairCollator(build_tokenizer()),
    )
    trainer.train()
    assert weight.grad is None
    assert torch.equal(weight, before)


@pytest.mark.parametrize("change", ["scale_grad_by_freq", "compiled", "sparse", "hook"])
def test_other_gradients_are_left_as_they_are(monkeypatch, change):
    monkeypatch.setattr(embeddings, "LARGE", 0)
    model = nn.Sequential(nn.Embedding(8, 2, sparse=change == "sparse"), nn.Linear(2, 1))
    if change == "scale_grad_by_freq":
        model[0].scale_grad_by_freq = True
    if change == "compiled":
        model[1].compile(backend="eager")
    seen: list = []
    if change == "hook":  # which may change single rows, as no sparse gradient lets it
        model[0].weight.register_hook(lambda gradient: seen.append(gradient.layout))
    kept: dict = {}
    for _ in range(2):
        model.zero_grad()
        with sparse_gradients(model, kept):
            model(torch.tensor([1, 1])).sum().backward()
    assert not kept
    assert (model[0].weight.grad.layout is torch.sparse_coo) == (change == "sparse")
    assert seen == [torch.strided] * 2 * (change == "hook")


def test_an_error_in_between_leaves_embeddings_dense(monkeypatch):
    monkeypatch.setattr(embeddings, "LARGE", 0)
    embedding = nn.Embedding(8, 2)
    embedding(torch.tensor([1])).sum().backward()

    def fail():
        with sparse_gradients(embedding, {}):
            assert embedding.sparse
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not embedding.sparse
