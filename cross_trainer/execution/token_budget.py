"""Cut a batch into pieces that fit a budget of tokens, with the gradient and the scores of the uncut batch.

    loss = budgeted_step(model, batch, labels, loss_func, max_tokens=2048)     # forward and backward of a training step
    logits = budgeted_forward(model, batch, max_tokens=2048)                   # scoring

The batch size is a matter of statistics: how many pairs an update averages over, how many negatives a query sees. The
budget is a matter of hardware: how many tokens a forward pass holds in memory. Rows are sorted by length and cut into
pieces. A loss that adds up over rows is computed piece by piece. A loss that couples rows (lists, negatives from the
batch) needs all scores at once: they are computed without a graph first, the loss gives its gradient with respect to
them, and a second pass, with the same dropout masks, carries that gradient into the model (gradient cache: Gao et al.
2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup").

Shapes: P pairs, L tokens of a padded row, C classes, G groups, D documents of the largest group.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cross_trainer.data.columns import IGNORED_LABEL
from cross_trainer.errors import ConfigurationError
from cross_trainer.execution.embeddings import sparse_gradients
from cross_trainer.execution.padding_free import unpad_indices
from cross_trainer.execution.transfer import on_cpu, read_once, send

Batch = dict[str, Any]

CPU_TOKENS = 512
"""The most tokens in a piece of a training batch on a CPU: larger ones take more memory there and hardly less time."""


def cut(lengths: Tensor, max_tokens: int, *, padded: bool = False) -> list[Tensor]:
    """Cut rows into pieces within a budget.

    Args:
        lengths: [P] real tokens of each row.
        max_tokens: how many tokens a piece may hold, at least 1. A longer row is a piece of its own.
        padded: count a piece's padding too, for a model that computes it.

    Returns:
        Row indices, an int64 tensor for each piece; longest rows first, so that the first piece needs the most memory.

    Raises:
        ConfigurationError: `max_tokens` is below 1.
    """
    if max_tokens < 1:
        raise ConfigurationError(
            f"max_tokens is {max_tokens}: give the number of tokens that fit into memory, or None."
        )
    ordered, order = lengths.sort(descending=True, stable=True)
    sizes: list[int] = []
    longest = tokens = 0
    for length in ordered.tolist():
        needed = (sizes[-1] + 1) * longest if padded and sizes else tokens + length
        if not sizes or needed > max_tokens:
            sizes.append(0)
            longest, tokens = length, 0
        sizes[-1] += 1
        tokens += length
    return list(torch.split(order, sizes))


def piece(batch: Batch, rows: Tensor) -> Batch:
    """Some rows of a batch, without the columns in which none of them has a token.

    Args:
        batch: tensors [P, ...], where the shape [P, L] means an entry for each token; other values stay as they are.
        rows: indices into the P rows.

    Returns:
        The batch of these rows. `unpad_idx`, if there is one, is the piece's own.
    """
    shape = batch["input_ids"].shape
    mask = batch.get("attention_mask")
    columns = slice(None)
    own: Batch = {}
    if mask is not None and mask.dim() == 2:
        real = on_cpu(mask)[on_cpu(rows)]
        used = real.any(0).nonzero().flatten().tolist() or [0]
        columns = slice(used[0], used[-1] + 1)
        own["attention_mask"] = send(real[:, columns], mask.device)

    def select(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] != shape[0]:
            return value
        chosen = value[rows.to(value.device)]
        return chosen[:, columns] if value.shape[:2] == shape else chosen

    part = {name: own[name] if name in own else select(value) for name, value in batch.items() if name != "unpad_idx"}
    if "unpad_idx" in batch:
        part["unpad_idx"] = unpad_indices(part["attention_mask"])
    return part


def _own(count: int) -> int:
    """The number of pieces of a process that asks no other one."""
    return count


def budgeted_forward(
    model: nn.Module,
    batch: Batch,
    max_tokens: int,
    *,
    padded: bool = False,
    agreed: Callable[[int], int] = _own,
) -> Tensor:
    """Logits of a batch, computed within a budget.

    Args:
        model: a sequence classifier.
        batch: its inputs [P, L], without labels.
        max_tokens: see `cut`.
        padded: see `cut`.
        agreed: see `budgeted_step`.

    Returns:
        Logits [P, C] in the order of the batch, with a graph where gradients are on.
    """
    batch = _with_known_mask(batch)
    device = batch["input_ids"].device
    pieces = [send(rows, device) for rows in cut(_lengths(batch), max_tokens, padded=padded)]
    turns = [*pieces, *[pieces[0]] * (agreed(len(pieces)) - len(pieces))]
    if len(turns) == 1:
        return _logits(model(**batch))
    parts = [_logits(model(**piece(batch, rows))) for rows in turns]
    return _in_order(parts[: len(pieces)], pieces)


def budgeted_step(
    model: nn.Module,
    batch: Batch,
    labels: Tensor,
    loss_func: Callable[..., Tensor],
    max_tokens: int,
    *,
    num_items: Tensor | float | None = None,
    scale: float = 1.0,
    backward: Callable[[Tensor], Any] = torch.Tensor.backward,
    no_sync: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    unwrapped: nn.Module | None = None,
    padded: bool = False,
    agreed: Callable[[int], int] = _own,
) -> Tensor:
    """Forward and backward of a batch within a budget; the gradients are the uncut batch's, added to the parameters'.

    A batch that fits runs as it is. One that doesn't is cut; on CPUs into pieces of `CPU_TOKENS`, if the budget is
    larger. A loss whose `couples_rows` is False is computed piece by piece. Any other callable is computed on all
    scores together, which takes a second forward pass.

    Args:
        model: what is trained, wrapped or not.
        batch: its inputs [P, L], without labels.
        labels: [P], [P, C] or [G, D] with P entries other than -100.
        loss_func: `(outputs, labels, num_items_in_batch=None) -> scalar`, where `outputs` has "logits" [P, C].
        max_tokens: see `cut`.
        num_items: what the loss divides by, where an update consists of more than this batch.
        scale: factor on the loss: the number of processes, where gradients are averaged over them.
        backward: runs backward from a scalar: `accelerator.backward` for mixed precision and the like.
        no_sync: makes a context in which backward doesn't reduce gradients over processes. All pieces but the last run
            in one, so that processes may have different numbers of pieces.
        unwrapped: the model without its wrapper, for the first pass; needed for wrappers other than
            DistributedDataParallel.
        padded: see `cut`.
        agreed: gives the largest number of pieces that any process has, by its own. Where weights are in parts on
            several processes, each pass asks all of them for theirs: those with fewer pieces repeat one, without a
            gradient. Default: processes may differ.

    Returns:
        The loss times `scale`, a scalar without a graph.

    Raises:
        ConfigurationError: `max_tokens` is below 1, or a loss that is computed piece by piece can't count its items.
    """
    batch = _with_known_mask(batch)
    lengths, device = _lengths(batch), batch["input_ids"].device
    pieces = cut(lengths, max_tokens, padded=padded)
    if len(pieces) > 1 and device.type == "cpu":
        pieces = cut(lengths, min(max_tokens, CPU_TOKENS), padded=padded)
    pieces = [send(rows, device) for rows in pieces]

    def loss_of(outputs: Any, targets: Tensor) -> Tensor:
        return loss_func(outputs, targets, num_items_in_batch=num_items) * scale

    turns = [*pieces, *[pieces[0]] * (agreed(len(pieces)) - len(pieces))]
    if len(turns) == 1:
        loss = loss_of(model(**batch), labels)
        backward(loss)
        return loss.detach()
    if getattr(loss_func, "couples_rows", True):
        bare = _unwrap(model) if unwrapped is None else unwrapped
        return _coupled_step(model, bare, batch, labels, turns, len(pieces), loss_of, backward, no_sync)
    if num_items is None:
        num_items = _count_items(loss_func, labels)
    total = torch.zeros((), device=labels.device)
    for i, rows in enumerate(turns):
        with no_sync() if i + 1 < len(turns) else contextlib.nullcontext():
            with sparse_gradients(model):
                outputs = model(**piece(batch, rows))
            if i >= len(pieces):
                backward(_logits(outputs).sum() * 0.0)
                continue
            if i == 0:
                labels = _by_row(labels, batch["input_ids"].shape[0], _logits(outputs).shape[-1])
            loss = loss_of(outputs, labels[rows.to(labels.device)])
            backward(loss)
        total += loss.detach()
    return total


def _coupled_step(
    model: nn.Module,
    unwrapped: nn.Module,
    batch: Batch,
    labels: Tensor,
    turns: list[Tensor],
    count: int,
    loss_of: Callable[[Any, Tensor], Tensor],
    backward: Callable[[Tensor], Any],
    no_sync: Callable[[], contextlib.AbstractContextManager[Any]],
) -> Tensor:
    """The gradient cache: scores without a graph, their gradient, and a second pass that carries it into the model.

    The first `count` turns are the batch's pieces; the others only keep other processes company.
    """
    from transformers.modeling_outputs import SequenceClassifierOutput

    device = batch["input_ids"].device
    states, parts = [], []
    for rows in turns:
        states.append(_random_state(device))
        with torch.no_grad():
            parts.append(_logits(unwrapped(**piece(batch, rows))))
    scores = _in_order(parts[:count], turns[:count]).requires_grad_()
    loss = loss_of(SequenceClassifierOutput(logits=scores), labels)
    (gradient,) = torch.autograd.grad(loss, scores)
    after = _random_state(device)
    for i, (rows, state) in enumerate(zip(turns, states, strict=True)):
        _set_random_state(device, state)
        with no_sync() if i + 1 < len(turns) else contextlib.nullcontext():
            with sparse_gradients(model):
                logits = _logits(model(**piece(batch, rows)))
            backward((logits * gradient[rows]).sum() * float(i < count))
    _set_random_state(device, after)
    return loss.detach()


def _with_known_mask(batch: Batch) -> Batch:
    """The batch, of whose mask the CPU is asked again and again."""
    mask: Tensor | None = batch.get("attention_mask")
    return batch if mask is None or mask.dim() != 2 else {**batch, "attention_mask": read_once(mask)}


def _lengths(batch: Batch) -> Tensor:
    """[P] real tokens of every row, on the CPU."""
    mask: Tensor | None = batch.get("attention_mask")
    if mask is None or mask.dim() != 2:
        rows, length = batch["input_ids"].shape
        return torch.full((rows,), length)
    return on_cpu(mask).bool().sum(1)


def _logits(outputs: Any) -> Tensor:
    logits: Tensor = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    return logits


def _in_order(parts: list[Tensor], pieces: list[Tensor]) -> Tensor:
    """Results of the pieces, joined in the order of the batch."""
    back = torch.cat(pieces).argsort()
    joined = torch.cat(parts)
    return joined[back.to(joined.device)]


def _by_row(labels: Tensor, rows: int, width: int) -> Tensor:
    """Labels with a row for each pair, [P] or [P, C]: lists [G, D] hold pairs in row-major order, -100 elsewhere."""
    is_grid = labels.dim() == 2 and labels.shape != (rows, width)
    if not is_grid:
        return labels
    known = on_cpu(labels)
    return send(known[known != IGNORED_LABEL], labels.device)


def _count_items(loss_func: Any, labels: Tensor) -> Tensor:
    """What a loss that adds up over rows divides by, unless it is given the number."""
    if not hasattr(loss_func, "count_items"):
        raise ConfigurationError(
            f"{loss_func!r} adds up over rows (couples_rows is False), so a batch cut into pieces needs its number of "
            "items: pass num_items, or give the loss a count_items(labels)."
        )
    count: Tensor = loss_func.count_items(labels)
    return count


def _unwrap(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """What dropout draws from, on the CPU and on the batch's device."""
    accelerated = device.type == "cuda"
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if accelerated else None


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
