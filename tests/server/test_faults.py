"""What production does to a server: clients that leave, processes that die, SIGTERM under load, keys."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from support.server_process import RunningServer


def wait_until(condition: object, seconds: float = 10.0) -> None:
    """Until `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def running(server: RunningServer) -> float:
    return float(httpx.get(server.url + "/ready").json()["engine"]["num_running"])


def test_a_client_that_leaves_ends_its_request(server: RunningServer) -> None:
    """No seat is held for someone who is gone."""
    for _ in range(5):
        with (
            server.client() as client,
            client.stream(
                "POST", "/v1/completions", json={"prompt": [60], "max_tokens": 2000, "stream": True}
            ) as response,
        ):
            next(response.iter_lines())
    wait_until(lambda: running(server) == 0)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_a_client_that_leaves_before_a_whole_answer_ends_its_request(
    server: RunningServer, path: str
) -> None:
    """Also where nothing streams and so nothing is written that could fail."""
    ask = {"prompt": [60], "messages": [{"role": "user", "content": "hi"}], "input": "hi", "max_tokens": 1900}
    ask["max_output_tokens"] = 1900
    with server.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post(path, json=ask, timeout=0.5)
    assert httpx.get(server.url + "/ready").json()["engine"]["output_tokens"] > 0
    wait_until(lambda: running(server) == 0, 4.0)  # by itself it would run for ten seconds


@pytest.mark.parametrize("own_server", [{"restart_engine": True}], indirect=True)
def test_a_dead_engine_ends_streams_and_is_started_anew(own_server: RunningServer) -> None:
    """SIGKILL mid-stream: the client gets an error event, and the next request is served."""
    with own_server.client() as client:
        with client.stream(
            "POST", "/v1/completions", json={"prompt": [61], "max_tokens": 2000, "stream": True}
        ) as response:
            lines = response.iter_lines()
            next(lines)
            os.kill(own_server.children()["engine_main"], signal.SIGKILL)
            rest = "\n".join(lines)
        assert '"error"' in rest
        own_server.wait_ready()
        assert client.post("/v1/completions", json={"prompt": [62], "max_tokens": 3}).status_code == 200


@pytest.mark.parametrize("own_server", [{}], indirect=True)
def test_sigterm_drains_and_leaves_no_orphan(own_server: RunningServer) -> None:
    """Running requests finish, the exit code is 0, all children are gone."""
    children = own_server.children()
    answers: list[httpx.Response] = []

    def ask() -> None:
        with own_server.client() as client:
            answers.append(client.post("/v1/completions", json={"prompt": [63], "max_tokens": 200}))

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: running(own_server) == 1)
    own_server.process.terminate()
    assert own_server.process.wait(20) == 0
    thread.join(10)
    assert [answer.status_code for answer in answers] == [200]
    assert not any(Path(f"/proc/{pid}").exists() for pid in children.values())


@pytest.mark.parametrize("own_server", [{}], indirect=True)
def test_no_orphans_when_the_supervisor_is_killed(own_server: RunningServer) -> None:
    """SIGKILL of the first process ends the others too."""
    children = own_server.children()
    assert set(children) == {"engine_main", "worker_main"}
    own_server.process.kill()
    own_server.process.wait(5)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children.values()), 20)


@pytest.mark.parametrize("own_server", [{"api_workers": 2}], indirect=True)
def test_a_killed_worker_is_replaced(own_server: RunningServer) -> None:
    """Its requests end in the engine, and the port goes on answering."""
    os.kill(own_server.children()["worker_main"], signal.SIGKILL)
    time.sleep(0.3)
    own_server.wait_ready()
    with own_server.client() as client:
        assert client.post("/v1/completions", json={"prompt": [64], "max_tokens": 3}).status_code == 200


@pytest.mark.parametrize("own_server", [{"api_keys": ["one", "two"]}], indirect=True)
def test_keys_are_asked_for(own_server: RunningServer) -> None:
    """Both keys open, anything else is a 401; health needs none."""
    body = {"prompt": [65], "max_tokens": 1}
    for key, status in (("one", 200), ("two", 200), ("three", 401), ("onetwo", 401)):
        answer = httpx.post(
            own_server.url + "/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"}
        )
        assert answer.status_code == status
    assert httpx.post(own_server.url + "/v1/completions", json=body).status_code == 401
    assert httpx.get(own_server.url + "/health").status_code == 200


@pytest.mark.parametrize("own_server", [{"max_queue": 1}], indirect=True)
def test_an_idle_server_is_quiet(own_server: RunningServer) -> None:
    """Nothing polls: over three idle seconds all processes together use little CPU time."""

    def used() -> float:
        pids = [own_server.process.pid, *own_server.children().values()]
        ticks = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13] for pid in pids]
        return sum(int(user) + int(system) for user, system in ticks) / os.sysconf("SC_CLK_TCK")

    time.sleep(0.5)
    before = used()
    time.sleep(3)
    assert used() - before < 0.15
