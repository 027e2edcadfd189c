"""Trainings on a GPU: each precision, lists and pairs, cut batches, checkpoints, one process of several, and waits.

The same functions run on the CPU with fewer cases.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CUDA, build_model, build_tokenizer
from execution.test_padding_free import build
from training.test_trainer import lists, pairs, positives, weights
from transformers import PreTrainedModel, TrainingArguments

from cross_trainer import BinaryCrossEntropyLoss, CrossEncoder, CrossEncoderTrainer, InfoNCELoss, PairCollator

GPU = pytest.mark.cuda
OPTIONS = {"fp32": {}, "tf32": {"tf32": True}, "bf16": {"bf16": True}, "fp16": {"fp16": True}}
PRECISIONS = [pytest.param("cpu", OPTIONS["bf16"], id="cpu-bf16")]
PRECISIONS += [pytest.param("cuda", options, marks=GPU, id=f"cuda-{name}") for name, options in OPTIONS.items()]


def arguments(folder: Path, device: str, **options: Any) -> TrainingArguments:
    defaults = {"max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "save_strategy": "no"}
    quiet = {"report_to": "none", "disable_tqdm": True, "logging_steps": 1, "use_cpu": device == "cpu"}
    exact = {} if device == "cpu" else {"tf32": False}  # it belongs to the process, and stays after a training
    return TrainingArguments(str(folder), **{**defaults, **quiet, **exact, **options})


def train(folder: Path, device: str, rows: Any, own: dict[str, Any] | None = None, **options: Any) -> Any:
    own, resume = own or {}, options.pop("resume", None)
    trainer = CrossEncoderTrainer(
        own.pop("model", None) or build_model(attention_probs_dropout_prob=0.0),
        arguments(folder, device, **options),
        train_dataset=rows,
        processing_class=build_tokenizer(),
        **own,
    )
    trainer.train(resume_from_checkpoint=resume)
    assert trainer.model.device.type == device
    return trainer


def losses(trainer: CrossEncoderTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("max_tokens", [None, 60])
@pytest.mark.parametrize("rows", [pairs, lists], ids=["pairs", "lists"])
@pytest.mark.parametrize(("device", "options"), PRECISIONS)
def test_a_training_walks_the_losses_of_the_padded_one_on_the_cpu(tmp_path, device, options, rows, max_tokens) -> None:
    expected = train(tmp_path / "padded", "cpu", rows(), {"padding_free": False})
    found = train(tmp_path / "flat", device, rows(), {"max_tokens": max_tokens}, **options)
    rough = bool(options)
    np.testing.assert_allclose(losses(found), losses(expected), rtol=0.1 if rough else 2e-3, atol=0.05 if rough else 0)


@pytest.mark.parametrize("family", ["modernbert-mean", "qwen3"])
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_other_families_train(tmp_path, device, family) -> None:
    def model() -> PreTrainedModel:
        return build(family, num_labels=1, vocab_size=200, pad_token_id=0)

    expected = train(tmp_path / "padded", "cpu", pairs(), {"padding_free": False, "model": model()})
    found = train(tmp_path / "flat", device, pairs(), {"model": model()}, bf16=True)
    np.testing.assert_allclose(losses(found), losses(expected), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_negatives_of_the_batch(tmp_path, device) -> None:
    own = {"data_collator": PairCollator(build_tokenizer(), in_batch_negatives=2), "compute_loss_func": InfoNCELoss()}
    trainer = train(tmp_path, device, positives(), own, gradient_accumulation_steps=2, per_device_train_batch_size=4)
    assert np.isfinite(losses(trainer)).all()


@pytest.mark.parametrize(("device", "options"), PRECISIONS)
def test_a_training_goes_on_where_it_was(tmp_path, device, options) -> None:
    """Also with dropout, and with the scale of a gradient in float16."""
    rows, settings = pairs(), {"save_strategy": "steps", "save_steps": 2, **options}
    through = train(tmp_path, device, rows, {"model": build_model(dropout=0.1)}, **settings)
    settings["resume"] = str(tmp_path / "checkpoint-2")
    again = train(tmp_path, device, rows, {"model": build_model(dropout=0.1, seed=7)}, **settings)
    rounding = 1e-2 if device == "cuda" else 1e-6  # a GPU adds up in any order
    torch.testing.assert_close(weights(again.model), weights(through.model), rtol=rounding, atol=rounding)


@pytest.mark.parametrize("rows", [pairs, lists], ids=["pairs", "lists"])
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_an_evaluation_has_the_figures_of_the_cpu(tmp_path, device, rows) -> None:
    figures = []
    for where in ("cpu", device):
        own = {"eval_dataset": rows(), "processing_class": build_tokenizer(), "max_tokens": 60}
        trainer = CrossEncoderTrainer(build_model(), arguments(tmp_path, where), **own)
        found = trainer.evaluate()
        figures.append({name: value for name, value in found.items() if not name.endswith(("time", "second"))})
    assert figures[1] == pytest.approx(figures[0], abs=1e-4)
    predicted = trainer.predict(rows().remove_columns("label" if rows is pairs else "labels")).predictions
    assert np.isfinite(predicted).all()


@GPU
@pytest.mark.parametrize("options", [{"bf16": True}, {"fp16": True}], ids=["bf16", "fp16"])
def test_a_compiled_training(tmp_path, options) -> None:
    torch.compiler.reset()
    expected = train(tmp_path / "eager", "cuda", pairs(), **options)
    found = train(tmp_path / "compiled", "cuda", pairs(), torch_compile=True, **options)
    np.testing.assert_allclose(losses(found), losses(expected), rtol=0.1, atol=0.05)


SCRIPT = """
import sys
from gpu.test_training import arguments, pairs, train
trainer = train(sys.argv[1], sys.argv[2], pairs(), {"max_tokens": 60}, bf16=True)
print(trainer.accelerator.distributed_type, type(trainer.model_wrapped).__name__)
"""


@GPU
def test_one_process_of_a_distributed_training(tmp_path) -> None:
    """As `accelerate launch` starts it: nccl, DistributedDataParallel, and cut batches within."""
    (tmp_path / "script.py").write_text(SCRIPT)
    tests = Path(__file__).parents[1]
    paths = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    command += [str(tmp_path / "script.py"), str(tmp_path / "output"), "cuda"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": paths}, timeout=180
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "MULTI_GPU DistributedDataParallel" in done.stdout


@GPU
@pytest.mark.parametrize("max_tokens", [None, 60])
@pytest.mark.parametrize("rows", [pairs, lists], ids=["pairs", "lists"])
def test_a_training_waits_once_an_update(tmp_path, rows, max_tokens) -> None:
    """More steps have as many more waits: the look whether loss and gradient are finite."""
    counts = []
    for steps in (3, 9):
        options = {"max_steps": steps, "bf16": True, "logging_steps": 1000, "gradient_accumulation_steps": 2}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                train(tmp_path, "cuda", rows(), {"max_tokens": max_tokens}, num_train_epochs=9, **options)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits = [f"{each.filename}:{each.lineno}" for each in caught if "synchronizing" in str(each.message)]
        counts.append(len(waits))
    assert counts[1] - counts[0] <= 9 - 3, sorted(set(waits))


@GPU
def test_memory_is_that_of_real_tokens(tmp_path) -> None:
    rows = [("a b c", " ".join("abc" * 60), 0.0), *[("a b", "c d", 1.0)] * 31]
    peaks = []
    for padding_free in (False, True):
        model = build("modernbert-cls", num_labels=1, vocab_size=200, hidden_size=128, max_position_embeddings=512)
        tokenizer = build_tokenizer(model_max_length=400)
        options = {"bf16": True, "max_steps": 2, "per_device_train_batch_size": 32, "optim": "sgd"}
        trainer = CrossEncoderTrainer(
            model,
            arguments(tmp_path, "cuda", **options),
            train_dataset=rows,
            processing_class=tokenizer,
            compute_loss_func=BinaryCrossEntropyLoss(),
            padding_free=padding_free,
        )
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < 0.6 * peaks[0]


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_fit(tmp_path, device) -> None:
    build_model().save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    encoder = CrossEncoder(tmp_path, device=device)
    before = encoder.predict([("a cat", "a dog")])
    loader = torch.utils.data.DataLoader([("a cat", "a dog", 1.0), ("a", "b", 0.0)] * 4, batch_size=4)
    encoder.fit(loader, epochs=1, warmup_steps=0, optimizer_params={"lr": 1e-2})
    assert encoder.model.device.type == device
    assert not np.allclose(encoder.predict([("a cat", "a dog")]), before, atol=1e-4)
