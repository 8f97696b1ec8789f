"""A trace survives its file, and its spans account for every moment and token of every req."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from recorded import recorded

from stoker.viz import Phase, Trace, req_spans, seat_spans
from stoker.viz.measures import inter_token_latencies, percentile, summary, times_to_first_token


@pytest.mark.parametrize("name", ["run.jsonl", "run.jsonl.gz"])
def test_a_file_holds_all_of_it(tmp_path: Path, name: str) -> None:
    """What was saved is what is loaded."""
    trace = recorded()
    trace.save(tmp_path / name)
    again = Trace.load(tmp_path / name)
    assert (again.meta, again.steps, again.reqs) == (trace.meta, trace.steps, trace.reqs)
    assert again.changes == trace.changes


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda lines: [], "is empty"),
        (lambda lines: ["{}"], "line 1: not a line of a stoker trace"),
        (lambda lines: ['{"stoker_trace": 99}'], "line 1: .*version 1"),
        (lambda lines: [*lines[:-1], lines[-1][:-5]], f"line {1}"),
        (lambda lines: [lines[0], lines[-1]], "line 2: .*of which no line before told"),
        (lambda lines: [lines[0], '{"req": {"key": 1}}'], "line 2: "),
    ],
)
def test_a_bad_line_is_named(spoil: object, says: str) -> None:
    """ValueError names the file and the line."""
    trace = recorded()
    import json

    lines = [json.dumps(line) for line in trace._lines()]
    if says == "line 1":
        says = f"line {len(lines)}: not a line"
    with pytest.raises(ValueError, match=says) as error:
        Trace.parse(spoil(lines), "x.jsonl")  # type: ignore[operator]
    assert "x.jsonl" in str(error.value)


@pytest.mark.parametrize("batching", ["continuous", "prefill_first", "static"])
def test_spans_leave_no_holes(batching: str) -> None:
    """From arrival to its last row a req is always doing something, and its tokens add up."""
    trace = recorded(batching)
    for key, spans in req_spans(trace).items():
        req = trace.reqs[key]
        assert spans[0].begin in (req.arrival_time, trace.steps[spans[0].first_step].start)
        for before, after in pairwise(spans):
            assert before.end <= after.begin
            assert before.end_step == after.first_step
        useful = [span for span in spans if span.phase is not Phase.DISCARDED]
        assert sum(s.num_tokens for s in useful if s.phase is Phase.DECODE) == req.num_outputs - 1
        if not req.retractions:
            computed = sum(s.num_tokens for s in useful if s.phase is Phase.PREFILL)
            assert computed == req.prompt_len - req.cached_tokens


def test_nobody_shares_a_seat() -> None:
    """Spans of one seat never overlap in steps."""
    for spans in seat_spans(req_spans(recorded())).values():
        for before, after in pairwise(spans):
            assert before.end_step <= after.first_step


def test_preemption_is_seen() -> None:
    """With too little KV somebody is preempted, is seen so, and comes back."""
    trace = recorded(num_blocks=18)
    away = {key for key, spans in req_spans(trace).items() if any(s.phase is Phase.PREEMPTED for s in spans)}
    assert away == {req.key for req in trace.reqs.values() if req.retractions} != set()
    assert summary(trace).num_preemptions >= len(away)


def test_static_holds_fewer_seats_than_continuous() -> None:
    """In steps, which no clock disturbs: static needs more of them for the same tokens."""
    static, continuous = recorded("static"), recorded()
    assert len(static.steps) > len(continuous.steps)
    assert sum(r.num_outputs for r in static.reqs.values()) == sum(
        r.num_outputs for r in continuous.reqs.values()
    )


def test_latencies_count_every_token() -> None:
    """A first token a req, and a gap for each token after it."""
    trace = recorded()
    assert len(times_to_first_token(trace)) == len(trace.reqs)
    outputs = sum(req.num_outputs for req in trace.reqs.values())
    assert len(inter_token_latencies(trace)) == outputs - len(trace.reqs)
    assert trace.num_outputs == outputs


def test_percentile() -> None:
    """The nearest rank."""
    values = [float(v) for v in range(1, 101)]
    assert [percentile(values, p) for p in (0, 1, 50, 99, 100)] == [1, 1, 50, 99, 100]
    assert percentile([], 50) != percentile([], 50)
