"""A decode step's host and idle time on one GPU: how long the device waits for the host, and how long the host takes.

    python benchmarks/gpu/step.py [--model qwen3-0.6b] [--batches 1,64,256] [--neighbours N] [--out FILE]

host: from the last token of a step visible on the host (the wait for it returned) to the next graph launch returned, by the
loop's trace: commit, delivery, on the caller's thread his Python too, schedule, launch. `caller`: the loop driven by
`step()`, answers taken at their ends; `thread`: by its own thread, with every token handed to Python on another one, as in
a server. idle: (step period - the same graphs replayed back to back) / step period, the period by the median over the
steps around the one whose graphs were replayed. --neighbours: processes that stream through memory beside it, which is
what other tenants of a machine do to its caches.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import e2e
import torch

from stoker.engine.cuda_graphs import WHOLE

PROMPT, TOKENS = 512, 129
AROUND = 40
REPLAYS = 40
NOISE = "import numpy as n\na = n.ones(1 << 23)\nb = n.ones(1 << 23)\nwhile True: n.add(a, b, out=b)"


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    running = [subprocess.Popen([sys.executable, "-c", NOISE]) for _ in range(count)]
    try:
        time.sleep(0.5 if count else 0)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def replayed_us(engine: e2e.Runner, rows: int) -> float:
    """The graphs of the step that was launched last, back to back."""
    runner = engine.engine.runner
    bucket = next(b for b in runner.graphs[WHOLE].buckets if b >= rows)
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record(runner._stream)
    for _ in range(REPLAYS):
        runner._launcher.replay(WHOLE, bucket)
    end.record(runner._stream)
    end.synchronize()
    return begin.elapsed_time(end) / REPLAYS * 1e3


def decode_steps(engine: e2e.Runner, batch: int) -> list[dict[str, Any]]:
    """The loop's trace of the steps that decoded the whole batch."""
    return [
        t
        for t in engine.engine.loop.trace(TOKENS + 32)
        if t["num_decode_rows"] == batch and not t["num_prefill_rows"]
    ]


def add(engine: e2e.Runner, batch: int, seed: int, stream: bool) -> None:
    for prompt in e2e.random_prompts(batch, PROMPT, seed):
        params = engine.params(temperature=0.6, max_tokens=TOKENS, ignore_eos=True)
        engine.engine.add_request(f"s{engine.next_rid}", prompt, params, stream=stream)
        engine.next_rid += 1


def on_callers_thread(engine: e2e.Runner, batch: int) -> tuple[list[dict[str, Any]], float]:
    """The steps around the one whose graphs were replayed, without those whose times that spoiled; the replays' time."""
    add(engine, batch, 40 + batch, stream=False)
    turns = -(-batch * PROMPT // engine.engine.runner._forward.max_tokens) + TOKENS // 2
    for _ in range(turns):  # nothing else between them: it would count as the host's time
        engine.engine.step()
    spoiled = engine.engine.loop.trace(1)[0]["batch_id"]
    replayed = replayed_us(engine, batch)
    while engine.engine.has_unfinished():
        engine.engine.step()
    steps = decode_steps(engine, batch)
    return [t for t in steps if 4 < abs(t["batch_id"] - spoiled) <= AROUND], replayed


def on_its_own_thread(engine: e2e.Runner, batch: int) -> list[dict[str, Any]]:
    add(engine, batch, 80 + batch, stream=True)
    engine.engine.start()
    while engine.engine.has_unfinished():
        engine.engine.wait(1.0)
    engine.engine.loop.stop()
    return decode_steps(engine, batch)[10:-10]


def summary(steps: list[dict[str, Any]]) -> dict[str, float]:
    """Medians in us, and of the host's time the tenth largest of a hundred too."""
    collected = {t["batch_id"]: t["committed"] - t["commit_ns"] for t in steps}
    host = sorted(
        (t["began"] + t["receive_ns"] + t["schedule_ns"] + t["launch_ns"] - collected[t["batch_id"] - 2])
        / 1e3
        for t in steps
        if t["batch_id"] - 2 in collected
    )
    periods = [b - a for (i, a), (j, b) in itertools.pairwise(sorted(collected.items())) if j == i + 1]
    names = ("schedule_ns", "launch_ns", "commit_ns", "device_ns")
    return {
        "period_us": statistics.median(periods) / 1e3,
        "host_us_median": statistics.median(host),
        "host_us_p90": host[int(0.9 * len(host))],
        **{name.replace("_ns", "_us"): statistics.median(t[name] for t in steps) / 1e3 for name in names},
    }


def measure(engine: e2e.Runner, batch: int) -> dict[str, Any]:
    steps, replayed = on_callers_thread(engine, batch)
    caller = summary(steps)
    return {
        "batch": batch,
        "graphs_us": replayed,
        "idle_share": (caller["period_us"] - replayed) / caller["period_us"],
        "caller": caller,
        "thread": summary(on_its_own_thread(engine, batch)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    e2e.add_engine_arguments(parser)
    parser.add_argument("--batches", default="1,64,256")
    parser.add_argument("--neighbours", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    engine = e2e.Runner(args)
    engine.timed(e2e.random_prompts(64, 300, 98), [32] * 64, 0.6)
    results: dict[str, Any] = {
        "command": "python " + " ".join(sys.argv),
        "gpu": torch.cuda.get_device_name(),
        "rows": [],
    }
    for count in sorted({0, args.neighbours}):
        with neighbours(count):
            for batch in args.batches.split(","):
                row = {"neighbours": count, **measure(engine, int(batch))}
                results["rows"].append(row)
                print(json.dumps(row), flush=True)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    engine.engine.close()


if __name__ == "__main__":
    main()
