"""Distillation: a large cross-encoder teaches a small one how to order documents.

    accelerate launch recipes/distill.py --demo
    accelerate launch recipes/distill.py --teacher folder/of/large --model folder/of/small --dataset
    folder/with/train.csv torchrun --nproc_per_node 2 recipes/distill.py --teacher large --model large --layers 2
    --dataset lists.jsonl

Rows are those of rerank.py. The teacher scores every document of every training query, and the student learns

    MarginMSELoss      how much the teacher prefers each relevant document to each irrelevant one
    KLDivergenceLoss   the teacher's distribution over all documents of a query; training needs no labels
    MSELoss            the teacher's score of each document by itself; training needs no labels

The teacher's scores are kept in `teacher_scores` in the output folder, so that a run that goes on after an
interruption, or another one with the same teacher and documents, doesn't compute them again. `--max_steps 0` evaluates
without training.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from demo import parse_arguments, run
from demo_search import search_queries
from rankings import RankingArguments, finish, lists_of, load_cross_encoder, load_ranker
from transformers import TrainingArguments

from cross_trainer import (
    CrossEncoder,
    CrossEncoderTrainer,
    KLDivergenceLoss,
    MarginMSELoss,
    MSELoss,
    PairCollator,
    ranking_metrics,
)
from cross_trainer.commands.arguments import load_tokenizer
from cross_trainer.commands.partial import PartialScores
from cross_trainer.commands.processes import is_main, on_main
from cross_trainer.commands.score import fingerprint
from cross_trainer.data.grouping import DOCUMENTS, LABELS
from cross_trainer.data.splits import load_splits
from cross_trainer.errors import ConfigurationError, DataError

# Each of these, like every other field of TrainingArguments, is also a flag of the command line.
SETTINGS: dict[str, Any] = {
    "model": "distilroberta-base",
    "output_dir": "output/distill",
    "num_train_epochs": 4,
    "per_device_train_batch_size": 4,  # queries, each with all its documents
    "per_device_eval_batch_size": 8,
    "learning_rate": 2e-5,  # with a linear decay to 0
    "warmup_steps": 0.1,  # below 1: a share of all steps
    "weight_decay": 0.01,
    "logging_steps": 50,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "ndcg@10",
}
# Two layers with a new head need larger steps than a whole pretrained model.
DEMO: dict[str, Any] = {"num_train_epochs": 2, "learning_rate": 5e-4, "logging_steps": 25}

WINDOW = 4096  # scores of the teacher that an interruption may cost


@dataclass
class Arguments(RankingArguments):
    """Options of this recipe."""

    teacher: str | None = field(default=None, metadata={"help": "Name or folder of the cross-encoder that teaches."})
    layers: int | None = field(
        default=None, metadata={"help": "How many of the student's first layers to keep. Default: all; 2 with --demo."}
    )
    loss: Literal["KLDivergenceLoss", "MarginMSELoss", "MSELoss"] = field(
        default="MarginMSELoss", metadata={"help": "What the student learns from the teacher's scores."}
    )
    temperature: float = field(
        default=1.0, metadata={"help": "For KLDivergenceLoss: divides both models' scores before the softmax."}
    )
    prior_bias: bool = field(default=False, metadata={"help": "Refused: the student's head starts with a bias of 0."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prior_bias:
            raise ConfigurationError("--prior_bias: the student is cut to its layers with a bias of 0. Leave it out.")
        if self.temperature != 1 and self.loss != "KLDivergenceLoss":
            raise ConfigurationError(
                "--temperature is an option of KLDivergenceLoss, and other losses have none. Give --loss "
                "KLDivergenceLoss."
            )


class Teacher:
    """A cross-encoder whose scores are kept in files.

    Args:
        encoder: The cross-encoder.
        name: Its name or folder, on whose files scores depend.
        folder: Where scores are kept, in a folder for each teacher and list of pairs.
    """

    def __init__(self, encoder: CrossEncoder, name: str, folder: Path) -> None:
        self.encoder, self.folder = encoder, folder
        self.settings = fingerprint(encoder, name, {})

    def score(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        """Logits [P]. Windows of them that aren't there are computed by all processes together."""
        settings = {"pairs": hashlib.sha256(repr(pairs).encode()).hexdigest(), **self.settings}
        key = hashlib.sha256(repr(settings).encode()).hexdigest()
        partial, windows = PartialScores(self.folder / key[:32]), -(-len(pairs) // WINDOW)

        # The main process decides, reads and writes: the folders of others may be on other machines.
        def begin() -> list[int]:
            partial.begin(settings)
            return partial.missing(windows)

        missing = on_main(begin)
        if is_main() and len(missing) < windows:
            done = windows - len(missing)
            print(f"The teacher's scores are in {partial.folder}: {done} of {windows} windows of {WINDOW} documents.")
        for index in missing:
            part = pairs[index * WINDOW : (index + 1) * WINDOW]
            scores = self.encoder.predict(part, activation="logits", distributed=True)
            if is_main():
                partial.save(index, scores)
        return on_main(lambda: np.concatenate(list(partial.scores(windows))))


def train_teacher(options: Arguments, args: TrainingArguments, rows: Dataset) -> str:
    """Train a teacher for the demo in one pass over the synthetic lists, and return its folder."""
    folder = str(Path(args.output_dir, "teacher"))
    if args.process_index == 0:
        print(
            f"Demo: no pretrained cross-encoder is at hand, so the teacher is {options.model}, trained first in one "
            "pass over the synthetic lists. The student is the same model, untrained, cut to its first "
            f"{options.layers} layers."
        )
    trainer = CrossEncoderTrainer(
        load_ranker(options.model, args.seed),
        TrainingArguments(
            folder,
            num_train_epochs=1,
            max_steps=args.max_steps,
            per_device_train_batch_size=4,
            learning_rate=1e-4,
            warmup_steps=0.1,
            save_strategy="no",
            report_to="none",
            seed=args.seed,
            use_cpu=args.use_cpu,
            disable_tqdm=args.disable_tqdm,
            dataloader_pin_memory=args.dataloader_pin_memory,
        ),
        train_dataset=rows,
        padding_free=options.padding_free,
        max_tokens=options.max_tokens,
    )
    if args.max_steps:
        trainer.train()
    trainer.save_model()
    trainer.accelerator.wait_for_everyone()
    return folder


def taught_rows(teacher: Teacher, lists: Dataset, loss: str) -> Dataset:
    """Lists with the teacher's scores as labels.

    MarginMSELoss compares the first document with the others, so it gets a list for each relevant document, with the
    irrelevant ones behind it.
    """
    query = lists.column_names[0]
    scores = iter(teacher.score([(row[query], document) for row in lists for document in row[DOCUMENTS]]).tolist())
    rows = []
    for row in lists:
        scored = [(document, next(scores)) for document in row[DOCUMENTS]]
        relevant = [each for each, label in zip(scored, row[LABELS], strict=True) if label > 0]
        others = [each for each, label in zip(scored, row[LABELS], strict=True) if label <= 0]
        taught = [[each, *others] for each in relevant] if loss == "MarginMSELoss" else [scored]
        fewest = 1 if loss == "MSELoss" else 2
        for documents, labels in (zip(*each, strict=True) for each in taught if len(each) >= fewest):
            rows.append({query: row[query], DOCUMENTS: documents, LABELS: labels})
    if not rows:
        needed = "two documents" if loss == "KLDivergenceLoss" else "a relevant document and an irrelevant one"
        raise DataError(
            f"No query of the training data has {needed}, which {loss} compares. Give each query its candidates, as "
            "rows (query, documents, labels) or (query, positive, negative, ...)."
        )
    return Dataset.from_list(rows)


def choose_loss(options: Arguments) -> KLDivergenceLoss | MarginMSELoss | MSELoss:
    """What the student minimises; its logits are compared with the teacher's as they are."""
    if options.loss == "KLDivergenceLoss":
        return KLDivergenceLoss(options.temperature)
    return MSELoss(activation="identity") if options.loss == "MSELoss" else MarginMSELoss()


def main() -> None:
    """Train a student."""
    # 1. Read the settings from the command line: this recipe's own options, and transformers' TrainingArguments.
    options, args = parse_arguments(Arguments, SETTINGS, DEMO)

    # 2. Load the data, as lists of documents.
    splits = (
        search_queries()
        if options.demo
        else load_splits(options.dataset, options.dataset_config, args.seed, options.columns())
    )
    train, held_out = lists_of(splits, options, args.seed)

    # 3. Load the teacher; the demo trains one first.
    if options.demo and options.teacher is None:
        options.layers = 2 if options.layers is None else options.layers
        options.teacher = train_teacher(options, args, splits["train"])
    if options.teacher is None:
        raise ConfigurationError("No teacher: give --teacher the name or the folder of a cross-encoder, or use --demo.")
    encoder = load_cross_encoder(options.teacher, "--teacher", args.device)
    teacher = Teacher(encoder, options.teacher, Path(args.output_dir, "teacher_scores"))

    # 4. Put the student's trainer together. Its labels are the teacher's scores.
    trainer = CrossEncoderTrainer(
        load_ranker(options.model, args.seed, options.layers),
        args,
        train_dataset=taught_rows(teacher, train, options.loss),
        eval_dataset=held_out["validation"].lists,
        data_collator=PairCollator(load_tokenizer(options.model), options.max_length),
        compute_loss_func=choose_loss(options),
        compute_metrics=ranking_metrics(),
        **options.of_trainer(),
    )

    # 5. Rank by the teacher and by the untrained student, train, and rank again.
    for queries in held_out.values():
        queries.add("teacher", teacher.score(queries.pairs))
        queries.add("student before", trainer.predict(queries.lists).predictions)
    if args.max_steps:
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    for queries in held_out.values():
        queries.add("student after", trainer.predict(queries.lists).predictions)

    # 6. Save the best checkpoint, compare it with the teacher, and show a ranking by the saved model.
    finish(trainer, held_out, "student after", ("student before", "teacher"))


if __name__ == "__main__":
    run(main)
