"""Run by torchrun, on one or two processes: train and evaluate, and write down what came out."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import write_collection
from conftest import build_model, build_tokenizer
from training.test_trainer import InfiniteLoss, arguments, check_what_metrics_see, lists, pairs, positives, weights

from cross_trainer import Collection, CrossEncoderTrainer, LambdaLoss, PairCollator
from cross_trainer.errors import ConfigurationError, DataError, NotFiniteError


def squares(outputs, labels, num_items_in_batch=None):
    """A loss that knows nothing of labels to ignore."""
    return (outputs.logits.squeeze(-1) - labels).square().sum() / (num_items_in_batch or len(labels))


CANDIDATES = [[(query + step * 5) % 12 for step in range(2 + query)] for query in range(5)]
CASES = {
    "pairs": (pairs(21), {}, None),
    "pairs that leave a process without rows": (pairs(17), {}, None),
    "accumulated": (pairs(21), {"gradient_accumulation_steps": 2}, None),
    "lists": (lists(11), {}, LambdaLoss()),
    "lists that leave a process without rows": (lists(9), {}, LambdaLoss()),
    "stream": (pairs(21).to_iterable_dataset(), {"max_steps": 5}, None),
    "somebody's loss": (pairs(17), {}, squares),
    "somebody's loss on a stream": (pairs(21).to_iterable_dataset(), {"max_steps": 5}, squares),
    "negatives": (positives(11), {}, None),
    "negatives, accumulated": (positives(11), {"gradient_accumulation_steps": 2}, None),
    "negatives from a stream": (positives(11).to_iterable_dataset(), {"max_steps": 3}, None),
    "swapped": (pairs(21), {"num_train_epochs": 2}, None),
    "rows are dropped in training alone": (pairs(17), {"dataloader_drop_last": True}, None),
}


def check_stream(trainer, held_out, predicted) -> None:
    """A stream is predicted like its rows, labelled or not, by somebody's metrics too."""
    seen = []
    trainer.plan = dataclasses.replace(trainer.plan, metrics=seen.append, chose_metrics=False)
    trainer.compute_metrics = lambda evaluation: seen.append(evaluation) or {}
    streamed = trainer.predict(held_out.to_iterable_dataset())
    np.testing.assert_allclose(streamed.predictions, predicted.predictions, atol=1e-5)
    np.testing.assert_array_equal(streamed.label_ids, predicted.label_ids)
    assert len(seen[-1].predictions) == len(seen[-1].label_ids) == 7
    label = "labels" if "labels" in held_out.column_names else "label"
    unlabelled = trainer.predict(held_out.remove_columns(label).to_iterable_dataset())
    assert unlabelled.label_ids is None
    np.testing.assert_allclose(unlabelled.predictions, predicted.predictions, atol=1e-5)


def check_stop(folder, processes) -> None:
    """All processes stop where the loss of one of them is infinite, and name the rows of that one."""
    trainer = CrossEncoderTrainer(
        build_model(),
        arguments(folder, per_device_train_batch_size=8 // processes, train_sampling_strategy="sequential"),
        train_dataset=pairs(16),
        processing_class=build_tokenizer(),
        compute_loss_func=InfiniteLoss(),
    )
    rows = ", ".join(map(str, range(8 // processes)))
    with pytest.raises(NotFiniteError, match=rf"Step 1: The loss is inf.*held the rows {rows}\."):
        trainer.train()


def check_inputs(folder, processes) -> None:
    """Metrics see the tokens and losses of all rows; of single batches they would see those of one process."""
    check_what_metrics_see(folder, pairs(9), 9, max_tokens=32)  # one process has no rows in the last batch
    check_what_metrics_see(folder, pairs(7).to_iterable_dataset(), 7)
    if processes > 1:
        args = arguments(folder, include_for_metrics=["inputs"], batch_eval_metrics=True)
        options = {"eval_dataset": pairs(9), "processing_class": build_tokenizer()}
        with pytest.raises(ConfigurationError, match="the scores of all processes, but the inputs of one"):
            CrossEncoderTrainer(build_model(), args, compute_metrics=lambda _, compute_result: {}, **options)


def calibrated(trainer) -> list[float]:
    """Every process calibrates alike, and refuses rows trained on, of which one alone knows where they are streamed."""
    with pytest.raises(DataError, match="trained on 9 of 9 of these pairs"):
        trainer.calibrate(pairs(9))
    unseen = pairs(17).map(lambda row: {"b": f"{row['b']} again"})
    found = trainer.calibrate(unseen, relevance_threshold=0.5)
    return [1 / found.temperature, found.bias, found.after["ece"], found.after["log_loss"]]


def evaluate_collection(folder, processes) -> dict[str, float]:
    """The metrics of a collection, whose last batch leaves a process without rows."""
    place = folder.parent / f"collection-{processes}-{os.environ['RANK']}"
    collection = Collection(
        write_collection(place, queries=5), candidates=lambda queries, k: CANDIDATES[: len(queries)]
    )
    trainer = CrossEncoderTrainer(
        build_model(),
        arguments(folder, per_device_eval_batch_size=2),
        eval_dataset=collection,
        processing_class=build_tokenizer(),
    )
    found = trainer.predict(collection)
    assert found.predictions.shape == (5, 6)
    return {key: found.metrics[f"test_{key}"] for key in collection.measures}


MIXED = {
    "several": ({}, "proportional", ()),
    "several, accumulated": ({"gradient_accumulation_steps": 2}, 2.0, ()),
    "several, streams among them": ({"max_steps": 7}, {"graded": 2, "ranked": 1, "found": 1}, ("graded", "found")),
}


def train_on_several(folder, processes, options, mixing, streams) -> dict[str, object]:
    """Updates, losses and metrics of three data sets of different shapes."""
    rows = {"graded": pairs(21), "ranked": lists(9), "found": positives(11)}
    size = 8 // processes // options.get("gradient_accumulation_steps", 1)
    trainer = CrossEncoderTrainer(
        build_model(),
        arguments(folder, per_device_train_batch_size=size, per_device_eval_batch_size=2, optim="sgd", **options),
        train_dataset={name: each.to_iterable_dataset() if name in streams else each for name, each in rows.items()},
        eval_dataset={"graded": pairs(7), "ranked": lists(5).to_iterable_dataset()},
        data_collator=PairCollator(build_tokenizer(), swap=True, in_batch_negatives=3),
        mixing=mixing,
    )
    trainer.train()
    metrics = trainer.evaluate()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    losses = {f"{name} losses": [entry[f"{name}_loss"] for entry in logs if f"{name}_loss" in entry] for name in rows}
    state = weights(trainer.accelerator.unwrap_model(trainer.model))
    quality = {key: value for key, value in metrics.items() if key.endswith(("loss", "spearman", "map"))}
    assert len(quality) == 4
    return {"weights": state.tolist(), **losses, **quality}


def main(folder: Path) -> None:
    processes = int(os.environ["WORLD_SIZE"])
    results = {"world_size": processes}
    check_stop(folder, processes)
    check_inputs(folder, processes)
    results["collection"] = evaluate_collection(folder, processes)
    for name, case in MIXED.items():
        results[name] = train_on_several(folder, processes, *case)
    for name, (dataset, options, loss) in CASES.items():
        size = 8 // processes // options.get("gradient_accumulation_steps", 1)
        held_out = lists(7) if name.startswith("lists") else positives(7) if "negatives" in name else pairs(7)
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
            data_collator=PairCollator(
                build_tokenizer(), swap=name == "swapped", in_batch_negatives=3 if "negatives" in name else 0
            ),
            compute_loss_func=loss,
        )
        before = trainer.evaluate()
        trainer.train()
        assert trainer.accelerator.num_processes == processes
        after = trainer.evaluate()
        predicted = trainer.predict(held_out)
        assert len(predicted.predictions) == 7
        if "negatives" not in name:
            check_stream(trainer, held_out, predicted)
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
        if name in {"pairs", "stream"}:
            results[name]["calibrated"] = calibrated(trainer)
    if trainer.is_world_process_zero():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(results))
    wrapper = weakref.ref(trainer.model_wrapped)
    assert isinstance(wrapper(), torch.nn.parallel.DistributedDataParallel)
    trainer.end()
    assert wrapper() is None  # a wrapper that outlives its process group can block when it is freed


if __name__ == "__main__":
    main(Path(sys.argv[1]))
