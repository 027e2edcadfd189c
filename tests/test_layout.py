"""The order of the modules: each imports only from those above it, so the package can be read top to bottom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import cross_trainer

PACKAGE = Path(cross_trainer.__file__).parent
ORDER = [
    "errors",
    "columns",
    "files",
    "grouping",
    "collator",
    "losses",
    "trec",
    "evaluation",
    "rankings",
    "evaluate_modules",
    "metrics",
    "dropout",
    "attention",
    "padding_free",
    "token_budget",
    "model_card",
    "mining",
    "defaults",
    "sharding",
    "trainer",
    "loading",
    "scoring",
    "fitting",
    "cross_encoder",
    "recipe",
    "ranking_recipe",
    "tables",
    "partial",
    "score_file",
    "rank_files",
    "general_recipe",
    "cli",
]


def imported(module: str) -> set[str]:
    """Our modules that a module imports, wherever in it the import stands."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cross_trainer."):
            names.add(node.module.split(".")[1])
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("cross_trainer.")}
    return names


def test_every_module_has_its_place():
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == set(ORDER)


def test_a_module_imports_from_those_above_it():
    for place, module in enumerate(ORDER):
        below = imported(module) - set(ORDER[:place])
        assert not below, f"{module}.py imports {below} from below itself"


def test_public_names_are_there():
    for name in cross_trainer.__all__:
        assert getattr(cross_trainer, name).__module__.startswith("cross_trainer.")
    assert set(cross_trainer.__all__) <= set(dir(cross_trainer))


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, cross_trainer; print(sorted({'torch', 'transformers', 'datasets', 'scipy', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
