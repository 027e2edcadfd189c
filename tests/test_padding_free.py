"""Padding-free execution against the padded model it replaces: families, gradients, paths, hooks."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from cross_trainer import attention
from cross_trainer.attention import Layout, flat_attention
from cross_trainer.errors import ConfigurationError, UnsupportedModelError
from cross_trainer.padding_free import DECODERS, ENCODERS, enable_padding_free, unpad_indices

COMMON = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT_LIKE = {**COMMON, **NO_DROPOUT, "max_position_embeddings": 64, "pad_token_id": 1, "initializer_range": 0.3}
ROPE = {**COMMON, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 1, "initializer_range": 0.3}
MODERN = {
    **COMMON,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "initializer_range": 0.3,
    "local_attention": 6,
    "global_attn_every_n_layers": 2,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
FAMILIES = {
    "bert": ("bert", BERT_LIKE),
    "roberta": ("roberta", BERT_LIKE),
    "xlm-roberta": ("xlm-roberta", BERT_LIKE),
    "camembert": ("camembert", BERT_LIKE),
    "distilbert": ("distilbert", {
        "vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "dropout": 0.0, "seq_classif_dropout": 0.0,
        "attention_dropout": 0.0, "max_position_embeddings": 64, "pad_token_id": 1, "initializer_range": 0.3,
    }),
    "electra": ("electra", {**BERT_LIKE, "embedding_size": 16}),
    "albert": ("albert", {**BERT_LIKE, "embedding_size": 16, "classifier_dropout_prob": 0.0}),
    "modernbert-cls": ("modernbert", {**MODERN, "classifier_pooling": "cls"}),
    "modernbert-mean": ("modernbert", {**MODERN, "classifier_pooling": "mean"}),
    "eurobert": ("eurobert", {**ROPE, "classifier_pooling": "late", "bos_token_id": 2, "eos_token_id": 3, "mask_token_id": 4}),
    "llama": ("llama", ROPE),
    "mistral": ("mistral", {**ROPE, "sliding_window": 4}),
    "qwen2": ("qwen2", {**ROPE, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("qwen3", {**ROPE, "head_dim": 8}),
    "gemma": ("gemma", {**ROPE, "head_dim": 8}),
}  # fmt: skip
LENGTHS = (9, 3, 14, 9, 5, 1)


def build(family: str, **overrides: object) -> PreTrainedModel:
    model_type, settings = FAMILIES[family]
    attn = overrides.pop("attn_implementation", "sdpa")
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**settings, "num_labels": 2, **overrides})
    return AutoModelForSequenceClassification.from_config(config, attn_implementation=attn).eval()


def make_batch(
    lengths: tuple[int, ...] = LENGTHS, side: str = "right", seed: int = 1, **extra: Tensor
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows, longest = len(lengths), max(lengths)
    position = torch.arange(longest)
    real = torch.stack([position < n if side == "right" else position >= longest - n for n in lengths])
    ids = torch.randint(5, 100, (rows, longest), generator=generator).masked_fill(~real, 1)
    return {"input_ids": ids, "attention_mask": real.long(), **extra}


def logits_and_gradients(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    logits = model(**batch).logits
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(
    model: PreTrainedModel, batch: dict[str, Tensor], kernel: str | None = None, rtol: float = 1e-5
) -> None:
    expected, gradients = logits_and_gradients(model, batch)
    with enable_padding_free(model, kernel=kernel):
        found, found_gradients = logits_and_gradients(model, batch)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol)
    assert gradients.keys() == found_gradients.keys()
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for name, gradient in gradients.items():
        scale = max(gradient.abs().max().item(), 1e-2 * largest)  # a key's bias has a gradient of 0, plus rounding
        torch.testing.assert_close(found_gradients[name] / scale, gradient / scale, rtol=0, atol=10 * rtol, msg=name)


def is_flat(model: PreTrainedModel, batch: dict[str, Tensor]) -> bool:
    """Whether the layers see [1, T] tokens."""
    shapes = []
    handle = model.get_input_embeddings().register_forward_hook(lambda *a: shapes.append(a[2].shape))
    model(**batch)
    handle.remove()
    return shapes[0][0] == 1


# --- families ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_the_padded_models(family: str, training: bool) -> None:
    model = build(family).train(training)
    batch = make_batch()
    if FAMILIES[family][0] in {"bert", "electra", "albert"}:
        batch["token_type_ids"] = (torch.arange(14) > 4).long().expand(6, 14) * batch["attention_mask"]
    assert_same(model, batch)
    with enable_padding_free(model):
        assert is_flat(model, batch)


def test_every_supported_type_is_in_the_table() -> None:
    assert {model_type for model_type, _ in FAMILIES.values()} == ENCODERS | DECODERS


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma"])
def test_causal_models_take_left_padding(family: str) -> None:
    assert_same(build(family).train(), make_batch(side="left"))
