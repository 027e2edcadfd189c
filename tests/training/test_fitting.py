"""fit: the documented call trains, the best model is the one on disk, and arguments do what they say."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from conftest import SENTENCES, build_model, build_tokenizer
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, WeightedRandomSampler
from transformers import AutoModelForSequenceClassification, BertModel

from cross_trainer import CrossEncoder, InputExample, MSELoss
from cross_trainer.errors import ConfigurationError, DataError
from cross_trainer.training.fitting import _FitTrainer


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> str:
    """A model without a classification head."""
    folder = tmp_path_factory.mktemp("pretrained")
    build_model().bert.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


def samples(labels=None) -> list[InputExample]:
    labels = labels or [index % 5 / 4 for index in range(12)]
    return [
        InputExample(texts=[first, second], label=label)
        for first, second, label in zip(SENTENCES, SENTENCES[::-1], labels, strict=True)
    ]


def weights(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def fitted(pretrained, examples=None, num_labels=1, shuffle=False, batch_size=4, **options) -> CrossEncoder:
    torch.manual_seed(0)
    encoder = CrossEncoder(pretrained, num_labels=num_labels, device="cpu")
    settings = {"optimizer_params": {"lr": 1e-2}, "show_progress_bar": False, **options}
    encoder.fit(DataLoader(examples or samples(), shuffle=shuffle, batch_size=batch_size), **settings)
    return encoder


class Evaluator:
    """Gives the scores it was made with, one after the other, and notes the calls and the weights."""

    def __init__(self, scores, greater_is_better=None) -> None:
        self.scores, self.calls, self.weights = list(scores), [], []
        if greater_is_better is not None:
            self.greater_is_better = greater_is_better

    def __call__(self, model, output_path=None, epoch=-1, steps=-1):
        self.calls.append((output_path, epoch, steps))
        self.weights.append(weights(model.model))
        return self.scores[len(self.calls) - 1]


# -- the documented code -----------------------------------------------------------------------------------------------


def test_the_documented_code_blocks_run(pretrained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_samples = [
        InputExample(texts=["sentence1", "sentence2"], label=0.3),
        InputExample(texts=["Another", "pair"], label=0.8),
    ]
    train_dataloader = DataLoader(train_samples, shuffle=True, batch_size=2)
    evaluator, num_epochs, warmup_steps, model_save_path = Evaluator([0.2]), 1, 1, "saved"

    model = CrossEncoder(pretrained, num_labels=1)
    model.fit(
        train_dataloader=train_dataloader,
        evaluator=evaluator,
        epochs=num_epochs,
        warmup_steps=warmup_steps,
        output_path=model_save_path,
    )
    expected = model.predict([("sentence1", "sentence2")])
    np.testing.assert_array_equal(CrossEncoder("saved").predict([("sentence1", "sentence2")]), expected)

    label2int = {"contradiction": 0, "entailment": 1, "neutral": 2}
    train_samples = [
        InputExample(texts=["sentence1", "sentence2"], label=label2int["neutral"]),
        InputExample(texts=["Another", "pair"], label=label2int["entailment"]),
    ]
    model = CrossEncoder(pretrained, num_labels=3)
    model.fit(train_dataloader=DataLoader(train_samples, batch_size=2), output_path="classes")
    scores = CrossEncoder("classes").predict([("sentence1", "sentence2")])
    assert scores.shape == (1, 3)
    assert scores.sum() == pytest.approx(1)


def test_it_learns(pretrained):
    examples = samples([index % 2 for index in range(12)])
    encoder = fitted(pretrained, examples, epochs=20)
    scores = encoder.predict([example.texts for example in examples])
    assert all((score > 0.5) == example.label for score, example in zip(scores, examples, strict=True))


def test_samples_of_sentence_transformers_train_the_same_model(pretrained):
    from sentence_transformers import InputExample as TheirExample

    theirs = [TheirExample(texts=example.texts, label=example.label) for example in samples()]
    assert torch.equal(weights(fitted(pretrained, theirs).model), weights(fitted(pretrained).model))


# -- the evaluator -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "greater_is_better", "best"),
    [
        ([0.1, 0.9, 0.5], None, 1),
        ([0.3, 0.9, 0.2], False, 2),
        ([0.3, 0.2, 0.1], True, 0),
        ([float("nan"), 0.2, 0.5], None, 2),
        ([float("nan"), 0.9, 0.2], False, 2),
        ([0.2, float("nan"), 0.1], None, 0),
        ([float("nan")] * 3, None, 2),
    ],
)
def test_the_best_model_by_the_evaluator_is_saved(pretrained, tmp_path, caplog, scores, greater_is_better, best):
    evaluator = Evaluator(scores, greater_is_better)
    encoder = fitted(pretrained, epochs=3, evaluator=evaluator, output_path=tmp_path)
    assert evaluator.calls == [(str(tmp_path / "eval"), epoch, 3 * epoch) for epoch in (1, 2, 3)]
    saved = weights(AutoModelForSequenceClassification.from_pretrained(tmp_path))
    assert torch.equal(saved, evaluator.weights[best])
    assert torch.equal(weights(encoder.model), evaluator.weights[2])
    assert caplog.text.count("the evaluator gives NaN") == sum(map(math.isnan, scores))


def test_the_last_model_is_saved_where_nobody_judges(pretrained, tmp_path):
    for name, options in (
        ("alone", {}),
        ("asked", {"evaluator": Evaluator([0.9, 0.1]), "save_best_model": False}),
    ):
        encoder = fitted(pretrained, epochs=2, output_path=tmp_path / name, **options)
        saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / name)
        assert torch.equal(weights(saved), weights(encoder.model))
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["sentence_transformers"]["activation_fn"] == "torch.nn.modules.activation.Sigmoid"
        assert (tmp_path / name / "sentence_bert_config.json").is_file()


def test_evaluation_steps_and_the_callback(pretrained):
    evaluator, told = Evaluator([0.1, 0.2, 0.3, 0.4]), []
    fitted(
        pretrained,
        epochs=2,
        evaluator=evaluator,
        evaluation_steps=2,
        callback=lambda *arguments: told.append(arguments),
    )
    assert [(epoch, steps) for _, epoch, steps in evaluator.calls] == [
        (pytest.approx(2 / 3), 2),
        (1, 3),
        (pytest.approx(4 / 3), 4),
        (2, 6),
    ]
    assert told == [
        (score, epoch, steps) for score, (_, epoch, steps) in zip(evaluator.scores, evaluator.calls, strict=True)
    ]
    assert all(path is None for path, _, _ in evaluator.calls)


def test_evaluators_of_sentence_transformers(pretrained, tmp_path):
    from sentence_transformers.cross_encoder import evaluation

    texts = [example.texts for example in samples()]
    evaluators = {
        "spearman": evaluation.CrossEncoderCorrelationEvaluator(texts, [sample.label for sample in samples()], "dev"),
        "average_precision": evaluation.CrossEncoderClassificationEvaluator(texts, [0, 1] * 6, name="dev"),
        "ndcg@10": evaluation.CrossEncoderRerankingEvaluator(
            [{"query": SENTENCES[0], "positive": SENTENCES[1:3], "negative": SENTENCES[3:]}], name="dev"
        ),
    }
    for key, evaluator in evaluators.items():
        told: list[float] = []
        encoder = fitted(
            pretrained,
            evaluator=evaluator,
            output_path=tmp_path / key,
            callback=lambda score, *_, told=told: told.append(score),
        )
        assert encoder.model_card_data[f"dev_{key}"] == pytest.approx(told[0])
        assert list((tmp_path / key / "eval").glob("*.csv"))
        assert AutoModelForSequenceClassification.from_pretrained(tmp_path / key).num_labels == 1


def test_an_evaluator_without_a_main_figure_is_named(pretrained):
    with pytest.raises(ConfigurationError, match=r"returned \['f1'\], and its primary_metric is None"):
        fitted(pretrained, evaluator=lambda model, **_: {"f1": 0.5})


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 2},
        {"loss_fct": MSELoss()},
        {"scheduler": "constantlr"},
        {"warmup_steps": 3},
        {"optimizer_class": torch.optim.SGD},
        {"optimizer_params": {"lr": 1e-3}},
        {"weight_decay": 0.9},
        {"max_grad_norm": 1e-3, "optimizer_class": torch.optim.SGD},
        {"use_amp": True},
        {"batch_size": 6},
        {"shuffle": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_each_argument_changes_what_is_learnt(pretrained, options):
    base = {"optimizer_class": torch.optim.SGD} if "max_grad_norm" in options else {}
    assert not torch.equal(weights(fitted(pretrained, **base).model), weights(fitted(pretrained, **options).model))


def test_the_seed_orders_rows(pretrained):
    class Noted(torch.utils.data.Dataset):
        def __init__(self):
            self.rows, self.read = samples(), []

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, index):
            self.read.append(index)
            return self.rows[index]

    orders = []
    for seed in (1, 1, 2):
        dataset = Noted()
        fitted(pretrained, dataset, shuffle=True, seed=seed)
        orders.append(dataset.read[-12:])  # the rows are read before, to be checked
    assert sorted(orders[0]) == list(range(12)) != orders[0]
    assert orders[0] == orders[1] != orders[2]


def test_the_loaders_own_order_counts(pretrained):
    encoder = CrossEncoder(pretrained, num_labels=1, device="cpu")
    sampler = WeightedRandomSampler([1.0] + [0.0] * 11, num_samples=8)
    loader = DataLoader(samples(), sampler=sampler, batch_size=4)
    losses = []
    encoder.fit(loader, evaluator=lambda model, steps, **_: losses.append(steps) or 0.0, show_progress_bar=False)
    assert losses == [2]
    assert _FitTrainer.train_sampler(type("Holder", (), {"_sampler": sampler})(), None) is sampler


def test_drop_last_and_names_of_schedules(pretrained):
    steps = []
    encoder = CrossEncoder(pretrained, num_labels=1, device="cpu")
    for drop_last in (False, True):
        encoder.fit(
            DataLoader(samples(), batch_size=8, drop_last=drop_last),
            evaluator=lambda model, steps, noted=steps, **_: noted.append(steps) or 0.0,
            scheduler="WarmupCosineWithHardRestarts",
            show_progress_bar=False,
        )
    assert steps == [2, 1]


def test_scores_take_on_the_losss_meaning(tmp_path):
    model = build_model(sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"})
    tokenizer = build_tokenizer()
    for activation in (None, torch.tanh):
        encoder = CrossEncoder(model, tokenizer=tokenizer, activation=activation)
        seen = []
        encoder.fit(
            DataLoader(samples(), batch_size=4),
            evaluator=lambda model, seen=seen, **_: seen.append(model.activation_fn) or 0.0,
            show_progress_bar=False,
        )
        kept = activation is torch.tanh
        assert all(function is torch.tanh if kept else isinstance(function, torch.nn.Sigmoid) for function in seen)
        assert (encoder.activation_fn is torch.tanh) == kept


def test_what_cant_be_trained_on(pretrained):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(samples())

    encoder = CrossEncoder(pretrained, num_labels=1, device="cpu")
    batches = BatchSampler(RandomSampler(samples()), 4, drop_last=False)
    for loader in (DataLoader(Stream(), batch_size=4), DataLoader(samples(), batch_sampler=batches)):
        with pytest.raises(ConfigurationError, match="takes the batch size and the order of a DataLoader"):
            encoder.fit(loader)
    with pytest.raises(ConfigurationError, match="expected a callable"):
        encoder.fit(DataLoader(samples()), loss_fct=torch.nn.BCEWithLogitsLoss())
    for alone in ({"evaluation_steps": 5}, {"callback": print}):
        with pytest.raises(ConfigurationError, match=f"{next(iter(alone))} needs an evaluator"):
            encoder.fit(DataLoader(samples()), **alone)
    with pytest.raises(DataError, match=r"row 1: label 4 is outside \[0, 1\]"):
        encoder.fit(DataLoader(samples([0, 4] * 6)))
    assert isinstance(encoder.model.bert, BertModel)
