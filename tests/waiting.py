"""What would make the CPU wait for a GPU, found without one: the meta device stands in for it.

Its tensors have shapes and no numbers, so whoever reads one shows up here, and gets zeros to go on with.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")
_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
_INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)
_MAKERS = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
_IGNORED = ("torch", "waiting")


def caller() -> str:
    """The function, outside of torch, that is at work: `module.function`."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__", "").split(".")[0] in _IGNORED:
        frame = frame.f_back
    return f"{frame.f_globals['__name__']}.{frame.f_code.co_name}"


class _Numbers(TorchDispatchMode):
    """Sees numbers that are read, and copies between the CPU and the device that one of them waits for."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # in inference mode operators come whole
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            self.found.append(f"read in {caller()}")
            return torch.zeros((), dtype=args[0].dtype).item()
        if func is _COPIES[0] and args[0].is_meta and kwargs.get("device", META).type == "cpu":
            self.found.append(f"read in {caller()}")
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        result = func(*args, **kwargs)
        blocks = func in _COPIES and not args[-1].is_meta and not kwargs.get("non_blocking")
        if func in _INDEXED and any(index is not None and not index.is_meta for index in args[1]):
            blocks = True
        if blocks and result.is_meta:
            self.found.append(f"copied up in {caller()}")
        return result


class _Made(TorchFunctionMode):
    """Sees tensors made of Python's numbers on the device, which is a copy with a wait."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = args[-1] if args else None
        if func in _MAKERS and result.is_meta and not (isinstance(given, torch.Tensor) and given.is_meta):
            self.found.append(f"copied up in {caller()}")
        return result


@contextlib.contextmanager
def waits() -> Iterator[list[str]]:
    """Where the CPU would wait for the device in the context, filled as it goes."""
    found: list[str] = []
    asked, autocast = torch.is_autocast_enabled, torch.autocast

    def is_enabled(device: str | None = None) -> bool:
        return False if device == "meta" else asked() if device is None else asked(device)

    def cast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return contextlib.nullcontext() if device_type == "meta" else autocast(device_type, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, _Numbers(found), _Made(found):
        patch.setattr(torch, "is_autocast_enabled", is_enabled)  # which don't know the device
        patch.setattr(torch, "autocast", cast)
        yield found
