"""A start for a cross-encoder: it learns the similarity of a bi-encoder's vectors, before it learns from labels.

    accelerate launch recipes/from_bi_encoder.py --demo
    accelerate launch recipes/from_bi_encoder.py --model sentence-transformers/all-MiniLM-L6-v2
    --dataset folder/with/train.csv --output_dir output/start
    accelerate launch recipes/rerank.py --model output/start --dataset folder/with/train.csv

Vectors of a checkpoint that was trained as a bi-encoder say which texts are similar, and the new head of a
cross-encoder asks for none of that. Each pair of the data is trained on with the cosine of its vectors, and so are
pairs of its first text with texts near to it. No labels are read. The teacher is the model itself, unless another one
is given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from demo import RecipeArguments, parse_arguments, run
from demo_data import similarity_pairs

from cross_trainer import CrossEncoderTrainer, PairCollator
from cross_trainer.commands.arguments import finish, load_tokenizer
from cross_trainer.commands.processes import on_main
from cross_trainer.data.collator import flat_pairs, read_texts
from cross_trainer.data.columns import as_mapping, resolve_columns
from cross_trainer.data.similarity import bi_encoder_pairs
from cross_trainer.data.splits import load_splits

# Each of these, like every other field of TrainingArguments, is also a flag of the command line.
SETTINGS: dict[str, Any] = {
    "model": "sentence-transformers/all-MiniLM-L6-v2",
    "dataset": "sentence-transformers/stsb",  # or a folder, or a csv, tsv, jsonl or parquet file
    "output_dir": "output/from_bi_encoder",
    "num_train_epochs": 1,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 64,
    "learning_rate": 5e-5,  # with a linear decay to 0
    "warmup_steps": 0.1,  # below 1: a share of all steps
    "weight_decay": 0.01,
    "logging_steps": 50,
}
DEMO: dict[str, Any] = {"logging_steps": 25}


@dataclass
class Arguments(RecipeArguments):
    """Options of this recipe."""

    teacher: str | None = field(
        default=None, metadata={"help": "The bi-encoder, a SentenceTransformer's name. Default: the model itself."}
    )
    others: int = field(
        default=1, metadata={"help": "For each pair, how many more of its first text, with texts near to it."}
    )


def main() -> None:
    """Train a model of a bi-encoder's similarity."""
    # 1. Read the settings from the command line: this recipe's own options, and transformers' TrainingArguments.
    options, args = parse_arguments(Arguments, SETTINGS, DEMO)

    # 2. Load the texts: pairs, tuples or lists. Without a validation split, a tenth of the rows is held out.
    splits = (
        similarity_pairs()
        if options.demo
        else load_splits(options.dataset, options.dataset_config, args.seed, options.columns())
    )

    # 3. Let the bi-encoder label them, on one process for all.
    def labelled(rows: Dataset, others: int) -> Dataset:
        columns, places = resolve_columns(rows, options.columns()), [f", row {row}" for row in range(len(rows))]
        texts = read_texts([as_mapping(row) for row in rows], columns, places)
        return bi_encoder_pairs(flat_pairs(texts), options.teacher or options.model, others=others, seed=args.seed)

    made = on_main(lambda: {name: labelled(splits[name], options.others * (name == "train")) for name in splits})

    # 4. Train. Cosines are learnt as probabilities, by binary cross-entropy.
    trainer = CrossEncoderTrainer(
        options.model,
        args,
        train_dataset=made["train"],
        eval_dataset=made["validation"],
        data_collator=PairCollator(load_tokenizer(options.model), options.max_length),
        **options.of_trainer(),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

    # 5. Evaluate against the bi-encoder, save, and show the saved model's scores of three pairs.
    finish(trainer, made)


if __name__ == "__main__":
    run(main)
