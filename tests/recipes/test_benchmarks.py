"""The benchmarks write what they measured, and the chart shows it."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import itertools
import json
import re
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SENTENCES, build_model, build_tokenizer
from datasets import Dataset
from scipy import stats
from sentence_transformers import CrossEncoder
from torch import nn
from transformers import TrainingArguments

import cross_trainer
from cross_trainer import PairCollator

FOLDER = Path(__file__).parents[2] / "recipes" / "benchmarks"
TRAINING = {
    "work": "training",
    "data": "some/where/stsb/train.csv",
    "pairs_per_second": {
        "cross_trainer": 58.4,
        "sentence-transformers": 24.0,
        "Trainer": 25.0,
        "Trainer, grouped by length": 44.0,
    },
}
SCORING = {
    "work": "scoring",
    "data": "trecqa/train.csv",
    "pairs_per_second": {
        "cross_trainer": 159.0,
        "sentence-transformers, batch 16": 111.0,
        "sentence-transformers, batch 32": 108.0,
        "pipeline, batch 32": 89.0,
    },
}


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def neighbours(monkeypatch):
    """What a benchmark imports from beside it, whose folder has names that the tests have, too."""
    for name in ("rerank_defaults", "revisions"):
        monkeypatch.setitem(sys.modules, name, load(name))


def call(monkeypatch, name, *argv):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, argv)])
    load(name).main()


@pytest.fixture
def files(tmp_path):
    """A model and some pairs, as the benchmarks read them."""
    build_model().save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    rows = {"a": SENTENCES, "b": SENTENCES[::-1], "label": [index % 2 for index in range(12)]}
    Dataset.from_dict(rows).to_csv(tmp_path / "pairs.csv", index=False)
    return tmp_path


def test_training_speeds_are_written_as_printed(files, monkeypatch, capsys):
    argv = [files / "pairs.csv", "--model", files / "model", "--steps", 1, "--rounds", 1, "--batch_size", 4]
    call(monkeypatch, "training", *argv, "--json", files / "training.json")
    (record,) = json.loads((files / "training.json").read_text())
    assert (record["work"], record["data"]) == ("training", str(files / "pairs.csv"))
    assert list(record["pairs_per_second"]) == list(TRAINING["pairs_per_second"])
    printed = capsys.readouterr().out
    for name, speed in record["pairs_per_second"].items():
        row = next(line for line in printed.splitlines() if line.startswith(f"{name}  "))
        assert row.removeprefix(name).split()[1] == f"{speed:.0f}"
    assert len(load("chart").speeds(record)) == 3


def test_scoring_speeds_are_written_as_printed(files, monkeypatch, capsys):
    argv = [files / "pairs.csv", "--model", files / "model", "--rounds", 1, "--batch_sizes", 32, "--documents", 3]
    argv += ["--dtype", "float32", "int8", "--backends", "torch", "--threads", 1, "--cpu_time"]
    call(monkeypatch, "scoring", *argv, "--json", files / "scoring.json")
    records = json.loads((files / "scoring.json").read_text())
    assert [(record["work"], record["dtype"]) for record in records] == [("scoring", "float32"), ("scoring", "int8")]
    names = ["cross_trainer", "sentence-transformers, batch 32", "pipeline, batch 32"]
    assert [list(record["pairs_per_second"]) for record in records] == [names, names[:1]]
    printed = capsys.readouterr().out
    for part, record in zip(printed.split("\n\n")[1:], records, strict=True):
        assert record["data"] == str(files / "pairs.csv")
        assert part.startswith(f"{files / 'pairs.csv'}, {record['dtype']}: 12 pairs")
        for name, speed in record["pairs_per_second"].items():
            row = next(line for line in part.splitlines() if line.startswith(f"  {name}  "))
            assert row.strip().removeprefix(name).split()[0] == f"{speed:.1f}"
    assert printed.count("  best: cross_trainer is") == printed.count("one query, 3 documents") == 1
    assert len(load("chart").speeds(records[0])) == 3


def test_a_profile_of_scoring_names_the_operators(files, monkeypatch, capsys):
    argv = [files / "pairs.csv", "--model", files / "model", "--layers", 1, "--backends", "torch", "--profile"]
    call(monkeypatch, "scoring", *argv, "--dtype", "int8")
    (products,) = [line.split() for line in capsys.readouterr().out.splitlines() if "aten::_int_mm" in line]
    # Of one batch: key and value for all tokens of the layer, and four products for the first token.
    assert products[1:] == ["6", "calls", "aten::_int_mm"]


def test_all_score_alike_in_the_benchmark_of_scoring(files, monkeypatch):
    scoring = load("scoring")
    monkeypatch.setattr(sys, "argv", ["scoring.py", "pairs.csv", "--backends", "torch", "onnx", "--batch_sizes", "4"])
    options = scoring.parse_arguments()
    pairs = scoring.read_pairs(files / "pairs.csv", ["a", "b"], 12)
    runs = scoring.contestants(str(files / "model"), "float32", options)
    expected = runs.pop(scoring.OURS)(pairs)
    theirs = [f"sentence-transformers, {how}" for how in ("batch 4", "onnx, batch 4", "our onnx graph, batch 32")]
    assert set(runs) == {"cross_trainer, onnx", "pipeline, batch 32", *theirs}
    for name, run in runs.items():
        scores = [entry["score"] for entry in run(pairs)] if name.startswith("pipeline") else run(pairs)
        assert scores == pytest.approx(expected, abs=1e-4), name


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--device", "cuda"], "--device cuda: torch .* sees no GPU here"),
        (["--dtype", "int8", "--device", "meta"], "--dtype int8 is for CPUs, not for meta"),
        (["--backends", "openvino"], "--backends openvino isn't installed: it is in the extra export"),
    ],
)
def test_what_cant_be_measured_is_refused_by_name(argv, message, monkeypatch, capsys):
    scoring = load("scoring")
    monkeypatch.setattr(scoring.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(scoring.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["scoring.py", "pairs.csv", *argv])
    with pytest.raises(SystemExit):
        scoring.parse_arguments()
    assert re.search(message, capsys.readouterr().err)


def test_variants_are_compared_with_float32(files, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "scoring", load("scoring"))  # which lies beside it, and in the tests, too
    argv = [files / "pairs.csv", "--model", files / "model", "--rounds", 1, "--variants", "auto", "int8"]
    call(monkeypatch, "variants", *argv)
    header, *rows, chosen = capsys.readouterr().out.splitlines()
    assert header.split()[-2:] == ["Spearman", "distinct"]
    assert [row.split()[0] for row in rows] == ["float32", "auto", "int8"]
    assert rows[0].split()[-4:] == ["0.0e+00", "0.0e+00", "1.00000", "12"]
    assert chosen in {"auto is torch.float32", "auto is torch.bfloat16"}
    order, scores = load("variants").correlation, np.arange(8.0).reshape(4, 2)
    assert order(scores, scores) == pytest.approx(1)
    assert order(scores, scores * [1, -1]) == pytest.approx(-1)


def test_the_chart_compares_defaults():
    chart = load("chart")
    assert chart.speeds(TRAINING) == [58.4, 24.0, 25.0]
    assert chart.speeds(SCORING) == [159.0, 108.0, 89.0]
    without = {name: 1.0 for name in SCORING["pairs_per_second"] if not name.startswith("pipeline")}
    with pytest.raises(ValueError, match=r"scoring on trecqa/train.csv: 'pipeline, batch 32' wasn't measured"):
        chart.speeds({**SCORING, "pairs_per_second": without})


def test_the_chart_shows_the_speeds(tmp_path, monkeypatch):
    chart = load("chart")
    panels = chart.draw([TRAINING, SCORING]).axes
    assert [[bar.get_width() for bar in panel.patches] for panel in panels] == [
        [58.4, 24.0, 25.0],
        [159.0, 108.0, 89.0],
    ]
    for name, record in (("training", TRAINING), ("scoring", SCORING)):
        (tmp_path / f"{name}.json").write_text(json.dumps([record]))
    argv = [tmp_path / "training.json", tmp_path / "scoring.json"]
    for name in ("one.svg", "two.svg", "three.png"):
        call(monkeypatch, "chart", *argv, "-o", tmp_path / name)
    drawn = (tmp_path / "one.svg").read_text()
    for text in ("cross_trainer", "sentence-transformers", "58", "24", "159", "stsb/train.csv"):
        assert text in drawn
    assert (tmp_path / "two.svg").read_text() == drawn
    assert (tmp_path / "three.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("precision", [["--bf16"], []])
def test_training_on_the_cpu_uses_the_cpu(files, monkeypatch, precision):
    training, used, clock = load("training"), [], argparse.Namespace(step=0.5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # a machine that has a GPU as well
    monkeypatch.setattr(training, "run", lambda name, options, _: used.append((name, options)) or (clock, 1.0))
    monkeypatch.setattr(training, "report", lambda *_: {})
    argv = [files / "pairs.csv", "--model", files / "model", "--device", "cpu", "--steps", 1, "--rounds", 1, *precision]
    monkeypatch.setattr(sys, "argv", ["training.py", *map(str, argv)])
    training.main()
    for _, options in used:
        made = training.standard_arguments(options, "output")
        assert (made["use_cpu"], made["dataloader_pin_memory"], made["bf16"]) == (True, False, bool(precision))
    assert [name for name, _ in used] == [*training.CONTENDERS] * 2


@pytest.mark.parametrize("name", ["training", "gpu"])
def test_a_gpu_that_is_not_there_is_named(files, monkeypatch, capsys, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    own = [files / "pairs.csv", "--model", files, "--device", "cuda"] if name == "training" else ["--output", files]
    with pytest.raises(SystemExit):
        call(monkeypatch, name, *own)
    assert "torch sees no NVIDIA GPU" in capsys.readouterr().err


def test_sentence_transformers_without_padding_is_a_contender_where_it_can_run(files, monkeypatch):
    training = load("training")
    monkeypatch.setattr(training.importlib.util, "find_spec", lambda name: name == "flash_attn")
    cases = {("cuda", True, False): True, ("cuda", False, True): True, ("cuda", False, False): False}
    for (device, bf16, fp16), runs in {**cases, ("cpu", True, False): False}.items():
        options = argparse.Namespace(device=device, bf16=bf16, fp16=fp16)
        assert (training.UNPADDED in training.contenders(options)) == runs
    monkeypatch.undo()
    options = argparse.Namespace(model=str(files / "model"), dropout=False)
    encoder = CrossEncoder(modules=training.modules(options, attention="sdpa"), device="cpu")
    assert encoder.predict([("a dog", "a cat")]).shape == (1,)


def test_a_round_waits_for_the_gpu_at_its_ends_alone(files, monkeypatch):
    training, waits = load("training"), []
    monkeypatch.setattr(training, "wait_for", waits.append)
    argv = [files / "pairs.csv", "--model", files / "model", "--device", "cpu", "--steps", 3, "--rounds", 1]
    monkeypatch.setattr(sys, "argv", ["training.py", *map(str, argv), "--only", "Trainer"])
    training.main()
    assert waits == ["cpu"] * 4  # a warm-up and a round


def test_all_that_a_gpu_is_measured_by_is_one_table(tmp_path, monkeypatch, capsys):
    gpu = load("gpu")
    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    monkeypatch.setattr(gpu, "SIZES", {"modernbert-base": (gpu.SIZES["modernbert-base"][0], tiny)})
    monkeypatch.setattr(gpu.subprocess, "run", run_in_this_process)
    argv = ["--device", "cpu", "--models", *gpu.SIZES, "--parts", "training", "scoring", "--output", tmp_path]
    argv += ["--steps", 1, "--pairs", 8, "--rounds", 1, "--batch_size", 4, "--precision", "fp32"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *map(str, argv)])
    gpu.main()
    found, written = json.loads((tmp_path / "gpu.json").read_text()), (tmp_path / "gpu.md").read_text()
    assert written in capsys.readouterr().out
    assert written.startswith("Measured by `python recipes/benchmarks/gpu.py --device cpu --models modernbert-base ")
    for work in ("training", "scoring"):
        assert [record["model"] for record in found[work]] == list(gpu.SIZES)
        for record in found[work]:
            for name, speed in record["pairs_per_second"].items():
                assert f"| {record['model']} | {name} | {speed:.0f} |" in written
    first = found["training"][0]
    assert f"| {first['of_peak']['Trainer']:.0%} | {first['mebibytes']['Trainer']:.0f} |" in written


def test_failed_tests_of_a_gpu_are_named(monkeypatch):
    gpu = load("gpu")
    printed = "...F\nFAILED tests/gpu/test_scoring.py::test_a[cuda] - assert\n=== 1 failed, 3 passed in 2.10s ==="
    monkeypatch.setattr(gpu.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, printed, ""))
    found = gpu.run_tests()
    assert found["summary"] == "1 failed, 3 passed in 2.10s"
    assert found["failed"] == ["tests/gpu/test_scoring.py::test_a[cuda] - assert"]
    options = argparse.Namespace(precision="bf16", batch_size=4)
    assert "- failed: `tests/gpu/test_scoring.py::test_a[cuda]" in gpu.report({"machine": {}, "tests": found}, options)


def test_growth_is_measured_and_drawn(tmp_path, monkeypatch, capsys):
    sizes = {"rows": 20, "length": 4, "batch": 512, "processes": 1, "corpus": 10, "candidates": 200, "mining": 60}
    argv = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    argv += ["--only", *(kind for kind in sizes if kind not in {"batch", "processes"})]
    growth = load("growth")
    assert [len(text.split()) for text in growth.texts(50, 4)] == pytest.approx([4] * 50, abs=2)
    monkeypatch.setattr(growth, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    monkeypatch.setattr(sys, "argv", ["growth.py", *argv, "--json", str(tmp_path / "growth.json")])
    growth.main()
    records = json.loads((tmp_path / "growth.json").read_text())
    assert [record["kind"] for record in records] == argv[argv.index("--only") + 1 :]
    assert all(record["size"] == sizes[record["kind"]] for record in records)
    assert all(record["seconds"] > 0 and record["megabytes"] > 100 for record in records)
    assert len(capsys.readouterr().out.splitlines()) == len(records)
    titles = [axes.get_title() for axes in growth.draw(records).axes]
    assert titles == [growth.LABELS[record["kind"]] for record in records]


FAMILIES = [[f"{SENTENCES[at]} {word}" for word in ("red", "blue", "green", "grey", "pink")] for at in range(5)]


@pytest.fixture
def related(files):
    """Pairs of sentences in five families, as related as their places in the family are near."""
    rows = [(one, other) for family in FAMILIES for one, other in itertools.combinations(range(5), 2)]
    names = [family for family in FAMILIES for _ in range(10)]
    texts = {
        "a": [family[one] for family, (one, _) in zip(names, rows, strict=True)],
        "b": [family[other] for family, (_, other) in zip(names, rows, strict=True)],
        "score": [5.2 - (other - one) for one, other in rows],
    }
    Dataset.from_dict(texts).to_csv(files / "related.csv", index=False)
    return [str(files / "related.csv"), "a", "b", "score"]


def test_related_sentences_become_lists_and_families_stay_together(related):
    splits = load("rerank_defaults").related_lists(*related)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 15, "validation": 10}
    assert {row["query"] for row in splits["validation"]} == {*FAMILIES[0], *FAMILIES[1]}
    first = splits["validation"][0]
    assert first == {"query": FAMILIES[0][0], "documents": FAMILIES[0][1:], "labels": [2, 1, 0, 0]}
    texts = [{text for row in rows for text in (row["query"], *row["documents"])} for rows in splits.values()]
    assert not set.intersection(*texts)


def run_in_this_process(command, **_):
    """`subprocess.run` for a recipe, without loading everything again."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", command[1:])
        patch.syspath_prepend(str(Path(command[1]).parent))
        runpy.run_path(command[1], run_name="__main__")
    return subprocess.CompletedProcess(command, 0, printed.getvalue(), "")


def test_a_grid_of_runs_goes_on_where_it_was(related, files, monkeypatch, capsys):
    argv = ["--related", *related, "--model", files / "model", "--output", files / "runs.jsonl", "--changes"]
    argv += ["the defaults", "--loss LambdaLoss", "--arguments=--num_train_epochs 1 --use_cpu", "--seeds"]
    monkeypatch.setattr(subprocess, "run", run_in_this_process)
    call(monkeypatch, "rerank_defaults", *argv, 1)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", "no room"))
    capsys.readouterr()
    call(monkeypatch, "rerank_defaults", *argv, 1)
    runs = [json.loads(line) for line in (files / "runs.jsonl").read_text().splitlines()]
    assert [(run["change"], run["seed"]) for run in runs] == [("the defaults", 1), ("--loss LambdaLoss", 1)]
    assert all(0 < run[name] <= 1 for run in runs for name in ("map", "mrr@10", "ndcg@10"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split(" | ")[1:4] == ["the defaults", "1", f"{runs[0]['map']:.3f}"]
    with pytest.raises(SystemExit, match=r"--seed 2 .*\nno room"):
        call(monkeypatch, "rerank_defaults", *argv, 1, 2)


def test_a_table_of_runs_has_means_and_the_spread_of_one_run():
    shared = {"data": "trecqa", "arguments": "--bf16", "change": "--loss LambdaLoss", "mrr@10": 0.5, "ndcg@10": 0.25}
    table = load("rerank_defaults").table([{**shared, "seed": seed, "map": 0.7 + seed / 100} for seed in (1, 2, 3)])
    assert table.splitlines()[-1] == (
        "| trecqa `--bf16` | `--loss LambdaLoss` | 3 | 0.720 ± 0.010 | 0.500 ± 0.000 | 0.250 ± 0.000 |"
    )


def test_a_package_is_measured_beside_what_it_was_before(tmp_path):
    package = tmp_path / "cross_trainer"
    package.mkdir()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    for number in (1, 2):
        (package / "__init__.py").write_text("from cross_trainer.inner import NUMBER\n")
        (package / "inner.py").write_text(f"NUMBER = {number}\n")
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "--quiet", "--message", "A number"], check=True)
    revisions = load("revisions")
    assert [revisions.package_at(name, tmp_path).NUMBER for name in ("HEAD~1", "HEAD")] == [1, 2]
    with pytest.raises(SystemExit, match="git rev-parse --short --verify HEAD~2"):
        revisions.package_at("HEAD~2", tmp_path)


def test_labels_of_the_benchmark_of_training_are_numbers(tmp_path):
    rows = {"a": SENTENCES[:4], "b": SENTENCES[4:8], "label": ["yes", "no"] * 2, "grade": [0, 1, 2, 4]}
    Dataset.from_dict(rows).to_csv(tmp_path / "pairs.csv", index=False)
    read = load("training").read
    with pytest.raises(SystemExit, match="'label' holds names of classes"):
        read(str(tmp_path / "pairs.csv"), 1, 4)
    found, _ = read(str(tmp_path / "pairs.csv"), 1, 4, ["b", "a", "grade"])
    expected = dict(zip(SENTENCES[4:8], [0, 0.25, 0.5, 1], strict=True))
    grades = {row["a"]: row["label"] for row in found}  # of those that aren't held out
    assert len(grades) == 3
    assert grades == {text: expected[text] for text in grades}


@pytest.mark.parametrize(("name", "line"), [("training", "before, HEAD  "), ("scoring", "  before, HEAD  ")])
def test_speeds_of_another_revision_stand_in_the_table(files, monkeypatch, capsys, name, line):
    asked, module = [], load(name)
    monkeypatch.setattr(module, "package_at", lambda revision: asked.append(revision) or cross_trainer)
    short = {"training": "--batch_size 4 --steps 2 --only cross_trainer", "scoring": "--documents 0 --backends torch"}
    argv = [files / "pairs.csv", "--model", files / "model", "--rounds", 1, *short[name].split(), "--before", "HEAD"]
    monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
    module.main()
    assert asked == ["HEAD"]
    assert sum(printed.startswith(line) for printed in capsys.readouterr().out.splitlines()) == 1


@pytest.fixture
def tasks(files):
    """Folders of the tasks of quality.py, each with three first texts and four second ones for each."""
    texts = [(one, other) for one in SENTENCES[:3] for other in SENTENCES[4:8]]
    frames = {
        "trecqa": {"label": [place % 2 for place in range(12)]},
        "sick": {"label": [["neutral", "entailment", "contradiction"][place % 3] for place in range(12)]},
        "stsb": {"score": [place % 6 for place in range(12)]},
    }
    names = {"trecqa": ("query", "answer"), "sick": ("premise", "hypothesis"), "stsb": ("sentence1", "sentence2")}
    for task, labels in frames.items():
        (files / task).mkdir()
        columns = dict(zip(names[task], map(list, zip(*texts, strict=True)), strict=True))
        for split in ("train", "validation"):
            Dataset.from_dict(columns | labels).to_csv(files / task / f"{split}.csv", index=False)
    build_model().bert.save_pretrained(files / "base")
    build_tokenizer().save_pretrained(files / "base")
    return files


def test_rows_that_are_kept_aside_share_no_first_text(tasks):
    quality = load("quality")
    for name in quality.TASKS:
        parts = quality.load_rows(name, str(tasks / name))
        firsts = {part: {row["a"] for row in rows} for part, rows in parts.items()}
        assert not firsts["train"] & firsts["test"]
        assert len(firsts["test"]) == 1
        assert len(parts["train"]) + len(parts["test"]) == len(parts["validation"]) == 12
    assert len(quality.load_rows("stsb", str(tasks / "stsb"), 5)["train"]) == 5


def test_both_libraries_are_trained_and_compared(tasks, monkeypatch, capsys):
    quality = load("quality")
    argv = ["--model", tasks / "base", "--batch_size", 4, "--use_cpu", "--output", tasks / "quality.jsonl", "--seeds"]
    folders = [tasks / name for name in quality.TASKS]
    ways = ["--ways", quality.THEIRS, quality.OURS]
    call(monkeypatch, "quality", *folders, *ways, *argv, 1, 2)
    runs = quality.read_runs(tasks / "quality.jsonl")
    assert len(runs) == 12
    for run in runs:
        assert len(run["epochs"]) == quality.TASKS[run["data"]].epochs
        assert ("test, both" in run["averaged"]) == (run["data"] == "stsb")
    capsys.readouterr()
    call(monkeypatch, "quality", *folders, *ways, *argv, 1, 2)  # what is there isn't done again
    assert len(quality.read_runs(tasks / "quality.jsonl")) == 12
    assert capsys.readouterr().out.count(f"| {quality.OURS} |") == 3 * 4 + 3
    call(monkeypatch, "quality", tasks / "trecqa", "--ways", "ListNet and pointwise", *argv, 1)
    call(
        monkeypatch,
        "quality",
        tasks / "trecqa",
        tasks / "sick",
        "--ways",
        "similarity first",
        quality.VECTORS,
        "3 teachers, near texts",
        "no dropout",
        *argv,
        1,
    )
    assert [(run["data"], run["way"]) for run in quality.read_runs(tasks / "quality.jsonl")[12:]] == [
        ("trecqa", "ListNet and pointwise"),
        ("trecqa", "similarity first"),
        ("trecqa", quality.VECTORS),
        ("trecqa", "3 teachers, near texts"),
        ("trecqa", "no dropout"),
        ("sick", "similarity first"),
        ("sick", "3 teachers, near texts"),
        ("sick", "no dropout"),
    ]


@pytest.mark.parametrize("labels", [[0.0, 0.3, 1.0], [2, 0, 1]])
def test_r_drop_is_the_loss_of_both_passes_and_their_divergence(tmp_path, labels):
    quality = load("quality")
    binary = max(labels) == 1
    model = build_model(dropout=0.3, num_labels=1 if binary else 3).train()
    rows = Dataset.from_dict({"a": SENTENCES[:3], "b": SENTENCES[3:6], "label": labels})
    collator = PairCollator(build_tokenizer())
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    trainer = quality.RDropTrainer(model, arguments, train_dataset=rows, data_collator=collator)
    batch = collator(list(rows))
    given = batch["labels"]
    torch.manual_seed(0)
    found = trainer.compute_loss(model, dict(batch))
    torch.manual_seed(0)
    logits = model(**{name: torch.cat([part, part]) for name, part in batch.items() if name != "labels"}).logits
    chances = torch.cat([logits.sigmoid(), 1 - logits.sigmoid()], 1) if binary else logits.softmax(1)
    p, q = chances.double().chunk(2)
    divergence = ((p * (p / q).log()).sum(1) + (q * (q / p).log()).sum(1)).mean() / 2
    twice = torch.cat([given, given])
    function = nn.functional.binary_cross_entropy_with_logits if binary else nn.functional.cross_entropy
    expected = function(logits.squeeze(1), twice) + divergence
    assert divergence > 1e-4
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_differences_are_taken_seed_by_seed():
    quality = load("quality")
    runs = [
        {
            "data": "sick",
            "rows": None,
            "way": way,
            "seed": seed,
            "epochs": [{"validation": 0.5, "test": value}],
            "averaged": {"validation": 0.5, "test": value},
        }
        for way, values in ((quality.THEIRS, (0.6, 0.7, 0.8)), (quality.OURS, (0.61, 0.72, 0.83)))
        for seed, value in enumerate(values)
    ]
    line = next(line for line in quality.table(runs).splitlines() if f"{quality.OURS} | last" in line)
    half = stats.t.ppf(0.975, 2) * 0.01 / 3**0.5
    p_value = stats.ttest_rel((0.61, 0.72, 0.83), (0.6, 0.7, 0.8)).pvalue
    assert line.endswith(f"| 0.7200 ± 0.2733 | +0.0200 ± {half:.4f} | {p_value:.3f} |")
