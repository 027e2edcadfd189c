"""Score pairs of texts: read them in any form, tokenise ahead of the model, batch them by tokens.

    engine = ScoringEngine(model, tokenizer, max_length=512, max_tokens=1024)
    for scores in engine.score(pairs, activation, window=4096):     # [W, C] of each window, in the order given
        ...

Pairs are taken a window at a time. While the model scores one window a background thread tokenises the next, so memory doesn't grow
with the number of pairs. Within a window, a pair given twice is computed once, and pairs are sorted by their number of tokens and cut
into batches that hold `max_tokens`: a batch of short pairs has many rows, one of long pairs few, and next to nothing is padding.
A window's scores depend on nothing outside it, so a run resumed at a multiple of the window's size ends in the same bytes.

Shapes: P pairs, W pairs of a window, L tokens of a padded row, C classes, H hidden size.
"""

from __future__ import annotations

import copy
import ctypes
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from cross_trainer.columns import resolve_columns
from cross_trainer.errors import ConfigurationError, DataError, short
from cross_trainer.loading import Activation
from cross_trainer.token_budget import cut

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Pair: TypeAlias = "tuple[str, str]"
Scores: TypeAlias = "NDArray[np.float32]"

DEFAULT_WINDOW = 4096

# -- reading -----------------------------------------------------------------------------------------------------------


def is_single(rows: Any) -> bool:
    """Whether what is to be scored is one pair: two texts, a dict of texts or an example, rather than rows of them."""
    if isinstance(rows, Mapping):
        return any(isinstance(value, str) for value in rows.values())
    if hasattr(rows, "texts"):
        return True
    is_flat = isinstance(rows, list | tuple) or (isinstance(rows, np.ndarray) and rows.ndim == 1)
    return is_flat and len(rows) > 0 and isinstance(rows[0], str)


def read_pairs(rows: Any, columns: Sequence[str] | None = None) -> Iterator[Pair]:
    """Pairs of texts from rows of any form, each checked as it is read.

    Args:
        rows: An iterable of tuples, lists, arrays, dicts or examples with `texts`; a `datasets.Dataset`; an array [P, 2]; or two
            columns `{"first": [...], "second": [...]}`. Of dicts and data sets the first two text columns are taken.
        columns: The names of the two text columns, instead.

    Yields:
        (first text, second text) of every row.

    Raises:
        DataError: A row isn't a pair of texts; the message names the row.
    """
    if isinstance(rows, Mapping):
        yield from _from_columns(rows, columns)
        return
    if isinstance(rows, str) or not isinstance(rows, Iterable):
        raise DataError(f"Expected pairs of texts, found {short(rows)}. Give rows such as [(a, b), ...].")
    names = columns
    for index, row in enumerate(rows):
        if isinstance(row, Mapping):
            if names is None:
                names = _text_columns(row)
            missing = [name for name in names if name not in row]
            if missing:
                raise DataError(f"Row {index} has no column {missing[0]!r}, but {list(row)}. "
                                "Name the columns of the texts with columns=(first, second).")  # fmt: skip
            texts: Any = tuple(row[name] for name in names)
        else:
            texts = row.texts if hasattr(row, "texts") else row
        yield _check_pair(texts, index)


def _from_columns(columns: Mapping[str, Any], names: Sequence[str] | None) -> Iterator[Pair]:
    lists = {name: list(values) for name, values in columns.items()}
    if not any(lists.values()) and (names is not None or len(lists) > 1):
        return
    first_row = {name: values[0] for name, values in lists.items() if values}
    first, second = _text_columns(first_row) if names is None else names
    for name in (first, second):
        if name not in lists:
            raise DataError(f"Column {name!r} is missing; there are {list(lists)}.")
    if len(lists[first]) != len(lists[second]):
        raise DataError(f"Column {first!r} has {len(lists[first])} rows and column {second!r} has {len(lists[second])}. "
                        "Give both columns the same length.")  # fmt: skip
    for index, texts in enumerate(zip(lists[first], lists[second], strict=True)):
        yield _check_pair(texts, index)


def _text_columns(row: Mapping[str, Any]) -> tuple[str, str]:
    try:
        columns = resolve_columns([row])
    except DataError as error:
        raise DataError(
            f"Found no two text columns among {list(row)}: name them with columns=(first, second)."
        ) from error
    if columns.shape not in {"pair", "tuple"}:
        raise DataError(f"Columns {list(row)} hold lists of documents or tokens, not pairs of texts. Use rank(query, documents), or name "
                        "two columns of texts with columns=(first, second).")  # fmt: skip
    return columns.query, columns.documents[0]


def _check_pair(row: Any, index: int) -> Pair:
    texts = row.tolist() if isinstance(row, np.ndarray) else row
    if isinstance(texts, str) or not isinstance(texts, Sequence) or len(texts) != 2:
        count = "" if isinstance(texts, str) or not isinstance(texts, Sequence) else f" with {len(texts)} entries"
        raise DataError(f"Row {index}: expected two texts, found {short(texts)} ({type(row).__name__}{count}). "
                        "Give each row as (first text, second text).")  # fmt: skip
    first, second = texts
    if isinstance(first, str) and isinstance(second, str):
        return first, second
    number, text = (2, second) if isinstance(first, str) else (1, first)
    raise DataError(f"Row {index}: text {number} is {short(text)} ({type(text).__name__}), expected a string. "
                    "Filter such rows out, or give an empty string.")  # fmt: skip


def unique_pairs(pairs: Sequence[Pair]) -> tuple[list[Pair], NDArray[np.int64]]:
    """Each distinct pair once, in the order of first appearance, and for every pair its place among them [P]."""
    places: dict[Pair, int] = {}
    inverse = np.fromiter((places.setdefault(pair, len(places)) for pair in pairs), dtype=np.int64, count=len(pairs))
    return list(places), inverse


# -- scoring -----------------------------------------------------------------------------------------------------------


@dataclass
class _Window:
    """A window ready for the model: its batches, the distinct pair in each row of theirs, and each pair's place."""

    batches: list[dict[str, Tensor]]
    rows: Tensor
    inverse: Tensor


@dataclass
class ScoringEngine:
    """Scores streams of pairs with one model.

    Args:
        model: A sequence classifier in evaluation mode.
        tokenizer: Its tokenizer, with a padding token.
        max_length: Tokens of a pair; longer pairs are cut, the longer text first. None: as long as they are.
        max_tokens: What a batch may hold, padding included. A longer pair makes a batch of its own.
        batch_size: Rows that a batch has at most, whatever they hold.
        lock: Held while tokenising: a fast tokenizer can't be used by two threads at once.
    """

    model: Callable[..., Any]
    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    max_tokens: int
    batch_size: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    lock: Any = field(default_factory=threading.Lock)

    def score(
        self,
        pairs: Iterable[Pair],
        activation: Activation,
        *,
        symmetric: bool = False,
        window: int = DEFAULT_WINDOW,
        on_batch: Callable[[int], Any] = lambda _: None,
    ) -> Iterator[Scores]:
        """Score pairs in order, one window after the other.

        Args:
            pairs: Any number of them; read in the caller's thread, at most two windows ahead of the scores.
            activation: From logits [P, C] in float32 to scores [P] or [P, C], row by row.
            symmetric: Average over both orders of the two texts.
            window: Pairs that are sorted and batched together.
            on_batch: Called after each batch with the number of its rows.

        Yields:
            [W, C] of each window, or [W] if the activation returns that, in float32.
        """
        if window < 1:
            raise ConfigurationError(f"window={window}: expected at least 1 pair.")
        source = iter(pairs)
        chunks = iter(lambda: list(itertools.islice(source, window)), [])
        chunk = next(chunks, None)
        if chunk is None:
            return
        with ThreadPoolExecutor(1, thread_name_prefix="tokenise") as thread:  # it starts with the second window
            ready = self._prepare(chunk, symmetric)
            while True:
                following = next(chunks, None)
                job = None if following is None else thread.submit(self._prepare, following, symmetric)
                yield self._finish(self._run(ready, on_batch), activation, symmetric)
                if job is None:
                    return
                ready = job.result()
                _return_freed_memory()

    def _prepare(self, pairs: list[Pair], symmetric: bool) -> _Window:
        """Tokenise a window's distinct pairs and cut them into batches."""
        if symmetric:
            pairs = pairs + [(second, first) for first, second in pairs]
        distinct, inverse = unique_pairs(pairs)
        with self.lock:
            encoded = self.tokenizer(
                [first for first, _ in distinct],
                [second for _, second in distinct],
                truncation=self.max_length is not None,
                max_length=self.max_length,
                return_attention_mask=False,
                verbose=False,
            )
        lengths = np.fromiter(map(len, encoded["input_ids"]), dtype=np.int64, count=len(distinct))
        pieces = cut(torch.from_numpy(lengths), self.max_tokens, padded=True)
        if self.batch_size is not None:
            pieces = [part for piece in pieces for part in torch.split(piece, self.batch_size)]
        batches = [self._collate(encoded.data, piece.tolist(), lengths[piece.numpy()]) for piece in pieces]
        return _Window(batches, torch.cat(pieces), torch.from_numpy(inverse))

    def _collate(self, encoded: Mapping[str, Any], rows: list[int], lengths: NDArray[np.int64]) -> dict[str, Tensor]:
        """Some rows of the window, padded to the longest of them [P, L]."""
        width = int(lengths.max())
        positions = np.arange(width)
        real = positions < lengths[:, None]
        if self.tokenizer.padding_side == "left":
            real = real[:, ::-1]
        fillers = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}
        batch = {"attention_mask": torch.from_numpy(real.astype(np.int64))}
        for name, values in encoded.items():
            padded = np.full(real.shape, fillers.get(name, 0), dtype=np.int64)
            flat = itertools.chain.from_iterable(values[row] for row in rows)
            padded[real] = np.fromiter(flat, dtype=np.int64, count=int(lengths.sum()))
            batch[name] = torch.from_numpy(padded)
        return batch

    @torch.inference_mode()
    def _run(self, window: _Window, on_batch: Callable[[int], Any]) -> Tensor:
        """Logits of a window's pairs [W, C] in the order given, in float32 on the CPU."""
        parts = []
        for batch in window.batches:
            moved = {name: values.to(self.device, non_blocking=True) for name, values in batch.items()}
            parts.append(self.model(**moved).logits)
            on_batch(len(batch["input_ids"]))
        logits = torch.cat(parts).float().cpu()
        return torch.empty_like(logits).index_copy_(0, window.rows, logits)[window.inverse]

    def _finish(self, logits: Tensor, activation: Activation, symmetric: bool) -> Scores:
        with torch.inference_mode():
            scores = activation(logits)
        if not isinstance(scores, Tensor) or scores.shape[:1] != logits.shape[:1] or scores.dim() > 2:
            found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ConfigurationError(f"activation={activation!r} made {found} of logits {tuple(logits.shape)}. It should return a tensor "
                                     "with one row for each row of the logits.")  # fmt: skip
        if symmetric:
            scores = scores.reshape(2, -1, *scores.shape[1:]).mean(0)
        return cast("Scores", scores.float().numpy())


def _return_freed_memory() -> None:
    """Give freed memory back to the system, where the C library is glibc.

    It keeps what lies between pieces in use, of which windows of all lengths leave more and more: over 200,000 pairs, a fifth of the
    process.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


# -- the model as it is scored with ------------------------------------------------------------------------------------


def scoring_view(model: nn.Module) -> nn.Module:
    """A copy of a model's structure around the same weights, in evaluation mode, to be changed for scoring alone.

    Training the model goes on under the view; its mode, its hooks and its outputs stay as they are.
    """
    shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared).eval()


FIRST_TOKEN_FAMILIES = {
    "bert": "BertForSequenceClassification",
    "camembert": "CamembertForSequenceClassification",
    "electra": "ElectraForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "xlm-roberta": "XLMRobertaForSequenceClassification",
}
"""Classifiers, by model type, whose head reads nothing of the last layer but its first token."""


def skip_unread_tokens(model: Any) -> bool:
    """Let the last layer compute the first token alone, where that is all that the classification head reads.

    The first token still attends to every other one; what is saved are the queries, the attention outputs and the feed-forward
    part of the other tokens, 5 of 6 of the last layer's matrix products, which nobody would read. Scores are the same to float precision.

    Args:
        model: A scoring view, changed in place. Its hidden states and attentions lose the other tokens.

    Returns:
        Whether the model is one of `FIRST_TOKEN_FAMILIES`, in a configuration that allows it.
    """
    config = model.config
    if type(model).__name__ != FIRST_TOKEN_FAMILIES.get(config.model_type) or not type(model).__module__.startswith(
        "transformers.models."
    ):
        return False
    if config.is_decoder or config.add_cross_attention or config._attn_implementation not in {"eager", "sdpa"}:  # noqa: SLF001
        return False
    layers = model.base_model.encoder.layer
    layers[-1] = _FirstTokenLayer(layers[-1])
    return True


class _FirstTokenLayer(nn.Module):
    """A layer of BERT's kind that returns its first token only: hidden states [P, L, H] to [P, 1, H]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer: Any = layer

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("padding_free_layout") is not None or kwargs.get("output_attentions"):
            return self.layer(hidden, attention_mask, *args, **kwargs)
        attention = self.layer.attention.self
        first = hidden[:, :1]

        def heads(states: Tensor) -> Tensor:
            return states.view(*states.shape[:2], attention.num_attention_heads, -1).transpose(1, 2)

        mask = None if attention_mask is None else attention_mask[:, :, :1]
        context = F.scaled_dot_product_attention(
            heads(attention.query(first)),
            heads(attention.key(hidden)),
            heads(attention.value(hidden)),
            attn_mask=mask,
            scale=attention.scaling,
        )
        attended = self.layer.attention.output(context.transpose(1, 2).flatten(2), first)
        return self.layer.output(self.layer.intermediate(attended), attended)


def quantize_linears(model: Any) -> None:
    """Replace the linear layers of a scoring view's transformer by 8-bit ones, in place; the classification head stays.

    Weights are rounded once, to 255 steps of each output's own scale; inputs are rounded as they come, to 255 steps of each
    token's scale.
    """
    for module in list(model.base_model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, _Int8Linear(child))


class _Int8Linear(nn.Module):
    """A linear layer whose matrix product is computed on 8-bit integers."""

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp_min(1e-12) / 127
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8).t().contiguous())
        self.register_buffer("scale", scale)
        bias = torch.zeros_like(scale) if linear.bias is None else linear.bias.detach().float()
        self.register_buffer("bias", bias)

    def forward(self, states: Tensor) -> Tensor:
        flat = states.flatten(0, -2).float()
        low, high = flat.aminmax(dim=1, keepdim=True)
        scale = torch.maximum(high, -low).clamp_min(1e-12) / 127
        product = torch._int_mm((flat * scale.reciprocal()).round().to(torch.int8), self.weight)  # noqa: SLF001
        scores = torch.addcmul(self.bias, product.float() * scale, self.scale)
        return scores.view(*states.shape[:-1], -1).to(states.dtype)
