"""The README's Python prints what it shows, its commands exist, and CONTRIBUTING.md's tree names every file."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from cross_trainer.commands.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_it_is_read_in_two_minutes():
    assert len(README.splitlines()) <= 200


def test_the_python_block_prints_what_is_shown(tmp_path, monkeypatch, capsys):
    (code,), (shown,) = blocks("python"), blocks("text")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    plan = shown[: shown.index("\n)\n")]
    assert plan in printed
    scores, expected = (
        [float(number) for number in re.findall(r"[0-9.]+", text.splitlines()[-1])] for text in (printed, shown)
    )
    assert scores == pytest.approx(expected, abs=0.1)  # other processors round otherwise, 20 times over


def test_the_lowest_versions_declared_are_those_that_are_tested():
    """torch excepted, of which CI has one build without CUDA."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    groups = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    pins = dict(line.lower().split("==") for line in (ROOT / ".ci" / "lowest.txt").read_text().splitlines())
    declared = re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(groups), re.MULTILINE)
    assert len(declared) > 20
    for name, floor in declared:
        pin = pins[name.lower().replace("_", "-")].split("+")[0]
        parts = [int(part) for part in floor.split(".")]
        assert name == "torch" or [int(part) for part in pin.split(".")][: len(parts)] == parts, (name, floor, pin)


def test_commands_of_the_two_blocks_are_what_ci_runs():
    for name in ("demo", "tests"):
        assert re.search(rf"^<!-- {name} -->\n```bash\n[^\n]+\n```", README, re.MULTILINE)
        assert f"block {name}" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("line", [line for block in blocks("bash") for line in block.splitlines()])
def test_scripts_and_commands_exist(line):
    for command in line.split("&&"):
        words = shlex.split(command)
        for script in (word for word in words if word.startswith("recipes/")):
            assert (ROOT / script).is_file()
        if words[0] == "cross-trainer":
            assert words[1] in get_command(app).commands


def test_links_lead_to_files():
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link


def test_every_file_is_in_the_tree():
    tree = blocks("text", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))[-1]
    for path in [*(ROOT / "cross_trainer").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")]:
        if not path.name.startswith("__"):
            assert re.search(rf"\b{re.escape(path.name)}\b", tree), f"{path.name} is missing from the tree"
