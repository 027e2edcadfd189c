"""Cross-encoders trained by sentence-transformers, read and trained on here, and read there again.

    python recipes/interop/way_back.py output/way_back --environments ~/.cache/cross_trainer_interop

For each of its losses, sentence-transformers 5.7, on transformers 4, trains a small model for a step and saves it. This
package loads the folder, trains it for two more steps and saves it, and sentence-transformers 5.7 loads that. It prints
the largest differences of the scores of both folders. The tests do the same with sentence-transformers 6.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

QUERIES, DOCUMENTS = ["how do i cook", "why is it blue", "who wrote this"] * 2, ["simply", "the sky", "someone"] * 2
TEXTS = {"query": QUERIES, "document": DOCUMENTS}
LISTS = {"query": QUERIES, "docs": [DOCUMENTS[:3]] * 6, "labels": [[1.0, 0.5, 0.0]] * 6}
TRIPLETS = {**TEXTS, "other": DOCUMENTS[::-1]}
ROWS = {
    "BinaryCrossEntropyLoss": {**TEXTS, "label": [1.0, 0.0] * 3},
    "CrossEntropyLoss": {**TEXTS, "label": [0, 1, 2] * 2},
    "MSELoss": {**TEXTS, "label": [0.2, 3.5] * 3},
    "MarginMSELoss": {**TRIPLETS, "label": [0.5, 2.0] * 3},
    "MultipleNegativesRankingLoss": TRIPLETS,
    "CachedMultipleNegativesRankingLoss": TRIPLETS,
}
"""What a loss is trained on; those that aren't here take lists."""


def train_there(base: Path, root: Path) -> None:
    """In the environment of sentence-transformers: a folder and its scores for each loss."""
    from datasets import Dataset
    from sentence_transformers.cross_encoder import (
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
        losses,
    )

    pairs = [pair[:2] for pair in json.loads((root / "pairs.json").read_text())]
    for name in [name for name in losses.__all__ if name.endswith("Loss")]:
        encoder = CrossEncoder(str(base), num_labels=3 if name == "CrossEntropyLoss" else 1, device="cpu")
        args = CrossEncoderTrainingArguments(
            str(root / "training"), max_steps=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True
        )
        rows = Dataset.from_dict(ROWS.get(name, LISTS))
        CrossEncoderTrainer(encoder, args, rows, loss=getattr(losses, name)(encoder)).train()
        encoder.save_pretrained(str(root / name))
        (root / f"{name}.json").write_text(json.dumps(encoder.predict(pairs, show_progress_bar=False).tolist()))


def score_there(root: Path) -> None:
    """In the environment of sentence-transformers: scores of every folder that was trained on here."""
    from sentence_transformers import CrossEncoder

    pairs = [pair[:2] for pair in json.loads((root / "pairs.json").read_text())]
    for folder in root.glob("*Loss, again"):
        scores = CrossEncoder(str(folder), device="cpu").predict(pairs, show_progress_bar=False)
        folder.with_name(f"{folder.name}, there.json").write_text(json.dumps(scores.tolist()))


def train_here(root: Path) -> dict[str, float]:
    """Largest differences of the scores of their folders, each of which is then trained on and saved."""
    import numpy as np
    from folders import PAIRS, pairs, save
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from cross_trainer import CrossEncoder

    differences = {}
    for folder in sorted(root.glob("*Loss")):
        encoder = CrossEncoder(folder, device="cpu")
        scores = encoder.predict([pair[:2] for pair in PAIRS])
        told = json.loads(folder.with_name(f"{folder.name}.json").read_text())
        differences[folder.name] = float(np.abs(scores - told).max())
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        labels = pairs(*range(model.config.num_labels)) if model.config.num_labels > 1 else pairs(0, 1)
        save(root / f"{folder.name}, again", (model, AutoTokenizer.from_pretrained(folder)), labels)
    return differences


def main() -> None:
    """Go there and back, and print both differences for each loss."""
    import numpy as np
    from folders import PAIRS, bert
    from matrix import environment

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path)
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "cross_trainer_interop")
    options = parser.parse_args()
    root, base = options.folders.resolve(), options.folders.resolve() / "base"
    model, tokenizer = bert()
    model.base_model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    (root / "pairs.json").write_text(json.dumps(PAIRS))
    python = environment("transformers_4", options.environments.expanduser().resolve())
    subprocess.run([python, __file__, "train_there", base, root], check=True)
    here = train_here(root)
    subprocess.run([python, __file__, "score_there", root], check=True)
    print("| loss | their folder, read here | trained on here, read there |\n| --- | --- | --- |")
    for name, difference in here.items():
        ours: Any = json.loads((root / f"{name}, again.json").read_text())["scores"]
        again = np.abs(np.array(json.loads((root / f"{name}, again, there.json").read_text())) - ours).max()
        print(f"| {name} | {difference:.0e} | {again:.0e} |")


if __name__ == "__main__":
    steps = {"train_there": train_there, "score_there": score_there}
    if sys.argv[1:2] and sys.argv[1] in steps:
        steps[sys.argv[1]](*map(Path, sys.argv[2:]))
    else:
        main()
