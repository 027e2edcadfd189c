"""Rows about the same query become one row, in the order and with the labels of the data."""

from __future__ import annotations

import math

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from torch.utils.data import Dataset as TorchDataset

import cross_trainer
from cross_trainer import Columns, ConfigurationError, DataError, InputExample, PairCollator, group_by_query
from cross_trainer.data.columns import resolve_columns
from cross_trainer.data.survey import survey

PAIRS = [
    ("why", "sun", 1),
    ("how", "boil", 2),
    ("why", "rain", 0),
    ("how", "fry", 0),
    ("who", "me", 1),
    ("why", "air", 3),
]
GROUPED = {
    "documents": [["sun", "rain", "air"], ["boil", "fry"], ["me"]],
    "labels": [[1, 0, 3], [2, 0], [1]],
}


class Indexed(TorchDataset):
    """A torch data set has no `__iter__`."""

    def __len__(self):
        return len(PAIRS)

    def __getitem__(self, index):
        return PAIRS[index]


def named(query="question", document="answer", label="label", pairs=PAIRS):
    return Dataset.from_list([{query: q, document: d, label: y} for q, d, y in pairs])


def test_queries_and_documents_keep_their_order_and_the_query_its_name():
    grouped = group_by_query(named())
    assert grouped.column_names == ["question", "documents", "labels"]
    assert grouped[:] == {"question": ["why", "how", "who"], **GROUPED}


ROWS = {
    "tuples": PAIRS,
    "dicts": [{"text_1": q, "text_2": d, "label": y} for q, d, y in PAIRS],
    "examples": [InputExample(texts=[q, d], label=y) for q, d, y in PAIRS],
    "torch data set": Indexed(),
    "stream": named("text_1", "text_2").to_iterable_dataset(),
    "tensors": named("text_1", "text_2").with_format("torch"),
    "scalars": [(q, d, torch.tensor(y)) for q, d, y in PAIRS],
}


@pytest.mark.parametrize("kind", ROWS)
def test_rows_of_every_type_are_grouped_alike(kind):
    assert group_by_query(ROWS[kind])[:] == {"text_1": ["why", "how", "who"], **GROUPED}


def test_an_iterator_loses_no_row():
    assert group_by_query(iter(PAIRS))[:] == group_by_query(PAIRS)[:]


def test_how_rows_are_read_and_written_in_batches_makes_no_difference(monkeypatch):
    monkeypatch.setattr("cross_trainer.data.survey.BATCH_ROWS", 2)
    monkeypatch.setattr("cross_trainer.data.grouping.TABLE_ROWS", 2)
    grouped = group_by_query(PAIRS)
    assert grouped[:] == {"text_1": ["why", "how", "who"], **GROUPED}
    assert [len(chunk) for chunk in grouped.data.column("labels").chunks] == [2, 1]
    assert group_by_query(named())[:]["labels"] == GROUPED["labels"]


def test_a_repeated_row_counts_once_in_its_first_place_with_the_highest_label():
    rows = [("q", "a", 1), ("q", "b", 2), ("q", "a", 3), ("q", "b", 0), ("other", "a", 0)]
    assert group_by_query(rows)[:] == {
        "text_1": ["q", "other"],
        "documents": [["a", "b"], ["a"]],
        "labels": [[3, 2], [0]],
    }


def test_texts_are_equal_letter_by_letter():
    grouped = group_by_query([("q", "a", 1), ("Q", "a", 0), ("q", "A", 0), ("q", " a", 0)])
    assert grouped["text_1"][:] == ["q", "Q"]
    assert grouped[0]["documents"] == ["a", "A", " a"]


@pytest.mark.parametrize(
    ("labels", "kind", "expected"),
    [
        ([1, 0, 2], "int64", [1, 0, 2]),
        ([True, False, True], "int64", [1, 0, 1]),
        ([1.0, 0.0, 1.0], "float64", [1.0, 0.0, 1.0]),
        ([1, 0, 0.5], "float64", [1.0, 0.0, 0.5]),
        ([-1, 2, 0], "int64", [-1, 2, 0]),
    ],
)
def test_labels_stay_integers_or_floats(labels, kind, expected):
    grouped = group_by_query([("q", document, label) for document, label in zip("abc", labels, strict=True)])
    assert grouped.features["labels"] == List(Value(kind))
    assert grouped[0]["labels"] == expected
    assert all(type(label) is type(expected[0]) for label in grouped[0]["labels"])


def test_labels_of_one_type_over_all_tables(monkeypatch):
    monkeypatch.setattr("cross_trainer.data.grouping.TABLE_ROWS", 1)
    grouped = group_by_query([("q", "a", 1), ("r", "a", 0.5)])
    assert grouped["labels"][:] == [[1.0], [0.5]]


def test_classes_are_grouped_by_their_index():
    features = Features({"q": Value("string"), "d": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    rows = Dataset.from_dict({"q": ["x", "x"], "d": ["a", "b"], "label": [1, 0]}, features=features)
    assert group_by_query(rows)[0] == {"q": "x", "documents": ["a", "b"], "labels": [1, 0]}


def test_columns_can_be_named():
    rows = Dataset.from_list([{"qid": "1", "a": "doc", "b": "query", "label": 0, "grade": 3}])
    expected = {"b": "query", "documents": ["doc"], "labels": [3]}
    assert group_by_query(rows, ("b", "a", "grade"))[0] == expected
    assert group_by_query(rows, Columns("b", ("a",), "grade"))[0] == expected
    assert group_by_query(rows, ("b", "a"))[0] == {**expected, "labels": [0]}
    assert group_by_query(rows)[0] == {"a": "doc", "documents": ["query"], "labels": [0]}


def test_the_result_is_read_as_lists_of_documents(tokenizer):
    grouped = group_by_query(named())
    columns = resolve_columns(grouped)
    assert columns == Columns("question", ("documents",), "labels", "list")
    assert survey(grouped, columns).kind == "list"
    batch = PairCollator(tokenizer)(list(grouped))
    assert batch["labels"].tolist() == [[1, 0, 3], [2, 0, -100], [1, -100, -100]]
    assert len(batch["input_ids"]) == len(PAIRS)


BAD = {
    "None text": ([("q", "a", 1), ("q", None, 0)], r"Column 'text_2', row 1: expected a text, found None .*Filter"),
    "None label": ([("q", "a", 1), ("q", "b", None)], r"Column 'label', row 1: expected a label, found None"),
    "NaN label": ([("q", "a", 1.0), ("q", "b", math.nan)], r"Column 'label', row 1: label nan is not finite"),
    "names": (
        [("q", "a", "good"), ("q", "b", "bad")],
        (
            r"Column 'label' holds the class names \['bad', 'good'\], where a number is "
            r"needed .* Map them to numbers"
        ),
    ),
    "several labels": ([("q", "a", [0, 1])], r"Column 'label' holds lists, where a number is needed"),
    "no label": (
        [("q", "a")],
        r"Grouping needs labels, and no column is called 'label', .*columns=\(query, document, label\)",
    ),
    "lists": (
        [{"q": "x", "d": ["a", "b"], "labels": [1, 0]}],
        r"found a row of \['q', 'd', 'labels'\].*columns=\(query, document\)",
    ),
    "triples": ([{"q": "x", "positive": "a", "negative": "b"}], r"found a row of \['q', 'positive', 'negative'\]"),
    "tokens": ([{"input_ids": [1, 2], "label": 1}], r"found a row of \['input_ids', 'label'\]"),
    "empty": ([], r"The data set is empty"),
    "documents": (
        named(query="documents"),
        (
            r"\['documents', 'documents', 'labels'\], with 'documents' twice\. Rename .*"
            r"dataset\.rename_column\('documents'"
        ),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named(case):
    dataset, message = BAD[case]
    with pytest.raises(DataError, match=message):
        group_by_query(dataset)


def test_names_that_can_not_be():
    with pytest.raises(DataError, match="Column 'answers' is missing"):
        group_by_query(named(), ("question", "answers"))
    with pytest.raises(ConfigurationError, match="expected"):
        group_by_query(named(), ("question",))


def test_it_is_public():
    assert cross_trainer.group_by_query is group_by_query


@pytest.mark.parametrize("columns", [None, ("query", "document", "label")])
def test_a_query_under_another_instruction_is_another_one(columns):
    rows = [
        {"query": "cats", "document": text, "label": label, "instruction": instruction}
        for instruction, text, label in (("find facts", "a", 1), ("find jokes", "a", 0), ("find facts", "b", 0))
    ]
    assert list(group_by_query(rows, columns)) == [
        {"query": "cats", "documents": ["a", "b"], "labels": [1, 0], "instruction": "find facts"},
        {"query": "cats", "documents": ["a"], "labels": [0], "instruction": "find jokes"},
    ]
