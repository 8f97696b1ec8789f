"""What one step of the scheduler costs on the host: schedule() + commit() from Python, on the workloads W1 to W4 that the peers were
measured on (block 16, 8,192 tokens a step, FCFS, prefix cache on, no EOS, all arrive before the first step).

`pytest benchmarks/test_scheduler.py --benchmark-enable` prints a table; `python benchmarks/test_scheduler.py` prints the
medians in microseconds next to the targets, in thread CPU time, which bears a busy machine.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from stoker.scheduler import Req, SamplingParams, Scheduler, SchedulerConfig

Tokens = npt.NDArray[np.int32]
BLOCK = 16


def prompt(stream: int, length: int, begin: int = 0) -> Tokens:
    """Tokens [begin, begin + length) of a stream."""
    with np.errstate(over="ignore"):
        j = np.arange(begin, begin + length, dtype=np.uint64)
        z = (
            np.uint64(stream * 0x9E3779B97F4A7C15 % 2**64)
            + j * np.uint64(0xD1B54A32D192ED03)
            + np.uint64(0x632BE59BD9B4E019)
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        return (np.uint64(10) + z % np.uint64(127990)).astype(np.int32)


def outputs(length: int) -> Tokens:
    """Sampled tokens: what they are does not matter here, except that none ends a req."""
    return (np.arange(length, dtype=np.int64) * 104729 % 127990 + 10).astype(np.int32)


def scheduler(kv_tokens: int, seats: int, **options: Any) -> Scheduler:
    return Scheduler(
        SchedulerConfig(
            num_blocks=kv_tokens // BLOCK + 1,
            block_size=BLOCK,
            max_num_seqs=seats,
            max_num_batched_tokens=8192,
            **options,
        )
    )


def req(name: str, ids: Tokens, max_tokens: int) -> Req:
    return Req(name, ids, SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0.0))


class Run:
    """A scheduler being stepped to the end of its work."""

    def __init__(self, s: Scheduler, reqs: list[Req]) -> None:
        self.s = s
        self.tokens = outputs(8192)
        for r in reqs:
            s.add(r)

    def step(self) -> None:
        batch = self.s.schedule()
        self.s.commit(batch, self.tokens[: batch.num_sampled_rows])

    def to_end(self) -> tuple[int, int]:
        steps = preempted = 0
        s, tokens = self.s, self.tokens
        while (batch := s.schedule()) is not None:
            s.commit(batch, tokens[: batch.num_sampled_rows])
            steps += 1
        return steps, preempted


def w1(n: int) -> Run:
    reqs = [req(str(i), prompt(i, 1024), 900) for i in range(n)]
    run = Run(scheduler(n * 2048, n), reqs)
    while run.s.num_waiting or run.s.last_stats.num_prefill_rows or run.s.last_stats.num_decode_rows < n:
        run.step()
    return run


def w2_lengths() -> list[tuple[int, int]]:
    rng = random.Random(0)
    return [
        (
            round(math.exp(rng.uniform(math.log(32), math.log(2048)))),
            round(math.exp(rng.uniform(math.log(16), math.log(512)))),
        )
        for _ in range(2000)
    ]


def w2(**options: Any) -> Run:
    reqs = [req(str(i), prompt(i, p), o) for i, (p, o) in enumerate(w2_lengths())]
    return Run(scheduler(131072, 256, **options), reqs)


def w3() -> Run:
    reqs = [
        req(str(i), np.concatenate([prompt(1000000 + i % 20, 1024), prompt(i, 128)]), 64) for i in range(2000)
    ]
    return Run(scheduler(131072, 256), reqs)


def w4(warm: int = 600, waiting: int = 20000, **options: Any) -> Run:
    rng = random.Random(4)
    reqs = [
        req(str(i), prompt(i, 512), round(math.exp(rng.uniform(math.log(16), math.log(512)))))
        for i in range(waiting)
    ]
    run = Run(scheduler(524288, 256, **options), reqs)
    for _ in range(warm):
        run.step()
    return run


def long_prompt(pieces: int) -> tuple[Scheduler, Req]:
    """A cached 32k-token prompt, stored by `pieces` reqs that each branch off from it, and a req that matches all of it."""
    tokens = prompt(7, 32768)
    s = scheduler(1 << 17, 4, max_model_len=40000)
    run = Run(s, [])
    cuts = [32768 * (k + 1) // pieces // BLOCK * BLOCK for k in range(pieces)]
    for k, cut in enumerate(cuts):
        tail = [prompt(100 + k, 32)] if pieces > 1 else []
        s.add(req(f"p{k}", np.concatenate([tokens[:cut], *tail]), 1))
        run.to_end()
    return s, req("probe", np.concatenate([tokens, prompt(9, 8)]), 1)


@pytest.mark.parametrize("n", [16, 64, 256, 1024])
def test_steady_decode(benchmark: Any, n: int) -> None:
    run = w1(n)
    benchmark.pedantic(run.step, rounds=320, iterations=1)
    assert run.s.last_stats.num_decode_rows == n


@pytest.mark.parametrize("make", [w2, w3], ids=["churn", "shared_prefixes"])
def test_whole_life(benchmark: Any, make: Callable[[], Run]) -> None:
    benchmark.pedantic(lambda run: run.to_end(), setup=lambda: ((make(),), {}), rounds=3)


def test_long_queue(benchmark: Any) -> None:
    run = w4()
    benchmark.pedantic(run.step, rounds=400, iterations=1)
    assert run.s.num_waiting > 10000


@pytest.mark.parametrize("pieces", [1, 64], ids=["one_run", "branching"])
def test_match_32k(benchmark: Any, pieces: int) -> None:
    s, probe = long_prompt(pieces)
    assert benchmark(s.match_prefix, probe) == 32768


def cpu(run: Callable[[], Any]) -> float:
    begin = time.thread_time_ns()
    run()
    return (time.thread_time_ns() - begin) / 1000


def main() -> None:
    for n, target in ((16, 3), (64, 7), (256, 22), (1024, 90)):
        run = w1(n)
        times = [cpu(run.step) for _ in range(320)]
        print(f"W1 {n:5d} running: {statistics.median(times):8.2f} us a step (target {target})")
    for name, make, target in (("W2", w2, 30), ("W3", w3, 15)):
        best = min(cpu(make().to_end) for _ in range(3)) / 1000
        print(f"{name} whole life of 2,000 reqs: {best:8.2f} ms (target {target})")
    for policy in ("fcfs", "lpm"):
        run = w4(schedule_policy=policy)
        times = [cpu(run.step) for _ in range(400)]
        print(
            f"W4 20,000 waiting, {policy}: mean {statistics.mean(times):8.2f}, median {statistics.median(times):.2f} us"
        )
    for pieces, target in ((1, 15), (64, 60)):
        s, probe = long_prompt(pieces)
        times = [cpu(lambda s=s, probe=probe: s.match_prefix(probe)) for _ in range(200)]
        print(f"32k prefix match over {pieces} pieces: {statistics.median(times):8.2f} us (target {target})")


if __name__ == "__main__":
    main()
