"""Load and faults together: hundreds of streams, clients that leave, a step that fails, a disk that is full, SIGTERM under load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stoker.text import Tokenizer
from support.scripted_engine import expected
from support.server_process import CHECKPOINT, RunningServer, start_server, stop_server

TOKENIZER = Tokenizer.from_folder(CHECKPOINT)


def scripted(**options: Any) -> dict[str, Any]:
    """The real loop and scheduler over the scripted executor."""
    return {"factory": "scripted_engine:build", "model_path": str(CHECKPOINT), **options}


@pytest.fixture
def loaded(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    """A server of the test's own; parameters: engine options, settings."""
    engine, settings = request.param
    running = start_server(tmp_path, scripted(**engine), **settings)
    yield running
    stop_server(running)


def port_of(server: RunningServer) -> int:
    return int(server.url.rsplit(":", 1)[1])


def request(ask: dict[str, Any]) -> bytes:
    """A streaming completion as bytes."""
    data = json.dumps({"stream": True, "ignore_eos": True, **ask}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}"
    return head.encode() + b"\r\n\r\n" + data


async def stream(port: int, ask: dict[str, Any], leave_after: int | None = None) -> bytes:
    """The body of the answer; or its first bytes, after which the client closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request(ask))
        return unchunked(await reader.read()) if leave_after is None else await reader.read(leave_after)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def unchunked(raw: bytes) -> bytes:
    """The body of a whole HTTP answer."""
    body, rest = b"", raw.partition(b"\r\n\r\n")[2]
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body, rest = body + rest[:length], rest[length + 2 :]
    return body


def text_of(body: bytes) -> str:
    """What the frames of a stream say, put together."""
    lines = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: {")]
    return "".join(json.loads(line)["choices"][0]["text"] for line in lines).rstrip("\ufffd")


def engine_of(server: RunningServer) -> dict[str, float]:
    with server.client() as client:
        return dict(client.get("/ready").json()["engine"])


def wait_until(condition: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


def all_is_free(server: RunningServer) -> bool:
    """No req, no seat, no block is held."""
    s = engine_of(server)
    held = s["num_blocks"] - s["num_free_blocks"] - s["num_cached_blocks"]
    return s["num_running"] == s["num_waiting"] == held == 0


@pytest.mark.parametrize("loaded", [({"steps_per_second": 200.0, "max_num_seqs": 64}, {})], indirect=True)
def test_streams_are_whole_and_in_order_while_others_leave(loaded: RunningServer) -> None:
    """500 streams, half of which are left at a random place: the others are exactly what their prompts give, and every
    seat and block comes back."""
    rng = random.Random(0)
    prompts = [[rng.randrange(300, 1500) for _ in range(rng.randint(3, 30))] for _ in range(500)]
    jobs = [(prompt, seed, rng.randint(5, 40)) for seed, prompt in enumerate(prompts)]
    leave = [rng.randint(0, 4000) if i % 2 else None for i in range(500)]

    async def main() -> list[bytes]:
        seats = asyncio.Semaphore(128)

        async def one(i: int) -> bytes:
            prompt, seed, count = jobs[i]
            async with seats:
                ask = {"prompt": prompt, "seed": seed, "max_tokens": count}
                return await stream(port_of(loaded), ask, leave[i])

        return await asyncio.gather(*(one(i) for i in range(500)))

    answers = asyncio.run(main())
    stayed = [i for i in range(500) if leave[i] is None]
    for i, tokens in zip(stayed, expected([jobs[i] for i in stayed]), strict=True):
        assert answers[i].endswith(b"data: [DONE]\n\n")
        assert text_of(answers[i]) == TOKENIZER.decode(tokens).rstrip("\ufffd")
    wait_until(lambda: all_is_free(loaded))


def test_seats_are_free_two_steps_after_their_clients_left(tmp_path: Path) -> None:
    """All seats are taken and somebody waits; the clients leave. The step that runs then, and with overlap the one behind
    it that is launched already, still hold the seats; none after them does, and who waited gets one."""
    turns_file = tmp_path / "turns.json"
    engine = scripted(steps_per_second=10.0, max_num_seqs=8, steps_file=str(turns_file))
    server = start_server(tmp_path, engine)

    async def main() -> float:
        ask = {"prompt": [400, 401], "max_tokens": 4000}
        readers = [asyncio.create_task(stream(port_of(server), ask)) for _ in range(8)]
        while (await asyncio.to_thread(engine_of, server))["num_running"] < 8:
            await asyncio.sleep(0.02)
        waiting = asyncio.create_task(stream(port_of(server), {"prompt": [402], "max_tokens": 1}))
        while (await asyncio.to_thread(engine_of, server))["num_waiting"] < 1:
            await asyncio.sleep(0.02)
        left = time.monotonic()
        for reader in readers:
            reader.cancel()
        assert (await waiting).endswith(b"data: [DONE]\n\n")
        return left

    try:
        left = asyncio.run(main())
    finally:
        stop_server(server)
    turns = json.loads(turns_file.read_text())
    before = max(steps for moment, steps, _ in turns if moment <= left)
    free = min(steps for moment, steps, running in turns if moment > left and running < 8)
    assert free - before <= 2


@pytest.mark.parametrize("loaded", [({"steps_per_second": 50.0, "failing_steps": [30]}, {})], indirect=True)
def test_a_step_that_fails_ends_its_requests_only(loaded: RunningServer) -> None:
    """The streams in that step end with an error event; those that come later are served."""

    async def main() -> list[bytes]:
        asks = [{"prompt": [500 + i], "max_tokens": 200} for i in range(12)]
        return await asyncio.gather(*(stream(port_of(loaded), ask) for ask in asks))

    answers = asyncio.run(main())
    assert all(b'"error"' in answer and b"step 30 failed" in answer for answer in answers)
    with loaded.client() as client:
        fine = client.post("/v1/completions", json={"prompt": [7, 8], "max_tokens": 3, "ignore_eos": True})
        assert fine.status_code == 200
        assert fine.json()["usage"]["completion_tokens"] == 3
    wait_until(lambda: all_is_free(loaded))


@pytest.mark.parametrize("loaded", [({"steps_per_second": 100.0}, {"drain_timeout": 10.0})], indirect=True)
def test_sigterm_under_load_lets_streams_end(loaded: RunningServer) -> None:
    """Sixty streams that run get all their tokens, the exit code is 0, and no process is left."""
    children = loaded.children()
    answers: list[bytes] = []

    async def main() -> None:
        asks = [{"prompt": [600 + i], "max_tokens": 100} for i in range(60)]
        answers.extend(await asyncio.gather(*(stream(port_of(loaded), ask) for ask in asks)))

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    wait_until(lambda: engine_of(loaded)["num_running"] == 60)
    loaded.process.send_signal(signal.SIGTERM)
    assert loaded.process.wait(20) == 0
    thread.join(10)
    assert len(answers) == 60
    assert all(
        answer.endswith(b"data: [DONE]\n\n") and b'"finish_reason":"length"' in answer for answer in answers
    )
    assert not any(Path(f"/proc/{pid}").exists() for pid in children.values())


@pytest.mark.parametrize("loaded", [({"steps_per_second": 50.0}, {"api_workers": 2})], indirect=True)
def test_a_killed_worker_takes_only_its_own_streams(loaded: RunningServer) -> None:
    """SIGKILL of a front-end worker mid-stream: its requests end in the engine, and the port goes on answering."""

    async def main() -> list[bytes | BaseException]:
        asks = [{"prompt": [700 + i], "max_tokens": 150} for i in range(20)]
        running = [asyncio.create_task(stream(port_of(loaded), ask)) for ask in asks]
        while (await asyncio.to_thread(engine_of, loaded))["num_running"] < 20:
            await asyncio.sleep(0.05)
        os.kill(loaded.busiest_worker(), signal.SIGKILL)
        return await asyncio.gather(*running, return_exceptions=True)

    answers = asyncio.run(main())
    whole = [one for one in answers if isinstance(one, bytes) and one.endswith(b"data: [DONE]\n\n")]
    assert len(whole) < 20
    loaded.wait_ready()
    wait_until(lambda: all_is_free(loaded))
    with loaded.client() as client:
        assert client.post("/v1/completions", json={"prompt": [5], "max_tokens": 2}).status_code == 200


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_costs_no_request(tmp_path: Path) -> None:
    """Every write of a log fails: requests are answered all the same, and the end is clean."""
    server = start_server(tmp_path, scripted(), log=Path("/dev/full"))
    try:
        with server.client() as client:
            for i in range(20):
                ask = {"prompt": [5 + i], "max_tokens": 2, "ignore_eos": True}
                assert client.post("/v1/completions", json=ask).status_code == 200
            assert client.post("/v1/completions", json={"n": -1}).status_code == 400
    finally:
        stop_server(server)
    assert server.process.returncode == 0


@pytest.mark.parametrize("loaded", [({"steps_per_second": 1000.0}, {})], indirect=True)
def test_a_reader_that_sleeps_holds_up_nobody(loaded: RunningServer) -> None:
    """Its frames are kept and come in order when it reads again; others do not wait for it."""
    prompt, seed, count = [900, 901], 3, 3000
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", port_of(loaded)))
        slow.sendall(request({"prompt": prompt, "seed": seed, "max_tokens": count}))
        wait_until(lambda: engine_of(loaded)["output_tokens"] >= 1000)
        quick = asyncio.run(stream(port_of(loaded), {"prompt": [902], "max_tokens": 20}))
        assert quick.endswith(b"data: [DONE]\n\n")
        wait_until(lambda: engine_of(loaded)["num_running"] == 0)
        raw = b""
        while part := slow.recv(1 << 16):
            raw += part
    (tokens,) = expected([(prompt, seed, count)])
    assert unchunked(raw).endswith(b"data: [DONE]\n\n")
    assert text_of(unchunked(raw)) == TOKENIZER.decode(tokens).rstrip("\ufffd")
    wait_until(lambda: all_is_free(loaded))


def test_a_short_soak_balances(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mixed load of benchmarks/soak.py for a few seconds: what was sent was counted, nothing is left."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import soak

    figures = soak.run(0.1, 12, 0.05, scripted(steps_per_second=200.0, max_num_seqs=8), structured=False)
    assert figures["wrong"] == []
    assert figures["requests"] > 50
    assert figures["seen"].get("left in a stream", 0) > 0
