"""`import stoker` is quick and needs no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

import stoker


def test_import_loads_neither_torch_nor_anything_slow() -> None:
    """A script that only parses its arguments must not pay for an engine. (What is loaded is tested, not the time.)"""
    code = (
        "import sys, stoker; dir(stoker); stoker.SamplingParams(max_tokens=1); stoker.RequestOutput\n"
        "heavy = {'torch', 'numpy', 'tokenizers', 'jinja2', 'rich', 'huggingface_hub', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_exports_are_found_and_typos_are_attribute_errors() -> None:
    """Every name of __all__ resolves; others fail as attributes do."""
    for name in stoker.__all__:
        assert getattr(stoker, name) is not None
    assert set(stoker.__all__) <= set(dir(stoker))
    with pytest.raises(AttributeError, match="no attribute 'LMM'"):
        stoker.LMM


def test_the_front_imports_no_torch() -> None:
    """`LLM` and the command line load torch only with an engine: bad options are told at once."""
    code = (
        "import sys, stoker.cli.generate, stoker.llm, stoker.async_llm\n"
        "try: stoker.LLM('x', max_num_seq=3)\n"
        "except ValueError as error: assert 'max_num_seq' in str(error)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
