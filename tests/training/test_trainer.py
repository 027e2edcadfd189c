"""The trainer: equal to transformers' where it should be, right where transformers is not, and clear about bad data."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SENTENCES, build_model, build_tokenizer
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    MPNetConfig,
    MPNetForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from cross_trainer import (
    BinaryCrossEntropyLoss,
    ConfigurationError,
    CrossEncoderTrainer,
    CrossEntropyLoss,
    DataError,
    InfoNCELoss,
    LambdaLoss,
    ListNetLoss,
    MarginMSELoss,
    MSELoss,
    PairCollator,
)
from cross_trainer.errors import NotFiniteError
from cross_trainer.training.checkpoints import last_complete_checkpoint


def arguments(folder, **options):
    defaults = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 1,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
        "logging_steps": 1,
        "max_grad_norm": 0.0,
    }
    return TrainingArguments(str(folder), **{**defaults, **options})


def pairs(rows=21, labels=None):
    """Pairs of different lengths; by default with labels in [0, 1]."""
    first = [" ".join(SENTENCES[: 1 + index % 3]) for index in range(rows)]
    second = [SENTENCES[(index * 5) % len(SENTENCES)] for index in range(rows)]
    return Dataset.from_dict({"a": first, "b": second, "label": labels or [index % 5 / 4 for index in range(rows)]})


def lists(rows=7):
    return Dataset.from_list(
        [
            {
                "query": SENTENCES[index % 12],
                "documents": [SENTENCES[(index + 3 * step) % 12] for step in range(1 + index % 4)],
                "labels": [int(step == index % 2) for step in range(1 + index % 4)],
            }
            for index in range(rows)
        ]
    )


def positives(rows=8):
    """Queries, each with a document that answers it."""
    return Dataset.from_dict(
        {
            "query": [SENTENCES[index % 12] for index in range(rows)],
            "positive": [SENTENCES[(index * 5 + 1) % 12] for index in range(rows)],
        }
    )


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def train(folder, dataset, model=None, tokenizer=None, trainer_options=None, **options):
    trainer = CrossEncoderTrainer(
        model if model is not None else build_model(),
        arguments(folder, **options),
        train_dataset=dataset,
        processing_class=tokenizer if tokenizer is not None else build_tokenizer(),
        **(trainer_options or {}),
    )
    trainer.train()
    return trainer


# -- equality ----------------------------------------------------------------------------------------------------------


def tokenised(tokenizer, labels=None):
    rows = pairs(labels=labels)
    return rows.map(lambda row: tokenizer(row["a"], row["b"]), remove_columns=["a", "b"])


@pytest.mark.parametrize("num_labels", [1, 3])
def test_drop_in_is_equal_bit_for_bit(tmp_path, tokenizer, num_labels):
    labels = None if num_labels == 1 else [index % 3 for index in range(21)]
    loss = BinaryCrossEntropyLoss() if num_labels == 1 else CrossEntropyLoss()
    made = []
    for kind, extra in ((Trainer, {}), (CrossEncoderTrainer, {"padding_free": False})):
        trainer = kind(
            build_model(num_labels, dropout=0.1),
            arguments(tmp_path, num_train_epochs=2, eval_strategy="epoch", max_grad_norm=1.0),
            train_dataset=tokenised(tokenizer, labels),
            eval_dataset=tokenised(tokenizer, labels),
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_loss_func=loss,
            **extra,
        )
        trainer.train()
        made.append(weights(trainer.model))
    assert torch.equal(*made)


@pytest.mark.parametrize("kind", ["pairs", "lists"])
def test_update_is_independent_of_accumulation(tmp_path, kind):
    dataset, size = (pairs(), 8) if kind == "pairs" else (lists(), 4)
    made = [
        weights(
            train(
                tmp_path,
                dataset,
                per_device_train_batch_size=size // steps,
                gradient_accumulation_steps=steps,
                optim="sgd",
            ).model
        )
        for steps in (1, 2, 4)
    ]
    torch.testing.assert_close(made[1], made[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(made[2], made[0], rtol=0, atol=1e-6)


def test_plain_trainer_fails_where_ours_holds(tmp_path, tokenizer):
    """The test above would notice: transformers' own loss depends on how a batch is cut."""
    made = []
    for steps in (1, 4):
        trainer = Trainer(
            build_model(),
            arguments(tmp_path, per_device_train_batch_size=8 // steps, gradient_accumulation_steps=steps, optim="sgd"),
            train_dataset=tokenised(tokenizer),
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        trainer.train()
        made.append(weights(trainer.model))
    assert (made[0] - made[1]).abs().max() > 1e-3


def test_padding_free_trains_to_the_same_weights(tmp_path):
    made = [
        weights(train(tmp_path, pairs(), trainer_options={"padding_free": free}, optim="sgd").model)
        for free in (True, False)
    ]
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-6)


def build_mpnet():
    """A model whose attention isn't exchangeable, so that it can't run padding-free."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MPNetForSequenceClassification(
            MPNetConfig(
                vocab_size=200,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                max_position_embeddings=66,
                pad_token_id=0,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                num_labels=1,
            )
        )


def test_a_model_that_cannot_is_trained_by_pieces_of_similar_lengths(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("cross_trainer.training.plan.CPU_TOKENS", 60)
    tokenizer = build_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    made, shapes = [], []
    for padding_free in (False, True):
        model = build_mpnet()
        seen = []
        model.mpnet.register_forward_pre_hook(
            lambda _, args, inputs, seen=seen: seen.append(args[0].shape), with_kwargs=True
        )
        with caplog.at_level(logging.INFO, logger="cross_trainer"):
            trainer = train(
                tmp_path, pairs(), model, tokenizer, trainer_options={"padding_free": padding_free}, optim="sgd"
            )
        made.append(weights(trainer.model))
        shapes.append(sum(rows * length for rows, length in seen))
    torch.testing.assert_close(made[1], made[0], rtol=0, atol=1e-6)
    assert shapes[1] < shapes[0]
    assert caplog.text.count("cut into pieces of similar lengths of 60 tokens at most") == 1


@pytest.mark.parametrize(
    ("options", "budget"),
    [
        ({}, 512),
        ({"max_tokens": 77}, 77),
        ({"padding_free": False}, None),
        ({"compute_loss_func": ListNetLoss()}, None),
    ],
)
def test_when_batches_are_cut_by_length(tmp_path, tokenizer, options, budget):
    dataset = lists() if "compute_loss_func" in options else pairs()
    trainer = CrossEncoderTrainer(
        build_mpnet(), arguments(tmp_path), train_dataset=dataset, processing_class=tokenizer, **options
    )
    assert trainer._budget == budget


@pytest.mark.parametrize("max_tokens", [None, 100])
def test_a_compiled_model_trains_to_the_same_weights(tmp_path, max_tokens):
    made = []
    for options in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        torch.compiler.reset()
        trainer = train(tmp_path, pairs(), trainer_options={"max_tokens": max_tokens}, optim="sgd", **options)
        made.append(weights(trainer.accelerator.unwrap_model(trainer.model)))
    torch.testing.assert_close(made[1], made[0], rtol=0, atol=1e-6)
    batch = next(iter(trainer.get_train_dataloader()))
    real = batch["attention_mask"].flatten().nonzero().flatten()
    assert torch.equal(trainer._model_inputs(batch)["unpad_idx"], real)
    trainer.plan = dataclasses.replace(trainer.plan, padding_free=False)
    assert "unpad_idx" not in trainer._model_inputs(next(iter(trainer.get_train_dataloader())))


@pytest.mark.parametrize("loss", [BinaryCrossEntropyLoss(), LambdaLoss()])
def test_token_budget_trains_to_the_same_weights(tmp_path, loss):
    options = {"optim": "sgd", "per_device_train_batch_size": 7}
    dataset = lists()
    made = [
        weights(
            train(tmp_path, dataset, trainer_options={"compute_loss_func": loss, "max_tokens": budget}, **options).model
        )
        for budget in (None, 40)
    ]
    torch.testing.assert_close(made[1], made[0], rtol=0, atol=1e-6)


def test_evaluation_before_training_changes_nothing(tmp_path):
    def run(evaluate):
        trainer = CrossEncoderTrainer(
            build_model(dropout=0.1),
            arguments(tmp_path),
            train_dataset=pairs(),
            eval_dataset=pairs(5),
            processing_class=build_tokenizer(),
        )
        if evaluate:
            trainer.evaluate()
        trainer.train()
        return weights(trainer.model)

    assert torch.equal(run(True), run(False))


# -- evaluation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["random", "sequential", "group_by_length", "batch_rebalance"])
def test_predictions_come_in_order_whatever_the_sampling(tmp_path, tokenizer, strategy):
    dataset = pairs(19)
    trainer = train(tmp_path, dataset, train_sampling_strategy=strategy, per_device_eval_batch_size=4)
    output = trainer.predict(dataset)
    trainer.model.eval()
    with torch.no_grad():
        expected = trainer.model(
            **tokenizer(dataset["a"][:], dataset["b"][:], padding=True, return_tensors="pt")
        ).logits
    np.testing.assert_allclose(output.predictions, expected, atol=1e-5)
    np.testing.assert_allclose(output.label_ids, np.array(dataset["label"], dtype=np.float32))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(expected[:, 0], torch.tensor(dataset["label"][:]))
    assert output.metrics["test_loss"] == pytest.approx(loss.item(), abs=1e-6)


def test_lengths_are_grouped_on_raw_text(tmp_path):
    trainer = train(tmp_path, pairs(400), train_sampling_strategy="group_by_length")
    spread = [batch["attention_mask"].sum(1).float().std() for batch in trainer.get_train_dataloader()]
    trainer.args.train_sampling_strategy = "random"
    random_spread = [batch["attention_mask"].sum(1).float().std() for batch in trainer.get_train_dataloader()]
    assert np.mean(spread) < 0.5 * np.mean(random_spread)


def test_evaluation_keeps_every_score_of_lists(tmp_path, tokenizer):
    rows = [lists(20)[index] for index in (1, 2, 3, 6, 7, 10, 11, 14, 13, 0)]
    dataset = Dataset.from_list(rows)
    real = sum(len(row["documents"]) for row in rows)
    assert (real, len(rows)) == (29, 10)
    trainer = CrossEncoderTrainer(
        build_model(),
        arguments(tmp_path, per_device_eval_batch_size=4),
        eval_dataset=dataset,
        processing_class=tokenizer,
    )
    output = trainer.predict(dataset)
    assert output.predictions.shape == output.label_ids.shape == (10, 4)
    assert ((output.predictions != -100) == (output.label_ids != -100)).all()
    assert (output.predictions != -100).sum() == 29
    with torch.no_grad():
        for row, scores in zip(rows, output.predictions, strict=True):
            count = len(row["documents"])
            batch = tokenizer([row["query"]] * count, row["documents"], padding=True, return_tensors="pt")
            np.testing.assert_allclose(scores[:count], trainer.model.eval()(**batch).logits[:, 0], atol=1e-5)
    assert {"test_ndcg@10", "test_mrr@10", "test_map"} <= set(output.metrics)


def test_several_evaluation_sets_each_with_its_metrics(tmp_path):
    trainer = CrossEncoderTrainer(
        build_model(),
        arguments(tmp_path),
        train_dataset=pairs(labels=[index % 2 for index in range(21)]),
        eval_dataset={"graded": pairs(), "lists": lists()},
        processing_class=build_tokenizer(),
    )
    metrics = trainer.evaluate()
    assert {"eval_graded_spearman", "eval_lists_map", "eval_lists_loss"} <= set(metrics)


# -- what is chosen ----------------------------------------------------------------------------------------------------


CHOICES = {
    "binary": (pairs(labels=[index % 2 for index in range(21)]), 1, BinaryCrossEntropyLoss(), "average_precision"),
    "graded": (pairs(), 1, BinaryCrossEntropyLoss(), "spearman"),
    "classes": (pairs(labels=[index % 3 for index in range(21)]), 3, CrossEntropyLoss(), "f1_macro"),
    "names": (pairs(labels=["no", "yes", "maybe"] * 7), 3, CrossEntropyLoss(), "f1_maybe"),
    "several": (pairs(labels=[[index % 2, 1, 0, 1] for index in range(21)]), 4, BinaryCrossEntropyLoss(), "f1_micro"),
    "lists": (lists(), 1, LambdaLoss(), "ndcg@10"),
    "triples": (
        Dataset.from_dict({"query": SENTENCES, "positive": SENTENCES, "negative": SENTENCES[::-1]}),
        1,
        InfoNCELoss(),
        "mrr@10",
    ),
    "margins": (
        Dataset.from_dict(
            {"query": SENTENCES, "positive": SENTENCES, "negative": SENTENCES[::-1], "score": [1.5] * 12}
        ),
        1,
        MarginMSELoss(),
        "map",
    ),
}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A folder with a model without a classification head, and its tokenizer."""
    folder = tmp_path_factory.mktemp("pretrained")
    build_model().bert.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("case", CHOICES)
def test_choices_by_the_data(tmp_path, pretrained, case, caplog):
    dataset, num_labels, loss, metric = CHOICES[case]
    with caplog.at_level(logging.INFO, logger="cross_trainer"):
        trainer = CrossEncoderTrainer(pretrained, arguments(tmp_path), train_dataset=dataset, eval_dataset=dataset)
    assert trainer.model.config.num_labels == num_labels
    assert trainer.compute_loss_func == loss
    assert "Loss chosen for" in caplog.text
    assert repr(loss) in caplog.text
    assert f"eval_{metric}" in trainer.evaluate()


def test_a_models_head_depends_on_the_seed_alone(tmp_path, pretrained):
    heads = [
        CrossEncoderTrainer(
            pretrained, arguments(tmp_path, seed=seed), train_dataset=pairs()
        ).model.classifier.weight.detach()
        for seed in (1, 1, 2)
    ]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_class_names_are_matched_by_name(tmp_path):
    """Data that counts its classes in another order than the model trains the same model."""
    names = ["contradiction", "entailment", "neutral"]
    model = build_model(3, id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)})
    order = ["entailment", "neutral", "contradiction"]
    features = Features({"a": Value("string"), "b": Value("string"), "label": ClassLabel(names=order)})
    words = [names[index % 3] for index in range(21)]
    made = []
    for dataset in (pairs(labels=words), pairs(labels=[order.index(word) for word in words]).cast(features)):
        trainer = train(tmp_path, dataset, copy.deepcopy(model))
        assert trainer.model.config.label2id == {name: index for index, name in enumerate(names)}
        made.append(weights(trainer.model))
    assert torch.equal(*made)


def test_two_named_classes_name_the_one_score(tmp_path):
    features = Features(
        {"a": Value("string"), "b": Value("string"), "label": ClassLabel(names=["different", "duplicate"])}
    )
    trainer = train(tmp_path, pairs(labels=[index % 2 for index in range(21)]).cast(features))
    assert trainer.model.config.id2label == {0: "duplicate"}


def test_a_dataset_dict_brings_its_validation_split(tmp_path):
    splits = DatasetDict({"train": pairs(), "validation": pairs(6)})
    trainer = CrossEncoderTrainer(
        build_model(), arguments(tmp_path), train_dataset=splits, processing_class=build_tokenizer()
    )
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (21, 6)
    with pytest.raises(DataError, match=r"the splits \['test'\], but no 'train'"):
        CrossEncoderTrainer(
            build_model(),
            arguments(tmp_path),
            train_dataset=DatasetDict({"test": pairs()}),
            processing_class=build_tokenizer(),
        )


def test_label_smoothing_keeps_its_meaning(tmp_path):
    dataset = pairs(labels=[index % 3 for index in range(21)])
    trainer = train(tmp_path, dataset, build_model(3), label_smoothing_factor=0.2)
    assert trainer.compute_loss_func == CrossEntropyLoss(label_smoothing=0.2)
    with pytest.raises(ConfigurationError, match=r"label_smoothing_factor=0.2 needs classes"):
        train(tmp_path, pairs(), label_smoothing_factor=0.2)


def test_swap_changes_what_is_trained(tmp_path, tokenizer):
    made = [
        weights(train(tmp_path, pairs(), trainer_options={"data_collator": PairCollator(tokenizer, swap=swap)}).model)
        for swap in (False, True)
    ]
    assert not torch.equal(*made)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "model", "message"),
    [
        ([0.0, 2.5, 5.0] * 7, {}, r"Column 'label', row 1: label 2.5 is outside \[0, 1\].*from 0 to 5.*x / 5"),
        ([0, 1, 3] * 7, {"num_labels": 3}, r"Column 'label', row 2: label 3 is outside \[0, 2\].*num_labels=3"),
        (
            ["no", "yes", "odd"] * 7,
            {"num_labels": 3, "id2label": {0: "no", 1: "yes", 2: "maybe"}, "label2id": {"no": 0, "yes": 1, "maybe": 2}},
            r"Column 'label', row 2: class 'odd' is unknown",
        ),
        (
            ["no", "yes", "odd"] * 7,
            {},
            r"Labels are the classes \['no', 'odd', 'yes'\], but the model has num_labels=1",
        ),
        ([[0, 1]] * 21, {"num_labels": 3}, r"needs num_labels=2, and the model has 3"),
        ([0.5, 1.0, 0.0] * 7, {"num_labels": 3}, r"Labels are real numbers, but the model has num_labels=3"),
    ],
)
def test_labels_that_do_not_fit(tmp_path, labels, model, message):
    with pytest.raises((DataError, ConfigurationError), match=message):
        CrossEncoderTrainer(
            build_model(**model),
            arguments(tmp_path),
            train_dataset=pairs(labels=labels),
            processing_class=build_tokenizer(),
        )


def test_the_evaluation_set_is_checked_before_training(tmp_path):
    bad = pairs(5, labels=[0.0, 1.0, 2.0, 0.0, 1.0])
    with pytest.raises(DataError, match=r"row 2: label 2\.0 is outside"):
        CrossEncoderTrainer(
            build_model(),
            arguments(tmp_path),
            train_dataset=pairs(),
            eval_dataset=bad,
            processing_class=build_tokenizer(),
        )


def test_a_misspelt_column(tmp_path, tokenizer):
    collator = PairCollator(tokenizer, columns=("sentence1", "sentence2"))
    with pytest.raises(DataError, match="Column 'sentence1' is missing"):
        CrossEncoderTrainer(build_model(), arguments(tmp_path), train_dataset=pairs(), data_collator=collator)


def test_other_arguments_that_do_not_fit(tmp_path, tokenizer):
    with pytest.raises(ConfigurationError, match="No tokenizer"):
        CrossEncoderTrainer(build_model(), arguments(tmp_path), train_dataset=pairs())
    with pytest.raises(ConfigurationError, match="max_length=100, but the model has positions for 64"):
        CrossEncoderTrainer(
            build_model(),
            arguments(tmp_path),
            train_dataset=pairs(),
            data_collator=PairCollator(tokenizer, max_length=100),
        )
    with pytest.raises(ConfigurationError, match="has no label"):
        CrossEncoderTrainer(
            build_model(),
            arguments(tmp_path),
            train_dataset=pairs().remove_columns("label"),
            processing_class=tokenizer,
        )
    with pytest.raises(ConfigurationError, match="Give a train_dataset"):
        CrossEncoderTrainer("anything", arguments(tmp_path), processing_class=tokenizer)


# -- standard arguments ------------------------------------------------------------------------------------------------


def test_best_checkpoint_early_stopping_and_resume(tmp_path):
    options = {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "spearman",
        "num_train_epochs": 4,
    }

    def build(callbacks=None, **more):
        return CrossEncoderTrainer(
            build_model(dropout=0.1),
            arguments(tmp_path / "run", **{**options, **more}),
            train_dataset=pairs(),
            eval_dataset=pairs(9),
            processing_class=build_tokenizer(),
            callbacks=callbacks,
        )

    trainer = build()
    trainer.train()
    values = [entry["eval_spearman"] for entry in trainer.state.log_history if "eval_spearman" in entry]
    assert trainer.state.best_metric == pytest.approx(max(values))
    assert trainer.evaluate()["eval_spearman"] == pytest.approx(max(values))
    whole = weights(build_from(trainer, tmp_path / "run" / "checkpoint-12"))
    # Killed while the last checkpoint was being written: the newest whole one is taken.
    (tmp_path / "run" / "checkpoint-12" / "trainer_state.json").write_text("{")
    resumed = build()
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(weights(build_from(resumed, tmp_path / "run" / "checkpoint-12")), whole)
    stopped = build(callbacks=[EarlyStoppingCallback(1)], learning_rate=0.0, num_train_epochs=4)
    stopped.train()
    assert stopped.state.epoch == 2


def build_from(trainer, folder):
    return type(trainer.accelerator.unwrap_model(trainer.model)).from_pretrained(folder)


def test_no_complete_checkpoint(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ConfigurationError, match="No complete checkpoint"):
        last_complete_checkpoint(tmp_path)


def test_hyperparameter_search(tmp_path):
    models = []

    def model_init(trial):
        models.append(build_model())
        return models[-1]

    trainer = CrossEncoderTrainer(
        args=arguments(tmp_path, eval_strategy="epoch"),
        model_init=model_init,
        train_dataset=pairs(),
        eval_dataset=pairs(9),
        processing_class=build_tokenizer(),
    )
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2)},
        n_trials=2,
        direction="maximize",
        compute_objective=lambda metrics: metrics["eval_spearman"],
    )
    assert 1e-4 <= best.hyperparameters["learning_rate"] <= 1e-2
    assert all(model.config.sentence_transformers["activation_fn"].endswith("Sigmoid") for model in models)


def test_logs_tell_of_padding_and_truncation(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="cross_trainer"):
        trainer = train(
            tmp_path, pairs(), trainer_options={"data_collator": PairCollator(build_tokenizer(), max_length=16)}
        )
    entry = trainer.state.log_history[0]
    batch = next(iter(trainer.get_train_dataloader()))
    assert 0 < entry["padding_fraction"] < 1
    assert entry["truncated_fraction"] > 0.05
    assert caplog.text.count("longer than 16 tokens and were truncated") == 1
    assert batch["input_ids"].shape[1] <= 16


def test_workers_collate(tmp_path):
    made = [weights(train(tmp_path, pairs(), dataloader_num_workers=workers).model) for workers in (0, 2)]
    assert torch.equal(*made)


def test_a_stream_trains_like_its_rows(tmp_path):
    class InOrder(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.steps = state.max_steps

    dataset = pairs(16)
    stream = train(
        tmp_path, dataset.to_iterable_dataset(), max_steps=4, optim="sgd", trainer_options={"callbacks": [InOrder()]}
    )
    mapped = train(
        tmp_path, dataset, train_sampling_strategy="sequential", num_train_epochs=2, max_steps=4, optim="sgd"
    )
    torch.testing.assert_close(weights(stream.model), weights(mapped.model), rtol=0, atol=1e-7)


def test_a_streams_first_rows_are_checked(tmp_path):
    with pytest.raises(DataError, match=r"row 3: label 5\.0 is outside"):
        train(tmp_path, pairs(4, labels=[0.0, 0.5, 1.0, 5.0]).to_iterable_dataset(), max_steps=1)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_training_goes_on_as_if_it_had_never_stopped(tmp_path, stream, workers):
    """In the middle of either pass over the data, with swaps and dropout, bit for bit."""

    def build(folder):
        dataset = pairs(20)
        if stream:
            dataset = dataset.to_iterable_dataset(num_shards=4).shuffle(seed=1, buffer_size=8)
        return CrossEncoderTrainer(
            build_model(dropout=0.1),
            arguments(
                folder,
                per_device_train_batch_size=2,
                gradient_accumulation_steps=2,
                save_strategy="steps",
                save_steps=1,
                num_train_epochs=2,
                max_steps=12 if stream else -1,
                dataloader_num_workers=workers,
            ),
            train_dataset=dataset,
            data_collator=PairCollator(build_tokenizer(), swap=True),
        )

    whole = build(tmp_path / "whole")
    whole.train()
    for step in (2, 5, 7):
        resumed = build(tmp_path / f"resumed-{step}")
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert torch.equal(weights(resumed.model), weights(whole.model)), step


def test_swaps_differ_from_pass_to_pass(tmp_path, tokenizer, monkeypatch):
    seen, swapped = [], PairCollator._swapped
    monkeypatch.setattr(PairCollator, "_swapped", lambda *given: seen.append(swapped(*given)) or seen[-1])
    options = {"num_train_epochs": 2, "train_sampling_strategy": "sequential", "per_device_train_batch_size": 21}
    train(tmp_path, pairs(), trainer_options={"data_collator": PairCollator(tokenizer, swap=True)}, **options)
    first, second = seen
    assert [set(pair) for pair in first] == [set(pair) for pair in second]
    assert first != second


@pytest.mark.parametrize("other", [False, True])
def test_a_stream_predicts_what_its_rows_predict(tmp_path, tokenizer, other):
    """10 rows in batches of 4, by somebody's own metrics, and with another collator, too."""

    def squares(evaluation):
        assert len(evaluation.predictions) == len(evaluation.label_ids) == 10
        return {"mse": float(((evaluation.predictions[:, 0] - evaluation.label_ids) ** 2).mean())}

    dataset = tokenised(tokenizer).select(range(10)) if other else pairs(10)
    trainer = CrossEncoderTrainer(
        build_model(),
        arguments(tmp_path, per_device_eval_batch_size=4),
        eval_dataset=dataset,
        data_collator=DataCollatorWithPadding(tokenizer) if other else PairCollator(tokenizer),
        compute_loss_func=MSELoss(),
        compute_metrics=squares,
    )
    mapped, streamed = trainer.predict(dataset), trainer.predict(dataset.to_iterable_dataset())
    np.testing.assert_allclose(streamed.predictions, mapped.predictions, atol=1e-6)
    assert streamed.metrics["test_mse"] == pytest.approx(mapped.metrics["test_mse"])
    assert streamed.metrics["test_loss"] == pytest.approx(mapped.metrics["test_loss"])


def test_workers_do_not_shuffle_a_streams_evaluation(tmp_path, tokenizer):
    dataset = pairs(10)
    trainer = CrossEncoderTrainer(
        build_model(),
        arguments(tmp_path, per_device_eval_batch_size=2, dataloader_num_workers=2, dataloader_prefetch_factor=2),
        eval_dataset=dataset,
        processing_class=tokenizer,
    )
    streamed = trainer.predict(dataset.to_iterable_dataset(num_shards=2)).predictions
    np.testing.assert_allclose(streamed, trainer.predict(dataset).predictions, atol=1e-6)
    assert trainer.args.dataloader_num_workers == 2


@pytest.mark.parametrize("drop_last", [False, True])
def test_drop_last_is_for_training(tmp_path, tokenizer, drop_last):
    options = {"per_device_eval_batch_size": 4, "dataloader_drop_last": drop_last}
    trainer = train(tmp_path, pairs(21), tokenizer=tokenizer, **options)
    assert trainer.state.global_step == (2 if drop_last else 3)
    assert len(trainer.predict(pairs(10)).predictions) == 10
    assert len(trainer.predict(lists(10)).predictions) == 10


def test_somebodys_loss_never_sees_a_row_that_fills_up(tmp_path):
    """21 rows in batches of 8: the last batch of a stream has 5 rows and no label of -100."""

    def loss(outputs, labels, num_items_in_batch=None):
        assert (labels >= 0).all()
        return (outputs.logits.squeeze(-1) - labels).square().sum() / num_items_in_batch

    options = {"max_steps": 3, "optim": "sgd", "learning_rate": 1e-3, "trainer_options": {"compute_loss_func": loss}}
    streamed = train(tmp_path, pairs().to_iterable_dataset(), **options)
    mapped = train(tmp_path, pairs(), train_sampling_strategy="sequential", **options)
    assert torch.equal(weights(streamed.model), weights(mapped.model))


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "label nan is not finite"), (5.0, r"label 5\.0 is outside \[0, 1\]")]
)
def test_the_rest_of_a_stream_is_checked_as_it_goes_by(tmp_path, value, message):
    labels = [index % 2 * 1.0 for index in range(1100)]
    labels[1050] = value
    stream = pairs(1100, labels).to_iterable_dataset()
    with pytest.raises(DataError, match=f"Column 'label', row 1050: {message}"):
        train(tmp_path, stream, max_steps=20, per_device_train_batch_size=64)
    trainer = CrossEncoderTrainer(
        build_model(),
        arguments(tmp_path, per_device_eval_batch_size=64),
        eval_dataset=pairs(8),
        processing_class=build_tokenizer(),
    )
    with pytest.raises(DataError, match=f"row 1050: {message}"):
        trainer.predict(stream)


def test_negatives_of_an_evaluation_come_from_the_whole_set(tmp_path, tokenizer):
    made = []
    for size in (1, 3, 12):
        trainer = CrossEncoderTrainer(
            build_model(),
            arguments(tmp_path, per_device_eval_batch_size=size),
            train_dataset=positives(12),
            eval_dataset=positives(12),
            data_collator=PairCollator(tokenizer, in_batch_negatives=3),
        )
        made.append(trainer.predict(positives(12)).predictions)
    assert made[0].shape == (12, 4)
    np.testing.assert_allclose(made[1], made[0], atol=1e-5)
    np.testing.assert_allclose(made[2], made[0], atol=1e-5)


# -- numbers that are none ---------------------------------------------------------------------------------------------


class Spoil(TrainerCallback):
    """Make a weight NaN before the second step."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1:
            with torch.no_grad():
                model.classifier.weight[0, 0] = float("nan")


class InfiniteLoss:
    """Infinite in the first batch that has a label of 0.75, which row 3 is the first to have."""

    couples_rows = True

    def __init__(self) -> None:
        self.spoilt = False

    def __call__(self, outputs, labels, num_items_in_batch=None):
        loss = (outputs["logits"].squeeze(-1) - labels).square().sum() / num_items_in_batch
        if self.spoilt or not (labels == 0.75).any():
            return loss
        self.spoilt = True
        return loss * torch.inf


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, "0, 1, 2, 3, 4, 5, 6, 7"),
        ({"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2}, "2, 3"),
        ({"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}, "0, 1, 2, 3"),
    ],
)
@pytest.mark.parametrize("max_tokens", [None, 40])
def test_training_stops_where_the_loss_is_not_finite(tmp_path, options, rows, max_tokens):
    options = {**options, "train_sampling_strategy": "sequential"}
    model, given = build_model(), {"compute_loss_func": InfiniteLoss(), "max_tokens": max_tokens}
    with pytest.raises(NotFiniteError, match=rf"Step 1: The loss is inf.*held the rows {rows}\."):
        train(tmp_path, pairs(), model, trainer_options=given, **options)
    assert torch.equal(weights(model), weights(build_model()))
    given = {"compute_loss_func": InfiniteLoss(), "max_tokens": max_tokens, "stop_on_nan": False}
    trainer = train(tmp_path, pairs(), trainer_options=given, **options)
    assert weights(trainer.model).isnan().any()


def test_training_stops_where_a_gradient_is_not_finite(tmp_path):
    class NoGradient(torch.autograd.Function):
        """A sum whose gradient is NaN."""

        @staticmethod
        def forward(ctx, values):
            ctx.shape = values.shape
            return values.sum()

        @staticmethod
        def backward(ctx, gradient):
            return torch.full(ctx.shape, float("nan"))

    def loss(outputs, labels, num_items_in_batch=None):
        return NoGradient.apply(outputs.logits)

    with pytest.raises(FloatingPointError, match="Step 1: The loss is finite, but its gradient's norm is nan"):
        train(tmp_path, pairs(), trainer_options={"compute_loss_func": loss})
    with pytest.raises(NotFiniteError, match="Step 2: The loss is nan"):
        train(tmp_path, pairs(), trainer_options={"callbacks": [Spoil()]})


def test_a_metric_that_is_nan_is_never_the_best(tmp_path, caplog):
    values = iter([float("nan"), 0.2, float("nan"), 0.1])
    with caplog.at_level(logging.WARNING, logger="cross_trainer"):
        trainer = CrossEncoderTrainer(
            build_model(),
            arguments(
                tmp_path,
                eval_strategy="epoch",
                save_strategy="epoch",
                load_best_model_at_end=True,
                metric_for_best_model="found",
                greater_is_better=True,
                num_train_epochs=4,
            ),
            train_dataset=pairs(),
            eval_dataset=pairs(9),
            processing_class=build_tokenizer(),
            compute_metrics=lambda _: {"found": next(values)},
        )
        trainer.train()
    assert trainer.state.best_metric == 0.2
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-6")
    assert torch.equal(weights(trainer.model), weights(build_from(trainer, tmp_path / "checkpoint-6")))
    assert caplog.text.count("metric_for_best_model 'found' is NaN") == 2


# -- what a model returns ----------------------------------------------------------------------------------------------


def build_bart():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BartForSequenceClassification(
            BartConfig(
                vocab_size=200,
                d_model=32,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=32,
                decoder_ffn_dim=32,
                max_position_embeddings=66,
                pad_token_id=0,
                bos_token_id=2,
                eos_token_id=3,
                decoder_start_token_id=2,
                num_labels=1,
            )
        )


@pytest.mark.parametrize("kind", ["bart", "hidden states", "attentions", "tuples"])
@pytest.mark.parametrize("padding_free", [False, True])
def test_only_logits_are_kept_of_an_evaluation(tmp_path, kind, padding_free):
    options = {
        "hidden states": {"output_hidden_states": True},
        "attentions": {"output_attentions": True, "attn_implementation": "eager"},
        "tuples": {"return_dict": False},
    }
    tokenizer = build_tokenizer()
    if kind == "bart":
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    for dataset, shape in ((lists(), (7, 4)), (pairs(), (21, 1)), (lists().remove_columns("labels"), (7, 4))):
        trainer = CrossEncoderTrainer(
            build_bart() if kind == "bart" else build_model(**options[kind]),
            arguments(tmp_path, per_device_eval_batch_size=3),
            eval_dataset=dataset if shape == (21, 1) else lists(),
            processing_class=tokenizer,
            padding_free=padding_free,
        )
        assert trainer.predict(dataset).predictions.shape == shape


def test_lists_without_labels_keep_every_score(tmp_path, tokenizer):
    trainer = CrossEncoderTrainer(
        build_model(),
        arguments(tmp_path, per_device_eval_batch_size=4),
        eval_dataset=lists(10),
        processing_class=tokenizer,
    )
    labelled = trainer.predict(lists(10)).predictions
    np.testing.assert_array_equal(trainer.predict(lists(10).remove_columns("labels")).predictions, labelled)


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("alone", [False, True])
def test_a_loss_alone_is_that_of_all_rows(tmp_path, tokenizer, size, alone):
    trainer = CrossEncoderTrainer(
        build_model(),
        arguments(tmp_path, per_device_eval_batch_size=size, prediction_loss_only=alone),
        eval_dataset=lists(7),
        processing_class=tokenizer,
    )
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(3.6856657, abs=1e-4)
    assert ("eval_map" in metrics) != alone
    assert (trainer.predict(lists(7)).predictions is None) == alone


@pytest.mark.parametrize("option", ["batch_eval_metrics", "eval_do_concat_batches"])
def test_metrics_that_need_all_rows_say_so(tmp_path, tokenizer, option):
    args = arguments(tmp_path, per_device_eval_batch_size=4, **{option: option == "batch_eval_metrics"})
    with pytest.raises(ConfigurationError, match=f"{option}=.* needs"):
        CrossEncoderTrainer(build_model(), args, eval_dataset=pairs(), processing_class=tokenizer)
    seen = []

    def metrics(evaluation, compute_result=True):
        seen.append(evaluation)
        return {"calls": len(seen)}

    for dataset in (pairs(10), pairs(10).to_iterable_dataset()):
        seen.clear()
        trainer = CrossEncoderTrainer(
            build_model(), args, eval_dataset=dataset, processing_class=tokenizer, compute_metrics=metrics
        )
        assert trainer.evaluate()["eval_calls"] == (3 if option == "batch_eval_metrics" else 1)
        found = [each.predictions for each in seen] if option == "batch_eval_metrics" else seen[0].predictions
        assert [len(batch) for batch in found] == [4, 4, 2]


def check_what_metrics_see(folder, dataset, count, **options):
    """The tokens of each of `count` pairs and the mean loss of its batch of 2, whatever the number of processes."""
    seen = []
    trainer = CrossEncoderTrainer(
        build_model(),
        arguments(folder, per_device_eval_batch_size=2, include_for_metrics=["inputs", "loss"]),
        eval_dataset=dataset,
        processing_class=build_tokenizer(),
        compute_metrics=lambda evaluation: seen.append(evaluation) or {},
        **options,
    )
    loss = trainer.evaluate()["eval_loss"]
    rows = pairs(count)
    tokens = build_tokenizer()(rows["a"][:], rows["b"][:])["input_ids"]
    assert len(seen[0].inputs) == count
    for found, expected in zip(seen[0].inputs.tolist(), tokens, strict=True):
        assert found[: len(expected)] == expected
        assert set(found[len(expected) :]) <= {0, -100}
    logits, labels = torch.tensor(seen[0].predictions[:, 0]), torch.tensor(rows["label"])
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    of_batches = [batch.mean().item() for batch in losses.split(2)]
    np.testing.assert_allclose(seen[0].losses, np.repeat(of_batches, 2)[:count], atol=1e-5)
    assert loss == pytest.approx(losses.mean().item(), abs=1e-5)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("padding_free", [False, True])
def test_metrics_see_the_inputs_and_the_losses_of_all_rows(tmp_path, stream, padding_free):
    rows = pairs(9).to_iterable_dataset() if stream else pairs(9)
    check_what_metrics_see(tmp_path, rows, 9, padding_free=padding_free)


@pytest.mark.parametrize("kind", ["lists", "stream", "negatives"])
def test_inputs_of_queries_with_several_documents_are_refused(tmp_path, tokenizer, kind):
    dataset = positives() if kind == "negatives" else lists()
    options = {
        "args": arguments(tmp_path, include_for_metrics=["inputs"]),
        "data_collator": PairCollator(tokenizer, in_batch_negatives=3 if kind == "negatives" else 0),
    }
    rows = dataset.to_iterable_dataset() if kind == "stream" else dataset
    message = r"include_for_metrics=\['inputs'\] .*'query'.* Leave 'inputs' out"
    with pytest.raises(ConfigurationError, match=message):
        CrossEncoderTrainer(build_model(), eval_dataset=rows, **options)
    trainer = CrossEncoderTrainer(build_model(), train_dataset=dataset, **options)
    trainer.train()  # metrics see nothing of it
    with pytest.raises(ConfigurationError, match=message):
        trainer.evaluate(rows)


def test_metrics_see_the_losses_of_lists(tmp_path, tokenizer):
    seen = []
    trainer = CrossEncoderTrainer(
        build_model(),
        arguments(tmp_path, per_device_eval_batch_size=3, include_for_metrics=["loss"]),
        eval_dataset=lists(7),
        processing_class=tokenizer,
        compute_metrics=lambda evaluation: seen.append(evaluation) or {},
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(3.6856657, abs=1e-4)
    losses = [trainer.evaluate(lists(7).select(part))["eval_loss"] for part in (range(3), range(3, 6), [6])]
    np.testing.assert_allclose(seen[0].losses, np.repeat(losses, 3)[:7], atol=1e-5)


# -- a model by its name -----------------------------------------------------------------------------------------------


def test_a_model_by_its_path_and_by_more_than_its_name(tmp_path, pretrained):
    trainer = CrossEncoderTrainer(
        Path(pretrained),
        arguments(tmp_path),
        train_dataset=pairs(),
        model_kwargs={"attn_implementation": "eager", "local_files_only": True, "revision": "main"},
    )
    assert trainer.model.config.num_labels == 1
    assert trainer.model.config._attn_implementation == "eager"
    assert trainer.model.dtype == torch.float32
    with pytest.raises(ConfigurationError, match=r"model_kwargs=.* are for a model given by its name"):
        CrossEncoderTrainer(
            build_model(),
            arguments(tmp_path),
            train_dataset=pairs(),
            processing_class=build_tokenizer(),
            model_kwargs={"revision": "main"},
        )


REMOTE = """
from transformers import BertConfig, BertForSequenceClassification

class OwnConfig(BertConfig):
    model_type = "own"

class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig
"""


def write_own_model(folder):
    """A model whose code lies beside its weights."""
    build_model().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    (folder / "own.py").write_text(REMOTE)
    config = json.loads((folder / "config.json").read_text())
    places = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": places}))


def test_a_model_with_code_of_its_own(tmp_path):
    write_own_model(tmp_path / "model")
    options = {"train_dataset": pairs(), "model_kwargs": {"trust_remote_code": True}}
    trainer = CrossEncoderTrainer(tmp_path / "model", arguments(tmp_path), **options)
    trainer.train()
    assert type(trainer.model).__name__ == "OwnModel"
    with pytest.raises(ValueError, match="trust_remote_code"):
        CrossEncoderTrainer(tmp_path / "model", arguments(tmp_path, disable_tqdm=True), train_dataset=pairs())


# -- saving ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "num_labels", "loss", "activation", "problem_type"),
    [
        (None, 1, None, "activation.Sigmoid", None),
        (None, 1, MSELoss(activation="identity"), "linear.Identity", "regression"),
        (["no", "yes", "maybe"] * 7, 3, None, "activation.Softmax", "single_label_classification"),
        ([[index % 2, 1, 0, 1] for index in range(21)], 4, None, "activation.Sigmoid", "multi_label_classification"),
    ],
)
def test_every_reader_of_a_saved_folder_gives_the_trainers_scores(
    tmp_path, labels, num_labels, loss, activation, problem_type
):
    from sentence_transformers import CrossEncoder as SentenceTransformersCrossEncoder
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    dataset = pairs(labels=labels)
    collator = PairCollator(build_tokenizer(), max_length=24)
    trainer = train(
        tmp_path,
        dataset,
        build_model(num_labels),
        trainer_options={"data_collator": collator, "compute_loss_func": loss},
    )
    logits = torch.from_numpy(trainer.predict(dataset).predictions)
    folder = tmp_path / "saved"
    trainer.save_model(str(folder))

    config = json.loads((folder / "config.json").read_text())
    assert config["sentence_transformers"] == {"activation_fn": f"torch.nn.modules.{activation}"}
    assert config["sbert_ce_default_activation_function"] == f"torch.nn.modules.{activation}"
    assert config.get("problem_type") == problem_type
    assert not [key for key in config if "attn" in key or key == "_name_or_path"]
    reading = json.loads((folder / "sentence_bert_config.json").read_text())
    assert {"max_seq_length": 24, "do_lower_case": False}.items() <= reading.items()
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 24
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(os.listdir(folder))
    assert [module["path"] for module in json.loads((folder / "modules.json").read_text())] == [""]
    assert collator.tokenizer.model_max_length == 64

    function = {"Sigmoid": torch.sigmoid, "Identity": lambda x: x, "Softmax": lambda x: x.softmax(-1)}[
        activation.split(".")[1]
    ]
    expected = function(logits).numpy()
    texts = list(zip(dataset["a"], dataset["b"], strict=True))

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        batch = tokenizer(*map(list, zip(*texts, strict=True)), padding=True, truncation=True, return_tensors="pt")
        np.testing.assert_allclose(function(model(**batch).logits), expected, atol=1e-6)
    scorer = pipeline("text-classification", model=str(folder), device="cpu", top_k=None, truncation=True)
    given = scorer([{"text": a, "text_pair": b} for a, b in texts])
    names = [model.config.id2label[index] for index in range(num_labels)]
    by_name = [{entry["label"]: entry["score"] for entry in entries} for entries in given]
    np.testing.assert_allclose([[entry[name] for name in names] for entry in by_name], expected, atol=1e-6)
    theirs = SentenceTransformersCrossEncoder(str(folder), device="cpu").predict(texts)
    np.testing.assert_allclose(theirs.reshape(expected.shape), expected, atol=1e-6)
    if isinstance(labels, list) and isinstance(labels[0], str):
        assert names == ["maybe", "no", "yes"]


def test_a_plain_callable_as_loss_leaves_the_config_alone(tmp_path):
    def loss(outputs, labels, num_items_in_batch=None):
        return (outputs.logits.squeeze(-1) - labels).square().sum() / num_items_in_batch

    trainer = train(tmp_path, pairs(), trainer_options={"compute_loss_func": loss})
    assert getattr(trainer.model.config, "sentence_transformers", None) is None


# -- several processes -------------------------------------------------------------------------------------------------


def launch(processes, script, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        str(processes),
        "--standalone",
        str(script),
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=180)
    assert done.returncode == 0, done.stderr[-4000:]


def test_two_processes_are_equal_to_one(tmp_path):
    """The same updates and metrics for pairs, lists and streams, for sets that don't divide, evaluated first."""
    script = Path(__file__).parents[1] / "two_processes.py"
    for processes in (1, 2):
        launch(processes, script, str(tmp_path / str(processes)))
    one, two = (json.loads((tmp_path / str(count) / "results.json").read_text()) for count in (1, 2))
    assert (one.pop("world_size"), two.pop("world_size")) == (1, 2)
    assert set(one) == set(two)
    for case in one:
        assert set(one[case]) == set(two[case])
        for key, value in one[case].items():
            np.testing.assert_allclose(two[case][key], value, atol=1e-5, err_msg=f"{case} {key}")


def test_processes_that_would_train_alone_are_named(monkeypatch, tmp_path):
    args = arguments(tmp_path)
    assert args.world_size == 1  # accelerate has found one process
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigurationError, match=r"one of 2.*use_cpu=True"):
        CrossEncoderTrainer(build_model(), args, train_dataset=pairs(4), processing_class=build_tokenizer())
