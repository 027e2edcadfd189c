"""Re-ranking: bring the documents that a first stage found for a query into a better order.

    python recipes/rerank.py --demo
    python recipes/rerank.py --dataset folder/with/train.csv --loss LambdaLoss --output_dir output/rerank
    torchrun --nproc_per_node 2 recipes/rerank.py --dataset pairs.jsonl --mine 4 --output_dir output/rerank

Rows may be

    (query, documents, labels)                       lists of documents, with a grade for each
    (query, document, label)                         brought together by query, or kept as pairs for pointwise losses
    (query, positive, negative, negative_2, ...)     as they are
    (query, positive)                                with --in_batch_negatives, with --mine, or with both

It is evaluated by the order of each query's documents, beside the order of a first stage. Batches are counted in queries: 4 by default
where rows are lists, and 16 rows otherwise. `--max_steps 0` evaluates without training; `--mine 4 --mine_from random` is what mining is to
be compared with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from datasets import Dataset
from demo_search import search_queries
from rankings import (
    RANKING_DEFAULTS,
    HeldOut,
    RankingArguments,
    as_lists,
    cap_documents,
    load_cross_encoder,
    load_ranker,
    mine,
    read_corpus,
    set_batch_size,
    show_ranking,
)
from transformers import TrainingArguments

from cross_trainer import CrossEncoderTrainer, PairCollator, losses, ranking_metrics
from cross_trainer.commands.arguments import load_data, load_tokenizer, parse_arguments, run, save_and_report
from cross_trainer.data.columns import resolve_columns
from cross_trainer.data.survey import survey
from cross_trainer.errors import ConfigurationError

LOSSES = [name for name in vars(losses) if name.endswith("Loss") and name != "CrossEntropyLoss"]  # which is for classes
POINTWISE = ("BinaryCrossEntropyLoss", "MSELoss")


@dataclass
class Arguments(RankingArguments):
    """Re-ranking's own arguments."""

    loss: str | None = field(
        default=None,
        metadata={
            "choices": LOSSES,
            "help": "Default: by the labels, LambdaLoss for grades and InfoNCELoss where there are none.",
        },
    )
    in_batch_negatives: int = field(
        default=0, metadata={"help": "Documents of other rows of the batch that a query gets as negatives."}
    )
    mine: int = field(
        default=0, metadata={"help": "Train on so many mined negatives a query, in the place of those it has."}
    )
    mine_from: Literal["bm25", "random"] = field(
        default="bm25", metadata={"help": "Where mined negatives come from: BM25's best documents, or any."}
    )
    mine_scorer: str | None = field(
        default=None, metadata={"help": "A cross-encoder that scores what was found, to take the best-scored."}
    )
    mine_margin: float | None = field(
        default=None, metadata={"help": "Drop what it gives more than the positive's score minus this."}
    )
    corpus: str | None = field(
        default=None, metadata={"help": "File of documents to mine from. Default: the training data's."}
    )
    first_stage: Literal["bm25", "order"] | None = field(
        default=None,
        metadata={"help": "BM25 over the evaluated documents, or the order of the rows. Default: bm25, if installed."},
    )
    candidates: int = field(
        default=20, metadata={"help": "Rank so many of BM25's documents where held-out rows have a positive only."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mine and (self.mine_scorer, self.mine_margin, self.corpus) != (None, None, None):
            raise ConfigurationError(
                "--mine_scorer, --mine_margin and --corpus say how to mine, and nothing is mined: give --mine 4."
            )


def training_rows(arguments: Arguments, rows: Dataset, training_arguments: TrainingArguments) -> Dataset:
    """The rows to train on, in the shape that arguments and labels ask for."""
    columns = arguments.columns_in(rows, training=True)
    labelled = columns.label is not None
    if not labelled and columns.shape != "tuple" and not arguments.mine + arguments.in_batch_negatives:
        raise ConfigurationError(
            "The training data has no label. Name its column with --text_columns and --label_column; for rows "
            "(query, positive) give --in_batch_negatives 8 or --mine 4."
        )
    as_it_is = rows.select_columns(columns.names)
    if columns.label not in {None, "label"}:
        as_it_is = as_it_is.rename_column(columns.label, "label")
    paired, pointwise = columns.shape == "pair", arguments.loss in POINTWISE
    keep = (columns.shape == "tuple" and not pointwise) or (paired and pointwise)
    if not arguments.mine and ((paired and not labelled) or (keep and arguments.documents_per_query is None)):
        return as_it_is
    lists = as_lists(rows, columns)
    if arguments.mine:
        lists = mined(arguments, lists, training_arguments)
        if "labels" not in lists.column_names:
            return lists
    if not pointwise and all(len(set(labels)) < 2 for labels in lists["labels"]):
        if paired and arguments.loss is None:
            return as_it_is
        raise ConfigurationError(
            "No query of the training data has two documents with different labels, so there is no order to learn. "
            "Give --loss BinaryCrossEntropyLoss, or --mine 4."
        )
    if arguments.loss == "MarginMSELoss":
        raise ConfigurationError(
            "MarginMSELoss compares a positive with its negatives, and these are lists. Give rows (query, positive, "
            "negative, ...), or let a teacher score the lists: recipes/distill.py."
        )
    if arguments.documents_per_query is not None:
        lists = cap_documents(lists, arguments.documents_per_query, training_arguments.seed)
    return lists


def mined(arguments: Arguments, lists: Dataset, training_arguments: TrainingArguments) -> Dataset:
    """Lists, or tuples for in-batch negatives, with mined negatives."""
    scorer: Callable[..., Any] | None = None
    if arguments.mine_scorer is not None:
        encoder = load_cross_encoder(arguments.mine_scorer, "--mine_scorer", training_arguments.device)
        scorer = functools.partial(encoder.predict, distributed=True, show_progress_bar=False)
    return mine(
        lists,
        arguments.mine,
        corpus=None if arguments.corpus is None else read_corpus(arguments.corpus),
        retriever=arguments.mine_from,
        scorer=scorer,
        margin=arguments.mine_margin,
        as_tuples=arguments.in_batch_negatives > 0,
        seed=training_arguments.seed,
    )


def held_out_lists(arguments: Arguments, split: str, rows: Dataset, seed: int) -> HeldOut:
    """A split's queries with their candidates."""
    columns = arguments.columns_in(rows)
    lists = as_lists(rows, columns)
    if columns.shape == "pair" and columns.label is None:
        lists = mine(lists, arguments.candidates, seed=seed)
    return HeldOut.of(split, lists, all_queries=arguments.all_queries)


def scaled(rows: Dataset, highest: float) -> Dataset:
    """Rows with labels in [0, 1]."""
    if "labels" in rows.column_names:
        return rows.map(lambda row: {"labels": [label / highest for label in row["labels"]]}, desc="Scaling labels")
    return rows.map(lambda row: {"label": row["label"] / highest}, desc="Scaling labels")


def main() -> None:
    """Train, evaluate, save, reload and rank."""
    arguments, training_arguments = parse_arguments(
        Arguments, {**RANKING_DEFAULTS, "output_dir": "output/rerank"}, demo_defaults={"learning_rate": 1e-4}
    )
    tokenizer = load_tokenizer(arguments.model)
    splits = load_data(arguments, search_queries, training_arguments.seed)
    held_out = {
        split: held_out_lists(arguments, split, splits[split], training_arguments.seed)
        for split in ("validation", "test")
        if split in splits
    }
    rows = training_rows(arguments, splits["train"], training_arguments)
    set_batch_size(training_arguments, lists="labels" in rows.column_names)
    threshold = 1.0
    lists = {split: queries.lists for split, queries in held_out.items()}
    if arguments.loss in POINTWISE:
        # Pointwise losses want probabilities: half of the lowest grade still tells relevant documents from others.
        highest = max(survey(each, resolve_columns(each)).maximum for each in (rows, *lists.values()))
        if highest > 1:
            rows, threshold = scaled(rows, highest), 0.5 / highest
            lists = {split: scaled(each, highest) for split, each in lists.items()}
    trainer = CrossEncoderTrainer(
        load_ranker(arguments.model, training_arguments.seed),
        training_arguments,
        train_dataset=rows,
        eval_dataset=lists["validation"],
        data_collator=PairCollator(tokenizer, arguments.max_length, in_batch_negatives=arguments.in_batch_negatives),
        compute_loss_func=None if arguments.loss is None else getattr(losses, arguments.loss)(),
        compute_metrics=ranking_metrics(relevance_threshold=threshold),
        padding_free=arguments.padding_free,
        max_tokens=arguments.max_tokens,
    )
    first_stage = {split: queries.add_first_stage(arguments.first_stage) for split, queries in held_out.items()}
    for split, queries in held_out.items():
        queries.add("before training", trainer.predict(lists[split]).predictions)
    if training_arguments.max_steps:
        trainer.train(resume_from_checkpoint=training_arguments.resume_from_checkpoint)
    for split, queries in held_out.items():
        queries.add("after training", trainer.predict(lists[split]).predictions)

    def report() -> None:
        for split, queries in held_out.items():
            print(queries.table([("after training", first_stage[split])]))
            prefix = "" if split == "validation" else f"{split}."
            queries.write_trec("after training", training_arguments.output_dir, prefix)
        query, documents, _ = held_out["validation"].lists[0].values()
        print(show_ranking(training_arguments.output_dir, query, documents))

    save_and_report(trainer, report)


if __name__ == "__main__":
    run(main)
