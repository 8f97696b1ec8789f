"""Timing on a GPU: CUDA graphs of many launches over rotating data, medians of replays; the peers' figures to stand beside.

Method as in the peers' measurements: random data, randomly permuted blocks, KV sets rotated through at least 1 GiB so that
no cache serves them, one launch's time = a replayed graph's time / its launches, median of the replays.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ANCHORS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "anchors.json").read_text())
READ_GBPS = 4719.0  # what a plain read of device memory reaches on this kind of machine
_stream: list[torch.cuda.Stream] = []


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": driver.stdout.strip(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
    }


def graph_us(launch: Callable[[int], None], launches: int, replays: int = 5) -> float:
    """Median microseconds of one launch inside a replayed graph of `launches`; launch(i) launches the i-th."""
    if not _stream:
        _stream.append(torch.cuda.Stream())
    stream = _stream[0]
    with torch.cuda.stream(stream):
        launch(0)
        launch(1)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(launches):
            launch(i)
    graph.replay()
    torch.cuda.synchronize()
    times = []
    for _ in range(replays):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / launches * 1e3)
    return statistics.median(times)


def rotations(bytes_of_set: int, bytes_of_pool: int) -> int:
    """How many sets to rotate through: 1 GiB of them, as far as the pool goes."""
    return max(1, min(math.ceil((1 << 30) / bytes_of_set), bytes_of_pool // bytes_of_set, 400))


def launches_for(rotation: int, estimated_us: float) -> int:
    """Enough launches for a few milliseconds, at most 400."""
    if estimated_us >= 3000:
        return max(2, min(rotation, 2))
    return min(400, max(rotation, math.ceil(3000 / estimated_us)))


def filled(elements: int, dtype: torch.dtype) -> torch.Tensor:
    """Normal random numbers, made in pieces."""
    out = torch.empty(elements, dtype=dtype, device="cuda")
    step = 1 << 28
    for i in range(0, elements, step):
        part = torch.randn(min(step, elements - i), device="cuda", dtype=torch.bfloat16)
        out[i : i + step] = part.to(dtype)
    return out
