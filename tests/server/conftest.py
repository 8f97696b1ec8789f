"""Servers for the tests: one that all share, and one of a test's own that it may harm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stoker import LLM
from support.server_process import RunningServer, start_server, stop_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server for all tests that do not harm it."""
    running = start_server(tmp_path_factory.mktemp("server"))
    yield running
    stop_server(running)
    assert running.process.returncode == 0, running.log.read_text()


@pytest.fixture
def own_server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    """A server of the test's own, with settings from `@pytest.mark.parametrize("own_server", [{...}], indirect=True)`."""
    running = start_server(tmp_path, **getattr(request, "param", {}))
    yield running
    stop_server(running)


DEMO = {
    "max_num_seqs": 8,
    "num_kv_blocks": 300,
    "max_model_len": 512,
    "max_num_batched_tokens": 64,
    "progress": False,
}


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The embedded model behind the whole server, with two front-end workers."""
    options = {"model": "stoker-demo", **DEMO}
    running = start_server(
        tmp_path_factory.mktemp("demo"), engine=options, embeddings="last", api_workers=2, api_keys=["secret"]
    )
    yield running
    stop_server(running)
    assert running.process.returncode == 0, running.log.read_text()


@pytest.fixture(scope="session")
def offline() -> Iterator[LLM]:
    """The same model in this process: what the server's answers are compared with."""
    llm = LLM("stoker-demo", **DEMO)
    yield llm
    llm.close()
