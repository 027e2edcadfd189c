"""Training on any labelled data: what follows from the labels, and what is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import logging

import pytest
from commands import error, labelled, make_rows, run, save
from datasets import Dataset
from training.test_trainer import write_own_model
from transformers import TrainingArguments

from cross_trainer.commands import cli
from cross_trainer.commands.train import TrainArguments, make_loss
from cross_trainer.errors import ConfigurationError
from cross_trainer.training import losses


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"))


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


@pytest.mark.parametrize("asked", ["true", "false"])
def test_hashes_of_the_rows_can_be_left_out(tmp_path, model, asked):
    Dataset.from_list(labelled(LABELS["accuracy"])).to_json(tmp_path / "rows.jsonl")
    output = tmp_path / "output"
    argv = ["--dataset", tmp_path / "rows.jsonl", "--model", model, "--output_dir", output, "--fingerprints", asked]
    run("train", *argv, *BRIEFLY)
    assert (output / "trained_rows.npy").exists() == (asked == "true")


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
        f"dataset: {tmp_path / 'rows.csv'}\nmodel: {model}\noutput_dir: {tmp_path / 'output'}\n"
        "text-columns: [second, first]\nlabel_column: label\nlearning_rate: 2e-5\n"
        "eval_strategy: no\nsave-strategy: no\nload_best_model_at_end: false\n"
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


def test_judged_pairs_are_grouped_for_a_loss_over_lists(tmp_path, model, caplog):
    rows = [{"query": row["first"], "document": row["second"], "label": i % 2} for i, row in enumerate(make_rows(24))]
    rows += [{**row, "document": row["document"] + " again", "label": 1 - row["label"]} for row in rows]
    Dataset.from_list(rows).to_json(tmp_path / "rows.jsonl")
    argv = ["--dataset", tmp_path / "rows.jsonl", "--model", model, "--output_dir", tmp_path / "output"]
    for named in ([], ["--text_columns", "query", "document", "--label_column", "label"]):
        with caplog.at_level(logging.INFO):
            told = run("train", *argv, "--loss", "LambdaLoss", *named, *BRIEFLY).stdout
        assert "ndcg@10" in told
        assert "pairs are brought together as" in caplog.text
        caplog.clear()
    assert "LambdaLoss" in run("train", *argv, "--loss", "LambdaLoss", "--dry-run").stdout
    assert "average_precision" in run("train", *argv, *BRIEFLY).stdout


def test_a_model_with_code_of_its_own_and_a_revision(tmp_path, model, monkeypatch):
    Dataset.from_list(labelled()).to_json(tmp_path / "rows.jsonl")
    write_own_model(tmp_path / "own")
    argv = ["--dataset", tmp_path / "rows.jsonl", "--output_dir", tmp_path / "output"]
    told = run("train", *argv, "--model", tmp_path / "own", "--trust_remote_code", *BRIEFLY).stdout
    assert "Scores of the saved model" in told
    seen = stop_at_the_trainer(monkeypatch)(*argv, "--model", model, "--model_revision", "main")
    assert seen["model_kwargs"] == {"revision": "main"}


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


def test_texts_that_look_like_numbers_are_texts(tmp_path, model):
    texts = [("007", "7"), ("7", "007"), ("NA", "1e3"), ("true", "")] * 5
    lines = "".join(f"{a},{b},{index % 2}\n" for index, (a, b) in enumerate(texts))
    (tmp_path / "rows.csv").write_text(f"a,b,label\n{lines}")
    argv = ["--dataset", tmp_path / "rows.csv", "--model", model, "--output_dir", tmp_path / "output", *BRIEFLY]
    assert "average_precision" in run("train", *argv).stdout


def test_what_is_asked_for_decides_which_column_is_a_number(tmp_path, model, monkeypatch):
    (tmp_path / "rows.csv").write_text("label,b,gold\n" + "1,2,3\n" * 20)
    argv = ["--dataset", tmp_path / "rows.csv", "--model", model, "--output_dir", tmp_path / "output"]
    start = stop_at_the_trainer(monkeypatch)
    seen = start(*argv, "--text-columns", "label", "b", "--label-column", "gold")
    assert seen["train_dataset"][0] == {"label": "1", "b": "2", "gold": 3}


def test_a_lora_is_trained_and_saved_in_either_form(tmp_path, model):
    Dataset.from_list(labelled()).to_csv(tmp_path / "rows.csv", index=False)
    argv = ["train", "--dataset", tmp_path / "rows.csv", "--model", model, *BRIEFLY, "--lora", "--lora-r", "4"]
    run(*argv, "--output_dir", tmp_path / "adapter", "--lora_target_modules", "query", "value")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (4, 8, 0.05)
    assert set(settings["target_modules"]) == {"query", "value"}
    run(*argv, "--output_dir", tmp_path / "merged", "--merge_adapters")
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert (tmp_path / "merged" / "model.safetensors").exists()
    shown = run(*argv, "--output_dir", tmp_path / "none", "--dry-run").stdout
    assert "LoRA(r=4, lora_alpha=8, lora_dropout=0.05, target_modules='all-linear')" in shown


def test_options_of_a_lora_need_one(tmp_path, model):
    argv = ["train", "--dataset", tmp_path / "rows.csv", "--model", model, "--lora_alpha", "3"]
    assert error(*argv).startswith("error: --lora_alpha without --lora: no adapter is made.")


# -- several data sets -------------------------------------------------------------------------------------------------


def write_several(folder):
    """A YAML file of two data sets, with columns of two names and lists."""
    named = [
        {"left": row["first"], "right": row["second"], "same": row["label"]} for row in labelled(lambda i: i % 5 / 4)
    ]
    Dataset.from_list(named).to_json(folder / "graded.jsonl")
    judged = [
        {"query": row["first"], "document": row["second"], "label": row["label"]} for row in labelled(lambda i: i % 2)
    ]
    Dataset.from_list(judged).to_json(folder / "judged.jsonl")
    config = folder / "several.yaml"
    config.write_text(
        f"""
dataset:
  graded: {{dataset: {folder / "graded.jsonl"}, text_columns: [left, right], label_column: same}}
  ranked: {{dataset: {folder / "judged.jsonl"}, loss: LambdaLoss}}
mixing: {{graded: 1, ranked: 2}}
"""
    )
    return config


def test_several_data_sets_come_from_yaml(tmp_path, model, caplog):
    config, output = write_several(tmp_path), tmp_path / "output"
    argv = ["train", config, "--model", model, "--output_dir", output, *BRIEFLY]
    planned = run(*argv, "--dry-run").stdout
    assert "name='graded'" in planned
    assert "loss=LambdaLoss" in planned
    assert not output.exists()
    with caplog.at_level(logging.INFO):
        told = run(*argv).stdout
    assert "the one with the highest graded_spearman." in caplog.text
    assert "  graded_spearman " in told
    assert "  ranked_ndcg@10 " in told
    assert "  graded_runtime " not in told
    state = json.loads(next(output.glob("checkpoint-*/trainer_state.json")).read_text())
    assert state["best_metric"] == max(
        entry["eval_graded_spearman"] for entry in state["log_history"] if "eval_graded_spearman" in entry
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", '{"a": {"dataset": "x.csv", "swap": true}}'], "--dataset: 'a' has the option 'swap'"),
        (["--dataset", '{"a": {"loss": "MSELoss"}}'], "--dataset: 'a' has no source"),
        (["--dataset", '{"a": x.csv}'], "Write mappings in a YAML file, or as JSON"),
        (["--mixing", "0"], "a temperature above 0"),
        (["--mixing", '{"graded": 1}'], "mixing lacks 'ranked'"),
        (["--mixing", "1,5"], "--mixing 1,5:"),
        (["--metric_for_best_model", "spearman"], "names none of the evaluation sets"),
        (["--loss", "LambdaLoss", "--mixing", "random"], "mixing='random': expected 'proportional'"),
    ],
)
def test_mappings_that_do_not_fit(tmp_path, model, options, message):
    config = write_several(tmp_path)
    assert message in error(
        "train", config, "--model", model, "--output_dir", tmp_path / "output", *BRIEFLY, "--dry-run", *options
    )
