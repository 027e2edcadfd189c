"""The order of the rooms, and of the files in a room: whoever reads from the top needs nothing that comes later."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import Trainer

import cross_trainer

PACKAGE = Path(cross_trainer.__file__).parent
HALL = ["errors", "disk", "internals", "spellings"]
ROOMS = {
    "data": [
        "columns",
        "survey",
        "templates",
        "pairs",
        "fingerprints",
        "items",
        "mixing",
        "collator",
        "labelled",
        "grouping",
        "tables",
        "splits",
        "texts",
        "trec",
        "retrieval",
        "similarity",
        "sources",
        "collections",
    ],
    "metrics": [
        "report",
        "pairs",
        "rankings",
        "runs",
        "calibration",
        "evaluate_modules",
        "figures",
        "plots",
        "views",
        "page",
    ],
    "saved": [
        "naming",
        "chat",
        "folder",
        "adapters",
        "modular",
        "rerankers",
        "activation",
        "reading",
        "st_files",
        "loading",
        "calibration",
        "export",
        "readme",
        "usage",
        "card",
        "hub",
    ],
    "execution": [
        "dropout",
        "transfer",
        "blocks",
        "attention",
        "first_token",
        "padding_free",
        "embeddings",
        "token_budget",
        "view",
        "linears",
        "shown",
    ],
    "training": [
        "losses",
        "heads",
        "rates",
        "plan",
        "several",
        "sharding",
        "parts",
        "adapting",
        "calibrating",
        "checkpoints",
        "facts",
        "hub",
        "saving",
        "trainer",
        "fitting",
    ],
    "scoring": [
        "engine",
        "exported",
        "prepared",
        "precision",
        "ranking",
        "saving",
        "cross_encoder",
        "batches",
        "choosing",
        "mining",
    ],
    "commands": [
        "arguments",
        "processes",
        "partial",
        "score",
        "template",
        "rank",
        "mine",
        "train",
        "evaluate",
        "collection",
        "report",
        "calibrate",
        "export",
        "cli",
    ],
}
"""Each file imports from those before it in its own room, and from the rooms before its own."""

SIDE_BY_SIDE = ("data", "metrics", "saved")
"""Rooms that don't know one another."""

MODULES = [f"{room}.{name}" for room, names in ROOMS.items() for name in names]


def imported(module: str) -> set[str]:
    """Our modules that a module imports, wherever in it the import stands."""
    path = PACKAGE / f"{module.replace('.', '/')}.py"
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cross_trainer"):
            base = node.module.removeprefix("cross_trainer").removeprefix(".")
            names |= {f"{base}.{alias.name}".strip(".") if base in {"", *ROOMS} else base for alias in node.names}
        if isinstance(node, ast.Import):
            names |= {
                alias.name.removeprefix("cross_trainer.") for alias in node.names if "cross_trainer." in alias.name
            }
    return names


def test_every_module_has_its_place():
    found = {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    assert {name for name in found if not name.split(".")[-1].startswith("__")} == {*HALL, *MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_those_before_it(module):
    room = module.split(".")[0]
    before = [
        name for name in MODULES[: MODULES.index(module)] if name.split(".")[0] == room or room not in SIDE_BY_SIDE
    ]
    assert imported(module) <= {*HALL, *before}


@pytest.mark.parametrize("module", MODULES)
def test_private_methods_of_the_trainer_are_overridden_in_one_file(module):
    private = {name for name in vars(Trainer) if name.startswith("_") and not name.startswith("__")}
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any("Trainer" in ast.unparse(base) for base in node.bases):
            defined = {entry.name for entry in node.body if isinstance(entry, ast.FunctionDef)}
            assert not (defined & private) or "Callback" in ast.unparse(node.bases[0])


@pytest.mark.parametrize("name", cross_trainer.__all__)
def test_public_names_are_there(name):
    assert getattr(cross_trainer, name).__module__.startswith("cross_trainer.")
    assert name in dir(cross_trainer)


def test_importing_the_package_loads_nothing_heavy():
    heavy = "{'torch', 'transformers', 'datasets', 'scipy', 'numpy'}"
    code = f"import sys, cross_trainer; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
