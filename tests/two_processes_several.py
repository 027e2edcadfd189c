"""Run by torchrun, on one or two processes: train on several data sets, and write down what came out."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from conftest import build_model, build_tokenizer
from training.test_trainer import arguments, lists, pairs, positives, weights

from cross_trainer import CrossEncoderTrainer, PairCollator

CASES = {
    "mapped": ({}, "proportional", {}),
    "accumulated": ({"gradient_accumulation_steps": 2}, 2.0, {}),
    "streams": ({"max_steps": 7}, {"graded": 2, "ranked": 1, "found": 1}, {"graded", "found"}),
}


def main(folder: Path) -> None:
    processes = int(os.environ["WORLD_SIZE"])
    results: dict[str, object] = {"world_size": processes}
    for case, (options, mixing, streams) in CASES.items():
        rows = {"graded": pairs(21), "ranked": lists(9), "found": positives(11)}
        trainer = CrossEncoderTrainer(
            build_model(),
            arguments(
                folder,
                per_device_train_batch_size=8 // processes // options.get("gradient_accumulation_steps", 1),
                per_device_eval_batch_size=2,
                optim="sgd",
                **options,
            ),
            train_dataset={
                name: each.to_iterable_dataset() if name in streams else each for name, each in rows.items()
            },
            eval_dataset={"graded": pairs(7), "ranked": lists(5).to_iterable_dataset()},
            data_collator=PairCollator(build_tokenizer(), swap=True, in_batch_negatives=3),
            mixing=mixing,
        )
        trainer.train()
        metrics = trainer.evaluate()
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        results[case] = {
            "weights": weights(trainer.accelerator.unwrap_model(trainer.model)).tolist(),
            "losses": [entry["loss"] for entry in logs],
            **{
                name: [entry[f"{name}_loss"] for entry in logs if f"{name}_loss" in entry]
                for name in ("graded", "ranked", "found")
            },
            **{key: value for key, value in metrics.items() if key.endswith(("loss", "spearman", "map"))},
        }
    if trainer.is_world_process_zero():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(results))
    trainer.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
