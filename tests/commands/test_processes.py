"""Commands in two processes write what one process writes, killed and gone on with too."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from commands import make_rows, save, write_collection, write_table
from conftest import SENTENCES


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"))


SCRIPT = """
import os, sys
from pathlib import Path
import torch
from accelerate.utils import gather_object
from transformers import BertConfig
from cross_trainer.commands import cli, partial
from cross_trainer.scoring import precision

folder, model, die = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
process = int(os.environ.get("RANK", 0))
assert int(os.environ.get("WORLD_SIZE", 1)) == (1 if folder.name == "one" else 2)
save = partial.PartialScores.save
precision.seconds = lambda *_: (2.0, 1.0) if process else (1.0, 2.0)
decided = str(precision.faster_dtype(BertConfig(), torch.device("cpu")))
assert len(set(gather_object([decided]))) == 1, decided

def save_or_die(self, *window):
    save(self, *window)
    if die and process == 1:
        os._exit(9)

partial.PartialScores.save = save_or_die
data = folder.parent
for argv in (
    ["score", data / "pairs.csv", "-o", folder / "scored.parquet", "--window", "7"],
    ["score", data / "pairs.csv", "-o", folder / "both.csv", "--window", "9", "--symmetric"],
    ["rank", data / "queries.csv", data / "corpus.csv", "-o", folder / "ranked.trec", "--window", "11"],
    ["evaluate", model, data / "labelled.csv", "-o", folder / "metrics.json", "--batch-size", "5"],
    ["evaluate", model, "--collection", data / "kitchen", "--run", folder / "run.trec", "-o", folder / "judged.json"],
    ["mine", data / "positives.csv", "-o", folder / "mined.csv", "--num-negatives", "2", "--max-score", "0.9"],
):
    if argv[0] != "evaluate":
        argv += ["--model", model]
    assert not cli.app(list(map(str, argv)), standalone_mode=False), argv
"""


def start(processes: int, *argv: object) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"]
    command = [sys.executable, *(launch if processes > 1 else []), *map(str, argv)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def test_two_processes_write_what_one_does(tmp_path, model):
    script = tmp_path / "commands.py"
    script.write_text(SCRIPT)
    write_table(tmp_path / "pairs.csv", make_rows(60))
    labelled = [{"a": row["first"], "b": row["second"], "label": index % 2} for index, row in enumerate(make_rows(30))]
    write_table(tmp_path / "labelled.csv", labelled)
    texts = [{"id": index, "text": text} for index, text in enumerate(SENTENCES)]
    write_collection(tmp_path / "kitchen")
    write_table(tmp_path / "queries.csv", texts[:5])
    write_table(tmp_path / "corpus.csv", texts)
    write_table(
        tmp_path / "positives.csv", [{"query": a, "answer": b} for a, b in zip(SENTENCES, SENTENCES[::-1], strict=True)]
    )
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = start(1, script, tmp_path / "one", model)
    assert one.returncode == 0, one.stderr
    killed = start(2, script, tmp_path / "two", model, "die")
    assert killed.returncode
    left = tmp_path / "two" / "scored.parquet.partial"
    assert 0 < len(list(left.glob("scores-*.npy"))) < 9
    two = start(2, script, tmp_path / "two", model)
    assert two.returncode == 0, two.stderr
    assert "Continuing: " in two.stderr
    assert two.stderr.count("Wrote ") == one.stderr.count("Wrote ")  # said once
    for path in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes(), path.name
    assert len(list((tmp_path / "two").iterdir())) == len(list((tmp_path / "one").iterdir())) == 7


def test_an_error_ends_all_processes_and_is_said_once(tmp_path, model):
    table = write_table(tmp_path / "pairs.jsonl", [*make_rows(3), {"first": "x"}])
    done = start(2, "-m", "cross_trainer", "score", table, "-o", tmp_path / "out.csv", "-m", model)
    assert done.returncode
    assert done.stderr.count("error: ") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]
