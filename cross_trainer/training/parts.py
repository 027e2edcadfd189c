"""Weights in parts on several processes, as FSDP keeps them: what then has to be the same on all of them.

Every pass through such a model asks all processes for their parts, so that all have to make the same number of passes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cross_trainer.data.columns import IGNORED_LABEL
from cross_trainer.errors import ConfigurationError
from cross_trainer.internals import replaced, whole_layers

FSDP_WEIGHTS = "pytorch_model_fsdp"  # in a checkpoint: a file, or a folder of parts

# Ways of keeping states, in messages.
FSDP, ZERO_3, ZERO_2 = (
    "a training by FSDP",
    "a training by ZeRO-3 of DeepSpeed",
    "a training by ZeRO up to 2 of DeepSpeed",
)
WHOLE = "a training with all states in each process"


def largest_of(accelerator: Any, count: int) -> int:
    """The largest of all processes' numbers."""
    counts = accelerator.gather(torch.tensor([count], device=accelerator.device))
    return int(counts.max())


def choose_layers(accelerator: Any, model: Any) -> None:
    """Let FSDP2 shard a model layer by layer, where its configuration leaves the layers to the model.

    The layers that a model of transformers names may hold its word embeddings, as BERT's do, which accelerate shards by
    themselves: once too often.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None or plugin.fsdp_version != 2 or plugin.transformer_cls_names_to_wrap:
        return
    table, named = model.get_input_embeddings(), whole_layers(model)
    layers = {type(module).__name__: module for module in model.modules() if type(module).__name__ in named}
    kept = [name for name, layer in layers.items() if all(each is not table for each in layer.modules())]
    if len(kept) < len(layers):
        plugin.transformer_cls_names_to_wrap = kept


def check_budget(accelerator: Any, max_tokens: int | None) -> None:
    """Check that batches may be cut.

    Raises:
        ConfigurationError: DeepSpeed would take a step after each piece.
    """
    if max_tokens is not None and getattr(accelerator.state, "deepspeed_plugin", None) is not None:
        raise ConfigurationError(
            f"max_tokens={max_tokens} cuts batches, and DeepSpeed takes one backward pass for a whole batch. Leave it "
            "out and set a smaller batch with gradient_accumulation_steps, or train with FSDP, see recipes/scale.md."
        )


def check_resumable(folder: str | Path, accelerator: Any) -> None:
    """Check that a checkpoint's weights and optimizer states are kept in the way in which this training keeps them.

    Raises:
        ConfigurationError: They aren't, so that training couldn't go on, or would go on with a new optimizer.
    """
    writer, runs = _written_by(Path(folder)), _kept_by(accelerator.state)
    if Path(folder).is_dir() and writer != runs:
        raise ConfigurationError(
            f"The checkpoint {folder} was written by {writer}, and this is {runs}. Their states differ: go on with "
            "the configuration that it was written with, or train a model on that save_model has written."
        )


def _written_by(checkpoint: Path) -> str:
    if any(checkpoint.glob(f"{FSDP_WEIGHTS}*")):
        return FSDP
    if any(checkpoint.glob("global_step*/zero_pp_rank_*_model_states.pt")):
        return ZERO_3
    return ZERO_2 if any(checkpoint.glob("global_step*/*_model_states.pt")) else WHOLE


def _kept_by(state: Any) -> str:
    deepspeed = getattr(state, "deepspeed_plugin", None)
    if deepspeed is not None:
        return ZERO_3 if int(deepspeed.zero_stage) == 3 else ZERO_2
    return WHOLE if getattr(state, "fsdp_plugin", None) is None else FSDP


@contextlib.contextmanager
def whole_weights(accelerator: Any) -> Iterator[None]:
    """Let a save within write all weights to one folder, also where checkpoints keep them in parts."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        yield
        return
    from torch.distributed.fsdp import StateDictType

    with replaced(plugin, state_dict_type=StateDictType.FULL_STATE_DICT):
        yield


class NoLoss:
    """The loss of a batch of nothing but fillers: 0, in as many passes as the others' loss takes."""

    def __init__(self, loss: Any) -> None:
        self.couples_rows = getattr(loss, "couples_rows", True)

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:  # noqa: ARG002
        """0, with a graph."""
        logits: torch.Tensor = outputs["logits"]
        return logits.sum() * 0.0

    def count_items(self, labels: torch.Tensor) -> torch.Tensor:
        """How many items there are: labels that count."""
        return labels.ne(IGNORED_LABEL).sum()
