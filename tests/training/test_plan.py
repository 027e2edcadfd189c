"""The plan says what the trainer does, changes nothing, and leaves what the user passed as it was."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys

import pytest
import torch
from conftest import SENTENCES, build_model, build_tokenizer
from datasets import Dataset
from training.test_trainer import arguments, lists, pairs

from cross_trainer import (
    BinaryCrossEntropyLoss,
    ConfigurationError,
    CrossEncoderTrainer,
    DataError,
    InfoNCELoss,
    LambdaLoss,
    ListNetLoss,
    PairCollator,
    binary_metrics,
    make_plan,
)
from cross_trainer.training.plan import load_planned

BINARY = pairs(labels=[index % 2 for index in range(21)])


def test_a_plan_is_that_of_the_trainer(tmp_path, folder):
    for dataset in (BINARY, pairs(), lists(), pairs(labels=["no", "yes", "maybe"] * 7)):
        plan = make_plan(folder, dataset, dataset)
        trainer = CrossEncoderTrainer(folder, arguments(tmp_path), train_dataset=dataset, eval_dataset=dataset)
        assert trainer.plan == plan
        assert (trainer.compute_loss_func, trainer.compute_metrics) == (plan.loss, plan.metrics)
        assert trainer.model.config.num_labels == load_planned(folder, plan).config.num_labels == plan.num_labels


def test_repr_shows_one_decision_a_line(folder):
    lines = repr(make_plan(folder, pairs(labels=["no", "yes", "maybe"] * 7), max_tokens=99)).splitlines()
    assert lines == [
        "Plan(",
        "    columns=Columns(query='a', documents=('b',), label='label'),",
        "    labels=class, 21 rows,",
        "    num_labels=3,",
        "    label_names=['maybe', 'no', 'yes'],",
        "    loss=CrossEntropyLoss(class_weights=None, label_smoothing=0.0),",
        "    metrics=None,",
        "    max_length=64,",
        "    truncation='longest_first',",
        "    padding_side='right',",
        "    padding_free=True,",
        "    obstacle=None,",
        "    max_tokens=99,",
        "    prior=[-1.1, -1.1, -1.1],",
        ")",
    ]


def test_making_a_plan_changes_nothing():
    model, tokenizer = build_model(), build_tokenizer(model_max_length=10**30)
    tokenizer.pad_token = None
    tokenizer.eos_token = "[SEP]"
    collator = PairCollator(tokenizer)
    before = copy.deepcopy((model.config.to_dict(), vars(collator)["max_length"], tokenizer.pad_token))
    plan = make_plan(model, BINARY, BINARY, collator)
    assert (model.config.to_dict(), vars(collator)["max_length"], tokenizer.pad_token) == before
    assert not model._forward_hooks
    assert plan.max_length == 64
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.loss = None


def test_the_trainer_leaves_collator_and_tokenizer_as_they_were(tmp_path):
    tokenizer = build_tokenizer(model_max_length=10**30)
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    collator = PairCollator(tokenizer)
    model = build_model(pad_token_id=None)
    trainer = CrossEncoderTrainer(
        model, arguments(tmp_path), train_dataset=BINARY, eval_dataset=BINARY, data_collator=collator
    )
    trainer.train()
    trainer.evaluate()
    trainer.save_model(tmp_path / "saved")
    assert (collator.max_length, collator.columns, tokenizer.pad_token) == (None, None, None)
    assert tokenizer.model_max_length == 10**30
    assert trainer.data_collator.max_length == 64
    assert collator.statistics()["pairs"] > 0
    from cross_trainer import CrossEncoder

    saved = CrossEncoder(tmp_path / "saved")
    assert (saved.tokenizer.pad_token, saved.max_length) == ("[SEP]", 64)


def test_a_trained_model_is_free_of_us(tmp_path):
    model = build_model(dropout=0.1)
    types = [type(module) for module in model.modules()]
    trainer = CrossEncoderTrainer(model, arguments(tmp_path), train_dataset=BINARY, processing_class=build_tokenizer())
    for act in (trainer.train, lambda: trainer.evaluate(BINARY), lambda: trainer.predict(BINARY)):
        act()
        assert [type(module) for module in model.modules()] == types
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model.eval()))
    batch = build_tokenizer()(SENTENCES[:4], SENTENCES[4:8], padding=True, return_tensors="pt")
    traced = torch.jit.trace(model, (batch["input_ids"], batch["attention_mask"]), strict=False)
    other = build_tokenizer()(SENTENCES[:7], SENTENCES[2:9], padding=True, return_tensors="pt")
    inputs = other["input_ids"], other["attention_mask"]
    torch.testing.assert_close(traced(*inputs)["logits"], model(*inputs).logits)
    code = (
        "import pickle, sys\n"
        "sys.modules['cross_trainer'] = None\n"
        "model = pickle.load(open(sys.argv[1], 'rb'))\n"
        "print(type(model).__name__)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model.pickle")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "BertForSequenceClassification", done.stderr


def test_a_training_that_fails_leaves_the_model_free_too(tmp_path):
    def failing(*_, **__):
        raise RuntimeError("broken loss")

    model = build_model()
    trainer = CrossEncoderTrainer(
        model, arguments(tmp_path), train_dataset=BINARY, processing_class=build_tokenizer(), compute_loss_func=failing
    )
    with pytest.raises(RuntimeError, match="broken loss"):
        trainer.train()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_was_trained_on_decides_for_further_rows(tmp_path):
    rows = [{"x": "a man", "noise": "a dog", "y": "kids", "label": index % 2} for index in range(8)]
    trainer = CrossEncoderTrainer(
        build_model(),
        arguments(tmp_path),
        train_dataset=rows,
        data_collator=PairCollator(build_tokenizer(), columns=("x", "y")),
    )
    further = [{"noise": "b", "y": "kids", "x": "a man", "more": "c", "label": 1}]
    assert trainer.plan.for_dataset(further).columns.names == ["x", "y", "label"]
    assert trainer.predict(further).predictions.shape == (1, 1)
    other = [{"query": "q", "documents": ["a", "b"], "labels": [1, 0]}]
    assert trainer.plan.for_dataset(other).columns.shape == "list"
    triples = Dataset.from_dict({"u": SENTENCES, "v": SENTENCES, "negative": SENTENCES[::-1]})
    trained = make_plan(build_model(), triples, data_collator=PairCollator(build_tokenizer()))
    again = trained.for_dataset(triples.add_column("extra", SENTENCES))
    assert again.columns.documents == ("v", "negative")


def test_a_trainer_without_data_plans_when_it_sees_some(tmp_path):
    trainer = CrossEncoderTrainer(build_model(), arguments(tmp_path), processing_class=build_tokenizer())
    assert trainer.plan is None
    unlabelled = Dataset.from_dict({"a": SENTENCES, "b": SENTENCES})
    assert trainer.predict(unlabelled).predictions.shape == (12, 1)
    assert "eval_average_precision" in trainer.evaluate(BINARY)
    assert trainer.plan.loss == BinaryCrossEntropyLoss()


def longer_tokenizer():
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([f"new{index}" for index in range(150)])
    return tokenizer


def test_more_embeddings_than_tokens_are_fine():
    model = build_model()
    model.resize_token_embeddings(len(longer_tokenizer()))
    assert make_plan(model, BINARY, data_collator=PairCollator(longer_tokenizer())).num_labels == 1
    assert make_plan(model, BINARY, data_collator=PairCollator(build_tokenizer())).num_labels == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ConfigurationError, "no data set to plan for"),
        ({"train_dataset": pairs(labels=[2.5] * 21)}, DataError, r"label 2.5 is outside \[0, 1\]"),
        ({"train_dataset": BINARY, "eval_dataset": pairs(labels=[7.5] * 21)}, DataError, "label 7.5 is outside"),
        ({"train_dataset": Dataset.from_dict({"a": ["x"], "b": ["y"]})}, ConfigurationError, "has no label"),
        (
            {"train_dataset": BINARY, "data_collator": PairCollator(build_tokenizer(), in_batch_negatives=2)},
            ConfigurationError,
            "without a label",
        ),
        (
            {"train_dataset": BINARY, "data_collator": PairCollator(build_tokenizer(), max_length=65)},
            ConfigurationError,
            "positions for 64 tokens",
        ),
        (
            {"train_dataset": BINARY, "data_collator": PairCollator(longer_tokenizer())},
            ConfigurationError,
            r"embeddings for 200: 'new82' \(200\) has none.*resize_token_embeddings",
        ),
        *(
            ({"train_dataset": BINARY, "compute_loss_func": loss}, ConfigurationError, r"train_dataset=group_by_query")
            for loss in (LambdaLoss(), ListNetLoss(), InfoNCELoss())
        ),
    ],
)
def test_what_contradicts_itself_is_named(options, error, message):
    collator = options.pop("data_collator", PairCollator(build_tokenizer()))
    with pytest.raises(error, match=message):
        make_plan(build_model(), data_collator=collator, **options)


def test_what_is_given_wins():
    given = make_plan(
        build_model(),
        lists(),
        lists(),
        PairCollator(build_tokenizer()),
        LambdaLoss(k=3),
        binary_metrics(),
        padding_free=False,
        max_tokens=77,
    )
    assert (given.loss, given.metrics, given.padding_free, given.max_tokens) == (
        LambdaLoss(k=3),
        binary_metrics(),
        False,
        77,
    )
