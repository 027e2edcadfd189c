"""Run by torchrun: train a model whose weights are in parts on two processes, save it, and go on from checkpoints.

Accelerate shards weights where there are several GPUs or the like alone. Here its state says so of two processes on
CPUs with gloo, where torch's `fully_shard` works as well.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from conftest import build_model, build_tokenizer
from training.test_trainer import arguments, lists, pairs

from cross_trainer import CrossEncoderTrainer, LambdaLoss, PairCollator
from cross_trainer.errors import ConfigurationError


def shard_on_cpus(state_dict_type: str) -> None:
    """Let the next trainer shard its model by FSDP2."""
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": state_dict_type,
        "FSDP_RESHARD_AFTER_FORWARD": "true",
    }
    AcceleratorState._reset_state()
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU


CASES = {"pairs": (pairs(29), None), "lists": (lists(29), LambdaLoss())}  # of which a process lacks rows in the end


def train(folder: Path, case: str, sharding: str | None, resume: str | None = None) -> CrossEncoderTrainer:
    rows, loss = CASES[case]
    args = arguments(
        folder,
        per_device_train_batch_size=8 // int(os.environ["WORLD_SIZE"]),
        max_steps=4,
        save_strategy="steps",
        save_steps=2,
        learning_rate=0.05,
        optim="sgd",
    )
    if sharding is not None:
        assert args.world_size == 2
        shard_on_cpus(sharding)
    trainer = CrossEncoderTrainer(
        build_model(),
        args,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=PairCollator(build_tokenizer()),
        compute_loss_func=loss,
        max_tokens=48,
    )
    assert trainer.plan.padding_free
    assert trainer.is_fsdp_enabled == (sharding is not None)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(folder / "saved")
    return trainer


def main(folder: Path) -> None:
    several = os.environ["WORLD_SIZE"] != "1"
    for case in CASES:
        trainer = train(folder / case, case, "FULL_STATE_DICT" if several else None)
        loss = trainer.evaluate()["eval_loss"]
        if trainer.is_world_process_zero():
            (folder / case / "loss.json").write_text(json.dumps(loss))
    if several:
        assert type(trainer.model).__name__ == "FSDPBertForSequenceClassification"
        assert any(hasattr(parameter, "to_local") for parameter in trainer.model.parameters())
        train(folder / "in parts", "pairs", "SHARDED_STATE_DICT")
        train(folder / "resumed", "pairs", "SHARDED_STATE_DICT", str(folder / "in parts" / "checkpoint-2"))
        with pytest.raises(ConfigurationError, match="all states in each process, and this is a training by FSDP"):
            train(folder / "refused", "pairs", "FULL_STATE_DICT", str(folder.parent / "1" / "pairs" / "checkpoint-2"))
        os.environ["ACCELERATE_USE_FSDP"] = "false"
        with pytest.raises(ConfigurationError, match="by FSDP, and this is a training with all states"):
            train(folder / "refused", "pairs", None, str(folder / "in parts" / "checkpoint-2"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
