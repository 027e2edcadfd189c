"""What the tests of the command line share: saved models, tables, and the call of a command."""

from __future__ import annotations

import json
import logging
import random

import numpy as np
import pyarrow as pa
from conftest import SENTENCES, build_model, build_tokenizer
from pyarrow import parquet
from typer.testing import CliRunner

from cross_trainer.commands.cli import app
from cross_trainer.commands.partial import PartialScores
from cross_trainer.data import tables
from cross_trainer.data.tables import read_rows
from cross_trainer.saved.folder import describe_scores, name_labels
from cross_trainer.scoring.cross_encoder import CrossEncoder

HEADS = {1: "sigmoid", 3: "softmax"}
EXTRAS = ["\n", "a, b", 'say "hi"', "漢字 🎸", "NA", "007", ""]


def save(folder, num_labels=1, seed=0):
    model = build_model(num_labels, seed=seed)
    describe_scores(model.config, HEADS[num_labels])
    if num_labels == 3:
        name_labels(model.config, ["no", "maybe", "yes"])
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


def invoke(*argv):
    """The result of a command, whatever it is; the levels of the loggers are as before."""
    try:
        return CliRunner().invoke(app, [str(entry) for entry in argv])
    finally:
        for name in ("cross_trainer", "cross_trainer.data.columns", "cross_trainer.training.trainer"):
            logging.getLogger(name).setLevel(logging.NOTSET)


def run(*argv, code=0):
    """The result of a command, which ends with that code; an exception that isn't ours goes on."""
    result = invoke(*argv)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    if code == 2:
        assert result.stderr.splitlines()[-1].startswith("error: ")
    return result


def error(*argv):
    return run(*argv, code=2).stderr.splitlines()[-1]


def make_rows(count, seed=0):
    draw = random.Random(seed)
    return [
        {
            "id": f"{index:04}",
            "first": " ".join(draw.choices(SENTENCES, k=draw.randint(1, 3))),
            "second": draw.choice(SENTENCES) + draw.choice(["", "", " — ü"]),
            "extra": EXTRAS[index % len(EXTRAS)],
        }
        for index in range(count)
    ]


def write_table(path, rows):
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
        return path
    with tables.open_writer(path, tables.Format.of(path), list(rows[0])) as add:
        for row in rows:
            add(row)
    return path


def expected(model, rows, **options):
    return CrossEncoder(model).predict(
        [(row["first"], row["second"]) for row in rows], show_progress_bar=False, **options
    )


def scores_in(path, names=("score",)):
    scores = np.array([[float(row[name]) for name in names] for row in read_rows(path)]).astype(np.float32)
    return scores[:, 0] if len(names) == 1 else scores


def stop_after(monkeypatch, windows, error=RuntimeError):
    """Let scoring end after so many windows."""
    keep = PartialScores.save

    def save_or_stop(self, index, scores):
        if index == windows:
            raise error
        keep(self, index, scores)

    monkeypatch.setattr(PartialScores, "save", save_or_stop)


def labelled(label=lambda index: index % 2, count=24):
    return [{**row, "label": label(index)} for index, row in enumerate(make_rows(count))]


def write_collection(folder, queries=8):
    """A folder in BEIR's layout: each query is a document, and a few others have grades up to 2."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, prefix, texts in (("corpus", "d", SENTENCES), ("queries", "q", SENTENCES[:queries])):
        rows = [json.dumps({"_id": f"{prefix}{index}", "text": text}) for index, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    grades = [f"q{query}\td{(query * 5 + step) % 12}\t{step % 3}" for query in range(queries) for step in range(4)]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(grades))
    return folder
