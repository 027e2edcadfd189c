"""Blocks of similar lengths against each sequence by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cross_trainer.execution.blocks import Groups, Settings, dropout_attention, make_blocks

GROUPS = ((1, 1), (2, 3), (1, 7), (3, 8), (1, 40))
TOKENS = sum(n * s for n, s in GROUPS)
NOTHING = 1e-12  # drops nothing, but takes that path


def one_by_one(query: Tensor, key: Tensor, value: Tensor, settings: Settings) -> Tensor:
    rows, start = [], 0
    for s in (s for n, s in GROUPS for _ in range(n)):
        q, k, v = (x[start : start + s].transpose(0, 1) for x in (query, key, value))
        scores = q @ k.transpose(1, 2) * settings.scaling
        if settings.causal:
            scores = scores.masked_fill(torch.ones(s, s).triu(1).bool(), float("-inf"))
        rows.append((scores.softmax(-1) @ v).transpose(0, 1))
        start += s
    return torch.cat(rows)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_sequence_attends_to_itself_alone(dtype: torch.dtype, causal: bool) -> None:
    assert len(make_blocks(GROUPS, 4, dtype, torch.device("cpu")).shapes) == 2
    settings = Settings(NOTHING, 0.4, causal, None)
    exact = [torch.randn(TOKENS, 4, 8, requires_grad=True) for _ in range(3)]
    states = [x.detach().to(dtype).requires_grad_() for x in exact]
    found, expected = dropout_attention(*states, GROUPS, settings), one_by_one(*exact, settings)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)
    towards = torch.randn(found.shape)
    gradients = torch.autograd.grad(found, states, towards.to(dtype))
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, exact, towards), strict=True):
        torch.testing.assert_close(gradient.float(), wanted, rtol=tolerance, atol=3 * tolerance)


def test_what_is_not_finite_stays_in_its_sequence() -> None:
    query, key, value = torch.randn(3, TOKENS, 4, 8).requires_grad_().unbind()
    broken = torch.zeros(TOKENS, dtype=torch.bool)
    broken[1:4] = True  # the first sequence of three tokens
    query = query.masked_fill(broken[:, None, None], float("nan")).detach().requires_grad_()
    output = dropout_attention(query, key, value, GROUPS, Settings(0.1, 1.0, False, None))
    assert torch.equal(output.isnan().flatten(1).any(1), broken)


@pytest.mark.parametrize("groups", [((4, 5),), ((1, 5), (1, 6)), ((2, 3), (40, 128), (1, 500))])
def test_rows_and_tokens_are_found_again(groups: Groups) -> None:
    tokens = sum(n * s for n, s in groups)
    for dtype in (torch.float32, torch.bfloat16):
        blocks = make_blocks(groups, 2, dtype, torch.device("cpu"))
        states = torch.arange(tokens * 2 * 3).view(tokens, 2, 3)
        assert torch.equal(blocks.scatter(blocks.gather(states)), states)
        assert len(blocks.rows) - len(blocks.padding) == len(blocks.back) == tokens * 2
        assert all(s % 8 == 0 for _, s in blocks.shapes) or dtype == torch.float32


def test_lengths_far_apart_have_blocks_of_their_own() -> None:
    blocks = make_blocks(((2, 3), (40, 128), (1, 500)), 2, torch.float32, torch.device("cpu"))
    assert blocks.shapes == ((2, 3), (40, 128), (1, 500))
    assert blocks.biases == [None, None, None]
    assert make_blocks(GROUPS, 2, torch.bfloat16, torch.device("cpu"), joined=False).shapes == GROUPS
