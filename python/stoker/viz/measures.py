"""Figures of a trace: latencies, rates, seats in use."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from stoker.viz.trace import Trace


def times_to_first_token(trace: Trace) -> list[float]:
    """Seconds from arrival to the first token, of each req that got one; sorted."""
    return sorted(
        (req.first_token_time - req.arrival_time) / 1e9
        for req in trace.reqs.values()
        if req.first_token_time >= 0
    )


def inter_token_latencies(trace: Trace) -> list[float]:
    """Seconds between two tokens of one req, all of them; sorted."""
    times: dict[int, list[int]] = {}
    for step in trace.steps:
        for key, count in step.tokens.items():
            times.setdefault(key, []).extend([step.end] * count)
    return sorted((after - before) / 1e9 for each in times.values() for before, after in pairwise(each))


def percentile(values: Sequence[float], percent: float) -> float:
    """Of sorted values, the smallest that `percent` of them do not exceed; nan of none."""
    if not values:
        return float("nan")
    return values[min(len(values) - 1, max(0, -(-int(percent * len(values)) // 100) - 1))]


def token_rates(trace: Trace, window: float = 0.25) -> list[tuple[int, float]]:
    """(time, output tokens a second over the last `window` seconds) at the end of each step."""
    held: deque[tuple[int, int]] = deque()
    total, rates = 0, []
    for step in trace.steps:
        count = sum(step.tokens.values())
        held.append((step.end, count))
        total += count
        while step.end - held[0][0] > window * 1e9:
            total -= held.popleft()[1]
        rates.append((step.end, total / min(window, max((step.end - trace.began) / 1e9, 1e-3))))
    return rates


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in one line. Times in seconds."""

    num_reqs: int
    num_steps: int
    seconds: float
    output_tokens: int
    tokens_per_second: float
    seats_in_use: float
    """Share of seats, over time, that had a row in the step whose result somebody wanted."""
    ttft_p50: float
    ttft_p99: float
    itl_p50: float
    itl_p99: float
    num_preemptions: int


def summary(trace: Trace) -> Summary:
    """What a run was worth."""
    ttft, itl = times_to_first_token(trace), inter_token_latencies(trace)
    seats = int(trace.config.get("max_num_seqs", 0)) or max(
        (row.seat for s in trace.steps for row in s.rows), default=1
    )
    ends = {req.key: req.end_batch for req in trace.reqs.values() if req.reason}
    used = sum(
        (step.end - step.start) * sum(step.batch_id <= ends.get(row.key, step.batch_id) for row in step.rows)
        for step in trace.steps
    )
    seconds = trace.seconds
    return Summary(
        num_reqs=len(trace.reqs),
        num_steps=len(trace.steps),
        seconds=seconds,
        output_tokens=trace.num_outputs,
        tokens_per_second=trace.num_outputs / seconds if seconds else 0.0,
        seats_in_use=used / (seconds * 1e9 * seats) if seconds else 0.0,
        ttft_p50=percentile(ttft, 50),
        ttft_p99=percentile(ttft, 99),
        itl_p50=percentile(itl, 50),
        itl_p99=percentile(itl, 99),
        num_preemptions=sum(req.retractions + req.swaps for req in trace.reqs.values()),
    )
