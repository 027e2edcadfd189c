"""The README's Python runs as printed, on a tiny model instead of a pretrained one, and its commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from conftest import build_model, build_tokenizer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_python_blocks_run_one_after_the_other(tmp_path, monkeypatch):
    build_model().bert.save_pretrained(tmp_path / "pretrained")
    build_tokenizer().save_pretrained(tmp_path / "pretrained")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks("python"):
        code = block.replace('"distilroberta-base"', '"pretrained"').replace("max_length=128", "max_length=64")
        exec(compile(code, "README.md", "exec"), names)
    assert names["logits"].shape == (2, 1)


def test_commands_of_the_two_first_blocks_are_what_ci_runs():
    for name in ("demo", "tests"):
        assert re.search(rf"^<!-- {name} -->\n```bash\n[^\n]+\n```", README, re.MULTILINE)
    assert "block demo" in (ROOT / ".ci" / "run").read_text()
    assert "block tests" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("block", [line for block in blocks("bash") for line in block.splitlines()])
def test_scripts_and_options_of_a_command_exist(block):
    for command in block.split("&&"):
        words = shlex.split(command)
        scripts = [word for word in words if word.startswith("recipes/")]
        for script in scripts:
            assert (ROOT / script).is_file()


def test_every_file_of_the_package_is_in_the_tree():
    tree = blocks("text")[-1]
    for path in [*(ROOT / "cross_trainer").glob("*.py"), *(ROOT / "recipes").rglob("*.py")]:
        assert re.search(rf"\b{re.escape(path.name)}\b", tree), f"{path.name} is missing from the README's file tree"
