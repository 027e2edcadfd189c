"""What the recipes on rankings share: rows of any shape as lists, negatives, models, and the comparison of systems.

A list is a row `(query, documents, labels)`. `HeldOut` holds the lists of a split and the scores that several systems
gave their documents, and prints how good these systems' orders are.

G queries, D documents of the longest list.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from demo import RecipeArguments
from numpy.typing import NDArray

from cross_trainer.data.columns import IGNORED_LABEL, Columns, find_text, first_row, resolve_columns
from cross_trainer.data.grouping import DOCUMENTS, LABELS, group_by_query
from cross_trainer.data.splits import load_split
from cross_trainer.data.survey import survey
from cross_trainer.data.trec import write_qrels, write_run
from cross_trainer.errors import ConfigurationError, DataError
from cross_trainer.metrics.rankings import Comparison, compare, ranking_metrics

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, TrainingArguments

    from cross_trainer.scoring.cross_encoder import CrossEncoder
    from cross_trainer.scoring.mining import Scorer
    from cross_trainer.training.trainer import CrossEncoderTrainer

logger = logging.getLogger("cross_trainer.recipes.rankings")  # shown at the level of the package's messages

K = 10
METRICS = {"MAP": "map", f"MRR@{K}": f"mrr@{K}", f"nDCG@{K}": f"ndcg@{K}"}
BATCH_OF_LISTS, BATCH_OF_ROWS = 2, 16

Grid = NDArray[np.float64]  # [G, D]


@dataclass
class RankingArguments(RecipeArguments):
    """Options of every recipe on rankings."""

    max_tokens: int | None = field(
        default=16_384,
        metadata={"help": "The most tokens of a forward pass. The gradient is the same, however long the lists are."},
    )
    documents_per_query: int | None = field(
        default=None,
        metadata={"help": "The most documents of a list in training: relevant ones first, then others by --seed."},
    )
    all_queries: bool = field(
        default=False, metadata={"help": "Also evaluate queries whose documents are all relevant or all irrelevant."}
    )

    def columns_in(self, rows: Dataset, *, training: bool = False) -> Columns:
        """What a split's columns are for.

        The columns asked for have to exist in training. Held-out rows may have another shape, and other names.

        Raises:
            DataError: The training data lacks a column that was asked for, or there are no two text columns.
        """
        names = self.columns()
        apply = training or (names is not None and set(names) <= set(rows.column_names))
        return resolve_columns(rows, names if apply else None)

    def __post_init__(self) -> None:
        if self.documents_per_query is not None and self.documents_per_query < 2:
            raise ConfigurationError(f"--documents_per_query {self.documents_per_query}: an order needs two or more.")


# -- lists -------------------------------------------------------------------------------------------------------------


def as_lists(rows: Dataset, columns: Columns) -> Dataset:
    """Bring rows of any shape to one list a query: `query` (by the data's own name), `documents` and `labels`.

    In rows `(query, positive, negative, ...)` the positive gets label 1 and the negatives 0, even if there are a
    teacher's scores. The document of a pair without a label gets 1, and those of a list without labels get 0. A
    document that occurs twice in a list is kept once, with the higher label.

    Args:
        rows: Rows of pairs, lists or tuples.
        columns: Their columns.

    Raises:
        DataError: A row can't be read, or labels aren't numbers.
    """
    if columns.shape == "pair" and columns.label is not None:
        return group_by_query(rows, columns)
    survey(rows, columns)
    if columns.shape == "list":
        plain = rows.select_columns(columns.names)
        lists = plain.map(_distinct, fn_kwargs={"columns": columns}, remove_columns=columns.names, desc="Reading lists")
        return lists.select_columns([columns.query, DOCUMENTS, LABELS])
    judged = [
        (row[columns.query], row[name], int(place == 0))
        for row in rows.select_columns(columns.names)
        for place, name in enumerate(columns.documents)
    ]
    grouped = group_by_query(judged)
    return grouped.rename_column(grouped.column_names[0], columns.query)


def _distinct(row: dict[str, Any], columns: Columns) -> dict[str, Any]:
    documents = row[columns.documents[0]]
    labels = [0] * len(documents) if columns.label is None else row[columns.label]
    highest: dict[str, float] = {}
    for document, label in zip(documents, labels, strict=True):
        highest[document] = max(label, highest.get(document, label))
    return {columns.query: row[columns.query], DOCUMENTS: list(highest), LABELS: list(highest.values())}


def cap_documents(lists: Dataset, limit: int, seed: int) -> Dataset:
    """Cut each list to `limit` documents, at least 2: relevant ones first, then others, both drawn by seed.

    If there are more relevant documents than fit, one irrelevant document is kept: a list without one teaches no order.
    """

    def cut(row: dict[str, Any], index: int) -> dict[str, Any]:
        places = np.random.default_rng((seed, index)).permutation(len(row[LABELS])).tolist()
        relevant = [place for place in places if row[LABELS][place] > 0]
        others = [place for place in places if row[LABELS][place] <= 0]
        chosen = [*relevant[: limit - bool(others)], *others]
        kept = sorted(chosen[:limit])  # in the order in which they came
        return {name: [row[name][place] for place in kept] for name in (DOCUMENTS, LABELS)}

    return lists.map(cut, with_indices=True, desc="Cutting lists")


def choose_loss(name: str | None, rows: Dataset) -> Any:
    """The loss asked for; else ListNetLoss for lists of grades, and for other rows what the trainer chooses."""
    from cross_trainer.training import losses

    graded = LABELS in rows.column_names and all(
        grade >= 0 and grade == int(grade) for grades in rows[LABELS] for grade in grades
    )
    name = "ListNetLoss" if name is None and graded else name
    return None if name is None else getattr(losses, name)()


# -- negatives ---------------------------------------------------------------------------------------------------------


def read_corpus(path: str) -> list[str]:
    """The documents of a file: each line of a .txt, else the column `text` or the first other column of texts.

    Args:
        path: A txt, csv, tsv, jsonl or parquet file.

    Raises:
        ConfigurationError: There is no such file.
        DataError: It has another format, or no column of texts.
    """
    if not Path(path).is_file():
        raise ConfigurationError(f"--corpus {path!r} is not a file. Give a .txt, .csv, .tsv, .jsonl or .parquet file.")
    if Path(path).suffix == ".txt":
        return [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    rows = load_split(path, "train")
    try:
        texts: list[str] = rows[find_text(first_row(rows), "a header that calls it 'text'")][:]
    except DataError as error:
        raise DataError(f"--corpus {path!r}: {error}") from error
    return texts


@dataclass(frozen=True)
class RandomRetriever:
    """A retriever for `mine_hard_negatives` that draws documents at random: the baseline of mining.

    Args:
        size: The number of documents in the corpus.
        seed: A query's documents depend only on this and on the query's text.
    """

    size: int
    seed: int = 0

    def __call__(self, queries: list[str], k: int) -> list[list[int]]:
        """At most k different indices for each query."""
        return [
            np.random.default_rng((self.seed, zlib.crc32(query.encode()))).permutation(self.size)[:k].tolist()
            for query in queries
        ]


def mine(
    lists: Dataset,
    number: int,
    *,
    corpus: Sequence[str] | None = None,
    retriever: str = "bm25",
    scorer: Scorer | None = None,
    margin: float | None = None,
    limits: Mapping[str, Any] | None = None,
    as_tuples: bool = False,
    seed: int = 0,
) -> Dataset:
    """Give each query mined negatives instead of its own.

    Args:
        lists: See `as_lists`. Documents with a label above 0 stay, with their labels.
        number: The most negatives of a query.
        corpus: Where to look. Default: all documents of the lists.
        retriever: "bm25", a SentenceTransformer's name, "bm25+" and such a name, or "random" to draw documents.
        scorer: See `mine_hard_negatives`.
        margin: Drop documents that the scorer gives more than the lowest positive's score minus this.
        limits: Further arguments of `mine_hard_negatives` that drop candidates, such as `range_min`.
        as_tuples: Rows `(query, positive, negative, negative_2, ...)` rather than lists. Queries with fewer negatives
            are left out.
        seed: For drawing.
    """
    from cross_trainer.scoring.mining import mine_hard_negatives

    own = dict.fromkeys(itertools.chain.from_iterable(lists[DOCUMENTS]))
    texts = list(own) if corpus is None else corpus
    return mine_hard_negatives(
        lists,
        texts,
        retriever=RandomRetriever(len(texts), seed) if retriever == "random" else retriever,
        scorer=scorer,
        columns=Columns(lists.column_names[0], (DOCUMENTS,), LABELS, "list"),
        absolute_margin=margin,
        **(limits or {}),
        num_negatives=number,
        output_format="n-tuple" if as_tuples else "labeled-list",
        seed=seed,
    ).dataset


# -- models and batches ------------------------------------------------------------------------------------------------


def load_ranker(name: str, seed: int, layers: int | None = None) -> PreTrainedModel:
    """Load a classifier with one label, in float32: the score of a document.

    Args:
        name: A name or a folder.
        seed: For the weights of a new head.
        layers: How many of its first layers to keep. Default: all.

    Raises:
        ConfigurationError: It has fewer layers.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed

    config = AutoConfig.from_pretrained(name, num_labels=1)
    if layers is not None:
        if not 1 <= layers <= config.num_hidden_layers:
            raise ConfigurationError(f"{layers} layers are asked for, and {name!r} has {config.num_hidden_layers}.")
        config.num_hidden_layers = layers
    set_seed(seed)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        name, config=config, dtype=torch.float32, ignore_mismatched_sizes=True
    )
    return model


def load_cross_encoder(name: str, option: str, device: torch.device) -> CrossEncoder:
    """Load a trained cross-encoder that gives one score per document.

    Args:
        name: A name or a folder.
        option: The option that named it, for messages.
        device: Where it computes.

    Raises:
        ConfigurationError: There is no such model, or it gives another number of scores.
    """
    from cross_trainer.commands.score import load_encoder

    encoder = load_encoder(name, device=str(device))
    if encoder.num_labels != 1:
        raise ConfigurationError(
            f"{option} {name!r} has num_labels={encoder.num_labels}, but a ranking needs one score per document."
        )
    return encoder


def set_batch_size(arguments: TrainingArguments, lists: bool) -> None:
    """Replace a batch size of 0: by 2 lists, as each has many documents, or else by 16 rows."""
    if not arguments.per_device_train_batch_size:
        arguments.per_device_train_batch_size = BATCH_OF_LISTS if lists else BATCH_OF_ROWS


# -- evaluation --------------------------------------------------------------------------------------------------------


@dataclass
class HeldOut:
    """Queries with judged candidates, and the scores that several systems give these.

    Args:
        split: The name of the split.
        lists: See `as_lists`.
        total: How many queries the split has, including those that aren't evaluated.
        systems: Each system's scores [G, D] by its name, -100 where there is no document.
    """

    split: str
    lists: Dataset
    total: int
    systems: dict[str, Grid] = field(default_factory=dict)

    @classmethod
    def of(cls, split: str, lists: Dataset, *, all_queries: bool = False) -> HeldOut:
        """Keep the queries that have both relevant and irrelevant documents: only their order can be right or wrong.

        Args:
            split: The name of the split.
            lists: See `as_lists`.
            all_queries: Keep the others as well.

        Raises:
            DataError: Labels aren't grades of relevance (0, 1, 2, ...), or no query is left.
        """
        labels = lists[LABELS]
        wrong = next((label for row in labels for label in row if label < 0 or label != int(label)), None)
        if wrong is not None:
            raise DataError(
                f"Split {split!r} has the label {wrong:g}: rankings are evaluated by grades of relevance, 0, 1, 2 and "
                "so on, relevant from 1 on. Round or bin the labels of that split."
            )
        kept = [index for index, row in enumerate(labels) if all_queries or min(row) < 1 <= max(row)]
        if not kept:
            raise DataError(
                f"None of the {len(lists)} queries of split {split!r} has both relevant and irrelevant documents, so "
                "there is no order to evaluate. Give each query its candidates with labels, as rows (query, document, "
                "label) or (query, documents, labels)."
            )
        return cls(split, lists.select(kept), len(lists))

    @cached_property
    def labels(self) -> Grid:
        """Grades [G, D], -100 where there is no document."""
        return self._grid(self.lists[LABELS])

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """All (query, document), query by query."""
        query = self.lists.column_names[0]
        return [(row[query], document) for row in self.lists for document in row[DOCUMENTS]]

    def add(self, system: str, scores: Any) -> None:
        """Add a system's scores, [G, D] or flat in the order of `pairs`."""
        given = np.asarray(scores, dtype=np.float64)
        if given.ndim == 1:
            grid = np.full_like(self.labels, IGNORED_LABEL)
            grid[self.labels != IGNORED_LABEL] = given
            given = grid
        self.systems[system] = given

    def add_first_stage(self, kind: Literal["bm25", "order"] | None = None) -> str:
        """Score the candidates as a first stage does: by BM25 over the split's documents, or by the order given.

        Args:
            kind: Default: "bm25" if bm25s is installed, else "order".

        Returns:
            The system's name.

        Raises:
            MissingDependencyError: BM25 is asked for and bm25s isn't installed.
        """
        if kind is None:
            kind = "bm25" if importlib.util.find_spec("bm25s") else "order"
            logger.info("First stage of %s: %s.", self.split, kind)
        if kind == "bm25":
            self.add("BM25", self._bm25())
            return "BM25"
        order = self._grid([range(len(row), 0, -1) for row in self.lists[LABELS]])
        if ranking_metrics().per_query(order, self.labels)["map"].min() == 1:
            logger.warning(
                "In %s the relevant documents come first, which is not the order of a first stage. Compare with "
                "--first_stage bm25.",
                self.split,
            )
        self.add("order given", order)
        return "order given"

    def means(self, system: str) -> dict[str, float]:
        """A system's metrics at a depth of 10, with the ends of their 95 % bootstrap intervals."""
        return ranking_metrics(k=K, confidence=0.95)(_Evaluation(self.systems[system], self.labels))

    def contrast(self, first: str, second: str) -> dict[str, Comparison]:
        """The differences of two systems, metric by metric: see `cross_trainer.compare`."""
        one, other = (ranking_metrics(k=K).per_query(self.systems[name], self.labels) for name in (first, second))
        return {key: compare(one[key], other[key]) for key in METRICS.values()}

    def table(self, contrasts: Sequence[tuple[str, str]]) -> str:
        """The systems' means with their intervals, and the differences of pairs of them.

        Args:
            contrasts: Names (a, b), for the mean of the queries' differences a - b and the p-value of a paired
                permutation test.
        """
        header = f"\n{self.split}: means of {len(self.lists)} of {self.total} queries with 95 % intervals"
        lines = [header, _line("", list(METRICS))]
        for name in self.systems:
            means = self.means(name)
            ends = {key: (means[key], means[f"{key}_low"], means[f"{key}_high"]) for key in METRICS.values()}
            lines.append(_line(name, ["{:.4f} [{:.4f}, {:.4f}]".format(*each) for each in ends.values()]))
        for first, second in contrasts:
            found = self.contrast(first, second).values()
            gains = [f"{each.difference:+.4f} [{each.low:+.4f}, {each.high:+.4f}]" for each in found]
            lines.append(_line(f"{first} - {second}", gains))
            lines.append(_line("  p", [f"{each.p_value:.4f}" for each in found]))
        return "\n".join(lines)

    def write_trec(self, system: str, folder: str | Path, prefix: str = "") -> None:
        """Write a system's scores as `run.trec` and the grades as `qrels.trec`, queries and documents numbered."""
        numbers = {text: f"d{number}" for number, text in enumerate(dict.fromkeys(text for _, text in self.pairs))}
        run, qrels = {}, {}
        for index, (row, scores) in enumerate(zip(self.lists, self.systems[system], strict=True)):
            names = [numbers[text] for text in row[DOCUMENTS]]
            run[f"q{index}"] = dict(zip(names, scores[: len(names)].tolist(), strict=True))
            qrels[f"q{index}"] = dict(zip(names, row[LABELS], strict=True))
        write_run(Path(folder, f"{prefix}run.trec"), run)
        write_qrels(Path(folder, f"{prefix}qrels.trec"), qrels)

    def _grid(self, rows: Sequence[Sequence[float]]) -> Grid:
        grid = np.full((len(rows), max(map(len, rows))), float(IGNORED_LABEL))
        for line, row in zip(grid, rows, strict=True):
            line[: len(row)] = row
        return grid

    def _bm25(self) -> Grid:
        from cross_trainer.data.retrieval import Bm25, import_bm25s

        import_bm25s("--first_stage bm25", "take --first_stage order")
        places = {text: place for place, text in enumerate(dict.fromkeys(text for _, text in self.pairs))}
        found = Bm25(list(places)).scores(self.lists[self.lists.column_names[0]][:])
        rows = [
            scores[[places[text] for text in documents]].tolist()
            for scores, documents in zip(found, self.lists[DOCUMENTS], strict=True)
        ]
        return self._grid(rows)


def lists_of(splits: Mapping[str, Dataset], options: RankingArguments, seed: int) -> tuple[Dataset, dict[str, HeldOut]]:
    """The lists to train on, with as many documents as asked for, and the queries of the held-out splits."""
    lists = {name: as_lists(rows, options.columns_in(rows, training=name == "train")) for name, rows in splits.items()}
    names = [name for name in ("validation", "test") if name in lists]
    held_out = {name: HeldOut.of(name, lists[name], all_queries=options.all_queries) for name in names}
    train, limit = lists["train"], options.documents_per_query
    return train if limit is None else cap_documents(train, limit, seed), held_out


@dataclass(frozen=True)
class _Evaluation:
    """What a metric reads."""

    predictions: Grid
    label_ids: Grid


def _line(name: str, cells: Sequence[str]) -> str:
    return f"  {name:<36}" + "".join(f"{cell:<28}" for cell in cells)


def show_ranking(folder: str, query: str, documents: Sequence[str], top_k: int = 5) -> str:
    """How the model saved in a folder, read back from disk, ranks the documents of a query."""
    from cross_trainer.scoring.cross_encoder import CrossEncoder

    ranked = CrossEncoder(folder).rank(
        query, list(documents), top_k=top_k, return_documents=True, show_progress_bar=False
    )
    lines = [f"\nA ranking by the saved model, read back from {folder}", f"  {query}"]
    return "\n".join(lines + [f"  {entry['score']:>10.4f}  {entry['text']}" for entry in ranked])


def finish(trainer: CrossEncoderTrainer, held_out: Mapping[str, HeldOut], system: str, others: Sequence[str]) -> None:
    """Save the model, compare it with other systems, show a ranking by the saved model, and end the run.

    Only the main process prints. The system's scores and the grades are written as TREC files into the output folder.

    Args:
        trainer: The trainer of the model.
        held_out: Splits with the systems' scores.
        system: The trained model's name among the systems.
        others: The systems to compare it with.
    """
    trainer.save_model()
    folder = str(trainer.args.output_dir)
    if trainer.is_world_process_zero():
        for split, queries in held_out.items():
            print(queries.table([(system, other) for other in others]))
            queries.write_trec(system, folder, "" if split == "validation" else f"{split}.")
        query, documents, _ = held_out["validation"].lists[0].values()
        print(show_ranking(folder, query, documents))
        print(f"\nSaved in {folder}")
    trainer.accelerator.wait_for_everyone()
    trainer.end()
