"""Mining from the command line: what the negatives are taken from, and what is refused in one line."""

from __future__ import annotations

import json

import pytest
from commands import error, run, save, write_table
from conftest import SENTENCES
from datasets import Dataset

from cross_trainer.commands.mine import mine_file
from cross_trainer.data.tables import read_rows


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"))


def test_negatives_are_mined_from_a_corpus(tmp_path, model):
    positives = [
        {"query": query, "answer": f"{query} {SENTENCES[index - 1]} indeed"} for index, query in enumerate(SENTENCES)
    ]
    Dataset.from_list(positives).to_csv(tmp_path / "rows.csv", index=False)
    corpus = write_table(
        tmp_path / "corpus.jsonl",
        [{"id": str(index), "title": "t", "text": text} for index, text in enumerate(SENTENCES)],
    )
    argv = ["mine", tmp_path / "rows.csv", "--num-negatives", 1, "--output-format", "labeled-list"]
    run(*argv, "-o", tmp_path / "own.jsonl")
    run(*argv, "-o", tmp_path / "other.jsonl", "--corpus", corpus)
    run(
        *argv,
        "-o",
        tmp_path / "title.jsonl",
        "--corpus",
        corpus,
        "--corpus-column",
        "text",
        "--model",
        model,
        "--max-score",
        "1",
        "--max-length",
        "20",
    )
    own, other, scored = (list(read_rows(tmp_path / f"{name}.jsonl")) for name in ("own", "other", "title"))
    assert own[0].keys() == {"query", "documents", "labels"}
    assert all(row["documents"][1].endswith(" indeed") for row in own)
    assert all(row["documents"][1] in SENTENCES for row in other + scored)
    run(
        "mine",
        tmp_path / "rows.csv",
        "-o",
        tmp_path / "triplets.csv",
        "--num-negatives",
        2,
        "--range-max",
        5,
        "--sampling-strategy",
        "random",
        "--seed",
        1,
    )
    assert list(next(read_rows(tmp_path / "triplets.csv"))) == ["query", "answer", "negative"]
    assert "compares scores, and there is no scorer" in error(*argv, "-o", tmp_path / "x.jsonl", "--min-score", 0.5)
    assert "a tsv can't hold every text" in error(*argv, "-o", tmp_path / "x.tsv")
    assert "no column 'body'" in error(*argv, "-o", tmp_path / "x.csv", "--corpus", corpus, "--corpus-column", "body")


def test_python_mines_as_the_command_does(tmp_path):
    rows = [{"query": query, "answer": SENTENCES[index - 1]} for index, query in enumerate(SENTENCES)]
    source = write_table(tmp_path / "rows.csv", rows)
    mine_file(str(source), tmp_path / "out.csv", mining={"num_negatives": 2})
    run("mine", source, "-o", tmp_path / "same.csv", "--num-negatives", 2)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "same.csv").read_bytes()


def test_a_bad_document_of_the_corpus_names_file_and_line(tmp_path):
    source = write_table(tmp_path / "rows.csv", [{"query": "a", "answer": "b"}])
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": index, "text": text}) + "\n" for index, text in enumerate(["x", None])))
    told = error("mine", source, "-o", tmp_path / "out.csv", "--corpus", corpus)
    assert f"{corpus}, line 2, column 'text': expected a text, found None" in told


def test_numbers_in_a_corpus_of_csv_are_texts(tmp_path):
    source = write_table(tmp_path / "rows.csv", [{"query": "7 007", "answer": "7"}, {"query": "8", "answer": "9"}])
    corpus = write_table(tmp_path / "corpus.csv", [{"id": "1", "text": "007"}, {"id": "2", "text": "7"}])
    run("mine", source, "-o", tmp_path / "out.jsonl", "--corpus", corpus, "--num-negatives", 1)
    assert next(read_rows(tmp_path / "out.jsonl")) == {"query": "7 007", "answer": "7", "negative": "007"}
