"""Pictures can be drawn, say what they show, and hide nothing behind something else."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from recorded import recorded

from stoker.viz.perfetto import perfetto_events, save_perfetto

pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection

from stoker.viz.page import save_page
from stoker.viz.pictures import PICTURES, pictures, save
from stoker.viz.spans import Phase, req_spans
from stoker.viz.timeline import timeline


@pytest.mark.parametrize("what", PICTURES)
def test_every_picture_has_units_and_a_legend(what: str) -> None:
    """Each axis is named, the last one of them with its unit; somewhere there is a legend."""
    figure = pictures([recorded(num_blocks=18)], ["run"], what)
    axes = figure.axes
    assert all(axis.get_ylabel() for axis in axes if axis.get_ylabel() or axis is axes[0])
    assert any("(s)" in axis.get_xlabel() or "(ms)" in axis.get_xlabel() for axis in axes)
    assert figure.legends or any(axis.get_legend() for axis in axes)


@pytest.mark.parametrize("rows", ["seat", "req"])
def test_no_text_lies_on_another(rows: str) -> None:
    """Labels, titles and the legend keep apart."""
    figure = timeline([recorded("static"), recorded()], rows=rows)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = []
    for axis in figure.axes:
        texts = [*axis.texts, axis.title, axis.xaxis.label, axis.yaxis.label, *axis.get_yticklabels()]
        texts.append(axis._left_title)  # type: ignore[attr-defined]
        boxes += [t.get_window_extent(renderer) for t in texts if t.get_text()]
    boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    assert len(boxes) > 10
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_the_same_trace_gives_the_same_svg(tmp_path: Path) -> None:
    """No dates, no random ids."""
    for name in ("a.svg", "b.svg"):
        save(timeline([recorded()]), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_page(tmp_path: Path) -> None:
    """One file with its pictures in it and nothing to fetch."""
    save_page([recorded("static"), recorded()], ["static", "<continuous>"], tmp_path / "p.html")
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert text.count("<svg") == 4
    assert "&lt;continuous&gt;" in text
    assert "src=" not in text


def test_bad_words() -> None:
    """ValueError says what is allowed."""
    with pytest.raises(ValueError, match="seat or req"):
        timeline([recorded()], rows="block")
    with pytest.raises(ValueError, match="one trace, got 2"):
        pictures([recorded(), recorded()], ["a", "b"], "kv")


def test_swapped_reqs_are_seen(tmp_path: Path) -> None:
    """Their spans on the timeline, their blocks in host memory beside the pool's, a counter for Perfetto; none where nothing can swap."""
    trace = recorded(num_blocks=20, num_host_blocks=40)
    assert max(step.stats["host_used_blocks"] for step in trace.steps) > 0
    assert all(step.stats["host_blocks"] == 39 for step in trace.steps)
    assert Phase.SWAPPED in {span.phase for spans in req_spans(trace).values() for span in spans}
    (axis, *_) = pictures([trace], ["swap"], "kv").axes
    assert "swapped (in host memory)" in axis.get_legend_handles_labels()[1]
    counts = [e["args"]["swapped"] for e in perfetto_events(trace) if e["name"] == "KV blocks in host memory"]
    assert counts == [step.stats["host_used_blocks"] for step in trace.steps]


def test_a_req_ends_once() -> None:
    """Not on the seat that it left when it was preempted."""
    trace = recorded(num_blocks=20, num_host_blocks=40)
    moved = [key for key, spans in req_spans(trace).items() if len({span.seat for span in spans} - {0}) > 1]
    assert moved, "no req changed its seat: the test says nothing"
    (axis,) = timeline([trace]).axes
    marks = sum(len(lines.get_segments()) for lines in axis.collections if isinstance(lines, LineCollection))
    assert marks == sum(bool(req.reason) for req in trace.reqs.values())


def test_perfetto(tmp_path: Path) -> None:
    """A track for each seat and each waiting req, spans that nest in none other on their track, counters."""
    trace = recorded()
    save_perfetto(trace, tmp_path / "t.json")
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert events == json.loads(json.dumps(perfetto_events(trace)))
    names = {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert {"seat 1", "seat 4", "device", "host", "waiting reqs"} <= names
    counters = {event["name"] for event in events if event["ph"] == "C"}
    assert counters == {"KV blocks", "queue", "running", "tokens a step", "output tokens/s"}
    tracks: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in events:
        if event["ph"] == "X" and event["pid"] != 3:
            tracks.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["dur"]))
    for spans in tracks.values():
        spans.sort()
        assert all(dur >= 0 for _, dur in spans)
        assert all(a + dur <= b + 0.01 for (a, dur), (b, _) in pairwise(spans))
    whys = [why for e in events if e["ph"] == "X" for why in e["args"].get("why", [])]
    assert any(why.startswith("seats: needs 1, 0 free") for why in whys)
