"""What `stoker demo` shows: the lanes that requests move through, and a picture of who held a seat when."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from stoker.cli.demo_load import DemoRequest
    from stoker.engine.output import EngineStats

COLOURS = {"story": "cyan", "recall": "magenta"}
_NARROWEST = 74  # columns; below them there is one line instead of lanes
_SPARKS = " ▁▂▃▄▅▆▇█"


@dataclass
class Shown:
    """How one request stands, as the view sees it."""

    request: DemoRequest
    lane: str = "coming"
    """coming, waiting, prefill, decode, done."""
    num_tokens: int = 0
    text: str = ""
    right: bool | None = None
    """Of a recall prompt that is done."""


@dataclass
class Meter:
    """Tokens a second, smoothed over half a second, with its past."""

    history: deque[float] = field(default_factory=lambda: deque(maxlen=200))
    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    def sample(self, now: float, total: int) -> float:
        """Takes the total so far; returns the rate."""
        self._samples.append((now, total))
        while len(self._samples) > 2 and now - self._samples[0][0] > 0.5:
            self._samples.popleft()
        then, before = self._samples[0]
        rate = (total - before) / (now - then) if now > then else 0.0
        self.history.append(rate)
        return rate


def lanes(
    shown: list[Shown], stats: EngineStats, meter: Meter, now: float, seats: int, width: int
) -> RenderableType:
    """The whole live view: four lanes and a line of gauges."""
    if width < _NARROWEST:
        rate = meter.history[-1] if meter.history else 0.0
        return Text(plain_line(shown, stats, rate, now), no_wrap=True, overflow="crop")
    by_lane = {
        lane: [s for s in shown if s.lane == lane] for lane in ("waiting", "prefill", "decode", "done")
    }
    # Widths that follow from the terminal's alone, so that nothing jumps.
    narrow, done_width = 15, 19
    decode_width = max(24, width - 2 * narrow - done_width)
    grid = Table.grid(expand=False)
    for lane_width in (narrow, narrow, decode_width, done_width):
        grid.add_column(width=lane_width)
    height = seats
    grid.add_row(
        _lane("waiting", by_lane["waiting"], [_chip(s) for s in by_lane["waiting"]], "yellow", height),
        _lane("prefill", by_lane["prefill"], [_chip(s) for s in by_lane["prefill"]], "blue", height),
        _lane(
            "decode",
            by_lane["decode"],
            [_growing(s, decode_width - 4) for s in by_lane["decode"]],
            "green",
            height,
        ),
        _lane("done", by_lane["done"], _done_rows(by_lane["done"], done_width - 4), "white", height),
    )
    return Group(grid, _gauges(stats, meter, now, width))


def plain_line(shown: list[Shown], stats: EngineStats, rate: float, now: float) -> str:
    """The live view where there is no terminal: one line."""
    count = {lane: sum(s.lane == lane for s in shown) for lane in ("waiting", "prefill", "decode", "done")}
    used = stats.num_blocks - stats.num_free_blocks - stats.num_cached_blocks
    return (
        f"{now:5.1f} s  waiting {count['waiting']:2}  prefill {count['prefill']:2}  decode {count['decode']:2}  "
        f"done {count['done']:2}  {rate:6.0f} tok/s  KV {100 * used / stats.num_blocks:3.0f}%"
    )


def _lane(name: str, shown: list[Shown], rows: list[Text], colour: str, height: int) -> Panel:
    if len(rows) > height:
        hidden = len(rows) - height + 1
        rows = [*rows[: height - 1], Text(f"+ {hidden} more", style="dim")]
    rows = [*rows, *[Text("")] * (height - len(rows))]
    title = Text.assemble((name, f"bold {colour}"), (f" {len(shown)}", colour))
    return Panel(Group(*rows), title=title, title_align="left", border_style=colour, padding=(0, 1))


def _chip(shown: Shown) -> Text:
    request = shown.request
    return Text.assemble(
        (f"{request.number:02} ", f"bold {COLOURS[request.kind]}"),
        (f"{request.num_prompt_tokens:>4} tok", "dim"),
    )


def _growing(shown: Shown, width: int) -> Text:
    request = shown.request
    cells = 10
    filled = min(cells, round(cells * shown.num_tokens / request.expected_tokens))
    colour = COLOURS[request.kind]
    text = Text.assemble(
        (f"{request.number:02} ", f"bold {colour}"),
        ("━" * filled, colour),
        ("━" * (cells - filled), "grey23"),
        (f" {shown.num_tokens:>3} ", "dim"),
    )
    room = width - text.cell_len
    tail = " ".join(shown.text.split())
    if room > 4 and tail:
        text.append(tail if len(tail) < room else "…" + tail[-(room - 1) :], style="italic")
    text.no_wrap = True
    return text


def _done_rows(shown: list[Shown], width: int) -> list[Text]:
    a_row = max(1, (width + 1) // 4)
    rows = []
    for begin in range(0, len(shown), a_row):
        row = Text()
        for s in shown[begin : begin + a_row]:
            mark = "·" if s.right is None else "✓" if s.right else "✗"
            style = COLOURS[s.request.kind] if s.right is None else "green" if s.right else "bold red"
            row.append(f"{s.request.number:02}{mark} ", style=style)
        rows.append(row)
    return rows


def _gauges(stats: EngineStats, meter: Meter, now: float, width: int) -> Text:
    used = stats.num_blocks - stats.num_free_blocks - stats.num_cached_blocks
    rate = meter.history[-1] if meter.history else 0.0
    line = Text.assemble((f"{rate:7,.0f}", "bold green"), " tok/s ", no_wrap=True, overflow="crop")
    rest = Text.assemble(
        "  KV ",
        *_bar(used, stats.num_cached_blocks, stats.num_blocks, 12),
        f"  step {stats.num_steps}",
        f"  {now:4.1f} s",
    )
    room = width - line.cell_len - rest.cell_len
    if room > 0:
        past = list(meter.history)[-room:]
        top = max([*meter.history, 1.0])
        sparks = "".join(_SPARKS[min(8, int(8.99 * value / top))] for value in past)
        line.append(sparks.ljust(room), style="green")
    line.append(rest)
    return line


def _bar(used: int, cached: int, total: int, cells: int) -> list[tuple[str, str]]:
    filled = round(cells * used / total)
    kept = min(cells - filled, round(cells * cached / total))
    rest = cells - filled - kept
    return [
        ("█" * filled, "blue"),
        ("▒" * kept, "grey50"),
        ("░" * rest, "grey23"),
        (f" {100 * used / total:3.0f}%", "bold blue"),
        (f" +{100 * cached / total:.0f}% cached", "grey50"),
    ]


@dataclass(frozen=True, slots=True)
class Span:
    """When one request was computed, in seconds from the start of its run."""

    kind: str
    scheduled: float
    first_token: float
    finished: float


def seats_picture(spans: list[Span], seats: int, seconds: float, cells: int) -> list[Text]:
    """A row for each seat, time to the right over `seconds`: prefill light, decode full, an empty seat a dot."""
    rows = [[("·", "grey23")] * cells for _ in range(seats)]
    free_at = [0.0] * seats
    scale = cells / seconds
    for order, span in enumerate(sorted(spans, key=lambda s: s.scheduled)):
        # The seat that has been free longest; never more spans at once than seats, but for clock noise.
        seat = min(range(seats), key=lambda i: (free_at[i] > span.scheduled + 1e-3, free_at[i]))
        free_at[seat] = span.finished
        shade = COLOURS[span.kind] if order % 2 else f"bright_{COLOURS[span.kind]}"
        begin, middle, end = (
            min(cells, int(t * scale)) for t in (span.scheduled, span.first_token, span.finished)
        )
        for cell in range(begin, max(end, begin + 1)):
            if cell < cells:
                rows[seat][cell] = ("▒" if cell < middle else "█", shade)
    return [Text.assemble(*row) for row in rows]
