"""Distillation: a large cross-encoder teaches a small one how to order documents.

    python recipes/distill.py --demo
    python recipes/distill.py --teacher folder/of/large --model folder/of/small --dataset folder/with/train.csv --output_dir output/small
    torchrun --nproc_per_node 2 recipes/distill.py --teacher large --model large --layers 2 --dataset lists.jsonl

Rows are those of rerank.py. The teacher scores every document of every training query, and the student learns

    MarginMSELoss      by how much the teacher prefers each relevant document to each irrelevant one
    KLDivergenceLoss   how it shares out a query's documents, all of a list at once; needs no label in training

The teacher's scores stay in `teacher_scores` in the output folder, so that a run that was interrupted, or another one with the same teacher
and documents, doesn't compute them again. `--max_steps 0` evaluates without training.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, DatasetDict
from demo_search import search_queries
from rankings import (
    BATCH_OF_LISTS,
    RANKING_DEFAULTS,
    HeldOut,
    RankingArguments,
    as_lists,
    cap_documents,
    load_cross_encoder,
    load_ranker,
    set_batch_size,
    show_ranking,
)
from transformers import TrainingArguments

from cross_trainer import (
    CrossEncoder,
    CrossEncoderTrainer,
    KLDivergenceLoss,
    MarginMSELoss,
    PairCollator,
    ranking_metrics,
)
from cross_trainer.commands.arguments import load_data, load_tokenizer, parse_arguments, run, save_and_report
from cross_trainer.errors import ConfigurationError, DataError

PAIRS_A_FILE = 50_000  # of teacher scores: what an interruption may cost
# Two layers, with a head that knows nothing, need larger steps than a whole pretrained model.
DEMO = {"num_train_epochs": 2, "learning_rate": 5e-4}


@dataclass
class Arguments(RankingArguments):
    """Distillation's own arguments."""

    teacher: str | None = field(default=None, metadata={"help": "Name or folder of the cross-encoder that teaches."})
    layers: int | None = field(
        default=None, metadata={"help": "Keep so many of the student's first layers. Default: all; 2 with --demo."}
    )
    loss: Literal["KLDivergenceLoss", "MarginMSELoss"] = field(
        default="MarginMSELoss", metadata={"help": "What the student learns of the teacher's scores."}
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Of KLDivergenceLoss: divides the scores of both before the softmax."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature != 1 and self.loss != "KLDivergenceLoss":
            raise ConfigurationError(
                "--temperature is KLDivergenceLoss's: margins have none. Give --loss KLDivergenceLoss."
            )


class Teacher:
    """A cross-encoder whose scores are kept in files.

    Args:
        encoder: The cross-encoder.
        folder: Where scores are kept, in a file for so many pairs, named for the teacher's weights and for the pairs.
    """

    def __init__(self, encoder: CrossEncoder, folder: Path) -> None:
        self.encoder, self.folder = encoder, folder
        weights = hashlib.sha256(f"{encoder.max_length} {encoder.config.model_type}".encode())
        for name, tensor in encoder.model.state_dict().items():
            weights.update(name.encode())
            weights.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        self.name = weights.hexdigest()

    def score(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        """Logits [P], computed by all processes together where no file has them."""
        parts = [self._read(pairs[start : start + PAIRS_A_FILE]) for start in range(0, len(pairs), PAIRS_A_FILE)]
        return np.concatenate(parts)

    def _read(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        key = hashlib.sha256(f"{self.name} {pairs!r}".encode()).hexdigest()
        path, main = self.folder / f"{key[:32]}.npy", PartialState().is_main_process
        # The main process decides for all, whose folder may be on another machine.
        scores: list[Any] = [np.load(path) if main and path.exists() else None]
        broadcast_object_list(scores)
        if scores[0] is None:
            scores = [self.encoder.predict(pairs, activation="logits", distributed=True)]
            if main:
                self.folder.mkdir(parents=True, exist_ok=True)
                unfinished = path.with_suffix(".unfinished.npy")
                np.save(unfinished, scores[0])
                unfinished.replace(path)
        elif main:
            print(f"The teacher's scores of {len(pairs)} documents are in {path}.")
        return scores[0]


def train_teacher(arguments: Arguments, training_arguments: TrainingArguments, splits: DatasetDict) -> str:
    """Train a teacher for the demo, in one pass over the synthetic lists."""
    folder = str(Path(training_arguments.output_dir, "teacher"))
    if training_arguments.process_index == 0:
        print(
            f"Demo: no pretrained cross-encoder is at hand, so the teacher is {arguments.model}, trained first in one pass over the "
            f"synthetic lists. The student is the same model, untrained, cut to its first {arguments.layers} layers."
        )
    trainer = CrossEncoderTrainer(
        load_ranker(arguments.model, training_arguments.seed),
        TrainingArguments(
            folder,
            num_train_epochs=1,
            max_steps=training_arguments.max_steps,
            per_device_train_batch_size=BATCH_OF_LISTS,
            learning_rate=1e-4,
            warmup_steps=0.1,
            save_strategy="no",
            report_to="none",
            seed=training_arguments.seed,
            use_cpu=training_arguments.use_cpu,
            disable_tqdm=training_arguments.disable_tqdm,
            dataloader_pin_memory=training_arguments.dataloader_pin_memory,
        ),
        train_dataset=splits["train"],
        padding_free=arguments.padding_free,
        max_tokens=arguments.max_tokens,
    )
    if training_arguments.max_steps:
        trainer.train()
    trainer.save_model()
    trainer.accelerator.wait_for_everyone()
    return folder


def taught_rows(teacher: Teacher, lists: Dataset, loss: str) -> Dataset:
    """Lists whose labels are the teacher's scores; for MarginMSELoss one for each relevant document, which it wants first."""
    query = lists.column_names[0]
    scores = iter(teacher.score([(row[query], document) for row in lists for document in row["documents"]]).tolist())
    rows = []
    for row in lists:
        scored = [
            (document, next(scores), label > 0) for document, label in zip(row["documents"], row["labels"], strict=True)
        ]
        others = [each for each in scored if not each[2]]
        taught = [scored] if loss == "KLDivergenceLoss" else [[each, *others] for each in scored if each[2]]
        rows += [
            {query: row[query], "documents": [each[0] for each in some], "labels": [each[1] for each in some]}
            for some in taught
            if len(some) > 1
        ]
    if not rows:
        needed = "two documents" if loss == "KLDivergenceLoss" else "a relevant document and an irrelevant one"
        raise DataError(
            f"No query of the training data has {needed}, which {loss} compares. Give each query its candidates, as rows "
            "(query, documents, labels) or (query, positive, negative, ...)."
        )
    return Dataset.from_list(rows)


def main() -> None:
    """Score by the teacher, train the student, evaluate both, save, reload and rank."""
    arguments, training_arguments = parse_arguments(
        Arguments, {**RANKING_DEFAULTS, "output_dir": "output/distill"}, demo_defaults=DEMO
    )
    tokenizer = load_tokenizer(arguments.model)
    splits = load_data(arguments, search_queries, training_arguments.seed)
    set_batch_size(training_arguments, lists=True)
    folder = arguments.teacher
    if arguments.demo and folder is None:
        arguments.layers = 2 if arguments.layers is None else arguments.layers
        folder = train_teacher(arguments, training_arguments, splits)
    if folder is None:
        raise ConfigurationError("No teacher: give --teacher the name or the folder of a cross-encoder, or use --demo.")
    teacher = Teacher(
        load_cross_encoder(folder, "--teacher", training_arguments.device),
        Path(training_arguments.output_dir, "teacher_scores"),
    )
    lists = {
        split: as_lists(rows, arguments.columns_in(rows, training=split == "train")) for split, rows in splits.items()
    }
    held_out = {
        split: HeldOut.of(split, lists[split], all_queries=arguments.all_queries)
        for split in ("validation", "test")
        if split in lists
    }
    train = lists["train"]
    if arguments.documents_per_query is not None:
        train = cap_documents(train, arguments.documents_per_query, training_arguments.seed)
    kl = arguments.loss == "KLDivergenceLoss"
    trainer = CrossEncoderTrainer(
        load_ranker(arguments.model, training_arguments.seed, arguments.layers),
        training_arguments,
        train_dataset=taught_rows(teacher, train, arguments.loss),
        eval_dataset=held_out["validation"].lists,
        data_collator=PairCollator(tokenizer, arguments.max_length),
        compute_loss_func=KLDivergenceLoss(arguments.temperature) if kl else MarginMSELoss(),
        compute_metrics=ranking_metrics(),
        padding_free=arguments.padding_free,
        max_tokens=arguments.max_tokens,
    )
    for queries in held_out.values():
        queries.add("teacher", teacher.score(queries.pairs))
        queries.add("student before", trainer.predict(queries.lists).predictions)
    if training_arguments.max_steps:
        trainer.train(resume_from_checkpoint=training_arguments.resume_from_checkpoint)
    for queries in held_out.values():
        queries.add("student after", trainer.predict(queries.lists).predictions)

    def report() -> None:
        for split, queries in held_out.items():
            print(queries.table([("student after", name) for name in ("student before", "teacher")]))
            queries.write_trec(
                "student after", training_arguments.output_dir, "" if split == "validation" else f"{split}."
            )
        query, documents, _ = held_out["validation"].lists[0].values()
        print(show_ranking(training_arguments.output_dir, query, documents))

    save_and_report(trainer, report)


if __name__ == "__main__":
    run(main)
