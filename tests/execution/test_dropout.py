"""Fast dropout on CPUs: its rate, its expectation, its gradient, and where it leaves the work to torch."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from cross_trainer.execution.dropout import CpuDropout, draw_kept, kept_share


@pytest.mark.parametrize("rate", [1e-12, 1e-4, 0.1, 0.5, 0.999, 1 - 1e-9])
def test_numbers_are_kept_at_the_rate(rate: float) -> None:
    count = 1_000_003
    share = kept_share(rate)
    assert abs(share - (1 - rate)) <= 2**-16
    deviation = (share * (1 - share) / count) ** 0.5
    kept = draw_kept(count, rate, torch.device("cpu"))
    assert kept.shape == (count,)
    assert set(kept.unique().tolist()) <= {-1, 0}
    assert abs(kept.bool().double().mean().item() - share) <= 5 * deviation


def test_neighbours_are_independent() -> None:
    kept = draw_kept(1_000_000, 0.3, torch.device("cpu")).bool().double() - 0.7
    for distance in range(1, 9):
        assert abs((kept[distance:] * kept[:-distance]).mean().item()) < 5 * 0.21 / 1_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_stays_is_scaled_and_the_gradient_takes_the_same_mask(dtype: torch.dtype) -> None:
    layer, states = CpuDropout(0.3), torch.randn(40, 5, 7, dtype=dtype).requires_grad_()
    dropped = layer(states)
    kept = dropped != 0
    assert 0.6 < kept.float().mean() < 0.8
    torch.testing.assert_close(dropped, torch.where(kept, states / kept_share(0.3), 0.0).to(dtype))
    (gradient,) = torch.autograd.grad(dropped.sum(), states)
    torch.testing.assert_close(gradient, (kept / kept_share(0.3)).to(dtype))


def test_gradients_of_gradients() -> None:
    states = torch.randn(4, 5, dtype=torch.float64).requires_grad_()

    def drop(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return CpuDropout(0.3)(x).square()

    assert torch.autograd.gradcheck(drop, states)
    assert torch.autograd.gradgradcheck(drop, states)


def test_the_seed_decides() -> None:
    layer, states, made = CpuDropout(0.5), torch.ones(1000), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(layer(states))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize("layer", [CpuDropout(0.5).eval(), CpuDropout(0.0), CpuDropout(1.0)], ids=["eval", "0", "1"])
def test_without_chance_it_is_torchs(layer: CpuDropout) -> None:
    states = torch.randn(100)
    plain = nn.Dropout(layer.p).train(layer.training)
    assert torch.equal(layer(states), plain(states))


def test_in_place_stays_in_place() -> None:
    states = torch.ones(1000)
    assert CpuDropout(0.5, inplace=True)(states).data_ptr() == states.data_ptr()


def test_it_compiles_to_one_graph() -> None:
    torch.compiler.reset()
    layer = torch.compile(CpuDropout(0.5), backend="eager", fullgraph=True)
    assert 300 < (layer(torch.ones(1000)) != 0).sum() < 700


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_module_that_became_one_can_be_copied(copied) -> None:
    layer = nn.Dropout(0.25)
    layer.__class__ = CpuDropout
    assert repr(copied(layer)) == "CpuDropout(p=0.25, inplace=False)"
