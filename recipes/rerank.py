"""Re-ranking: a better order for the documents that a first stage found for a query.

    accelerate launch recipes/rerank.py --demo
    accelerate launch recipes/rerank.py --dataset folder/with/train.csv --loss LambdaLoss --output_dir output/rerank
    torchrun --nproc_per_node 2 recipes/rerank.py --dataset pairs.jsonl --mine 4

Rows may be

    (query, documents, labels)                       lists of documents, with a grade for each
    (query, document, label)                         kept as pairs, or brought together by query for losses over lists
    (query, positive, negative, negative_2, ...)     as they are
    (query, positive)                                with --in_batch_negatives, with --mine, or with both

The orders of each query's documents are compared with those of a first stage. `--max_steps 0` evaluates without
training, and `--mine 4 --mine_from random` is the baseline for mining.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from datasets import Dataset
from demo import parse_arguments, run
from demo_search import search_queries
from rankings import (
    HeldOut,
    RankingArguments,
    as_lists,
    cap_documents,
    choose_loss,
    finish,
    load_cross_encoder,
    mine,
    read_corpus,
    set_batch_size,
)
from transformers import TrainingArguments

from cross_trainer import CrossEncoderTrainer, PairCollator, ranking_metrics
from cross_trainer.commands.arguments import load_tokenizer
from cross_trainer.data.columns import Columns, resolve_columns
from cross_trainer.data.grouping import LABELS
from cross_trainer.data.splits import load_splits
from cross_trainer.data.survey import survey
from cross_trainer.errors import ConfigurationError
from cross_trainer.training import losses

# Each of these, like every other field of TrainingArguments, is also a flag of the command line.
SETTINGS: dict[str, Any] = {
    "model": "distilroberta-base",
    "output_dir": "output/rerank",
    "num_train_epochs": 4,
    "per_device_train_batch_size": 0,  # 0: 2 queries if rows are lists, else 16 rows
    "per_device_eval_batch_size": 8,
    "learning_rate": 5e-5,  # with a linear decay to 0
    "warmup_steps": 0.1,  # below 1: a share of all steps
    "weight_decay": 0.01,
    "logging_steps": 50,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "ndcg@10",
}
DEMO: dict[str, Any] = {"num_train_epochs": 1, "learning_rate": 1e-4, "logging_steps": 25}

LOSSES = [name for name in vars(losses) if name.endswith("Loss") and name != "CrossEntropyLoss"]  # which is for classes
DOCUMENTS = 32  # of a query in training at most, where losses compare them
POINTWISE = ("BinaryCrossEntropyLoss", "MSELoss")


@dataclass
class Arguments(RankingArguments):
    """Options of this recipe."""

    loss: str | None = field(
        default=None,
        metadata={
            "choices": LOSSES,
            "help": "Default: BinaryCrossEntropyLoss for graded pairs, ListNetLoss for graded lists, InfoNCELoss where "
            "there are no grades.",
        },
    )
    in_batch_negatives: int = field(
        default=0, metadata={"help": "How many documents of other rows a query gets as negatives."}
    )
    mine: int = field(
        default=0, metadata={"help": "Train on up to this many mined negatives per query, instead of its own."}
    )
    mine_from: str = field(
        default="bm25",
        metadata={"help": "Who finds candidates: bm25, a SentenceTransformer, bm25+NAME for both, or random."},
    )
    mine_range_min: int = field(default=0, metadata={"help": "The first rank to take, counted from 0."})
    mine_range_max: int | None = field(
        default=None, metadata={"help": "The rank to stop before. Default: 100 ranks further."}
    )
    mine_scorer: str | None = field(
        default=None, metadata={"help": "A cross-encoder that scores what was found, to take the best-scored."}
    )
    mine_margin: float | None = field(
        default=None, metadata={"help": "Drop what it gives more than the positive's score minus this."}
    )
    mine_relative_margin: float | None = field(
        default=None, metadata={"help": "Drop what it gives more than the positive's score minus this share of it."}
    )
    mine_max_score: float | None = field(default=None, metadata={"help": "Drop what it gives more than this."})
    corpus: str | None = field(
        default=None, metadata={"help": "A file of documents to mine from. Default: those of the training data."}
    )
    first_stage: Literal["bm25", "order"] | None = field(
        default=None,
        metadata={"help": "BM25 over the evaluated documents, or the order of the rows. Default: bm25, if installed."},
    )
    candidates: int = field(
        default=20, metadata={"help": "How many of BM25's documents to rank if held-out rows have only a positive."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        how = {name: value for name, value in vars(self).items() if name.startswith("mine_") or name == "corpus"}
        given = [f"--{name}" for name, value in how.items() if value != getattr(Arguments, name)]
        if not self.mine and given:
            raise ConfigurationError(f"{', '.join(given)} say how to mine, and nothing is mined: give --mine 4.")

    @property
    def limits(self) -> dict[str, Any]:
        """What drops a candidate, as arguments of `mine_hard_negatives`."""
        names = ("range_min", "range_max", "relative_margin", "max_score")
        return {name: getattr(self, f"mine_{name}") for name in names}


def default_loss(options: Arguments, rows: Dataset) -> str | None:
    """The loss for pairs with grades that are trained on as they are; None where it follows from the lists made."""
    columns = options.columns_in(rows, training=True)
    made = options.mine or options.in_batch_negatives or options.documents_per_query is not None
    if made or columns.shape != "pair" or columns.label is None:
        return None
    found = survey(rows, columns)
    return "BinaryCrossEntropyLoss" if found.whole and found.minimum >= 0 else None


def training_rows(options: Arguments, rows: Dataset, args: TrainingArguments) -> Dataset:
    """The rows to train on, in the shape that options and labels ask for."""
    columns = options.columns_in(rows, training=True)
    if columns.label is None and columns.shape != "tuple" and not options.mine + options.in_batch_negatives:
        raise ConfigurationError(
            "The training data has no label. Name its column with --text_columns and --label_column; for rows "
            "(query, positive) give --in_batch_negatives 8 or --mine 4."
        )
    if not options.mine and keep_shape(options, columns):
        return as_they_are(rows, columns)
    lists = as_lists(rows, columns)
    if options.mine:
        lists = with_mined_negatives(options, lists, args)
    if LABELS not in lists.column_names:  # tuples, which in-batch negatives go with
        return lists
    ordered = any(len(set(labels)) > 1 for labels in lists[LABELS])
    if not ordered and columns.shape == "pair" and options.loss is None:
        return as_they_are(rows, columns)
    check_loss(options.loss, ordered)
    limit = options.documents_per_query
    if limit is None and options.loss not in POINTWISE:
        limit = DOCUMENTS
    return lists if limit is None else cap_documents(lists, limit, args.seed)


def keep_shape(options: Arguments, columns: Columns) -> bool:
    """Whether rows are trained on as they are: positives alone, pairs for pointwise losses, tuples for the others."""
    if columns.shape == "pair" and columns.label is None:
        return True
    shape = "pair" if options.loss in POINTWISE else "tuple"
    return columns.shape == shape and options.documents_per_query is None


def as_they_are(rows: Dataset, columns: Columns) -> Dataset:
    """The columns that are read, with the label's called "label"."""
    read = rows.select_columns(columns.names)
    return read if columns.label in {None, "label"} else read.rename_column(columns.label, "label")


def check_loss(loss: str | None, ordered: bool) -> None:
    """Check that a loss can learn from lists, in which there is an order or not."""
    if loss not in POINTWISE and not ordered:
        raise ConfigurationError(
            "No query of the training data has two documents with different labels, so there is no order to learn. "
            "Give --loss BinaryCrossEntropyLoss, or --mine 4."
        )
    if loss == "MarginMSELoss":
        raise ConfigurationError(
            "MarginMSELoss compares a positive with its negatives, and these are lists. Give rows (query, positive, "
            "negative, ...), or let a teacher score the lists: recipes/distill.py."
        )


def with_mined_negatives(options: Arguments, lists: Dataset, args: TrainingArguments) -> Dataset:
    """Lists, or tuples if there are in-batch negatives too."""
    scorer: Callable[..., Any] | None = None
    if options.mine_scorer is not None:
        encoder = load_cross_encoder(options.mine_scorer, "--mine_scorer", args.device)
        scorer = functools.partial(encoder.predict, distributed=True, show_progress_bar=False)
    return mine(
        lists,
        options.mine,
        corpus=None if options.corpus is None else read_corpus(options.corpus),
        retriever=options.mine_from,
        scorer=scorer,
        margin=options.mine_margin,
        limits=options.limits,
        as_tuples=options.in_batch_negatives > 0,
        seed=args.seed,
    )


def candidates_of(options: Arguments, split: str, rows: Dataset, seed: int) -> HeldOut:
    """A split's queries with their candidates."""
    columns = options.columns_in(rows)
    lists = as_lists(rows, columns)
    if columns.shape == "pair" and columns.label is None:
        lists = mine(lists, options.candidates, seed=seed)
    return HeldOut.of(split, lists, all_queries=options.all_queries)


def scaled(rows: Dataset, highest: float) -> Dataset:
    """Rows with labels in [0, 1]."""
    if LABELS in rows.column_names:
        return rows.map(lambda row: {LABELS: [label / highest for label in row[LABELS]]}, desc="Scaling labels")
    return rows.map(lambda row: {"label": row["label"] / highest}, desc="Scaling labels")


def main() -> None:
    """Train a re-ranker."""
    # 1. Read the settings from the command line: this recipe's own options, and transformers' TrainingArguments.
    options, args = parse_arguments(Arguments, SETTINGS, DEMO)

    # 2. Load the data, and the queries of the held-out splits whose order can be right or wrong.
    splits = (
        search_queries()
        if options.demo
        else load_splits(options.dataset, options.dataset_config, args.seed, options.columns())
    )
    names = [name for name in ("validation", "test") if name in splits]
    held_out = {name: candidates_of(options, name, splits[name], args.seed) for name in names}
    evaluated = {name: queries.lists for name, queries in held_out.items()}

    # 3. Choose the loss and the shape of the training rows, and mine negatives if asked to.
    options.loss = options.loss or default_loss(options, splits["train"])
    rows = training_rows(options, splits["train"], args)
    set_batch_size(args, lists=LABELS in rows.column_names)

    # 4. Pointwise losses take labels for probabilities. Half of the lowest grade still separates relevant documents.
    threshold = 1.0
    if options.loss in POINTWISE:
        highest = max(survey(each, resolve_columns(each)).maximum for each in (rows, *evaluated.values()))
        if highest > 1:
            rows, threshold = scaled(rows, highest), 0.5 / highest
            evaluated = {name: scaled(lists, highest) for name, lists in evaluated.items()}

    # 5. Put the trainer together.
    tokenizer = load_tokenizer(options.model)
    trainer = CrossEncoderTrainer(
        options.model,
        args,
        train_dataset=rows,
        eval_dataset=evaluated["validation"],
        data_collator=PairCollator(tokenizer, options.max_length, in_batch_negatives=options.in_batch_negatives),
        compute_loss_func=choose_loss(options.loss, rows),
        compute_metrics=ranking_metrics(relevance_threshold=threshold),
        **options.of_trainer(),
    )

    # 6. Rank by a first stage and by the untrained model, train, and rank again.
    first_stages = [queries.add_first_stage(options.first_stage) for queries in held_out.values()]
    for name, queries in held_out.items():
        queries.add("before training", trainer.predict(evaluated[name]).predictions)
    if args.max_steps:
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    for name, queries in held_out.items():
        queries.add("after training", trainer.predict(evaluated[name]).predictions)

    # 7. Save the best checkpoint, compare it with the first stage, and show a ranking by the saved model.
    finish(trainer, held_out, "after training", first_stages[:1])


if __name__ == "__main__":
    run(main)
