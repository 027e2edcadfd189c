"""Malformed inputs over the public surface end with an error of ours that says where and what to do, at once, and leave
nothing behind; odd inputs that can be read are read right.

`pytest tests/test_malformed.py -s -k table` prints what each of them says.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import scores_in
from malformed import ARGUMENTS, CASES, FILES, GOOD, HEADER, MODELS, ROWS, Place, prepared

import cross_trainer as ct
from cross_trainer.commands.rank import rank_files
from cross_trainer.data.trec import read_qrels
from cross_trainer.errors import CrossTrainerError

SECONDS = 1.0  # of the processor: other processes don't count
REMEDY = re.compile(
    r"\b(call|check|choose|collate|convert|copy|correct|expected|fill|filter|give|keep|leave|line reads|load|look|make|"
    r"mend|name|pass|rename|replace|save|say|scale|see|set|take|takes|there are \{|turn|use|write)\b"
    r"|No such file|Is a directory|no YAML|every server|Is '\w+' meant",
    re.IGNORECASE,
)
PLACES = {  # what the message names: the file and the line, the model, the row, the argument
    **dict.fromkeys(FILES, r"(in|none|late|corpus|queries)\.\w+|\.parquet|[qrx]\.(txt|yaml)|/x'|argument --|line \d"),
    **dict.fromkeys(MODELS, r"broken|model\.bin|tokenizer has"),
    **dict.fromkeys(ROWS, r"[Rr]ow|[Cc]olumn|pairs|documents|Document|query|corpus|texts|data set|=|collate|labels"),
    **dict.fromkeys(ARGUMENTS, r"=|--|Loss|Metrics|metrics|logit|label|column|k is|confidence|batch|model|Calibration"),
}
PLACES |= dict.fromkeys(("candidate that isn't there", "document id twice", "id with a space"), r"'other'|'d'|'q 1'")
PLACES |= {
    "key missing in line 70,001": r"late\.jsonl, line 70001, column 'second'",
    "last line cut, jsonl": r"in\.jsonl, line 2",
    "candidates of a cut run": r"candidates\.trec, line 2",
    "lone surrogate in a pair": r"Row 1, text 2",
    "labels of nan": r"Column 'label', row 2",
    "hole in a parquet": r"hole\.parquet: the rows after 0",
}
TOLD: dict[str, tuple[float, str]] = {}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("model"))


@pytest.fixture
def place(good, tmp_path):
    return Place(tmp_path, *good)


def files(folder):
    """Every file with its content, and every folder."""
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_there_are_enough():
    assert len(CASES) == len(FILES) + len(MODELS) + len(ROWS) + len(ARGUMENTS) >= 60


@pytest.mark.parametrize("name", CASES)
def test_malformed_input_is_refused(name, place, monkeypatch):
    written = {}

    def noting(make):
        def made(*given, **more):
            path = make(*given, **more)
            written.update(files(place.folder))
            return path

        return made

    for method in ("file", "table", "broken", "subfolder"):
        monkeypatch.setattr(place, method, noting(getattr(place, method)))
    start = time.process_time()
    with pytest.raises(CrossTrainerError) as caught:
        CASES[name](place)
    seconds, message = time.process_time() - start, str(caught.value)
    TOLD[name] = seconds, message.replace(str(place.folder), "").replace(place.model, "model")
    assert re.search(PLACES[name], message), message
    assert REMEDY.search(message), message
    assert len(message) < 900
    assert seconds < SECONDS
    left = files(place.folder)
    left.pop(Path("run"), None)  # the output folder of a training, which is empty
    assert left == written


def test_table():
    """What was said, with `-s`."""
    lines = [f"| {name} | {seconds:.2f} | {message} |" for name, (seconds, message) in TOLD.items()]
    sys.stdout.write("\n".join(["", *lines, ""]))


# -- odd, and readable -------------------------------------------------------------------------------------------------


def scored(place, name, content):
    place.score(place.file(name, content))
    return scores_in(place.folder / "out.csv")


@pytest.mark.parametrize(
    ("name", "content", "pair"),
    [
        ("in.csv", "\ufeff" + GOOD, ("a man", "a dog")),
        ("in.csv", HEADER + "a\0man,a dog\n", ("a\0man", "a dog")),
        ("in.csv", HEADER + '"a\nman","a \x07dog"\n', ("a\nman", "a \x07dog")),
        ("in.csv", ",second\na man,a dog\n", ("a man", "a dog")),
        ("in.csv", HEADER + "a man," + "a dog " * 1_800_000 + "\n", ("a man", "a dog " * 100)),
        ("in.tsv", 'first\tsecond\na "man\ta dog\n', ('a "man', "a dog")),
        ("in.jsonl", '{"first": "a man", "second": "\\ud83d\\ude00"}\n\n', ("a man", "😀")),
        ("in.jsonl", '{"first": "a man", "second": ""}\n', ("a man", "")),
        ("in.jsonl", "\ufeff" + '{"first": "a man", "second": "a dog"}', ("a man", "a dog")),
    ],
    ids=["BOM", "NUL", "control", "unnamed", "10 MB", "quote", "emoji", "empty", "no last line end"],
)
def test_odd_input_is_read_right(place, name, content, pair):
    assert np.array_equal(scored(place, name, content), place.encoder.predict([pair]))


def test_odd_qrels_and_runs(place):
    assert read_qrels(place.file("q.txt", "\ufeffq 0 d 1\n\n  q 0 é 0 \n")) == {"q": {"d": 1, "é": 0}}
    queries, corpus = (
        place.file("q.jsonl", '{"id": 1, "text": "a"}\n'),
        place.file("c.jsonl", '{"id": 7, "text": "b"}\n'),
    )
    rank_files(queries, corpus, place.folder / "out.jsonl", place.model)
    assert json.loads((place.folder / "out.jsonl").read_text())["query_id"] == "1"


def test_empty_tables_of_scores(place):
    place.score(place.file("in.csv", HEADER))
    assert (place.folder / "out.csv").read_text() == "first,second,score\n"
    assert ct.CrossEncoder(place.model).predict([]).size == 0
