"""The `stoker` command: bad input is one line and exit code 2; commands that are not built say so."""

from __future__ import annotations

import subprocess
import sys

import pytest

from stoker.cli import COMMANDS, main
from stoker.cli.options import engine_options, sampling_options


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["generate", "x", "--max-tokens", "zero"], "invalid int value"),
        (["generate", "x", "--max-tokens", "0"], "max_tokens"),
        (["generate", "x", "--temperature", "-1"], "temperature"),
        (["generate", "x", "--batching", "sometimes"], "continuous"),
        (["generate", "x", "--block-size", "7"], "multiple of 8"),
        (["generate", "x", "--tensor-parallel-size", "2"], "not built yet"),
        (["generate", "x", "--max-tok", "3"], "unrecognized arguments"),
        (["generate", "x", "--file", "y"], "not both"),
        (["generate", "--file", "/no/such/file"], "/no/such/file"),
        (["nonsense"], "invalid choice"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is loaded, nothing hangs, no traceback."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("stoker")
    assert message in captured.err


def test_a_command_that_is_not_built_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name from the documents is never an unknown word."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for command in COMMANDS:
        assert main([command, "--port", "80"]) == 2
        assert "not built yet" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """Both spellings."""
    assert main(["--version"]) == 0
    short = capsys.readouterr().out.strip()
    assert main(["version"]) == 0
    assert short in capsys.readouterr().out


def test_options_are_passed_on_only_where_given() -> None:
    """Defaults live in EngineConfig, SamplingParams and generation_config.json, not in the command."""
    import argparse

    from stoker.cli import generate

    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    args = parser.parse_args(["x"])
    assert engine_options(args) == {}
    assert sampling_options(args) == {}
    args = parser.parse_args(
        [
            "x",
            "--no-enable-prefix-caching",
            "--max-num-seqs",
            "3",
            "--kv-cache-memory",
            "0.5",
            "--stop",
            "a",
            "--stop",
            "b",
        ]
    )
    assert engine_options(args) == {"enable_prefix_caching": False, "max_num_seqs": 3, "kv_cache_memory": 0.5}
    assert sampling_options(args) == {"stop": ["a", "b"]}


def test_help_needs_neither_torch_nor_a_model() -> None:
    """`stoker --help` answers at once."""
    code = "import sys; from stoker.cli import main; code = main(['generate', '--help']); assert 'torch' not in sys.modules; sys.exit(code)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--max-num-seqs" in done.stdout
