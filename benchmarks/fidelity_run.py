"""A run of the real engine for sim_fidelity.py: reqs fed at planned times, every step recorded, and a probe timed whenever nothing runs.

The probe is a fixed few reqs that take the run's own way (same loop, same threads, same ops): once whenever nothing is left to run
and the time to the next req is long enough for it, and where a run is never idle, before and after each of its parts. One that follows
another probe, or comes after a pause, finds other caches than the run's steps do: it would tell less of a busy run than of an idle one.
Its steps are taken out of the recording.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stoker.config import EngineConfig
from stoker.engine.engine import Engine as StokerEngine
from stoker.scheduler import Req, SamplingParams
from stoker.sim import Requests, synthetic
from stoker.sim.fit import device_times
from stoker.viz.measures import inter_token_latencies
from stoker.viz.recorder import recording
from stoker.viz.trace import Trace

PARTS = 10


@dataclass(frozen=True, slots=True)
class Probe:
    """What it took: nanoseconds of its steps with a chunk, and of those without."""

    at: int
    chunks: float
    decodes: float


@dataclass(frozen=True, slots=True)
class Part:
    """What came of some reqs."""

    ttft: NDArray[np.float64]
    gaps: NDArray[np.float64]
    tokens: int
    seconds: float


def figures(parts: list[Part]) -> dict[str, float]:
    """Of a run. Seconds, output tokens a second."""
    ttft = np.concatenate([part.ttft for part in parts])
    gaps = np.concatenate([part.gaps for part in parts])
    seconds = sum(part.seconds for part in parts)
    return {
        "ttft_mean": float(ttft.mean()),
        "ttft_p99": float(np.percentile(ttft, 99, method="inverted_cdf")),
        "itl_mean": float(gaps.mean()),
        "itl_p99": float(np.percentile(gaps, 99, method="inverted_cdf")),
        "throughput": sum(part.tokens for part in parts) / seconds,
        "seconds": seconds,
    }


@dataclass(frozen=True, slots=True)
class RecordedPart:
    """What was fed, what the loop did, and the probes before, in and after it."""

    requests: Requests
    trace: Trace
    start: int
    """When its time 0 was."""
    probes: list[Probe]

    @property
    def probe(self) -> tuple[float, float]:
        """The mean of its probes: chunks, decodes."""
        return statistics.fmean(p.chunks for p in self.probes), statistics.fmean(
            p.decodes for p in self.probes
        )

    def measured(self) -> Part:
        reqs = [self.trace.reqs[key] for key in sorted(self.trace.reqs)]
        due = self.requests.times + self.start
        ttft = (np.array([req.first_token_time for req in reqs]) - due) / 1e9
        seconds = (max(req.finish_time for req in reqs) - int(due[0])) / 1e9
        return Part(
            ttft, np.array(inter_token_latencies(self.trace)), sum(r.num_outputs for r in reqs), seconds
        )


class Engine:
    """The model, driven on this thread."""

    def __init__(
        self, device: str, config: dict[str, Any], probe: dict[str, Any], probes_between: int
    ) -> None:
        if device == "cpu":
            torch.set_num_threads(1)
        engine = StokerEngine(EngineConfig(device=device, progress=False, **config))
        self.engine, self.loop = engine, engine.loop
        self.vocab = engine.model_config.vocab_size
        self._probe = synthetic(seed=1234, **probe)
        self._probes_between = probes_between
        self._num_fed = self._num_probed = 0
        self._probe_takes = 0.0  # ns, lately

    def run(self, requests: Requests) -> list[RecordedPart]:
        """In parts, each from its own time 0 on."""
        return [self.record(part) for part in parts_of(requests)]

    def record(self, requests: Requests) -> RecordedPart:
        with recording(
            self.loop, model=self.engine.config.model, command="benchmarks/sim_fidelity.py"
        ) as recorded:
            start = self._feed(requests)
        trace = recorded.trace
        probes = _take_probes(trace)
        return RecordedPart(requests, trace, start, probes)

    def _feed(self, requests: Requests) -> int:
        """Adds each when its time has come, until all are answered. The loop's clock is time.monotonic_ns()."""
        self._num_fed += 1
        reqs = self._reqs(f"{self._num_fed}", requests)
        gc.collect()
        gc.disable()
        for _ in range(self._probes_between):
            self._run_probe()
        start = time.monotonic_ns() + 5_000_000
        due = [start + int(t) for t in requests.times]
        loop, added, count, worked = self.loop, 0, len(reqs), False
        while added < count or loop.has_unfinished():
            now = time.monotonic_ns()
            while added < count and due[added] <= now:
                loop.add(reqs[added])
                added += 1
            if loop.has_unfinished():
                loop.turn()
                loop.poll()
                worked = True
            elif (
                (left := due[added] - now) > 1.5 * self._probe_takes and worked and self._probes_between == 0
            ):
                self._run_probe()
                worked = False
            elif left > 400_000:
                time.sleep((left - 300_000) / 1e9)  # the rest is spun away: sleep wakes late
        for _ in range(self._probes_between):
            self._run_probe()
        gc.enable()
        return start

    def _run_probe(self) -> None:
        began = time.monotonic_ns()
        self._num_probed += 1
        for req in self._reqs(f"probe-{self._num_probed}", fresh(self._probe)):
            self.loop.add(req)
        while self.loop.has_unfinished():
            self.loop.turn()
            self.loop.poll()
        took = time.monotonic_ns() - began
        self._probe_takes = (7 * self._probe_takes + took) / 8

    def _reqs(self, name: str, requests: Requests) -> list[Req]:
        workload = requests.native(self.vocab)
        return [
            Req(
                f"{name}-{i}",
                workload.prompt(i),
                SamplingParams(temperature=0.0, max_tokens=int(requests.answer_lens[i]), ignore_eos=True),
            )
            for i in range(len(requests))
        ]


def _take_probes(trace: Trace) -> list[Probe]:
    """Out of the trace. No step holds a probe and anything else."""
    number = {key: int(r.rid.split("-")[1]) for key, r in trace.reqs.items() if r.rid.startswith("probe-")}
    took: dict[int, list[float]] = {}
    for step, ns in zip(trace.steps, device_times(trace.steps), strict=True):
        if step.rows and step.rows[0].key in number:
            one = took.setdefault(number[step.rows[0].key], [step.launched, 0.0, 0.0])
            one[1 if step.has_chunk else 2] += ns
    trace.steps = [step for step in trace.steps if not step.rows or step.rows[0].key not in number]
    trace.changes = [change for change in trace.changes if change.key not in number]
    for key in number:
        del trace.reqs[key]
    return [Probe(int(at), chunks, decodes) for at, chunks, decodes in took.values()]


_used = 0


def fresh(requests: Requests) -> Requests:
    """With prompts that no run before has seen: the prefix cache outlives a run."""
    global _used
    count = len(requests)
    ids = _used + np.arange(count, dtype=np.int64)
    _used += count
    return replace(requests, hash_ids=ids, hash_indptr=np.arange(count + 1), hash_block=1 << 16)


def parts_of(requests: Requests) -> Iterator[Requests]:
    """PARTS in turn, each from its own time 0 on."""
    for some in np.array_split(np.arange(len(requests)), PARTS):
        first, end = int(some[0]), int(some[-1]) + 1
        names = ("prompt_lens", "answer_lens", "max_tokens", "hash_ids")
        yield replace(
            requests,
            **{name: getattr(requests, name)[first:end] for name in names},
            times=requests.times[first:end] - requests.times[first],
            hash_indptr=np.arange(end - first + 1),
        )
