"""However rows are cut into batches, processes and accumulation: each is evaluated once, and the update is the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from conftest import SENTENCES, build_model, build_tokenizer
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, SequentialSampler
from training.test_trainer import arguments, weights

from cross_trainer import CrossEncoderTrainer, PairCollator
from cross_trainer.data.columns import resolve_columns
from cross_trainer.data.items import MappedItems
from cross_trainer.training.sharding import FilledBatchSampler

FEW = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
SHAPES = ("pair", "classes", "list", "tuple", "positives", "several")
texts = st.sampled_from(SENTENCES)


@st.composite
def data_sets(draw, shapes=SHAPES):
    """A shape, and 1 to 11 rows of it."""
    shape = draw(st.sampled_from(shapes))
    rows = []
    for _ in range(draw(st.integers(1, 11))):
        row = {"query": draw(texts), "document": draw(texts)}
        if shape == "pair":
            row["label"] = draw(st.sampled_from([0.0, 0.25, 1.0]))
        elif shape == "classes":
            row["label"] = draw(st.integers(0, 2))
        elif shape == "several":
            row["label"] = draw(st.lists(st.integers(0, 1), min_size=3, max_size=3))
        elif shape == "list":
            documents = draw(st.lists(texts, min_size=1, max_size=4))
            labels = draw(st.lists(st.integers(0, 2), min_size=len(documents), max_size=len(documents)))
            row = {"query": row["query"], "documents": documents, "labels": labels}
        else:
            row = {"query": row["query"], "positive": row["document"]}
            row |= {"negative": draw(texts)} if shape == "tuple" else {}
        rows.append(row)
    return shape, rows


def trainer_for(folder, shape, rows, negatives=3, **options):
    several = {"num_labels": 3, "problem_type": "multi_label_classification"} if shape == "several" else {}
    model = build_model(**{"num_labels": 3 if shape == "classes" else 1, **several})
    return CrossEncoderTrainer(
        model,
        arguments(folder, optim="sgd", train_sampling_strategy="sequential", **options),
        train_dataset=Dataset.from_list(rows),
        data_collator=PairCollator(build_tokenizer(), in_batch_negatives=negatives if shape == "positives" else 0),
    )


def scores_of(model, query, documents):
    batch = build_tokenizer()([query] * len(documents), documents, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**batch).logits


@FEW
@given(
    data=data_sets(("pair", "classes", "list", "tuple", "several")),
    size=st.integers(1, 5),
    streamed=st.booleans(),
    labelled=st.booleans(),
    drop_last=st.booleans(),
)
def test_an_evaluation_returns_each_row_once_and_in_order(tmp_path_factory, data, size, streamed, labelled, drop_last):
    shape, rows = data
    options = {"per_device_eval_batch_size": size, "dataloader_drop_last": drop_last}
    trainer = trainer_for(tmp_path_factory.mktemp("run"), shape, rows, **options)
    dataset = trainer.train_dataset
    if not labelled and shape != "tuple":
        dataset = dataset.remove_columns("labels" if shape == "list" else "label")
    output = trainer.predict(dataset.to_iterable_dataset() if streamed else dataset)
    assert len(output.predictions) == len(rows)
    for row, predicted in zip(rows, output.predictions, strict=True):
        documents = row.get("documents") or [row[name] for name in ("document", "positive", "negative") if name in row]
        expected = scores_of(trainer.model, row["query"], documents)
        found = predicted if "document" in row else predicted[: len(documents)]
        np.testing.assert_allclose(np.reshape(found, expected.shape), expected, atol=1e-5)
        assert (predicted[np.size(found) :] == -100).all()
    if labelled or shape == "tuple":
        assert len(output.label_ids) == len(rows)
    else:
        assert output.label_ids is None


@FEW
@given(data=data_sets(), cut=st.sampled_from([(6, 2), (4, 3), (3, 4), (2, 6), (1, 12)]), budget=st.booleans())
def test_an_update_is_that_of_the_uncut_batch(tmp_path_factory, data, cut, budget):
    made = []
    for size, steps in ((12, 1), cut):
        trainer = trainer_for(
            tmp_path_factory.mktemp("run"),
            *data,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            learning_rate=0.1,
        )
        if budget and steps > 1:
            trainer.plan = trainer.plan.__class__(**{**vars(trainer.plan), "max_tokens": 40})
        trainer.train()
        made.append(weights(trainer.model))
    torch.testing.assert_close(made[1], made[0], rtol=0, atol=2e-6)


@FEW
@given(rows=st.integers(1, 40), size=st.integers(1, 6), processes=st.integers(1, 5))
def test_processes_take_each_row_once_and_in_turn(rows, size, processes):
    items = MappedItems([("a", "b", 1.0)] * rows, resolve_columns([("a", "b", 1.0)]), training=True)
    filled = FilledBatchSampler(BatchSampler(SequentialSampler(items), size, drop_last=False), rows, processes)
    shares = [list(BatchSamplerShard(filled, processes, process)) for process in range(processes)]
    assert len({len(share) for share in shares}) == 1
    assert {len(batch) for share in shares for batch in share} == {size}
    in_turn = [item for batches in zip(*shares, strict=True) for batch in batches for item in items.__getitems__(batch)]
    assert [item.number for item in in_turn if item.row is not None] == list(range(rows))
    assert all(item.row is None for item in in_turn[rows:])


# The sampler fills batches up where processes would get unequal shares of them.
@pytest.mark.parametrize(("processes", "size"), [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (3, 1), (3, 2)])
def test_negatives_of_an_update_are_those_of_the_uncut_batch(tmp_path, monkeypatch, processes, size):
    """Several processes, each of which knows its own share and what the others say."""
    rows = [{"query": SENTENCES[index % 4], "positive": SENTENCES[(index * 5) % 12]} for index in range(12)]
    trainer = trainer_for(tmp_path, "positives", rows)
    items = MappedItems(trainer.train_dataset, trainer.plan.columns, training=True)
    whole = trainer.data_collator(items.__getitems__(list(range(12))))
    batches = [items.__getitems__(list(range(at, min(at + size, 12)))) for at in range(0, 12, size)]
    shares = [batches[process::processes] for process in range(processes)]
    said = [[trainer.data_collator.read_texts(batch) for batch in share] for share in shares]
    monkeypatch.setattr("cross_trainer.training.trainer.gather_object", lambda _: said)
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", processes)
    found = []
    for process, share in enumerate(shares):
        monkeypatch.setattr(type(trainer.args), "process_index", process)
        found.append(trainer._with_negatives(share))
    in_turn = list(itertools.chain.from_iterable(zip(*found, strict=True)))
    ids = [row[row != 0].tolist() for batch in in_turn for row in batch["input_ids"]]
    assert ids == [row[row != 0].tolist() for row in whole["input_ids"]]
    assert [label for batch in in_turn for label in batch["labels"].flatten().tolist() if label != -100] == [
        label for label in whole["labels"].flatten().tolist() if label != -100
    ]
