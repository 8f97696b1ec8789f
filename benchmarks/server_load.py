"""Many streams at a fixed pace over the scripted executor: what the front end costs a token, and what it adds to the gaps.

    python benchmarks/server_load.py --streams 256 --seconds 60 --json out.json

Starts a server whose engine is the real loop and scheduler over the scripted executor, and in a process of its own a client
that keeps what it reads as raw bytes and the time of each read. Afterwards every stream is compared with the tokens that
its prompt and seed must give. CPU is each process's own count; the first two seconds do not count.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "python")]

from stoker.cli.bench_serve import percentile  # noqa: E402
from support.server_process import CHECKPOINT, RunningServer, start_server, stop_server  # noqa: E402

WARM_UP = 2.0


class Stream(asyncio.Protocol):
    """One request: raw bytes and when they came."""

    def __init__(self, request: bytes, done: asyncio.Future[None]) -> None:
        self._request = request
        self._done = done
        self.parts: list[tuple[float, bytes]] = []

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.parts.append((time.monotonic(), data))
        if data.endswith(b"\r\n0\r\n\r\n") or data == b"0\r\n\r\n":
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(None)


def request(job: tuple[list[int], int, int], port: int) -> bytes:
    """A streamed completion of a job's prompt, seed and number of tokens."""
    prompt, seed, count = job
    body = {"prompt": prompt, "seed": seed, "max_tokens": count, "ignore_eos": True, "stream": True}
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return (head + f"Content-Length: {len(data)}\r\n\r\n").encode() + data


def job_of(client: int, number: int, tokens: int) -> tuple[list[int], int, int]:
    """What client `client` asks for the `number`-th time."""
    rng = random.Random(f"{client}/{number}")
    return [rng.randrange(300, 1500) for _ in range(rng.randint(4, 40))], 1000 * client + number, tokens


def client_process(port: int, streams: int, seconds: float, tokens: int, pipe: Any) -> None:
    """Closed loop: each client asks anew when its answer has ended, until the time is over."""
    finished: list[tuple[int, int, list[tuple[float, bytes]]]] = []

    async def one(client: int, until: float) -> None:
        await asyncio.sleep(client / streams * 0.5)
        number = 0
        while time.monotonic() < until:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            stream = Stream(request(job_of(client, number, tokens), port), done)
            await asyncio.get_running_loop().create_connection(lambda s=stream: s, "127.0.0.1", port)
            await done
            finished.append((client, number, stream.parts))
            number += 1

    async def run() -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(one(client, until) for client in range(streams)))

    import uvloop

    uvloop.run(run())
    pipe.send(("done", time.process_time()))
    pipe.recv()
    pipe.send([check(client, number, parts, tokens) for client, number, parts in finished])


def check(client: int, number: int, parts: list[tuple[float, bytes]], tokens: int) -> dict[str, Any]:
    """One stream's text, frames and gaps."""
    raw = b"".join(data for _, data in parts)
    head, _, body = raw.partition(b"\r\n\r\n")
    payload, rest = [], body
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        payload.append(rest[:length])
        rest = rest[length + 2 :]
    frames = b"".join(payload).split(b"\n\n")
    events = [json.loads(f[6:]) for f in frames if f.startswith(b"data: {")]
    times = [at for at, data in parts if b"data: {" in data]
    return {
        "client": client,
        "number": number,
        "ok": head.startswith(b"HTTP/1.1 200") and frames[-2:] == [b"data: [DONE]", b""],
        "text": "".join(e["choices"][0]["text"] for e in events if "choices" in e),
        "finish": events[-1].get("choices", [{}])[0].get("finish_reason") if events else None,
        "frames": len(events),
        "gaps": [b - a for a, b in itertools.pairwise(times)],
    }


def engine_stats(server: RunningServer) -> dict[str, float]:
    """What /ready says of the engine."""
    with server.client() as client:
        return dict(client.get("/ready").json()["engine"])


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(streams: int, seconds: float, rate: float, tokens: int, workers: int) -> dict[str, Any]:
    """One run."""
    with tempfile.TemporaryDirectory() as folder:
        steps_file = Path(folder) / "steps.json"
        engine = {
            "factory": "scripted_engine:build",
            "model_path": str(CHECKPOINT),
            "steps_per_second": rate,
            "max_num_seqs": streams,
            "steps_file": str(steps_file),
        }
        server = start_server(Path(folder), engine, access_log=False, api_workers=workers)
        port = int(server.url.rsplit(":", 1)[1])
        ours, theirs = multiprocessing.Pipe()
        client = multiprocessing.Process(
            target=client_process, args=(port, streams, seconds, tokens, theirs), daemon=True
        )
        client.start()
        time.sleep(WARM_UP)
        pids = {**server.children(), "supervisor": server.process.pid, "client": client.pid or 0}
        began, before = time.monotonic(), {name: cpu_seconds(pid) for name, pid in pids.items()}
        first = engine_stats(server)["output_tokens"]
        time.sleep(max(1.0, seconds - WARM_UP - 1))
        last = engine_stats(server)["output_tokens"]
        window = time.monotonic() - began
        used = {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()}
        assert ours.recv()[0] == "done"
        ours.send("check")
        found = ours.recv()
        client.join()
        stop_server(server)
        assert server.process.returncode == 0, server.log.read_text()
        moments = [turn[0] for turn in json.loads(steps_file.read_text())]
    wrong = compare(found, tokens)
    gaps = [gap for one in found for gap in one["gaps"]]
    paces = [b - a for a, b in itertools.pairwise(moments)]
    delivered = last - first
    return {
        "streams": streams,
        "workers": workers,
        "steps_per_second": rate,
        "answers": len(found),
        "wrong": wrong,
        "tokens": sum(one["frames"] for one in found),
        "window_seconds": window,
        "tokens_per_second": delivered / window,
        "cpu_us_per_token": {name: 1e6 * seconds / delivered for name, seconds in used.items()},
        "cores": {name: seconds / window for name, seconds in used.items()},
        "engine_gap_ms": {f"p{p}": 1e3 * percentile(paces, p) for p in (50, 99)},
        "client_gap_ms": {f"p{p}": 1e3 * percentile(gaps, p) for p in (50, 99)},
    }


def compare(found: list[dict[str, Any]], tokens: int) -> int:
    """How many streams are not exactly what their prompt and seed give."""
    from stoker.text import Tokenizer
    from support.scripted_engine import expected

    tokenizer = Tokenizer.from_folder(CHECKPOINT)
    wrong = 0
    for begin in range(0, len(found), 256):
        part = found[begin : begin + 256]
        answers = expected([job_of(one["client"], one["number"], tokens) for one in part])
        for one, ids in zip(part, answers, strict=True):
            # Half a character at the end is shown by nobody, or as U+FFFD.
            same = one["text"].rstrip("\ufffd") == tokenizer.decode(ids).rstrip("\ufffd")
            right = one["ok"] and one["finish"] == "length" and same
            wrong += not (right and one["frames"] <= tokens + 1)
    return wrong


def main() -> None:
    """Runs and prints, or writes, the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=40.0, help="steps a second")
    parser.add_argument("--tokens", type=int, default=400, help="of an answer")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json")
    args = parser.parse_args()
    figures = measure(args.streams, args.seconds, args.rate, args.tokens, args.workers)
    print(json.dumps(figures, indent=2))
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
