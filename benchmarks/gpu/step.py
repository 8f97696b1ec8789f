"""A decode step's host and idle time on one GPU: how long the device waits for the host, and how long the host takes.

    python benchmarks/gpu/step.py [--model qwen3-0.6b] [--batches 1,64,256] [--out FILE]

idle: (step period - the same graphs replayed back to back) / step period, the period by the median over the last steps of a
batch, the graphs replayed with what the last step left on the device. host: from the last token of a step visible on the
host (the wait for it returned) to the next graph launch returned: commit, delivery, the caller's Python, schedule, launch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import e2e
import torch

from stoker.engine.cuda_graphs import DECODE, HEAD

LAST = 30
REPLAYS = 40


class Stamped:
    """A launcher that keeps the time of each wait's and each launch's return, and of the parts of a launch; and that replays
    the graphs of one step, chosen by its number, once it is launched.
    """

    def __init__(self, launcher: Any, stream: Any, rows: int, replay_at: int) -> None:
        self._launcher, self._stream = launcher, stream
        self._rows, self._replay_at = rows, replay_at
        self.waited = [0, 0]
        self.host: list[int] = []
        self.period: list[int] = []
        self.parts: list[list[int]] = []
        self.replayed_us = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._launcher, name)

    def wait(self, entry: int) -> float:
        taken: float = self._launcher.wait(entry)
        self.waited.append(time.perf_counter_ns())
        return taken

    def launch(self, entry: int, kind: int, tokens: int, outs: int, *upload: int) -> None:
        if kind != DECODE or outs < self._rows:
            self._launcher.launch(entry, kind, tokens, outs, *upload)
            return
        if len(self.host) % 2:  # every other one in parts, to know them
            self._launcher.launch(entry, kind, tokens, outs, *upload)
            now = time.perf_counter_ns()
        else:
            marks = [time.perf_counter_ns()]
            for part in (
                lambda: self._launcher.begin(entry),
                lambda: self._launcher.upload(entry, *upload),
                lambda: self._launcher.replay(kind, tokens),
                lambda: self._launcher.replay(HEAD, outs),
                lambda: self._launcher.end(entry),
            ):
                part()
                marks.append(time.perf_counter_ns())
            now = marks[-1]
            self.parts.append([b - a for a, b in itertools.pairwise(marks)])
        self.host.append(now - self.waited[-1])
        self.period.append(self.waited[-1] - self.waited[-2])
        if len(self.host) == self._replay_at:
            self._replay(kind, tokens, outs)

    def _replay(self, kind: int, tokens: int, outs: int) -> None:
        torch.cuda.synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(self._stream)
        for _ in range(REPLAYS):
            self._launcher.replay(kind, tokens)
            self._launcher.replay(HEAD, outs)
        end.record(self._stream)
        end.synchronize()
        self.replayed_us = begin.elapsed_time(end) / REPLAYS * 1e3


def measure(engine: e2e.Runner, batch: int) -> dict[str, Any]:
    runner = engine.engine.runner
    stamped = Stamped(runner._launcher, runner._stream, batch, 70)
    runner._launcher = stamped
    engine.generate(e2e.random_prompts(batch, 512, 40 + batch), [129] * batch, 0.6)
    trace = e2e.traced(engine)
    runner._launcher = stamped._launcher
    # Steps on both sides of the one that was replayed, whose KV is as long in the mean.
    around = stamped.period[70 - LAST : 69] + stamped.period[71 : 70 + LAST]
    period = statistics.median(around) / 1e3
    host = sorted(t / 1e3 for t in stamped.host[70 - LAST : 69])
    names = ("begin", "upload", "layers", "head", "end")
    parts = [statistics.median(part) / 1e3 for part in zip(*stamped.parts[15:34], strict=True)]
    return {
        "batch": batch,
        "period_us": period,
        "graphs_us": stamped.replayed_us,
        "idle_share": (period - stamped.replayed_us) / period,
        "host_us_median": statistics.median(host),
        "host_us_p90": host[int(0.9 * len(host))],
        "parts_us": dict(zip(names, parts, strict=True)),
        **trace,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    e2e.add_engine_arguments(parser)
    parser.add_argument("--batches", default="1,64,256")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    engine = e2e.Runner(args)
    engine.timed(e2e.random_prompts(64, 300, 98), [32] * 64, 0.6)
    results: dict[str, Any] = {
        "command": "python " + " ".join(sys.argv),
        "gpu": torch.cuda.get_device_name(),
        "rows": [],
    }
    for batch in args.batches.split(","):
        row = measure(engine, int(batch))
        results["rows"].append(row)
        print(json.dumps(row), flush=True)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    engine.engine.close()


if __name__ == "__main__":
    main()
