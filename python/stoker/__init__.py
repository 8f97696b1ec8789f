"""Stoker, an LLM inference engine: what `import stoker` offers. Everything is imported on first use, so that
the import itself costs milliseconds and needs no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stoker.async_llm import AsyncLLM
    from stoker.llm import LLM
    from stoker.outputs import CompletionOutput, Logprob, RequestOutput
    from stoker.sampling_params import SamplingParams
    from stoker.structured_outputs import StructuredOutputsParams

__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "Logprob",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "__version__",
]

_HOME = {
    "LLM": "stoker.llm",
    "AsyncLLM": "stoker.async_llm",
    "CompletionOutput": "stoker.outputs",
    "Logprob": "stoker.outputs",
    "RequestOutput": "stoker.outputs",
    "SamplingParams": "stoker.sampling_params",
    "StructuredOutputsParams": "stoker.structured_outputs",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'stoker' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("stoker")
    except metadata.PackageNotFoundError:  # run from a source tree that was not installed
        return "0+source"
