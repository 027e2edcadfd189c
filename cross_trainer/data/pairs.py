"""Pairs of texts: read from rows of any form, tokenised, and padded to a batch. Training and scoring share all three.

    pairs = read_pairs([("a cat", "a dog"), {"question1": "Why?", "question2": "How?"}])
    encoded = encode_pairs(tokenizer, pairs, max_length=128, truncation="only_second")
    batch = pad_pairs(tokenizer, encoded.features)          # {"input_ids": [P, L], ..., "attention_mask": [P, L]}

Shapes: P pairs, L tokens of the longest pair of a batch.
"""

from __future__ import annotations

import dataclasses
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

from cross_trainer.data.columns import (
    INSTRUCTION,
    check_text,
    choose_texts,
    is_list,
    plain_list,
    plain_rows,
    without_instruction,
)
from cross_trainer.data.templates import Template, check_fits, fill_part
from cross_trainer.errors import ConfigurationError, DataError, UnsupportedModelError, short

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

Pair: TypeAlias = "tuple[str, ...]"  # the two texts, and the pair's own instruction if it has one
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
    rows: Any,
    columns: Sequence[str] | None = None,
    trained_on: Sequence[str] | None = None,
    *,
    instructed: bool = False,
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
        instructed: Whether the model takes an instruction, which rows may have in a column `instruction`, or behind
            their two texts.

    Yields:
        (first text, second text) of every row, with its instruction behind them where it has one.

    Raises:
        DataError: A row isn't a pair of texts, or it is ambiguous which columns are the texts; the message names the
            row.
    """
    rows = plain_rows(rows)
    if isinstance(rows, Mapping):
        yield from _from_columns(rows, columns, trained_on, instructed)
        return
    if isinstance(rows, str) or not isinstance(rows, Iterable):
        raise DataError(f"Expected pairs of texts, found {short(rows)}. Give rows such as [(a, b), ...].")
    names = columns
    for index, row in enumerate(rows):
        if isinstance(row, Mapping):
            texts_only = without_instruction(row) if instructed else row
            names = choose_texts(rows, texts_only, trained_on) if names is None else names
            missing = [name for name in names if name not in row]
            if missing:
                raise DataError(
                    f"Row {index} has no column {missing[0]!r}, but {list(row)}. "
                    "Name the columns of the texts with columns=(first, second)."
                )
            texts: Any = [row[name] for name in (*names, *_instruction(row, names, instructed))]
        else:
            texts = row.texts if hasattr(row, "texts") else row
        yield _check_pair(texts, index, instructed)


def _instruction(row: Mapping[str, Any], names: Sequence[str], instructed: bool) -> tuple[str, ...]:
    """The column of the instruction, where there is one."""
    return (INSTRUCTION,) if instructed and INSTRUCTION in row and INSTRUCTION not in names else ()


def _from_columns(
    columns: Mapping[str, Any], names: Sequence[str] | None, trained_on: Sequence[str] | None, instructed: bool
) -> Iterator[Pair]:
    if any(hasattr(values, "column_names") for values in columns.values()):
        raise DataError(
            f"Expected one data set, found the splits {list(columns)}. Name one, as in rows[{next(iter(columns))!r}]."
        )
    lists = {name: plain_list(values) for name, values in columns.items()}
    if not any(lists.values()) and (names is not None or len(lists) > 1):
        return
    row = {name: values[0] for name, values in lists.items() if values}
    texts_only = without_instruction(row) if instructed else row
    first, second = choose_texts(None, texts_only, trained_on) if names is None else names
    chosen = (first, second, *_instruction(lists, (first, second), instructed))
    for name in chosen:
        if name not in lists:
            raise DataError(f"Column {name!r} is missing; there are {list(lists)}.")
    for other in chosen[1:]:
        if len(lists[first]) != len(lists[other]):
            raise DataError(
                f"Column {first!r} has {len(lists[first])} rows and column {other!r} has {len(lists[other])}. "
                "Give both columns the same length."
            )
    for index, texts in enumerate(zip(*(lists[name] for name in chosen), strict=True)):
        yield _check_pair(texts, index, instructed)


def _check_pair(row: Any, index: int, instructed: bool) -> Pair:
    texts = row.tolist() if hasattr(row, "tolist") else row  # a row of numpy or pandas
    if instructed and is_list(texts) and len(texts) == 3:
        return (*_check_pair(texts[:2], index, False), check_text(texts[2], f"Row {index}, the instruction"))
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
    template: Template | None = None,
    max_query_length: int | None = None,
) -> EncodedPairs:
    """Tokenise pairs of texts: the one place that does, for training and scoring alike.

    Args:
        tokenizer: A fast or a slow one. Threads may share it.
        pairs: P pairs, in a template with an instruction of their own behind the two texts, if they have one.
        max_length: Tokens of a pair at most, special tokens included; None for no limit.
        truncation: Which text gives way: the longer one, token by token, or the first or the second alone. Where the
            other text, which is protected, leaves no room for it, it is cut as well, so that one token remains of each.
        template: The text that the pair stands in, which is never cut. Default: the tokenizer's own form of a pair.
        max_query_length: Tokens of the first text at most, before anything else is cut; None for no limit.

    Returns:
        Tokens of each pair. Truncation drops whole tokens at the end of a text, or at its start where the tokenizer's
        `truncation_side` is "left".

    Raises:
        DataError: A pair needs an instruction and has none, or its instruction leaves no room for the two texts.
    """
    cut = _Cut(max_length, truncation, max_query_length, tokenizer.truncation_side)
    with _lock(tokenizer):
        if template is not None:
            return _encode_in_template(tokenizer, pairs, template, cut)
        texts = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        return (_encode_fast if tokenizer.is_fast else _encode_slowly)(tokenizer, *texts, cut)


def check_truncation(truncation: str) -> Truncation:
    """A truncation by its name.

    Raises:
        ConfigurationError: There is none of that name.
    """
    for known in TRUNCATIONS:
        if truncation == known:
            return known
    raise ConfigurationError(f"truncation={truncation!r}: expected one of {', '.join(map(repr, TRUNCATIONS))}.")


def check_template(
    template: Template | None, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> Template | None:
    """A template, if a tokenizer can put pairs into it.

    Raises:
        UnsupportedModelError: The tokenizer is a slow one, which doesn't know where in a text a token ends.
        ConfigurationError: See `cross_trainer.data.templates.check_fits`.
    """
    if template is None:
        return None
    if not tokenizer.is_fast:
        raise UnsupportedModelError(
            f"A template needs the offsets of a fast tokenizer, and {type(tokenizer).__name__} is a slow one."
        )
    pair = ("a", "a", template.instruction or "a") if template.takes_instruction else ("a", "a")
    check_fits(template, tokenizer, max_length, int(encode_pairs(tokenizer, [pair], template=template).lengths[0]))
    return template


@dataclass(frozen=True)
class _Cut:
    """How much of a pair remains; the arguments of `encode_pairs`."""

    max_length: int | None
    truncation: Truncation
    max_query_length: int | None
    side: str

    def is_due(self, lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[P] whether something of each pair may have to go."""
        if self.max_query_length is not None:
            return np.ones(len(lengths), dtype=bool)
        return lengths > (lengths.max(initial=0) if self.max_length is None else self.max_length)

    def kept(self, first: list[int], second: list[int], others: int) -> tuple[list[int], list[int]]:
        """The entries that remain of two texts, beside a number of tokens that stay."""
        first = self._part(first, len(first) if self.max_query_length is None else self.max_query_length)
        room = len(first) + len(second) if self.max_length is None else max(self.max_length - others, 0)
        if len(first) + len(second) <= room:
            return first, second
        sizes = self._sizes(len(first), len(second), room)
        return self._part(first, sizes[0]), self._part(second, sizes[1])

    def _part(self, entries: list[int], size: int) -> list[int]:
        return entries[max(len(entries) - size, 0) :] if self.side == "left" else entries[:size]

    def _sizes(self, first: int, second: int, room: int) -> tuple[int, int]:
        if self.truncation == "longest_first":  # as tokenizers do: halves, unless one text is shorter than that
            shorter = min(first, second, max(room // 2, 0))
            return (shorter, room - shorter) if first <= second else (room - shorter, shorter)
        protected, other = (first, second) if self.truncation == "only_second" else (second, first)
        whole = min(protected, max(room - min(other, 1), 0))
        rest = max(room - whole, 0)
        return (whole, rest) if self.truncation == "only_second" else (rest, whole)


def _encode_fast(tokenizer: Any, first: list[str], second: list[str], cut: _Cut) -> EncodedPairs:
    at_once = cut.max_length is not None and cut.truncation == "longest_first" and cut.max_query_length is None
    options = {"truncation": "longest_first", "max_length": cut.max_length} if at_once else {}
    encoded: BatchEncoding = tokenizer(first, second, return_attention_mask=False, verbose=False, **options)
    features: dict[str, list[list[int]]] = dict(encoded)
    lengths = _lengths(features)
    if at_once:
        return EncodedPairs(features, lengths, [bool(each.overflowing) for each in encoded.encodings or []])
    truncated = [False] * len(lengths)
    for row in np.flatnonzero(cut.is_due(lengths)).tolist():
        # The tokens of either text, without the special ones around them.
        places = [[at for at, text in enumerate(encoded.sequence_ids(row)) if text == number] for number in (0, 1)]
        truncated[row] = _drop(features, row, places[0], places[1], cut)
    return EncodedPairs(features, _lengths(features), truncated)


def _drop(features: dict[str, list[list[int]]], row: int, first: list[int], second: list[int], cut: _Cut) -> bool:
    """Drop what must go of a row, whose two texts stand in these places; returns whether anything did."""
    tokens = len(features["input_ids"][row])
    kept = cut.kept(first, second, tokens - len(first) - len(second))
    dropped = {*first, *second} - {*kept[0], *kept[1]}
    if dropped:
        for values in features.values():
            values[row] = [value for at, value in enumerate(values[row]) if at not in dropped]
    return bool(dropped)


def _encode_slowly(tokenizer: Any, first: list[str], second: list[str], cut: _Cut) -> EncodedPairs:
    plain = functools.partial(tokenizer, add_special_tokens=False, return_attention_mask=False, verbose=False)
    special = tokenizer.num_special_tokens_to_add(pair=True)
    rows, truncated = [], []
    for ids in zip(plain(first)["input_ids"], plain(second)["input_ids"], strict=True):
        kept, options = cut.kept(*ids, special), {}
        truncated.append(kept != ids)
        if truncated[-1] and cut.truncation == "longest_first":  # a slow tokenizer divides an odd room otherwise
            kept = dataclasses.replace(cut, max_length=None).kept(*ids, special)
            options = {"truncation": "longest_first", "max_length": cut.max_length}
        rows.append(tokenizer.prepare_for_model(*kept, return_attention_mask=False, verbose=False, **options))
    features = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    return EncodedPairs(features, _lengths(features), truncated)


def _encode_in_template(tokenizer: Any, pairs: Sequence[Pair], template: Template, cut: _Cut) -> EncodedPairs:
    """Tokenise the parts of each pair and join them; parts that occur more than once are tokenised once."""
    filled = [_fill(template, pair) for pair in pairs]
    texts = dict.fromkeys(text for parts in filled for text, _ in parts)
    encoded: BatchEncoding | None = None
    if texts:
        encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    rows = dict(zip(texts, range(len(texts)), strict=True))
    features: dict[str, list[list[int]]] = {
        name: [[value for text, _ in parts for value in values[rows[text]]] for parts in filled]
        for name, values in (encoded or {"input_ids": []}).items()
    }
    lengths = _lengths(features)
    truncated = [False] * len(pairs)
    for row in np.flatnonzero(cut.is_due(lengths)).tolist():
        assert encoded is not None
        assert encoded.encodings is not None
        places: dict[str, list[int]] = {"query": [], "document": []}
        start = 0
        for text, spans in filled[row]:
            offsets = encoded.encodings[rows[text]].offsets
            for name in places.keys() & spans.keys():
                low, high = spans[name]
                # A token that takes in the space before a text is the text's.
                places[name] = [start + at for at, (_, end) in enumerate(offsets) if low < end <= high]
            start += len(offsets)
        others = start - len(places["query"]) - len(places["document"])
        if cut.max_length is not None and others + 2 > cut.max_length:
            raise DataError(
                f"A pair's instruction and template take {others} of {cut.max_length} tokens, which leaves no room for "
                f"the two texts {short(pairs[row][0])} and {short(pairs[row][1])}. Shorten the instruction, or raise "
                "max_length."
            )
        truncated[row] = _drop(features, row, places["query"], places["document"], cut)
    return EncodedPairs(features, _lengths(features), truncated)


def _fill(template: Template, pair: Pair) -> list[tuple[str, dict[str, tuple[int, int]]]]:
    """The text of each part, and where the texts of the pair are in it; parts without any text are left out."""
    query, document, *own = pair
    instruction = own[0] if own else template.instruction
    if instruction is None and template.bare is None and template.takes_instruction:
        raise DataError(
            f"The pair {short((query, document))} has no instruction, and the template needs one. Give "
            "instruction=..., or rows with a column 'instruction'."
        )
    values = template.values(query, document, instruction)
    filled = [fill_part(part, values) for part in template.parts_for(instruction)]
    return [(text, spans) for text, spans in filled if text]


def _lengths(features: Features) -> NDArray[np.int64]:
    ids = features.get("input_ids", ())
    return np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))


def cut_into_passages(
    tokenizer: PreTrainedTokenizerBase,
    query: str,
    documents: Sequence[str],
    max_length: int,
    stride: int | None = None,
    template: Template | None = None,
    max_query_length: int | None = None,
) -> list[list[str]]:
    """Cut documents between tokens into passages that fit behind a query, neighbours overlapping.

    Args:
        tokenizer: A fast one, which knows where in a text a token ends.
        query: The first text of every pair.
        documents: D texts.
        max_length: Tokens of a pair at most.
        stride: Tokens by which neighbours overlap. Default: a quarter of a passage.
        template: As for `encode_pairs`.
        max_query_length: As for `encode_pairs`.

    Returns:
        The passages of each document, at least one; the last one ends with the document.

    Raises:
        ConfigurationError: The query leaves no room, or the stride is outside its range.
    """
    pair = (query, "")
    encoded = encode_pairs(tokenizer, [pair], template=template, max_query_length=max_query_length)
    taken = int(encoded.lengths[0])
    # In one piece with a template's own text, a passage may begin or end with other tokens than by itself.
    room = max_length - taken - (0 if template is None else 2)
    if room < 1:
        raise ConfigurationError(
            f"The query takes {taken} of {max_length} tokens, which leaves no room for a document. "
            "Shorten it, or leave long_documents out."
        )
    overlap = room // 4 if stride is None else stride
    if not 0 <= overlap < room:
        raise ConfigurationError(f"stride={stride}: expected 0 to {room - 1}, as a passage holds {room} tokens.")
    with _lock(tokenizer):
        whole = tokenizer(list(documents), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        _cut_text(text, offsets, room, overlap)
        for text, offsets in zip(documents, whole["offset_mapping"], strict=True)
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
            `cross_trainer.saved.reading.padding_side(model, tokenizer)`, as many models are exact on one side only.

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
