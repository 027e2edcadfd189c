"""Score pairs of texts: read them in any form, tokenise ahead of the model, batch them by tokens.

    engine = ScoringEngine(model, tokenizer, max_length=512, max_tokens=1024)
    for scores in engine.score(pairs, activation, window=4096):     # [W, C] of each window, in the order given
        ...

Pairs are taken a window at a time. While the model scores one window a background thread tokenises the next, so memory
doesn't grow with the number of pairs. Within a window, a pair given twice is computed once, and pairs are sorted by
their number of tokens and cut into batches that hold `max_tokens`: a batch of short pairs has many rows, one of long
pairs few, and next to nothing is padding. A window's scores depend on nothing outside it, so a run resumed at a
multiple of the window's size ends in the same bytes.

Shapes: P pairs, W pairs of a window, L tokens of a padded row, C classes, H hidden size.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cross_trainer.data.pairs import Pair, Truncation, encode_pairs, pad_pairs, unique_pairs
from cross_trainer.errors import ConfigurationError
from cross_trainer.execution.token_budget import cut
from cross_trainer.saved.loading import Activation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Scores: TypeAlias = "NDArray[np.float32]"

DEFAULT_WINDOW = 4096


@dataclass
class _Window:
    """A window ready for the model: its batches, the distinct pair in each row of theirs, and each pair's place."""

    batches: list[dict[str, Tensor]]
    rows: Tensor
    inverse: Any  # an index


@dataclass
class ScoringEngine:
    """Scores streams of pairs with one model.

    Args:
        model: A sequence classifier in evaluation mode.
        tokenizer: Its tokenizer, with a padding token.
        max_length: Tokens of a pair; longer pairs are cut. None: as long as they are.
        max_tokens: What a batch may hold, padding included. A longer pair makes a batch of its own.
        batch_size: Rows that a batch has at most, whatever they hold.
        device: Where the model computes.
        truncation: Which text of a longer pair is cut, see `encode_pairs`.
    """

    model: Callable[..., Any]
    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    max_tokens: int
    batch_size: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    truncation: Truncation = "longest_first"

    def score(
        self,
        pairs: Iterable[Pair],
        activation: Activation,
        *,
        symmetric: bool = False,
        distinct: bool = False,
        window: int = DEFAULT_WINDOW,
        on_batch: Callable[[int], Any] = lambda _: None,
    ) -> Iterator[Scores]:
        """Score pairs in order, one window after the other.

        Args:
            pairs: Any number of them; read in the caller's thread, at most two windows ahead of the scores.
            activation: From logits [P, C] in float32 to scores [P] or [P, C], row by row.
            symmetric: Average over both orders of the two texts.
            distinct: No pair is given twice, so that none has to be looked for.
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
            ready = self._prepare(chunk, symmetric, distinct)
            while True:
                following = next(chunks, None)
                job = None if following is None else thread.submit(self._prepare, following, symmetric, distinct)
                yield self._finish(self._run(ready, on_batch), activation, symmetric)
                if job is None:
                    return
                ready = job.result()
                _return_freed_memory()

    def _prepare(self, pairs: list[Pair], symmetric: bool, distinct: bool) -> _Window:
        """Tokenise a window's distinct pairs and cut them into batches."""
        if symmetric:
            pairs = pairs + [(second, first) for first, second in pairs]
        inverse: Any = slice(None)
        if symmetric or not distinct:
            pairs, inverse = unique_pairs(pairs)
        encoded = encode_pairs(self.tokenizer, pairs, self.max_length, self.truncation)
        pieces = cut(torch.from_numpy(encoded.lengths), self.max_tokens, padded=True)
        if self.batch_size is not None:
            pieces = [part for piece in pieces for part in torch.split(piece, self.batch_size)]
        batches = [pad_pairs(self.tokenizer, encoded.features, piece.tolist()) for piece in pieces]
        return _Window(batches, torch.cat(pieces), inverse)

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
            raise ConfigurationError(
                f"activation={activation!r} made {found} of logits {tuple(logits.shape)}. It should return a tensor "
                "with one row for each row of the logits."
            )
        if symmetric:
            scores = scores.reshape(2, -1, *scores.shape[1:]).mean(0)
        return cast("Scores", scores.float().numpy())


def _return_freed_memory() -> None:
    """Give freed memory back to the system, where the C library is glibc.

    It keeps what lies between pieces in use, of which windows of all lengths leave more and more: over 200,000 pairs, a
    fifth of the process.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


# -- the model as it is scored with ------------------------------------------------------------------------------------
