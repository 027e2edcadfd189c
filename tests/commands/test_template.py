"""Templates on the command line: shown, trained, scored and measured with, and refused in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from commands import error, run, save, write_table
from rerankers import build
from rerankers import save as save_causal

from cross_trainer.data.tables import read_rows
from cross_trainer.scoring.cross_encoder import CrossEncoder

TEMPLATE = "[CLS] Do: {instruction} Q: {query} [SEP] A: {document} [SEP]"
ROWS = [
    {"instruction": f"be {number}", "left": f"how {number}", "right": "boil it " * number, "label": number % 2}
    for number in range(1, 13)
]


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return save_causal(tmp_path_factory.mktemp("causal") / "Qwen3-Reranker-0.6B", build())


def scores(path):
    return [float(row["score"]) for row in read_rows(path)]


def test_a_template_is_shown(causal):
    shown = run("template", causal).stdout
    assert "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}<|im_end|>" in shown
    assert "Given a web search query" in shown


def test_no_template_to_show(tmp_path):
    assert "has no template" in error("template", save(tmp_path))
    assert "no such folder" in error("template", "./nowhere")


def test_a_published_model_scores_a_file(tmp_path, causal):
    write_table(tmp_path / "in.csv", ROWS)
    options = ("--text-columns", "left", "right", "--max-query-length", "3")
    run("score", tmp_path / "in.csv", "-o", tmp_path / "out.csv", "-m", causal, *options)
    own = [(row["left"], row["right"], row["instruction"]) for row in ROWS]
    encoder = CrossEncoder(causal, max_query_length=3)
    np.testing.assert_allclose(scores(tmp_path / "out.csv"), encoder.predict(own), atol=1e-6)
    plain = [{name: row[name] for name in ("left", "right")} for row in ROWS]
    write_table(tmp_path / "plain.csv", plain)
    run("score", tmp_path / "plain.csv", "-o", tmp_path / "plain.jsonl", "-m", causal, "--instruction", "be 2")
    pairs = [tuple(row.values()) for row in plain]
    expected = CrossEncoder(causal, instruction="be 2").predict(pairs)
    np.testing.assert_allclose(scores(tmp_path / "plain.jsonl"), expected, atol=1e-6)


def test_training_measuring_and_scoring_read_alike(tmp_path):
    model = save(tmp_path / "model")
    write_table(tmp_path / "rows.csv", ROWS)
    run(
        *("train", "--dataset", tmp_path / "rows.csv", "--model", model, "--output_dir", tmp_path / "out"),
        *("--template", TEMPLATE, "--max_query_length", "4", "--max_steps", "1", "--eval_strategy", "no"),
        *("--save_strategy", "no", "--load_best_model_at_end", "false", "--report_to", "none", "--use_cpu"),
    )
    encoder = CrossEncoder(str(tmp_path / "out"))
    assert (encoder.template.parts, encoder.max_query_length) == ((TEMPLATE,), 4)
    run("evaluate", tmp_path / "out", tmp_path / "rows.csv", "-o", tmp_path / "found.json")
    found = encoder.predict([(row["left"], row["right"], row["instruction"]) for row in ROWS])
    loss = -np.mean([np.log(score if row["label"] else 1 - score) for score, row in zip(found, ROWS, strict=True)])
    assert json.loads((tmp_path / "found.json").read_text())["loss"] == pytest.approx(loss, abs=1e-4)
    run("score", tmp_path / "rows.csv", "-o", tmp_path / "scored.csv", "-m", tmp_path / "out")
    np.testing.assert_allclose(scores(tmp_path / "scored.csv"), found, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--template", "{query}"), "has no {document}"),
        (("--instruction", "be kind"), "has no place to stand in"),
        (("--tokens", "yes"), "are the answers of a causal language model"),
    ],
)
def test_what_can_not_be_is_refused_in_one_line(tmp_path, options, message):
    write_table(tmp_path / "in.csv", ROWS)
    command = ("score", tmp_path / "in.csv", "-o", tmp_path / "out.csv", "-m", save(tmp_path / "model"))
    assert message in error(*command, "--text-columns", "left", "right", *options)


def test_grouped_pairs_keep_their_instructions(tmp_path):
    rows = [{"instruction": "do", "query": f"q {at // 2}", "document": f"d {at}", "label": at % 2} for at in range(12)]
    write_table(tmp_path / "rows.csv", rows)
    command = ("train", "--dataset", tmp_path / "rows.csv", "--model", save(tmp_path / "model"), "--loss", "LambdaLoss")
    shown = run(*command, "--template", TEMPLATE, "--output_dir", tmp_path / "out", "--dry-run", "--use_cpu").output
    assert "documents=('documents',)" in shown
    assert "instruction='instruction'" in shown
