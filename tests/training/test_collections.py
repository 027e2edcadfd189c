"""Judged collections as evaluation sets: the metrics of the written run, in training, by name and in any company."""

from __future__ import annotations

from pathlib import Path

import ir_measures
import numpy as np
import pytest
from commands import write_collection
from conftest import SENTENCES, build_model, build_tokenizer
from datasets import Dataset
from transformers import TrainingArguments

from cross_trainer import BinaryCrossEntropyLoss, Collection, CrossEncoderTrainer, PairCollator, ranking_metrics
from cross_trainer.data.trec import as_ranked
from cross_trainer.errors import ConfigurationError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_collection(tmp_path_factory.mktemp("kitchen"), queries=6)


@pytest.fixture
def collection(folder):
    return Collection(folder, candidates=somewhere, top_k=7, metrics="nDCG@10 RR@10 AP R@5")


def somewhere(queries, k):
    """Some candidates, not as many for each query."""
    return [[(place + step * 5) % 12 for step in range(2 + place)] for place in range(len(queries))]


def pairs():
    return Dataset.from_dict({"question": SENTENCES, "answer": SENTENCES[::-1], "label": [0, 1] * 6})


def build_trainer(folder, evaluated, train=None, collator=None, loss=None, **options):
    settings = {"report_to": "none", "use_cpu": True, "per_device_eval_batch_size": 4, "disable_tqdm": True}
    metrics = options.pop("metrics", None)
    args = TrainingArguments(str(folder), **{**settings, **options})
    collator = PairCollator(build_tokenizer()) if collator is None else collator
    return CrossEncoderTrainer(
        build_model(),
        args,
        collator,
        train_dataset=pairs() if train is None else train,
        eval_dataset=evaluated,
        compute_loss_func=loss,
        compute_metrics=metrics,
        card_figures=False,
    )


def expected(collection, logits):
    run = {
        query: as_ranked(dict(zip(names, row.tolist(), strict=False)))
        for (query, names), row in zip(collection.candidates.items(), logits, strict=True)
    }
    found = ir_measures.calc_aggregate(list(collection.measures.values()), collection.qrels, run)
    return {f"test_{key}": found[measure] for key, measure in collection.measures.items()}


@pytest.mark.parametrize("options", [{}, {"include_for_metrics": ["loss"]}, {"dataloader_num_workers": 2}])
def test_figures_are_those_of_the_run(tmp_path, collection, options):
    """Whatever the training data looks like: pairs with 0 and 1 here, grades up to 2 there."""
    collator = PairCollator(build_tokenizer(), columns=("question", "answer", "label"))
    trainer = build_trainer(tmp_path, collection, collator=collator, **options)
    assert trainer.plan.loss == BinaryCrossEntropyLoss()
    found = trainer.predict(collection)
    measured = {key: found.metrics[key] for key in expected(collection, found.predictions)}
    assert measured == pytest.approx(expected(collection, found.predictions))
    assert found.predictions.shape == (6, 7)
    assert "test_loss" not in found.metrics
    assert set(trainer.evaluate()) >= {"eval_ndcg@10", "eval_mrr@10", "eval_map", "eval_recall@5"}


@pytest.mark.parametrize("loss", [None, lambda outputs, labels, num_items_in_batch=None: outputs.logits.mean()])
def test_the_best_checkpoint_is_chosen_by_a_collection(tmp_path, collection, loss):
    trainer = build_trainer(
        tmp_path,
        {"kitchen": collection, "pairs": pairs()},
        loss=loss,
        num_train_epochs=3,
        eval_strategy="epoch",
        save_strategy="epoch",
        learning_rate=3e-3,
        load_best_model_at_end=True,
        metric_for_best_model="kitchen_ndcg@10",
    )
    trainer.train()
    logged = [entry["eval_kitchen_ndcg@10"] for entry in trainer.state.log_history if "eval_kitchen_ndcg@10" in entry]
    assert len(logged) == 3
    assert trainer.state.best_metric == max(logged)
    assert any("eval_pairs_loss" in entry for entry in trainer.state.log_history)
    assert not any("eval_kitchen_loss" in entry for entry in trainer.state.log_history)
    again = trainer.evaluate(collection, metric_key_prefix="again")
    assert again["again_ndcg@10"] == pytest.approx(max(logged))
    trainer.save_model()
    assert "ndcg@10" in Path(tmp_path, "README.md").read_text()


def test_metrics_of_your_own_see_the_judged_total(tmp_path, collection):
    trainer = build_trainer(tmp_path, collection, metrics=ranking_metrics(k=5))
    found = trainer.predict(collection)
    labels, totals = found.label_ids
    assert totals.tolist() == [sum(grade > 0 for grade in grades.values()) for grades in collection.qrels.values()]
    np.testing.assert_array_equal(labels[0, :2], collection[0]["labels"])
    assert found.metrics["test_recall@5"] == pytest.approx(expected(collection, found.predictions)["test_recall@5"])


def test_a_model_of_classes_ranks_nothing(tmp_path, collection):
    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    collator, rows = PairCollator(build_tokenizer()), [("a", "b", 0), ("a", "c", 2)]
    with pytest.raises(ConfigurationError, match=r"ranked by one score, and the model has num_labels=3"):
        CrossEncoderTrainer(build_model(3), arguments, collator, train_dataset=rows, eval_dataset=collection)
    with pytest.raises(ConfigurationError, match="holds texts, which a PairCollator reads"):
        CrossEncoderTrainer(build_model(), arguments, list, eval_dataset=collection)
