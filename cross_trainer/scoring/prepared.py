"""The model as it is scored with: a view that shares its weights, made anew when the model has changed.

prepared = PreparedModel(padding_free=True, compile=False, quantize=None)
logits = prepared.of(model, pad_token_id)(**batch).logits
"""

from __future__ import annotations

import copy
import itertools
import logging
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from cross_trainer.errors import ConfigurationError, UnsupportedModelError
from cross_trainer.execution.linears import quantize_linears
from cross_trainer.execution.padding_free import LEAST_PADDING, enable_padding_free
from cross_trainer.execution.view import compute_head_in_float32, scoring_view, skip_unread_tokens, structure
from cross_trainer.internals import tensor_state

logger = logging.getLogger(__name__)


@dataclass
class PreparedModel:
    """What a model is scored with.

    Args:
        padding_free: Compute no padding in batches that have some, where the model allows it.
        compile: Run the view through `torch.compile`.
        quantize: "int8" rounds weights and inputs of the layers to 8 bits, on CPUs only.
    """

    padding_free: bool
    compile: bool
    quantize: Literal["int8"] | None
    _made: tuple[list[Any], list[Any], Callable[..., Any]] | None = field(default=None, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: all but the view, which is made of the model again."""
        return {**self.__dict__, "_made": None}

    def check(self, device: torch.device) -> None:
        """Check that a model on this device can be prepared so.

        Raises:
            ConfigurationError: It can't.
        """
        if self.quantize not in {None, "int8"} or (self.quantize and device.type != "cpu"):
            raise ConfigurationError(
                f'quantize={self.quantize!r} on {device}: there is "int8", on the CPU. On GPUs use dtype="bfloat16".'
            )

    def of(self, model: Any, pad_token_id: int | None) -> Callable[..., Any]:
        """The view of a model, see `scoring_view`."""
        parts, versions = structure(model), []
        if self.quantize:
            versions = list(map(tensor_state, itertools.chain(model.parameters(), model.buffers())))
        if self._made is None or not _same(self._made[0], parts) or self._made[1] != versions:
            view = self._make(model, pad_token_id)
            self._made = (structure(model), versions, view)
        return self._made[2]

    def on(
        self, devices: Sequence[str | torch.device], model: Any, pad_token_id: int | None
    ) -> list[tuple[Callable[..., Any], torch.device]]:
        """The view of a model, where it is among these devices, and views of copies of it on the others.

        Raises:
            ConfigurationError: These are no devices, or the model can't be prepared so on one of them.
        """
        if isinstance(devices, str) or not devices:
            raise ConfigurationError(f'devices={devices!r}: expected a list of devices, such as ["cuda:0", "cuda:1"].')
        if self.compile:
            raise ConfigurationError("devices= can't be used with compile=True. Start a process for each device.")
        found: list[tuple[Callable[..., Any], torch.device]] = []
        for device in map(torch.device, devices):
            self.check(device)
            if device == model.device and all(device != other for _, other in found):
                found.append((self.of(model, pad_token_id), device))
            else:
                found.append((self._make(copy.deepcopy(model).to(device), pad_token_id), device))
        return found

    def _make(self, model: Any, pad_token_id: int | None) -> Callable[..., Any]:
        view = scoring_view(model, pad_token_id)
        if self.quantize:
            view = quantize_linears(view)
        handle = None
        if self.padding_free:
            try:
                handle = enable_padding_free(view)
            except UnsupportedModelError as reason:
                logger.info("Padding-free execution is off: %s", reason)
        compute_head_in_float32(view)
        if skip_unread_tokens(view) and handle is not None:
            handle.least_padding = LEAST_PADDING  # padded batches are the ones that it saves most of a layer for
        made: Callable[..., Any] = torch.compile(view, dynamic=True) if self.compile else view
        return made


def _same(one: list[Any], other: list[Any]) -> bool:
    """Whether two lists hold the same objects."""
    return len(one) == len(other) and all(map(operator.is_, one, other))
