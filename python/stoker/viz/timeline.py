"""The timeline of a batch, as in the textbook drawing: who prefills, decodes, waits and ends at each step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from stoker.viz.measures import summary
from stoker.viz.spans import Phase, Span, req_spans, seat_spans
from stoker.viz.style import IDLE, LOOKS, SAYS, look
from stoker.viz.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES_A_ROW, _WIDTH = 0.26, 10.0
_BAR = 0.78
_MOST_ROWS = 80


def timeline(
    traces: Sequence[Trace], titles: Sequence[str] | None = None, *, rows: str = "seat", x: str = "time"
) -> Figure:
    """Runs below one another on one axis. `rows`: a row for each "seat" or each "req"; `x`: "time" in seconds, or "step",
    where every step is as wide as the others. Raises ValueError for other words, or for more rows than can be read."""
    if rows not in ("seat", "req") or x not in ("time", "step"):
        raise ValueError(f"rows is seat or req and x is time or step, got rows={rows!r}, x={x!r}")
    with look():
        from matplotlib.figure import Figure

        lanes = [_lanes(trace, rows) for trace in traces]
        most = max(len(own) for own in lanes)
        if most > _MOST_ROWS:
            raise ValueError(
                f"{most} rows cannot be told apart; up to {_MOST_ROWS} can: record fewer requests"
            )
        heights = [max(len(own), 3) * _INCHES_A_ROW for own in lanes]
        figure = Figure(figsize=(_WIDTH, sum(heights) + 0.62 * len(traces) + 0.95), layout="constrained")
        axes = figure.subplots(len(traces), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for place, (axis, trace, own) in enumerate(zip(axes, traces, lanes, strict=True)):
            title = titles[place] if titles else str(trace.config.get("batching", "run"))
            _draw(axis, trace, own, title, rows, x)
        last = max(_extent(trace, x) for trace in traces)
        axes[0].set_xlim(0, last)
        axes[-1].set_xlabel("time (s)" if x == "time" else "step")
        for axis, own in zip(axes, lanes, strict=True):
            _label(axis, own, rows, x, last)
        _legend(figure, lanes, rows)
    return figure


_USELESS = (Phase.DISCARDED, Phase.WAITING)


class _Lane:
    """One row of the picture."""

    def __init__(self, name: str, spans: list[Span], trace: Trace) -> None:
        self.name, self.spans, self.trace = name, spans, trace

    def interval(self, span: Span, x: str) -> tuple[float, float]:
        if x == "step":
            return float(span.first_step), float(span.end_step)
        began = self.trace.began
        return (span.begin - began) / 1e9, (span.end - began) / 1e9


def _lanes(trace: Trace, rows: str) -> list[_Lane]:
    spans = req_spans(trace)
    if rows == "seat":
        held = seat_spans(spans)
        seats = max(int(trace.config.get("max_num_seqs", 0)), max(held, default=1))
        if seats > _MOST_ROWS:
            seats = max(held, default=1)
        return [_Lane(str(seat), held.get(seat, []), trace) for seat in range(1, seats + 1)]
    order = sorted(trace.reqs.values(), key=lambda req: (req.arrival_time, req.key))
    return [_Lane(req.label, spans[req.key], trace) for req in order]


def _extent(trace: Trace, x: str) -> float:
    return float(len(trace.steps)) if x == "step" else trace.seconds


def _span(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1e3 * seconds:.2f} ms"


def _draw(axis: Axes, trace: Trace, lanes: list[_Lane], title: str, rows: str, x: str) -> None:
    found = summary(trace)
    axis.set_title(
        f"{title}: {found.num_reqs} requests in {_span(found.seconds)} and {found.num_steps} steps, "
        f"{found.tokens_per_second:,.0f} tokens/s, seats in use {100 * found.seats_in_use:.0f}%"
    )
    last: dict[int, int] = {}  # a req that was preempted may end on another seat than it began on
    for span in (span for lane in lanes for span in lane.spans if span.phase not in _USELESS):
        last[span.key] = max(last.get(span.key, 0), span.end)
    for y, lane in enumerate(lanes):
        if rows == "seat":
            axis.broken_barh([(0, _extent(trace, x))], (y - _BAR / 2, _BAR), facecolors=IDLE, linewidth=0)
        for phase, phase_look in LOOKS.items():
            own = [lane.interval(span, x) for span in lane.spans if span.phase is phase]
            bars = [(begin, end - begin) for begin, end in own if end > begin]
            if bars:
                axis.broken_barh(
                    bars,
                    (y - _BAR / 2, _BAR),
                    facecolors=phase_look.face,
                    edgecolors=phase_look.line,
                    hatch=phase_look.hatch or None,
                    linewidth=0,
                )
        for key, own_spans in groupby(lane.spans, key=lambda span: span.key):
            if trace.reqs[key].reason:
                useful = [s for s in own_spans if s.phase not in _USELESS]
                if useful and useful[-1].seat and useful[-1].end == last[key]:
                    end = lane.interval(useful[-1], x)[1]
                    axis.vlines(end, y - _BAR / 2, y + _BAR / 2, colors="black", linewidth=1.8, clip_on=False)
    axis.set_yticks(range(len(lanes)), [lane.name for lane in lanes])
    axis.set_ylim(len(lanes) - 0.45, -0.55)
    axis.set_ylabel("seat" if rows == "seat" else "request")
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)


def _label(axis: Axes, lanes: list[_Lane], rows: str, x: str, extent: float) -> None:
    """A req's number on the widest of its spans, where it fits."""
    if rows == "req":
        return  # it stands at the left
    a_character = extent / (_WIDTH - 0.8) * 0.085
    for y, lane in enumerate(lanes):
        for key, own in groupby(lane.spans, key=lambda span: span.key):
            label = lane.trace.reqs[key].label
            computing = [s for s in own if s.phase in (Phase.PREFILL, Phase.DECODE)]
            if not computing:
                continue
            widest = max(computing, key=lambda span: span.end - span.begin)
            begin, end = lane.interval(widest, x)
            if end - begin > a_character * (len(label) + 0.6):
                colour = LOOKS[widest.phase].text
                axis.text((begin + end) / 2, y, label, ha="center", va="center", color=colour, fontsize=8)


def _legend(figure: Figure, lanes: list[list[_Lane]], rows: str) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    present = {span.phase for own in lanes for lane in own for span in lane.spans}
    handles: list[Any] = [
        Patch(
            facecolor=phase_look.face,
            edgecolor=phase_look.line,
            hatch=phase_look.hatch or None,
            label=SAYS[phase],
            linewidth=0,
        )
        for phase, phase_look in LOOKS.items()
        if phase in present
    ]
    if rows == "seat":
        handles.append(Patch(facecolor=IDLE, label="empty seat"))
    handles.append(
        Line2D(
            [],
            [],
            color="black",
            marker="|",
            linestyle="none",
            markersize=9,
            markeredgewidth=1.8,
            label="ends",
        )
    )
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles) if len(handles) <= 6 else 4,
        handlelength=1.6,
    )
