"""Measuring on labelled data: the figures of the trainer's evaluation, and what is refused in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from commands import error, labelled, run, save
from conftest import SENTENCES, build_model, build_tokenizer
from datasets import ClassLabel, Dataset
from transformers import TrainingArguments

from cross_trainer.commands.evaluate import measure
from cross_trainer.data import labelled as labelled_pairs
from cross_trainer.data.collator import PairCollator
from cross_trainer.errors import ConfigurationError, DataError
from cross_trainer.metrics.pairs import binary_metrics
from cross_trainer.saved.folder import name_labels
from cross_trainer.scoring.cross_encoder import CrossEncoder
from cross_trainer.training.trainer import CrossEncoderTrainer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return save(tmp_path_factory.mktemp("classes"), 3)


@pytest.fixture(scope="module")
def encoder(model):
    return CrossEncoder(model)


def test_metrics_are_those_of_the_scores(tmp_path, model, encoder):
    rows = labelled()
    Dataset.from_list(rows).to_csv(tmp_path / "rows.csv", index=False)
    told = run("evaluate", model, tmp_path / "rows.csv", "--confidence", "0.9", "-o", tmp_path / "metrics.json").stdout
    logits = encoder.predict(
        [(row["first"], row["second"]) for row in rows], activation="logits", show_progress_bar=False
    )
    evaluation = type("Evaluation", (), {"predictions": logits, "label_ids": np.array([row["label"] for row in rows])})
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics == pytest.approx({**binary_metrics(confidence=0.9)(evaluation), "loss": metrics["loss"]}, abs=1e-5)
    assert "90 % interval" in told
    low, high = (metrics[f"average_precision_{bound}"] for bound in ("low", "high"))
    assert f"average_precision            {metrics['average_precision']:>9.4f}   [{low:.4f}, {high:.4f}]" in told
    assert told.splitlines()[-1].split() == ["rows", "24"]
    assert "runtime" not in told + str(metrics)
    plain = run("evaluate", model, tmp_path / "rows.csv", "--batch-size", 5).stdout
    assert "interval" not in plain
    assert f"average_precision            {metrics['average_precision']:>9.4f}" in plain


def test_the_split_and_the_columns_count(tmp_path, model, classes):
    folder = tmp_path / "data"
    for split, count in (("train", 9), ("validation", 6), ("test", 3)):
        Dataset.from_list(labelled(count=count)).to_json(folder / f"{split}.jsonl")

    def rows(*options):
        return int(run("evaluate", model, folder, *options).stdout.split()[-1])

    assert (rows(), rows("--split", "test"), rows("--split", "train")) == (6, 3, 9)
    assert "no 'other'" in error("evaluate", model, folder, "--split", "other")
    named = [
        {"first": row["first"], "second": row["second"], "third": row["second"][::-1], "gold": row["label"]}
        for row in labelled()
    ]
    Dataset.from_list(named).to_parquet(tmp_path / "named.parquet")
    argv = ["evaluate", model, tmp_path / "named.parquet"]
    assert "has no label among the columns ['first', 'second', 'third', 'gold']" in error(
        *argv, "--text-columns", "first", "second"
    )
    assert "no column 'fourth'" in error(*argv, "--text-columns", "first", "fourth", "--label-column", "gold")
    assert "needs --text-columns" in error(*argv, "--label-column", "gold")
    usual, other = (
        run(*argv, "--text-columns", "first", name, "--label-column", "gold").stdout for name in ("second", "third")
    )
    assert usual != other
    assert (
        usual != run(*argv, "--text-columns", "first", "second", "--label-column", "gold", "--max-length", "6").stdout
    )
    Dataset.from_list(labelled(lambda index: ["yes", "no", "maybe"][index % 3])).to_csv(
        tmp_path / "classes.csv", index=False
    )
    assert "f1_maybe" in run("evaluate", classes, tmp_path / "classes.csv").stdout
    assert "confidence" in error("evaluate", model, folder, "--confidence", "95")


def test_what_is_undefined_is_null(tmp_path, model, caplog):
    Dataset.from_list(labelled(lambda _: 1)).to_csv(tmp_path / "rows.csv", index=False)
    run("evaluate", model, tmp_path / "rows.csv", "-o", tmp_path / "metrics.json")
    assert "all 24 labels are 1" in caplog.text
    assert json.loads((tmp_path / "metrics.json").read_text())["average_precision"] is None


# -- as the trainer does -----------------------------------------------------------------------------------------------

PAIRS = {"first": SENTENCES, "second": SENTENCES[::-1]}
LISTS = {
    "query": SENTENCES[:6],
    "documents": [SENTENCES[index : index + 2 + index % 3] for index in range(6)],
    "labels": [[index % 3, 1, 0, 2][: 2 + index % 3] for index in range(6)],
}
TUPLES = {"query": SENTENCES, "positive": SENTENCES[::-1], "negative": SENTENCES[2:] + SENTENCES[:2]}  # no ties
NAMES = ["no", "maybe", "yes"]
ROWS = {
    "binary": {**PAIRS, "label": [index % 2 for index in range(12)]},
    "booleans": {**PAIRS, "label": [index % 2 == 0 for index in range(12)]},
    "real": {**PAIRS, "label": [index % 5 / 4 for index in range(12)]},
    "names": {**PAIRS, "label": [NAMES[index % 3] for index in range(12)]},
    "classes": {**PAIRS, "label": [index % 3 for index in range(12)]},
    "several": {**PAIRS, "label": [[index % 2, 1 - index // 6, index // 3 % 2] for index in range(12)]},
    "lists": LISTS,
    "relevant": {**LISTS, "num_relevant": [4, 5, 6, 3, 4, 9]},
    "teacher": {**LISTS, "labels": [[grade - 0.5 for grade in grades] for grades in LISTS["labels"]]},
    "tuples": TUPLES,
    "margins": {**TUPLES, "score": [index / 2 for index in range(12)]},
}


def build_encoder(num_labels, names=None, problem_type=None):
    model = build_model(num_labels)
    model.config.problem_type = problem_type
    if names:
        name_labels(model.config, names)
    return CrossEncoder(model, tokenizer=build_tokenizer())


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("chunk", [5, 1000])
def test_figures_are_those_of_the_trainer(tmp_path, monkeypatch, kind, chunk):
    monkeypatch.setattr(labelled_pairs, "CHUNK", chunk)
    rows = Dataset.from_dict(ROWS[kind])
    if kind == "classes":  # in another order than the model's
        rows = rows.cast_column("label", ClassLabel(names=["yes", "no", "maybe"]))
    named = kind in {"names", "classes"}
    encoder = build_encoder(3 if named or kind == "several" else 1, NAMES if named else None)
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", per_device_eval_batch_size=5)
    before = encoder.config.to_dict()
    found = measure(encoder, rows, batch_size=4)
    assert encoder.config.to_dict() == before
    collator = PairCollator(build_tokenizer())
    figures = CrossEncoderTrainer(encoder.model, arguments, collator, eval_dataset=rows).evaluate()
    expected = {name.removeprefix("eval_"): value for name, value in figures.items()}
    for name in ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "epoch"):
        del expected[name]
    assert found == pytest.approx(expected, abs=1e-5, nan_ok=True)
    assert set(found) == {"loss"} if kind == "teacher" else len(found) > 3


def test_a_regression_is_measured_as_one(tmp_path):
    rows = Dataset.from_dict({**PAIRS, "label": [index / 2 for index in range(12)]})
    encoder = build_encoder(1, problem_type="regression")
    logits = encoder.predict(list(zip(SENTENCES, SENTENCES[::-1], strict=True)), activation="logits")
    found = measure(encoder, rows)
    assert found["loss"] == pytest.approx(float(np.mean((logits - np.arange(12) / 2) ** 2)), rel=1e-5)
    assert found["pearson"] == pytest.approx(np.corrcoef(logits, np.arange(12))[0, 1], abs=1e-5)


def test_rows_may_come_from_a_list(encoder):
    rows = [dict(zip(ROWS["binary"], values, strict=True)) for values in zip(*ROWS["binary"].values(), strict=True)]
    assert measure(encoder, rows) == measure(encoder, Dataset.from_list(rows))


def test_what_cannot_be_measured_is_named(encoder):
    with pytest.raises(ConfigurationError, match="the model has num_labels=1"):
        measure(encoder, Dataset.from_dict(ROWS["names"]))
    with pytest.raises(DataError, match="'input_ids' holds tokens"):
        measure(encoder, Dataset.from_dict({"input_ids": [[1, 2]], "label": [1]}))


# -- files -------------------------------------------------------------------------------------------------------------


def test_texts_that_look_like_numbers_are_texts(tmp_path, model, encoder):
    texts = [("007", "7"), ("7", "007"), ("NA", "1e3"), ("true", "")] * 4
    lines = "".join(f"{a},{b},{index % 2}\n" for index, (a, b) in enumerate(texts))
    (tmp_path / "rows.csv").write_text(f"a,b,label\n{lines}")
    run("evaluate", model, tmp_path / "rows.csv", "-o", tmp_path / "metrics.json")
    logits = encoder.predict(texts, activation="logits", show_progress_bar=False)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    labels = np.arange(16) % 2
    assert metrics["loss"] == pytest.approx(float(np.mean(np.logaddexp(0, logits) - labels * logits)), rel=1e-5)


@pytest.mark.parametrize("command", ["evaluate", "train", "mine", "score"])
def test_a_bad_text_names_file_and_line(tmp_path, model, command):
    rows = labelled()
    rows[7]["second"] = None
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = {
        "evaluate": [model, path],
        "train": ["--dataset", path, "--model", model, "--output_dir", tmp_path / "output", "--use_cpu"],
        "mine": [path, "-o", tmp_path / "out.csv"],
        "score": [path, "-o", tmp_path / "out.csv", "-m", model],
    }
    told = error(command, *argv[command])
    assert f"{path}, line 8, column 'second': expected a text, found None (NoneType). Filter such rows out" in told


def test_a_label_that_is_no_number_names_file_and_line(tmp_path, model):
    (tmp_path / "rows.csv").write_text('a,b,label\nx,y,1\n"two\nlines",y,0\nx,y,n/a\n')
    told = error("evaluate", model, tmp_path / "rows.csv")
    assert f"{tmp_path / 'rows.csv'}, line 5, column 'label': 'n/a' is no number" in told
