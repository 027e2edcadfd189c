"""Losses against their formulas in plain Python, torch and sentence-transformers; cutting, padding, edge cases,
errors."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import build_model
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput

from cross_trainer.errors import ConfigurationError
from cross_trainer.training import losses
from cross_trainer.training.losses import (
    ADRMSELoss,
    BinaryCrossEntropyLoss,
    CrossEntropyLoss,
    InfoNCELoss,
    KLDivergenceLoss,
    LambdaLoss,
    ListMLELoss,
    ListNetLoss,
    MarginMSELoss,
    MSELoss,
    RankNetLoss,
    to_grid,
)

SCHEMES = ("none", "ndcg1", "ndcg2", "lambdarank", "ndcg2++")
LISTWISE = (
    RankNetLoss(),
    RankNetLoss(sigma=2.0),
    MarginMSELoss(),
    ListNetLoss(),
    ListNetLoss(pointwise=0.5),
    ListMLELoss(),
    ListMLELoss(position_weighted=True),
    *(LambdaLoss(scheme=scheme) for scheme in SCHEMES),
    LambdaLoss(k=2, sigma=0.5, mu=3.0),
    LambdaLoss(scheme="lambdarank", k=1),
    InfoNCELoss(),
    InfoNCELoss(scale=3.0),
    KLDivergenceLoss(),
    KLDivergenceLoss(temperature=2.5),
    ADRMSELoss(),
    ADRMSELoss(alpha=0.3),
)
POINTWISE = (
    BinaryCrossEntropyLoss(),
    BinaryCrossEntropyLoss(pos_weight=3.0),
    MSELoss(),
    MSELoss(activation="identity"),
    CrossEntropyLoss(),
    CrossEntropyLoss(class_weights=(1.0, 0.5, 4.0), label_smoothing=0.1),
)
Groups = list[tuple[list[float], list[float]]]


def ragged(seed: int = 0, sizes: tuple[int, ...] = (5, 1, 3, 7, 2, 4), graded: bool = True) -> tuple[Tensor, Tensor]:
    """Scores [P, 1] and labels [G, D] of random groups, in float64: grades with ties, or a teacher's scores."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.full((len(sizes), max(sizes)), -100.0, dtype=torch.double)
    for group, size in enumerate(sizes):
        if graded:
            labels[group, :size] = torch.randint(0, 4, (size,), generator=random).double()
        else:
            labels[group, :size] = 3 * torch.randn(size, generator=random, dtype=torch.double)
    return 2 * torch.randn(sum(sizes), 1, generator=random, dtype=torch.double), labels


def as_groups(logits: Tensor, labels: Tensor) -> Groups:
    scores = iter(logits.reshape(-1).tolist())
    rows = [[y for y in row if y != -100] for row in labels.tolist()]
    return [([next(scores) for _ in row], row) for row in rows]


# -- formulas, one query at a time: the sum over its items, and their number -------------------------------------------


def softmax(values: list[float]) -> list[float]:
    total = math.fsum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def ordered(y: list[float]) -> Iterator[tuple[int, int]]:
    return ((i, j) for i in range(len(y)) for j in range(len(y)) if y[i] > y[j])


def naive_ranknet(loss: Any, s: list[float], y: list[float]) -> tuple[float, int]:
    terms = [math.log(1 + math.exp(-loss.sigma * (s[i] - s[j]))) for i, j in ordered(y)]
    return sum(terms), len(terms)


def naive_lambda(loss: Any, s: list[float], y: list[float]) -> tuple[float, int]:
    n = len(s)
    order = sorted(range(n), key=lambda i: (-s[i], y[i]))
    rank = {document: place for place, document in enumerate(order, start=1)}
    k = loss.k or n
    ideal = sum((2**value - 1) / math.log2(1 + r) for r, value in enumerate(sorted(y, reverse=True)[:k], start=1))
    total, items = 0.0, 0
    for i, j in ordered(y):
        items += 1
        if min(rank[i], rank[j]) > k:
            continue
        gain_i, gain_j = (2 ** y[i] - 1) / ideal, (2 ** y[j] - 1) / ideal
        distance = abs(rank[i] - rank[j])
        ndcg2 = abs(1 / math.log2(1 + distance) - 1 / math.log2(2 + distance)) * abs(gain_i - gain_j)
        swap = abs(1 / math.log2(1 + rank[i]) - 1 / math.log2(1 + rank[j])) * abs(gain_i - gain_j)
        weight = {
            "none": 1.0,
            "ndcg1": gain_i / math.log2(1 + rank[i]),
            "ndcg2": ndcg2,
            "lambdarank": swap,
            "ndcg2++": loss.mu * ndcg2 + swap,
        }[loss.scheme]
        total -= weight * math.log2(1 / (1 + math.exp(-loss.sigma * (s[i] - s[j]))))
    return total, items


def naive_margin_mse(loss: Any, s: list[float], y: list[float]) -> tuple[float, int]:
    return sum(((s[0] - s[j]) - (y[0] - y[j])) ** 2 for j in range(1, len(s))), len(s) - 1


def naive_listnet(loss: Any, s: list[float], y: list[float]) -> tuple[float, int]:
    pointwise = sum(math.log1p(math.exp(score)) - label * score for score, label in zip(s, y, strict=True)) / len(s)
    order = -sum(p * math.log(q) for p, q in zip(softmax(y), softmax(s), strict=True))
    return order + loss.pointwise * pointwise, 1


def naive_listmle(loss: Any, s: list[float], y: list[float]) -> tuple[float, int]:
    n = len(s)
    order = sorted(range(n), key=lambda i: -y[i])
    raw = [2.0 ** (n - r) - 1 for r in range(1, n + 1)]
    total = 0.0
    for i in range(n):
        shared = [raw[r] for r in range(n) if y[order[r]] == y[i]]
        weight = sum(shared) / len(shared) / (sum(raw) or 1.0) if loss.position_weighted else 1.0
        total -= weight * (s[i] - math.log(sum(math.exp(s[k]) for k in range(n) if y[k] <= y[i])))
    return total, 1


def naive_infonce(loss: Any, s: list[float], y: list[float]) -> tuple[float, int]:
    positives, negatives = [i for i in range(len(s)) if y[i] > 0], [i for i in range(len(s)) if y[i] <= 0]
    if not positives or not negatives:
        return 0.0, 0
    against = sum(math.exp(loss.scale * s[j]) for j in negatives)
    terms = [-math.log(math.exp(loss.scale * s[i]) / (math.exp(loss.scale * s[i]) + against)) for i in positives]
    return sum(terms) / len(terms), 1


def naive_kl(loss: Any, s: list[float], y: list[float]) -> tuple[float, int]:
    target, own = (softmax([value / loss.temperature for value in values]) for values in (y, s))
    return sum(p * math.log(p / q) for p, q in zip(target, own, strict=True)), 1


def naive_adr_mse(loss: Any, s: list[float], y: list[float]) -> tuple[float, int]:
    n, total = len(s), 0.0
    order = sorted(y, reverse=True)
    for i in range(n):
        shared = [r for r in range(1, n + 1) if order[r - 1] == y[i]]
        rank = sum(shared) / len(shared)
        approximate = 1 + sum(1 / (1 + math.exp(-loss.alpha * (s[j] - s[i]))) for j in range(n) if j != i)
        total += (rank - approximate) ** 2 / math.log2(rank + 1)
    return total, n


NAIVE: dict[type, Callable[[Any, list[float], list[float]], tuple[float, int]]] = {
    RankNetLoss: naive_ranknet,
    LambdaLoss: naive_lambda,
    MarginMSELoss: naive_margin_mse,
    ListNetLoss: naive_listnet,
    ListMLELoss: naive_listmle,
    InfoNCELoss: naive_infonce,
    KLDivergenceLoss: naive_kl,
    ADRMSELoss: naive_adr_mse,
}


@pytest.mark.parametrize("graded", [True, False])
@pytest.mark.parametrize("loss", LISTWISE, ids=repr)
def test_lists_equal_their_formula(loss: Any, graded: bool) -> None:
    for seed in range(5):
        logits, labels = ragged(seed, graded=graded)
        if isinstance(loss, LambdaLoss):
            labels = torch.where(labels == -100, labels, labels.abs())
        sums = [NAIVE[type(loss)](loss, s, y) for s, y in as_groups(logits, labels)]
        total, items = sum(s for s, _ in sums), sum(n for _, n in sums)
        assert items > 0
        assert loss.count_items(labels).item() == items
        assert loss({"logits": logits}, labels).item() == pytest.approx(total / items, rel=1e-9)
        assert loss({"logits": logits}, labels, 7).item() == pytest.approx(total / 7, rel=1e-9)


def test_lambda_ranks_equal_scores_against_the_model() -> None:
    """Three equal scores: the relevant document ranks last of them, wherever it stands in the input."""
    for labels in ([2.0, 0.0, 1.0], [0.0, 1.0, 2.0], [1.0, 2.0, 0.0]):
        scores = [0.5, 0.5, 0.5]
        expected, items = naive_lambda(LambdaLoss("lambdarank"), scores, labels)
        found = LambdaLoss("lambdarank")(torch.tensor([scores]).double(), torch.tensor([labels]).double())
        assert found.item() == pytest.approx(expected / items, rel=1e-9)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_lambda_negative_relevance_gains_nothing(scheme: Any) -> None:
    scores, loss = torch.tensor([[0.1, 0.2, 0.3]]), LambdaLoss(scheme)
    zero, negative = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[2.0, 1.0, -3.0]])
    torch.testing.assert_close(loss(scores, negative), loss(scores, zero))


@pytest.mark.parametrize("loss", LISTWISE, ids=repr)
@pytest.mark.parametrize("ties", [False, True])
def test_order_of_documents_is_meaningless(loss: Any, ties: bool) -> None:
    random = torch.Generator().manual_seed(3)
    scores = torch.randn(3, 6, generator=random, dtype=torch.double)
    labels = torch.randint(0, 3, (3, 6), generator=random).double()
    if ties:
        scores = scores.round()
    expected = loss(scores, labels)
    for _ in range(5):
        order = torch.randperm(6, generator=random)
        if isinstance(loss, MarginMSELoss):  # the first is the positive
            order = torch.cat([torch.tensor([0]), 1 + torch.randperm(5, generator=random)])
        assert loss(scores[:, order], labels[:, order]).item() == pytest.approx(expected.item(), rel=1e-12)


def test_tied_documents_are_drawn_to_equal_scores() -> None:
    """With all labels equal, ListMLE is least where all scores are."""
    labels = torch.ones(1, 4)
    scores = torch.zeros(1, 4, requires_grad=True)
    ListMLELoss()(scores, labels).backward()
    assert scores.grad is not None
    assert scores.grad.abs().max() < 1e-6
    assert ListMLELoss()(torch.tensor([[1.0, 0.0, 0.0, -1.0]]), labels) > ListMLELoss()(torch.zeros(1, 4), labels)


# -- padding, cutting, counting ----------------------------------------------------------------------------------------


def gradient(loss: Any, logits: Tensor, labels: Tensor, items: Any = None) -> tuple[Tensor, Tensor]:
    leaf = logits.detach().clone().requires_grad_()
    value = loss({"logits": leaf}, labels, items)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.mark.parametrize("loss", [*LISTWISE, BinaryCrossEntropyLoss(), MSELoss()], ids=repr)
def test_padding_counts_for_nothing(loss: Any) -> None:
    logits, labels = ragged(1)
    labels = torch.where(labels == -100, labels, labels / 4)
    value, grad = gradient(loss, logits, labels)
    wider = F.pad(labels, (0, 3, 1, 2), value=-100.0)  # columns of padding, and whole groups before and after
    assert loss.count_items(wider) == loss.count_items(labels)
    wide_value, wide_grad = gradient(loss, logits, wider)
    torch.testing.assert_close(wide_value, value)
    torch.testing.assert_close(wide_grad, grad)
    for fill in (-100.0, 0.0, 1e4, math.nan):
        grid_value, grid_grad = gradient(loss, to_grid(logits, wider, fill), wider)
        torch.testing.assert_close(grid_value, value)
        torch.testing.assert_close(grid_grad[wider != -100], grad.flatten())
        assert (grid_grad[wider == -100] == 0).all()


@pytest.mark.parametrize("loss", LISTWISE, ids=repr)
def test_micro_batches_of_lists_add_up(loss: Any) -> None:
    logits, labels = ragged(2)
    value, grad = gradient(loss, logits, labels)
    items = sum(loss.count_items(part) for part in labels.split(2))
    assert items.shape == ()
    assert items.dtype == torch.long
    sizes = [int((part != -100).sum()) for part in labels.split(2)]
    parts = [gradient(loss, own, part, items) for own, part in zip(logits.split(sizes), labels.split(2), strict=True)]
    torch.testing.assert_close(sum(part for part, _ in parts), value)
    torch.testing.assert_close(torch.cat([part for _, part in parts]), grad)


def pointwise_batch(loss: Any) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(4)
    if isinstance(loss, CrossEntropyLoss):
        logits, labels = torch.randn(9, 3, generator=random), torch.randint(0, 3, (9,), generator=random)
    else:
        logits, labels = torch.randn(9, 1, generator=random), torch.rand(9, generator=random)
    labels[[2, 8]] = -100  # sentinel rows, whose logits must not be seen
    logits[[2, 8]] = math.nan
    return logits.double(), labels


@pytest.mark.parametrize("loss", POINTWISE, ids=repr)
def test_micro_batches_of_pairs_add_up(loss: Any) -> None:
    logits, labels = pointwise_batch(loss)
    value, grad = gradient(loss, logits, labels)
    assert loss.count_items(labels) == 7
    assert (grad[[2, 8]] == 0).all()
    kept = labels != -100
    torch.testing.assert_close(loss(logits[kept], labels[kept]), value)
    parts = [gradient(loss, own, part, 7) for own, part in zip(logits.split(4), labels.split(4), strict=True)]
    torch.testing.assert_close(sum(part for part, _ in parts), value)
    torch.testing.assert_close(torch.cat([part for _, part in parts]), grad)


@pytest.mark.parametrize(
    "items", [5, 5.0, torch.tensor(5), torch.tensor([5]), torch.tensor(5).unsqueeze(0).expand(2, -1)], ids=repr
)
def test_number_of_items_in_any_form(items: Any) -> None:
    logits, labels = torch.tensor([[0.3], [-1.0]]), torch.tensor([1.0, 0.0])
    total = F.binary_cross_entropy_with_logits(logits.flatten(), labels, reduction="sum")
    found = BinaryCrossEntropyLoss()(logits, labels, items)
    torch.testing.assert_close(found, total / 5)
    assert found.shape == ()


@pytest.mark.parametrize("loss", [*LISTWISE, *POINTWISE], ids=repr)
@pytest.mark.parametrize("items", [None, 0, torch.tensor(0), torch.tensor([[0], [0]])], ids=repr)
def test_nothing_to_learn_from_is_zero_with_a_graph(loss: Any, items: Any) -> None:
    classes = isinstance(loss, CrossEntropyLoss)
    listwise = loss.couples_rows
    labels = (
        torch.full((2, 3), -100.0) if listwise else torch.full((4,), -100, dtype=torch.long if classes else torch.float)
    )
    # A batch of sentinels alone still holds one pair for the model to read.
    logits = torch.randn(1, 1) if listwise else torch.randn(4, 3 if classes else 1)
    value, grad = gradient(loss, logits, labels, items)
    assert value == 0
    assert (grad == 0).all()
    assert loss.count_items(labels) == 0
    loss({"logits": logits.requires_grad_()}, labels).mul_(2)  # as Trainer does for several processes


# -- numbers that break naive implementations --------------------------------------------------------------------------

DEGENERATE = {
    "equal scores": ([[1.0, 1.0, 1.0, 1.0]], [[2.0, 0.0, 1.0, 0.0]]),
    "equal labels": ([[0.3, -1.0, 2.0]], [[1.0, 1.0, 1.0]]),
    "equal everything": ([[0.0, 0.0]], [[0.0, 0.0]]),
    "one document": ([[3.0, 0.0, 0.0]], [[1.0, -100.0, -100.0]]),
    "one document without relevance": ([[3.0]], [[0.0]]),
    "large scores, right order": ([[1e4, 0.0, -1e4]], [[2.0, 1.0, 0.0]]),
    "large scores, wrong order": ([[-1e4, 0.0, 1e4]], [[2.0, 1.0, 0.0]]),
    "large labels": ([[0.5, 0.0, -1.0]], [[200.0, 100.0, 0.0]]),
    "negative labels": ([[0.5, 0.0, -1.0]], [[-3.0, -120.0, -7.5]]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("loss", LISTWISE, ids=repr)
def test_gradients_are_finite(loss: Any, case: str, dtype: torch.dtype) -> None:
    scores, labels = (torch.tensor(values) for values in DEGENERATE[case])
    pointwise = getattr(loss, "pointwise", 0.0) > 0
    if pointwise:
        labels = torch.where(labels == -100, labels, labels.clamp(0, 1))
    value, grad = gradient(loss, scores.to(dtype), labels)
    assert value.isfinite()
    assert value.dtype == torch.float32
    assert value >= -1e-6
    assert grad.isfinite().all()
    assert grad.dtype == dtype
    one = loss.count_items(labels) == 0 or ("one document" in case and not pointwise)
    if one:
        assert (grad.abs() < 1e-6).all()


@pytest.mark.parametrize("loss", [loss for loss in LISTWISE if not isinstance(loss, ADRMSELoss)], ids=repr)
def test_strongly_misordered_documents_still_pull(loss: Any) -> None:
    """Scores far in the wrong direction need the gradient most; only ADR-MSE's approximate ranks saturate."""
    _, grad = gradient(loss, torch.tensor([[-1e3, 1e3]]), torch.tensor([[1.0, 0.0]]))
    assert grad[0, 0] < 0 < grad[0, 1]


@pytest.mark.parametrize("loss", LISTWISE, ids=repr)
def test_gradients_are_those_of_the_value(loss: Any) -> None:
    logits, labels = ragged(5, sizes=(4, 1, 3))
    if isinstance(loss, LambdaLoss):
        labels = torch.where(labels == -100, labels, labels.abs())
    assert torch.autograd.gradcheck(lambda own: loss(own, labels), logits.requires_grad_())


@pytest.mark.parametrize("loss", [*LISTWISE, *POINTWISE], ids=repr)
def test_half_precision_is_computed_in_float32(loss: Any) -> None:
    logits, labels = ragged(6) if loss.couples_rows else pointwise_batch(loss)
    low = logits.bfloat16()
    labels = labels.float() if labels.is_floating_point() else labels
    torch.testing.assert_close(loss(low, labels), loss(low.float(), labels), rtol=0, atol=0)


def test_long_lists_keep_position_weights_finite() -> None:
    scores = torch.randn(1, 2000, generator=torch.Generator().manual_seed(0))
    labels = -torch.arange(2000.0)[None] - 200
    value, grad = gradient(ListMLELoss(position_weighted=True), scores, labels)
    assert value.isfinite()
    assert grad.isfinite().all()
    # Half of the weight is the first's, a quarter the second's, ...
    terms = [torch.logsumexp(scores[0, r:], 0) - scores[0, r] for r in range(30)]
    assert value.item() == pytest.approx(sum(0.5 ** (r + 1) * term.item() for r, term in enumerate(terms)), rel=1e-5)


# -- pointwise losses against torch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [None, 2.5])
def test_binary_cross_entropy_of_one_label(weight: float | None) -> None:
    logits, labels = pointwise_batch(BinaryCrossEntropyLoss())
    kept = labels != -100
    expected = F.binary_cross_entropy_with_logits(
        logits[kept, 0], labels[kept].double(), pos_weight=None if weight is None else torch.tensor(weight)
    )
    for own in (logits, logits.flatten()):
        torch.testing.assert_close(BinaryCrossEntropyLoss(weight)(own, labels), expected)
    torch.testing.assert_close(BinaryCrossEntropyLoss(weight)(logits, labels[:, None]), expected)
    if weight is not None:
        torch.testing.assert_close(BinaryCrossEntropyLoss((weight,))(logits, labels), expected)


def test_binary_cross_entropy_by_hand() -> None:
    loss = BinaryCrossEntropyLoss(pos_weight=3.0)
    p = 1 / (1 + math.exp(-0.7))
    expected = -(3 * 0.25 * math.log(p) + 0.75 * math.log(1 - p))
    assert loss(torch.tensor([[0.7]]), torch.tensor([0.25])).item() == pytest.approx(expected, rel=1e-6)
    assert loss(torch.tensor([[0.7]]), torch.tensor([1])).item() == pytest.approx(-3 * math.log(p), rel=1e-6)


@pytest.mark.parametrize("weight", [None, 2.5, (1.0, 2.0, 0.5)])
def test_binary_cross_entropy_of_several_labels(weight: Any) -> None:
    logits, labels = torch.randn(5, 3), torch.randint(0, 2, (5, 3)).float()
    labels[4] = -100
    labels[0, 1] = -100
    kept = labels != -100
    factors = torch.ones(3) if weight is None else torch.tensor(weight).expand(3)
    terms = [
        F.binary_cross_entropy_with_logits(logits[i, c], labels[i, c], pos_weight=factors[c])
        for i, c in kept.nonzero().tolist()
    ]
    loss = BinaryCrossEntropyLoss(weight)
    assert loss.count_items(labels) == 11
    torch.testing.assert_close(loss(logits, labels), sum(terms) / 11)


@pytest.mark.parametrize("weights", [None, (1.0, 0.0, 4.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy(weights: tuple[float, ...] | None, smoothing: float) -> None:
    loss = CrossEntropyLoss(weights, smoothing)
    logits, labels = pointwise_batch(loss)
    kept = labels != -100
    w = weights or (1.0, 1.0, 1.0)
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        if label != -100:
            logs = [math.log(p) for p in softmax(row)]
            total -= (1 - smoothing) * w[label] * logs[label]
            total -= smoothing / 3 * sum(factor * value for factor, value in zip(w, logs, strict=True))
    assert loss(logits, labels).item() == pytest.approx(total / 7, rel=1e-9)
    torch.testing.assert_close(loss(logits, labels), loss(logits, labels.double()))
    if weights is None:
        torch.testing.assert_close(
            loss(logits, labels), F.cross_entropy(logits[kept], labels[kept], label_smoothing=smoothing)
        )
    elif smoothing == 0:  # torch divides by the sum of weights
        torch_mean = F.cross_entropy(logits[kept], labels[kept], torch.tensor(weights).double())
        total_weight = sum(weights[label] for label in labels.tolist() if label != -100)
        torch.testing.assert_close(loss(logits, labels), torch_mean * total_weight / 7)


def test_mean_squared_error() -> None:
    logits, labels = pointwise_batch(MSELoss())
    kept = labels != -100
    own, target = logits[kept, 0], labels[kept].double()
    torch.testing.assert_close(MSELoss()(logits, labels), F.mse_loss(own.sigmoid(), target))
    torch.testing.assert_close(
        MSELoss("identity")(logits, 9 * labels.masked_fill(~kept, -100 / 9)), F.mse_loss(own, 9 * target)
    )


@pytest.mark.parametrize("loss", [BinaryCrossEntropyLoss(2.0), MSELoss(), MSELoss("identity")], ids=repr)
def test_pointwise_losses_take_lists(loss: Any) -> None:
    logits, labels = ragged(7)
    labels = torch.where(labels == -100, labels, labels / 3)
    flat = labels[labels != -100]
    torch.testing.assert_close(loss(logits, labels), loss(logits, flat))
    assert loss.count_items(labels) == len(flat)


def test_sums_against_torch_listwise() -> None:
    """Dense grids, where torch has the same functions."""
    scores, teacher = torch.randn(4, 6), torch.randn(4, 6)
    torch.testing.assert_close(ListNetLoss()(scores, teacher), F.cross_entropy(scores, teacher.softmax(1)))
    t = 2.0
    divergence = F.kl_div((scores / t).log_softmax(1), (teacher / t).softmax(1), reduction="batchmean")
    torch.testing.assert_close(KLDivergenceLoss(temperature=t)(scores, teacher), divergence)
    margins = F.mse_loss(scores[:, :1] - scores[:, 1:], teacher[:, :1] - teacher[:, 1:])
    torch.testing.assert_close(MarginMSELoss()(scores, teacher), margins)
    first = F.one_hot(torch.zeros(4, dtype=torch.long), 6)
    contrast = F.cross_entropy(3 * scores, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(InfoNCELoss(scale=3.0)(scores, first), contrast)


# -- sentence-transformers ---------------------------------------------------------------------------------------------


class Model(torch.nn.Module):
    """What sentence-transformers' losses ask of a model, with given scores: a document's text is its index in them."""

    num_labels = 1
    device = torch.device("cpu")

    def __init__(self, logits: Tensor) -> None:
        torch.nn.Module.__init__(self)
        self.logits = logits.flatten()

    def preprocess(self, pairs: list[tuple[str, str]], **_: Any) -> dict[str, Tensor]:
        return {"places": torch.tensor([int(document) for _, document in pairs])}

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"scores": self.logits[inputs["places"], None]}


def theirs(name: str, logits: Tensor, labels: Tensor, **arguments: Any) -> Tensor:
    """The value of a loss of sentence-transformers over lists."""
    from sentence_transformers.cross_encoder import losses as peer

    rows = [row[row != -100] for row in labels]
    places = iter(range(logits.numel()))
    documents = [[str(next(places)) for _ in row] for row in rows]
    loss = getattr(peer, name)(Model(logits), **arguments)
    value: Tensor = loss([[""] * len(rows), documents], rows)
    return value


def their_scheme(name: str, mu: float) -> Any:
    from sentence_transformers.cross_encoder import losses as peer

    return {
        "none": peer.NoWeightingScheme,
        "ndcg2": peer.NDCGLoss2Scheme,
        "lambdarank": peer.LambdaRankScheme,
        "ndcg1": peer.NDCGLoss1Scheme,
        "ndcg2++": lambda: peer.NDCGLoss2PPScheme(mu=mu),
    }[name]()


@pytest.mark.parametrize("sigma", [1.0, 0.7])
@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "ndcg1"])
def test_lambda_loss_equals_sentence_transformers(scheme: str, sigma: float) -> None:
    logits, labels = (tensor.float() for tensor in ragged(8))
    loss = LambdaLoss(scheme=scheme, sigma=sigma, mu=4.0)
    expected = theirs("LambdaLoss", logits, labels, weighting_scheme=their_scheme(scheme, 4.0), sigma=sigma)
    torch.testing.assert_close(loss(logits, labels), expected)


def pairs_near_the_top(logits: Tensor, labels: Tensor, k: int) -> int:
    count = 0
    for s, y in as_groups(logits, labels):
        first = sorted(range(len(s)), key=lambda i: -s[i])[:k]
        count += sum(i in first or j in first for i, j in ordered(y))
    return count


@pytest.mark.parametrize("k", [1, 3])
def test_lambda_loss_at_k_equals_sentence_transformers(k: int) -> None:
    """Theirs divides by the pairs near the model's top, which depend on scores; ours by all pairs."""
    logits, labels = (tensor.float() for tensor in ragged(9))
    near = pairs_near_the_top(logits, labels, k)
    items = int(LambdaLoss(k=k).count_items(labels))
    assert near < items
    expected = theirs("LambdaLoss", logits, labels, k=k) * near / items
    torch.testing.assert_close(LambdaLoss(k=k)(logits, labels), expected)


def test_lambda_loss_ndcg1_differs_from_sentence_transformers_by_its_pairs() -> None:
    """Theirs takes all pairs, a document with itself and pairs in the wrong order included; with one relevant document
    per query only its pair with itself, of constant value, is added, since other documents gain nothing."""
    sizes = (5, 3, 4)
    logits, labels = (tensor.float() for tensor in ragged(10, sizes=sizes))
    labels = torch.where(labels == -100, labels, 0.0)
    labels[:, 1] = 1.0
    ranks = [1 + sum(other > s[1] for other in s) for s, _ in as_groups(logits, labels)]
    itself = sum(1 / math.log2(1 + rank) for rank in ranks)  # gain 1, -log2 sigmoid(0) = 1
    total = theirs("LambdaLoss", logits, labels, weighting_scheme=their_scheme("ndcg1", 0)) * sum(n * n for n in sizes)
    torch.testing.assert_close(LambdaLoss(scheme="ndcg1")(logits, labels), (total - itself) / sum(n - 1 for n in sizes))


@pytest.mark.parametrize("name", ["ListNetLoss", "ADRMSELoss"])
def test_list_losses_equal_sentence_transformers(name: str) -> None:
    for graded in (True, False):
        logits, labels = (tensor.float() for tensor in ragged(11, graded=graded))
        torch.testing.assert_close(getattr(losses, name)()(logits, labels), theirs(name, logits, labels))
    torch.testing.assert_close(ADRMSELoss(alpha=2.0)(logits, labels), theirs("ADRMSELoss", logits, labels, alpha=2.0))


@pytest.mark.parametrize("weighted", [False, True])
def test_list_mle_equals_sentence_transformers(weighted: bool) -> None:
    """Without ties: theirs breaks them by the order of input."""
    logits, labels = (tensor.float() for tensor in ragged(12, graded=False))
    name = "PListMLELoss" if weighted else "ListMLELoss"
    expected = theirs(name, logits, labels, respect_input_order=False)
    torch.testing.assert_close(ListMLELoss(position_weighted=weighted)(logits, labels), expected)


def test_rank_net_equals_sentence_transformers() -> None:
    logits, labels = (tensor.float() for tensor in ragged(13))
    expected = theirs("RankNetLoss", logits, labels, sigma=2.0, reduction_log="natural")
    torch.testing.assert_close(RankNetLoss(sigma=2.0)(logits, labels), expected)
    # Theirs takes logarithms to base 2 by default, as `LambdaLoss` does.
    torch.testing.assert_close(LambdaLoss(scheme="none")(logits, labels), theirs("RankNetLoss", logits, labels))


def test_tuple_losses_equal_sentence_transformers() -> None:
    from sentence_transformers.cross_encoder import CrossEncoder
    from sentence_transformers.cross_encoder import losses as peer

    class Encoder(Model, CrossEncoder):
        """The losses over tuples ask for the class."""

        num_labels = 1
        device = torch.device("cpu")

    scores, teacher = torch.randn(4, 3), torch.randn(4, 3)
    columns = [[""] * 4, *([str(3 * row + column) for row in range(4)] for column in range(3))]
    model = Encoder(scores)
    torch.testing.assert_close(MarginMSELoss()(scores, teacher), peer.MarginMSELoss(model)(columns, teacher))
    margins = teacher[:, :1] - teacher[:, 1:]
    torch.testing.assert_close(
        MarginMSELoss()(scores, F.pad(-margins, (1, 0))), peer.MarginMSELoss(model)(columns, margins)
    )
    first = F.one_hot(torch.zeros(4, dtype=torch.long), 3).float()
    ranking = peer.MultipleNegativesRankingLoss(model, scale=5.0, activation_fn=None)
    # Without negatives from the batch it is a softmax over the row's own documents.
    ranking.get_in_batch_negatives = lambda *_: iter(())
    torch.testing.assert_close(InfoNCELoss(scale=5.0)(scores, first), ranking(columns, None))


# -- shapes of outputs, labels and settings ----------------------------------------------------------------------------


def test_outputs_of_any_kind() -> None:
    logits, labels = torch.tensor([[0.3], [-1.0]]), torch.tensor([1.0, 0.0])
    loss = BinaryCrossEntropyLoss()
    expected = loss(logits, labels)
    own_loss = torch.tensor(5.0)
    for outputs in (
        {"logits": logits},
        {"loss": own_loss, "logits": logits},
        SequenceClassifierOutput(loss=own_loss, logits=logits),
        (logits,),
        (own_loss, logits),
        (logits, torch.ones(7)),
        [logits],
    ):
        assert loss(outputs, labels) == expected
    for outputs in ({"scores": logits}, (own_loss,), ()):
        with pytest.raises(ConfigurationError, match="No logits in the model's output"):
            loss(outputs, labels)


def test_to_grid() -> None:
    labels = torch.tensor([[1.0, 0.0, -100.0], [-100.0, -100.0, -100.0], [0.0, -100.0, 2.0]])
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = torch.tensor([[1.0, 2.0, -100.0], [-100.0] * 3, [3.0, -100.0, 4.0]])
    for logits in (scores, scores[:, None], torch.where(labels == -100, 7.0, expected)):
        assert torch.equal(to_grid(logits, labels), expected)
    assert torch.equal(to_grid(scores, labels, fill=0.5), expected.masked_fill(labels == -100, 0.5))
    assert to_grid(scores.bfloat16(), labels).dtype == torch.bfloat16
    sentinels = torch.full((2, 3), -100.0)
    assert torch.equal(to_grid(torch.ones(1, 1), sentinels), sentinels)
    leaf = scores.clone().requires_grad_()
    (to_grid(leaf, labels) * torch.arange(9.0).view(3, 3)).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [0.0, 1.0, 6.0, 8.0]


@pytest.mark.parametrize(
    ("loss", "logits", "labels", "message"),
    [
        (
            ListNetLoss(),
            (3, 1),
            torch.tensor([[1.0, 0.0], [1.0, 0.0]]),
            r"3 scores, but labels \[2, 2\] with 4 documents",
        ),
        (ListNetLoss(), (4, 2), torch.tensor([[1.0, 0.0], [1.0, 0.0]]), r"\[4, 2\].*one score.*num_labels=1"),
        (RankNetLoss(), (4, 1), torch.ones(4), r"shape \[4\].*pointwise loss"),
        (BinaryCrossEntropyLoss(), (4, 2), torch.ones(4), r"\[4, 2\] and labels \[4\].*num_labels"),
        (BinaryCrossEntropyLoss(), (3, 1), torch.ones(4), r"\[3, 1\] and labels \[4\]"),
        (BinaryCrossEntropyLoss(), (4, 1), torch.ones(4, 3), r"4 scores.*\[4, 3\].*that many num_labels"),
        (MSELoss(), (2, 2), torch.ones(4), r"\[2, 2\] and labels \[4\]"),
        (BinaryCrossEntropyLoss((1.0, 2.0)), (4, 3), torch.ones(4, 3), "2 pos_weight, but 3 labels"),
        (BinaryCrossEntropyLoss((1.0, 2.0)), (2, 1), torch.ones(2), "2 pos_weight, but 1 labels"),
        (CrossEntropyLoss(), (4, 1), torch.ones(4), "num_labels = the number of classes"),
        (CrossEntropyLoss(), (4, 3), torch.ones(4, 3), r"\[4, 3\] and labels \[4, 3\]"),
        (CrossEntropyLoss((1.0, 2.0)), (4, 3), torch.ones(4), "2 class_weights, but 3 labels"),
    ],
    ids=repr,
)
def test_shapes_that_do_not_fit(loss: Any, logits: tuple[int, ...], labels: Tensor, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        loss(torch.zeros(logits), labels)


@pytest.mark.parametrize("loss", LISTWISE, ids=repr)
def test_counting_flat_labels_is_an_error(loss: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"shape \[4\].*documents of a query"):
        loss.count_items(torch.ones(4))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BinaryCrossEntropyLoss(pos_weight=0.0), "pos_weight is 0.0.*above 0"),
        (lambda: BinaryCrossEntropyLoss(pos_weight=(1.0, math.inf)), "pos_weight is"),
        (lambda: BinaryCrossEntropyLoss(pos_weight=()), "pos_weight is"),
        (lambda: CrossEntropyLoss(class_weights=(1.0, -1.0)), "class_weights is.*0 or more"),
        (lambda: CrossEntropyLoss(class_weights=2.0), "class_weights is 2.0.*each class"),
        (lambda: CrossEntropyLoss(label_smoothing=1.0), "label_smoothing is 1.0"),
        (lambda: MSELoss(activation="relu"), "activation is 'relu'.*'identity'"),
        (lambda: RankNetLoss(sigma=-1.0), "RankNetLoss: sigma is -1.0"),
        (lambda: LambdaLoss(scheme="ndcg3"), "scheme is 'ndcg3'.*lambdarank"),
        (lambda: LambdaLoss(k=0), "k is 0"),
        (lambda: LambdaLoss(k=2.5), "k is 2.5"),
        (lambda: LambdaLoss(sigma=math.nan), "sigma is nan"),
        (lambda: ListNetLoss(pointwise=-1.0), "ListNetLoss: pointwise is -1.0"),
        (lambda: LambdaLoss(mu=-1.0), "mu is -1.0"),
        (lambda: InfoNCELoss(scale=0.0), "scale is 0.0"),
        (lambda: KLDivergenceLoss(temperature=0.0), "temperature is 0.0"),
        (lambda: ADRMSELoss(alpha=math.inf), "alpha is inf"),
    ],
)
def test_settings_are_checked(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build()


@pytest.mark.parametrize("loss", [*LISTWISE, *POINTWISE, BinaryCrossEntropyLoss((1.0, 2.0))], ids=repr)
def test_a_loss_is_its_specification(loss: Any) -> None:
    again = eval(repr(loss), vars(losses))
    assert again == loss
    assert hash(again) == hash(loss)
    assert pickle.loads(pickle.dumps(loss)) == loss
    with pytest.raises(AttributeError):
        loss.score_activation = "relu"


def test_repr_and_weights_given_in_other_types() -> None:
    assert repr(LambdaLoss(k=10)) == "LambdaLoss(scheme='ndcg2++', k=10, sigma=1.0, mu=10.0)"
    assert BinaryCrossEntropyLoss([1, 2]) == BinaryCrossEntropyLoss((1.0, 2.0))
    assert BinaryCrossEntropyLoss(3) == BinaryCrossEntropyLoss(torch.tensor(3.0))
    assert CrossEntropyLoss(np.array([1.0, 2.0])) == CrossEntropyLoss((1.0, 2.0))
    assert hash(CrossEntropyLoss(torch.tensor([1.0, 2.0]))) == hash(CrossEntropyLoss((1.0, 2.0)))


def test_what_scores_mean() -> None:
    assert BinaryCrossEntropyLoss().score_activation == "sigmoid"
    assert CrossEntropyLoss().score_activation == "softmax"
    assert MSELoss().score_activation == "sigmoid"
    assert MSELoss("identity").score_activation == "identity"
    assert ListNetLoss(pointwise=0.5).score_activation == "sigmoid"
    assert {loss.score_activation for loss in LISTWISE if loss != ListNetLoss(pointwise=0.5)} == {"identity"}
    assert all(type(loss).couples_rows for loss in LISTWISE)
    assert not any(type(loss).couples_rows for loss in POINTWISE)


# -- a plain Trainer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [BinaryCrossEntropyLoss(pos_weight=2.0), CrossEntropyLoss()], ids=repr)
def test_one_step_of_a_plain_trainer(loss: Any, tmp_path: Any) -> None:
    """Two accumulated micro-batches of unequal size move the weights as one batch does, along the mean's gradient."""
    from transformers import Trainer, TrainingArguments

    classes = isinstance(loss, CrossEntropyLoss)
    random = torch.Generator().manual_seed(0)
    rows = [
        {
            "input_ids": torch.randint(4, 200, (6,), generator=random),
            "labels": torch.tensor(i % 2 if classes else i % 2 * 1.0),
        }
        for i in range(5)
    ]
    model, reference = (build_model(num_labels=3 if classes else 1) for _ in range(2))
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        num_train_epochs=1,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
    )
    Trainer(model, arguments, train_dataset=rows, compute_loss_func=loss).train()

    labels = torch.stack([row["labels"] for row in rows])
    logits = reference(input_ids=torch.stack([row["input_ids"] for row in rows])).logits
    if classes:
        F.cross_entropy(logits, labels).backward()
    else:
        F.binary_cross_entropy_with_logits(logits[:, 0], labels, pos_weight=torch.tensor(2.0)).backward()
    for (name, moved), start in zip(model.named_parameters(), reference.parameters(), strict=True):
        if start.grad is not None:
            torch.testing.assert_close(moved, start - 0.1 * start.grad, msg=lambda text, name=name: f"{name}: {text}")
