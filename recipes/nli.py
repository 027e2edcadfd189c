"""Natural language inference: does the premise entail, contradict or leave open the hypothesis?

    accelerate launch recipes/nli.py --demo
    accelerate launch recipes/nli.py --learning_rate 3e-5 --output_dir output/nli
    torchrun --nproc_per_node 2 recipes/nli.py --dataset pairs.csv --text_columns premise hypothesis

Labels are classes, so the loss is cross-entropy, and the metrics are accuracy and F1. The names of the classes come
from the data and are saved with the model, so their order doesn't matter.
"""

from __future__ import annotations

from typing import Any

from demo import RecipeArguments, parse_arguments, run
from demo_data import entailment_pairs

from cross_trainer import CrossEncoderTrainer, PairCollator
from cross_trainer.commands.arguments import finish, load_tokenizer
from cross_trainer.data.splits import load_splits

# Each of these, like every other field of TrainingArguments, is also a flag of the command line.
SETTINGS: dict[str, Any] = {
    "model": "distilroberta-base",
    "dataset": "sentence-transformers/all-nli",  # or a folder, or a csv, tsv, jsonl or parquet file
    "dataset_config": "pair-class",
    "output_dir": "output/nli",
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
    "metric_for_best_model": "accuracy",
}
DEMO: dict[str, Any] = {"num_train_epochs": 1, "learning_rate": 5e-5, "logging_steps": 25}


def main() -> None:
    """Train a model of inference."""
    # 1. Read the settings from the command line: this recipe's own options, and transformers' TrainingArguments.
    options, args = parse_arguments(RecipeArguments, SETTINGS, DEMO)

    # 2. Load the sentences: a premise, a hypothesis and a class in each row.
    # Without a validation split, a tenth of the rows is held out.
    splits = (
        entailment_pairs()
        if options.demo
        else load_splits(options.dataset, options.dataset_config, args.seed, options.columns())
    )

    # 3. Choose how rows become batches. The premise stays first: a swapped pair would have another label.
    tokenizer = load_tokenizer(options.model)
    collator = PairCollator(tokenizer, options.max_length, columns=options.columns())

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
