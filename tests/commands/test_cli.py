"""The command line: options, refusals in one line, exit codes, help, and that nothing is replaced unasked."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import typer
from commands import error, invoke, labelled, make_rows, run, save, stop_after, write_table
from datasets import Dataset
from transformers import TrainingArguments

import cross_trainer
from cross_trainer.commands import cli
from cross_trainer.commands.arguments import parse_arguments
from cross_trainer.commands.cli import app, main
from cross_trainer.commands.train import TrainArguments
from cross_trainer.scoring.cross_encoder import CrossEncoder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"))


def test_the_options_of_the_model_arrive(tmp_path, model, monkeypatch):
    seen = {}

    class Spy(CrossEncoder):
        def __init__(self, name, **options):
            seen.update(options, name=name)
            super().__init__(
                name, **{key: value for key, value in options.items() if key not in {"revision", "trust_remote_code"}}
            )

        def score_windows(self, rows, window, **options):
            seen["window"] = window
            return super().score_windows(rows, window, **options)

    monkeypatch.setattr("cross_trainer.scoring.cross_encoder.CrossEncoder", Spy)
    options = {
        "max_length": 16,
        "device": "cpu",
        "dtype": "float32",
        "max_query_length": 9,
        "template": "{query} {document}",
        "max_tokens": 99,
        "quantize": "int8",
        "backend": "torch",
        "revision": "r1",
    }
    others = {"name": model, "trust_remote_code": True, "file_name": None, "instruction": None, "tokens": None}
    argv = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    write_table(tmp_path / "in.csv", make_rows(3))
    run(
        "score",
        tmp_path / "in.csv",
        "-o",
        tmp_path / "out.csv",
        "-m",
        model,
        *argv,
        "--trust-remote-code",
        "--window",
        "2",
    )
    assert seen == {**options, **others, "window": 2}
    queries = write_table(tmp_path / "q.csv", [{"id": "q", "text": "a"}])
    seen.clear()
    run(
        "rank",
        queries,
        queries,
        "-o",
        tmp_path / "out.trec",
        "-m",
        model,
        *argv,
        "--trust-remote-code",
        "--window",
        "3",
    )
    assert seen == {**options, **others, "window": 3}


def test_no_output_is_replaced_unasked(tmp_path, model, monkeypatch):
    for name in ("mine.load_split", "evaluate.load_split", "rank.TextStore", "score.load_encoder"):
        monkeypatch.setattr(f"cross_trainer.commands.{name}", None)
    source, output = write_table(tmp_path / "in.csv", make_rows(3)), tmp_path / "out.jsonl"
    output.write_text("a thesis")
    for argv in (
        ["score", source, "-m", model],
        ["rank", source, source, "-m", model],
        ["mine", source],
        ["evaluate", model, source],
    ):
        told = error(*argv, "-o", output)
        assert told == f"error: {output} exists. Pass --overwrite to replace it, or name another output."
    assert output.read_text() == "a thesis"


def test_outputs_are_replaced_when_asked(tmp_path, model):
    source, output = tmp_path / "in.csv", tmp_path / "out.jsonl"
    Dataset.from_list(labelled()).to_csv(source, index=False)
    queries = write_table(tmp_path / "queries.csv", [{"id": "q", "text": "a"}])
    for argv in (
        ["rank", queries, queries, "-m", model],
        ["mine", source, "--num-negatives", 1],
        ["evaluate", model, source],
    ):
        output.write_text("a thesis")
        run(*argv, "-o", output, "--overwrite")
        assert "thesis" not in output.read_text()


# -- exit codes --------------------------------------------------------------------------------------------------------


def test_control_c_says_how_to_go_on(tmp_path, model, monkeypatch):
    source = write_table(tmp_path / "in.csv", make_rows(20))
    argv = ["score", source, "-o", tmp_path / "out.csv", "-m", model, "--window", 5]
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt)
        assert "interrupted. Run the same command again: it continues" in run(*argv, code=130).stderr
    run(*argv)


def test_what_nobody_expected_keeps_its_traceback(tmp_path, model, monkeypatch):
    source = write_table(tmp_path / "in.csv", make_rows(2))
    for exception in (RuntimeError("odd"), OSError("of no file")):

        def fail(*_, exception=exception, **__):
            raise exception

        monkeypatch.setattr(cli, "score_file", fail)
        result = invoke("score", source, "-o", tmp_path / "out.csv", "-m", model)
        assert (result.exit_code, result.exception) == (1, exception)


def test_main_ends_with_the_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["cross-trainer", "score", str(tmp_path / "no.csv"), "-o", str(tmp_path / "o.csv"), "-m", "m"]
    )
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err == f"error: {tmp_path / 'no.csv'}: No such file or directory\n"
    monkeypatch.setattr(sys, "argv", ["cross-trainer", "--version"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert capsys.readouterr().out == f"cross-trainer {cross_trainer.__version__}\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-m", "/no/where"], "'/no/where' is a path, but there is no such folder"),
        (["-m", "."], "can't be loaded from a folder or from the Hub: "),
        (["--device", "abacus"], "--device abacus: "),
        (["--dtype", "int7"], "dtype='int7'"),
        (["--quantize", "int4"], "quantize='int4'"),
        (["--max-length", "9999"], "positions for 1 to 64"),
        (["--max-tokens", "0"], "max_tokens=0"),
    ],
)
def test_a_model_that_cannot_be_had_is_one_line(tmp_path, model, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "in.csv", make_rows(2))
    assert message in error("score", "in.csv", "-o", "out.csv", "-m", model, *options)
    assert not list(tmp_path.glob("out*"))


def test_without_the_hub_a_model_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_table(tmp_path / "in.csv", make_rows(2))
    told = error("score", tmp_path / "in.csv", "-o", tmp_path / "out.csv", "-m", "nobody/has-this")
    assert "'nobody/has-this' can't be loaded from a folder or from the Hub" in told


HELP = """
import sys
from cross_trainer.commands.cli import app
try:
    app(["--help"])
except SystemExit:
    print(sorted({"torch", "transformers", "datasets", "numpy", "pyarrow"} & set(sys.modules)))
"""


def test_help_is_enough_and_needs_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for command in ("score", "rank", "train", "evaluate", "mine"):
        assert f"  {command} " in done.stdout
    for command in ("score", "rank", "evaluate", "report", "mine"):
        told = run(command, "--help").stdout
        assert f"  Example:\n    cross-trainer {command} " in told
        assert "[required]" in told
    version = [sys.executable, "-m", "cross_trainer", "--version"]
    module = subprocess.run(version, capture_output=True, text=True, check=True)
    assert module.stdout == f"cross-trainer {cross_trainer.__version__}\n"


# -- spelling ----------------------------------------------------------------------------------------------------------


def flags_of(command):
    return [name for option in typer.main.get_command(app).commands[command].params for name in option.opts]


@pytest.mark.parametrize("command", ["score", "rank", "evaluate", "report", "mine"])
def test_flags_have_dashes_or_underscores(command):
    long = [name for name in flags_of(command) if name.startswith("--") and "-" in name.removeprefix("--")]
    assert len(long) >= 5
    for name in long:
        spellings = (name, f"--{name.removeprefix('--').replace('-', '_')}")
        arguments = ["x"] if command == "mine" else ["x", "y"]
        told = [invoke(command, *arguments, spelling).stderr for spelling in spellings]
        assert "No such option" not in told[0]
        assert told[0] == told[1]


def test_flags_of_both_spellings_do_the_same(tmp_path, model):
    source = write_table(tmp_path / "in.csv", make_rows(5))
    argv = ["score", source, "-m", model]
    run(*argv, "-o", tmp_path / "dashes.csv", "--text-columns", "second", "first", "--score-column", "my-score_x")
    run(*argv, "-o", tmp_path / "underscores.csv", "--text_columns", "second", "first", "--score_column=my-score_x")
    assert (tmp_path / "dashes.csv").read_bytes() == (tmp_path / "underscores.csv").read_bytes()
    assert "my-score_x" in (tmp_path / "dashes.csv").read_text()


def test_arguments_of_training_have_dashes_or_underscores():
    values = {
        "dataset_config": ["c"],
        "text_columns": ["a", "b"],
        "label_column": ["l"],
        "max_length": ["32"],
        "max_query_length": ["9"],
        "max_tokens": ["99"],
        "padding_free": ["false"],
        "in_batch_negatives": ["2"],
        "dry_run": [],
        "model_revision": ["main"],
        "trust_remote_code": [],
        "merge_adapters": [],
        "card_examples": ["2"],
        "lora_r": ["4"],
        "lora_alpha": ["9"],
        "lora_dropout": ["0.1"],
        "lora_target_modules": ["query"],
        "layer_decay": ["0.9"],
        "prior_bias": ["false"],
    }
    assert {entry.name for entry in dataclasses.fields(TrainArguments) if "_" in entry.name} == set(values)
    for name, words in values.items():
        one, other = (
            parse_arguments(TrainArguments, {}, ["--output_dir", "x", "--use-cpu", f"--{spelling}", *words])[0]
            for spelling in (name, name.replace("_", "-"))
        )
        assert one == other
        assert getattr(one, name) != getattr(TrainArguments(), name)


def test_every_training_argument_has_both_spellings():
    told = run("train", "--help").stdout
    for entry in dataclasses.fields(TrainingArguments):
        if entry.init:
            assert f"--{entry.name.replace('_', '-')}" in told
            assert f"--{entry.name}" in told
