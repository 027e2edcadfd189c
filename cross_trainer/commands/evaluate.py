"""Measure a model on labelled rows."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from cross_trainer.commands.arguments import NO_QUALITY

if TYPE_CHECKING:
    from datasets import Dataset

    from cross_trainer.scoring.cross_encoder import CrossEncoder


def measure_model(
    encoder: CrossEncoder,
    rows: Dataset,
    columns: tuple[str, ...] | None = None,
    confidence: float | None = None,
    batch_size: int = 64,
) -> dict[str, float]:
    """Measure a model on labelled rows; the metrics follow from the labels.

    Args:
        encoder: The model.
        rows: Pairs, or lists of documents, with labels.
        columns: The columns of the two texts, and of the label. Default: by their names and types.
        confidence: The level of bootstrap intervals, 0.95 say, in `<metric>_low` and `<metric>_high`. Default: none.
        batch_size: Rows that are scored together.

    Raises:
        DataError: A row can't be evaluated on; the message names it.
    """
    import torch
    from transformers import PrinterCallback, TrainingArguments

    from cross_trainer.data.collator import PairCollator
    from cross_trainer.training.trainer import CrossEncoderTrainer

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_eval_batch_size=batch_size,
            report_to="none",
            disable_tqdm=not sys.stderr.isatty(),
            dataloader_pin_memory=torch.accelerator.is_available(),
        )
        collator = PairCollator(encoder.tokenizer, encoder.max_length, columns=columns)
        options: dict[str, Any] = {"args": arguments, "eval_dataset": rows, "data_collator": collator}
        trainer = CrossEncoderTrainer(encoder.model, **options)
        if confidence is not None and trainer.compute_metrics is not None:
            chosen: Any = trainer.compute_metrics
            metrics = dataclasses.replace(chosen, confidence=confidence)
            trainer = CrossEncoderTrainer(encoder.model, **options, compute_metrics=metrics)
        trainer.remove_callback(PrinterCallback)
        measured = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
    return {name: value for name, value in measured.items() if name not in NO_QUALITY}
