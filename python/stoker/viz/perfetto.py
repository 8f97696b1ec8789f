"""A trace in Chrome's trace-event JSON, which Perfetto and chrome://tracing open: a track for each seat, for each req
that waits, for the steps, and counters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stoker.viz.measures import token_rates
from stoker.viz.spans import Span, req_spans, seat_spans
from stoker.viz.trace import Trace

_SEATS, _QUEUE, _STEPS = 1, 2, 3
_HOST = ("receive", "schedule", "launch")


def perfetto_events(trace: Trace) -> list[dict[str, Any]]:
    """The events, times in microseconds from the trace's beginning."""
    spans = req_spans(trace)
    events: list[dict[str, Any]] = [
        _name("process_name", _SEATS, 0, "seats"),
        _name("process_name", _QUEUE, 0, "waiting reqs"),
        _name("process_name", _STEPS, 0, "steps"),
        _name("thread_name", _STEPS, 1, "device"),
        _name("thread_name", _STEPS, 2, "host"),
    ]
    for seat, held in seat_spans(spans).items():
        events.append(_name("thread_name", _SEATS, seat, f"seat {seat}"))
        events += [_span_event(trace, _SEATS, seat, span) for span in held]
    for key, own in spans.items():
        away = [span for span in own if not span.seat]
        if away:
            events.append(_name("thread_name", _QUEUE, key + 1, f"req {trace.reqs[key].label}"))
            events += [_span_event(trace, _QUEUE, key + 1, span) for span in away]
    return events + _step_events(trace) + _counters(trace)


def save_perfetto(trace: Trace, path: str | Path) -> None:
    """Writes them to a file."""
    data = {"traceEvents": perfetto_events(trace), "displayTimeUnit": "ms", "otherData": trace.meta}
    Path(path).write_text(json.dumps(data, separators=(",", ":")), encoding="utf-8")


def _name(what: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "args": {"name": name}}


def _span_event(trace: Trace, process: int, thread: int, span: Span) -> dict[str, Any]:
    req = trace.reqs[span.key]
    args: dict[str, Any] = {"rid": req.rid, "prompt_len": req.prompt_len, "tokens": span.num_tokens}
    if not span.seat:
        args["why"] = [
            f"{change.wait}: needs {change.needed}, {change.free} free, {change.evictable} evictable"
            for change in trace.changes
            if change.key == span.key and span.begin <= change.time < span.end and change.wait != "none"
        ]
    return _complete(
        trace, f"req {req.label}: {span.phase.value}", process, thread, span.begin, span.end, args
    )


def _complete(
    trace: Trace, name: str, process: int, thread: int, begin: int, end: int, args: dict[str, Any]
) -> dict[str, Any]:
    where = {"pid": process, "tid": thread}
    times = {"ts": (begin - trace.began) / 1e3, "dur": (end - begin) / 1e3}
    return {"ph": "X", "name": name, **where, **times, "args": args}


def _step_events(trace: Trace) -> list[dict[str, Any]]:
    events = []
    for step in trace.steps:
        name = f"step {step.batch_id}"
        args = {name: value for name, value in step.stats.items() if not name.endswith("_ns")}
        events.append(_complete(trace, name, _STEPS, 1, step.start, step.end, args))
        begin = int(step.stats["began"])
        for stage in _HOST:
            end = begin + int(step.stats[f"{stage}_ns"])
            events.append(_complete(trace, f"{stage} {step.batch_id}", _STEPS, 2, begin, end, {}))
            begin = end
        events.append(
            _complete(trace, f"commit {step.batch_id}", _STEPS, 2, step.end, int(step.stats["committed"]), {})
        )
    return events


def _counters(trace: Trace) -> list[dict[str, Any]]:
    events = []
    swaps = any(step.stats.get("host_blocks", 0) for step in trace.steps)
    for step, (time, rate) in zip(trace.steps, token_rates(trace), strict=True):
        stats, at = step.stats, (step.start - trace.began) / 1e3
        counts = {
            "KV blocks": {state: stats[f"{state}_blocks"] for state in ("used", "cached", "free")},
            **({"KV blocks in host memory": {"swapped": stats.get("host_used_blocks", 0)}} if swaps else {}),
            "queue": {"waiting": stats["num_waiting"]},
            "running": {"running": stats["num_running"]},
            "tokens a step": {
                "prefill": stats["num_tokens"] - stats["num_decode_rows"],
                "decode": stats["num_decode_rows"],
            },
        }
        events += [
            {"ph": "C", "name": name, "pid": _STEPS, "ts": at, "args": args} for name, args in counts.items()
        ]
        events.append(
            {
                "ph": "C",
                "name": "output tokens/s",
                "pid": _STEPS,
                "ts": (time - trace.began) / 1e3,
                "args": {"tokens/s": round(rate, 1)},
            }
        )
    return events
