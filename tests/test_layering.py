"""Holds the two tables of docs/interfaces.md: who may include whom in C++, and who may import whom in Python."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "python" / "stoker"

MAY_INCLUDE = {
    "base": {"base"},
    "sched": {"base", "sched"},
    "loop": {"base", "sched", "loop"},
    "sim": {"base", "sched", "loop", "sim"},
    "tensor": {"base", "tensor"},
    "cpu": {"base", "tensor", "cpu"},
    "cuda": {"base", "tensor", "cuda"},
    "bind": {"base", "sched", "loop", "sim", "tensor", "cpu", "cuda", "bind"},
}

# What each room of csrc/sched must do without: every decision is a function of (state, events, seed).
FORBIDDEN_IN_SCHED = re.compile(
    r"#include\s*<(thread|mutex|chrono|random|atomic|condition_variable|iostream)>|std::rand|Python\.h|pybind11"
)
THREADS = re.compile(r"#include\s*<(thread|pthread\.h)>")

# A package or module of stoker -> what of stoker it may import (itself is always allowed).
PLAIN = {"sampling_params", "structured_outputs", "outputs", "config", "model_config", "errors"}
MAY_IMPORT = {
    "ops": {"_core", "_cuda"},
    "layers": {"ops", "model_config"},
    "models": {"layers", "ops", "model_config"},
    "engine": {"models", "layers", "ops", "_core", "_cuda", "scheduler", "demo_model"} | PLAIN,
    "scheduler": {"_core", "sampling_params"},
    "sim": {"_core", "scheduler", "sampling_params"},
    "text": set(),
    "viz": {"_core", "sim"},
    "demo_model": set(),
    "assemble": {"text"} | PLAIN,
    "llm": {"engine", "text", "assemble", "interrupt", "progress"} | PLAIN,
    "async_llm": {"engine", "text", "llm", "assemble"} | PLAIN,
    "server": {"text"} | PLAIN,
}
MAY_IMPORT_TORCH = {"engine", "models", "layers", "ops"}


def cpp_files() -> list[Path]:
    return [p for p in CSRC.rglob("*") if p.suffix in {".h", ".cpp", ".inl", ".cu", ".cuh"}]


def python_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_cpp_rooms_include_only_what_the_table_allows() -> None:
    """A scheduler that includes a tensor, or a kernel that includes the scheduler, fails here."""
    wrong = []
    for path in cpp_files():
        room = path.relative_to(CSRC).parts[0]
        for include in re.findall(r'#include\s*"([^"]+)"', path.read_text()):
            target = include.split("/")[0]
            if target not in MAY_INCLUDE[room]:
                wrong.append(f"{path.relative_to(ROOT)} includes {include}")
    assert not wrong, "\n".join(wrong)


def test_sched_has_no_clock_thread_randomness_or_python() -> None:
    """Decisions replay only if nothing but events reaches them."""
    files = [p for p in cpp_files() if p.relative_to(CSRC).parts[0] in {"base", "sched"}]
    wrong = [str(p.relative_to(ROOT)) for p in files if FORBIDDEN_IN_SCHED.search(p.read_text())]
    assert files
    assert not wrong, wrong


def test_threads_live_in_loop_and_in_the_cpu_pool_only() -> None:
    """One place to look for races."""
    allowed = {"loop", "cpu"}
    wrong = [
        str(p.relative_to(ROOT))
        for p in cpp_files()
        if p.relative_to(CSRC).parts[0] not in allowed and THREADS.search(p.read_text())
    ]
    assert not wrong, wrong


def imported_modules(path: Path) -> set[str]:
    """Absolute names of all modules a file imports, also inside functions; TYPE_CHECKING blocks do not count."""
    module = ["stoker", *path.relative_to(PACKAGE).with_suffix("").parts]
    package = module[:-1]
    names: set[str] = set()

    class Visitor(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if "TYPE_CHECKING" not in ast.unparse(node.test):
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            names.update(alias.name for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            base = package[: len(package) - (node.level - 1)] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names.update(f"{stem}.{alias.name}" for alias in node.names)

    Visitor().visit(ast.parse(path.read_text()))
    return names


def part_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


@pytest.mark.parametrize("path", python_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_python_imports_go_downward(path: Path) -> None:
    """Nothing imports upward, and torch stays in the four parts that compute."""
    part = part_of(path)
    imports = imported_modules(path)
    if part not in MAY_IMPORT_TORCH:
        assert not any(name.split(".")[0] == "torch" for name in imports), f"{part} must not import torch"
    if part in MAY_IMPORT:
        used = {name.split(".")[1] for name in imports if name.startswith("stoker.")}
        used.discard("__version__")
        assert used <= MAY_IMPORT[part] | {part}, (
            f"{part} may import {sorted(MAY_IMPORT[part])}, not {sorted(used - MAY_IMPORT[part] - {part})}"
        )


def test_every_source_file_says_what_it_is_for() -> None:
    """A file begins with a sentence: a comment in C++, a docstring in Python."""
    silent = [str(p.relative_to(ROOT)) for p in cpp_files() if not p.read_text().lstrip().startswith("//")]
    silent += [
        str(p.relative_to(ROOT))
        for p in python_files()
        if p.read_text().strip() and ast.get_docstring(ast.parse(p.read_text())) is None
    ]
    assert not silent, silent
