"""Trains in forked children that end by `kill -9` in a step, a save or an evaluation, goes on from what they left, and
writes down what came of it. One process imports torch, for all of them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections import defaultdict
from pathlib import Path

import scipy.stats  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch
from conftest import build_model, build_tokenizer
from datasets import Dataset
from training.test_trainer import arguments, lists, pairs, positives

from cross_trainer import ConfigurationError, CrossEncoderTrainer, PairCollator
from cross_trainer.training.checkpoints import last_complete_checkpoint

PHASES = {"step": "training_step", "evaluation": "evaluation_loop", "save": "_save_checkpoint"}


def numbered(rows: int) -> Dataset:
    """Pairs that are all different."""
    return pairs(rows).map(lambda row, index: {"a": f"{index} {row['a']}"}, with_indices=True)


CASES = {
    "mapped": (lambda: pairs(21), {"save_total_limit": 1}, {"swap": True}, {}),
    "lists": (lambda: lists(11), {"save_total_limit": 2, "load_best_model_at_end": True}, {}, {}),
    "stream": (lambda: numbered(20).to_iterable_dataset(num_shards=4).shuffle(seed=1, buffer_size=1), {}, {}, {}),
    "tokens": (lambda: pairs(21), {"gradient_accumulation_steps": 2}, {}, {"max_tokens": 48}),
    "negatives": (lambda: positives(13), {"save_total_limit": 1}, {"in_batch_negatives": 2}, {}),
}
"""Rows, and arguments of the training, of the collator and of the trainer."""


def build(case: str, folder: Path) -> CrossEncoderTrainer:
    rows, training, collating, others = CASES[case]
    steps = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 6}
    return CrossEncoderTrainer(
        build_model(dropout=0.1),
        arguments(folder, per_device_train_batch_size=4, num_train_epochs=3, **steps, **training),
        train_dataset=rows(),
        eval_dataset=lists(5) if case == "lists" else positives(5) if case == "negatives" else pairs(5),
        data_collator=PairCollator(build_tokenizer(), **collating),
        card_figures=False,
        **others,
    )


class Calls:
    """Counts the calls of Python functions in each phase of a training, and may end it by `kill -9` at one of them."""

    def __init__(self, trainer: CrossEncoderTrainer, at: tuple[str, int, int] | None = None) -> None:
        self.counts: dict[str, list[int]] = defaultdict(list)
        self.at = at
        for phase, name in PHASES.items():
            setattr(trainer, name, self.counted(phase, getattr(trainer, name)))

    def counted(self, phase: str, method):
        def call(*args, **kwargs):
            counts = self.counts[phase]
            counts.append(0)
            last = self.at[2] if self.at is not None and self.at[:2] == (phase, len(counts) - 1) else None

            def count(*_):
                counts[-1] += 1
                if counts[-1] == last:
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.setprofile(count)
            try:
                return method(*args, **kwargs)
            finally:
                sys.setprofile(None)
                if last is not None:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call


def resume(trainer: CrossEncoderTrainer) -> None:
    """What somebody does after a kill: go on from the last checkpoint, or begin again if there is none."""
    try:
        last_complete_checkpoint(trainer.args.output_dir)
    except ConfigurationError:
        trainer.train()
    else:
        trainer.train(resume_from_checkpoint=True)


def digest(trainer: CrossEncoderTrainer) -> dict[str, str]:
    """Hashes of all that a training leaves."""
    folder = Path(trainer.args.output_dir, "checkpoint-6")
    optimizer = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
    moments = b"".join(value.numpy().tobytes() for state in optimizer.values() for value in state.values())
    state = json.loads((folder / "trainer_state.json").read_text())
    log = [
        {key: value for key, value in entry.items() if not key.endswith(("runtime", "per_second", "_fraction"))}
        for entry in state["log_history"]
    ]
    parts = {
        "weights": (folder / "model.safetensors").read_bytes(),
        "model": b"".join(tensor.numpy().tobytes() for tensor in trainer.model.state_dict().values()),
        "optimizer": moments,
        "log": json.dumps(log).encode(),
        "rows": (folder / "trained_rows.npy").read_bytes(),
        "random": str(torch.get_rng_state().tolist()).encode(),
    }
    return {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}


def child(work, written: Path) -> object:
    """What `work` returns in a forked child, or None if the child was killed."""
    process = os.fork()
    if not process:
        try:
            written.write_text(json.dumps(work()))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    assert status == 0, "see the traceback above"
    return json.loads(written.read_text())


def run(case: str, folder: Path, at: tuple[str, int, int] | None = None) -> dict:
    trainer = build(case, folder)
    calls = Calls(trainer, at)
    trainer.train()
    return {"counts": calls.counts, "digest": digest(trainer)}


def go_on(case: str, folder: Path) -> dict:
    trainer = build(case, folder)
    resume(trainer)
    return digest(trainer)


def main(folder: Path, kills: int) -> None:
    draw, results, whole = random.Random(8), [], {}
    for case in CASES:
        whole[case] = child(lambda case=case: run(case, folder / "whole"), folder / "result.json")
        shutil.rmtree(folder / "whole")
    for number in range(kills):
        case, phase = list(CASES)[number % len(CASES)], list(PHASES)[number % len(PHASES)]
        counts = whole[case]["counts"][phase]
        turn = draw.randrange(len(counts))
        at, place = (phase, turn, 1 + draw.randrange(counts[turn])), folder / str(number)
        killed = child(lambda case=case, at=at, place=place: run(case, place, at), folder / "result.json") is None
        left = {path.name: (path / "trainer_state.json").exists() for path in sorted(place.glob("checkpoint-*"))}
        after = child(lambda case=case, place=place: go_on(case, place), folder / "result.json")
        differs = [name for name, value in whole[case]["digest"].items() if after[name] != value]
        results.append({"case": case, "at": at, "killed": killed, "left": left, "differs": differs})
        shutil.rmtree(place)
    (folder / "results.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
