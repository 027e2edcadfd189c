"""Semantic textual similarity: a score from 0 to 1 for how similar two sentences are in meaning.

    accelerate launch recipes/stsb.py --demo
    accelerate launch recipes/stsb.py --learning_rate 3e-5 --output_dir output/stsb
    torchrun --nproc_per_node 2 recipes/stsb.py --dataset folder/with/train.csv

Scores are trained as probabilities, with binary cross-entropy. The main metric is Spearman's rank correlation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from demo import RecipeArguments, parse_arguments, run
from demo_data import similarity_pairs

from cross_trainer import CrossEncoderTrainer, PairCollator
from cross_trainer.commands.arguments import finish, load_tokenizer
from cross_trainer.data.columns import resolve_columns
from cross_trainer.data.splits import load_splits
from cross_trainer.data.survey import survey

# Each of these, like every other field of TrainingArguments, is also a flag of the command line.
SETTINGS: dict[str, Any] = {
    "model": "distilroberta-base",
    "dataset": "sentence-transformers/stsb",  # or a folder, or a csv, tsv, jsonl or parquet file
    "output_dir": "output/stsb",
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
    "metric_for_best_model": "spearman",
}
DEMO: dict[str, Any] = {"num_train_epochs": 1, "learning_rate": 5e-5, "logging_steps": 25}


@dataclass
class Arguments(RecipeArguments):
    """Options of this recipe."""

    swap: bool = field(default=True, metadata={"help": "Train on both orders of the sentences."})
    max_score: float | None = field(
        default=None, metadata={"help": "Divide scores by this. Default: 5 if there is a score above 1, else 1."}
    )


def main() -> None:
    """Train a model of similarity."""
    # 1. Read the settings from the command line: this recipe's own options, and transformers' TrainingArguments.
    options, args = parse_arguments(Arguments, SETTINGS, DEMO)

    # 2. Load the sentences: two texts and a score in each row.
    # Without a validation split, a tenth of the rows is held out.
    splits = (
        similarity_pairs()
        if options.demo
        else load_splits(options.dataset, options.dataset_config, args.seed, options.columns())
    )

    # 3. Bring the scores to [0, 1]: binary cross-entropy takes them for probabilities.
    columns = resolve_columns(splits["train"], options.columns())
    highest = survey(splits["train"], columns).maximum
    max_score = options.max_score or (5.0 if highest > 1 else 1.0)
    if max_score != 1:
        splits = splits.map(lambda row: {columns.label: row[columns.label] / max_score}, desc="Scaling scores")
        if args.process_index == 0:
            print(f"Scores go up to {highest:g}: all are divided by {max_score:g}.")

    # 4. Choose how rows become batches. Each pair of sentences is read in a random order.
    tokenizer = load_tokenizer(options.model)
    collator = PairCollator(tokenizer, options.max_length, columns=options.columns(), swap=options.swap)

    # 5. Train. The number of labels, the loss and the metrics follow from the data.
    trainer = CrossEncoderTrainer(
        options.model,
        args,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=collator,
        **options.of_trainer(),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

    # 6. Evaluate the best checkpoint, save it, and show the saved model's scores of three pairs.
    finish(trainer, splits)


if __name__ == "__main__":
    run(main)
