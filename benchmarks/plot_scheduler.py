"""How the cost of a step grows: with the reqs that run, and with the blocks that are cached. Draws docs/pictures/scheduler_*.svg.

python benchmarks/plot_scheduler.py            thread CPU time, medians; as test_scheduler.py
"""

from __future__ import annotations

import statistics
from pathlib import Path

import matplotlib as mpl
import numpy as np
from test_scheduler import Run, cached, cpu, median_step, steady
from workloads import BLOCK, prompt, req, scheduler

mpl.use("svg")
import matplotlib.pyplot as plt

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
RUNNING = (1, 4, 16, 64, 256, 512, 1024)
CACHED = (1_000, 4_000, 16_000, 64_000)


def churn(blocks: int) -> float:
    """Microseconds to admit, compute, end and evict for a req of 256 tokens, in a full cache of so many blocks."""
    run = Run(scheduler(blocks * BLOCK, 4, max_model_len=4096))
    filled = 0
    while filled < blocks + 64:
        run.s.add(req(f"f{filled}", prompt(filled, 2048), 1))
        run.to_end()
        filled += 128
    reqs = [req(f"c{i}", prompt(10_000_000 + i, 256), 1) for i in range(200)]
    times = []
    for r in reqs:
        run.s.add(r)
        times.append(cpu(run.to_end))
    return statistics.median(times)


def draw(name: str, title: str, x: tuple[int, ...], lines: dict[str, list[float]], label: str) -> None:
    """Log-log: a straight line of slope 1 is linear, a flat one constant."""
    figure, axes = plt.subplots(figsize=(6, 3.6))
    for what, y in lines.items():
        axes.loglog(x, y, marker="o", label=what)
    first = next(iter(lines.values()))
    if name.endswith("running"):
        axes.loglog(x, np.array(x) * first[-1] / x[-1], color="gray", linestyle=":", label="linear")
    axes.set(xlabel=label, ylabel="µs", title=title)
    axes.set_ylim(bottom=min(min(y) for y in lines.values()) / 3, top=max(max(y) for y in lines.values()) * 3)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(PICTURES / f"scheduler_{name}.svg", metadata={"Date": None})


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    steps = [median_step(steady(n), 100) for n in RUNNING]
    print("running", dict(zip(RUNNING, (round(v, 2) for v in steps), strict=True)))
    draw(
        "running",
        "A decode step, by the reqs that run",
        RUNNING,
        {"schedule + commit": steps},
        "running reqs",
    )
    with_cache = [median_step(cached(blocks), 100) for blocks in CACHED]
    turned = [churn(blocks) for blocks in CACHED]
    print("cached", dict(zip(CACHED, (round(v, 2) for v in with_cache), strict=True)))
    print("churn", dict(zip(CACHED, (round(v, 2) for v in turned), strict=True)))
    draw(
        "cached",
        "By the blocks in the prefix cache",
        CACHED,
        {"a decode step of 64": with_cache, "a new req of 256 tokens, its life, evicting": turned},
        "cached blocks",
    )


if __name__ == "__main__":
    main()
