"""Losses for `compute_loss_func` of any `transformers.Trainer`: over pairs of texts, two documents or whole lists.

    >>> Trainer(..., compute_loss_func=BinaryCrossEntropyLoss(pos_weight=3.0))  # doctest: +SKIP

A loss is a small frozen record. Two with the same settings are equal, `repr` shows them, and a call is

    loss(outputs, labels, num_items_in_batch=None) -> scalar

`outputs` is what the model returned: a mapping with "logits", a tuple, or the logits themselves. The result is the sum
over the loss's items divided by `num_items_in_batch`, the number of items in the whole batch, across all micro-batches
and processes. `count_items(labels)` is the number of items in one micro-batch; it is the divisor where
`num_items_in_batch` is None, which makes the result a mean. Without any items the result is 0, with a graph. Entries
labelled -100 are ignored.

    >>> scores, labels = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([[2.0, 1.0, 0.0]])
    >>> loss = RankNetLoss()
    >>> loss(scores, labels), loss.count_items(labels)
    (tensor(0.5845), tensor(3))
    >>> loss(scores, labels, num_items_in_batch=6)
    tensor(0.2922)

| loss                                       | an item is                             | labels              |
|--------------------------------------------|----------------------------------------|---------------------|
| BinaryCrossEntropyLoss, MSELoss            | a label                                | [P], [P, C], [G, D] |
| CrossEntropyLoss                           | a pair                                 | [P], classes        |
| RankNetLoss, LambdaLoss                    | two documents, one more relevant       | [G, D]              |
| MarginMSELoss                              | a positive and one of its negatives    | [G, D]              |
| ListNetLoss, ListMLELoss, KLDivergenceLoss | a group with a document                | [G, D]              |
| InfoNCELoss                                | a group with a positive and a negative | [G, D]              |
| ADRMSELoss                                 | a document                             | [G, D]              |

P pairs of texts, G groups (queries), D documents of the largest group, C classes. Labels [G, D] are padded with -100.
Their logits are flat, [P, 1] or [P], one for each real document in row-major order, or a grid [G, D].

A plain Trainer passes the number of labels other than -100. That is the count of a pointwise loss. For a loss over
lists it is the number of documents, which scales the mean and its gradient by (items / documents), like another
learning rate; `CrossEncoderTrainer` passes `count_items` instead. Half-precision logits are converted to float32.

`score_activation` names what turns a trained model's logits into scores. `couples_rows` says whether the gradient of
one row depends on other rows' logits.

A setting outside its range raises a ConfigurationError, and so does a call whose logits and labels don't match.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from cross_trainer.data.columns import IGNORED_LABEL
from cross_trainer.errors import ConfigurationError
from cross_trainer.execution.transfer import on_cpu, send
from cross_trainer.saved.folder import ScoreActivation

Scheme: TypeAlias = Literal["none", "ndcg1", "ndcg2", "lambdarank", "ndcg2++"]
Outputs: TypeAlias = "Mapping[str, Any] | Sequence[Any] | Tensor"
Items: TypeAlias = "int | float | Tensor | None"

_LOW = -1e30  # as good as minus infinity in a softmax, but differences of two of them are numbers


def to_grid(logits: Tensor, labels: Tensor, fill: float = float(IGNORED_LABEL)) -> Tensor:
    """Arrange scores like the labels of their documents.

        >>> to_grid(torch.tensor([[0.3], [0.1], [0.2]]), torch.tensor([[1, 0], [1, -100]]))
        tensor([[   0.3000,    0.1000],
                [   0.2000, -100.0000]])

    Args:
        logits: Scores of the real documents in row-major order, [P, 1] or [P], or a grid [G, D].
        labels: [G, D], -100 where there is no document.
        fill: The score where there is no document.

    Returns:
        Scores [G, D] of the logits' type. Without any real label, the logits are ignored and the whole grid is `fill`.

    Raises:
        ConfigurationError: Labels aren't [G, D], the model gives several scores per pair, or the numbers of scores and
            documents differ.
    """
    real = _real(labels)
    if logits.shape == labels.shape:
        return logits.masked_fill(~real, fill)
    if logits.dim() not in (1, 2) or logits.shape[1:].numel() != 1:
        raise ConfigurationError(
            f"Logits have the shape {list(logits.shape)} and labels {list(labels.shape)}: a document needs one score. "
            "Load the model with num_labels=1."
        )
    documents = int(_real(on_cpu(labels)).sum())
    if documents not in (0, logits.numel()):
        raise ConfigurationError(
            f"{logits.numel()} scores, but labels {list(labels.shape)} with {documents} documents (entries other than "
            "-100). Collate a pair of texts for each label, query by query, as PairCollator does. If pairs have "
            "several labels each, load the model with that many num_labels."
        )
    return logits.new_full(labels.shape, fill).masked_scatter(real, logits.reshape(-1))


# -- pointwise losses --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BinaryCrossEntropyLoss:
    """Binary cross-entropy of sigmoid(logit) and labels in [0, 1], which may be soft, over all labels of all pairs.

        >>> logits, labels = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0])
        >>> BinaryCrossEntropyLoss()(logits, labels), BinaryCrossEntropyLoss(pos_weight=3.0)(logits, labels)
        (tensor(0.2201), tensor(0.3470))

    Labels are [P] for logits [P, 1]; [P, C] for logits [P, C], where each of the C labels is an item; or [G, D] for one
    score per document.

    Args:
        pos_weight: Factor on the positive part: (pairs labelled 0) / (pairs labelled 1) balances the two. A number, or
            a sequence with one for each of the C labels.
    """

    pos_weight: float | tuple[float, ...] | None = None
    score_activation: ClassVar[ScoreActivation] = "sigmoid"
    couples_rows: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "pos_weight", _weights(self, "pos_weight", above=True))

    def __call__(self, outputs: Outputs, labels: Tensor, num_items_in_batch: Items = None) -> Tensor:
        """The loss, a scalar."""
        scores, targets, real = _entries(outputs, labels)
        weight = None if self.pos_weight is None else _like(self.pos_weight, scores)
        if weight is not None:
            _check_number(self, "pos_weight", weight, labels.shape[1] if labels.dim() == 2 else 1)
        losses = F.binary_cross_entropy_with_logits(scores, targets, pos_weight=weight, reduction="none")
        return _average(losses, real, self.count_items(labels), num_items_in_batch)

    def count_items(self, labels: Tensor) -> Tensor:
        """The number of labels other than -100: up to P, or P * C."""
        return (labels != IGNORED_LABEL).sum()


@dataclass(frozen=True)
class CrossEntropyLoss:
    """Cross-entropy of softmax(logits) [P, C] and classes [P].

        >>> CrossEntropyLoss()(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 2]))
        tensor(0.8955)

    Args:
        class_weights: C factors, each on the pairs of a class. The weighted sum is divided by the number of pairs,
            whatever their classes, so that it doesn't depend on how a batch is cut; torch divides by the sum of the
            weights.
        label_smoothing: The share of the target, in [0, 1), that is spread evenly over all classes.
    """

    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    score_activation: ClassVar[ScoreActivation] = "softmax"
    couples_rows: ClassVar[bool] = False

    def __post_init__(self) -> None:
        weights = _weights(self, "class_weights", above=False)
        if isinstance(weights, float):
            raise ConfigurationError(f"CrossEntropyLoss: class_weights is {weights}. Give one number for each class.")
        object.__setattr__(self, "class_weights", weights)
        if not 0 <= self.label_smoothing < 1:
            raise ConfigurationError(
                f"CrossEntropyLoss: label_smoothing is {self.label_smoothing}, outside [0, 1). 0.1 is a usual value."
            )

    def __call__(self, outputs: Outputs, labels: Tensor, num_items_in_batch: Items = None) -> Tensor:
        """The loss, a scalar."""
        logits = logits_of(outputs)
        if logits.dim() != 2 or logits.shape[1] < 2 or labels.shape != logits.shape[:1]:
            raise ConfigurationError(
                f"CrossEntropyLoss takes logits [pairs, classes] and one class per pair, but logits are "
                f"{list(logits.shape)} and labels {list(labels.shape)}. Load the model with num_labels = the number of "
                "classes, or use BinaryCrossEntropyLoss."
            )
        weight = None if self.class_weights is None else _like(self.class_weights, logits)
        if weight is not None:
            _check_number(self, "class_weights", weight, logits.shape[1])
        classes, real = labels.long(), labels != IGNORED_LABEL
        if classes.device.type == "cpu":  # elsewhere the look would wait for the device
            _check_classes(classes[real], logits.shape[1])
        logits = logits.masked_fill(~real[:, None], 0.0)
        losses = F.cross_entropy(
            logits, classes, weight, ignore_index=IGNORED_LABEL, reduction="none", label_smoothing=self.label_smoothing
        )
        return _average(losses, real, self.count_items(labels), num_items_in_batch)

    def count_items(self, labels: Tensor) -> Tensor:
        """The number of pairs with a class."""
        return (labels != IGNORED_LABEL).sum()


@dataclass(frozen=True)
class MSELoss:
    """Squared error of the activated logit, over all labels of all pairs; shapes as in `BinaryCrossEntropyLoss`.

        >>> logits, labels = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0])
        >>> MSELoss()(logits, labels), MSELoss("identity")(logits, labels)
        (tensor(0.0433), tensor(1.))

    Args:
        activation: "sigmoid" for labels in [0, 1]; "identity" for labels of any range, of which exactly -100 is
            ignored.
    """

    activation: Literal["sigmoid", "identity"] = "sigmoid"
    couples_rows: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.activation not in ("sigmoid", "identity"):
            raise ConfigurationError(f"MSELoss: activation is {self.activation!r}. Use 'sigmoid' or 'identity'.")

    @property
    def score_activation(self) -> ScoreActivation:
        """What turns logits into scores: the loss's own activation."""
        return self.activation

    def __call__(self, outputs: Outputs, labels: Tensor, num_items_in_batch: Items = None) -> Tensor:
        """The loss, a scalar."""
        scores, targets, real = _entries(outputs, labels)
        if self.activation == "sigmoid":
            scores = scores.sigmoid()
        return _average((scores - targets).square(), real, self.count_items(labels), num_items_in_batch)

    def count_items(self, labels: Tensor) -> Tensor:
        """The number of labels other than -100: up to P, or P * C."""
        return (labels != IGNORED_LABEL).sum()


# -- losses over two documents -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RankNetLoss:
    """RankNet: log(1 + exp(-sigma (s_i - s_j))) over all documents i and j of a query with y_i > y_j, in nats.

        >>> RankNetLoss()(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([[2.0, 1.0, 0.0]]))
        tensor(0.5845)

    Labels [G, D] are any numbers that order a query's documents.

    Args:
        sigma: Steepness, above 0.

    Paper: Burges et al. 2005, Learning to Rank using Gradient Descent.
    """

    sigma: float = 1.0
    score_activation: ClassVar[ScoreActivation] = "identity"
    couples_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _require_positive(self, "sigma")

    def __call__(self, outputs: Outputs, labels: Tensor, num_items_in_batch: Items = None) -> Tensor:
        """The loss, a scalar."""
        scores, _, _ = _lists(outputs, labels)
        losses = -F.logsigmoid(self.sigma * (scores[:, :, None] - scores[:, None, :]))
        return _average(losses, _ordered(labels), self.count_items(labels), num_items_in_batch)

    def count_items(self, labels: Tensor) -> Tensor:
        """The number of pairs (i, j) of a query with y_i > y_j."""
        return _ordered(labels).sum()


@dataclass(frozen=True)
class LambdaLoss:
    """LambdaLoss: -w_ij log2 sigmoid(sigma (s_i - s_j)) over all documents i and j of a query with y_i > y_j.

        >>> scores, labels = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([[2.0, 1.0, 0.0]])
        >>> LambdaLoss()(scores, labels), LambdaLoss("lambdarank")(scores, labels)
        (tensor(1.2309), tensor(0.0855))

    With gains G = (2^y - 1) / maxDCG, discounts D = log2(1 + r) and r the rank by the current scores, w is

        none         1
        ndcg1        G_i / D_i
        ndcg2        |1 / D_d - 1 / D_(d + 1)| |G_i - G_j|, d = |r_i - r_j|
        lambdarank   |1 / D_i - 1 / D_j| |G_i - G_j|
        ndcg2++      mu ndcg2 + lambdarank

    Ranks and weights carry no gradient. Of equal scores the less relevant document ranks first. The paper's first NDCG
    loss also sums over y_i <= y_j; here all schemes use the same pairs.

    Labels [G, D] are relevances of 0 or more, graded or not; a negative label gains nothing, like 0.

    Args:
        scheme: One of the above.
        k: Optimise nDCG@k: maxDCG counts the best k, and pairs with neither document among the model's first k weigh 0.
            They still count as items, so that the count depends only on the labels.
        sigma: Steepness, above 0.
        mu: Weight of ndcg2 in ndcg2++, 0 or more.

    Papers: Wang et al. 2018, The LambdaLoss Framework for Ranking Metric Optimization; Burges 2010, From RankNet to
    LambdaRank to LambdaMART.
    """

    scheme: Scheme = "ndcg2++"
    k: int | None = None
    sigma: float = 1.0
    mu: float = 10.0
    score_activation: ClassVar[ScoreActivation] = "identity"
    couples_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.scheme not in get_args(Scheme):
            raise ConfigurationError(
                f"LambdaLoss: scheme is {self.scheme!r}. Use one of {', '.join(get_args(Scheme))}."
            )
        if self.k is not None and (not isinstance(self.k, int) or self.k < 1):
            raise ConfigurationError(
                f"LambdaLoss: k is {self.k!r}. Use a whole number of 1 or more, or None for all documents."
            )
        _require_positive(self, "sigma")
        if not 0 <= self.mu < math.inf:
            raise ConfigurationError(f"LambdaLoss: mu is {self.mu}. Use a finite number of 0 or more.")

    def __call__(self, outputs: Outputs, labels: Tensor, num_items_in_batch: Items = None) -> Tensor:
        """The loss, a scalar."""
        scores, relevance, real = _lists(outputs, labels)
        ranks = _ranks_against(scores.detach(), relevance, real)
        weights = self._pair_weights(self._gains(relevance, real), ranks)
        pairs = _ordered(labels)
        if self.k is not None:
            first = ranks <= self.k
            pairs = pairs & (first[:, :, None] | first[:, None, :])
        losses = -weights * F.logsigmoid(self.sigma * (scores[:, :, None] - scores[:, None, :])) / math.log(2)
        return _average(losses, pairs, self.count_items(labels), num_items_in_batch)

    def count_items(self, labels: Tensor) -> Tensor:
        """The number of pairs (i, j) of a query with y_i > y_j, whatever `k`."""
        return _ordered(labels).sum()

    def _gains(self, relevance: Tensor, real: Tensor) -> Tensor:
        """Gains [G, D], in units of the best possible DCG."""
        relevance = relevance.masked_fill(~real, 0.0).clamp(min=0.0)
        highest = relevance.amax(1, keepdim=True)
        gains = torch.exp2(relevance - highest) - torch.exp2(-highest)  # 2^highest cancels and would overflow
        ideal = gains.sort(1, descending=True).values[:, : self.k]
        ranks = torch.arange(1, ideal.shape[1] + 1, dtype=gains.dtype, device=gains.device)
        best = (ideal / torch.log2(1 + ranks)).sum(1, keepdim=True)
        return gains / best.masked_fill(best == 0, 1.0)

    def _pair_weights(self, gains: Tensor, ranks: Tensor) -> Tensor:
        """Weights [G, D, D] of the pairs (i, j)."""
        if self.scheme == "none":
            return gains.new_ones(())
        discounts = 1 / torch.log2(1 + ranks)
        if self.scheme == "ndcg1":
            return (gains * discounts)[:, :, None]
        gain = (gains[:, :, None] - gains[:, None, :]).abs()
        swapped = (discounts[:, :, None] - discounts[:, None, :]).abs() * gain
        if self.scheme == "lambdarank":
            return swapped
        distance = (ranks[:, :, None] - ranks[:, None, :]).abs().clamp(min=1)
        moved = (1 / torch.log2(1 + distance) - 1 / torch.log2(2 + distance)) * gain
        return moved if self.scheme == "ndcg2" else self.mu * moved + swapped


@dataclass(frozen=True)
class MarginMSELoss:
    """MarginMSE: ((s_0 - s_j) - (t_0 - t_j))^2 over documents j > 0 of a query, with a teacher's scores t as labels.

        >>> MarginMSELoss()(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([[9.0, 8.0, 5.0]]))
        tensor(5.)

    Labels are [G, D]. Document 0 is the positive and the others are negatives, as in rows `(query, positive, negative,
    ...)`. Only differences of labels count: where only margins are known, labels are [margin, 0], or [0, -margin_1,
    -margin_2, ...].

    Paper: Hofstätter et al. 2020, Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge
    Distillation.
    """

    score_activation: ClassVar[ScoreActivation] = "identity"
    couples_rows: ClassVar[bool] = True

    def __call__(self, outputs: Outputs, labels: Tensor, num_items_in_batch: Items = None) -> Tensor:
        """The loss, a scalar."""
        scores, teacher, real = _lists(outputs, labels)
        errors = (scores[:, :1] - scores[:, 1:]) - (teacher[:, :1] - teacher[:, 1:])
        items = real[:, :1] & real[:, 1:]
        return _average(errors.square(), items, self.count_items(labels), num_items_in_batch)

    def count_items(self, labels: Tensor) -> Tensor:
        """The number of negatives of queries with a positive."""
        real = _real(labels)
        return (real[:, :1] & real[:, 1:]).sum()


# -- losses over lists -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ListNetLoss:
    """ListNet, top one: the cross-entropy of softmax(s) and softmax(y) over a query's documents.

        >>> ListNetLoss()(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([[2.0, 1.0, 0.0]]))
        tensor(0.9871)

    Labels [G, D] are any numbers. After the softmax, relevances of 0 and 1 are a soft target: multiply labels to
    sharpen it. A query with one document adds 0 and counts.

    Paper: Cao et al. 2007, Learning to Rank: From Pairwise Approach to Listwise Approach.

    Args:
        pointwise: How much of the binary cross-entropy of documents and labels, which then lie in [0, 1], is added: for
            each query its mean over the documents. The order alone leaves the level of scores open; with this part
            they are logits of probabilities, that learn from queries whose documents are all alike, too.
    """

    pointwise: float = 0.0
    couples_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.pointwise < math.inf:
            raise ConfigurationError(f"ListNetLoss: pointwise is {self.pointwise}. Use a finite number of 0 or more.")

    @property
    def score_activation(self) -> ScoreActivation:
        """What turns logits into scores."""
        return "sigmoid" if self.pointwise else "identity"

    def __call__(self, outputs: Outputs, labels: Tensor, num_items_in_batch: Items = None) -> Tensor:
        """The loss, a scalar."""
        scores, targets, real = _lists(outputs, labels)
        losses = -_log_softmax(targets, real).exp() * _log_softmax(scores, real)
        if self.pointwise:
            each = F.binary_cross_entropy_with_logits(scores, targets, reduction="none")
            losses = losses + self.pointwise * each / real.sum(1, keepdim=True)
        return _average(losses, real, self.count_items(labels), num_items_in_batch)

    def count_items(self, labels: Tensor) -> Tensor:
        """The number of queries with a document."""
        return _real(labels).any(1).sum()


@dataclass(frozen=True)
class ListMLELoss:
    """ListMLE: the negative log-likelihood of the labels' order, -sum_i w_i (s_i - log sum_{k: y_k <= y_i} exp s_k).

        >>> scores, labels = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([[2.0, 1.0, 0.0]])
        >>> ListMLELoss()(scores, labels), ListMLELoss(position_weighted=True)(scores, labels)
        (tensor(1.7209), tensor(0.6340))

    Labels [G, D] are any numbers that order a query's documents. Equal labels have no order: a tied document is
    compared with itself, the others of the tie and all below (Breslow's method), whatever the order of input, so that
    tied documents are drawn to equal scores. Without ties this is the paper's formula. A query with one document adds 0
    and counts.

    Args:
        position_weighted: p-ListMLE: w_i is 2^(n - r_i) - 1, for n documents and rank r_i by label, divided by its sum
            over the query, so that the top counts most. Tied documents share the mean weight of their ranks. Otherwise
            w_i = 1.

    Papers: Xia et al. 2008, Listwise Approach to Learning to Rank: Theory and Algorithm; Lan et al. 2014,
    Position-Aware ListMLE; Breslow 1974, Covariance Analysis of Censored Survival Data.
    """

    position_weighted: bool = False
    score_activation: ClassVar[ScoreActivation] = "identity"
    couples_rows: ClassVar[bool] = True

    def __call__(self, outputs: Outputs, labels: Tensor, num_items_in_batch: Items = None) -> Tensor:
        """The loss, a scalar."""
        scores, relevance, real = _lists(outputs, labels)
        rest = real[:, None, :] & (relevance[:, None, :] <= relevance[:, :, None])
        losses = torch.where(rest, scores[:, None, :], _LOW).logsumexp(2) - scores
        if self.position_weighted:
            losses = losses * self._position_weights(relevance, real)
        return _average(losses, real, self.count_items(labels), num_items_in_batch)

    def count_items(self, labels: Tensor) -> Tensor:
        """The number of queries with a document."""
        return _real(labels).any(1).sum()

    def _position_weights(self, relevance: Tensor, real: Tensor) -> Tensor:
        """Weights [G, D] that sum to 1 in each query of two documents or more."""
        above, tied = _above_and_tied(relevance, real)
        # The mean of 2^-r over the ranks above + 1 ... above + tied; everything is divided by 2^n, which would
        # overflow.
        weights = (torch.exp2(-above) - torch.exp2(-above - tied)) / tied.clamp(min=1)
        weights = (weights - torch.exp2(-real.sum(1, keepdim=True).to(weights))).masked_fill(~real, 0.0)
        total = weights.sum(1, keepdim=True)
        return weights / total.masked_fill(total == 0, 1.0)


@dataclass(frozen=True)
class InfoNCELoss:
    """InfoNCE: -log(exp(scale s_+) / (exp(scale s_+) + sum over negatives of exp(scale s_-))) of a query's documents.

        >>> InfoNCELoss()(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([[1.0, 0.0, 0.0]]))
        tensor(0.4076)

    Labels [G, D] are above 0 for positives and 0 or less for negatives, whether hard or from other queries. The loss of
    a query with several positives is the mean over them, each against all negatives and never against another positive.
    A query without a positive or without a negative compares nothing: it adds 0 and isn't counted.

    Args:
        scale: Factor on the logits, above 0. A cross-encoder's logits are unbounded and find their scale in training,
            hence 1.0; the large factors used elsewhere are for cosine similarities and scores squashed to [0, 1].

    Papers: van den Oord et al. 2018, Representation Learning with Contrastive Predictive Coding; Gao et al. 2021,
    Rethink Training of BERT Rerankers in Multi-Stage Retrieval Pipeline.
    """

    scale: float = 1.0
    score_activation: ClassVar[ScoreActivation] = "identity"
    couples_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _require_positive(self, "scale")

    def __call__(self, outputs: Outputs, labels: Tensor, num_items_in_batch: Items = None) -> Tensor:
        """The loss, a scalar."""
        scores, _, real = _lists(outputs, labels)
        positive, negative = real & (labels > 0), real & (labels <= 0)
        scaled = self.scale * scores
        against = torch.where(negative, scaled, _LOW).logsumexp(1, keepdim=True)
        losses = -F.logsigmoid(scaled - against) / positive.sum(1, keepdim=True).clamp(min=1)
        compared = positive & negative.any(1, keepdim=True)
        return _average(losses, compared, self.count_items(labels), num_items_in_batch)

    def count_items(self, labels: Tensor) -> Tensor:
        """The number of queries with a positive and a negative."""
        real = _real(labels)
        return ((real & (labels > 0)).any(1) & (real & (labels <= 0)).any(1)).sum()


@dataclass(frozen=True)
class KLDivergenceLoss:
    """Distillation: KL(softmax(t / T), softmax(s / T)) over a query's documents, with a teacher's scores t as labels.

        >>> KLDivergenceLoss()(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([[2.0, 1.0, 0.0]]))
        tensor(0.1547)

    Labels are [G, D]. A query with one document adds 0 and counts. There is no factor T^2: gradients shrink as T grows.

    Args:
        temperature: T, above 0; divides the scores of both.

    Paper: Hinton et al. 2015, Distilling the Knowledge in a Neural Network.
    """

    temperature: float = 1.0
    score_activation: ClassVar[ScoreActivation] = "identity"
    couples_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _require_positive(self, "temperature")

    def __call__(self, outputs: Outputs, labels: Tensor, num_items_in_batch: Items = None) -> Tensor:
        """The loss, a scalar."""
        scores, teacher, real = _lists(outputs, labels)
        target = _log_softmax(teacher / self.temperature, real)
        losses = target.exp() * (target - _log_softmax(scores / self.temperature, real))
        return _average(losses, real, self.count_items(labels), num_items_in_batch)

    def count_items(self, labels: Tensor) -> Tensor:
        """The number of queries with a document."""
        return _real(labels).any(1).sum()


@dataclass(frozen=True)
class ADRMSELoss:
    """ADR-MSE: (r - r')^2 / log2(r + 1) over all documents, for ranks r by label and approximate ranks r' by score.

        >>> ADRMSELoss()(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([[2.0, 1.0, 0.0]]))
        tensor(0.2956)

    r'_i is 1 + sum_{j != i} sigmoid(alpha (s_j - s_i)). Labels [G, D] are any numbers that order a query's documents,
    best highest, for example a large language model's ranking. Documents with equal labels share the mean of their
    ranks, which equal scores attain.

    Args:
        alpha: Steepness of the approximate ranks r', above 0.

    Paper: Schlatt et al. 2024, Rank-DistiLLM: Closing the Effectiveness Gap Between Cross-Encoders and LLMs for Passage
    Re-Ranking.
    """

    alpha: float = 1.0
    score_activation: ClassVar[ScoreActivation] = "identity"
    couples_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _require_positive(self, "alpha")

    def __call__(self, outputs: Outputs, labels: Tensor, num_items_in_batch: Items = None) -> Tensor:
        """The loss, a scalar."""
        scores, relevance, real = _lists(outputs, labels)
        above, tied = _above_and_tied(relevance, real)
        ranks = above + (tied + 1) / 2
        beaten = torch.sigmoid(self.alpha * (scores[:, None, :] - scores[:, :, None]))
        approximate = 0.5 + (beaten * real[:, None, :]).sum(2)  # without the half by which a document beats itself
        losses = (ranks - approximate).square() / torch.log2(1 + ranks.clamp(min=1))  # padding has no rank
        return _average(losses, real, self.count_items(labels), num_items_in_batch)

    def count_items(self, labels: Tensor) -> Tensor:
        """The number of documents."""
        return _real(labels).sum()


# -- what the losses share ---------------------------------------------------------------------------------------------


def logits_of(outputs: Outputs) -> Tensor:
    """The logits in what a model returned, in float32 or more."""
    found: Any = outputs
    if isinstance(outputs, Mapping):
        found = outputs.get("logits")
    elif not isinstance(outputs, Tensor):
        # With labels among its inputs a model returns its own loss first.
        found = next((item for item in outputs[:2] if isinstance(item, Tensor) and item.dim()), None)
    if not isinstance(found, Tensor):
        names = f" with {list(outputs)}" if isinstance(outputs, Mapping) else ""
        raise ConfigurationError(
            f"No logits in the model's output of type {type(outputs).__name__}{names}. Use a sequence classification "
            "model."
        )
    return found.float() if found.dtype in (torch.float16, torch.bfloat16) else found


def _real(labels: Tensor) -> Tensor:
    """Which entries of a grid are documents, [G, D] of bool."""
    if labels.dim() != 2:
        raise ConfigurationError(
            f"Labels have the shape {list(labels.shape)}, but losses over documents of a query take labels [groups, "
            "documents]. Give each query a list of documents and a list of labels, or use a pointwise loss."
        )
    return labels != IGNORED_LABEL


def _entries(outputs: Outputs, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, targets and which of them are real, all of the labels' shape, for losses over single labels."""
    scores, real = logits_of(outputs), labels != IGNORED_LABEL
    if labels.dim() == 2 and labels.shape != scores.shape:
        scores = to_grid(scores, labels)
    elif labels.numel() != scores.numel() or labels.shape[:1] != scores.shape[:1]:
        raise ConfigurationError(
            f"Logits have the shape {list(scores.shape)} and labels {list(labels.shape)}: each logit needs a label. "
            "Load the model with num_labels = the number of labels per pair, or use CrossEntropyLoss for classes."
        )
    scores = scores.reshape(labels.shape).masked_fill(~real, 0.0)
    return scores, labels.to(scores.dtype).masked_fill(~real, 0.0), real


def _lists(outputs: Outputs, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, labels and which of them are real, all [G, D]; 0 where there is no document."""
    scores, real = to_grid(logits_of(outputs), labels, fill=0.0), labels != IGNORED_LABEL
    return scores, labels.to(scores.dtype).masked_fill(~real, 0.0), real


def _average(losses: Tensor, items: Tensor, count: Tensor, num_items_in_batch: Items) -> Tensor:
    """The sum over the marked entries divided by the number of items: the whole batch's where it is known."""
    total = torch.where(items, losses, 0.0).sum()
    divisor = send(torch.as_tensor(count if num_items_in_batch is None else num_items_in_batch), total.device)
    divisor = divisor.reshape(-1)[0]  # Trainer repeats the count for each device of a DataParallel model
    return total / divisor.masked_fill(divisor == 0, 1)


def _like(values: float | tuple[float, ...], tensor: Tensor) -> Tensor:
    """Numbers as a tensor of another one's type, on its device."""
    return send(torch.tensor(values, dtype=tensor.dtype), tensor.device)


def _log_softmax(values: Tensor, real: Tensor) -> Tensor:
    """Logarithms of the softmax over each group's documents, [G, D]."""
    return torch.where(real, values, _LOW).log_softmax(1)


def _ordered(labels: Tensor) -> Tensor:
    """Pairs (i, j) of documents with y_i > y_j, [G, D, D] of bool."""
    real = _real(labels)
    return (labels[:, :, None] > labels[:, None, :]) & real[:, :, None] & real[:, None, :]


def _above_and_tied(relevance: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """How many documents of the group have a higher label, and how many the same (each counts itself); [G, D] both."""
    own, others = relevance[:, :, None], relevance[:, None, :]
    above = ((others > own) & real[:, None, :]).sum(2)
    tied = ((others == own) & real[:, None, :]).sum(2)
    return above.to(relevance.dtype), tied.to(relevance.dtype)


def _ranks_against(scores: Tensor, relevance: Tensor, real: Tensor) -> Tensor:
    """Ranks [G, D] from 1 by score; of equal scores the less relevant document is first, in any order of input."""
    own, others = scores[:, :, None], scores[:, None, :]
    less = relevance[:, None, :] < relevance[:, :, None]
    same = relevance[:, None, :] == relevance[:, :, None]
    earlier = torch.ones_like(same[0]).tril(-1)  # of documents equal in both, either may be first
    ahead = (others > own) | ((others == own) & (less | (same & earlier)))
    return 1 + (ahead & real[:, None, :]).sum(2).to(scores.dtype)


def _require_positive(loss: object, name: str) -> None:
    value = getattr(loss, name)
    if not 0 < value < math.inf:
        raise ConfigurationError(f"{type(loss).__name__}: {name} is {value}. Use a finite number above 0, such as 1.0.")


def _weights(loss: object, name: str, above: bool) -> float | tuple[float, ...] | None:
    """One weight or several, checked, as hashable floats."""
    given = getattr(loss, name)
    if given is None:
        return None
    if isinstance(given, Tensor):
        given = given.tolist()
    weights = float(given) if isinstance(given, int | float) else tuple(float(weight) for weight in given)
    values = (weights,) if isinstance(weights, float) else weights
    if not values or not all(0 <= value < math.inf for value in values) or (above and 0.0 in values):
        raise ConfigurationError(
            f"{type(loss).__name__}: {name} is {given}. Use finite numbers {'above 0' if above else 'of 0 or more'} "
            "(1.0 leaves a label's weight unchanged), or None."
        )
    return weights


def _check_classes(classes: Tensor, number: int) -> None:
    """Check that there are so many classes, counted from 0."""
    beyond = classes[(classes < 0) | (classes >= number)]
    if len(beyond):
        raise ConfigurationError(
            f"CrossEntropyLoss: there is a label {beyond[0]}, and the model's classes are 0 to {number - 1}. Load it "
            "with num_labels = the number of classes, or mend the labels."
        )


def _check_number(loss: object, name: str, weights: Tensor, needed: int) -> None:
    # The weight of a single label may be a tuple, too.
    if weights.numel() != needed and (name == "class_weights" or weights.numel() > 1):
        raise ConfigurationError(
            f"{type(loss).__name__}: {weights.numel()} {name}, but {needed} labels per pair or classes. Give {needed} "
            "of them, or a single number for pos_weight."
        )
