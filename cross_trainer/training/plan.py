"""What is chosen from the data where nothing was given: the model's head, the loss and the metrics.

| labels                                        | num_labels | loss                   | metrics                 |
|-----------------------------------------------|------------|------------------------|-------------------------|
| 0 and 1, booleans, a `ClassLabel` of two names | 1          | BinaryCrossEntropyLoss | binary_metrics          |
| other numbers in [0, 1]                       | 1          | BinaryCrossEntropyLoss | correlation_metrics     |
| integers above 1, names, other `ClassLabel`s   | C          | CrossEntropyLoss       | multiclass_metrics      |
| lists of C numbers                            | C          | BinaryCrossEntropyLoss | multilabel_metrics      |
| one whole number a document                   | 1          | LambdaLoss             | ranking_metrics         |
| positive and negatives, no label              | 1          | InfoNCELoss            | ranking_metrics         |
| positive and negative with a margin           | 1          | MarginMSELoss          | ranking_metrics         |
| other numbers, as a teacher's scores          | 1          | KLDivergenceLoss       | none                    |

A model whose config says `problem_type="regression"` gets `MSELoss(activation="identity")` for numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from cross_trainer.data.columns import Columns, Rows
from cross_trainer.data.survey import Survey, check_classes, check_range
from cross_trainer.errors import ConfigurationError
from cross_trainer.metrics.pairs import binary_metrics, correlation_metrics, multiclass_metrics, multilabel_metrics
from cross_trainer.metrics.rankings import ranking_metrics
from cross_trainer.saved.folder import has_own_labels, name_labels
from cross_trainer.training.losses import (
    BinaryCrossEntropyLoss,
    CrossEntropyLoss,
    InfoNCELoss,
    KLDivergenceLoss,
    LambdaLoss,
    MarginMSELoss,
    MSELoss,
)

if TYPE_CHECKING:
    from transformers import EvalPrediction

logger = logging.getLogger(__name__)


def choose_num_labels(found: Survey) -> int:
    """How many logits a model needs for the labels found in its training data."""
    if found.kind == "multi":
        return found.width
    if found.kind == "class":
        return len(found.class_names) if found.class_names is not None else int(found.maximum) + 1
    return 1


def assume_labels(config: Any) -> Survey:
    """What labels to expect by a model's config alone, where another collator makes them out of rows of its own kind."""
    if config.problem_type == "multi_label_classification":
        return Survey(kind="multi", width=config.num_labels)
    return Survey(kind="class" if config.num_labels > 1 else "real")


def load_model(name: str, found: Survey) -> PreTrainedModel:
    """Load a sequence classifier in float32 with as many labels as the data asks for.

    A classification head of that size is kept, another one is replaced and logged by transformers. Weights are float32,
    because updates at usual learning rates are lost on half-precision weights; mixed precision is the Trainer's affair.
    """
    config = AutoConfig.from_pretrained(name, num_labels=choose_num_labels(found))
    if found.kind == "class" and found.class_names is not None and set(config.label2id) != set(found.class_names):
        name_labels(config, found.class_names)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        name, config=config, dtype=torch.float32, ignore_mismatched_sizes=True
    )
    return model


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
            f"The data needs num_labels={expected}, the model has {config.num_labels}. Load it with num_labels={expected}."
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


def check_labels(
    loss: Callable[..., Any] | None, dataset: Rows, columns: Columns, found: Survey, num_labels: int
) -> None:
    """Check a data set's labels against what the loss can be computed on.

    Raises:
        DataError: A label lies outside the loss's range; the message names the column, the row and the remedy.
    """
    if found.kind == "none":
        return
    probabilities = isinstance(loss, BinaryCrossEntropyLoss) or (
        isinstance(loss, MSELoss) and loss.activation == "sigmoid"
    )
    if probabilities and not found.names:
        scale = "" if found.minimum < 0 else f"(x / {found.maximum:g} for instance) "
        check_range(
            dataset,
            columns,
            found,
            0,
            1,
            f"Scale the labels to [0, 1] {scale}or pass "
            "compute_loss_func=MSELoss(activation='identity') to regress on raw values.",
        )
    elif isinstance(loss, CrossEntropyLoss):
        check_classes(dataset, columns, found, num_labels)
    elif isinstance(loss, InfoNCELoss | LambdaLoss):
        check_range(dataset, columns, found, 0, float("inf"), "Relevance is 0 or more.")


def _label_names(config: Any) -> list[str] | None:
    """Names for the keys of metrics, in the order of the labels' index."""
    return [config.id2label[index] for index in range(config.num_labels)] if has_own_labels(config) else None
