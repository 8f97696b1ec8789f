"""What one step of the scheduler costs on the host: schedule() + commit() called from Python, on the workloads of workloads.py.

Reqs and token arrays are built before timing; the flat buffer and the attention work list are written inside; explain(), accounts, the
line of the trace and the prefix cache are on.

`pytest benchmarks/test_scheduler.py --benchmark-enable` prints a table in wall time. `python benchmarks/test_scheduler.py` prints the
medians in microseconds of thread CPU time, which bears a busy machine, next to the targets.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from workloads import BLOCK, Tokens, outputs, prompt, req, scheduler, w1, w2, w3, w4

from stoker._core import sched
from stoker.scheduler import Req, Scheduler

POLICIES = (
    "fcfs", "lpm", "dfs-weight", "sjf", "lof", "hrrn", "random", "priority", "deadline", "fair", "key",
)  # fmt: skip


class Run:
    """A scheduler being stepped. What it samples was made before: one array for each number of sampled rows."""

    def __init__(self, s: Scheduler, reqs: list[Req] = []) -> None:  # noqa: B006
        self.s = s
        tokens = outputs(s.config.max_num_seqs)
        self.sampled: list[Tokens] = [tokens[:n] for n in range(len(tokens) + 1)]
        for r in reqs:
            s.add(r)

    def step(self) -> None:
        batch = self.s.schedule()
        self.s.commit(batch, self.sampled[batch.num_sampled_rows])

    def to_end(self) -> int:
        steps = 0
        s, sampled = self.s, self.sampled
        while (batch := s.schedule()) is not None:
            s.commit(batch, sampled[batch.num_sampled_rows])
            steps += 1
        return steps


def steady(n: int, waiting: int = 0, **options: Any) -> Run:
    """W1 in full decode; `waiting` reqs of W4 behind it, which find no seat."""
    fields = {"deadline_ttft": 10**15} if options.get("schedule_policy") == "deadline" else {}
    run = Run(scheduler(n * 2048, n, aging_limit=0, **options), w1(n))
    while run.s.num_waiting or run.s.last_stats.num_prefill_rows or run.s.last_stats.num_decode_rows < n:
        run.step()
    for i in range(waiting):
        run.s.add(req(f"w{i}", prompt(i, 512), 16 + i % 497, tenant=f"t{i % 4}", priority=i % 7, **fields))
    return run


def life(make: Callable[[], list[Req]]) -> tuple[Run, list[Req]]:
    return Run(scheduler(131072, 256)), make()


def live(run: Run, reqs: list[Req]) -> int:
    """The whole life of the reqs, from add() on."""
    for r in reqs:
        run.s.add(r)
    return run.to_end()


def long_queue(policy: str = "fcfs") -> Run:
    run = Run(scheduler(524288, 256, schedule_policy=policy), w4())
    for _ in range(600):
        run.step()
    return run


def long_prompt(pieces: int) -> tuple[Scheduler, Req]:
    """A cached 32k-token prompt, stored by `pieces` reqs that each branch off from it, and a req that matches all of it."""
    tokens = prompt(7, 32768)
    s = scheduler(1 << 17, 4, max_model_len=40000)
    run = Run(s)
    cuts = [32768 * (k + 1) // pieces // BLOCK * BLOCK for k in range(pieces)]
    for k, cut in enumerate(cuts):
        tail = [prompt(100 + k, 32)] if pieces > 1 else []
        s.add(req(f"p{k}", np.concatenate([tokens[:cut], *tail]), 1))
        run.to_end()
    return s, req("probe", np.concatenate([tokens, prompt(9, 8)]), 1)


def cached(blocks: int) -> Run:
    """64 running, and so many blocks in the prefix cache besides."""
    run = Run(scheduler(blocks * BLOCK + 64 * 2048, 64, max_model_len=8192))
    for i in range(blocks * BLOCK // 4096):
        run.s.add(req(f"c{i}", prompt(5000 + i, 4096), 1))
        run.to_end()
    for r in w1(64):
        run.s.add(r)
    while run.s.num_waiting or run.s.last_stats.num_prefill_rows or run.s.last_stats.num_decode_rows < 64:
        run.step()
    return run


def turn_blocks(pool: Any, blocks: int = 4096) -> None:
    """Takes and gives back."""
    pool.release(pool.allocate(blocks))


@pytest.mark.parametrize("n", [16, 64, 256, 1024])
def test_steady_decode(benchmark: Any, n: int) -> None:
    run = steady(n)
    benchmark.pedantic(run.step, rounds=320, iterations=1)
    assert run.s.last_stats.num_decode_rows == n


@pytest.mark.parametrize("policy", POLICIES)
def test_20_000_waiting(benchmark: Any, policy: str) -> None:
    run = steady(256, 20000, schedule_policy=policy)
    benchmark.pedantic(run.step, rounds=320, iterations=1)
    assert run.s.num_waiting == 20000


@pytest.mark.parametrize("make", [w2, w3], ids=["churn", "shared_prefixes"])
def test_whole_life(benchmark: Any, make: Callable[[], list[Req]]) -> None:
    benchmark.pedantic(live, setup=lambda: (life(make), {}), rounds=3)


def test_long_queue(benchmark: Any) -> None:
    run = long_queue()
    benchmark.pedantic(run.step, rounds=400, iterations=1)
    assert run.s.num_waiting > 10000


@pytest.mark.parametrize("pieces", [1, 64], ids=["one_run", "branching"])
def test_match_32k(benchmark: Any, pieces: int) -> None:
    s, probe = long_prompt(pieces)
    assert benchmark(s.match_prefix, probe) == 32768


def test_4096_blocks(benchmark: Any) -> None:
    pool = sched.BlockPool(10000)
    benchmark(turn_blocks, pool)


def test_1000_policy_keys(benchmark: Any) -> None:
    """invalidate() asks the key function again for each waiting req."""
    s = scheduler(1 << 16, 1, schedule_policy="key", key=lambda r: r.priority)
    for i in range(1000):
        s.add(req(str(i), prompt(i, 32), 1))
    benchmark(s.invalidate)


def cpu(run: Callable[..., Any], *args: Any) -> float:
    """Microseconds of this thread's processor time."""
    begin = time.thread_time_ns()
    run(*args)
    return (time.thread_time_ns() - begin) / 1000


def median_step(run: Run, steps: int = 320) -> float:
    return statistics.median(cpu(run.step) for _ in range(steps))


def compared(one: Run, other: Run, steps: int = 320) -> float:
    """A step of `one` over a step of `other`, by turns: a busy machine slows both."""
    times = [(cpu(one.step), cpu(other.step)) for _ in range(steps)]
    return statistics.median(a for a, _ in times) / statistics.median(b for _, b in times)


def show(what: str, value: float, target: float | None, unit: str = "us") -> None:
    print(
        f"{what:52s} {value:9.2f} {unit}" + ("" if target is None else f"  (target {target:g})"), flush=True
    )


def main() -> None:
    for n, target in ((16, 3), (64, 7), (256, 22), (1024, 90)):
        show(f"W1, {n} running, a step", median_step(steady(n)), target)
    for policy in POLICIES:
        ratio = compared(steady(256, 20000, schedule_policy=policy), steady(256))
        show(f"256 running, 20,000 waiting, {policy}: times alone", ratio, 1.3 if policy == "fcfs" else 3, "")
    for name, make, target in (("W2", w2, 30), ("W3", w3, 15)):
        times = [cpu(live, *life(make)) / 1000 for _ in range(5)]
        show(f"{name}, whole life of 2,000 reqs, median of 5", statistics.median(times), target, "ms")
    run = long_queue()
    show("W4, 20,000 arrived, a step, mean", statistics.mean(cpu(run.step) for _ in range(400)), None)
    for pieces, target in ((1, 15), (64, 60)):
        s, probe = long_prompt(pieces)
        times = [cpu(s.match_prefix, probe) for _ in range(200)]
        show(f"match of a cached 32k prompt, {pieces} branches", statistics.median(times), target)
    pool = sched.BlockPool(10000)
    block = statistics.median(cpu(turn_blocks, pool) for _ in range(50)) / 4096 * 1000
    show("allocate and free a block", block, 50, "ns")
    hook()


def hook() -> None:
    """What the key function of the policy `key` costs: for each time it is asked, and on a step when it is not."""

    def make(**options: Any) -> tuple[Scheduler, list[Req]]:
        s = scheduler(1 << 16, 1, **options)
        return s, [req(str(i), prompt(i, 32), 1) for i in range(2000)]

    def add(s: Scheduler, reqs: list[Req]) -> None:
        for r in reqs:
            s.add(r)

    with_key: dict[str, Any] = {"schedule_policy": "key", "key": lambda r: r.priority}
    asked = statistics.median(cpu(add, *make(**with_key)) for _ in range(7))
    unasked = statistics.median(cpu(add, *make(schedule_policy="key")) for _ in range(7))
    show("key function, asked in add()", (asked - unasked) / 2000, 2)
    s, reqs = make(**with_key)
    add(s, reqs)
    show(
        "key function, asked in invalidate(), with the new place",
        statistics.median(cpu(s.invalidate) for _ in range(7)) / 2000,
        2,
    )
    a, b = steady(256, 2000), steady(256, 2000, **with_key)
    show("a step with a key function over one without", compared(b, a), None, "")


if __name__ == "__main__":
    main()
