"""Prometheus metrics of one worker: what clients feel (TTFT, ITL, end to end, codes) and a look at the engine when scraped."""

from __future__ import annotations

import os
from bisect import bisect_left

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, multiprocess
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stoker.server import messages as m

_TTFT = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_ITL = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_E2E = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """All metrics of one worker process. With several workers prometheus-client merges them through files."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.http_requests = Counter(
            "stoker_http_requests", "HTTP requests by path and status", ("path", "code"), registry=registry
        )
        self.prompt_tokens = Counter(
            "stoker_prompt_tokens", "Prompt tokens of finished requests", registry=registry
        )
        self.cached_tokens = Counter(
            "stoker_cached_prompt_tokens", "Prompt tokens that came from the prefix cache", registry=registry
        )
        self.output_tokens = Counter("stoker_output_tokens", "Output tokens delivered", registry=registry)
        self.finished = Counter(
            "stoker_answers_finished", "Answers that ended, by reason", ("reason",), registry=registry
        )
        self.ttft = Histogram(
            "stoker_time_to_first_token_seconds",
            "From arrival to first token",
            buckets=_TTFT,
            registry=registry,
        )
        self.itl = Histogram(
            "stoker_inter_token_latency_seconds",
            "Between two deliveries to one answer",
            buckets=_ITL,
            registry=registry,
        )
        self.e2e = Histogram(
            "stoker_request_seconds", "From arrival to the end", buckets=_E2E, registry=registry
        )
        self.queue = Histogram(
            "stoker_queue_seconds",
            "From arrival to the first step that computes something",
            buckets=_E2E,
            registry=registry,
        )

        self.tally = Tally(self.itl, _ITL, self.output_tokens)

    def account(self, account: m.Account, reason: str) -> None:
        """A finished answer."""
        self.tally.flush()
        self.finished.labels(reason).inc()
        arrival = account.arrival_time
        if account.first_token_time > 0:
            self.ttft.observe(max(0.0, account.first_token_time - arrival))
        if account.first_scheduled_time > 0:
            self.queue.observe(max(0.0, account.first_scheduled_time - arrival))
        self.e2e.observe(max(0.0, account.finished_time - arrival))

    def page(self, stats: m.Stats | None) -> bytes:
        """The text of /metrics."""
        self.tally.flush()
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        else:
            registry = self._registry
        text: bytes = generate_latest(registry)
        if stats is not None:
            engine = CollectorRegistry()
            engine.register(_EngineLook(stats))
            text += generate_latest(engine)
        return text


class Tally:
    """A histogram and a counter as plain numbers: what a token may cost. `flush` adds them to the real ones."""

    def __init__(self, histogram: Histogram, bounds: tuple[float, ...], counter: Counter) -> None:
        self._histogram = histogram
        self._bounds = bounds
        self._counter = counter
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self.total = 0

    def observe(self, value: float) -> None:
        """As Histogram.observe."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def flush(self) -> None:
        """Hands over what was counted since the last time."""
        counts, self._counts = self._counts, [0] * len(self._counts)
        for bucket, count in zip(self._histogram._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._histogram._sum.inc(self._sum)
        self._counter.inc(self.total)
        self._sum, self.total = 0.0, 0


class Pace:
    """Times between deliveries to one answer."""

    __slots__ = ("_last", "_metrics")

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._last = 0.0

    def delivered(self, tokens: int, now: float) -> None:
        """`tokens` new tokens came at `now`."""
        tally = self._metrics.tally
        if self._last:
            tally.observe(now - self._last)
        self._last = now
        tally.total += tokens


_COUNTERS = frozenset({"num_steps", "num_preemptions", "num_swaps", "prompt_tokens", "output_tokens"})


class _EngineLook(Collector):
    def __init__(self, stats: m.Stats) -> None:
        self._stats = stats

    def collect(self) -> list[Metric]:
        families: list[Metric] = [
            GaugeMetricFamily(
                "stoker_loop_age_seconds", "Since the engine's loop last moved", self._stats.loop_age
            )
        ]
        values = self._stats.values
        blocks = GaugeMetricFamily("stoker_kv_blocks", "Blocks of the KV pool by state", labels=["state"])
        for state in ("used", "cached", "draining", "free"):
            blocks.add_metric([state], values.get(f"num_{state}_blocks", 0))
        requests = GaugeMetricFamily("stoker_requests", "Answers in the engine by state", labels=["state"])
        for state in ("waiting", "running", "swapped"):
            requests.add_metric([state], values.get(f"num_{state}", 0))
        preemptions = CounterMetricFamily(
            "stoker_preemptions", "Requests that had to step aside", labels=["kind", "reason"]
        )
        for how, why, count in self._stats.preemptions:
            preemptions.add_metric([how, why], count)
        families += [blocks, requests, preemptions]
        for name, value in values.items():
            kind = CounterMetricFamily if name in _COUNTERS else GaugeMetricFamily
            families.append(kind(f"stoker_engine_{name}", f"The engine's {name.replace('_', ' ')}", value))
        return families
