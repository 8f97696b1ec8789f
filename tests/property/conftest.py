"""The C++ test binaries, built once a session."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def _load(name: str):  # type: ignore[no-untyped-def]
    """A module that lies beside this file, under a name of its own."""
    full = f"stoker_property_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, HERE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


@pytest.fixture(scope="session")
def native_tests() -> Path:
    return _load("native_build").build()


@pytest.fixture(scope="session")
def reference_model():  # type: ignore[no-untyped-def]
    return _load("reference_model")
