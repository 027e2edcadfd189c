"""This package as it was at another revision of its repository, to be measured beside what is installed."""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from types import ModuleType

NAME = "cross_trainer"


def package_at(revision: str, repository: str | Path = Path(__file__).parent) -> ModuleType:
    """The package at a revision, imported by another name: everything that it calls by its own is renamed with it.

    Args:
        revision: A commit, branch or tag.
        repository: A folder of a working copy.

    Raises:
        SystemExit: There is no such revision.
    """
    root = _git(repository, "rev-parse", "--show-toplevel").decode().strip()
    found = _git(root, "rev-parse", "--short", "--verify", f"{revision}^{{commit}}").decode().strip()
    name, files = f"{NAME}_{found}", tempfile.TemporaryDirectory()
    with zipfile.ZipFile(io.BytesIO(_git(root, "archive", "--format=zip", found, NAME))) as archive:
        archive.extractall(files.name)
    for path in Path(files.name).rglob("*.py"):
        path.write_text(path.read_text(encoding="utf-8").replace(NAME, name), encoding="utf-8")
    Path(files.name, NAME).rename(Path(files.name, name))
    sys.path.insert(0, files.name)
    package = importlib.import_module(name)
    package.__dict__["_files"] = files  # they are there as long as the package
    return package


def _git(folder: str | Path, *command: str) -> bytes:
    done = subprocess.run(["git", "-C", folder, *command], capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"git {' '.join(command)}: {done.stderr.decode().strip()}")
    return done.stdout
