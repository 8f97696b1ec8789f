"""What `stoker top` knows of a server: its /ready and /metrics, and what changed between two looks."""

from __future__ import annotations

import json
import math
import re
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{([^}]*)\})?\s+(\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Buckets = dict[float, float]
"""Upper bound -> how many observations do not exceed it."""


@dataclass(slots=True)
class Look:
    """One look at a server."""

    time: float
    """Seconds on the looker's clock."""
    values: dict[str, float] = field(default_factory=dict)
    """Samples without labels; of those with labels the sum, and each as name{value}."""
    histograms: dict[str, Buckets] = field(default_factory=dict)
    status: str = ""
    reqs: list[dict[str, Any]] = field(default_factory=list)
    """Those that are open, as /v1/requests tells them; empty where the server does not."""

    def engine(self, name: str) -> float:
        """A figure of the engine's; 0 where the server does not tell it."""
        for full in (f"stoker_engine_{name}", f"stoker_engine_{name}_total"):
            if full in self.values:
                return self.values[full]
        return 0.0


def parse_metrics(text: str, time: float) -> Look:
    """Prometheus' text format; lines that are none of it are skipped."""
    look = Look(time)
    for line in text.splitlines():
        found = _SAMPLE.match(line)
        if line.startswith("#") or found is None:
            continue
        name, labels, number = found.groups()
        try:
            value = float(number)
        except ValueError:
            continue
        tags = dict(_LABEL.findall(labels or ""))
        if name.endswith("_bucket") and "le" in tags:
            buckets = look.histograms.setdefault(name.removesuffix("_bucket"), {})
            bound = float(tags["le"])
            buckets[bound] = buckets.get(bound, 0.0) + value
            continue
        look.values[name] = look.values.get(name, 0.0) + value
        for tag in tags.values():
            look.values[f"{name}{{{tag}}}"] = look.values.get(f"{name}{{{tag}}}", 0.0) + value
    return look


def quantile(buckets: Mapping[float, float], share: float) -> float:
    """The value that `share` of the observations do not exceed, linear inside its bucket; nan of none; the largest
    finite bound if it lies beyond."""
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return math.nan
    wanted, low, below = share * total, 0.0, 0.0
    for bound in bounds:
        count = buckets[bound]
        if count >= wanted:
            if math.isinf(bound):
                return low
            return low + (bound - low) * (wanted - below) / (count - below) if count > below else bound
        low, below = bound, count
    return low


class Past:
    """The looks of the last seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._looks: deque[Look] = deque()
        self.rates: deque[float] = deque(maxlen=240)

    def add(self, look: Look) -> None:
        """Takes the newest. A server that was started anew begins a new past."""
        if self._looks and look.engine("num_steps") < self._looks[-1].engine("num_steps"):
            self._looks.clear()
        if self._looks:
            before = self._looks[-1]
            span = look.time - before.time
            if span > 0:
                self.rates.append((look.engine("output_tokens") - before.engine("output_tokens")) / span)
        self._looks.append(look)
        while len(self._looks) > 2 and look.time - self._looks[1].time >= self._seconds:
            self._looks.popleft()

    @property
    def newest(self) -> Look:
        return self._looks[-1]

    @property
    def seconds(self) -> float:
        """How far it reaches back."""
        return self._looks[-1].time - self._looks[0].time

    def _grown(self, now: float, then: float) -> float:
        return max(0.0, now - then)

    def growth(self, names: Iterable[str]) -> float:
        """By how much the sum of these samples grew."""
        now, then = self._looks[-1], self._looks[0]
        return sum(self._grown(now.values.get(name, 0.0), then.values.get(name, 0.0)) for name in names)

    def rate(self, name: str) -> float:
        """Of an engine's counter, a second."""
        now, then = self._looks[-1], self._looks[0]
        return self._grown(now.engine(name), then.engine(name)) / self.seconds if self.seconds > 0 else 0.0

    def recent(self, histogram: str) -> Buckets:
        """Only what was observed in this past; everything, where nothing was."""
        now = self._looks[-1].histograms.get(histogram, {})
        then = self._looks[0].histograms.get(histogram, {})
        grown = {bound: self._grown(count, then.get(bound, 0.0)) for bound, count in now.items()}
        return grown if any(grown.values()) else now


def fetch(url: str, now: float, key: str | None = None, timeout: float = 2.0) -> Look:
    """Asks a server. Raises OSError where it does not answer, ValueError where it is no stoker server."""
    try:
        look = parse_metrics(_get(f"{url}/metrics", key, timeout), now)
    except urllib.error.HTTPError as error:
        raise ValueError(f"{url}/metrics answered {error.code} {error.reason}") from None
    if not any(name.startswith("stoker_") for name in look.values):
        raise ValueError(f"{url}/metrics has no metrics of a stoker server")
    try:
        body: dict[str, Any] = json.loads(_get(f"{url}/ready", key, timeout))
        look.status = str(body.get("status", "ready"))
    except urllib.error.HTTPError as error:  # 503 while it starts or ends
        look.status = f"not ready ({error.code})"
    except ValueError:
        look.status = "unknown"
    with suppress(
        OSError, ValueError, TypeError, KeyError
    ):  # an engine in a long step, a server that hides them
        look.reqs = list(json.loads(_get(f"{url}/v1/requests?limit=512", key, timeout))["data"])
    return look


def _get(url: str, key: str | None, timeout: float) -> str:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        text: str = answer.read().decode("utf-8", "replace")
        return text
