"""Duplicate questions: the probability that two questions ask the same thing.

    accelerate launch recipes/quora.py --demo
    accelerate launch recipes/quora.py --learning_rate 3e-5 --output_dir output/quora
    torchrun --nproc_per_node 2 recipes/quora.py --dataset questions.tsv --text_columns question1 question2 \
        --label_column is_duplicate

Labels are 0 and 1, so the loss is binary cross-entropy. The metrics are average precision, and accuracy
and F1 at their best thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from demo import RecipeArguments, parse_arguments, run
from demo_data import duplicate_questions

from cross_trainer import CrossEncoderTrainer, PairCollator
from cross_trainer.commands.arguments import finish, load_tokenizer
from cross_trainer.data.splits import load_splits

# Each of these, like every other field of TrainingArguments, is also a flag of the command line.
SETTINGS: dict[str, Any] = {
    "model": "distilroberta-base",
    "dataset": "sentence-transformers/quora-duplicates",  # or a folder, or a csv, tsv, jsonl or parquet file
    "dataset_config": "pair-class",
    "output_dir": "output/quora",
    "num_train_epochs": 4,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 64,
    "learning_rate": 2e-5,  # with a linear decay to 0
    "warmup_steps": 0.1,  # below 1: a share of all steps
    "weight_decay": 0.01,
    "logging_steps": 50,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "average_precision",
}
DEMO: dict[str, Any] = {"num_train_epochs": 1, "learning_rate": 5e-5, "logging_steps": 25}


@dataclass
class Arguments(RecipeArguments):
    """Options of this recipe."""

    swap: bool = field(default=True, metadata={"help": "Train on both orders of the questions."})


def main() -> None:
    """Train a detector of duplicate questions."""
    # 1. Read the settings from the command line: this recipe's own options, and transformers' TrainingArguments.
    options, args = parse_arguments(Arguments, SETTINGS, DEMO)

    # 2. Load the questions: two texts and a label in each row.
    # Without a validation split, a tenth of the rows is held out.
    splits = (
        duplicate_questions()
        if options.demo
        else load_splits(options.dataset, options.dataset_config, args.seed, options.columns())
    )

    # 3. Choose how rows become batches. Each pair of questions is read in a random order.
    tokenizer = load_tokenizer(options.model)
    collator = PairCollator(tokenizer, options.max_length, columns=options.columns(), swap=options.swap)

    # 4. Train. The number of labels, the loss and the metrics follow from the data.
    trainer = CrossEncoderTrainer(
        options.model,
        args,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=collator,
        **options.of_trainer(),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

    # 5. Evaluate the best checkpoint, save it, and show the saved model's scores of three pairs.
    finish(trainer, splits)


if __name__ == "__main__":
    run(main)
