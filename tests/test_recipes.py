"""Each recipe trains, evaluates, saves, reloads and scores, on files of its own kind, and says what is wrong in one line."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from conftest import SENTENCES, build_model, build_tokenizer
from datasets import Dataset

from cross_trainer.recipe import RecipeArguments, parse_arguments, run

RECIPES = Path(__file__).parent.parent / "recipes"

TASKS = {
    "stsb": {"sentence1": SENTENCES, "sentence2": SENTENCES[::-1], "score": [index % 6 * 0.9 for index in range(12)]},
    "quora": {"q1": SENTENCES, "q2": SENTENCES[::-1], "is_duplicate": [index % 2 for index in range(12)]},
    "nli": {
        "premise": SENTENCES,
        "hypothesis": SENTENCES[::-1],
        "label": ["entailment", "neutral", "contradiction"] * 4,
    },
}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    build_model().bert.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


def call(monkeypatch, recipe, *argv):
    monkeypatch.syspath_prepend(str(RECIPES))
    monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *argv, "--use_cpu", "--report_to", "none"])
    run(importlib.import_module(recipe).main)


@pytest.mark.parametrize("recipe", TASKS)
def test_a_recipe_trains_saves_and_scores(tmp_path, monkeypatch, capsys, pretrained, recipe):
    for split in ("train", "validation", "test"):
        Dataset.from_dict(TASKS[recipe]).to_csv(tmp_path / "data" / f"{split}.csv", index=False)
    options = ["--text_columns", "q1", "q2", "--label_column", "is_duplicate", "--no_swap"] if recipe == "quora" else []
    output = tmp_path / "output"
    call(
        monkeypatch, recipe, "--model", pretrained, "--dataset", str(tmp_path / "data"), "--output_dir", str(output),
        "--num_train_epochs", "2", *options,
    )  # fmt: skip
    printed = capsys.readouterr().out
    metric = {"stsb": "spearman", "quora": "average_precision", "nli": "accuracy"}[recipe]
    assert printed.count(f"  {metric} ") == 2
    assert f"{SENTENCES[0]} | {SENTENCES[-1]}" in printed
    config = json.loads((output / "config.json").read_text())
    if recipe == "nli":
        assert config["label2id"] == {"contradiction": 0, "entailment": 1, "neutral": 2}
    if recipe == "stsb":
        assert "Scores go up to 4.5: all are divided by 5." in printed
    state = json.loads(next(output.glob("checkpoint-*/trainer_state.json")).read_text())
    assert state["best_metric"] == max(
        entry[f"eval_{metric}"] for entry in state["log_history"] if f"eval_{metric}" in entry
    )


@pytest.mark.parametrize("recipe", TASKS)
def test_the_demo_trains_on_synthetic_pairs(tmp_path, monkeypatch, capsys, pretrained, recipe):
    call(
        monkeypatch, recipe, "--demo", "--model", pretrained, "--output_dir", str(tmp_path), "--max_steps", "2", "--eval_strategy", "no",
        "--save_strategy", "no", "--load_best_model_at_end", "False", "--per_device_train_batch_size", "2",
    )  # fmt: skip
    assert "Scores of the saved model" in capsys.readouterr().out


def test_without_the_hub_one_line_names_the_ways_out(tmp_path, monkeypatch, capsys, pretrained):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit, match="2"):
        call(monkeypatch, "quora", "--model", pretrained, "--output_dir", str(tmp_path))
    with pytest.raises(SystemExit, match="2"):
        call(monkeypatch, "quora", "--output_dir", str(tmp_path), "--model", "nobody/has-this-model")
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert all("the Hub can't be reached" in line and "--demo" in line for line in errors)


@pytest.mark.parametrize(
    ("argv", "message"), [(["--epoch", "3"], "Unknown arguments '--epoch 3'"), (["--eval_strategy", "no"], "strateg")]
)
def test_arguments_that_do_not_fit_are_one_line(tmp_path, monkeypatch, capsys, argv, message):
    with pytest.raises(SystemExit, match="2"):
        call(monkeypatch, "quora", "--output_dir", str(tmp_path), *argv)
    assert message in capsys.readouterr().err


def test_defaults_are_the_documented_tasks(tmp_path):
    argv = ["--output_dir", str(tmp_path), "--use_cpu"]
    _, arguments = parse_arguments(RecipeArguments, {"metric_for_best_model": "spearman"}, argv)
    assert (arguments.per_device_train_batch_size, arguments.num_train_epochs, arguments.learning_rate) == (16, 4, 2e-5)
    assert (arguments.weight_decay, arguments.get_warmup_steps(1000), arguments.lr_scheduler_type) == (
        0.01,
        100,
        "linear",
    )
    assert (arguments.load_best_model_at_end, arguments.greater_is_better) == (True, True)
    _, changed = parse_arguments(RecipeArguments, {}, [*argv, "--num_train_epochs", "7", "--save_strategy", "epoch"])
    assert changed.num_train_epochs == 7
