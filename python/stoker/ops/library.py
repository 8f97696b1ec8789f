"""The ops under torch.library, for torch.compile: `torch.ops.stoker.rms_norm` and the others that a compiled layer holds.

Eager calls do not go this way (a call through the dispatcher costs several times the op's own checks). The KV caches stay
out of compiled graphs: a graph that mutates an input may be given a copy of it, so attention and rope_and_cache belong
between compiled regions and are not registered.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch

from stoker.ops import functions

_SCHEMAS = {
    "rms_norm": "(Tensor(a!) out, Tensor x, Tensor weight, float eps) -> ()",
    "add_rms_norm": "(Tensor(a!) out, Tensor(b!) residual, Tensor x, Tensor weight, float eps) -> ()",
    "silu_and_mul": "(Tensor(a!) out, Tensor x) -> ()",
    "gelu_and_mul": "(Tensor(a!) out, Tensor x) -> ()",
}


@functools.cache
def register() -> object:
    """Registers the ops, once; call it before torch.compile. They stay registered for as long as the process lives."""
    # Any: torch types neither the class nor its methods.
    library: Any = cast("Any", torch.library).Library("stoker", "DEF")
    for name, schema in _SCHEMAS.items():
        library.define(name + schema)
        for key in ("CPU", "CUDA"):
            library.impl(name, getattr(functions, name), key)
        library.impl(name, _nothing, "Meta")
    return library


def _nothing(*_: object) -> None:
    """What an op that only writes into its arguments does to tensors without data."""
