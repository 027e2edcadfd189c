"""Duplicate questions: the probability that two questions ask the same.

    accelerate launch recipes/quora.py --demo
    accelerate launch recipes/quora.py --model distilroberta-base --output_dir output/quora
    torchrun --nproc_per_node 2 recipes/quora.py --dataset questions.tsv --text_columns question1 question2 \
        --label_column is_duplicate --output_dir output/quora

Trained with binary cross-entropy in either order of the questions, evaluated by average precision, and by accuracy and F1 at their
best thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from demo_data import duplicate_questions

from cross_trainer import CrossEncoderTrainer, PairCollator
from cross_trainer.commands.arguments import RecipeArguments, finish, load_data, load_tokenizer, parse_arguments, run


@dataclass
class Arguments(RecipeArguments):
    """Duplicate detection's own arguments."""

    dataset: str = field(
        default="sentence-transformers/quora-duplicates",
        metadata={"help": "Hub id, folder or file (csv, tsv, jsonl, parquet) with train, validation and test."},
    )
    dataset_config: str | None = field(default="pair-class", metadata={"help": "Configuration of a Hub data set."})
    swap: bool = field(default=True, metadata={"help": "Train on the questions in either order."})


def main() -> None:
    """Train, evaluate, save, reload and score."""
    arguments, training_arguments = parse_arguments(
        Arguments, {"output_dir": "output/quora", "metric_for_best_model": "average_precision"}
    )
    tokenizer = load_tokenizer(arguments.model)
    splits = load_data(arguments, duplicate_questions, training_arguments.seed)
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
