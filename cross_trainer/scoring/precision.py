"""The precision that a model is scored in; "auto" is bfloat16 where the device multiplies it clearly faster.

    loaded = load_in("auto", load, config, device)     # load(torch.bfloat16) or load(torch.float32)

A few matrix products of the model's own widths are timed in both, once in a process for each device and each pair of
widths. In a distributed run all processes follow the first one to have measured, so that the scores of their shares
don't differ. The head computes in float32 either way, see `view.py`; a model whose head can't is float32 as a whole.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from cross_trainer.errors import ConfigurationError, short
from cross_trainer.execution.view import has_float32_head
from cross_trainer.internals import first_to_say
from cross_trainer.saved.loading import Loaded, as_dtype

logger = logging.getLogger(__name__)

AUTO = "auto"

MARGIN = 1.3
"""How many times as fast products have to be in bfloat16 to be worth other scores: the rest of a layer gains less."""

ROWS = {"cpu": 128}
"""Tokens of a timed product on each type of device; 8,192 on others, where fewer would time the call alone."""

WIDEST = 1024
"""Columns that a timed product reads and writes at most: wider ones have the same ratio, and time enough to be
interrupted."""


def check_dtype(dtype: Any, quantize: Any, model_kwargs: Mapping[str, Any]) -> None:
    """Check that "auto" has something to decide, whatever it will decide on this machine.

    Args:
        dtype: As it was asked for.
        quantize: See `PreparedModel`.
        model_kwargs: More arguments of `from_pretrained`.

    Raises:
        ConfigurationError: It hasn't.
    """
    if dtype != AUTO:
        return
    if quantize is not None:
        raise ConfigurationError(
            f'dtype="auto" with quantize={quantize!r}: the layers multiply 8-bit integers whatever the dtype is. Leave '
            "one of them out."
        )
    for key in model_kwargs:
        if key in {"dtype", "torch_dtype"}:
            raise ConfigurationError(
                f'model_kwargs={{{key!r}: {short(model_kwargs[key])}}} contradicts dtype="auto". Give one of them: '
                'in model_kwargs, as in transformers, "auto" means as saved.'
            )
        if key in {"device_map", "quantization_config"}:
            raise ConfigurationError(
                f'dtype="auto" with model_kwargs={{{key!r}: ...}}: it chooses for plain weights on one device. Name '
                'the precision, such as dtype="bfloat16".'
            )


def load_in(
    dtype: str | torch.dtype | None,
    load: Callable[[torch.dtype | None], Loaded],
    config: Callable[[], Any],
    device: Any,
) -> Loaded:
    """Load a model in a precision.

    Args:
        dtype: By its name, or "auto"; None for the saved one.
        load: Loads it.
        config: Reads its config.
        device: Where it will compute.

    Raises:
        ConfigurationError: There is no such precision.
    """
    if dtype != AUTO:
        return load(as_dtype(dtype))
    loaded = load(chosen := faster_dtype(config(), device))
    if chosen == torch.float32 or has_float32_head(loaded.model):
        return loaded
    logger.info(_HEAD, type(loaded.model).__name__)
    return load(torch.float32)


def convert(model: Any, dtype: str | torch.dtype | None) -> Any:
    """A loaded model in a precision, changed in place.

    Raises:
        ConfigurationError: There is no such precision, or "auto" can't choose one.
    """
    if dtype is None:
        return model
    if dtype != AUTO:
        return model.to(as_dtype(dtype))
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise ConfigurationError(
            'dtype="auto" chooses for one device, but the model lies on several. Name the precision, such as '
            'dtype="bfloat16".'
        )
    chosen = faster_dtype(model.config, model.device)
    if chosen != torch.float32 and not has_float32_head(model):
        logger.info(_HEAD, type(model).__name__)
        chosen = torch.float32
    return model.to(chosen)


_HEAD = 'dtype="auto" is float32: the head of %s has layers that would compute in bfloat16, and round scores.'


def faster_dtype(config: Any, device: torch.device) -> torch.dtype:
    """bfloat16 or float32, whichever a model of this config is to be scored in on this device.

    Args:
        config: The model's.
        device: Where it computes.
    """
    text = config.get_text_config()
    width = int(getattr(text, "hidden_size", None) or 768)
    inner = int(getattr(text, "intermediate_size", None) or 4 * width)
    return _decide(torch.device(device), (min(width, WIDEST), min(inner, WIDEST)))


@functools.cache
def _decide(device: torch.device, widths: tuple[int, int]) -> torch.dtype:
    """The precision that is chosen for these widths, and said once."""
    plain, half = seconds(device, widths)
    own = "bfloat16" if plain > MARGIN * half else "float32"
    found = first_to_say(f"dtype on {device.type} of {widths}", own)
    logger.info(
        'dtype="auto" is %s: %d tokens times %d x %d weights take %.3g ms in float32, %.3g ms in bfloat16 on %s%s.',
        *(found, ROWS.get(device.type, 8192), *widths, 1000 * plain, 1000 * half, device),
        "" if found == own else ", but the processes of a run compute alike, and another one has decided so",
    )
    return torch.bfloat16 if found == "bfloat16" else torch.float32


def seconds(device: torch.device, widths: tuple[int, int]) -> tuple[float, float]:
    """The shortest times of a matrix product in float32 and in bfloat16, which take turns.

    Takes 0.05 s, or as long as five products of each do; bfloat16 takes for ever where the device hasn't got it.
    """
    times: list[tuple[float, float]] = []
    plain = _Product(device, widths, torch.float32)
    plain.seconds()  # the first call prepares
    try:
        half = _Product(device, widths, torch.bfloat16)
        half.seconds()
    except (RuntimeError, TypeError) as error:
        logger.info("%s doesn't multiply bfloat16: %s", device, error)
        return plain.seconds(), float("inf")
    start = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - start < 0.05:
        times.append((plain.seconds(), half.seconds()))
    return min(first for first, _ in times), min(second for _, second in times)


class _Product:
    """Tokens through a linear layer of a device and a precision. Draws no random numbers, which would move others'."""

    def __init__(self, device: torch.device, widths: tuple[int, int], dtype: torch.dtype) -> None:
        width, inner = widths
        self.device = device
        sizes = (ROWS.get(device.type, 8192), width), (inner, width)
        self.states, self.weight = (
            torch.linspace(-1, 1, rows * columns, device=device).view(rows, columns).to(dtype)
            for rows, columns in sizes
        )

    def seconds(self) -> float:
        """How long one product takes."""
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            self._wait()
            start = time.perf_counter()
            F.linear(self.states, self.weight)
            self._wait()
            return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
