"""Pictures of a trace beside the timeline: KV use, queue and tokens over time, latency distributions; and all on one page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stoker.viz.measures import inter_token_latencies, percentile, times_to_first_token, token_rates
from stoker.viz.style import LINES, look, share_axis
from stoker.viz.timeline import timeline
from stoker.viz.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KV = (
    ("used", "#1f3b57", ""),
    ("draining", "#c8571b", "xxxx"),
    ("cached", "#9ec5e6", "...."),
    ("free", "#f0f0f0", ""),
)


def kv_use(trace: Trace) -> Figure:
    """KV blocks by state over time: used, draining (nobody's, but a step in flight may touch it), cached, free."""
    return _over_time([_draw_kv], trace)


def queue(trace: Trace) -> Figure:
    """Reqs that wait and that run, over time."""
    return _over_time([_draw_queue], trace)


def tokens(trace: Trace) -> Figure:
    """What each step computed, and output tokens a second."""
    return _over_time([_draw_tokens], trace)


def overview(trace: Trace) -> Figure:
    """Tokens a step, queue and KV use on one time axis."""
    return _over_time([_draw_tokens, _draw_queue, _draw_kv], trace)


def latencies(traces: Sequence[Trace], names: Sequence[str] | None = None) -> Figure:
    """The distributions of time to first token and of inter-token latency; a line for each run."""
    with look():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 3.4), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        kinds: tuple[tuple[str, Callable[[Trace], list[float]]], ...] = (
            ("time to first token", times_to_first_token),
            ("inter-token latency", inter_token_latencies),
        )
        for axis, (name, values_of) in zip(axes, kinds, strict=True):
            for place, trace in enumerate(traces):
                values = [1e3 * value for value in values_of(trace)]
                colour, dash = LINES[place % len(LINES)]
                run = names[place] if names else str(trace.config.get("batching", "run"))
                label = f"{run} (p50 {_ms(percentile(values, 50))}, p99 {_ms(percentile(values, 99))} ms)"
                shares = [(i + 1) / len(values) for i in range(len(values))]
                # From 0 up at the smallest value, so that few values are seen as few steps.
                axis.plot([*values[:1], *values], [0, *shares][: len(values) + bool(values)], color=colour,
                          linestyle=dash, drawstyle="steps-post", label=label)  # fmt: skip
            share_axis(axis, f"{name} (ms)")
        axes[0].set_ylabel("share at most this long")
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """As PNG, SVG or PDF, by the name's end; the same figure gives the same bytes."""
    with look():
        meta: Any = {"Date": None} if str(path).endswith(".svg") else None
        figure.savefig(path, dpi=150, metadata=meta)


def pictures(
    traces: Sequence[Trace], names: Sequence[str], what: str, *, rows: str = "seat", x: str = "time"
) -> Figure:
    """The picture called `what`: timeline or latency of any number of runs; kv, queue, tokens, overview of one."""
    if what == "timeline":
        return timeline(traces, names, rows=rows, x=x)
    if what == "latency":
        return latencies(traces, names)
    if len(traces) != 1:
        raise ValueError(f"{what} shows one trace, got {len(traces)}; timeline and latency show several")
    return {"kv": kv_use, "queue": queue, "tokens": tokens, "overview": overview}[what](traces[0])


PICTURES = ("timeline", "overview", "kv", "queue", "tokens", "latency")


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _over_time(draws: Sequence[Callable[[Axes, Trace], None]], trace: Trace) -> Figure:
    with look():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 2.2 * len(draws) + 0.5), layout="constrained")
        axes = figure.subplots(len(draws), sharex=True, squeeze=False)[:, 0]
        for axis, draw in zip(axes, draws, strict=True):
            draw(axis, trace)
            axis.legend(loc="center left", bbox_to_anchor=(1.08, 0.5))
        axes[-1].set_xlim(0, trace.seconds or 1)
        axes[-1].set_xlabel("time (s)")
    return figure


def _edges(trace: Trace) -> list[float]:
    """Where each step begins, and where the last one ends, in seconds."""
    began = trace.began
    edges = [(step.start - began) / 1e9 for step in trace.steps]
    return [*edges, (trace.steps[-1].end - began) / 1e9] if trace.steps else [0.0]


def _steps(values: list[float]) -> list[float]:
    return [*values, values[-1]] if values else [0.0]


def _draw_kv(axis: Axes, trace: Trace) -> None:
    edges = _edges(trace)
    counts = {state: [float(s.stats.get(f"{state}_blocks", 0)) for s in trace.steps] for state, _, _ in _KV}
    bottom = [0.0] * len(trace.steps)
    for state, face, hatch in _KV:
        top = [low + count for low, count in zip(bottom, counts[state], strict=True)]
        if max(counts[state], default=0) > 0:
            axis.fill_between(edges, _steps(bottom), _steps(top), step="post", facecolor=face, label=state,
                              hatch=hatch or None, edgecolor="#5c5c5c" if hatch else face, linewidth=0)  # fmt: skip
        bottom = top
    host = [float(step.stats.get("host_used_blocks", 0)) for step in trace.steps]
    if any(host):
        values = _steps(host)
        # White below it, to stand out from any of the states.
        axis.plot(edges, values, color="white", linewidth=2.6, drawstyle="steps-post")
        axis.plot(edges, values, color="black", linewidth=1.2, linestyle="--", drawstyle="steps-post",
                  label="swapped (in host memory)")  # fmt: skip
    axis.set_ylim(0, max([*bottom, *host], default=1))
    axis.set_ylabel("KV blocks")


def _draw_queue(axis: Axes, trace: Trace) -> None:
    from matplotlib.ticker import MaxNLocator

    edges = _edges(trace)
    for (name, label), (colour, dash) in zip(
        (("num_waiting", "waiting"), ("num_running", "running"), ("num_swapped", "swapped")),
        LINES,
        strict=False,
    ):
        values = [float(step.stats.get(name, 0)) for step in trace.steps]
        if name != "num_swapped" or any(values):
            axis.plot(
                edges, _steps(values), color=colour, linestyle=dash, drawstyle="steps-post", label=label
            )
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylabel("requests")


def _draw_tokens(axis: Axes, trace: Trace) -> None:
    edges = _edges(trace)
    decode = [float(step.stats["num_decode_rows"]) for step in trace.steps]
    total = [float(step.stats["num_tokens"]) for step in trace.steps]
    axis.fill_between(edges, 0, _steps(total), step="post", facecolor="#1f3b57", linewidth=0, label="prefill")
    axis.fill_between(edges, 0, _steps(decode), step="post", facecolor="#9ec5e6", linewidth=0, label="decode")
    axis.set_ylabel("tokens a step")
    axis.set_ylim(0, max([*total, 1]) * 1.05)
    rates = token_rates(trace)
    began = trace.began
    twin = axis.twinx()
    twin.plot(
        [(t - began) / 1e9 for t, _ in rates],
        [rate for _, rate in rates],
        color="#c8571b",
        linestyle="--",
        linewidth=1.1,
    )
    twin.set_ylabel("output tokens/s")
    twin.set_ylim(bottom=0)
    twin.spines["right"].set_visible(True)
    axis.plot([], [], color="#c8571b", linestyle="--", linewidth=1.1, label="output tokens/s")
