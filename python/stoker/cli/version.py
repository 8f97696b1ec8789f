"""`stoker version`: what is installed, for a bug report."""

from __future__ import annotations

import argparse
import importlib.util
import platform
from importlib import metadata


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace) -> int:
    """Prints a line for each thing whose version matters."""
    import stoker

    print(f"stoker   {stoker.__version__}")
    print(f"python   {platform.python_version()} on {platform.platform()}")
    for package in ("torch", "tokenizers", "numpy"):
        try:
            print(f"{package:<8} {metadata.version(package)}")
        except metadata.PackageNotFoundError:  # noqa: PERF203
            print(f"{package:<8} not installed")
    for module, what in (("_core", "native core"), ("_cuda", "CUDA ops")):
        built = importlib.util.find_spec(f"stoker.{module}") is not None
        print(f"{module:<8} {what} {'built' if built else 'not built'}")
    return 0
