"""Ctrl-C at the command line: exit code 130, no traceback, what was written stays."""

from __future__ import annotations

import signal
import subprocess
import sys


def test_ctrl_c_ends_a_command_quietly() -> None:
    """The real command with the embedded model, interrupted while it streams."""
    command = [
        sys.executable,
        "-m",
        "stoker.cli",
        "generate",
        "Once upon a time",
        "--ignore-eos",
        "--max-tokens",
        "2000",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        begun = process.stdout.read(5)
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=120)
    assert process.returncode == 130
    assert begun
    assert complaints == ""
