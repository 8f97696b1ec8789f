"""The OpenAPI document, tried by schemathesis: no 5xx, and no answer that the document does not describe."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.server_process import CHECKPOINT, RunningServer, start_server, stop_server

LONG = os.environ.get("STOKER_LONG") == "1"
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose steps take no time, with answers of at most 64 tokens."""
    options = {
        "factory": "served_engine:build",
        "model_path": str(CHECKPOINT),
        "tick": 0.0,
        "max_model_len": 64,
    }
    running = start_server(
        tmp_path_factory.mktemp("quick"), engine=options, embeddings="last", access_log=False
    )
    yield running
    stop_server(running)


@pytest.mark.timeout(900)
def test_schemathesis_finds_nothing(quick: RunningServer, tmp_path: Path) -> None:
    """Fuzzing of every operation; in the long form also its examples and the coverage of every keyword."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", quick.url + "/openapi.json"),
        *("--checks", CHECKS, "--max-examples", "30" if LONG else "5", "--seed", "1", "--no-color"),
        *(
            "--phases",
            "examples,coverage,fuzzing" if LONG else "fuzzing",
            "--request-timeout",
            "30",
            "--generation-database",
            "none",
        ),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "Traceback" not in quick.log.read_text()
