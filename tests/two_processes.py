"""Run by torchrun, on one or two processes: train and evaluate, and write down what came out."""

from __future__ import annotations

import json
import sys
import weakref
from pathlib import Path

import numpy as np
import torch
from conftest import build_model, build_tokenizer
from training.test_trainer import arguments, lists, pairs

from cross_trainer import CrossEncoderTrainer, LambdaLoss

CASES = {
    "pairs": (pairs(21), {}, None),
    "pairs that leave a process without rows": (pairs(17), {}, None),
    "accumulated": (pairs(21), {"gradient_accumulation_steps": 2}, None),
    "lists": (lists(11), {}, LambdaLoss()),
    "lists that leave a process without rows": (lists(9), {}, LambdaLoss()),
    "stream": (pairs(21).to_iterable_dataset(), {"max_steps": 5}, None),
}


def main(folder: Path) -> None:
    processes = int(__import__("os").environ["WORLD_SIZE"])
    results = {"world_size": processes}
    for name, (dataset, options, loss) in CASES.items():
        size = 8 // processes // options.get("gradient_accumulation_steps", 1)
        held_out = lists(7) if loss else pairs(7)
        sampling = "sequential" if "stream" in name else "random"
        trainer = CrossEncoderTrainer(
            build_model(),
            arguments(
                folder,
                per_device_train_batch_size=size,
                per_device_eval_batch_size=2,
                optim="sgd",
                train_sampling_strategy=sampling,
                **options,
            ),
            train_dataset=dataset,
            eval_dataset=held_out,
            processing_class=build_tokenizer(),
            compute_loss_func=loss,
        )
        before = trainer.evaluate()
        trainer.train()
        assert trainer.accelerator.num_processes == processes
        after = trainer.evaluate()
        predicted = trainer.predict(held_out)
        assert len(predicted.predictions) == 7
        state = torch.cat(
            [parameter.detach().flatten() for parameter in trainer.accelerator.unwrap_model(trainer.model).parameters()]
        )
        metrics = {
            key: value for key, value in after.items() if not any(word in key for word in ("runtime", "second", "time"))
        }
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        results[name] = {
            **metrics,
            "before": before["eval_loss"],
            "losses": losses,
            "weights": state.tolist(),
            "predictions": np.asarray(predicted.predictions).tolist(),
        }
    if trainer.is_world_process_zero():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(results))
    wrapper = weakref.ref(trainer.model_wrapped)
    assert isinstance(wrapper(), torch.nn.parallel.DistributedDataParallel)
    trainer.end()
    assert wrapper() is None  # a wrapper that outlives its process group can block when it is freed


if __name__ == "__main__":
    main(Path(sys.argv[1]))
