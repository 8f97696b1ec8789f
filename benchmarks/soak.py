"""Mixed load with random aborts for a long time: whether memory stays flat and every counter balances in the end.

    nice -n 10 python benchmarks/soak.py --minutes 30 --json out.json

Clients stream and do not, chat, ask for schemas, several answers, stop strings and nonsense, and walk away at random: before
the answer, in the middle of a stream, in the middle of their own request. The KV pool is small, and the host pool smaller, so
that requests step aside both ways: swapped out, and retracted where the host has no room. Memory is each process's resident set, the slope
that of a line through the last two thirds of the run.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import random
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "python")]

from support.server_process import RunningServer, start_server, stop_server  # noqa: E402

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 999}}, "required": ["a"]}
DEMO = {
    "model": "stoker-demo",
    "progress": False,
    "max_num_seqs": 12,
    "num_kv_blocks": 33,
    "swap_space": 0.00025,
    "preemption": "swap",
    "admission": "greedy",
    "max_model_len": 512,
}


def body(rng: random.Random, structured: bool) -> tuple[str, dict[str, Any]]:
    """A path and a request for it; one in ten is wrong."""
    ask: dict[str, Any] = {"max_tokens": rng.randint(1, 60), "stream": rng.random() < 0.6}
    ask["temperature"] = rng.choice([0, 1])
    kind = rng.randrange(10)
    if kind < 3:
        words = " ".join(
            rng.choices(
                ["the", "red", "house", "was", "at", "the", "river", "and", "it", "had", "a", "door"],
                k=rng.randint(1, 60),
            )
        )
        ask["messages"] = [{"role": "user", "content": words}]
        return "/v1/chat/completions", ask
    ask["prompt"] = [rng.randrange(300, 1500) for _ in range(rng.randint(1, 120))]
    if kind == 3:
        ask["n"] = rng.randint(2, 4)
    elif kind == 4:
        ask["stop"] = ["e", "the"]
    elif kind == 5 and structured:
        ask["response_format"] = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    elif kind == 6 and structured:
        ask["structured_outputs"] = {"regex": f"[a-z]{{{rng.randint(1, 400)}}}"}
    elif kind == 7:
        ask["logprobs"] = 2
    elif kind == 8:
        ask |= rng.choice([{"n": -1}, {"prompt": []}, {"top_p": 7}, {"max_tokens": "x"}, {"prompt": [10**9]}])
    return "/v1/completions", ask


class Load:
    """Clients that never stop asking, and what they saw."""

    def __init__(self, port: int, structured: bool, pause: float) -> None:
        self._port = port
        self._structured = structured
        self._pause = pause
        self.sent = 0
        self.seen: collections.Counter[str] = collections.Counter()

    async def client(self, number: int, until: float) -> None:
        """One of them."""
        rng = random.Random(number)
        while time.monotonic() < until:
            try:
                self.seen[await asyncio.wait_for(self._ask(rng), 60)] += 1
            except asyncio.TimeoutError:
                self.seen["hung"] += 1
            except OSError as error:
                self.seen[f"{type(error).__name__}"] += 1
            await asyncio.sleep(rng.expovariate(1 / self._pause))

    async def _ask(self, rng: random.Random) -> str:
        path, ask = body(rng, self._structured)
        data = json.dumps(ask).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        leave = rng.random()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            if leave < 0.02:
                writer.write(head + data[: len(data) // 2])
                await writer.drain()
                return "left in its request"
            writer.write(head + data)
            await writer.drain()
            self.sent += 1
            if leave < 0.1:
                await asyncio.sleep(rng.random() * 0.05)
                return "left before the answer"
            status = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1].decode()
            if leave < 0.3 and ask["stream"]:
                await reader.read(rng.randint(1, 3000))
                return "left in a stream"
            text = await reader.read()
            if status == "200" and ask["stream"] and b"[DONE]" not in text:
                return "stream without an end"
            return status
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def memory_mb(pid: int) -> float:
    """Resident set."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def slope(samples: list[tuple[float, float]]) -> float:
    """MB a minute over the last two thirds."""
    kept = samples[len(samples) // 3 :]
    if len(kept) < 3:
        return 0.0
    xs, ys = [t / 60 for t, _ in kept], [mb for _, mb in kept]
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / sum((x - mx) ** 2 for x in xs)


def engine_stats(server: RunningServer) -> dict[str, float]:
    """What /ready says of the engine."""
    with server.client() as client:
        return dict(client.get("/ready").json()["engine"])


def counters(server: RunningServer) -> dict[str, float]:
    """/metrics, summed over labels."""
    found: collections.Counter[str] = collections.Counter()
    with server.client() as client:
        page = client.get("/metrics").text
    for line in page.splitlines():
        match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        # Only requests of the API: those for /ready are the tests' own.
        if match and not ("path=" in (match[2] or "") and "/v1/" not in match[2]):
            found[match[1]] += float(match[3])
    return found


def run(
    minutes: float, clients: int, pause: float, engine: dict[str, Any], structured: bool = True
) -> dict[str, Any]:
    """One soak; figures, with `wrong` naming all that does not balance."""
    with tempfile.TemporaryDirectory() as folder:
        server = start_server(Path(folder), engine, access_log=False)
        try:
            return _run(server, minutes, clients, pause, structured)
        finally:
            stop_server(server)


def _run(
    server: RunningServer, minutes: float, clients: int, pause: float, structured: bool
) -> dict[str, Any]:
    pids = server.children()
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in pids}
    load = Load(int(server.url.rsplit(":", 1)[1]), structured, pause)
    began = time.monotonic()

    async def watch() -> None:
        while True:
            for name, pid in pids.items():
                samples[name].append((time.monotonic() - began, memory_mb(pid)))
            await asyncio.sleep(max(0.5, min(10.0, minutes)))

    async def all_clients() -> None:
        watcher = asyncio.create_task(watch())
        until = began + 60 * minutes
        await asyncio.gather(*(load.client(number, until) for number in range(clients)))
        watcher.cancel()

    asyncio.run(all_clients())
    end = time.monotonic() + 20
    while (stats := engine_stats(server))["num_running"] + stats[
        "num_waiting"
    ] > 0 and time.monotonic() < end:
        time.sleep(0.2)
    time.sleep(0.5)
    stats, metrics = engine_stats(server), counters(server)
    wrong = [f"{name}: {stats[name]:g} left" for name in ("num_running", "num_waiting") if stats[name]]
    held = stats["num_blocks"] - stats["num_free_blocks"] - stats["num_cached_blocks"]
    wrong += [f"{held:g} KV blocks are held by nobody"] * (held != 0)
    host_held = stats["num_host_blocks"] - stats["num_free_host_blocks"]
    wrong += [f"{host_held:g} host blocks are held by nobody"] * (host_held != 0)
    wrong += [
        f"{n} {what}"
        for what, n in load.seen.items()
        if what in ("hung", "stream without an end") or what[0] == "5"
    ]
    answered = metrics["stoker_http_requests_total"]
    half = load.seen["left in its request"]
    wrong += [f"{load.sent} requests sent, {answered:g} counted"] * (
        not load.sent <= answered <= load.sent + half
    )
    if server.children() != pids:
        wrong.append("a process was started anew")
    return {
        "minutes": minutes,
        "clients": clients,
        "requests": load.sent,
        "seen": dict(load.seen),
        "answers_finished": metrics["stoker_answers_finished_total"],
        "output_tokens": stats["output_tokens"],
        "preemptions": {
            "retract": stats["num_preemptions"] - stats["num_swaps"],
            "swap": stats["num_swaps"],
        },
        "memory_mb": {name: [round(s[0][1], 1), round(s[-1][1], 1)] for name, s in samples.items()},
        "slope_mb_per_minute": {name: round(slope(s), 4) for name, s in samples.items()},
        "wrong": wrong,
    }


def main() -> None:
    """Runs, prints and judges."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=14)
    parser.add_argument("--pause", type=float, default=0.3, help="mean seconds between a client's requests")
    parser.add_argument("--json")
    args = parser.parse_args()
    figures = run(args.minutes, args.clients, args.pause, DEMO)
    print(json.dumps(figures, indent=2))
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n")
    figures["wrong"] += [f"no {kind}" for kind, count in figures["preemptions"].items() if not count]
    if figures["wrong"] or max(figures["slope_mb_per_minute"].values()) >= 1.0:
        raise SystemExit("the soak failed")


if __name__ == "__main__":
    main()
