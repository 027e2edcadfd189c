"""Tiny random models and a tokenizer, built in memory: no test needs a network or a data set."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # each process of `pytest -n` gets its share of the cores
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

SENTENCES = [
    "a man is playing a guitar",
    "a woman cuts an onion",
    "the dog runs in the park",
    "two children are eating",
    "someone plays an instrument",
    "a person is cooking",
    "an animal is moving",
    "kids have lunch",
    "how do i learn to cook",
    "what is the best way to learn cooking",
    "why is the sky blue",
    "who wrote this book",
]


CUDA = pytest.param("cuda", marks=pytest.mark.cuda)
"""A device to parametrise a test with, next to "cpu", where it runs with less, to see that the test itself is sound."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda") is not None:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU: torch sees none"))


def build_tokenizer(model_max_length: int = 64, padding_side: str = "right") -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer over the letters and the words of `SENTENCES`, with BERT's two-segment template."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789")
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    vocabulary = dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *words])
    ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", tokenizer.token_to_id("[CLS]")), ("[SEP]", tokenizer.token_to_id("[SEP]"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=model_max_length,
        padding_side=padding_side,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def build_model(
    num_labels: int = 1, dropout: float = 0.0, seed: int = 0, **config: object
) -> BertForSequenceClassification:
    """A BERT classifier with 2 layers of width 32 and random weights that depend on `seed` alone."""
    settings = {
        "vocab_size": 200,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "initializer_range": 0.3,
        "num_labels": num_labels,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertForSequenceClassification(BertConfig(**{**settings, **config}))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture
def model() -> BertForSequenceClassification:
    return build_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pretrained model without a head, and its tokenizer."""
    path = tmp_path_factory.mktemp("pretrained")
    build_model().bert.save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    return str(path)
