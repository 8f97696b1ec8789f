"""Servers for the tests: one that all share, and one of a test's own that it may harm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
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
