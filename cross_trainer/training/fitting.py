"""fit: the call by which sentence-transformers' CrossEncoder trains, done by `CrossEncoderTrainer`.

    model.fit(train_dataloader=DataLoader(samples, shuffle=True, batch_size=16), evaluator=evaluator, epochs=4,
    output_path="output")

It trains on the examples of a DataLoader in that loader's order, calls an evaluator after every epoch, and saves the
model that the evaluator liked best. For data sets, metrics, checkpoints and resuming use `CrossEncoderTrainer` itself.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch.utils.data import DataLoader, Sampler
from transformers import TrainerCallback, TrainingArguments

from cross_trainer.data.collator import PairCollator
from cross_trainer.data.columns import Rows
from cross_trainer.errors import ConfigurationError
from cross_trainer.saved.activation import saved_activation
from cross_trainer.saved.card import CardFacts
from cross_trainer.training.trainer import CrossEncoderTrainer

logger = logging.getLogger(__name__)

CrossEncoder: TypeAlias = Any  # of `cross_encoder.py`, which imports this module

SCHEDULERS = {
    "constantlr": "constant",
    "warmupconstant": "constant_with_warmup",
    "warmuplinear": "linear",
    "warmupcosine": "cosine",
    "warmupcosinewithhardrestarts": "cosine_with_restarts",
}
"""sentence-transformers' names of schedules, in lower case, and transformers'."""


@dataclass(frozen=True)
class FitSettings:
    """The arguments of `CrossEncoder.fit`, which documents them."""

    evaluator: Callable[..., Any] | None
    epochs: float
    loss_fct: Callable[..., Any] | None
    activation_fct: torch.nn.Identity | None
    scheduler: str
    warmup_steps: float
    optimizer_class: type[torch.optim.Optimizer]
    optimizer_params: Mapping[str, Any] | None
    weight_decay: float
    evaluation_steps: int
    output_path: str | Path | None
    save_best_model: bool
    max_grad_norm: float
    use_amp: bool
    callback: Callable[[float, float, int], Any] | None
    show_progress_bar: bool | None
    seed: int

    def __post_init__(self) -> None:
        if isinstance(self.loss_fct, torch.nn.Module):
            raise ConfigurationError(
                f"loss_fct={self.loss_fct}: expected a callable (outputs, labels, num_items_in_batch), such as "
                "BinaryCrossEntropyLoss(pos_weight=...) or CrossEntropyLoss() of cross_trainer."
            )
        if self.activation_fct is not None and not isinstance(self.activation_fct, torch.nn.Identity):
            raise ConfigurationError(
                f"activation_fct={self.activation_fct}: losses here take logits, and squash them where they have to. "
                "Leave it out; for the squared error of sigmoids pass loss_fct=MSELoss(), and for any other activation "
                "a callable (outputs, labels, num_items_in_batch) that applies it to outputs.logits."
            )
        alone = "evaluation_steps" if self.evaluation_steps else "callback" if self.callback is not None else None
        if self.evaluator is None and alone is not None:
            raise ConfigurationError(f"{alone} needs an evaluator, which gives the score: pass evaluator=... as well.")


def fit(
    encoder: CrossEncoder, train_dataloader: DataLoader[Any], settings: FitSettings, *, keep_activation: bool
) -> None:
    """Train an encoder's model in place; see `CrossEncoder.fit`. `keep_activation` leaves the encoder's activation.

    Raises:
        ConfigurationError: The loader has no batch size or no length, or an argument can't be followed.
        DataError: An example can't be trained on; the message names the column and the row.
    """
    dataset = _examples(train_dataloader)
    with _folder(settings.output_path) as folder:
        evaluation = None if settings.evaluator is None else _Evaluation(encoder, settings)
        trainer = _FitTrainer(
            train_dataloader.sampler,
            model=encoder.model,
            args=_arguments(encoder, train_dataloader, settings, folder),
            train_dataset=dataset,
            data_collator=PairCollator(encoder.tokenizer, **encoder.reading),
            compute_loss_func=settings.loss_fct,
            callbacks=[] if evaluation is None else [evaluation],
            optimizer_cls_and_kwargs=(settings.optimizer_class, {"lr": 2e-5, **(settings.optimizer_params or {})}),
            card_examples=0,
            card_figures=False,
        )
        if evaluation is not None:
            evaluation.facts = trainer.facts
        if not keep_activation:
            encoder.activation_fn = saved_activation(encoder.config)  # the trainer has written what the loss asks for
        encoder.add_trained_rows(trainer.trained_rows(begun=True))  # evaluators may save before the end
        trainer.train()
        encoder.model.train(False)
        encoder.card_facts = trainer.facts()
        keeps_last = evaluation is None or not settings.save_best_model
        if settings.output_path is not None and keeps_last and trainer.args.should_save:
            encoder.save_pretrained(settings.output_path)


class _FitTrainer(CrossEncoderTrainer):
    """Draws rows as the given loader would."""

    def __init__(self, sampler: Any, **options: Any) -> None:
        self._sampler: Sampler[int] = sampler
        super().__init__(**options)

    def train_sampler(self, _: Rows | None) -> Sampler[int] | None:
        return self._sampler

    def facts(self) -> CardFacts:
        """What the model card says of this training, so far."""
        return self._record.facts(self, self.state.global_step, Path(self._output_dir), "", quick=True)


class _Evaluation(TrainerCallback):
    """Call the evaluator, keep the best model, tell the caller."""

    def __init__(self, encoder: CrossEncoder, settings: FitSettings) -> None:
        self.encoder = encoder
        self.settings = settings
        self.best: float | None = None
        self.evaluated_at = -1
        self.facts: Callable[[], CardFacts] | None = None

    def on_step_end(self, args: TrainingArguments, state: Any, *_: Any, **__: Any) -> None:
        if self.settings.evaluation_steps and state.global_step % self.settings.evaluation_steps == 0:
            self._evaluate(args, state)

    def on_epoch_end(self, args: TrainingArguments, state: Any, *_: Any, **__: Any) -> None:
        if self.evaluated_at != state.global_step:
            self._evaluate(args, state)

    def _evaluate(self, args: TrainingArguments, state: Any) -> None:
        self.evaluated_at = state.global_step
        output = self.settings.output_path
        written = None if output is None or not state.is_world_process_zero else str(Path(output, "eval"))
        assert self.settings.evaluator is not None
        training = self.encoder.model.training
        found = self.settings.evaluator(self.encoder, output_path=written, epoch=state.epoch, steps=state.global_step)
        self.encoder.model.train(training)
        score = _score(self.settings.evaluator, found)
        logger.info("Epoch %.2f, step %d: the evaluator gives %.4f.", state.epoch, state.global_step, score)
        sign = 1 if getattr(self.settings.evaluator, "greater_is_better", True) else -1
        if math.isnan(score):
            logger.warning("Step %d: the evaluator gives NaN. Any number counts as better.", state.global_step)
        if self.best is None or math.isnan(self.best) or sign * score > sign * self.best:
            self.best = score
            if output is not None and self.settings.save_best_model and args.should_save:
                self.encoder.card_facts = None if self.facts is None else self.facts()
                self.encoder.save_pretrained(output)
        if self.settings.callback is not None:
            self.settings.callback(score, state.epoch, state.global_step)


def _score(evaluator: Any, found: Any) -> float:
    """The one number that decides: what the evaluator returned, or the entry that it calls its primary metric."""
    if not isinstance(found, Mapping):
        return float(found)
    name = getattr(evaluator, "primary_metric", None)
    if name not in found:
        raise ConfigurationError(
            f"The evaluator returned {list(found)}, and its primary_metric is {name!r}. Let it return one number, or "
            "name one of them there."
        )
    return float(found[name])


def _examples(train_dataloader: DataLoader[Any]) -> Rows:
    """The rows behind a loader, whose own collation isn't used."""
    if train_dataloader.batch_size is None or isinstance(train_dataloader.dataset, torch.utils.data.IterableDataset):
        raise ConfigurationError(
            "fit() takes the batch size and the order of a DataLoader over a data set with a length: give DataLoader("
            "samples, shuffle=True, batch_size=16). Train on streams with CrossEncoderTrainer."
        )
    return train_dataloader.dataset


def _arguments(
    encoder: CrossEncoder, train_dataloader: DataLoader[Any], settings: FitSettings, folder: str
) -> TrainingArguments:
    show = sys.stderr.isatty() if settings.show_progress_bar is None else settings.show_progress_bar
    return TrainingArguments(
        folder,
        per_device_train_batch_size=train_dataloader.batch_size or 1,
        dataloader_drop_last=train_dataloader.drop_last,
        num_train_epochs=settings.epochs,
        lr_scheduler_type=SCHEDULERS.get(settings.scheduler.lower(), settings.scheduler),
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.use_amp,
        use_cpu=encoder.device.type == "cpu",
        dataloader_pin_memory=encoder.device.type == "cuda",
        disable_tqdm=not show,
        save_strategy="no",
        report_to="none",
        seed=settings.seed,
    )


@contextlib.contextmanager
def _folder(output_path: str | Path | None) -> Iterator[str]:
    """Where the trainer may write: the caller's folder, or one that is gone afterwards."""
    if output_path is not None:
        yield str(output_path)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield folder
