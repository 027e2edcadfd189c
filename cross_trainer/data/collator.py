"""From rows to one padded batch of pairs and its labels.

`PairCollator` is a `data_collator` for any `transformers.Trainer` or DataLoader. Rows may be raw text or tokenised already;
both texts go through the tokenizer's own two-segment input, so whatever reads the saved model sees what training saw.

    >>> collator = PairCollator(tokenizer)
    >>> collator([("a cat sat", "a cat", 1.0), ("two dogs", "it rained all day", 0.0)])
    {'input_ids': tensor([[ 101, 1037, 4937, 2938,  102, 1037, 4937,  102,    0],
                          [ 101, 2048, 6077,  102, 2009, 15276, 2035, 2154,  102]]),
     'token_type_ids': tensor([[0, 0, 0, 0, 0, 1, 1, 1, 0],
                               [0, 0, 0, 0, 1, 1, 1, 1, 1]]),
     'attention_mask': tensor([[1, 1, 1, 1, 1, 1, 1, 1, 0],
                               [1, 1, 1, 1, 1, 1, 1, 1, 1]]),
     'labels': tensor([1., 0.])}
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch.utils.data import get_worker_info

from cross_trainer.data.columns import IGNORED_LABEL, Columns, Row, as_mapping, resolve_columns
from cross_trainer.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Truncation: TypeAlias = Literal["longest_first", "only_second", "only_first"]
_UNBOUNDED = 1_000_000  # tokenizers without a limit of their own carry a huge number instead
_MODEL_INPUTS = ("input_ids", "token_type_ids", "attention_mask", "position_ids")
_COUNTED = ("pairs", "tokens", "padding", "truncated")
_MAX_WORKERS = 256


class Sentinel:
    """A row that fills a batch up and counts for nothing: an empty pair whose labels are all -100."""


class PairCollator:
    """Tokenise rows as pairs, pad them and put their labels beside them.

    Args:
        tokenizer: The model's tokenizer.
        max_length: Tokens of a pair at most, special tokens included. Default: `tokenizer.model_max_length`.
        truncation: Which text gives way where a pair is too long: the longer one token by token (`longest_first`), the second
            (`only_second`, which protects the query) or the first (`only_first`). Where the protected text alone doesn't fit, it
            is cut to leave the other one a token.
        padding: `True` or `"longest"` pads to the longest pair of the batch, `"max_length"` to `max_length`.
        pad_to_multiple_of: Round the padded length up to a multiple of this.
        columns: Names `(first text, second text)` or `(first text, second text, label)`, or `Columns`. Default: resolved from
            the first row of the first batch, see `cross_trainer.data.columns`.
        swap: Present each pair in either order with probability one half. For training on symmetric tasks; `for_dataset` switches
            it off for evaluation.
        in_batch_negatives: Add so many documents of other rows of the batch to each query, as negatives, for rows
            `(query, positive, ...)` without a label. Never a document that the query has itself, nor one of a row with the same query.
            Queries with fewer eligible documents get fewer.

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
        if truncation not in {"longest_first", "only_second", "only_first"}:
            raise ConfigurationError(
                f"truncation={truncation!r}: expected 'longest_first', 'only_second' or 'only_first'."
            )
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
        self.truncation = truncation
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

    def for_dataset(self, columns: Columns, *, training: bool) -> PairCollator:
        """A collator for one data set with its columns resolved; it counts apart where it isn't for training."""
        bound = copy.copy(self)
        bound.columns = columns
        if not training:
            bound.swap = False
            bound._counts = _shared_counts()  # noqa: SLF001
        if self.in_batch_negatives and (columns.label is not None or columns.shape not in {"pair", "tuple"}):
            if training:
                raise ConfigurationError(
                    f"in_batch_negatives={self.in_batch_negatives} needs rows (query, positive, ...) without a label, "
                    f"found {columns}."
                )
            bound.in_batch_negatives = 0
        return bound

    def statistics(self) -> dict[str, int]:
        """How many `pairs`, real `tokens`, tokens of `padding` and `truncated` pairs were collated so far, over all workers."""
        return dict(zip(_COUNTED, self._counts.sum(0).tolist(), strict=True))

    def __call__(self, rows: Sequence[Row | Sentinel]) -> dict[str, torch.Tensor]:
        """Collate rows into a batch.

        Returns:
            `input_ids` and `attention_mask` [P, L] and what else the tokenizer gives, with `labels` where rows have them: [P], [P, C]
            for several labels at once, or [G, D] padded with -100 for queries with several documents, whose pairs are flat, query by
            query. `num_relevant` [G] where rows have that column.
        """
        real = [None if isinstance(row, Sentinel) else as_mapping(row) for row in rows]
        columns = self._resolve(real)
        if columns.shape == "tokens":
            batch = self._pad(real, columns)
            labels = None if columns.label is None else [_label(row, columns) for row in real]
        else:
            pairs, labels = self._pairs(real, columns)
            batch = self._tokenize(pairs)
        self._count_tokens(batch["attention_mask"])
        if labels is not None:
            batch["labels"] = _label_tensor(labels, columns)
        if columns.num_relevant is not None:
            batch["num_relevant"] = torch.tensor(
                [IGNORED_LABEL if row is None else row[columns.num_relevant] for row in real]
            )
        return batch

    def _resolve(self, rows: Sequence[Mapping[str, Any] | None]) -> Columns:
        if not isinstance(self.columns, Columns):
            real = [row for row in rows if row is not None]
            self.columns = resolve_columns(real, self.columns, self.in_batch_negatives)
        return self.columns

    # -- rows to pairs -------------------------------------------------------------------------------------------------

    def _pairs(
        self, rows: Sequence[Mapping[str, Any] | None], columns: Columns
    ) -> tuple[list[tuple[str, str]], list[Any] | None]:
        """The P pairs, flat, and one label a row: a number, or a list with one number a document."""
        if columns.shape == "pair":
            (second,) = columns.documents
            pairs = [("", "") if row is None else (_text(row, columns.query), _text(row, second)) for row in rows]
            labels = None if columns.label is None else [_label(row, columns) for row in rows]
        else:
            documents = [_documents(row, columns) for row in rows]
            labels = self._list_labels(rows, documents, columns)
            queries = ["" if row is None else _text(row, columns.query) for row in rows]
            if self.in_batch_negatives:
                self._add_negatives(queries, documents, labels)
            pairs = [(query, text) for query, texts in zip(queries, documents, strict=True) for text in texts]
            if not pairs:  # nothing but sentinels: the model still needs something to read
                pairs = [("", "")]
        if self.swap:
            # torch's generator, because dataloaders seed it in every worker.
            order = torch.rand(len(pairs)).lt(0.5).tolist()
            pairs = [pair[::-1] if swapped else pair for pair, swapped in zip(pairs, order, strict=True)]
        return pairs, labels

    def _list_labels(
        self, rows: Sequence[Mapping[str, Any] | None], documents: list[list[str]], columns: Columns
    ) -> list[Any] | None:
        """One list of labels a row, as long as its documents."""
        if columns.shape == "list" and columns.label is None:
            return None
        labels: list[Any] = []
        for row, texts in zip(rows, documents, strict=True):
            if row is None:
                labels.append([])
            elif columns.label is None:
                labels.append([1.0] + [0.0] * (len(texts) - 1))
            else:
                label = columns.encode(_plain(row[columns.label]))
                # A margin: only the difference of the two labels counts.
                labels.append(list(label) if isinstance(label, list | tuple) else [label, 0.0])
        return labels

    def _add_negatives(self, queries: list[str], documents: list[list[str]], labels: list[Any] | None) -> None:
        """Give each query up to `in_batch_negatives` positives of other rows, in their order from the query on."""
        assert labels is not None
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

    # -- pairs to tensors ----------------------------------------------------------------------------------------------

    def _tokenize(self, pairs: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
        first, second = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        limit = self.length_limit
        cut = [False] * len(pairs)
        if limit is not None and self.truncation != "longest_first":
            room = limit - self.tokenizer.num_special_tokens_to_add(pair=True) - 1
            protected = first if self.truncation == "only_second" else second
            cut = self._cut_texts(protected, room)
        encoded = self.tokenizer(
            first,
            second,
            truncation=self.truncation if limit is not None else False,
            max_length=limit,
            padding="max_length" if self.padding == "max_length" else "longest",
            pad_to_multiple_of=self.pad_to_multiple_of,
            return_attention_mask=True,
            return_tensors="pt",
        )
        overflows = [bool(encoding.overflowing) for encoding in encoded.encodings or []]
        self._count("truncated", sum(map(any, zip(cut, overflows or cut, strict=True))))
        self._count("pairs", len(pairs))
        return dict(encoded)

    def _cut_texts(self, texts: list[str], room: int) -> list[bool]:
        """Cut texts in place to at most `room` tokens, where a token ends; tell which were cut."""
        encoded = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        cut = []
        for index, offsets in enumerate(encoded["offset_mapping"]):
            cut.append(len(offsets) > room)
            if cut[-1]:
                texts[index] = texts[index][: offsets[room - 1][1]]
        return cut

    def _pad(self, rows: Sequence[Mapping[str, Any] | None], columns: Columns) -> dict[str, torch.Tensor]:
        """Pad rows that are tokenised already."""
        empty = self.tokenizer("", "")
        names = [name for row in rows if row is not None for name in row if name in _MODEL_INPUTS] or list(empty)
        features = [
            {
                name: (empty if row is None else row)[name]
                for name in dict.fromkeys(names)
                if name in (empty if row is None else row)
            }
            for row in rows
        ]
        limit = self.length_limit
        longest = max(len(feature[columns.query]) for feature in features)
        if limit is not None and longest > limit:
            raise DataError(
                f"Column {columns.query!r}: a tokenised row has {longest} tokens, more than max_length={limit}. "
                "Truncate when tokenising, or give rows as text."
            )
        padding = "max_length" if self.padding == "max_length" else "longest"
        padded = self.tokenizer.pad(
            features,
            padding=padding,
            max_length=limit,
            pad_to_multiple_of=self.pad_to_multiple_of,
            return_attention_mask=True,
            return_tensors="pt",
        )
        self._count("pairs", len(features))
        return dict(padded)

    # -- counting ------------------------------------------------------------------------------------------------------

    def _count(self, name: str, number: int) -> None:
        worker = get_worker_info()
        row = 0 if worker is None else 1 + worker.id % (_MAX_WORKERS - 1)
        self._counts[row, _COUNTED.index(name)] += number

    def _count_tokens(self, attention_mask: torch.Tensor) -> None:
        tokens = int(attention_mask.sum())
        self._count("tokens", tokens)
        self._count("padding", attention_mask.numel() - tokens)


def pairs_and_labels(rows: Sequence[Row], columns: Columns) -> tuple[list[tuple[str, str]], dict[str, torch.Tensor]]:
    """Pairs, and `labels` and `num_relevant`, of rows of text."""
    collator = PairCollator.__new__(PairCollator)
    collator.swap, collator.in_batch_negatives = False, 0
    fields = [as_mapping(row) for row in rows]
    pairs, labels = collator._pairs(fields, columns)  # noqa: SLF001
    found = {} if labels is None else {"labels": _label_tensor(labels, columns)}
    if columns.num_relevant is not None:
        found["num_relevant"] = torch.tensor([row[columns.num_relevant] for row in fields])
    return pairs, found


def _shared_counts() -> torch.Tensor:
    """One row a dataloader worker (0 is the main process), in memory that they share: no two write the same number."""
    counts = torch.zeros(_MAX_WORKERS, len(_COUNTED), dtype=torch.long)
    return counts.share_memory_()  # type: ignore[no-untyped-call, no-any-return]


def _text(row: Mapping[str, Any], name: str) -> str:
    text = row.get(name)
    if not isinstance(text, str):
        raise DataError(
            f"Column {name!r}: expected a text, found {text!r} in row {dict(row)!r:.200}. Filter such rows out."
        )
    return text


def _documents(row: Mapping[str, Any] | None, columns: Columns) -> list[str]:
    if row is None:
        return []
    if columns.shape == "list":
        (name,) = columns.documents
        return [_text({name: text}, name) for text in row[name]]
    return [_text(row, name) for name in columns.documents]


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _label(row: Mapping[str, Any] | None, columns: Columns) -> Any:
    """A row's label as the model counts it; None for a sentinel."""
    if row is None:
        return None
    assert columns.label is not None
    label = columns.encode(_plain(row[columns.label]))
    if label is None:
        raise DataError(f"Column {columns.label!r}: no label in row {dict(row)!r:.200}. Filter such rows out.")
    return label


def _label_tensor(labels: list[Any], columns: Columns) -> torch.Tensor:
    """Labels [P] (long for classes, else float), [P, C] or [G, D] (float), -100 where there is none."""
    widths = [len(label) for label in labels if isinstance(label, list | tuple)]
    if columns.grouped or widths or columns.label_width:
        width = max(widths, default=0) or columns.label_width or 1
        rows = [list(label or []) + [float(IGNORED_LABEL)] * (width - len(label or [])) for label in labels]
        return torch.tensor(rows, dtype=torch.float)
    filled = [IGNORED_LABEL if label is None else label for label in labels]
    real = columns.float_labels or any(isinstance(label, float) for label in filled)
    return torch.tensor(filled, dtype=torch.float if real else torch.long)
