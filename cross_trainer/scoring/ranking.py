"""Documents sorted by their scores for a query: whole ones, or cut into passages that fit beside the query.

    query, texts = read_documents(query, documents)
    passages = cut_documents(tokenizer, max_length, query, texts, "max", stride=None)     # each document's
    found = score_all(passages)                                        # [N, 2]: score and logit of each passage
    order, scores = sort_documents(found, passages, activation, "max")

Shapes: D documents, N passages of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cross_trainer.data.columns import check_text, plain_list
from cross_trainer.data.pairs import cut_into_passages
from cross_trainer.data.templates import Template
from cross_trainer.errors import ConfigurationError, DataError, UnsupportedModelError
from cross_trainer.saved.activation import Activation
from cross_trainer.scoring.engine import best_first

LongDocuments: TypeAlias = Literal["max", "first", "mean"]


def read_documents(query: Any, documents: Any) -> tuple[str, list[str]]:
    """A query and its documents, each checked to be a text.

    Raises:
        DataError: One isn't, or `documents` is a single text or a whole table.
    """
    if isinstance(documents, str | Mapping) or hasattr(documents, "columns") or hasattr(documents, "column_names"):
        raise DataError(
            f"documents is a {type(documents).__name__}: expected the texts themselves, such as a list of them, a "
            "column table['text'] or list(documents.values())."
        )
    query = check_text(query, "The query")
    return query, [check_text(text, f"Document {index}") for index, text in enumerate(plain_list(documents))]


def cut_documents(
    tokenizer: Any,
    max_length: int | None,
    query: str,
    documents: Sequence[str],
    how: LongDocuments | None,
    stride: int | None,
    template: Template | None = None,
    max_query_length: int | None = None,
) -> list[list[str]]:
    """Each document's passages, cut between tokens so that each fits beside the query; whole documents by default.

    Args:
        tokenizer: A fast one, if documents are to be cut.
        max_length: Tokens of a pair at most; None for no limit.
        query: The first text of every pair.
        documents: D texts.
        how: None leaves documents whole, "first" takes the first passage, "max" and "mean" all of them.
        stride: Tokens by which neighbouring passages overlap. Default: a quarter of a passage.
        template: The text that pairs stand in.
        max_query_length: Tokens of the query at most.

    Raises:
        ConfigurationError: There is no such way.
        UnsupportedModelError: The tokenizer is a slow one.
    """
    if how is not None and how not in {"max", "first", "mean"}:
        raise ConfigurationError(f'long_documents={how!r}: expected "max", "first", "mean" or None.')
    if how is not None and not tokenizer.is_fast:
        raise UnsupportedModelError(
            f"long_documents needs the offsets of a fast tokenizer, but {type(tokenizer).__name__} is a slow one."
        )
    if how is None or max_length is None:
        return [[text] for text in documents]
    passages = cut_into_passages(tokenizer, query, documents, max_length, stride, template, max_query_length)
    return [parts[: 1 if how == "first" else None] for parts in passages]


def sort_documents(
    found: NDArray[np.float32], passages: Sequence[Sequence[str]], activation: Activation, how: LongDocuments | None
) -> tuple[list[int], list[float]]:
    """The order of documents, best first, and the score of each.

    Args:
        found: [N, 2], the score and the logit of each passage, document by document.
        passages: Those of each of the D documents.
        activation: What made the scores of the logits.
        how: "max" takes a document's best passage, "mean" the mean of them.
    """
    if how is not None and passages:
        starts = np.cumsum([0, *map(len, passages[:-1])])
        found = (np.maximum if how == "max" else np.add).reduceat(found, starts)
    if how == "mean":
        found /= np.array([[len(parts)] for parts in passages], dtype=np.float32)
    # The mean of activated scores isn't what the mean of logits would be after the activation.
    scores, logits = found.T
    return best_first(scores, logits, None if how == "mean" else activation).tolist(), scores.tolist()
