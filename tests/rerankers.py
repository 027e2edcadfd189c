"""Tiny causal language models that answer yes or no, and a tokenizer for them, built in memory."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from cross_trainer.data.templates import PUBLISHED

LONG = "paris is a large city in france, and the capital of it. " * 40


@functools.cache
def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the special tokens of Qwen, in which the answers are single tokens."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<bos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    texts = ["yes no Yes No", LONG, *("".join(template.parts) for template in PUBLISHED.values())]
    tokenizer.train_from_iterator([text for text in texts for _ in range(4)] + ["yes", "no", "Yes", "No"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>")


def build(family: str = "qwen3", tied: bool = True, dtype: torch.dtype = torch.float32, **options: object):
    settings = {
        "vocab_size": 640,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 3,
        "eos_token_id": 2,
        "initializer_range": 0.3,
        "tie_word_embeddings": tied,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**settings | options)).to(dtype).eval()


def save(folder: Path, model, chat_template: str | None = None) -> str:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = chat_template
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
