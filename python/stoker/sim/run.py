"""Runs a simulation and reads its figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stoker._core.sched import SchedulerConfig
from stoker._core.sim import CostModel, FleetConfig, Simulation
from stoker.sim.requests import Requests

PERCENTILES = (50, 90, 95, 99)
_TURNS_A_LOOK = 20_000


@dataclass(frozen=True, slots=True)
class Setting:
    """What is simulated."""

    cost: CostModel
    scheduler: dict[str, Any]
    """Fields of SchedulerConfig."""
    fleet: dict[str, Any] = field(default_factory=dict)
    """Fields of FleetConfig; one replica if empty."""
    overlap: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Slo:
    """What a request must keep to be good. Seconds; None: does not matter."""

    ttft: float | None = None
    """Time to first token."""
    itl: float | None = None
    """Mean time between two of its tokens."""
    e2e: float | None = None

    def __bool__(self) -> bool:
        return (self.ttft, self.itl, self.e2e) != (None, None, None)


class Run:
    """A finished simulation. Arrays have one entry a request; times in seconds."""

    def __init__(self, requests: Requests, setting: Setting, simulation: Simulation) -> None:
        self.requests, self.setting = requests, setting
        self.reqs = simulation.reqs()
        self.totals = simulation.totals()
        self.gaps: tuple[NDArray[np.float64], NDArray[np.int64]] = simulation.gaps()
        """Middles (ns) and counts of the histogram of all gaps between two tokens of a request."""
        self.course = simulation.course()
        """What stood over time: bin_ns, then the mean of each line in each bin."""
        self.replicas = simulation.replicas()
        self.ttft = (self.reqs["first_token"] - self.reqs["arrival"]) / 1e9
        self.e2e = (self.reqs["last_token"] - self.reqs["arrival"]) / 1e9
        self.queued = (self.reqs["scheduled"] - self.reqs["arrival"]) / 1e9
        more = np.maximum(self.reqs["num_tokens"] - 1, 1)
        self.itl = (self.reqs["last_token"] - self.reqs["first_token"]) / 1e9 / more
        """Mean of each request; 0 for answers of one token."""

    @property
    def seconds(self) -> float:
        """From the first arrival to the last token."""
        return float(self.totals["end"] - self.reqs["arrival"].min()) / 1e9

    def good(self, slo: Slo) -> NDArray[np.bool_]:
        """Which requests kept it."""
        good = np.ones(len(self.ttft), bool)
        for values, limit in ((self.ttft, slo.ttft), (self.itl, slo.itl), (self.e2e, slo.e2e)):
            if limit is not None:
                good &= values <= limit
        return good

    def report(self, slo: Slo | None = None) -> dict[str, Any]:
        """All figures, ready for JSON. Seconds, tokens, shares of 1."""
        totals, seconds = self.totals, max(self.seconds, 1e-9)
        prompt = int(self.requests.prompt_lens.sum())
        cached = int(self.reqs["cached_tokens"].sum())
        course = self.course
        blocks = max(float(np.sum(course["total_blocks"])), 1e-9)
        share = course["used_blocks"] / np.maximum(course["total_blocks"], 1e-9)
        out: dict[str, Any] = {
            "num_reqs": len(self.requests),
            "seconds": seconds,
            "prompt_tokens": prompt,
            "output_tokens": int(totals["output_tokens"]),
            "reqs_per_s": len(self.requests) / seconds,
            "output_tokens_per_s": totals["output_tokens"] / seconds,
            "ttft": _figures(self.ttft),
            "itl": self._gap_figures(),
            "tpot": _figures(self.itl[self.reqs["num_tokens"] > 1]),
            "e2e": _figures(self.e2e),
            "queued": _figures(self.queued),
            "hit_rate": cached / max(prompt, 1),
            "kv_use_mean": float(np.sum(course["used_blocks"])) / blocks,
            "kv_use_max": float(share.max(initial=0.0)),
            "device_busy": totals["device_busy"] / max(totals["replica_time"], 1),
            "replica_hours": totals["replica_time"] / 3.6e12,
            "num_replicas_mean": totals["replica_time"] / 1e9 / seconds,
        }
        for name in ("steps", "preemptions", "prefill_tokens", "recomputed_tokens", "failures", "resent"):
            out["num_" + name if name in ("failures", "resent") else name] = int(totals[name])
        if slo:
            good = self.good(slo)
            out["slo"] = {
                "ttft": slo.ttft,
                "itl": slo.itl,
                "e2e": slo.e2e,
                "share": float(good.mean()),
                "goodput_reqs_per_s": float(good.sum()) / seconds,
            }
        return out

    def _gap_figures(self) -> dict[str, float]:
        middles, counts = self.gaps
        total = int(counts.sum())
        if not total:
            return {"mean": 0.0, **{f"p{p}": 0.0 for p in PERCENTILES}, "max": 0.0}
        places = np.searchsorted(np.cumsum(counts), [max(1, -(-p * total // 100)) for p in PERCENTILES])
        found = {f"p{p}": float(middles[at]) / 1e9 for p, at in zip(PERCENTILES, places, strict=True)}
        longest = float(self.reqs["longest_gap"].max()) / 1e9
        return {"mean": self.totals["gap_sum"] / total / 1e9, **found, "max": longest}


def _figures(values: NDArray[np.float64]) -> dict[str, float]:
    if not len(values):
        return {"mean": 0.0, **{f"p{p}": 0.0 for p in PERCENTILES}, "max": 0.0}
    found = np.percentile(values, PERCENTILES, method="inverted_cdf")
    named = {f"p{p}": float(value) for p, value in zip(PERCENTILES, found, strict=True)}
    return {"mean": float(values.mean()), **named, "max": float(values.max())}


def prepare(
    setting: Setting, requests: Requests, *, record: bool = False, replayed: NDArray[np.int64] | None = None
) -> Simulation:
    """A simulation that has not begun. Raises ValueError, naming the request, if the engine would refuse one."""
    extra = {} if replayed is None else {"replayed": replayed}
    simulation = Simulation(
        scheduler=SchedulerConfig(**setting.scheduler),
        cost=setting.cost,
        workload=requests.native(),
        fleet=FleetConfig(**setting.fleet),
        overlap_depth=int(setting.overlap),
        seed=setting.seed,
        record=record,
        **extra,
    )
    for number, why in simulation.impossible(1):
        raise ValueError(f"{requests.where(number)}: {why.split(': ', 1)[-1]}")
    return simulation


def simulate(
    setting: Setting,
    requests: Requests,
    *,
    progress: Callable[[int], None] | None = None,
) -> Run:
    """Runs it to the end; `progress(requests done)` is called now and then."""
    simulation = prepare(setting, requests)
    finish(simulation, progress)
    return Run(requests, setting, simulation)


def finish(simulation: Simulation, progress: Callable[[int], None] | None = None) -> None:
    """Runs a prepared one to its end."""
    while not simulation.run(_TURNS_A_LOOK):
        if progress is not None:
            progress(simulation.num_ended)
    if progress is not None:
        progress(simulation.num_ended)


def impossible(setting: Setting, requests: Requests) -> set[int]:
    """The requests that the engine would refuse."""
    simulation = Simulation(
        scheduler=SchedulerConfig(**setting.scheduler), cost=setting.cost, workload=requests.native()
    )
    return {number for number, _ in simulation.impossible(len(requests))}
