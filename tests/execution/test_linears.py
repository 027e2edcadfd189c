"""Linear layers of 8-bit integers, against their formula."""

from __future__ import annotations

import pytest
import torch
from conftest import build_model
from torch import nn

from cross_trainer.execution.linears import largest_weight, quantize_linears


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_of_8_bits_is_its_formula(dtype):
    torch.manual_seed(0)
    layer = nn.Linear(40, 24).to(dtype)
    states = torch.randn(3, 7, 40, dtype=dtype)
    states[0, 0] = 0
    before = states.clone()
    rounded = quantize_linears(_holding(layer)).base_model.layer
    steps = states.double().abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
    weights = layer.weight.detach().double()
    sizes = weights.abs().amax(1, keepdim=True) / largest_weight()
    product = (states.double() / steps).round() @ (weights / sizes).round().T
    expected = product * steps * sizes.T + layer.bias.double()
    with torch.inference_mode():
        found = rounded(states)
    assert found.dtype == dtype
    # A quotient near a half may fall on either side of it: one step of one input.
    torch.testing.assert_close(found.double(), expected, atol=0.02, rtol=0.01)
    torch.testing.assert_close(states, before, atol=0, rtol=0)


def _holding(layer):
    """A classifier with one layer in its transformer."""
    model = build_model()
    model.bert.layer = layer
    return model
