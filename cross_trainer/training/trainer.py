"""CrossEncoderTrainer: `transformers.Trainer` for models that read two texts at once.

    trainer = CrossEncoderTrainer("distilroberta-base", TrainingArguments("output"), train_dataset=pairs,
    eval_dataset=held_out) trainer.train()

The loop, the schedules, the checkpoints and the devices are the Trainer's. This class chooses collator, loss and
metrics from the data where they aren't given, checks the data before anything long starts, and overrides what isn't
right for pairs of texts: how many items a loss averages over, in which order rows are evaluated, and what a saved
folder holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import itertools
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, TrainOutput

from cross_trainer.data.collator import PairCollator
from cross_trainer.data.columns import NUM_RELEVANT, Columns, Rows, first_row, is_stream, resolve_columns
from cross_trainer.data.survey import Survey, survey, text_lengths
from cross_trainer.errors import ConfigurationError, DataError, UnsupportedModelError
from cross_trainer.execution.padding_free import enable_padding_free, unpad_indices
from cross_trainer.execution.token_budget import CPU_TOKENS, budgeted_forward, budgeted_step
from cross_trainer.saved.folder import describe_scores, position_limit, save_tokenizer
from cross_trainer.training.losses import to_grid
from cross_trainer.training.plan import (
    adopt_class_names,
    assume_labels,
    check_labels,
    choose_loss,
    choose_metrics,
    load_model,
)
from cross_trainer.training.sharding import FilledDataset, FilledStream, fill_batches

logger = logging.getLogger(__name__)

STREAM_SAMPLE = 1_000  # rows of a stream that are looked at before training
TRUNCATION_WARNING = 0.05  # share of truncated pairs above which a warning is due


class CrossEncoderTrainer(Trainer):
    """A `transformers.Trainer` whose model scores pairs of texts.

    All of Trainer's arguments keep their meaning; those that aren't given are chosen from the data, see
    `cross_trainer.training.plan`.

    Args:
        model: A sequence classifier, or the name or folder of any pretrained model. For a name, `num_labels`, label
            names and the tokenizer follow from the training data.
        args: Standard `TrainingArguments`.
        data_collator: Default: `PairCollator(processing_class)`. Another collator gets rows as `transformers.Trainer`
            gives them.
        train_dataset: Rows of any shape that `cross_trainer.data.columns` knows, from a `Dataset`, an
            `IterableDataset`, a torch `Dataset` or a list. Of a `DatasetDict` the split "train" is taken, and
            "validation" where `eval_dataset` isn't given.
        eval_dataset: Likewise, or a mapping from names to data sets.
        processing_class: The tokenizer. Default: the collator's, else the one that lies beside the model.
        compute_loss_func: A loss of `cross_trainer.training.losses`, or any callable `(outputs, labels,
            num_items_in_batch)`.
        compute_metrics: A factory's result of `cross_trainer.metrics`, or any callable on an `EvalPrediction`, whose
            predictions are logits [P, C], or [G, D] beside labels [G, D] for queries with several documents.
        padding_free: Compute no padding inside the transformer layers. Where the model doesn't allow it, batches on the
            CPU are cut into pieces of similar lengths, if the loss adds up over rows, which avoids most of it.
        max_tokens: No forward pass sees more than so many tokens; larger batches are cut, with the same gradient. On
            CPUs the pieces of training hold `cross_trainer.token_budget.CPU_TOKENS` at most.
        model_init, callbacks, optimizers, optimizer_cls_and_kwargs, preprocess_logits_for_metrics: As in
        `transformers.Trainer`.

    Raises:
        DataError: A row can't be trained or evaluated on; the message names the column, the row and the remedy.
        ConfigurationError: Arguments contradict each other, the data or the model.
    """

    # compute_loss_func averages over the whole accumulated batch.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel | torch.nn.Module | str | None = None,
        args: TrainingArguments | None = None,
        data_collator: Callable[..., Any] | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        compute_loss_func: Callable[..., Any] | None = None,
        compute_metrics: Callable[..., dict[str, float]] | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[..., Any] | None = None,
        *,
        padding_free: bool = True,
        max_tokens: int | None = None,
    ) -> None:
        args = args if args is not None else TrainingArguments("tmp_trainer")
        if isinstance(train_dataset, Mapping):
            eval_dataset = train_dataset.get("validation") if eval_dataset is None else eval_dataset
            train_dataset = _split(train_dataset, "train")
        tokenizer: Any = processing_class if processing_class is not None else getattr(data_collator, "tokenizer", None)
        if tokenizer is None and (data_collator is None or isinstance(model, str)):
            tokenizer = _load_tokenizer(model)
        self.data_collator = PairCollator(tokenizer) if data_collator is None else data_collator
        self.padding_free = padding_free
        self.max_tokens = max_tokens
        self._surveys: dict[int, tuple[Rows, Columns, Survey]] = {}
        self._found: Survey | None = None  # what the model's config was described by
        self._logged = dict.fromkeys(("pairs", "tokens", "padding", "truncated"), 0)
        self._warned_of_truncation = False
        eval_datasets = _each(eval_dataset)
        reference = train_dataset if train_dataset is not None else next(iter(eval_datasets), None)
        if isinstance(model, str):
            if reference is None:
                raise ConfigurationError(
                    f"model={model!r}: how many labels it needs follows from the data. Give a train_dataset, or "
                    "load the model yourself."
                )
            set_seed(args.seed)  # a new head's random weights
            model = load_model(model, self._survey(reference)[1])
        super().__init__(
            model=model,
            args=args,
            data_collator=self.data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            model_init=model_init,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        # Sequence classifiers take the number of items as a keyword and ignore it.
        self.model_accepts_loss_kwargs = False
        self._metrics_follow_data = compute_metrics is None
        if reference is not None:
            self._settle(reference)
        self._prepare_model(self.model)
        for dataset in (train_dataset, *eval_datasets):
            if dataset is not None and isinstance(self.data_collator, PairCollator):
                self._columns(dataset)
        if self._metrics_follow_data and eval_datasets:
            self._choose_metrics(eval_datasets[0])

    # -- the model -----------------------------------------------------------------------------------------------------

    @property
    def _config(self) -> Any:  # a PretrainedConfig, whose label fields are typed as optional
        return self.accelerator.unwrap_model(self.model).config

    @property
    def _output_dir(self) -> str:
        assert self.args.output_dir is not None  # TrainingArguments fill it in
        return self.args.output_dir

    def call_model_init(self, trial: Any = None) -> torch.nn.Module:
        """A fresh model from `model_init`, described and set up as the first one was."""
        model = super().call_model_init(trial)
        if hasattr(self, "_metrics_follow_data"):  # the first model is prepared at the end of construction
            self._prepare_model(model)
        return model

    def _settle(self, dataset: Rows) -> None:
        """Choose the loss by a data set's labels where none was given."""
        columns, found = self._survey(dataset)
        if self.args.label_smoothing_factor and self.compute_loss_func is not None:
            logger.warning(
                "label_smoothing_factor has no effect beside compute_loss_func: %s smooths by itself or not at all.",
                self.compute_loss_func,
            )
        self._found = found
        adopt_class_names(self._config, found)
        if self.compute_loss_func is None:
            self.compute_loss_func = choose_loss(columns, found, self._config, self.args.label_smoothing_factor)
            logger.info("Loss chosen for %s labels: %s", found.kind, self.compute_loss_func)

    def _prepare_model(self, model: Any) -> None:
        """Write into the config what scores mean, fit tokenizer and model to each other, take out the padding."""
        config = model.config
        if self._found is not None:
            adopt_class_names(config, self._found)
        activation = getattr(self.compute_loss_func, "score_activation", None)
        if activation is not None:
            describe_scores(config, activation)
        collator, limit = self.data_collator, position_limit(config)
        if isinstance(collator, PairCollator):
            if collator.max_length is not None and limit is not None and collator.max_length > limit:
                raise ConfigurationError(
                    f"max_length={collator.max_length}, but the model has positions for {limit} tokens only."
                )
            if limit is not None and (collator.length_limit or limit + 1) > limit:
                collator.max_length = limit
            if collator.tokenizer.pad_token is None:
                collator.tokenizer.pad_token = collator.tokenizer.eos_token
            if config.pad_token_id is None:
                config.pad_token_id = collator.tokenizer.pad_token_id
        self._runs_padding_free = self.padding_free
        self._budget = self.max_tokens
        if self.padding_free:
            try:
                enable_padding_free(model)
            except UnsupportedModelError as reason:
                self._runs_padding_free = False
                logger.info("Padding-free execution is off: %s", reason)
                self._sort_by_length()

    def _sort_by_length(self) -> None:
        """Cut batches into pieces of similar lengths, where that costs nothing: no second pass, and no device that small pieces idle."""
        separable = not getattr(self.compute_loss_func, "couples_rows", True)
        if (
            self._budget is None
            and separable
            and self.args.device.type == "cpu"
            and isinstance(self.data_collator, PairCollator)
        ):
            self._budget = CPU_TOKENS
            logger.info("Batches are cut into pieces of similar lengths of %d tokens at most instead.", self._budget)

    # -- the data ------------------------------------------------------------------------------------------------------

    def _survey(self, dataset: Rows) -> tuple[Columns, Survey]:
        """Columns of a data set and what reading it found, once a data set; of a stream the first rows are read."""
        known = self._surveys.get(id(dataset))
        if known is None or known[0] is not dataset:
            rows = list(itertools.islice(iter(dataset), STREAM_SAMPLE)) if is_stream(dataset) else dataset
            collator = self.data_collator
            if not isinstance(collator, PairCollator) and "input_ids" not in first_row(rows):
                return Columns("input_ids", shape="tokens"), assume_labels(self._config)  # another collator's business
            asked = getattr(collator, "columns", None)
            names = asked.names if isinstance(asked, Columns) else asked
            if self._surveys and names is not None and not set(names) & set(first_row(rows)):
                asked = None  # a set of another shape than the one that the names are for
            columns = resolve_columns(dataset, asked, getattr(collator, "in_batch_negatives", 0))
            known = (dataset, columns, survey(rows, columns))
            self._surveys[id(dataset)] = known
        return known[1:]

    def _columns(self, dataset: Rows) -> Columns:
        """Columns of a data set with its labels checked against the loss and translated into the model's."""
        columns, found = self._survey(dataset)
        if self.compute_loss_func is None and found.kind != "none":
            self._settle(dataset)
            self._prepare_model(self.model)
        classes = self._config.num_labels > 1 and found.kind != "multi"
        columns = dataclasses.replace(
            columns,
            label2id=dict(self._config.label2id) if classes and found.class_names is not None else None,
            float_labels=found.kind == "real",
            label_width=found.width,
        )
        check_labels(self.compute_loss_func, dataset, columns, found, self._config.num_labels)
        return columns

    def _choose_metrics(self, dataset: Rows) -> None:
        sigmoid = getattr(self.compute_loss_func, "score_activation", None) == "sigmoid"
        activation: Literal["sigmoid", "identity"] = "sigmoid" if sigmoid else "identity"
        chosen = choose_metrics(*self._survey(dataset), self._config, activation)
        if repr(chosen) != repr(self.compute_metrics):
            logger.info("Metrics chosen from the labels: %s", chosen)
        self.compute_metrics = chosen

    def _get_dataloader(
        self,
        dataset: Rows,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader[Any]:
        if self._metrics_follow_data and not is_training:
            self._choose_metrics(dataset)
        collator = self.data_collator
        if not isinstance(collator, PairCollator):
            return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)
        if self.args.dataloader_num_workers:
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # each worker is a process of its own
        processes = self.accelerator.num_processes
        self.data_collator = collator.for_dataset(self._columns(dataset), training=is_training)
        try:
            if is_stream(dataset):
                accumulation = self.args.gradient_accumulation_steps if is_training else 1
                dataset = FilledStream(dataset, batch_size * processes * accumulation)
                return super()._get_dataloader(dataset, description, batch_size, None, is_training, dataloader_key)
            if not is_training or processes == 1 or self.args.dataloader_drop_last:
                return super()._get_dataloader(
                    dataset, description, batch_size, sampler_fn, is_training, dataloader_key
                )
            filled = FilledDataset(self._remove_unused_columns(dataset, description))
            dataloader = super()._get_dataloader(
                filled, description, batch_size, sampler_fn, is_training, dataloader_key
            )
            fill_batches(dataloader, processes)
            return dataloader
        finally:
            self.data_collator = collator

    def _remove_unused_columns(self, dataset: Rows, description: str | None = None) -> Rows:
        columns = getattr(self.data_collator, "columns", None)
        if not isinstance(columns, Columns) or columns.shape == "tokens":
            return (
                super()._remove_unused_columns(dataset, description)
                if isinstance(dataset, datasets.Dataset)
                else dataset
            )
        return dataset.select_columns(columns.names) if isinstance(dataset, datasets.Dataset) else dataset

    def _get_collator_with_removed_columns(
        self, data_collator: Callable[..., Any], description: str | None = None
    ) -> Callable[..., Any]:
        if isinstance(data_collator, PairCollator):  # reads the columns that it knows
            return data_collator
        return super()._get_collator_with_removed_columns(data_collator, description)

    def _get_train_sampler(self, train_dataset: Rows | None = None) -> Sampler[int] | None:
        dataset = self.train_dataset if isinstance(self.data_collator, PairCollator) else train_dataset
        by_length = self.args.train_sampling_strategy in {"group_by_length", "batch_rebalance"}
        if by_length and isinstance(self.data_collator, PairCollator):
            name = self.args.length_column_name
            if name not in (getattr(dataset, "column_names", None) or ()):
                lengths = text_lengths(dataset, self._survey(dataset)[0])
                dataset = datasets.Dataset.from_dict({name: lengths})
        return super()._get_train_sampler(dataset)

    def _get_eval_sampler(self, eval_dataset: Rows) -> Sampler[int] | None:
        """Rows in their order, whatever the sampling strategy of training."""
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 and not is_stream(eval_dataset) else None

    def create_accelerator_and_postprocess(self) -> None:
        """Let every process read a stream by itself: dispatched batches would be sliced by their number of pairs."""
        super().create_accelerator_and_postprocess()
        if getattr(self.args.accelerator_config, "dispatch_batches", None) is None:
            self.accelerator.dataloader_config.dispatch_batches = False

    # -- training ------------------------------------------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train; `resume_from_checkpoint=True` goes on from the newest checkpoint that was written to its end.

        Raises:
            ConfigurationError: There is none.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self._output_dir)
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        # An evaluation before training marks the model as prepared, and it would train without the wrapper that synchronises.
        if self.model_wrapped is self.model and getattr(self.model, "_is_accelerate_prepared", False):
            self.model = self.model_wrapped = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            self.model._is_accelerate_prepared = False  # noqa: SLF001
        return super()._prepare_for_training(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        count = getattr(self.compute_loss_func, "count_items", None)
        if count is not None:
            # Trainer counts labels and gathers the count over processes; give it as many labels as the loss has items.
            numbers = [int(count(batch["labels"])) for batch in batch_samples if "labels" in batch]
            batch_samples = [{"labels": torch.zeros(number)} for number in numbers]
        return super()._get_num_items_in_batch(batch_samples, device)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of a batch as `transformers.Trainer` computes it, without what only metrics read."""
        inputs = {name: value for name, value in inputs.items() if name != NUM_RELEVANT}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward of a batch, cut by `max_tokens` where that is set."""
        if self._budget is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()  # type: ignore[union-attr]  # schedule-free optimisers have modes
        inputs = self._prepare_inputs({name: value for name, value in inputs.items() if name != NUM_RELEVANT})
        assert self.compute_loss_func is not None
        averaged = self.args.average_tokens_across_devices and num_items_in_batch is not None
        return budgeted_step(
            model,
            inputs,
            inputs.pop("labels"),
            self.compute_loss_func,
            self._budget,
            num_items=num_items_in_batch,
            scale=self.accelerator.num_processes if averaged else 1,
            backward=self.accelerator.backward,
            no_sync=functools.partial(self.accelerator.no_sync, model=model),
            padded=not self._runs_padding_free,
        )

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        # A compiled model can't look for the real tokens by itself without leaving its graph.
        if self.args.torch_compile and self._runs_padding_free and "attention_mask" in inputs:
            inputs["unpad_idx"] = unpad_indices(inputs["attention_mask"])
        return inputs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, beside the training loss also `padding_fraction` of tokens and `truncated_fraction` of pairs since the last log."""
        if "loss" in logs and isinstance(self.data_collator, PairCollator):
            logs.update(self._collating_fractions(self.data_collator))
        super().log(logs, start_time)

    def _collating_fractions(self, collator: PairCollator) -> dict[str, float]:
        counted = collator.statistics()
        since = torch.tensor([counted[name] - self._logged[name] for name in counted], device=self.args.device)
        self._logged = counted
        pairs, tokens, padding, truncated = self.accelerator.reduce(since).tolist()
        fractions = {
            "padding_fraction": padding / max(tokens + padding, 1),
            "truncated_fraction": truncated / max(pairs, 1),
        }
        if fractions["truncated_fraction"] > TRUNCATION_WARNING and not self._warned_of_truncation:
            self._warned_of_truncation = True
            logger.warning(
                "%.1f %% of the pairs are longer than %s tokens and were truncated (%s).",
                100 * fractions["truncated_fraction"],
                collator.length_limit,
                collator.truncation,
            )
        return fractions

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Predict all rows in order; the loss is that of all rows at once, and random numbers go on as if nothing had run."""
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        keep_random_state = contextlib.nullcontext() if self.is_in_train else torch.random.fork_rng(devices)
        with keep_random_state:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        labels = output.label_ids[0] if isinstance(output.label_ids, tuple) else output.label_ids
        own_loss = hasattr(self.compute_loss_func, "count_items") and self.preprocess_logits_for_metrics is None
        if own_loss and labels is not None and isinstance(output.predictions, np.ndarray):
            logits = SequenceClassifierOutput(logits=torch.from_numpy(output.predictions))
            assert self.compute_loss_func is not None
            assert output.metrics is not None
            output.metrics[f"{metric_key_prefix}_loss"] = self.compute_loss_func(
                logits, torch.from_numpy(labels)
            ).item()
        return output

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """Predict a batch; scores of queries with several documents come as a grid [G, D] beside their labels."""
        loss: Any
        logits: Any
        labels: Any
        forward: Any = model
        if self._budget is not None:
            forward = functools.partial(self._forward_by_budget, model)
        loss, logits, labels = super().prediction_step(forward, inputs, prediction_loss_only, ignore_keys)
        if (
            isinstance(labels, torch.Tensor)
            and isinstance(logits, torch.Tensor)
            and labels.dim() == 2
            and self._config.num_labels == 1
        ):
            logits = to_grid(logits, labels)
        if NUM_RELEVANT in inputs and labels is not None:
            labels = (labels, inputs[NUM_RELEVANT])
        return loss, logits, labels

    def _forward_by_budget(self, model: torch.nn.Module, **inputs: Any) -> SequenceClassifierOutput:
        inputs.pop("labels", None)
        assert self._budget is not None
        logits = budgeted_forward(model, inputs, self._budget, padded=not self._runs_padding_free)
        return SequenceClassifierOutput(logits=logits)

    def end(self) -> None:
        """Finish the trackers and leave the process group; nothing that speaks to other processes can follow.

        The wrapper that synchronises gradients is released before: freed last, it would free the group with Python's
            lock held, for
        which one of the group's own threads may be waiting.
        """
        self.model = self.model_wrapped = self.accelerator.unwrap_model(self.model_wrapped, keep_fp32_wrapper=False)
        self.callback_handler.model = self.model
        self.accelerator.free_memory()
        gc.collect()
        super().end()  # type: ignore[no-untyped-call]

    # -- saving --------------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        folder = output_dir if output_dir is not None else self._output_dir
        if self.args.should_save and isinstance(self.data_collator, PairCollator):
            save_tokenizer(self.data_collator.tokenizer, folder, self.data_collator.length_limit)


def last_complete_checkpoint(folder: str | Path) -> str:
    """The newest checkpoint in a folder whose `trainer_state.json`, which is written last, can be read.

    Raises:
        ConfigurationError: There is none.
    """
    checkpoints = Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    numbered = [
        (int(path.name.rsplit("-", 1)[1]), path) for path in checkpoints if path.name.rsplit("-", 1)[1].isdigit()
    ]
    for _, path in sorted(numbered, reverse=True):
        try:
            json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            logger.warning("Checkpoint %s was not written to its end. Going back to an older one.", path)
            continue
        return str(path)
    raise ConfigurationError(
        f"No complete checkpoint in {str(folder)!r} to resume from. Start without resume_from_checkpoint."
    )


def _split(splits: Mapping[str, Rows], name: str) -> Rows:
    if name not in splits:
        raise DataError(
            f"The data set has the splits {list(splits)}, but no {name!r}. Give one split as train_dataset."
        )
    return splits[name]


def _each(dataset: Rows | None) -> list[Rows]:
    """The data sets of an `eval_dataset`, which may be one, none, or a mapping of several."""
    if isinstance(dataset, Mapping):
        return list(dataset.values())
    return [] if dataset is None else [dataset]


def _load_tokenizer(model: PreTrainedModel | torch.nn.Module | str | None) -> PreTrainedTokenizerBase:
    name = model if isinstance(model, str) else getattr(model, "name_or_path", "")
    if not name:
        raise ConfigurationError("No tokenizer: give processing_class, or a data_collator that has one.")
    return AutoTokenizer.from_pretrained(name)
