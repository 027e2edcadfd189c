"""The synthetic data: its shape, that it can be trained on, and that neither memory nor counting words solves it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

RECIPES = Path(__file__).parents[2] / "recipes"

import demo_data  # noqa: E402
import demo_words  # noqa: E402

SPLITS = ("train", "validation", "test")
SETS = {
    "similarity_pairs": demo_data.similarity_pairs(),
    "duplicate_questions": demo_data.duplicate_questions(),
    "entailment_pairs": demo_data.entailment_pairs(),
}


def words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text.lower())


def overlap(first: str, second: str) -> float:
    one, two = set(words(first)), set(words(second))
    return len(one & two) / len(one | two)


def pairs(dataset) -> list[tuple]:
    return [tuple(row.values()) for row in dataset]


FINGERPRINT = """
import hashlib, json, demo_data as demo
sets = [demo.similarity_pairs(), demo.duplicate_questions(), demo.entailment_pairs()]
rows = [list(rows) for dataset in sets for rows in dataset.values()]
print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())
"""


@pytest.mark.parametrize("name", SETS)
def test_enough_pairs_in_three_splits(name):
    assert set(SETS[name]) == set(SPLITS)
    assert len(SETS[name]["train"]) >= 2000
    assert min(len(SETS[name]["validation"]), len(SETS[name]["test"])) >= 300


@pytest.mark.parametrize("name", SETS)
def test_no_pair_occurs_twice_in_either_order(name):
    found = [tuple(sorted(row[:2])) for split in SPLITS for row in pairs(SETS[name][split])]
    assert len(set(found)) == len(found)
    assert all(first != second for first, second in found)


@pytest.mark.parametrize("name", SETS)
def test_texts_are_clean_sentences_of_different_lengths(name):
    texts = [text for split in SPLITS for row in pairs(SETS[name][split]) for text in row[:2]]
    assert all(re.fullmatch(r"[A-Z0-9][^{}|/;#_]*[.?]", text) for text in texts)
    assert not any(re.search(r"\ba [aeio]|\ban [^aeiou]|  |\bpersons\b", text) for text in texts)
    lengths = [len(words(text)) for text in texts]
    assert min(lengths) <= 6
    assert max(lengths) >= 20


def test_similarity_spans_the_scale():
    scores = np.array(SETS["similarity_pairs"]["train"]["score"])
    assert scores.min() == 0.0
    assert scores.max() == 5.0
    assert len(np.unique(scores)) > 20
    assert np.histogram(scores, bins=5)[0].min() > 0.08 * len(scores)


def test_labels_are_balanced_and_named():
    questions, inferences = SETS["duplicate_questions"]["train"], SETS["entailment_pairs"]["train"]
    assert questions.features["label"].names == ["different", "duplicate"]
    assert np.mean(questions["label"]) == pytest.approx(0.4, abs=0.02)
    assert inferences.features["label"].names == ["entailment", "neutral", "contradiction"]
    assert np.bincount(inferences["label"]) == pytest.approx(np.full(3, 800), abs=5)


def test_held_out_splits_speak_of_other_things():
    lines = demo_words.DOMAINS.strip().splitlines()
    scenes = {
        split: [
            entry
            for i, line in enumerate(lines)
            if lines[i - i % 2].startswith(split + ";")
            for entry in re.split(r"[;,|/]\s*", line)[1 - i % 2 :]
        ]
        for split in SPLITS
    }
    tables = (
        demo_words.MEETINGS,
        demo_words.MOODS,
        demo_words.SKILLS,
        demo_words.THINGS,
        demo_words.CITIES,
        demo_words.CONTEXTS,
        scenes,
    )
    rows = [row for dataset in SETS.values() for row in pairs(dataset["train"])]
    trained = " ".join(f" {' '.join(words(text))} " for row in rows for text in row[:2])
    for table in tables:
        for split in ("validation", "test"):
            entries = re.split(r"[,|/]\s*", table[split]) if isinstance(table[split], str) else table[split]
            assert entries
            known = [entry for entry in entries if f" {' '.join(words(entry))} " in trained]
            assert not known


@pytest.mark.parametrize("split", SPLITS)
def test_shared_words_are_a_poor_guide(split):
    similar = pairs(SETS["similarity_pairs"][split])
    assert spearmanr([overlap(a, b) for a, b, _ in similar], [score for *_, score in similar])[0] < 0.35
    asked = pairs(SETS["duplicate_questions"][split])
    assert average_precision_score([label for *_, label in asked], [overlap(a, b) for a, b, _ in asked]) < 0.5
    inferred = pairs(SETS["entailment_pairs"][split])
    share = [np.mean([overlap(a, b) for a, b, label in inferred if label == kind]) for kind in range(3)]
    assert max(share) - min(share) < 0.15


@pytest.mark.parametrize("split", SPLITS)
def test_a_negation_in_the_hypothesis_gives_nothing_away(split):
    inferred = pairs(SETS["entailment_pairs"][split])
    negated = [bool({"not", "no"} & set(words(hypothesis))) for _, hypothesis, _ in inferred]
    rates = [
        np.mean([flag for flag, row in zip(negated, inferred, strict=True) if row[2] == kind]) for kind in range(3)
    ]
    assert max(rates) - min(rates) < 0.2


def test_hard_pairs_of_both_kinds():
    asked = pairs(SETS["duplicate_questions"]["train"])
    assert sum(label == 0 and sorted(words(a)) == sorted(words(b)) for a, b, label in asked) >= 30  # swapped roles
    assert sum(label == 1 and overlap(a, b) < 0.2 for a, b, label in asked) >= 200
    similar = pairs(SETS["similarity_pairs"]["train"])
    assert sum(score <= 3 and sorted(words(a)) == sorted(words(b)) for a, b, score in similar) >= 20
    assert sum(score == 5 and overlap(a, b) < 0.2 for a, b, score in similar) >= 50


def test_every_process_sees_the_same_rows(capsys):
    exec(FINGERPRINT, {})
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(RECIPES)}
    output = subprocess.run(
        [sys.executable, "-c", FINGERPRINT], env=environment, capture_output=True, text=True, check=True
    )
    assert output.stdout == capsys.readouterr().out


def test_it_says_that_it_is_synthetic():
    functions = (demo_data.similarity_pairs, demo_data.duplicate_questions, demo_data.entailment_pairs)
    assert all("ynthetic" in function.__doc__ for function in functions)
    assert "ynthetic" in demo_data.__doc__
