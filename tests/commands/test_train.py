"""Training on any labelled data and measuring on it: what follows from the labels, and what is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import logging

import numpy as np
import pytest
from commands import error, labelled, make_rows, run, save
from datasets import Dataset
from transformers import TrainingArguments

from cross_trainer.commands import cli
from cross_trainer.training import losses
from cross_trainer.commands.train import TrainArguments, make_loss
from cross_trainer.errors import ConfigurationError
from cross_trainer.metrics.pairs import binary_metrics
from cross_trainer.scoring.cross_encoder import CrossEncoder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return save(tmp_path_factory.mktemp("classes"), 3)


@pytest.fixture(scope="module")
def encoder(model):
    return CrossEncoder(model)


# -- evaluate ----------------------------------------------------------------------------------------------------------


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


# -- train -------------------------------------------------------------------------------------------------------------

BRIEFLY = [
    "--use_cpu",
    "--report_to",
    "none",
    "--max_steps",
    "2",
    "--eval_strategy",
    "steps",
    "--eval_steps",
    "1",
    "--save_strategy",
    "steps",
    "--save_steps",
    "1",
    "--per_device_train_batch_size",
    "4",
]
LABELS = {
    "average_precision": lambda index: index % 2,
    "spearman": lambda index: index % 5 / 4,
    "accuracy": lambda index: ["no", "maybe", "yes"][index % 3],
    "f1_micro": lambda index: [index % 2, 1, index // 2 % 2],
}


@pytest.mark.parametrize("metric", LABELS)
def test_the_best_checkpoint_is_chosen_by_the_kind_of_labels(tmp_path, model, caplog, metric):
    Dataset.from_list(labelled(LABELS[metric])).to_json(tmp_path / "rows.jsonl")
    output = tmp_path / "output"
    with caplog.at_level(logging.INFO):
        told = run(
            "train", "--dataset", tmp_path / "rows.jsonl", "--model", model, "--output_dir", output, *BRIEFLY
        ).stdout
    assert f"the one with the highest {metric}." in caplog.text
    assert f"  {metric} " in told
    assert f"Saved in {output}" in told
    state = json.loads(next(output.glob("checkpoint-*/trainer_state.json")).read_text())
    assert state["best_metric"] == max(
        entry[f"eval_{metric}"] for entry in state["log_history"] if f"eval_{metric}" in entry
    )


def test_lists_of_documents_go_by_ndcg_and_asked_for_is_asked_for(tmp_path, model, caplog):
    lists = [
        {"query": row["first"], "documents": [row["second"], row["extra"] or "x"], "labels": [1, 0]}
        for row in make_rows(12)
    ]
    Dataset.from_list(lists).to_json(tmp_path / "rows.jsonl")
    argv = [
        "train",
        "--dataset",
        tmp_path / "rows.jsonl",
        "--model",
        model,
        "--output_dir",
        tmp_path / "output",
        *BRIEFLY,
    ]
    with caplog.at_level(logging.INFO):
        run(*argv)
        assert "the highest ndcg@10" in caplog.text
        caplog.clear()
        run(
            *argv,
            "--metric_for_best_model",
            "loss",
            "--save_total_limit",
            "9",
            "--resume_from_checkpoint",
            "true",
            "--max_steps",
            "3",
        )
    assert "best checkpoint" not in caplog.text
    state = json.loads((tmp_path / "output" / "checkpoint-3" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "eval_loss" in entry] == [1, 2, 3]


def stop_at_the_trainer(monkeypatch):
    """What `train` would have trained with."""
    seen = {}

    class StoppedError(Exception):
        pass

    def spy(self, model, args, **options):
        seen.update(options, model=model, args=args)
        raise StoppedError

    monkeypatch.setattr("cross_trainer.training.trainer.CrossEncoderTrainer.__init__", spy)

    def start(*argv):
        seen.clear()
        with pytest.raises(StoppedError):
            run("train", *argv)
        return seen

    return start


def test_flags_override_the_file(tmp_path, model, monkeypatch):
    Dataset.from_list(labelled()).to_csv(tmp_path / "rows.csv", index=False)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"dataset: {tmp_path / 'rows.csv'}\nmodel: {model}\noutput_dir: {tmp_path / 'output'}\ntext_columns: [second, first]\n"
        "label_column: label\nlearning_rate: 2e-5\neval_strategy: no\nsave_strategy: no\nload_best_model_at_end: false\n"
        "use_cpu: true\nreport_to: none\nswap: yes\nmax_tokens: 300\nmax_length: null\nnum_train_epochs: 3\n"
        "accelerator_config: {dispatch_batches: false}\n"
    )
    start = stop_at_the_trainer(monkeypatch)
    seen = start(config)
    args, collator = seen["args"], seen["data_collator"]
    assert (args.learning_rate, args.eval_strategy, args.num_train_epochs, args.use_cpu) == (2e-5, "no", 3, True)
    assert (args.accelerator_config.dispatch_batches, args.load_best_model_at_end) == (False, False)
    assert (seen["model"], seen["max_tokens"], seen["padding_free"]) == (model, 300, True)
    assert (collator.columns, collator.swap, collator.max_length) == (("second", "first", "label"), True, None)
    assert seen["compute_loss_func"] is None
    seen = start(
        config,
        "--learning_rate",
        "3e-5",
        "--no_padding_free",
        "--swap",
        "false",
        "--max_length",
        "32",
        "--loss",
        "MSELoss",
        "--text_columns",
        "first",
        "second",
        "--num_train_epochs=1",
    )
    assert (seen["args"].learning_rate, seen["args"].num_train_epochs, seen["padding_free"]) == (3e-5, 1, False)
    assert (seen["data_collator"].columns, seen["data_collator"].swap) == (("first", "second", "label"), False)
    assert (seen["data_collator"].max_length, seen["compute_loss_func"]) == (32, losses.MSELoss())


def test_positives_train_against_each_other(tmp_path, model, monkeypatch):
    Dataset.from_list([{"query": row["first"], "answer": row["second"]} for row in make_rows(20)]).to_csv(
        tmp_path / "rows.csv", index=False
    )
    argv = ["--dataset", tmp_path / "rows.csv", "--model", model, "--output_dir", tmp_path / "output"]
    assert "has no label among the columns ['query', 'answer']" in error("train", *argv)
    seen = stop_at_the_trainer(monkeypatch)(*argv, "--in_batch_negatives", "3")
    assert seen["data_collator"].in_batch_negatives == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat: 1\n", "unknown argument 'learning_rat'. Is 'learning_rate' meant?"),
        ("zzz: 1\n", "unknown argument 'zzz'. See --help."),
        ("demo: true\n", "unknown argument 'demo'"),
        ("- a\n", "expected lines of `name: value`"),
        ("a: [\n", "is no YAML"),
        ("eval_strategy: steps\nsave_strategy: epoch\n", "strateg"),
        ("num_train_epochs: 1\n", "--dataset is missing"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(tmp_path, content, message):
    (tmp_path / "config.yaml").write_text(content)
    assert message in error("train", tmp_path / "config.yaml", "--use_cpu", "--output_dir", tmp_path)


def test_what_train_cannot_do_is_one_line(tmp_path, model):
    Dataset.from_list(labelled()).to_csv(tmp_path / "rows.csv", index=False)
    argv = [
        "train",
        "--dataset",
        tmp_path / "rows.csv",
        "--model",
        model,
        "--output_dir",
        tmp_path / "output",
        "--use_cpu",
    ]
    assert "none.yaml: No such file" in error("train", tmp_path / "none.yaml")
    assert "Unknown arguments '--epochs 3'" in error(*argv, "--epochs", "3")
    assert "Unknown arguments '--demo'" in error(*argv, "--demo")
    assert "no column 'nowhere'" in error(*argv, "--text_columns", "first", "nowhere")
    assert "--loss HingeLoss: expected one of ADRMSELoss" in error(*argv, "--loss", "HingeLoss")
    assert "Continue from the last checkpoint with --resume_from_checkpoint true" in cli.HOW_TO_GO_ON["train"]


def test_losses_are_written_as_they_are_shown():
    for loss in (
        losses.LambdaLoss(k=10),
        losses.MSELoss(activation="identity"),
        losses.CrossEntropyLoss(class_weights=(1.0, 2.0)),
    ):
        assert make_loss(repr(loss)) == loss
    assert make_loss("InfoNCELoss") == losses.InfoNCELoss()
    for written in (
        "MSELoss(",
        "MSELoss('identity')",
        "MSELoss(power=2)",
        "print('x')",
        "to_grid",
        "MSELoss(activation=open('x'))",
        "MSELoss(activation='no')",
    ):
        with pytest.raises(ConfigurationError, match=r"^--loss "):
            make_loss(written)


def test_help_of_train_lists_every_argument():
    told = run("train", "--help").stdout
    for kind in (TrainArguments, TrainingArguments):
        for entry in dataclasses.fields(kind):
            assert (f"--{entry.name}" in told) == entry.init
    assert "cross-trainer train quora.yaml --num_train_epochs 2" in told
    assert "by the labels" in told
