"""Pairs of texts: read from rows of any form, tokenised, and padded to a batch. Training and scoring share all three.

    pairs = read_pairs([("a cat", "a dog"), {"question1": "Why?", "question2": "How?"}])
    encoded = encode_pairs(tokenizer, pairs, max_length=128, truncation="only_second")
    batch = pad_pairs(tokenizer, encoded.features)          # {"input_ids": [P, L], ..., "attention_mask": [P, L]}

Shapes: P pairs, L tokens of the longest pair of a batch.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from cross_trainer.data.columns import check_text, choose_texts, is_list, plain_list, plain_rows
from cross_trainer.errors import ConfigurationError, DataError, short

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

Pair: TypeAlias = "tuple[str, str]"
Features: TypeAlias = "Mapping[str, Sequence[Sequence[int]]]"
Truncation: TypeAlias = Literal["longest_first", "only_first", "only_second"]

TRUNCATIONS: tuple[Truncation, ...] = ("longest_first", "only_first", "only_second")

# -- reading -----------------------------------------------------------------------------------------------------------


def is_single(rows: Any) -> bool:
    """Whether this is one pair (two texts, a dict of texts or an example) rather than rows of them."""
    if isinstance(rows, Mapping):
        return any(isinstance(value, str) for value in rows.values())
    if hasattr(rows, "texts"):
        return True
    is_flat = isinstance(rows, list | tuple) or getattr(rows, "ndim", 0) == 1  # numpy's and pandas' too
    return is_flat and isinstance(next(iter(rows), None), str)


def read_pairs(
    rows: Any, columns: Sequence[str] | None = None, trained_on: Sequence[str] | None = None
) -> Iterator[Pair]:
    """Pairs of texts from rows of any form, each checked as it is read.

        >>> list(read_pairs([("a", "b"), {"answer": "because", "question": "why?"}]))
        [('a', 'b'), ('why?', 'because')]

    Args:
        rows: An iterable of tuples, lists, arrays, dicts or examples with `texts`; a `datasets.Dataset` or a table of
            pandas, polars or pyarrow; an array [P, 2]; or two columns `{"first": [...], "second": [...]}`.
        columns: The names of the two text columns of dicts and data sets.
        trained_on: The names that the model was trained on, which decide where rows have both of them and `columns`
            isn't given. Otherwise the rules of `cross_trainer.data.columns` apply.

    Yields:
        (first text, second text) of every row.

    Raises:
        DataError: A row isn't a pair of texts, or it is ambiguous which columns are the texts; the message names the
            row.
    """
    rows = plain_rows(rows)
    if isinstance(rows, Mapping):
        yield from _from_columns(rows, columns, trained_on)
        return
    if isinstance(rows, str) or not isinstance(rows, Iterable):
        raise DataError(f"Expected pairs of texts, found {short(rows)}. Give rows such as [(a, b), ...].")
    names = columns
    for index, row in enumerate(rows):
        if isinstance(row, Mapping):
            names = choose_texts(rows, row, trained_on) if names is None else names
            missing = [name for name in names if name not in row]
            if missing:
                raise DataError(
                    f"Row {index} has no column {missing[0]!r}, but {list(row)}. "
                    "Name the columns of the texts with columns=(first, second)."
                )
            texts: Any = [row[name] for name in names]
        else:
            texts = row.texts if hasattr(row, "texts") else row
        yield _check_pair(texts, index)


def _from_columns(
    columns: Mapping[str, Any], names: Sequence[str] | None, trained_on: Sequence[str] | None
) -> Iterator[Pair]:
    if any(hasattr(values, "column_names") for values in columns.values()):
        raise DataError(
            f"Expected one data set, found the splits {list(columns)}. Name one, as in rows[{next(iter(columns))!r}]."
        )
    lists = {name: plain_list(values) for name, values in columns.items()}
    if not any(lists.values()) and (names is not None or len(lists) > 1):
        return
    row = {name: values[0] for name, values in lists.items() if values}
    first, second = choose_texts(None, row, trained_on) if names is None else names
    for name in (first, second):
        if name not in lists:
            raise DataError(f"Column {name!r} is missing; there are {list(lists)}.")
    if len(lists[first]) != len(lists[second]):
        raise DataError(
            f"Column {first!r} has {len(lists[first])} rows and column {second!r} has {len(lists[second])}. "
            "Give both columns the same length."
        )
    for index, texts in enumerate(zip(lists[first], lists[second], strict=True)):
        yield _check_pair(texts, index)


def _check_pair(row: Any, index: int) -> Pair:
    texts = row.tolist() if hasattr(row, "tolist") else row  # a row of numpy or pandas
    if not is_list(texts) or len(texts) != 2:
        count = f" with {len(texts)} entries" if is_list(texts) else ""
        raise DataError(
            f"Row {index}: expected two texts, found {short(texts)} ({type(row).__name__}{count}). "
            "Give each row as (first text, second text)."
        )
    return check_text(texts[0], f"Row {index}, text 1"), check_text(texts[1], f"Row {index}, text 2")


def unique_pairs(pairs: Sequence[Pair]) -> tuple[list[Pair], NDArray[np.int64]]:
    """Each distinct pair once, in the order of first appearance, and for every pair its place among them [P]."""
    places: dict[Pair, int] = {}
    inverse = np.fromiter((places.setdefault(pair, len(places)) for pair in pairs), dtype=np.int64, count=len(pairs))
    return list(places), inverse


# -- tokenising --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncodedPairs:
    """Tokenised pairs, not padded yet.

    Attributes:
        features: `input_ids`, and `token_type_ids` where the model reads them: a list of integers for each pair.
        lengths: [P] tokens of each pair.
        truncated: [P] whether tokens of the pair were dropped.
    """

    features: Features
    lengths: NDArray[np.int64]
    truncated: list[bool]


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    max_length: int | None = None,
    truncation: Truncation = "longest_first",
) -> EncodedPairs:
    """Tokenise pairs of texts: the one place that does, for training and scoring alike.

    Args:
        tokenizer: A fast or a slow one. Threads may share it.
        pairs: P pairs.
        max_length: Tokens of a pair at most, special tokens included; None for no limit.
        truncation: Which text gives way: the longer one, token by token, or the first or the second alone. Where the
            other text, which is protected, leaves no room for it, it is cut as well, so that one token remains of each.

    Returns:
        Tokens of each pair. Truncation drops whole tokens at the end of a text, or at its start where the tokenizer's
        `truncation_side` is "left".
    """
    texts = [first for first, _ in pairs], [second for _, second in pairs]
    with _lock(tokenizer):
        if tokenizer.is_fast:
            return _encode_fast(tokenizer, *texts, max_length, truncation)
        return _encode_slowly(tokenizer, *texts, max_length, truncation)


def check_truncation(truncation: str) -> Truncation:
    """A truncation by its name.

    Raises:
        ConfigurationError: There is none of that name.
    """
    for known in TRUNCATIONS:
        if truncation == known:
            return known
    raise ConfigurationError(f"truncation={truncation!r}: expected one of {', '.join(map(repr, TRUNCATIONS))}.")


def _encode_fast(
    tokenizer: Any, first: list[str], second: list[str], max_length: int | None, truncation: Truncation
) -> EncodedPairs:
    at_once = max_length is not None and truncation == "longest_first"
    options = {"truncation": "longest_first", "max_length": max_length} if at_once else {}
    encoded: BatchEncoding = tokenizer(first, second, return_attention_mask=False, verbose=False, **options)
    features: dict[str, list[list[int]]] = dict(encoded)
    lengths = _lengths(features)
    if at_once:
        return EncodedPairs(features, lengths, [bool(each.overflowing) for each in encoded.encodings or []])
    too_long = lengths > (max_length or lengths.max(initial=0))
    for row in np.flatnonzero(too_long).tolist():
        # The tokens of either text, without the special ones around them.
        places = [[at for at, text in enumerate(encoded.sequence_ids(row)) if text == number] for number in (0, 1)]
        room = (max_length or 0) - int(lengths[row]) + len(places[0]) + len(places[1])
        kept = _cut(places[0], places[1], room, truncation, tokenizer.truncation_side)
        dropped = {*places[0], *places[1]} - {*kept[0], *kept[1]}
        for values in features.values():
            values[row] = [value for at, value in enumerate(values[row]) if at not in dropped]
    return EncodedPairs(features, _lengths(features), too_long.tolist())


def _encode_slowly(
    tokenizer: Any, first: list[str], second: list[str], max_length: int | None, truncation: Truncation
) -> EncodedPairs:
    plain = functools.partial(tokenizer, add_special_tokens=False, return_attention_mask=False, verbose=False)
    special = tokenizer.num_special_tokens_to_add(pair=True)
    rows, truncated = [], []
    for ids in zip(plain(first)["input_ids"], plain(second)["input_ids"], strict=True):
        truncated.append(max_length is not None and len(ids[0]) + len(ids[1]) + special > max_length)
        kept, options = ids, {}
        if truncated[-1] and truncation == "longest_first":
            options = {"truncation": "longest_first", "max_length": max_length}
        elif truncated[-1]:
            kept = _cut(ids[0], ids[1], (max_length or 0) - special, truncation, tokenizer.truncation_side)
        rows.append(tokenizer.prepare_for_model(*kept, return_attention_mask=False, verbose=False, **options))
    features = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    return EncodedPairs(features, _lengths(features), truncated)


def _cut(
    first: list[int], second: list[int], room: int, truncation: Truncation, side: str
) -> tuple[list[int], list[int]]:
    """The entries that remain of two texts, at most `room` together."""
    protected, other = (first, second) if truncation == "only_second" else (second, first)
    whole = min(len(protected), max(room - min(len(other), 1), 0))
    rest = max(room - whole, 0)
    if side == "left":
        protected, other = protected[len(protected) - whole :], other[max(len(other) - rest, 0) :]
    else:
        protected, other = protected[:whole], other[:rest]
    return (protected, other) if truncation == "only_second" else (other, protected)


def _lengths(features: Features) -> NDArray[np.int64]:
    ids = features.get("input_ids", ())
    return np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))


def cut_into_passages(
    tokenizer: PreTrainedTokenizerBase, query: str, documents: Sequence[str], max_length: int, stride: int | None = None
) -> list[list[str]]:
    """Cut documents between tokens into passages that fit behind a query, neighbours overlapping.

    Args:
        tokenizer: A fast one, which knows where in a text a token ends.
        query: The first text of every pair.
        documents: D texts.
        max_length: Tokens of a pair at most.
        stride: Tokens by which neighbours overlap. Default: a quarter of a passage.

    Returns:
        The passages of each document, at least one; the last one ends with the document.

    Raises:
        ConfigurationError: The query leaves no room, or the stride is outside its range.
    """
    taken = len(encode_pairs(tokenizer, [(query, "")]).features["input_ids"][0])
    room = max_length - taken
    if room < 1:
        raise ConfigurationError(
            f"The query takes {taken} of {max_length} tokens, which leaves no room for a document. "
            "Shorten it, or leave long_documents out."
        )
    overlap = room // 4 if stride is None else stride
    if not 0 <= overlap < room:
        raise ConfigurationError(f"stride={stride}: expected 0 to {room - 1}, as a passage holds {room} tokens.")
    with _lock(tokenizer):
        encoded = tokenizer(list(documents), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        _cut_text(text, offsets, room, overlap)
        for text, offsets in zip(documents, encoded["offset_mapping"], strict=True)
    ]


def _cut_text(text: str, offsets: Sequence[tuple[int, int]], room: int, overlap: int) -> list[str]:
    if len(offsets) <= room:
        return [text]
    starts = range(0, len(offsets) - overlap, room - overlap)
    return [text[offsets[start][0] : offsets[min(start + room, len(offsets)) - 1][1]] for start in starts]


_LOCKS: WeakKeyDictionary[Any, threading.Lock] = WeakKeyDictionary()
_GUARD = threading.Lock()


def _lock(tokenizer: PreTrainedTokenizerBase) -> threading.Lock:
    """A tokenizer's own lock: a fast one keeps its truncation as state, which threads would change for one another."""
    with _GUARD:
        return _LOCKS.setdefault(tokenizer, threading.Lock())


def _renew_locks() -> None:
    """A forked process has locks as they were, and not the threads that would release them."""
    global _GUARD  # noqa: PLW0603
    _GUARD = threading.Lock()
    _LOCKS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)

# -- padding -----------------------------------------------------------------------------------------------------------


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills rows up: the tokenizer's padding token, or else its end of text.

    Raises:
        ConfigurationError: It has neither.
    """
    token = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if isinstance(token, int):
        return token
    raise ConfigurationError(
        "The tokenizer has neither a padding token nor an end of text. Set tokenizer.pad_token to a token that no text "
        "holds, and model.config.pad_token_id to its id."
    )


def pad_pairs(
    tokenizer: PreTrainedTokenizerBase,
    features: Features,
    rows: Sequence[int] | None = None,
    width: int | None = None,
    side: str | None = None,
) -> dict[str, torch.Tensor]:
    """Some tokenised pairs as a batch.

    Args:
        tokenizer: Its padding token.
        features: As `encode_pairs` returns them; other inputs with one integer a token are filled up with 0.
        rows: The P pairs to take, in this order. Default: all.
        width: L. Default: the longest of these pairs.
        side: Where padding goes, "left" or "right". Default: the tokenizer's `padding_side`. Who knows the model passes
            `cross_trainer.saved.loading.padding_side(model, tokenizer)`, as many models are exact on one side only.

    Returns:
        The features and `attention_mask`, each [P, L], long.
    """
    rows = range(len(features["input_ids"])) if rows is None else rows
    lengths = np.fromiter((len(features["input_ids"][row]) for row in rows), dtype=np.int64, count=len(rows))
    real = np.arange(width or int(lengths.max())) < lengths[:, None]
    if (tokenizer.padding_side if side is None else side) == "left":
        real = real[:, ::-1]
    fillers = {"input_ids": padding_id(tokenizer), "token_type_ids": tokenizer.pad_token_type_id}
    batch = {}
    for name, values in features.items():
        padded = np.full(real.shape, fillers.get(name, 0), dtype=np.int64)
        flat = chain.from_iterable(values[row] for row in rows)
        padded[real] = np.fromiter(flat, dtype=np.int64, count=int(lengths.sum()))
        batch[name] = torch.from_numpy(padded)
    batch.setdefault("attention_mask", torch.from_numpy(real.astype(np.int64)))
    return batch
