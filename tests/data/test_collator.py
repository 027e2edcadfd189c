"""The collator's batches against the tokenizer called by hand, and what it counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import build_model
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from cross_trainer import BinaryCrossEntropyLoss
from cross_trainer.data.collator import PairCollator, pairs_and_labels
from cross_trainer.data.columns import Columns, InputExample, resolve_columns
from cross_trainer.data.items import Item
from cross_trainer.errors import ConfigurationError, DataError

ROWS = [
    ("a man is playing a guitar", "someone plays", 1),
    ("the dog runs", "an animal is moving in the park", 0),
    ("", "kids", 1),
]


def test_pairs_are_the_tokenizers_own_two_segments(tokenizer):
    batch = PairCollator(tokenizer)(ROWS)
    expected = tokenizer([row[0] for row in ROWS], [row[1] for row in ROWS], padding=True, return_tensors="pt")
    assert set(batch) == {*expected, "labels"}
    for name in expected:
        assert torch.equal(batch[name], expected[name])
    assert torch.equal(batch["labels"], torch.tensor([1, 0, 1]))


def test_rows_of_every_type_collate_alike(tokenizer):
    expected = PairCollator(tokenizer)(ROWS)
    mappings = [{"x": a, "y": b, "label": label} for a, b, label in ROWS]
    for rows in (mappings, [InputExample(texts=[a, b], label=label) for a, b, label in ROWS]):
        batch = PairCollator(tokenizer)(rows)
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_tokenised_rows_are_padded(tokenizer):
    tokenised = [{**tokenizer(a, b), "labels": label} for a, b, label in ROWS]
    expected = PairCollator(tokenizer)(ROWS)
    batch = PairCollator(tokenizer)(tokenised)
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
    with pytest.raises(DataError, match=r"a tokenised row has 1\d tokens, more than max_length=8"):
        PairCollator(tokenizer, max_length=8)(tokenised)


@pytest.mark.parametrize(
    ("labels", "dtype", "shape"),
    [
        ([0, 1, 2], torch.long, (3,)),
        ([0.0, 0.5, 1], torch.float, (3,)),
        ([True, False, True], torch.long, (3,)),
        ([[0, 1], [1, 1], [0, 0]], torch.float, (3, 2)),
    ],
)
def test_types_of_labels(tokenizer, labels, dtype, shape):
    rows = [(a, b, label) for (a, b, _), label in zip(ROWS, labels, strict=True)]
    made = PairCollator(tokenizer)(rows)["labels"]
    assert (made.dtype, tuple(made.shape), made.tolist()) == (dtype, shape, torch.tensor(labels, dtype=dtype).tolist())


def test_class_names_need_ids(tokenizer):
    rows = [(a, b, "yes") for a, b, _ in ROWS]
    columns = Columns("text_1", ("text_2",), "label", label2id={"no": 0, "yes": 1})
    assert PairCollator(tokenizer, columns=columns)(rows)["labels"].tolist() == [1, 1, 1]
    with pytest.raises(DataError, match="label 'yes' is a class name"):
        PairCollator(tokenizer)(rows)


def test_padding_arguments(tokenizer):
    assert PairCollator(tokenizer, max_length=48, padding="max_length")(ROWS)["input_ids"].shape == (3, 48)
    length = PairCollator(tokenizer)(ROWS)["input_ids"].shape[1]
    assert PairCollator(tokenizer, pad_to_multiple_of=8)(ROWS)["input_ids"].shape[1] == -(-length // 8) * 8


@pytest.mark.parametrize("truncation", ["longest_first", "only_second", "only_first"])
def test_truncation(tokenizer, truncation):
    words = "one two three four five six seven eight nine ten"
    rows = [(words, "a man"), ("a man", words), (words, words), ("a", "b"), (words, "")]
    collator = PairCollator(tokenizer, max_length=20, truncation=truncation)
    batch = collator(rows)
    assert batch["attention_mask"].sum(1).max() == 20
    assert collator.statistics()["truncated"] == 4
    whole = tokenizer(words, add_special_tokens=False)["input_ids"]
    ids = batch["input_ids"].tolist()
    if truncation == "only_second":
        # The query stays whole where it fits, and leaves the document one token where it doesn't.
        assert ids[1][1:3] == tokenizer("a man", add_special_tokens=False)["input_ids"][:2]
        assert ids[0][1:17] == whole[:16]
        assert ids[2][1:17] == whole[:16]
    elif truncation == "only_first":
        assert ids[2][-17:-1] == whole[:16]
    else:
        expected = tokenizer(*zip(*rows, strict=True), truncation="longest_first", max_length=20, padding=True)
        assert ids == expected["input_ids"]


def test_swap_is_for_training(tokenizer):
    rows = [("first", "second", 1)] * 64
    collator = PairCollator(tokenizer, swap=True)
    marked = collator.for_training(rows)
    torch.manual_seed(0)
    ids = collator(marked.__getitems__(list(range(64))))["input_ids"].tolist()
    forward, backward = tokenizer("first", "second")["input_ids"], tokenizer("second", "first")["input_ids"]
    assert {tuple(row) for row in ids} == {tuple(forward), tuple(backward)}
    assert 16 < ids.count(forward) < 48
    still = [Item(row, resolve_columns(rows), training=False) for row in rows]
    assert collator(still)["input_ids"].tolist() == [forward] * 64
    assert collator(rows)["input_ids"].tolist() == [forward] * 64  # of an evaluation: training rows are marked
    marked.set_epoch(0)
    again = [collator(marked.__getitems__(part))["input_ids"].tolist() for part in ([9, 3, 40], [40], [3, 9])]
    assert [again[0][2], again[0][1], again[0][0]] == [again[1][0], *again[2]]


def test_swap_without_marked_rows_is_refused(tokenizer):
    with pytest.raises(ConfigurationError, match=r"train_dataset=collator\.for_training\(rows\)"):
        PairCollator(tokenizer, swap=True)([("first", "second", 1)])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_plain_trainer_swaps_in_training_alone(tmp_path, tokenizer, workers):
    rows = Dataset.from_list([{"a": "first", "b": "second", "label": index % 2} for index in range(32)])
    collator = PairCollator(tokenizer, swap=True)
    trainer = Trainer(
        build_model(),
        TrainingArguments(
            str(tmp_path),
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_num_workers=workers,
            num_train_epochs=2,
        ),
        train_dataset=collator.for_training(rows),
        eval_dataset=rows,
        data_collator=collator,
        compute_loss_func=BinaryCrossEntropyLoss(),
    )
    trainer.train()

    def ids(loader):
        return [tuple(row) for batch in loader for row in batch["input_ids"].tolist()]

    assert len(set(ids(trainer.get_train_dataloader()))) == 2
    assert len(set(ids(trainer.get_eval_dataloader()))) == 1
    assert len(set(np.round(trainer.predict(rows).predictions.flatten(), 5))) == 1


@pytest.mark.parametrize("columns", [None, ("a", "b"), ("a", "b", "label")])
def test_a_trainer_that_has_removed_the_texts_is_named(tokenizer, columns):
    with pytest.raises(DataError, match=r"A row has nothing but \['label'\].*remove_unused_columns=False"):
        PairCollator(tokenizer, columns=columns)([{"label": 1}])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan"), [0.0, float("nan")], 1e39, 10**400])
def test_a_label_that_is_not_finite_is_named(tokenizer, value):
    with pytest.raises(DataError, match=r"Column 'label': label (nan|inf|1e\+39|10+\.\.\.) is not finite"):
        PairCollator(tokenizer)([{"a": "x", "b": "y", "label": value}])
    columns = Columns("a", ("b",), "label")
    with pytest.raises(DataError, match=r"Column 'label', row 7: label (nan|inf|1e\+39|10+\.\.\.) is not finite"):
        PairCollator(tokenizer)([Item({"a": "x", "b": "y", "label": value}, columns, 7)])


def test_no_index_of_a_class_is_no_class(tokenizer):
    """-1 is the last of a list in Python, and often means that there is no label."""
    columns = Columns("a", ("b",), "label", class_names=("no", "yes"), label2id={"no": 0, "yes": 1})
    with pytest.raises(DataError, match=r"Column 'label', row 7: label -1 is no index of the classes"):
        PairCollator(tokenizer)([Item({"a": "x", "b": "y", "label": -1}, columns, 7)])


def test_lists_are_flat_pairs_with_a_grid_of_labels(tokenizer):
    rows = [
        {"query": "q", "documents": ["a", "b", "c"], "labels": [0, 2, 1], "num_relevant": 4},
        {"query": "r", "documents": ["d"], "labels": [1], "num_relevant": 1},
    ]
    batch = PairCollator(tokenizer)(rows)
    expected = tokenizer(["q", "q", "q", "r"], ["a", "b", "c", "d"], padding=True)["input_ids"]
    assert batch["input_ids"].tolist() == expected
    assert batch["labels"].tolist() == [[0, 2, 1], [1, -100, -100]]
    assert batch["num_relevant"].tolist() == [4, 1]


def test_tuples(tokenizer):
    rows = [{"query": "q", "positive": "p", "negative": "n", "negative_2": "m"}]
    assert PairCollator(tokenizer)(rows)["labels"].tolist() == [[1, 0, 0]]
    assert PairCollator(tokenizer)([{"query": "q", "positive": "p", "negative": "n", "score": 2.5}])[
        "labels"
    ].tolist() == [[2.5, 0]]
    scored = [{"query": "q", "positive": "p", "negative": "n", "scores": [2.5, -1.0]}]
    assert PairCollator(tokenizer)(scored)["labels"].tolist() == [[2.5, -1]]


def decoded(tokenizer, batch):
    return [tokenizer.decode(ids, skip_special_tokens=True).replace(" ##", "") for ids in batch["input_ids"]]


def test_in_batch_negatives_are_never_positives(tokenizer):
    rows = [
        {"query": "sky", "positive": "blue"},
        {"query": "dog", "positive": "runs"},
        {"query": "cook", "positive": "blue"},
        {"query": "sky", "positive": "dark"},
        {"query": "book", "positive": "onion"},
    ]
    batch = PairCollator(tokenizer, in_batch_negatives=2)(rows)
    assert decoded(tokenizer, batch) == [
        "sky blue",
        "sky runs",
        "sky onion",  # neither its own positive under another query nor its other positive
        "dog runs",
        "dog blue",
        "dog dark",
        "cook blue",
        "cook dark",
        "cook onion",
        "sky dark",
        "sky onion",
        "sky runs",
        "book onion",
        "book blue",
        "book runs",
    ]
    assert batch["labels"].tolist() == [[1, 0, 0]] * 5


def test_fewer_eligible_negatives_leave_gaps(tokenizer):
    rows = [
        {"query": "sky", "positive": "blue", "negative": "runs"},
        {"query": "dog", "positive": "runs", "negative": "sky"},
    ]
    batch = PairCollator(tokenizer, in_batch_negatives=3)(rows)
    assert batch["labels"].tolist() == [[1, 0, -100], [1, 0, 0]]
    assert batch["input_ids"].shape[0] == 5


def items(rows, **options):
    columns = resolve_columns([row for row in rows if row is not None])
    return [Item(row, columns, **options) for row in rows]


def test_rows_that_fill_a_batch_count_for_nothing(tokenizer):
    assert PairCollator(tokenizer)(items([*ROWS, None]))["labels"].tolist() == [1, 0, 1]
    lists = [{"query": "q", "documents": ["a", "b"], "labels": [1, 0]}, None]
    batch = PairCollator(tokenizer)(items(lists))
    assert batch["labels"].tolist() == [[1, 0]]
    assert batch["input_ids"].shape[0] == 2
    alone = PairCollator(tokenizer)(items(lists)[1:])
    assert alone["labels"].tolist() == [[-100]]
    assert alone["input_ids"].shape[0] == 1
    tokenised = [{**tokenizer("a", "b"), "labels": 1}, None]
    assert PairCollator(tokenizer)(items(tokenised))["labels"].tolist() == [1]
    assert PairCollator(tokenizer)(items(tokenised)[1:])["labels"].tolist() == [-100]


def test_only_training_counts(tokenizer):
    collator = PairCollator(tokenizer)
    collator(items(ROWS, training=False))
    assert collator.statistics() == {"pairs": 0, "tokens": 0, "padding": 0, "truncated": 0}


def test_pairs_and_labels_are_those_of_a_batch(tokenizer):
    lists = [
        {"query": "q", "documents": ["a", "b"], "labels": [1, 0], "num_relevant": 3},
        {"query": "r", "documents": ["c"], "labels": [2], "num_relevant": 1},
    ]
    for rows in (ROWS, lists):
        batch = PairCollator(tokenizer)(rows)
        pairs, targets = pairs_and_labels(rows, resolve_columns(rows))
        encoded = tokenizer(*map(list, zip(*pairs, strict=True)), padding=True)["input_ids"]
        assert encoded == batch["input_ids"].tolist()
        assert targets.keys() == batch.keys() - tokenizer("a", "b").keys()
        assert all(torch.equal(value, batch[name]) for name, value in targets.items())


@pytest.mark.parametrize("workers", [0, 2])
def test_counts_come_from_every_worker(tokenizer, workers):
    collator = PairCollator(tokenizer, max_length=10)
    rows = ROWS * 10
    batches = list(DataLoader(rows, batch_size=6, collate_fn=collator, num_workers=workers))
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    size = sum(batch["attention_mask"].numel() for batch in batches)
    assert collator.statistics() == {"pairs": 30, "tokens": tokens, "padding": size - tokens, "truncated": 20}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation": "head"}, "truncation='head'"),
        ({"padding": False}, "padding=False"),
        ({"max_length": 4}, "max_length=4"),
        ({"in_batch_negatives": -1}, "in_batch_negatives=-1"),
    ],
)
def test_arguments_are_checked(tokenizer, options, message):
    with pytest.raises(ConfigurationError, match=message):
        PairCollator(tokenizer, **options)


def test_bad_rows_of_a_stream(tokenizer):
    collator = PairCollator(tokenizer, columns=Columns("a", ("b",), "label"))
    with pytest.raises(DataError, match=r"Column 'b': expected a text, found None"):
        collator([{"a": "x", "b": None, "label": 1}])
    with pytest.raises(DataError, match=r"Column 'label': no label"):
        collator([{"a": "x", "b": "y", "label": None}])
    with pytest.raises(DataError, match=r"Column 'b', row 7: expected a text, found None"):
        collator([Item({"a": "x", "b": None, "label": 1}, collator.columns, number=7)])


def test_repr_says_what_it_does(tokenizer):
    assert repr(PairCollator(tokenizer, max_length=32, swap=True)) == (
        "PairCollator(max_length=32, truncation='longest_first', padding=True, pad_to_multiple_of=None, columns=None, "
        "swap=True, in_batch_negatives=0)"
    )
