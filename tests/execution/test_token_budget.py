"""A budget of tokens against the uncut batch: pieces, gradients, random numbers, processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from conftest import build_model
from torch import Tensor

from cross_trainer.errors import ConfigurationError
from cross_trainer.execution.padding_free import enable_padding_free, unpad_indices
from cross_trainer.execution.token_budget import budgeted_forward, budgeted_step, cut, piece
from cross_trainer.training.losses import BinaryCrossEntropyLoss, CrossEntropyLoss, InfoNCELoss, LambdaLoss

LENGTHS = (9, 3, 14, 9, 5, 2, 11, 4)
GRID = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, -100.0], [1.0, 0.0, 0.0]])  # 8 documents


def make_batch(lengths: tuple[int, ...] = LENGTHS, side: str = "right") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    position = torch.arange(max(lengths))
    real = torch.stack([position < n if side == "right" else position >= max(lengths) - n for n in lengths])
    ids = torch.randint(5, 200, real.shape, generator=generator).masked_fill(~real, 0)
    return {"input_ids": ids, "attention_mask": real.long(), "token_type_ids": (position > 3).long() * real}


@dataclass(frozen=True)
class Variance:
    """Couples every row with every other."""

    couples_rows: ClassVar[bool] = True

    def __call__(self, outputs, labels: Tensor, num_items_in_batch=None) -> Tensor:
        logits = outputs.logits.float().flatten()
        return (logits.var() * labels.sum() + (logits * labels).sum() ** 2) / (num_items_in_batch or len(labels))


LOSSES = {
    "bce": (BinaryCrossEntropyLoss(), torch.linspace(0, 1, 8), 1),
    "bce-lists": (BinaryCrossEntropyLoss(), GRID, 1),
    "bce-several": (BinaryCrossEntropyLoss(), torch.linspace(0, 1, 24).view(8, 3), 3),
    "cross-entropy": (CrossEntropyLoss(), torch.tensor([0, 1, 2, 0, -100, 1, 2, 0]), 3),
    "variance": (Variance(), torch.linspace(0, 1, 8), 1),
    "lambda": (LambdaLoss(), GRID, 1),
    "infonce": (InfoNCELoss(), GRID, 1),
}


def gradients(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def uncut(model, batch, labels, loss_func, num_items=None) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    loss = loss_func(model(**batch), labels, num_items_in_batch=num_items)
    loss.backward()
    return loss.detach(), gradients(model)


def assert_near(found: Tensor, expected: Tensor, rtol: float = 1e-6) -> None:
    """Relative to the size of the whole: a gradient's small entries are differences of large ones."""
    assert (found - expected).norm() <= rtol * expected.norm()


# --- pieces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("max_tokens", [1, 10, 14, 23, 57, 112, 1000])
def test_pieces_hold_every_row_once_and_no_more_than_the_budget(max_tokens: int, padded: bool) -> None:
    lengths = torch.tensor(LENGTHS)
    pieces = cut(lengths, max_tokens, padded=padded)
    assert sorted(torch.cat(pieces).tolist()) == list(range(8))
    for rows in pieces:
        tokens = len(rows) * lengths[rows].max() if padded else lengths[rows].sum()
        assert tokens <= max_tokens or len(rows) == 1
    ordered = lengths[torch.cat(pieces)]
    assert torch.equal(ordered, ordered.sort(descending=True).values)


def test_pieces_are_as_full_as_they_can_be() -> None:
    assert [rows.tolist() for rows in cut(torch.tensor(LENGTHS), 25)] == [[2, 6], [0, 3, 4], [7, 1, 5]]
    assert [rows.tolist() for rows in cut(torch.tensor(LENGTHS), 28, padded=True)] == [[2, 6], [0, 3, 4], [7, 1, 5]]
    assert len(cut(torch.tensor(LENGTHS), 57)) == 1
    assert len(cut(torch.tensor(LENGTHS), 56)) == 2


def test_a_budget_below_one_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_tokens is 0"):
        cut(torch.tensor([3]), 0)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_piece_has_no_column_of_padding(side: str) -> None:
    batch = {**make_batch(side=side), "weights": torch.arange(8), "note": "kept"}
    batch["unpad_idx"] = unpad_indices(batch["attention_mask"])
    part = piece(batch, torch.tensor([4, 1]))
    assert part["input_ids"].shape == part["attention_mask"].shape == part["token_type_ids"].shape == (2, 5)
    assert part["attention_mask"].sum(1).tolist() == [5, 3]
    real = part["attention_mask"].bool()
    assert torch.equal(
        part["input_ids"][real], torch.cat([batch["input_ids"][i][batch["attention_mask"][i] > 0] for i in (4, 1)])
    )
    assert part["weights"].tolist() == [4, 1]
    assert part["note"] == "kept"
    assert part["unpad_idx"].shape == (8,)


def test_a_batch_without_a_mask_counts_all_its_tokens() -> None:
    batch = {"input_ids": torch.ones(4, 6, dtype=torch.long)}
    assert piece(batch, torch.tensor([1]))["input_ids"].shape == (1, 6)
    model, sizes = build_model().eval(), []
    model.register_forward_pre_hook(lambda _, __, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True)
    budgeted_forward(model, batch, 12)
    assert sizes == [2, 2]


def test_a_row_without_tokens_is_no_obstacle() -> None:
    batch = make_batch((4, 0, 6))
    assert budgeted_forward(build_model().eval(), batch, 4).shape == (3, 1)


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_free", [False, True])
@pytest.mark.parametrize("max_tokens", [1, 20, 1000])
def test_scores_come_in_the_order_of_the_batch(max_tokens: int, padding_free: bool) -> None:
    model, batch = build_model(num_labels=3).eval(), make_batch()
    expected = model(**batch).logits
    with enable_padding_free(model) if padding_free else contextlib.nullcontext():
        found = budgeted_forward(model, batch, max_tokens, padded=not padding_free)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_free", [False, True])
@pytest.mark.parametrize("max_tokens", [15, 30])
@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_the_uncut_batchs(name: str, max_tokens: int, padding_free: bool) -> None:
    loss_func, labels, width = LOSSES[name]
    model, batch = build_model(num_labels=width).train(), make_batch()
    loss, expected = uncut(model, batch, labels, loss_func)
    if padding_free:
        enable_padding_free(model)
    model.zero_grad()
    found = budgeted_step(model, batch, labels, loss_func, max_tokens, padded=not padding_free)
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-6)
    assert_near(gradients(model), expected, 2e-6)


@pytest.mark.parametrize("name", ["bce", "variance"])
def test_the_gradient_is_exact_in_double_precision(name: str) -> None:
    loss_func, labels, _ = LOSSES[name]
    model, batch = build_model().double().train(), make_batch()
    _, expected = uncut(model, batch, labels.double(), loss_func)
    model.zero_grad()
    budgeted_step(model, batch, labels.double(), loss_func, 20)
    assert_near(gradients(model), expected, 1e-6 if name == "variance" else 1e-13)  # Variance itself rounds to float32


@pytest.mark.parametrize("name", ["bce", "lambda"])
def test_items_scale_and_backward_reach_the_loss(name: str) -> None:
    loss_func, labels, _ = LOSSES[name]
    model, batch = build_model().train(), make_batch()
    loss, expected = uncut(model, batch, labels, loss_func, num_items=100)
    for max_tokens in (20, 1000):
        model.zero_grad()
        found = budgeted_step(
            model, batch, labels, loss_func, max_tokens, num_items=100, scale=2.0, backward=lambda x: (x * 3).backward()
        )
        torch.testing.assert_close(found, 2 * loss)
        assert_near(gradients(model), 6 * expected, 2e-6)


def test_gradients_add_to_those_that_are_there() -> None:
    loss_func, labels, _ = LOSSES["variance"]
    model, batch = build_model().train(), make_batch()
    _, expected = uncut(model, batch, labels, loss_func)
    budgeted_step(model, batch, labels, loss_func, 20)
    assert_near(gradients(model), 2 * expected, 2e-6)


def test_an_unknown_loss_is_taken_to_couple_rows() -> None:
    model, batch = build_model().train(), make_batch()

    def softmax_loss(outputs, labels, num_items_in_batch=None):
        return -(torch.log_softmax(outputs["logits"].flatten(), 0) * labels).sum()

    labels = LOSSES["bce"][1]
    loss, expected = uncut(model, batch, labels, softmax_loss)
    model.zero_grad()
    torch.testing.assert_close(budgeted_step(model, batch, labels, softmax_loss, 20), loss)
    assert_near(gradients(model), expected, 2e-6)


def test_a_separable_loss_without_a_count_needs_one() -> None:
    def loss(outputs, labels, num_items_in_batch=None):
        return (outputs.logits.flatten() - labels).square().sum() / num_items_in_batch

    loss.couples_rows = False
    model, labels = build_model(), torch.zeros(8)
    with pytest.raises(ConfigurationError, match="count_items"):
        budgeted_step(model, make_batch(), labels, loss, 20)
    assert budgeted_step(model, make_batch(), labels, loss, 20, num_items=8) > 0


def test_sentinel_rows_count_for_nothing() -> None:
    model, batch = build_model().train(), make_batch()
    labels = torch.full((8,), -100.0)
    assert budgeted_step(model, batch, labels, BinaryCrossEntropyLoss(), 20) == 0
    assert not gradients(model).any()
    grid = torch.full((3, 3), -100.0)
    assert budgeted_step(model, batch, grid, LambdaLoss(), 20) == 0


@pytest.mark.parametrize("name", ["bce", "lambda"])
def test_under_bf16_the_gradient_is_the_uncut_ones_to_rounding(name: str) -> None:
    loss_func, labels, _ = LOSSES[name]
    model, batch = build_model().train(), make_batch()
    enable_padding_free(model)
    _, exact = uncut(model, batch, labels, loss_func)
    with torch.autocast("cpu", torch.bfloat16):
        _, rounded = uncut(model, batch, labels, loss_func)
        model.zero_grad()
        budgeted_step(model, batch, labels, loss_func, 20)
    assert (gradients(model) - exact).norm() < 2 * (rounded - exact).norm()


@pytest.mark.parametrize("name", ["bce", "variance"])
def test_pieces_on_a_cpu_are_smaller_than_a_large_budget(name: str, monkeypatch) -> None:
    monkeypatch.setattr("cross_trainer.execution.token_budget.CPU_TOKENS", 25)
    loss_func, labels, _ = LOSSES[name]
    model, batch = build_model().train(), make_batch()
    _, expected = uncut(model, batch, labels, loss_func)
    model.zero_grad()
    calls = record(model)
    budgeted_step(model, batch, labels, loss_func, 50)
    assert [len(scores) for _, scores in calls[-3:]] == [2, 3, 3]
    assert_near(gradients(model), expected, 2e-6)
    calls.clear()
    budgeted_step(model, batch, labels, loss_func, 57)  # it fits: no cut
    assert [len(scores) for _, scores in calls] == [8]


@pytest.mark.parametrize("name", ["bce", "variance"])
def test_embeddings_add_only_rows_to_the_first_pieces_gradient(name: str) -> None:
    loss_func, labels, _ = LOSSES[name]
    passes = 2 if name == "variance" else 1
    for change, rows_only in (
        (lambda _: None, [False, True, True]),
        (lambda model: setattr(model.bert.embeddings.word_embeddings, "scale_grad_by_freq", True), [False] * 3),
        (lambda model: model.classifier.compile(backend="eager"), [False] * 3),
    ):
        model = build_model().train()
        change(model)
        embedding, seen = model.bert.embeddings.word_embeddings, []
        embedding.register_forward_pre_hook(lambda module, _, seen=seen: seen.append(module.sparse))
        budgeted_step(model, make_batch(), labels, loss_func, 25)
        assert seen == [False] * 3 * (passes - 1) + rows_only
        assert not embedding.sparse
        assert embedding.weight.grad.layout == torch.strided


# --- passes and random numbers ----------------------------------------------------------------------------------------


def record(model: torch.nn.Module) -> list[tuple[bool, Tensor]]:
    """Every forward pass: with a graph or without, and its scores."""
    calls: list[tuple[bool, Tensor]] = []
    model.register_forward_hook(lambda _, __, out: calls.append((torch.is_grad_enabled(), out.logits.detach().clone())))
    return calls


@pytest.mark.parametrize("padding_free", [False, True])
def test_both_passes_draw_the_same_dropout(padding_free: bool) -> None:
    model, batch = build_model(dropout=0.2).train(), make_batch()
    if padding_free:
        enable_padding_free(model)
    calls = record(model)
    budgeted_step(model, batch, LOSSES["variance"][1], Variance(), 20)
    half = len(calls) // 2
    assert half == len(cut(torch.tensor(LENGTHS), 20)) > 2
    assert [graph for graph, _ in calls] == [False] * half + [True] * half
    for (_, first), (_, second) in zip(calls[:half], calls[half:], strict=True):
        assert torch.equal(first, second)


def test_the_gradient_with_dropout_is_that_of_the_drawn_masks() -> None:
    """Pieces run by hand from the same random state, with all scores in one graph."""
    loss_func, labels, _ = LOSSES["variance"]
    model, batch = build_model(dropout=0.2).train(), make_batch()
    pieces = cut(torch.tensor(LENGTHS), 20)
    torch.manual_seed(3)
    scores = torch.cat([model(**piece(batch, rows)).logits for rows in pieces])[torch.cat(pieces).argsort()]
    after = torch.rand(1)
    loss = loss_func(type("Outputs", (), {"logits": scores}), labels)
    loss.backward()
    expected = gradients(model)
    model.zero_grad()
    torch.manual_seed(3)
    torch.testing.assert_close(budgeted_step(model, batch, labels, loss_func, 20), loss.detach())
    assert_near(gradients(model), expected)
    assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize(
    ("name", "max_tokens", "passes"), [("lambda", 57, 1), ("bce", 57, 1), ("bce", 25, 3), ("lambda", 25, 6)]
)
def test_no_pass_is_run_in_vain(name: str, max_tokens: int, passes: int) -> None:
    loss_func, labels, _ = LOSSES[name]
    model = build_model().train()
    calls = record(model)
    budgeted_step(model, make_batch(), labels, loss_func, max_tokens)
    assert len(calls) == passes


def test_a_batch_that_fits_runs_as_it_is() -> None:
    loss_func, labels, _ = LOSSES["variance"]
    model, batch = build_model(dropout=0.2).train(), make_batch()
    torch.manual_seed(0)
    loss, expected = uncut(model, batch, labels, loss_func)
    model.zero_grad()
    torch.manual_seed(0)
    assert torch.equal(budgeted_step(model, batch, labels, loss_func, 57), loss)
    assert torch.equal(gradients(model), expected)


@pytest.mark.parametrize("name", ["bce", "lambda"])
def test_only_the_last_piece_reduces_gradients(name: str) -> None:
    loss_func, labels, _ = LOSSES[name]
    model, inside, synchronised = build_model().train(), [], []

    @contextlib.contextmanager
    def no_sync():
        inside.append(True)
        yield
        inside.pop()

    def backward(loss: Tensor) -> None:
        synchronised.append(not inside)
        loss.backward()

    budgeted_step(model, make_batch(), labels, loss_func, 25, backward=backward, no_sync=no_sync)
    assert synchronised == [False, False, True]


WORKER = """
import os, sys, torch
sys.path.insert(0, sys.argv[1])
from test_token_budget import GRID, build_model, make_batch, gradients
from cross_trainer.training.losses import BinaryCrossEntropyLoss, LambdaLoss
from cross_trainer.execution.padding_free import enable_padding_free
from cross_trainer.execution.token_budget import budgeted_step
rank = int(os.environ["RANK"])
torch.distributed.init_process_group("gloo", init_method=sys.argv[2], rank=rank, world_size=2)
batches = [make_batch(), make_batch((4, 3, 4, 2, 3, 5, 1, 2))]
grids = [GRID, GRID.flip(0)]
for loss in (BinaryCrossEntropyLoss(), LambdaLoss()):
    items = sum(int(loss.count_items(grid)) for grid in grids)
    reference = build_model().train()
    sum(loss(reference(**b), g, num_items_in_batch=items) for b, g in zip(batches, grids)).backward()
    model = build_model().train()
    enable_padding_free(model)
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    for step in range(2):
        wrapped.zero_grad()
        passes = []
        handle = model.register_forward_hook(lambda *_: passes.append(1))
        step_options = {"num_items": items, "scale": 2.0, "no_sync": wrapped.no_sync}
        budgeted_step(wrapped, batches[rank], grids[rank], loss, 25, **step_options)
        handle.remove()
        expected, found = gradients(reference), gradients(model)
        assert (found - expected).norm() < 2e-6 * expected.norm(), (type(loss), step)
    assert len(passes) == [3, 1][rank] * (1 if rank or not loss.couples_rows else 2), passes
torch.distributed.destroy_process_group()
print("equal", rank)
"""


def test_processes_may_have_different_numbers_of_pieces(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, here, f"file://{tmp_path}/store"],
            env={**settings, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    for rank, output in enumerate(outputs):
        assert f"equal {rank}" in output, output
