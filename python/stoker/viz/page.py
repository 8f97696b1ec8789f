"""A trace as one HTML page that needs nothing else: its figures, its pictures, and what was run."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stoker.viz.measures import summary
from stoker.viz.pictures import pictures
from stoker.viz.style import look
from stoker.viz.trace import Trace

_HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>stoker trace</title>
<style>body{font:15px/1.5 sans-serif;max-width:1040px;margin:2em auto;padding:0 1em;color:#222}svg{max-width:100%;height:auto}
table{border-collapse:collapse}td,th{padding:.2em .9em .2em 0;text-align:right}th:first-child,td:first-child{text-align:left}
pre{background:#f5f5f5;padding:.8em;overflow:auto}</style>
"""


def save_page(traces: Sequence[Trace], names: Sequence[str], path: str | Path) -> None:
    """Timelines and latencies of all runs together, the overview of each."""
    parts = [_HEAD, "<h1>What the scheduler did</h1>", _table(traces, names)]
    parts += ["<h2>Timeline</h2>", _svg(pictures(traces, names, "timeline"), "t")]
    for number, (trace, name) in enumerate(zip(traces, names, strict=True)):
        parts += [f"<h2>{html.escape(name)}</h2>", _svg(pictures([trace], [name], "overview"), f"o{number}")]
    parts += ["<h2>Latency</h2>", _svg(pictures(traces, names, "latency"), "l")]
    for trace, name in zip(traces, names, strict=True):
        lines = [f"{key}: {value}" for key, value in trace.meta.items()]
        parts.append(f"<h3>{html.escape(name)}</h3><pre>{html.escape(chr(10).join(lines))}</pre>")
    Path(path).write_text("\n".join(parts) + "</html>\n", encoding="utf-8")


def _svg(figure: Any, salt: str) -> str:
    """The picture to be put into a page; ids differ from picture to picture."""
    out = io.StringIO()
    with look():
        import matplotlib

        with matplotlib.rc_context({"svg.hashsalt": salt}):
            figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _table(traces: Sequence[Trace], names: Sequence[str]) -> str:
    rows = [asdict(summary(trace)) for trace in traces]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr><td>{key.replace('_', ' ')}</td>"
        + "".join(f"<td>{row[key]:,.4g}</td>" for row in rows)
        + "</tr>"
        for key in rows[0]
    )
    return f"<table><tr><th></th>{head}</tr>{body}</table>"
