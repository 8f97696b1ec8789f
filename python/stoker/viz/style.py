"""How pictures look: shades that differ in lightness and hatching, so that they can be read in black and white."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stoker.viz.spans import Phase

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Look(NamedTuple):
    """Of one phase."""

    face: str
    hatch: str
    line: str
    """Colour of the hatching."""
    text: str
    """Colour of a label on it."""


LOOKS = {
    Phase.PREFILL: Look("#1f3b57", "", "#1f3b57", "white"),
    Phase.DECODE: Look("#9ec5e6", "", "#9ec5e6", "black"),
    Phase.SITS_OUT: Look("#f3efe4", "////", "#a89f86", "black"),
    Phase.WAITING: Look("#ffffff", "....", "#b8b8b8", "black"),
    Phase.PREEMPTED: Look("#ffe3cf", "xxxx", "#c8571b", "black"),
    Phase.SWAPPED: Look("#ece0f4", "\\\\\\\\", "#6f4a8e", "black"),
    Phase.DISCARDED: Look("#ffffff", "||||||", "#888888", "black"),
}
SAYS = {
    Phase.PREFILL: "prefill",
    Phase.DECODE: "decode",
    Phase.SITS_OUT: "sits out",
    Phase.WAITING: "waits",
    Phase.PREEMPTED: "preempted",
    Phase.SWAPPED: "swapped to host memory",
    Phase.DISCARDED: "thrown away",
}
IDLE = "#f0f0f0"
LINES = (("black", "-"), ("#c8571b", "--"), ("#2c6fa6", ":"), ("#666666", "-."))
"""Colour and dash of the first, second, ... line of a plot."""


@contextmanager
def look() -> Generator[None, None, None]:
    """matplotlib's settings, for the block. Raises ValueError where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError("matplotlib is not installed; pictures need: pip install 'stoker[viz]'") from None
    settings: Any = {
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "hatch.linewidth": 0.6,
        "legend.frameon": False,
        "svg.hashsalt": "stoker",
        "svg.fonttype": "none",
    }
    with matplotlib.rc_context(settings):
        yield


def value_axis(axis: Axes) -> None:
    """For values that are drawn already: from 0 upwards, or logarithmic with plain numbers where they differ a hundredfold."""
    from matplotlib.ticker import NullFormatter

    drawn = np.concatenate([np.asarray(line.get_ydata(), np.float64) for line in axis.get_lines()])
    drawn = drawn[drawn > 0]
    if len(drawn) and drawn.max() > 100 * drawn.min():
        axis.set_yscale("log")
        axis.yaxis.set_minor_formatter(NullFormatter())
    else:
        axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter("{x:,g}")


def share_axis(axis: Axes, label: str) -> None:
    """For a distribution of times that is drawn already: logarithmic with plain numbers, shares upwards, the legend above."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_xscale("log")
    low, high = axis.get_xlim()
    wide = high > 1000 * max(low, 1e-9)  # more numbers would run into each other
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel(label)
    axis.set_ylim(0, 1.02)
    axis.grid(visible=True, which="major", color="#e6e6e6", linewidth=0.6)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0))
