"""Pictures of simulated runs: distributions of latencies, the run's course, and a sweep's figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stoker.viz.style import LINES, look, share_axis, value_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stoker.sim.run import Run, Slo

_UNITS = {
    "rate": "rate (requests/s)",
    "speed": "speed (times the trace's rate)",
    "max_num_batched_tokens": "token budget of a step (tokens)",
    "max_num_seqs": "seats (requests)",
    "block_size": "block size (tokens)",
    "num_kv_blocks": "KV pool (blocks)",
    "users": "users (requests at once)",
    "num_replicas": "replicas",
}


def picture(runs: Sequence[Run], names: Sequence[str], slo: Slo | None = None) -> Figure:
    """Distributions of time to first token and of inter-token latency (a line a run), and below them the first run's course:
    requests that run and wait, KV in use, tokens a second."""
    with look():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 7), layout="constrained")
        grid = figure.add_gridspec(4, 2, height_ratios=[1.7, 1, 1, 1])
        first, second = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
        for place, (run, name) in enumerate(zip(runs, names, strict=True)):
            colour, dash = LINES[place % len(LINES)]
            report = run.report()
            ttft = np.sort(run.ttft) * 1e3
            shares = np.arange(1, len(ttft) + 1) / len(ttft)
            first.plot(ttft, shares, color=colour, linestyle=dash, label=_label(name, report["ttft"]))
            middles, counts = run.gaps
            if len(counts):
                shares = np.cumsum(counts) / counts.sum()
                label = _label(name, report["itl"])
                second.plot(middles / 1e6, shares, color=colour, linestyle=dash, label=label)
        _limit(first, slo.ttft if slo else None)
        _limit(second, slo.itl if slo else None)
        for axis, label in ((first, "time to first token (ms)"), (second, "inter-token latency (ms)")):
            share_axis(axis, label)
        first.set_ylabel("share at most this long")
        course = runs[0].course
        seconds = (np.arange(len(course["running"])) + 0.5) * course["bin_ns"] / 1e9
        share = 100 * course["used_blocks"] / np.maximum(course["total_blocks"], 1e-9)
        cached = 100 * course["cached_blocks"] / np.maximum(course["total_blocks"], 1e-9)
        lines: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = (
            ("requests", (("running", course["running"]), ("waiting", course["waiting"]))),
            ("KV blocks (%)", (("in use", share), ("in use or cached", share + cached))),
            (
                "tokens/s",
                tuple((n, course[f"{n}_tokens"] / course["bin_ns"] * 1e9) for n in ("output", "prefill")),
            ),
        )
        shared: Axes | None = None
        for row, (label, drawn) in enumerate(lines, 1):
            axis = figure.add_subplot(grid[row, :], sharex=shared)
            shared = shared or axis
            for place, (name, values) in enumerate(drawn):
                colour, dash = LINES[place]
                axis.plot(seconds, values, color=colour, linestyle=dash, linewidth=1, label=name)
            axis.set_ylabel(label)
            axis.set_ylim(bottom=0)
            axis.yaxis.set_major_formatter("{x:,.0f}")
            axis.margins(x=0)
            axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
            axis.tick_params(labelbottom=row == len(lines))
        axis.set_xlabel("time (s)")
    return figure


def sweep_picture(rows: Sequence[dict[str, Any]], varied: dict[str, list[Any]], find: str | None) -> Figure:
    """Against the first varied value, a line for each combination of the others: throughput and the 99th percentiles; for a
    search, what was found."""
    if not varied:
        raise ValueError("a picture of a sweep needs something that is varied")
    (x, xs), *others = varied.items()
    figures: tuple[tuple[str, Any], ...] = (
        ("output tokens/s", lambda row: row["output_tokens_per_s"]),
        ("time to first token, p99 (ms)", lambda row: 1e3 * row["ttft"]["p99"]),
        ("inter-token latency, p99 (ms)", lambda row: 1e3 * row["itl"]["p99"]),
    )
    if find is not None:
        name = "highest rate (requests/s)" if find == "rate" else "fewest replicas"
        figures = ((name, lambda row: np.nan if row[find] is None else row[find]),)
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(", ".join(f"{name} {row[name]}" for name, _ in others), []).append(row)
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in xs)
    with look():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3.6 * len(figures) + 1, 3.4), layout="constrained")
        for axis, (label, of) in zip(np.atleast_1d(figure.subplots(1, len(figures))), figures, strict=True):
            for place, (kind, members) in enumerate(kinds.items()):
                colour, dash = LINES[place % len(LINES)]
                at = [row[x] if numbers else str(row[x]) for row in members]
                axis.plot(
                    at,
                    [of(row) for row in members],
                    color=colour,
                    linestyle=dash,
                    marker="o",
                    markersize=3,
                    label=kind,
                )
            axis.set_xlabel(_UNITS.get(x, x.replace("_", " ")))
            axis.set_ylabel(label)
            value_axis(axis)
            axis.grid(visible=True, color="#e6e6e6", linewidth=0.6)
        if len(kinds) > 1:
            figure.legend(
                *axis.get_legend_handles_labels(), loc="outside lower center", ncols=min(len(kinds), 4)
            )
    return figure


def _label(name: str, figures: dict[str, float]) -> str:
    p50, p99 = (f"{1e3 * figures[p]:,.{0 if figures[p] >= 0.1 else 2}f}" for p in ("p50", "p99"))
    return f"{name} (p50 {p50}, p99 {p99} ms)"


def _limit(axis: Axes, seconds: float | None) -> None:
    if seconds is not None:
        axis.axvline(
            1e3 * seconds,
            color="#888888",
            linewidth=0.8,
            linestyle=":",
            label=f"limit ({1e3 * seconds:g} ms)",
        )
