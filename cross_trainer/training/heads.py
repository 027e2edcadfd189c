"""Where a new head starts: with a bias that gives the labels' average, before it has learnt to tell pairs apart.

A bias of 0 says one half. Where a tenth of the labels is positive, training has to find that first, and Adam moves a
bias by no more than the learning rate in a step, so that the layers below are bent instead.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from cross_trainer.data.survey import Survey
from cross_trainer.training.losses import BinaryCrossEntropyLoss, CrossEntropyLoss, ListNetLoss, MSELoss

logger = logging.getLogger(__name__)


def prior_logits(labels: Survey, loss: Any, config: Any) -> list[float] | None:
    """The logits [C] that minimise a loss without looking at the texts; None where only differences of logits count.

    >>> from transformers import BertConfig
    >>> labels = Survey(rows=10, kind="binary", numbers=10, total=1.0, counts={0: 9, 1: 1})
    >>> [round(logit, 2) for logit in prior_logits(labels, BinaryCrossEntropyLoss(), BertConfig(num_labels=1))]
    [-1.85]

    Half a row of each outcome is added to what was counted, so that none is impossible. Paper: Lin et al. 2017, Focal
    Loss for Dense Object Detection, section 4.1.

    Args:
        labels: What the training data's labels are.
        loss: Any. Others than binary cross-entropy (also as a part of ListNet), cross-entropy and squared error have no
            prior here.
        config: The model's, with the number and the names of labels.
    """
    if isinstance(loss, CrossEntropyLoss) and labels.kind in {"binary", "class"} and labels.counts:
        return _class_logits(labels, loss, config)
    if isinstance(loss, MSELoss) and loss.activation == "identity" and labels.kind != "multi" and labels.numbers:
        return [labels.total / labels.numbers]
    pointwise = isinstance(loss, ListNetLoss) and loss.pointwise > 0
    if not pointwise and not isinstance(loss, BinaryCrossEntropyLoss | MSELoss):
        return None
    positives = _positives(labels)
    if positives is None:
        return None
    weights = getattr(loss, "pos_weight", None)
    factors = weights if isinstance(weights, tuple) else (1.0 if weights is None else weights,) * len(positives)
    if len(factors) == 1:
        factors *= len(positives)
    if len(factors) != len(positives):
        return None  # the loss says more
    count = labels.rows if labels.kind == "multi" else labels.numbers
    return [
        math.log((positive * factor + 0.5) / (count - positive + 0.5))
        for positive, factor in zip(positives, factors, strict=True)
    ]


def _positives(labels: Survey) -> list[float] | None:
    """How much of the rows is positive, for each label; soft labels count in part."""
    if labels.kind != "multi":
        return [labels.total] if labels.numbers else None
    if labels.counts is None or not labels.whole:
        return None
    return [float(labels.counts.get(place, 0)) for place in range(labels.width)]


def _class_logits(labels: Survey, loss: CrossEntropyLoss, config: Any) -> list[float] | None:
    assert labels.counts is not None
    counts = [0.0] * int(config.num_labels)
    for label, count in labels.counts.items():
        name = label if labels.names or labels.class_names is None else labels.class_names[int(label)]
        place = config.label2id.get(name, -1) if isinstance(name, str) else int(name)
        if not 0 <= place < len(counts):
            return None  # the checks of labels say more
        counts[place] += count
    weights = loss.class_weights or (1.0,) * len(counts)
    if len(weights) != len(counts):
        return None  # the loss says more
    mass = [count * weight + 0.5 for count, weight in zip(counts, weights, strict=True)]
    return [math.log(each / sum(mass)) for each in mass]


def set_new_bias(model: Any, new: Collection[str], logits: Sequence[float] | None) -> None:
    """Put logits into the bias of a classifier's last layer, if that is new and has one.

    Args:
        model: A classifier, in float32.
        new: The names of its weights that no file held.
        logits: [C], or None for a bias that stays 0.
    """
    if logits is None or not new:
        return
    biases = [
        module.bias
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" in new and module.out_features == len(logits)
    ]
    if not biases or biases[-1] is None or len(biases[-1]) != len(logits):  # in parts, under ZeRO-3
        logger.info("The new head has no bias here that could start at %s.", [round(each, 2) for each in logits])
        return
    with torch.no_grad():
        biases[-1].copy_(torch.tensor(logits))
    logger.info("The new head's bias starts at %s, the labels' average.", [round(each, 2) for each in logits])
