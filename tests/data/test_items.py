"""Items: every row once in any number of workers, with draws that depend on seed, pass and number alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from torch.utils.data import DataLoader, IterableDataset

from cross_trainer.data.columns import Columns, resolve_columns
from cross_trainer.data.items import MappedItems, StreamedItems
from cross_trainer.data.survey import Limits, RowCheck, survey
from cross_trainer.errors import DataError

ROWS = [{"a": f"first {index}", "b": f"second {index}", "label": index % 2} for index in range(10)]
COLUMNS = Columns("a", ("b",), "label")


class Plain:
    """A stream that knows nothing of workers."""

    def __iter__(self):
        return iter(ROWS)


class Divided(IterableDataset):
    """A stream of torch's, which divides itself among workers."""

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        return iter(ROWS if worker is None else ROWS[worker.id :: worker.num_workers])


def as_they_are(items):
    return items


@pytest.mark.parametrize("stream", [Plain(), Divided()])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_a_stream_gives_every_row_once(stream, workers):
    items = StreamedItems(stream, COLUMNS, 4, training=True)
    loader = DataLoader(items, batch_size=4, num_workers=workers, collate_fn=as_they_are)
    found = [item for batch in loader for item in batch]
    assert sorted(item.row["a"] for item in found if item.row is not None) == sorted(row["a"] for row in ROWS)
    assert len({item.seed for item in found if item.row is not None}) == 10
    if workers < 2:
        assert [item.number for item in found] == [*range(10), None, None]


def test_a_stream_says_how_many_rows_it_had():
    counts = []
    items = StreamedItems(Plain(), COLUMNS, 4, training=False)
    items.ended = counts.append
    assert sum(item.row is None for item in items) == 2
    assert counts == [10]


def test_draws_follow_from_seed_pass_and_number():
    items = MappedItems(ROWS, COLUMNS, training=True, seed=1)
    assert items[3].seed is None  # nobody has said which pass it is
    items.set_epoch(0)
    first = [item.seed for item in items.__getitems__([3, 4])]
    items.set_epoch(1)
    second = [item.seed for item in items.__getitems__([3, 4])]
    other = MappedItems(ROWS, COLUMNS, training=True, seed=2)
    other.set_epoch(0)
    assert len({*first, *second, other[3].seed}) == 5
    items.set_epoch(0)
    assert items[3].seed == first[0]


def test_workers_that_are_running_learn_of_a_new_pass():
    items = MappedItems(ROWS, COLUMNS, training=True)
    loader = DataLoader(items, batch_size=5, num_workers=1, persistent_workers=True, collate_fn=as_they_are)
    seeds = []
    for epoch in (0, 1):
        items.set_epoch(epoch)
        seeds.append([item.seed for batch in loader for item in batch])
    assert [seed.split(":")[1] for epoch in seeds for seed in epoch] == ["0"] * 10 + ["1"] * 10


@pytest.mark.parametrize("kind", ["numpy", "torch", "transform", "numpy rows"])
def test_rows_in_other_formats_are_plain(kind):
    lists = [{"query": "q", "documents": ["x", "y"], "labels": [1, 0]}] * 3
    dataset = Dataset.from_list(lists)
    if kind == "transform":
        dataset = Dataset.from_dict({"id": [1, 2, 3]})
        dataset.set_transform(lambda batch: {name: [lists[0][name]] * len(batch["id"]) for name in lists[0]})
    elif kind == "numpy rows":
        dataset = [
            {**row, "documents": np.array(row["documents"]), "labels": [np.int64(1), np.int64(0)]} for row in lists
        ]
    else:
        dataset = dataset.with_format(kind)
    columns = resolve_columns(dataset)
    assert (columns.shape, columns.label) == ("list", "labels")
    found = survey(dataset, columns)
    assert (found.kind, found.rows, found.integers, found.maximum) == ("list", 3, True, 1)


GRADES = [{**row, "label": float(row["label"])} for row in ROWS]
CLASSES = Dataset.from_list(
    ROWS, features=Features({"a": Value("string"), "b": Value("string"), "label": ClassLabel(2)})
)


@pytest.mark.parametrize(
    ("rows", "change", "limits", "message"),
    [
        (GRADES, {"label": float("nan")}, None, "'label', row 1000: label nan is not finite"),
        (GRADES, {"label": float("inf")}, None, "'label', row 1000: label inf is not finite"),
        (GRADES, {"label": None}, None, "'label', row 1000: expected a label, found None"),
        (GRADES, {"label": 5.0}, Limits(0, 1, "Scale."), r"'label', row 1000: label 5.0 is outside \[0, 1\]. Scale."),
        (GRADES, {"label": -100.0}, None, "row 1000: label -100 marks entries to ignore"),
        (GRADES, {"label": "yes"}, None, "row 1000: label 'yes' is of another kind"),
        (GRADES, {"b": None}, None, "Column 'b', row 1000: expected a text, found None"),
        (CLASSES, {"label": -1}, Limits(0, 1, "Filter.", whole=True), r"row 1000: label -1 is outside \[0, 1\]"),
        (CLASSES, {"label": 0.5}, Limits(0, 1, "Filter.", whole=True), "row 1000: label 0.5 is no class"),
        (
            [{**row, "label": [0, 1]} for row in ROWS],
            {"label": [0, 1, 1]},
            None,
            "row 1000: a list of 3 labels, where earlier rows have 2",
        ),
        (
            [{"query": "q", "documents": ["x", "y"], "labels": [1, 0]}],
            {"labels": [1]},
            None,
            "row 1000: 1 labels for 2 documents",
        ),
    ],
)
def test_rows_of_a_stream_are_checked_as_they_go_by(rows, change, limits, message):
    columns = resolve_columns(rows)
    check = RowCheck(columns, survey(rows, columns), limits)
    check(rows[0], 999)
    with pytest.raises(DataError, match=message):
        check({**rows[0], **change}, 1000)


def test_a_new_class_name_in_a_stream_is_named():
    rows = [{**row, "label": "no"} for row in ROWS]
    columns = Columns("a", ("b",), "label", label2id={"no": 0, "yes": 1})
    check = RowCheck(columns, survey(rows, columns), None)
    with pytest.raises(DataError, match="Column 'label', row 1000: class 'odd' is unknown to the model"):
        check({**rows[0], "label": "odd"}, 1000)


def test_a_worker_names_its_own_count():
    def check(row, number):
        if row["a"] == "first 7":
            raise DataError(f"row {number} is bad.")

    items = StreamedItems(Plain(), COLUMNS, 4, training=True, check=check)
    with pytest.raises(DataError, match=r"row 3 is bad\. \(Rows are counted as dataloader worker 1 reads them\.\)"):
        list(DataLoader(items, batch_size=4, num_workers=2, collate_fn=as_they_are))
    with pytest.raises(DataError, match=r"row 7 is bad\.$"):
        list(items)
