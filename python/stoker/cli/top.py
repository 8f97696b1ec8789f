"""`stoker top`: a running server, live in the terminal."""

from __future__ import annotations

import argparse
import math
import time
from typing import TYPE_CHECKING, Any

from stoker.cli.top_metrics import Past, fetch, quantile

if TYPE_CHECKING:
    from rich.console import RenderableType

HELP = "watch a running server"
_SPARKS = " ▁▂▃▄▅▆▇█"
_SHOWN = 6
"""Of the slowest requests."""
_LATENCIES = (
    ("time to first token", "stoker_time_to_first_token_seconds"),
    ("inter-token latency", "stoker_inter_token_latency_seconds"),
    ("waited in the queue", "stoker_queue_seconds"),
    ("whole request", "stoker_request_seconds"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where and how often to look."""
    parser.add_argument(
        "url", nargs="?", default="http://127.0.0.1:8000", help="of the server (default: %(default)s)"
    )
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="S", help="seconds between two looks (default: 1)"
    )
    parser.add_argument(
        "--window",
        type=float,
        default=30.0,
        metavar="S",
        help="percentiles and rates are of the last S seconds (default: 30)",
    )
    parser.add_argument("--api-key", metavar="KEY", help="if the server asks for one")
    parser.add_argument("--once", action="store_true", help="look for one interval, print, and end")


def run(args: argparse.Namespace) -> int:
    """Until Ctrl-C; exit code 0."""
    if not 0.1 <= args.interval <= 3600:
        raise ValueError(f"--interval {args.interval}: 0.1 to 3600 seconds are allowed")
    if args.window < args.interval:
        raise ValueError(f"--window {args.window}: at least the interval, {args.interval}")
    url = args.url if "://" in args.url else f"http://{args.url}"
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{args.url}: http:// or https:// is needed")
    url = url.rstrip("/").removesuffix("/v1")
    from rich.console import Console
    from rich.live import Live

    console, past = Console(highlight=False), Past(args.window)
    try:
        past.add(fetch(url, time.monotonic(), args.api_key))
    except OSError as error:
        raise ValueError(
            f"{url}: {getattr(error, 'reason', None) or error}; is `stoker serve` running there?"
        ) from None
    if args.once or not console.is_terminal:
        time.sleep(args.interval)
        past.add(fetch(url, time.monotonic(), args.api_key))
        console.print(view(url, past, "", console.width))
        return 0
    with Live(console=console, screen=True, auto_refresh=False) as live:
        trouble = ""
        try:
            while True:
                live.update(view(url, past, trouble, console.width), refresh=True)
                time.sleep(args.interval)
                try:
                    past.add(fetch(url, time.monotonic(), args.api_key))
                    trouble = ""
                except (OSError, ValueError) as error:
                    trouble = str(getattr(error, "reason", None) or error)
        except KeyboardInterrupt:
            return 0


def view(url: str, past: Past, trouble: str, width: int) -> RenderableType:
    """The whole screen."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    look = past.newest
    status = (
        (trouble, "bold red") if trouble else (look.status, "green" if look.status == "ready" else "yellow")
    )
    head = Text.assemble(
        ("stoker top  ", "bold"), (url, "cyan"), "  ", status, (f"   last {past.seconds:.0f} s", "dim")
    )
    facts = Table.grid(padding=(0, 2), expand=False)
    for _ in range(6):
        facts.add_column(justify="right")
    engine = look.engine
    facts.add_row(
        "waiting", _number(engine("num_waiting"), "yellow"),
        "running", _number(engine("num_running"), "green"),
        "in prefill", _number(engine("num_prefilling"), "blue"),
    )  # fmt: skip
    facts.add_row(
        "output tok/s", _number(past.rate("output_tokens"), "bold green"),
        "prompt tok/s", _number(past.rate("prompt_tokens")),
        "steps/s", _number(past.rate("num_steps")),
    )  # fmt: skip
    facts.add_row(
        "prefix hit rate",
        Text(_hit_rate(past)),
        "preemptions",
        _number(engine("num_preemptions"), "red" if past.rate("num_preemptions") else ""),
        "swapped",
        _number(engine("num_swapped"), "magenta"),
    )
    facts.add_row(
        "finished", _number(look.values.get("stoker_answers_finished_total", 0.0)),
        "open", _number(float(len(look.reqs))),
        "loop age ms", _number(1e3 * look.values.get("stoker_loop_age_seconds", 0.0)),
    )  # fmt: skip
    inner = max(20, width - 4)
    parts: list[Any] = [
        facts,
        Text(),
        _kv_line(past, inner),
        _sparks(past, inner),
        Text(),
        _latency_table(past),
        Text(),
        _endings(past),
    ]
    if look.reqs:
        parts += [Text(), _slowest(look.reqs)]
    return Panel(Group(*parts), title=head, title_align="left", border_style="grey50", padding=(0, 1))


def _number(value: float, style: str = "") -> Any:
    from rich.text import Text

    return Text(f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}", style=style)


def _hit_rate(past: Past) -> str:
    found = past.growth(["stoker_cached_prompt_tokens_total"])
    asked = past.growth(["stoker_prompt_tokens_total"])
    return f"{100 * found / asked:.0f}%" if asked else "-"


def _kv_line(past: Past, width: int) -> Any:
    from rich.text import Text

    look = past.newest
    total, free, cached = (
        look.engine(name) for name in ("num_blocks", "num_free_blocks", "num_cached_blocks")
    )
    if total <= 0:
        return Text("KV: not told")
    used = max(0.0, total - free - cached)
    says = f" {100 * used / total:3.0f}% used, {100 * cached / total:.0f}% cached of {total:,.0f} blocks"
    if (host := look.engine("num_host_blocks")) > 0:
        says += f", {host - look.engine('num_free_host_blocks'):,.0f} of {host:,.0f} in host memory"
    cells = max(8, width - len(says) - 3)
    full = round(cells * used / total)
    kept = min(cells - full, round(cells * cached / total))
    return Text.assemble(
        "KV ",
        ("█" * full, "blue"),
        ("▒" * kept, "grey50"),
        ("░" * (cells - full - kept), "grey23"),
        says,
        no_wrap=True,
        overflow="crop",
    )


def _sparks(past: Past, width: int) -> Any:
    from rich.text import Text

    rates = list(past.rates)[-(width - 20) :]
    top = max([*rates, 1.0])
    line = "".join(_SPARKS[min(8, max(0, int(8.99 * rate / top)))] for rate in rates)
    return Text.assemble(
        "tok/s ", (line, "green"), (f" top {top:,.0f}", "dim"), no_wrap=True, overflow="crop"
    )


def _latency_table(past: Past) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for place, head in enumerate(("seconds", "p50", "p90", "p99")):
        table.add_column(head, justify="right" if place else "left", header_style="dim")
    for name, histogram in _LATENCIES:
        buckets = past.recent(histogram)
        table.add_row(
            name,
            *(_seconds(quantile(buckets, share), min(buckets, default=0.0)) for share in (0.5, 0.9, 0.99)),
        )
    return table


def _slowest(reqs: list[dict[str, Any]]) -> Any:
    """The oldest of the open requests, and why they wait."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("slowest", "age s", "prompt", "output", "state"):
        right = head in ("age s", "prompt", "output")
        table.add_column(head, justify="right" if right else "left", header_style="dim", no_wrap=True)
    table.add_column("why it waits", header_style="dim", overflow="ellipsis", no_wrap=True)
    oldest = sorted(reqs, key=lambda req: -float(req.get("age") or 0.0))
    shown, rest = oldest[:_SHOWN], oldest[_SHOWN:]
    if not any(req.get("waits_for") for req in shown):  # those that wait are what one wants to know of
        held_up = [req for req in rest if req.get("waits_for")][: _SHOWN // 2]
        shown = shown[: _SHOWN - len(held_up)] + held_up
    for req in shown:
        waits = req.get("waits_for") or {}
        name = str(req.get("id", "?"))
        table.add_row(
            name if len(name) <= 14 else f"{name[:6]}…{name[-7:]}",
            f"{float(req.get('age') or 0.0):.1f}",
            *(str(req.get(key, "?")) for key in ("prompt_tokens", "output_tokens", "state")),
            str(waits.get("message", "")),
        )
    return table


def _seconds(value: float, finest: float) -> str:
    """`finest`: the first bucket's bound; below it nothing is known."""
    if math.isnan(value):
        return "-"
    if value < finest:
        return f"<{finest:g}"
    return f"{value:.4f}" if value < 0.1 else f"{value:.2f}"


def _endings(past: Past) -> Any:
    from rich.text import Text

    name = "stoker_answers_finished_total"
    reasons = {
        key[len(name) + 1 : -1]: value
        for key, value in past.newest.values.items()
        if key.startswith(name + "{")
    }
    text = Text("finished ")
    text.append(f"{sum(reasons.values()):,.0f}", style="bold")
    for reason, value in sorted(reasons.items()):
        text.append(f"   {reason} {value:,.0f}", style="red" if reason == "error" and value else "")
    return text
