"""Run by `test_hub.py`, with a Hub on this machine: train and push in several ways, and print what was said."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from conftest import SENTENCES, build_model, build_tokenizer
from transformers import TrainingArguments

from cross_trainer import CrossEncoderTrainer


class Said(logging.Handler):
    """Keeps warnings."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def train(folder, name, strategy, token):
    """Two checkpoints, a save and an explicit push."""
    said = Said()
    logger = logging.getLogger("cross_trainer")
    logger.addHandler(said)
    args = TrainingArguments(
        str(folder / name),
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        push_to_hub=True,
        hub_model_id=f"somebody/{name}",
        hub_strategy=strategy,
        hub_always_push=True,
        hub_token=token,
    )
    data = [
        (first, second, index % 2) for index, (first, second) in enumerate(zip(SENTENCES, SENTENCES[::-1], strict=True))
    ]
    trainer = CrossEncoderTrainer(build_model(), args, train_dataset=data, processing_class=build_tokenizer())
    trainer.train()
    trainer.save_model()
    error = None
    try:
        trainer.push_to_hub(language="en")
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    logger.removeHandler(said)
    return {"steps": trainer.state.global_step, "said": said.messages, "error": error}


if __name__ == "__main__":
    output, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    sys.stdout.write(json.dumps({case[0]: train(output, *case) for case in cases}) + "\n")
