"""Natural language inference: does the premise entail, contradict or leave open the hypothesis?

    python recipes/nli.py --demo
    python recipes/nli.py --model distilroberta-base --output_dir output/nli
    python recipes/nli.py --dataset folder/with/train.csv --text_columns premise hypothesis --label_column label

Trained with cross-entropy over the classes that the data names, evaluated by accuracy and macro F1. Class names go into the saved
model, so nobody has to know their order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from demo_data import entailment_pairs

from cross_trainer import CrossEncoderTrainer, PairCollator
from cross_trainer.commands.arguments import RecipeArguments, finish, load_data, load_tokenizer, parse_arguments, run


@dataclass
class Arguments(RecipeArguments):
    """Inference's own arguments."""

    dataset: str = field(
        default="sentence-transformers/all-nli",
        metadata={"help": "Hub id, folder or file (csv, tsv, jsonl, parquet) with train, validation and test."},
    )
    dataset_config: str | None = field(default="pair-class", metadata={"help": "Configuration of a Hub data set."})


def main() -> None:
    """Train, evaluate, save, reload and score."""
    arguments, training_arguments = parse_arguments(
        Arguments, {"output_dir": "output/nli", "metric_for_best_model": "accuracy"}
    )
    tokenizer = load_tokenizer(arguments.model)
    splits = load_data(arguments, entailment_pairs, training_arguments.seed)
    trainer = CrossEncoderTrainer(
        arguments.model,
        training_arguments,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=PairCollator(tokenizer, arguments.max_length, columns=arguments.columns()),
        padding_free=arguments.padding_free,
        max_tokens=arguments.max_tokens,
    )
    trainer.train(resume_from_checkpoint=training_arguments.resume_from_checkpoint)
    finish(trainer, splits)


if __name__ == "__main__":
    run(main)
