"""The guides' Python runs as printed, on a tiny model instead of a pretrained one, and their commands can be typed."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import build_model, build_tokenizer
from transformers import TrainingArguments
from typer.main import get_command

from cross_trainer.commands.arguments import RecipeArguments
from cross_trainer.commands.cli import app
from cross_trainer.commands.train import TrainArguments
from cross_trainer.data.columns import LABEL_NAMES

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "recipes").glob("*.md"))
COMMON = {entry.name for kind in (TrainingArguments, RecipeArguments) for entry in fields(kind)}


def blocks(guide, language):
    return re.findall(rf"^```{language}\n(.*?)^```", guide.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands():
    for guide in GUIDES:
        text = guide.read_text(encoding="utf-8")
        typed = [part for block in blocks(guide, "bash") for line in block.splitlines() for part in line.split("&&")]
        inline = re.findall(r"`((?:python recipes|cross-trainer )[^`]*)`", text)
        yield from (pytest.param(command.strip(), id=f"{guide.stem}: {command.strip()[:60]}") for command in typed)
        yield from (pytest.param(command, id=f"{guide.stem}: {command[:60]}") for command in inline)


def test_there_is_a_guide_for_each_subject():
    assert [guide.stem for guide in GUIDES] == [
        "calibration",
        "data",
        "figures",
        "migrating",
        "rankings",
        "scale",
        "serving",
    ]


@pytest.mark.parametrize("guide", [guide for guide in GUIDES if blocks(guide, "python")], ids=lambda guide: guide.stem)
def test_python_blocks_run_one_after_the_other(guide, tmp_path, monkeypatch):
    build_model().bert.save_pretrained(tmp_path / "pretrained")
    build_tokenizer().save_pretrained(tmp_path / "pretrained")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": guide.stem}
    for block in blocks(guide, "python"):
        code = block.replace('"distilroberta-base"', '"pretrained"').replace("max_length=128", "max_length=64")
        exec(compile(code, guide.name, "exec"), names)


@pytest.mark.parametrize("command", list(commands()))
def test_scripts_and_options_of_a_command_exist(command):
    words = shlex.split(command)
    flags = {word.removeprefix("--").replace("-", "_") for word in words if word.startswith("--")}
    script = next((ROOT / word for word in words if word.startswith("recipes/")), None)
    if script is not None:
        files = [script, *(ROOT / "recipes" / f"{name}.py" for name in ("rankings", "demo"))]
        sources = "".join(path.read_text(encoding="utf-8") for path in files)
        assert all(flag in COMMON or re.search(rf'^    {flag}: |"--{flag}"', sources, re.MULTILINE) for flag in flags)
    if words[0] == "cross-trainer" and len(words) > 1:
        known = {parameter.name for parameter in get_command(app).commands[words[1]].params}
        trained = {entry.name for entry in fields(TrainArguments)} | COMMON
        assert flags <= (trained if words[1] == "train" else known)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_links_lead_to_files(guide):
    for link in re.findall(r"\]\(([^)#:]+)\)", guide.read_text(encoding="utf-8")):
        assert (guide.parent / link).exists()


def test_the_names_of_labels_are_listed():
    text = (ROOT / "recipes" / "data.md").read_text(encoding="utf-8")
    assert [name for name in LABEL_NAMES if f"`{name}`" not in text] == []
