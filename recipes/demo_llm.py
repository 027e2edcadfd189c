"""A small Qwen3 for `llm_reranker.py --demo`: random weights, and a tokenizer made of the texts that it shall read.

folder = build_language_model("output/base", texts)      # a causal model that answers "yes" or "no", in files
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, set_seed

TEMPLATE = "Query: {query}\nDocument: {document}\nRelevant:"
ANSWERS = ("yes", "no")
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "max_position_embeddings": 1024,
}


def build_tokenizer(texts: Iterable[str], size: int = 2000) -> PreTrainedTokenizerBase:
    """A byte-level tokenizer of up to that many tokens, with the special tokens of Qwen and the answers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special, letters = ["<|endoftext|>", "<|im_end|>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator([TEMPLATE, *texts], trainer)
    tokenizer.add_tokens(list(ANSWERS))
    options = {"pad_token": special[0], "eos_token": special[1], "model_max_length": SIZES["max_position_embeddings"]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def build_language_model(
    folder: str | Path, tokenizer: PreTrainedTokenizerBase, embeddings: Any = None, seed: int = 0, **sizes: Any
) -> str:
    """Save a random Qwen3 and its tokenizer, and return the folder.

    Args:
        folder: Made if it isn't there.
        tokenizer: Its tokenizer.
        embeddings: A tensor [V, H] for its tokens, V of them. Default: random.
        seed: For the weights.
        sizes: Of `Qwen3Config`, instead of `SIZES`.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    set_seed(seed)
    special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    config = Qwen3Config(**{**SIZES, **sizes}, **special, vocab_size=len(tokenizer), tie_word_embeddings=True)
    model = Qwen3ForCausalLM(config)
    if embeddings is not None:
        model.get_input_embeddings().weight.data.copy_(embeddings)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
