"""Who did what when: the rows of a trace joined to spans, for each req and each seat."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from stoker.viz.trace import ReqTrace, Row, Step, Trace


class Phase(str, Enum):
    """What a req is doing."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    SITS_OUT = "sits out"
    """Holds its seat and has no row in the step."""
    PREEMPTED = "preempted"
    """Its KV was taken away; it is in the queue again."""
    SWAPPED = "swapped"
    DISCARDED = "discarded"
    """A row launched before it was known that the req had ended."""


@dataclass(slots=True)
class Span:
    """A stretch of one phase of one req."""

    key: int
    phase: Phase
    seat: int
    """0: none."""
    begin: int
    """Nanoseconds."""
    end: int
    first_step: int
    """Index into `Trace.steps`."""
    end_step: int
    """One after its last step."""
    num_tokens: int = 0
    """Computed in it."""


_AWAY = {"retracted": Phase.PREEMPTED, "swapping_out": Phase.SWAPPED, "swapped": Phase.SWAPPED}


def req_spans(trace: Trace) -> dict[int, list[Span]]:
    """For each req its spans in order, without holes from its arrival to its end (or the trace's)."""
    rows: dict[int, list[tuple[int, Step, Row]]] = {key: [] for key in trace.reqs}
    for index, step in enumerate(trace.steps):
        for row in step.rows:
            rows[row.key].append((index, step, row))
    away: dict[int, list[tuple[int, Phase]]] = {}
    for change in trace.changes:
        if change.state in _AWAY:
            away.setdefault(change.key, []).append((change.batch_id, _AWAY[change.state]))
    return {key: _spans_of(trace, req, rows[key], away.get(key, [])) for key, req in trace.reqs.items()}


def _spans_of(
    trace: Trace, req: ReqTrace, rows: list[tuple[int, Step, Row]], away: list[tuple[int, Phase]]
) -> list[Span]:
    spans: list[Span] = []
    begin, at, seat, last_batch = req.arrival_time, _step_at(trace, req.arrival_time), 0, 0
    for index, step, row in rows:
        late = bool(req.reason) and 0 < req.end_batch < step.batch_id
        phase = Phase.DISCARDED if late else Phase.DECODE if row.decodes else Phase.PREFILL
        if index > at or (not spans and step.start > begin):  # it was in no step for a while
            gap, gap_seat = Phase.WAITING, 0
            if spans:
                left = [p for batch, p in away if last_batch < batch <= step.batch_id]
                gap, gap_seat = (left[-1], 0) if left else (Phase.SITS_OUT, seat)
            spans.append(Span(req.key, gap, gap_seat, begin, max(begin, step.start), at, index))
        last = spans[-1] if spans else None
        if last is not None and (last.phase, last.seat, last.end_step) == (phase, row.seat, index):
            last.end, last.end_step = step.end, index + 1
            last.num_tokens += row.num_tokens
        else:
            spans.append(
                Span(req.key, phase, row.seat, step.start, step.end, index, index + 1, row.num_tokens)
            )
        begin, at, seat, last_batch = step.end, index + 1, row.seat, step.batch_id
    if not rows or not req.reason:  # never ran, or goes on after the trace's last step
        last_end = trace.steps[-1].end if trace.steps else begin
        end = req.finish_time if req.reason else last_end
        if end > begin and at < len(trace.steps) + (not rows):
            left = [p for batch, p in away if batch > last_batch]
            phase = left[-1] if left else Phase.SITS_OUT if rows else Phase.WAITING
            spans.append(
                Span(req.key, phase, 0 if left or not rows else seat, begin, end, at, _step_at(trace, end))
            )
    return spans


def _step_at(trace: Trace, time: int) -> int:
    """Index of the first step that began at `time` or later."""
    low, high = 0, len(trace.steps)
    while low < high:
        middle = (low + high) // 2
        if trace.steps[middle].start < time:
            low = middle + 1
        else:
            high = middle
    return low


def seat_spans(spans: dict[int, list[Span]]) -> dict[int, list[Span]]:
    """The same by seat, in order of time; spans without a seat are left out."""
    seats: dict[int, list[Span]] = {}
    for span in _flat(spans.values()):
        if span.seat:
            seats.setdefault(span.seat, []).append(span)
    for held in seats.values():
        held.sort(key=lambda span: span.begin)
    return dict(sorted(seats.items()))


def _flat(groups: Iterable[list[Span]]) -> Iterable[Span]:
    return (span for group in groups for span in group)
