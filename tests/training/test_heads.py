"""Where the bias of a new head starts: at what minimises the loss without looking at the texts."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from conftest import build_model, build_tokenizer
from datasets import ClassLabel, Dataset
from training.test_trainer import arguments
from transformers import AutoModelForSequenceClassification, DistilBertConfig, Qwen3Config, RobertaConfig

from cross_trainer import CrossEncoderTrainer, PairCollator, make_plan
from cross_trainer.data.survey import Survey
from cross_trainer.errors import DataError
from cross_trainer.training.heads import prior_logits
from cross_trainer.training.losses import (
    BinaryCrossEntropyLoss,
    CrossEntropyLoss,
    ListNetLoss,
    MSELoss,
)

SMALL = {"vocab_size": 200, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0}


def rows(labels) -> Dataset:
    return Dataset.from_dict({"a": ["one two"] * len(labels), "b": ["three"] * len(labels), "label": labels})


def lists(labels) -> Dataset:
    return Dataset.from_dict({"query": ["one"], "documents": [["two"] * len(labels)], "labels": [labels]})


def best_constant(loss, labels: torch.Tensor, count: int) -> list[float]:
    """The logits that minimise a loss, the same ones for all rows, found by descent."""
    constant = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([constant], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(constant.expand(len(labels), count), labels)
        value.backward()
        return value

    optimizer.step(closure)
    found = constant.detach()
    return (found - found.logsumexp(0) if isinstance(loss, CrossEntropyLoss) else found).tolist()


MANY = 400  # rows, among which half a row of each outcome counts for little
CASES = {
    "binary": ([0] * (9 * MANY) + [1] * MANY, BinaryCrossEntropyLoss(), 1),
    "weighted": ([0] * (9 * MANY) + [1] * MANY, BinaryCrossEntropyLoss(pos_weight=9.0), 1),
    "soft": ([place / 8000 for place in range(2000)], BinaryCrossEntropyLoss(), 1),
    "multi": ([[1, 0], [0, 0], [1, 1], [1, 0]] * MANY, BinaryCrossEntropyLoss(pos_weight=(2.0, 0.5)), 2),
    "classes": ([0] * MANY + [1] * 5 * MANY + [2] * 2 * MANY, CrossEntropyLoss(), 3),
    "weighted classes": ([0, 1, 1, 2] * MANY, CrossEntropyLoss(class_weights=(1.0, 2.0, 5.0)), 3),
    "regression": ([1.5, 4.0, 5.0] * MANY, MSELoss(activation="identity"), 1),
    "probabilities": ([0.1, 0.2, 0.0] * MANY, MSELoss(), 1),
}


@pytest.mark.parametrize("case", CASES)
def test_a_new_bias_is_the_best_constant(folder, tmp_path, case):
    labels, loss, count = CASES[case]
    trainer = CrossEncoderTrainer(folder, arguments(tmp_path), train_dataset=rows(labels), compute_loss_func=loss)
    targets = torch.tensor(labels, dtype=torch.float64 if not isinstance(loss, CrossEntropyLoss) else torch.int64)
    best = best_constant(loss, targets, count)
    assert trainer.plan.prior == pytest.approx(best, abs=0.02)
    assert trainer.model.classifier.bias.tolist() == pytest.approx(trainer.plan.prior)


def test_classes_are_counted_in_the_models_order(folder, tmp_path):
    names = ["yes", "no", "maybe"]
    indexed = rows([0, 1, 1, 1, 2, 2] * 30).cast_column("label", ClassLabel(names=names))
    named = rows([names[index] for index in indexed["label"]])
    id2label = dict(enumerate(["maybe", "yes", "no"]))
    label2id = {name: index for index, name in id2label.items()}
    build_model(num_labels=3, id2label=id2label, label2id=label2id).save_pretrained(tmp_path)
    for dataset in (indexed, named):
        plan = make_plan(str(tmp_path), dataset, data_collator=PairCollator(build_tokenizer()))
        shares = [math.exp(logit) for logit in plan.prior]
        assert shares == pytest.approx([2 / 6, 1 / 6, 3 / 6], abs=0.01)


@pytest.mark.parametrize(
    ("dataset", "loss"),
    [
        (lists([1, 0, 0]), ListNetLoss()),
        (iter, BinaryCrossEntropyLoss()),
    ],
    ids=["only differences count", "a stream's first rows say little"],
)
def test_others_start_at_zero(folder, tmp_path, dataset, loss):
    if dataset is iter:
        dataset = rows([0, 0, 0, 1]).to_iterable_dataset()
    trainer = CrossEncoderTrainer(
        folder, arguments(tmp_path, max_steps=1), train_dataset=dataset, compute_loss_func=loss
    )
    assert trainer.plan.prior is None
    assert trainer.model.classifier.bias.tolist() == [0.0]


@pytest.mark.parametrize("loss", [BinaryCrossEntropyLoss(), ListNetLoss(pointwise=0.5)])
def test_lists_for_a_pointwise_loss_count_documents(folder, loss):
    plan = make_plan(folder, lists([1, 0, 0, 0] * 50), compute_loss_func=loss)
    assert plan.prior == pytest.approx([-1.0986], abs=0.02)


def test_it_can_be_left_out(folder, tmp_path):
    trainer = CrossEncoderTrainer(folder, arguments(tmp_path), train_dataset=rows([0, 0, 0, 1]), prior_bias=False)
    assert trainer.plan.prior is None
    assert trainer.model.classifier.bias.tolist() == [0.0]


def test_a_trained_head_and_a_loaded_model_stay(folder, tmp_path):
    model = build_model()
    torch.nn.init.constant_(model.classifier.bias, 3.0)
    model.save_pretrained(tmp_path / "trained")
    build_tokenizer().save_pretrained(tmp_path / "trained")
    data = rows([0, 0, 0, 1])
    named = CrossEncoderTrainer(str(tmp_path / "trained"), arguments(tmp_path), train_dataset=data)
    given = CrossEncoderTrainer(
        build_model(), arguments(tmp_path), train_dataset=data, processing_class=build_tokenizer()
    )
    assert named.model.classifier.bias.tolist() == [3.0]
    assert given.plan.prior is None
    assert given.model.classifier.bias.tolist() == [0.0]


FAMILIES = {
    "distilbert": (
        DistilBertConfig(vocab_size=200, dim=16, n_layers=1, n_heads=2, hidden_dim=16),
        lambda model: model.classifier,
    ),
    "roberta": (RobertaConfig(**SMALL, intermediate_size=16), lambda model: model.classifier.out_proj),
    "qwen3": (Qwen3Config(**SMALL, intermediate_size=16, num_key_value_heads=2), lambda model: model.score),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_of_other_families(tmp_path, caplog, family):
    config, head = FAMILIES[family]
    AutoModelForSequenceClassification.from_config(config).base_model.save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, "cross_trainer"):
        trainer = CrossEncoderTrainer(str(tmp_path), arguments(tmp_path), train_dataset=rows([0, 0, 0, 1] * 50))
    last = head(trainer.model)
    if family == "qwen3":
        assert last.bias is None
        assert "The new head has no bias here that could start at [-1.09]." in caplog.messages
    else:
        assert last.bias.tolist() == pytest.approx([-1.0986], abs=0.02)


def test_grades_beyond_probabilities_are_refused_for_a_pointwise_part(folder):
    with pytest.raises(DataError, match=r"Column 'labels', row 0: label 2 is outside \[0, 1\]"):
        make_plan(folder, lists([2, 0]), compute_loss_func=ListNetLoss(pointwise=1.0))
    make_plan(folder, lists([2, 0]), compute_loss_func=ListNetLoss())


def test_weights_of_another_number_are_left_to_the_loss() -> None:
    labels = Survey(rows=4, kind="class", numbers=4, total=3.0, counts={0: 2, 1: 1, 2: 1})
    assert prior_logits(labels, CrossEntropyLoss(class_weights=(1.0, 2.0)), DistilBertConfig(num_labels=3)) is None
    labels = Survey(rows=4, kind="multi", numbers=8, total=3.0, width=2, counts={0: 2, 1: 1})
    loss = BinaryCrossEntropyLoss(pos_weight=(1.0, 2.0, 3.0))
    assert prior_logits(labels, loss, DistilBertConfig(num_labels=2)) is None
