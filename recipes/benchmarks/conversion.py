"""How exactly a language model that answers yes or no becomes a classifier, for small random models of each family.

    python recipes/benchmarks/conversion.py

Prints a table of the largest difference of the logits of 64 pairs, some of them cut, between the classifier and

- the causal model itself, one pair at a time, and in batches padded on either side;
- sentence-transformers on the causal folder, through its LogitScore;
- sentence-transformers on the folder that the classifier was saved to;
- the causal model that the classifier was turned back into.

All compute in float32; weights that are bfloat16 in the folder are loaded so.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import CrossEncoder as TheirEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from cross_trainer import CrossEncoder, Template
from cross_trainer.saved.chat import write_chat_template

FAMILIES = ("qwen2", "qwen3", "llama", "mistral", "gemma")
ANSWERS = (("yes", "no"), ("yes",))
TEMPLATE = Template.of("[start]Judge {instruction}: query {query} document {document}[end]")
WORDS = [f"word{at}" for at in range(64)]
PAIRS = [(f"word{at}?", " ".join(WORDS[at * word % 64] for word in range(1 + at * at % 50))) for at in range(64)]
MAX_LENGTH = 80


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A small byte-level tokenizer in which the answers are single tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special, letters = ["[pad]", "[start]", "[end]"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS), *["yes", "no"] * 99], trainer)
    options = {"pad_token": "[pad]", "eos_token": "[end]", "model_max_length": MAX_LENGTH}
    built = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)
    built.chat_template = write_chat_template(Template(TEMPLATE.parts, "be kind").to_dict())
    return built


def save(folder: Path, family: str, tied: bool, dtype: torch.dtype, answers: tuple[str, ...]) -> str:
    """A causal folder as sentence-transformers writes it."""
    sizes = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.1}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": tied}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**sizes, **heads, **special))
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(weight.to(dtype)))
    model.config.dtype = dtype
    tokenizer = build_tokenizer()
    model.save_pretrained(folder / "plain")
    tokenizer.save_pretrained(folder / "plain")
    transformer = Transformer(str(folder / "plain"), transformer_task="text-generation", model_kwargs={"dtype": dtype})
    modules = [transformer, LogitScore(*tokenizer.convert_tokens_to_ids(list(answers)))]
    TheirEncoder(modules=modules, device="cpu").save_pretrained(str(folder / "causal"))
    return str(folder / "causal")


@torch.no_grad()
def by_hand(folder: str, encoder: CrossEncoder, side: str | None) -> np.ndarray:
    """The causal model's own differences [P]: pair by pair, or in batches of 7 with padding on a side."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, answers = encoder.tokenizer, encoder.config.cross_trainer["answers"]
    texts = ["".join(encoder.template.fill(*pair)) for pair in PAIRS]
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    rows = [
        row if len(row) <= MAX_LENGTH else [*row[: MAX_LENGTH - 1], row[-1]] for row in rows
    ]  # one token is the end
    found = []
    for start in range(0, len(PAIRS), 7 if side else 1):
        ids = rows[start : start + (7 if side else 1)]
        batch = tokenizer.pad({"input_ids": ids}, padding_side=side or "right", return_tensors="pt")
        last = [-1] * len(ids) if side == "left" else [len(row) - 1 for row in ids]
        logits = model(**batch).logits[torch.arange(len(ids)), last]
        found.append(logits[:, answers[0]] - (logits[:, answers[1]] if len(answers) == 2 else 0))
    return torch.cat(found).numpy()


def theirs(folder: str) -> np.ndarray:
    """The logits of sentence-transformers."""
    encoder = TheirEncoder(folder, device="cpu", model_kwargs={"dtype": torch.float32})
    return encoder.predict(PAIRS, activation_fn=torch.nn.Identity(), show_progress_bar=False)


def measure(folder: Path, family: str, tied: bool, dtype: torch.dtype, answers: tuple[str, ...]) -> list[float]:
    """The differences of a line of the table."""
    causal = save(folder, family, tied, dtype, answers)
    encoder = CrossEncoder(causal, dtype="float32")
    scores = encoder.predict(PAIRS, activation="logits", show_progress_bar=False)
    encoder.save_pretrained(folder / "saved")
    encoder.save_pretrained(folder / "back", to_causal=True)
    others = [by_hand(causal, encoder, side) for side in (None, "right", "left")]
    others += [theirs(causal), theirs(str(folder / "saved")), by_hand(str(folder / "back"), encoder, None)]
    differences = [float(np.abs(scores - other).max()) for other in others]
    return [max(differences[:3]), *differences[3:]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    options = parser.parse_args()
    print("| family | embeddings | weights | answers | causal model | LogitScore | saved, in ST | causal again |")
    print("|---|---|---|---|---|---|---|---|")
    kinds = (torch.float32, torch.bfloat16)
    for family, tied, dtype, answers in itertools.product(options.families, (True, False), kinds, ANSWERS):
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder), family, tied, dtype, answers)
        words = (family, "tied" if tied else "not tied", str(dtype).removeprefix("torch."), "/".join(answers))
        print("| " + " | ".join([*words, *(f"{value:.1e}" for value in found)]) + " |", flush=True)


if __name__ == "__main__":
    main()
