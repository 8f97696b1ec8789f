"""Which native module computes an op: `_core.cpu` or `_cuda`, by the device; the reference where neither can.

Native functions take positional arguments only, in the order of the public ones (`sample` takes the tensors
of its SeatTable one by one).
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from types import ModuleType

import torch

from stoker.ops import reference

_POSITIONAL = (
    "rms_norm",
    "add_rms_norm",
    "silu_and_mul",
    "gelu_and_mul",
    "rope_and_cache",
    "paged_attention",
    "copy_blocks",
    "swap_blocks",
    "gather_tokens",
    "linear",
    "quantize_rows",
)


class Backend:
    """The ops of one kind of device, as positional functions. `sample` is None where only the reference has
    it.
    """

    rms_norm: Callable[..., None]
    add_rms_norm: Callable[..., None]
    silu_and_mul: Callable[..., None]
    gelu_and_mul: Callable[..., None]
    rope_and_cache: Callable[..., None]
    paged_attention: Callable[..., None]
    copy_blocks: Callable[..., None]
    swap_blocks: Callable[..., None]
    gather_tokens: Callable[..., None]
    linear: Callable[..., None]
    quantize_rows: Callable[..., None]
    sample: Callable[..., None] | None

    def __init__(self, native: ModuleType | None) -> None:
        for name in _POSITIONAL:
            setattr(self, name, getattr(native, name, None) or _positional(getattr(reference, name)))
        self.sample = getattr(native, "sample", None)


def _positional(function: Callable[..., None]) -> Callable[..., None]:
    names = tuple(inspect.signature(function).parameters)
    return lambda *values: function(**dict(zip(names, values, strict=False)))


def _optional_module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None


CPU = Backend(getattr(importlib.import_module("stoker._core"), "cpu", None))
_others: dict[str, Backend] = {}


def backend_of(tensor: torch.Tensor) -> Backend:
    """The backend of a tensor that is not on the CPU; a native module is imported when first needed."""
    device = tensor.device.type
    found = _others.get(device)
    if found is None:
        found = _others[device] = Backend(_optional_module("stoker._cuda") if device == "cuda" else None)
    return found
