"""The attention kernels of stoker._cuda under pytest-benchmark; skipped where there is no GPU.

Run: pytest benchmarks -k gpu --benchmark-enable. A round is a captured graph of many launches over rotated KV;
extra_info has microseconds a launch, the floor by the bandwidth and the arithmetic measured here, and their ratio.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from stoker.engine import kernel_bench

CELLS = {"decode": kernel_bench.DECODE, "prefill": kernel_bench.PREFILL, "mixed": kernel_bench.MIXED}


@pytest.fixture(scope="module")
def gpu_grid() -> list[dict[str, object]]:
    pytest.importorskip("stoker._cuda")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return list(kernel_bench.measure("32/8", "auto"))


@pytest.mark.parametrize("kind", list(CELLS))
def test_gpu_kernels(benchmark: BenchmarkFixture, gpu_grid: list[dict[str, object]], kind: str) -> None:
    """One launch of the largest cell is what the round times; the grid stands in extra_info."""
    rows = [row for row in gpu_grid if row["kernel"] == kind]
    assert rows
    benchmark.group = kind
    benchmark.extra_info["grid"] = rows
    launch = kernel_bench.launcher(kind)
    benchmark.pedantic(launch, rounds=10, iterations=1, warmup_rounds=2)
