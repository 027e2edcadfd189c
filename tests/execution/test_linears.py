"""Linear layers as scoring computes them, against torch's own."""

from __future__ import annotations

import pytest
import torch
from conftest import build_model
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from cross_trainer.execution import linears
from cross_trainer.execution.linears import fuse_linears, largest_weight, quantize_linears
from cross_trainer.execution.view import scoring_view
from cross_trainer.internals import linear_at_once_takes

SMALL = {"vocab_size": 200, "num_labels": 2, "initializer_range": 0.3, "pad_token_id": 0}
WIDTHS = {**SMALL, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
DISTIL = {**SMALL, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
BUILDERS = {  # a model, how often it runs a linear layer, and how many of these a GELU follows
    "bert": (lambda: BertForSequenceClassification(BertConfig(**WIDTHS)), 14, 2),
    "relu": (lambda: BertForSequenceClassification(BertConfig(**WIDTHS, hidden_act="relu")), 14, 0),
    "gelu by tanh": (lambda: BertForSequenceClassification(BertConfig(**WIDTHS, hidden_act="gelu_new")), 14, 0),
    "distilbert": (lambda: DistilBertForSequenceClassification(DistilBertConfig(**DISTIL)), 14, 2),
    "albert": (
        lambda: AlbertForSequenceClassification(AlbertConfig(**WIDTHS, embedding_size=16, hidden_act="gelu")),
        15,
        2,
    ),
    "llama": (lambda: LlamaForSequenceClassification(LlamaConfig(**WIDTHS)), 15, 0),  # without biases
}
PRECISIONS = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 1e-2}
IDS = torch.randint(5, 200, (4, 9), generator=torch.Generator().manual_seed(0))


def build(family):
    torch.manual_seed(0)
    return BUILDERS[family][0]().eval()


def fused(model):
    view = scoring_view(model)
    fuse_linears(view)
    return view


@torch.inference_mode()
def logits(model, ids=IDS):
    return model(ids).logits.float()


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("family", BUILDERS)
def test_fused_layers_compute_the_same(family, dtype, monkeypatch):
    model = build(family).to(dtype)
    passes = []
    inner = linears.linear_at_once
    monkeypatch.setattr(linears, "linear_at_once", lambda *args: passes.append(args[-1]) or inner(*args))
    torch.testing.assert_close(logits(fused(model)), logits(model), atol=PRECISIONS[dtype], rtol=0)
    expected = BUILDERS[family][1:]
    if linear_at_once_takes(torch.zeros(1, dtype=dtype)):
        assert (len(passes), sum(passes)) == expected
    else:
        assert not passes


def test_without_the_operator_layers_are_torchs(monkeypatch):
    model = build("bert")
    monkeypatch.setattr(linears, "linear_at_once_takes", lambda _: False)
    torch.testing.assert_close(logits(fused(model)), logits(model), atol=0, rtol=0)


def test_fused_layers_follow_a_training():
    model = build("bert")
    view = fused(model)
    before = logits(view)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
    model.train()(IDS).logits.square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(logits(view), logits(model.eval()), atol=1e-4, rtol=1e-4)
    assert (logits(view) - before).abs().max() > 0.1
    model.to(torch.bfloat16)
    torch.testing.assert_close(logits(view), logits(model), atol=0.2, rtol=0.05)


def test_autocast_is_followed():
    model = build("bert")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(logits(fused(model)), logits(model), atol=0, rtol=0)


def test_hooks_and_methods_of_ones_own_stay():
    model = build("bert")
    first, second = (layer.intermediate for layer in model.bert.encoder.layer)
    first.dense.register_forward_hook(lambda *args: args[2] * 2)
    second.intermediate_act_fn.register_forward_hook(lambda *args: args[2] + 1)
    model.classifier.forward = lambda states: states[:, :2] * 3
    torch.testing.assert_close(logits(fused(model)), logits(model), atol=1e-5, rtol=1e-5)


def test_layers_of_other_kinds_stay():
    class Twice(nn.Linear):
        def forward(self, states):
            return 2 * super().forward(states)

    model = build("bert")
    model.classifier = Twice(32, 2)
    view = fused(model)
    assert "forward" not in vars(view.classifier)
    torch.testing.assert_close(logits(view), logits(model), atol=1e-5, rtol=1e-5)


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
