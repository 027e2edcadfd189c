"""Columns are found by what they hold, and every kind of bad row is named before training."""

from __future__ import annotations

import logging
import math

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from torch.utils.data import Dataset as TorchDataset

from cross_trainer.data.columns import Columns, InputExample, as_mapping, describe_columns, resolve_columns
from cross_trainer.data.survey import BATCH_ROWS, check_classes, check_range, survey, text_lengths
from cross_trainer.errors import ConfigurationError, DataError


def pairs(**changes: list) -> Dataset:
    rows = {"a": ["one", "two", "three"], "b": ["1", "2", "3"], "label": [0.0, 0.5, 1.0]}
    return Dataset.from_dict({**rows, **changes})


def found_in(dataset, **options):
    return survey(dataset, resolve_columns(dataset, **options))


class Indexed(TorchDataset):
    """A torch data set has no `__iter__`."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


# -- roles -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["label", "labels", "score", "scores"])
def test_first_two_texts_and_a_label_by_its_name(label):
    dataset = Dataset.from_dict({"id": ["x"], "n": [3], "one": ["a"], "other": ["b"], label: [1]})
    assert resolve_columns(dataset) == Columns("one", ("other",), label, "pair")


def test_names_given_win():
    dataset = Dataset.from_dict({"a": ["x"], "b": ["y"], "c": ["z"], "label": [1], "relatedness": [0.5]})
    assert resolve_columns(dataset, ("c", "a")) == Columns("c", ("a",), "label")
    named = resolve_columns(dataset, ("c", "a", "relatedness"))
    assert named == Columns("c", ("a",), "relatedness")
    described = describe_columns(named, dataset.column_names)
    assert described == "pairs from 'c', 'a', label 'relatedness', ignored ['b', 'label']"


def test_shapes_of_rows():
    lists = Dataset.from_dict({"query": ["q"], "documents": [["a", "b"]], "labels": [[1, 0]], "num_relevant": [3]})
    assert resolve_columns(lists) == Columns("query", ("documents",), "labels", "list", "num_relevant")
    triples = {"query": ["q"], "positive": ["p"], "negative": ["n"], "negative_2": ["m"]}
    assert resolve_columns(Dataset.from_dict(triples)).documents == ("positive", "negative", "negative_2")
    margin = Dataset.from_dict({"query": ["q"], "positive": ["p"], "negative": ["n"], "score": [1.5]})
    assert resolve_columns(margin).shape == "tuple"
    assert found_in(margin).kind == "margin"
    extra_text = Dataset.from_dict({"genre": ["n"], "premise": ["q"], "hypothesis": ["p"], "score": [1.5]})
    assert resolve_columns(extra_text) == Columns("premise", ("hypothesis",), "score")
    positives = Dataset.from_dict({"query": ["q"], "positive": ["p"]})
    assert resolve_columns(positives).shape == "pair"
    assert resolve_columns(positives, in_batch_negatives=2).shape == "tuple"
    assert resolve_columns(Dataset.from_dict({"input_ids": [[1]], "labels": [0]})).shape == "tokens"


def test_rows_of_every_type_are_read_alike():
    tuples = [("a", "b", 1), ("c", "d", 0)]
    examples = [InputExample(texts=[a, b], label=label) for a, b, label in tuples]
    mappings = [{"text_1": a, "text_2": b, "label": label} for a, b, label in tuples]
    expected = found_in(Dataset.from_list(mappings))
    for rows in (tuples, examples, mappings, Indexed(tuples), Indexed(examples)):
        assert resolve_columns(rows) == Columns("text_1", ("text_2",), "label")
        assert found_in(rows) == expected
    assert as_mapping(("a", "b")) == {"text_1": "a", "text_2": "b"}


def test_class_names_come_from_the_data():
    features = Features({"a": Value("string"), "b": Value("string"), "label": ClassLabel(names=["no", "yes", "maybe"])})
    named = Dataset.from_dict({"a": ["x"], "b": ["y"], "label": [2]}, features=features)
    assert resolve_columns(named).class_names == ("no", "yes", "maybe")
    assert (found_in(named).kind, found_in(named).class_names) == ("class", ("no", "yes", "maybe"))
    strings = found_in(pairs(label=["up", "down", "up"]))
    assert (strings.kind, strings.class_names) == ("class", ("down", "up"))


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([0, 1, 1], "binary"),
        ([True, False, True], "binary"),
        ([0.0, 1.0, 1.0], "binary"),
        ([0, 1, 2], "class"),
        ([0.0, 0.5, 1.0], "real"),
        ([0.0, 4.0, 5.0], "real"),
        ([[0, 1], [1, 1], [0, 0]], "multi"),
    ],
)
def test_kinds_of_labels(labels, kind):
    assert found_in(pairs(label=labels)).kind == kind


def test_columns_translate_labels_by_name():
    columns = Columns("a", ("b",), "label", class_names=("no", "yes"), label2id={"yes": 0, "no": 1})
    assert [columns.encode(value) for value in (0, 1, "no", 0.25)] == [1, 0, 1, 0.25]
    assert Columns("a", ("b",), "label").encode([1, 0]) == [1, 0]


def test_lengths_are_characters_or_tokens():
    assert text_lengths(pairs(), resolve_columns(pairs())) == [4, 4, 6]
    lists = [{"query": "ab", "documents": ["c", "def"], "labels": [1, 0]}]
    assert text_lengths(lists, resolve_columns(lists)) == [6]
    tokens = [{"input_ids": [1, 2, 3], "labels": 0}]
    assert text_lengths(tokens, resolve_columns(tokens)) == [3]


# -- bad rows ----------------------------------------------------------------------------------------------------------


BAD = {
    "None text": (pairs(b=["1", None, "3"]), r"Column 'b', row 1: expected a text, found None .*Filter"),
    "no string": ([("a", "b", 1), ("a", 7, 0)], r"Column 'text_2', row 1: expected a text, found 7 \(int\)"),
    "NaN": (pairs(label=[0.0, 1.0, math.nan]), r"Column 'label', row 2: label nan is not finite"),
    "beyond 32 bits": ([{"a": "x", "b": "y", "label": -1e39}], r"row 0: label -1e\+39 is not finite in 32 bits"),
    "beyond floats": ([{"a": "x", "b": "y", "label": 10**400}], r"row 0: label 10+\.\.\. is not finite"),
    "infinite": (pairs(label=[0.0, math.inf, 0.5]), r"Column 'label', row 1: label inf is not finite"),
    "None label": (pairs(label=[0.0, None, 0.5]), r"Column 'label', row 1: expected a label, found None"),
    "ignored": (pairs(label=[0.0, -100.0, 0.5]), r"Column 'label', row 1: label -100 marks entries to ignore"),
    "width": (
        pairs(label=[[1, 0], [1], [0, 0]]),
        r"Column 'label', row 1: a list of 1 labels, where earlier rows have 2",
    ),
    "mixed": ([("a", "b", 1), ("a", "b", "yes")], r"Column 'label', row 1: label 'yes' is of another kind"),
    "list missing": ([("a", "b", 1), {"text_1": "a", "label": 1}], r"Column 'text_2', row 1: missing"),
    "ragged": (
        [{"q": "a", "d": ["b", "c"], "labels": [1, 0]}, {"q": "a", "d": ["b", "c"], "labels": [1]}],
        r"Column 'labels', row 1: 1 labels for 2 documents",
    ),
    "no documents": (
        [{"q": "a", "d": ["b"], "labels": [1]}, {"q": "a", "d": [], "labels": []}],
        r"Column 'd', row 1: expected a list of documents with at least one, found \[\]",
    ),
    "scalar for a list": (
        [{"q": "a", "d": ["b", "c"], "labels": 1}],
        r"Column 'labels', row 0: expected a list of 2 labels",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named(case):
    dataset, message = BAD[case]
    with pytest.raises(DataError, match=message):
        found_in(dataset)


def test_the_row_is_counted_over_batches():
    texts = ["x"] * (BATCH_ROWS + 7)
    texts[BATCH_ROWS + 3] = None
    with pytest.raises(DataError, match=f"Column 'b', row {BATCH_ROWS + 3}"):
        found_in(Dataset.from_dict({"a": ["y"] * len(texts), "b": texts}))


@pytest.mark.parametrize("empty", [[], Dataset.from_dict({"a": [], "b": [], "label": []})])
def test_an_empty_data_set(empty):
    with pytest.raises(DataError, match="The data set is empty"):
        resolve_columns(empty)


def test_a_missing_column():
    with pytest.raises(DataError, match=r"Column 'c' is missing\. The data set has the columns \['a', 'b', 'label'\]"):
        resolve_columns(pairs(), ("a", "c"))
    with pytest.raises(DataError, match=r"Found 1 text columns"):
        resolve_columns(Dataset.from_dict({"a": ["x"], "label": [1]}))
    with pytest.raises(ConfigurationError, match="expected"):
        resolve_columns(pairs(), ("a",))


@pytest.mark.parametrize("row", [5, ("a",), ("a", "b", 1, 2), InputExample(texts=["a"], label=1)])
def test_a_row_of_another_type(row):
    with pytest.raises(DataError, match=r"A row is .*Expected a dict, a tuple"):
        as_mapping(row)


def test_a_range_names_the_first_row_outside():
    dataset = pairs(label=[0.5, 4.5, 5.0])
    columns = resolve_columns(dataset)
    with pytest.raises(
        DataError, match=r"Column 'label', row 1: label 4.5 is outside \[0, 1\].*from 0.5 to 5\. Scale\."
    ):
        check_range(dataset, columns, survey(dataset, columns), 0, 1, "Scale.")


def test_classes_need_a_place():
    numbers = pairs(label=[0, 2, 3])
    columns = resolve_columns(numbers)
    check_classes(numbers, columns, survey(numbers, columns), 4)
    with pytest.raises(DataError, match=r"Column 'label', row 2: label 3 is outside \[0, 2\].*num_labels=3"):
        check_classes(numbers, columns, survey(numbers, columns), 3)
    names = pairs(label=["up", "down", "sideways"])
    columns = Columns("a", ("b",), "label", label2id={"up": 0, "down": 1})
    with pytest.raises(DataError, match=r"Column 'label', row 2: class 'sideways' is unknown to the model"):
        check_classes(names, columns, survey(names, columns), 2)


def test_an_empty_text_is_counted_and_allowed(caplog):
    with caplog.at_level(logging.WARNING, logger="cross_trainer"):
        assert found_in(pairs(a=["", "two", ""])).empty_texts == 2
    assert "2 of the texts are empty" in caplog.text


def test_lists_without_a_positive_are_counted():
    rows = [{"q": "a", "d": ["b", "c"], "labels": [0, 0]}, {"q": "a", "d": ["b"], "labels": [1]}]
    assert found_in(rows).without_positive == 1


def test_a_dataset_dict_is_no_data_set():
    assert resolve_columns(DatasetDict({"train": pairs()})["train"]).query == "a"


# -- names -------------------------------------------------------------------------------------------------------------


def row(*texts, **others):
    return [{**dict.fromkeys(texts, "some text"), **others}]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (row("premise", "hypothesis", "gold_label"), Columns("premise", ("hypothesis",), "gold_label")),
        (
            row("genre", "promptID", "pairID", "sentence1", "sentence2", gold_label="entailment"),
            Columns("sentence1", ("sentence2",), "gold_label"),
        ),
        (
            row("id", "qid1", "qid2", "question1", "question2", is_duplicate="0"),
            Columns("question1", ("question2",), "is_duplicate"),
        ),
        (
            row("split", "genre", "dataset", "year", "sid", "score", "sentence1", "sentence2"),
            Columns("sentence1", ("sentence2",), "score"),
        ),
        (row("pair_ID", "sentence_A", "sentence_B", relatedness_score=4.5, entailment_judgment="NEUTRAL"), None),
        (
            row("sentence_A", "sentence_B", Similarity_Score=0.5),
            Columns("sentence_A", ("sentence_B",), "Similarity_Score"),
        ),
        (row("passage", "query", relevance=1), Columns("query", ("passage",), "relevance")),
        (row("Question", "Title", "Answer", Target=1), Columns("Question", ("Answer",), "Target")),
        (row("anchor", "positive"), Columns("anchor", ("positive",))),
        (row("query", "title", documents=["a"], labels=[1]), Columns("query", ("documents",), "labels", "list")),
        (
            row("query", "positive", "negative_1", "negative_2"),
            Columns("query", ("positive", "negative_1", "negative_2"), None, "tuple"),
        ),
        (row("query", "pos", "neg"), Columns("query", ("pos", "neg"), None, "tuple")),
        (
            row("question", "answer", "Hard Negative", score=1.5),
            Columns("question", ("answer", "Hard Negative"), "score", "tuple"),
        ),
        (row("one", "other", "neg1"), Columns("one", ("other", "neg1"), None, "tuple")),
        (row("this", "that", label=1, gold_label="entailment"), Columns("this", ("that",), "label")),
        (row("ids", "doc_ids", "uuid", "id_a", "Idx", "this", "that"), Columns("this", ("that",))),
        (row("text", "text_pair", "lang", "url", label=1), Columns("text", ("text_pair",), "label")),
    ],
)
def test_names_that_are_known(rows, expected):
    if expected is None:
        with pytest.raises(DataError, match="'relatedness_score' or 'entailment_judgment'"):
            resolve_columns(rows)
    else:
        assert resolve_columns(rows) == expected


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (row("this", "that", "third"), r"'this', 'that', 'third' all hold texts. Name them with columns="),
        (row("this", "that", "third", label=1), "ambiguous which columns are the two texts"),
        (row("query", "passage", "answer"), "'query' with 'passage' or 'query' with 'answer'"),
        (row("query", "positive", "document", "negative"), "'query' with 'positive' or 'query' with 'document'"),
        (row("question1", "question2", "premise", "hypothesis"), "'question1' with 'question2' or 'premise'"),
        (row("Query", "query", "document"), "'Query' with 'document' or 'query' with 'document'"),
        (row("this", "that", label=1, score=0.5), "it could be 'label' or 'score'"),
        (row("this", "that", gold_label="a", is_duplicate=1), "it could be 'gold_label' or 'is_duplicate'"),
        (row("qid1", "qid2", is_duplicate=1), r"Found 0 text columns"),
        (row("query", "negative", "negative_2"), r"Found 1 text columns \(\['query'\]\)"),
    ],
)
def test_what_is_ambiguous_is_an_error_that_names_the_argument(rows, message):
    with pytest.raises(DataError, match=message):
        resolve_columns(rows)
    with pytest.raises(DataError, match="--text-columns FIRST SECOND"):
        resolve_columns(rows, option="--text-columns FIRST SECOND")


def test_a_class_label_is_a_label_whatever_it_is_called():
    features = Features({"this": Value("string"), "that": Value("string"), "verdict": ClassLabel(names=["no", "yes"])})
    named = Dataset.from_dict({"this": ["x"], "that": ["y"], "verdict": [1]}, features=features)
    assert resolve_columns(named) == Columns("this", ("that",), "verdict", class_names=("no", "yes"))
    both = features | {"topic": ClassLabel(names=["a", "b"])}
    twice = Dataset.from_dict({"this": ["x"], "that": ["y"], "verdict": [1], "topic": [0]}, features=Features(both))
    with pytest.raises(DataError, match="it could be 'verdict' or 'topic'"):
        resolve_columns(twice)
    assert resolve_columns(twice, ("this", "that", "topic")).label == "topic"
    with pytest.raises(DataError, match="'verdict' or 'topic'"):
        resolve_columns(twice, ("this", "that"))
