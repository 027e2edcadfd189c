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

import contextlib
import ctypes
import itertools
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from cross_trainer.data.pairs import Pair, Truncation, encode_pairs, pad_pairs, unique_pairs
from cross_trainer.data.templates import Template
from cross_trainer.errors import ConfigurationError, check_whole, short
from cross_trainer.execution.token_budget import cut
from cross_trainer.execution.transfer import to_device
from cross_trainer.internals import process_state
from cross_trainer.saved.activation import Activation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Scores: TypeAlias = "NDArray[np.float32]"

DEFAULT_WINDOW = 4096


@dataclass
class _Window:
    """A window ready for the model: its batches, the distinct pairs in each of them, and each pair's place."""

    batches: list[dict[str, Tensor]]
    pieces: list[Tensor]
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
        padding_side: Where rows are padded, see `padding_side`.
        equal_lengths: Batch pairs of one length only, for models that read padding.
        replicas: Copies of the model on further devices, each with its device. Batches are dealt out in turn.
        distributed: Every process of a distributed run scores the same pairs with an engine of its own: batches are
            dealt out to the processes in turn, and each process gets all scores. Batches are those of one process, and
            so are the scores.
        template: The text that pairs stand in, see `encode_pairs`.
        max_query_length: Tokens of the first text at most.
    """

    model: Callable[..., Any]
    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    max_tokens: int
    batch_size: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    truncation: Truncation = "longest_first"
    padding_side: str | None = None
    equal_lengths: bool = False
    replicas: Sequence[tuple[Callable[..., Any], torch.device]] = ()
    distributed: bool = False
    template: Template | None = None
    max_query_length: int | None = None

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
            on_batch: Called after each batch with the number of its rows, and of those that others score meanwhile.

        Yields:
            [W, C] of each window, or [W] if the activation returns that, in float32.
        """
        check_whole("window", window)
        source, broken, first = iter(pairs), 0, None
        chunks = iter(lambda: list(itertools.islice(source, window)), [])
        chunk = next(chunks, None)
        if chunk is None:
            return
        with ThreadPoolExecutor(1, thread_name_prefix="tokenise") as thread:  # it starts with the second window
            ready = self._prepare(chunk, symmetric, distinct)
            try:
                while True:
                    following = next(chunks, None)
                    job = None if following is None else thread.submit(self._prepare, following, symmetric, distinct)
                    scores = self._finish(self._run(ready, on_batch), activation, symmetric)
                    bad = np.flatnonzero(~np.isfinite(scores.reshape(len(scores), -1)).all(1))
                    broken, first = broken + len(bad), chunk[bad[0]] if len(bad) and first is None else first
                    yield scores
                    if job is None or following is None:
                        return
                    ready, chunk = job.result(), following
                    _return_freed_memory()
            finally:
                if broken:
                    logger.warning(_NOT_FINITE, broken, short(first))

    def _prepare(self, pairs: list[Pair], symmetric: bool, distinct: bool) -> _Window:
        """Tokenise a window's distinct pairs and cut them into batches."""
        if symmetric:
            pairs = pairs + [(second, first, *own) for first, second, *own in pairs]
        inverse: Any = slice(None)
        if symmetric or not distinct:
            pairs, inverse = unique_pairs(pairs)
        encoded = encode_pairs(
            self.tokenizer, pairs, self.max_length, self.truncation, self.template, self.max_query_length
        )
        lengths = torch.from_numpy(encoded.lengths)
        pieces = cut(lengths, self.max_tokens, padded=True)
        if self.equal_lengths:
            counts = [torch.unique_consecutive(lengths[piece], return_counts=True)[1].tolist() for piece in pieces]
            pieces = [part for piece, sizes in zip(pieces, counts, strict=True) for part in torch.split(piece, sizes)]
        if self.batch_size is not None:
            pieces = [part for piece in pieces for part in torch.split(piece, self.batch_size)]
        features, side = encoded.features, self.padding_side
        batches = [pad_pairs(self.tokenizer, features, piece.tolist(), side=side) for piece in pieces]
        return _Window(batches, pieces, inverse)

    def _run(self, window: _Window, on_batch: Callable[[int], Any]) -> Tensor:
        """Logits of a window's pairs [W, C] in the order given, in float32 on the CPU."""
        process, processes = process_of_all() if self.distributed else (0, 1)
        share = range(process, len(window.batches), processes)
        models = [(self.model, self.device), *self.replicas]

        @torch.inference_mode()
        def run(part: range, model: Callable[..., Any], device: torch.device) -> Tensor:
            parts = []
            for place in part:
                parts.append(model(**to_device(window.batches[place], device)).logits)
                together = range(place - process, min(place - process + processes, len(window.batches)))
                on_batch(sum(len(window.pieces[other]) for other in together))
            return torch.cat(parts).float().cpu()

        dealt = [share[start :: len(models)] for start in range(len(models))]
        work = [(part, *model) for part, model in zip(dealt, models, strict=True) if part]
        if len(work) > 1:
            with ThreadPoolExecutor(len(work), thread_name_prefix="score") as threads:
                logits = list(threads.map(run, *zip(*work, strict=True)))
        else:
            logits = [run(*task) for task in work]
        done = [(part, values) for (part, _, _), values in zip(work, logits, strict=True)]
        if processes > 1:
            from accelerate.utils import gather_object  # type: ignore[import-untyped]

            done = gather_object(done)
        rows = torch.cat([window.pieces[place] for part, _ in done for place in part])
        scored = torch.cat([values for _, values in done])
        return torch.empty_like(scored).index_copy_(0, rows, scored)[window.inverse]

    def _finish(self, logits: Tensor, activation: Activation, symmetric: bool) -> Scores:
        with torch.inference_mode():
            scores = _activate(activation, logits)
        if symmetric:
            scores = scores.reshape(2, -1, *scores.shape[1:]).mean(0)
        return cast("Scores", scores.float().numpy())


def _activate(activation: Activation, logits: Tensor) -> Tensor:
    """Scores [P] or [P, C] of logits [P, C].

    Raises:
        ConfigurationError: The activation returned something else.
    """
    scores: Any = activation(logits)
    if not isinstance(scores, Tensor) or scores.shape[:1] != logits.shape[:1] or scores.dim() > 2:
        found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ConfigurationError(
            f"activation={activation!r} made {found} of logits {tuple(logits.shape)}. It should return a tensor "
            "with one row for each row of the logits."
        )
    return scores


def with_logits(activation: Activation) -> Activation:
    """An activation of one label that keeps the logits: [P, 2] with the score and the logit of each pair.

    >>> with_logits(torch.sigmoid)(torch.tensor([[0.0], [20.0]]))
    tensor([[ 0.5000,  0.0000],
            [ 1.0000, 20.0000]])
    """

    def both(logits: Tensor) -> Tensor:
        scores = _activate(activation, logits)
        if scores.dim() == 2 and scores.shape[1] != 1:
            raise ConfigurationError(
                f"activation={activation!r} made {scores.shape[1]} scores of a pair, which have no order."
            )
        return torch.stack([scores.flatten().float(), logits[:, 0]], 1)

    return both


def best_first(scores: NDArray[Any], logits: NDArray[Any], activation: Activation | None = None) -> NDArray[np.intp]:
    """The order of pairs [P], best first; equal ones keep theirs, and NaN comes last.

    In float32 a sigmoid is 1 from a logit of 17 on. So logits decide where the activation is one of `INCREASING`;
    elsewhere scores do, and logits between equal scores.
    """
    if activation is not None and keeps_order(activation):
        return np.argsort(-logits, kind="stable")
    return np.lexsort((-logits, -scores))


def keeps_order(activation: Activation) -> bool:
    """Whether an activation is known to give a higher logit no lower score: one of `INCREASING`."""
    return type(activation) in INCREASING or activation in INCREASING


def identity(values: Any) -> Any:
    """Logits as scores."""
    return values


INCREASING = (
    *(nn.Identity, nn.Sigmoid, nn.Tanh, nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.ReLU, nn.ReLU6, nn.Hardsigmoid),
    *(torch.sigmoid, torch.tanh, torch.relu, F.sigmoid, F.tanh, F.logsigmoid, F.softplus, F.relu, identity),
)
"""Activations, as classes of modules and as functions, under which a higher logit never has a lower score."""

_NOT_FINITE = "%d scores are not finite, the first one of the pair %s. Another dtype may help."


def _return_freed_memory() -> None:
    """Give freed memory back to the system, where the C library is glibc.

    It keeps what lies between pieces in use, of which windows of all lengths leave more and more: over 200,000 pairs, a
    fifth of the process.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


# -- around a call -----------------------------------------------------------------------------------------------------


def process_of_all() -> tuple[int, int]:
    """This process's number in a distributed run, and how many there are."""
    state = process_state()
    return state.process_index, state.num_processes


@contextlib.contextmanager
def progress(show: bool | None, total: int) -> Iterator[Callable[[int], Any]]:
    """A progress bar over pairs; gives the function to advance it."""
    from tqdm.auto import tqdm

    # tqdm takes None for "on a terminal only".
    with tqdm(total=total, unit="pair", desc="Scoring", disable=None if show is None else not show) as bar:
        yield bar.update
