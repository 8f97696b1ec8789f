"""The object files of the instruction sets export their table and nothing else.

A weak symbol in one of them (an inline function of a header, a template) could be linked into another's path, and an
older processor would die of an illegal instruction far from any dispatch.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

BUILD = Path(__file__).resolve().parents[2] / "build"
OBJECTS = sorted(BUILD.glob("**/kernels_*.cpp.o"))


@pytest.mark.skipif(shutil.which("nm") is None, reason="binutils are not installed")
@pytest.mark.skipif(not OBJECTS, reason="stoker was installed, not built here: there are no object files")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda p: p.name)
def test_only_the_table_is_exported(path: Path) -> None:
    """One strong function, no weak ones."""
    lines = subprocess.run(["nm", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    symbols = [line.split()[-2:] for line in lines.splitlines()]
    assert not [name for kind, name in symbols if kind in "wWvVu"]
    exported = [name for kind, name in symbols if kind in "TDBR"]
    assert len(exported) == 1
    assert "_kernels" in exported[0]
