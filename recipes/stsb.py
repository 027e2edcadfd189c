"""Semantic textual similarity: a score from 0 to 1 for how much two sentences mean the same.

    python recipes/stsb.py --demo
    python recipes/stsb.py --model distilroberta-base --dataset sentence-transformers/stsb --output_dir output/stsb
    torchrun --nproc_per_node 2 recipes/stsb.py --dataset folder/with/train.csv --output_dir output/stsb

Scores are trained as probabilities, with binary cross-entropy, in either order of the sentences, and evaluated by Spearman's rank
correlation.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from datasets import Dataset
from demo_data import similarity_pairs

from cross_trainer import CrossEncoderTrainer, PairCollator
from cross_trainer.commands.arguments import RecipeArguments, finish, load_data, load_tokenizer, parse_arguments, run
from cross_trainer.data.columns import resolve_columns
from cross_trainer.data.survey import survey


@dataclass
class Arguments(RecipeArguments):
    """Similarity's own arguments."""

    dataset: str = field(
        default="sentence-transformers/stsb",
        metadata={"help": "Hub id, folder or file (csv, tsv, jsonl, parquet) with train, validation and test."},
    )
    max_score: float | None = field(
        default=None,
        metadata={"help": "The highest score, by which all are divided. Default: 5 where a score is above 1."},
    )
    swap: bool = field(default=True, metadata={"help": "Train on the sentences in either order."})


def scale(rows: Dataset, label: str, max_score: float) -> Dataset:
    """Bring the scores of a data set to [0, 1]."""
    return rows.map(lambda row: {label: row[label] / max_score}, desc="Scaling scores")


def main() -> None:
    """Train, evaluate, save, reload and score."""
    arguments, training_arguments = parse_arguments(
        Arguments, {"output_dir": "output/stsb", "metric_for_best_model": "spearman"}
    )
    tokenizer = load_tokenizer(arguments.model)
    splits = load_data(arguments, similarity_pairs, training_arguments.seed)
    columns = resolve_columns(splits["train"], arguments.columns())
    highest = survey(splits["train"], columns).maximum
    max_score = arguments.max_score or (5.0 if highest > 1 else 1.0)
    if max_score != 1:
        if training_arguments.process_index == 0:
            print(f"Scores go up to {highest:g}: all are divided by {max_score:g}.")
        for name in splits:
            splits[name] = scale(splits[name], columns.label, max_score)
    trainer = CrossEncoderTrainer(
        arguments.model,
        training_arguments,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=PairCollator(tokenizer, arguments.max_length, columns=arguments.columns(), swap=arguments.swap),
        padding_free=arguments.padding_free,
        max_tokens=arguments.max_tokens,
    )
    trainer.train(resume_from_checkpoint=training_arguments.resume_from_checkpoint)
    finish(trainer, splits)


if __name__ == "__main__":
    run(main)
