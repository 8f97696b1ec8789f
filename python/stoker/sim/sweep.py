"""Many simulations at once, over the cores: a grid of values, or the search for the highest rate or the fewest replicas that
keep a service level."""

from __future__ import annotations

import itertools
import math
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from stoker.sim.run import Slo, simulate
from stoker.sim.scenario import Scenario

Report = dict[str, Any]
Evaluate = Callable[[Iterable[Scenario]], Iterator[Report]]


@dataclass(frozen=True, slots=True)
class Job:
    """One simulation, as it is sent to a worker."""

    scenario: Scenario
    slo: Slo


def run_job(job: Job) -> Report:
    """Its report."""
    return simulate(job.scenario.setting(), job.scenario.requests()).report(job.slo)


@contextmanager
def workers(count: int, slo: Slo, done: Callable[[], None] | None = None) -> Iterator[Evaluate]:
    """A function that runs scenarios on `count` processes and gives their reports in order; `done()` after each."""

    def told(reports: Iterable[Report]) -> Iterator[Report]:
        for report in reports:
            if done is not None:
                done()
            yield report

    if count <= 1:
        yield lambda scenarios: told(map(run_job, (Job(s, slo) for s in scenarios)))
        return
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda scenarios: told(pool.map(run_job, [Job(s, slo) for s in scenarios]))


def grid(base: Scenario, varied: dict[str, list[Any]]) -> list[tuple[dict[str, Any], Scenario]]:
    """Every combination of the varied values, the last name fastest."""
    points = []
    for values in itertools.product(*varied.values()):
        chosen, scenario = dict(zip(varied, values, strict=True)), base
        for name, value in chosen.items():
            scenario = scenario.vary(name, value)
        points.append((chosen, scenario))
    return points


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to."""

    value: float | None
    """None: not even the least that was tried keeps the service level (or the most, for replicas)."""
    tried: list[tuple[float, Report]]
    """All that was simulated, rising."""


def highest_rate(
    base: Scenario,
    evaluate: Evaluate,
    share: float,
    *,
    width: int = 2,
    start: float = 1.0,
    precision: float = 0.02,
) -> Found:
    """The highest rate at which at least `share` of the requests keep the service level, within `precision`; `width` rates
    are tried at once. Takes for granted that a higher rate is not better."""
    tried: dict[float, Report] = {}

    def good(rates: list[float]) -> list[bool]:
        fresh = [rate for rate in rates if rate not in tried]
        tried.update(zip(fresh, evaluate(base.vary("rate", rate) for rate in fresh), strict=True))
        return [tried[rate]["slo"]["share"] >= share for rate in rates]

    low, high, first = 0.0, math.inf, start
    while math.isinf(high) or low == 0.0:  # bracket it: up by twos while it is good, down while it is not
        rates = [first * 2**i for i in range(width)]
        verdicts = good(rates)
        low = max([low, *(r for r, ok in zip(rates, verdicts, strict=True) if ok)])
        high = min([high, *(r for r, ok in zip(rates, verdicts, strict=True) if not ok)])
        if not math.isinf(high) and low == 0.0:
            first = min(rates) / 2**width
            if first < start / 2**20:
                return Found(None, sorted(tried.items()))
        else:
            first = max(rates) * 2
            if first > start * 2**30:
                break
    while not math.isinf(high) and high / low > 1 + precision:
        step = (high / low) ** (1 / (width + 1))
        rates = [low * step ** (i + 1) for i in range(width)]
        for rate, ok in zip(rates, good(rates), strict=True):
            if ok and rate < high:
                low = max(low, rate)
            elif not ok:
                high = min(high, rate)
    return Found(low, sorted(tried.items()))


def fewest_replicas(
    base: Scenario, evaluate: Evaluate, share: float, *, width: int = 2, most: int = 4096
) -> Found:
    """The fewest replicas with which at least `share` of the requests keep the service level."""
    tried: dict[int, Report] = {}

    def good(counts: list[int]) -> list[bool]:
        fresh = [count for count in counts if count not in tried]
        scenarios = (base.vary("num_replicas", count) for count in fresh)
        tried.update(zip(fresh, evaluate(scenarios), strict=True))
        return [tried[count]["slo"]["share"] >= share for count in counts]

    low, high = 0, 1  # low is too few; high is to be tried
    while True:
        counts = [min(high * 2**i, most) for i in range(width)]
        verdicts = good(counts)
        enough = [count for count, ok in zip(counts, verdicts, strict=True) if ok]
        low = max([low, *(count for count, ok in zip(counts, verdicts, strict=True) if not ok)])
        if enough:
            high = min(enough)
            break
        if counts[-1] >= most:
            return Found(None, [(float(n), r) for n, r in sorted(tried.items())])
        high = counts[-1] * 2
    while high - low > 1:
        step = max(1, (high - low) // (width + 1))
        counts = [low + step * (i + 1) for i in range(width) if low + step * (i + 1) < high]
        for count, ok in zip(counts, good(counts), strict=True):
            if ok:
                high = min(high, count)
            elif count < high:
                low = max(low, count)
    return Found(float(high), [(float(n), r) for n, r in sorted(tried.items())])
