"""What this machine can do at most, measured: arithmetic by a large matrix product, bandwidth by reading a large array."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from stoker.engine.build import choose_device

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Peaks:
    """In FLOP and bytes a second."""

    flops: float
    bandwidth: float


def measure_peaks(device: str, dtype: str, *, repeat: int = 5) -> Peaks:
    """On an engine's `device` ("auto", "cpu", "cuda"): the best of `repeat` tries each, with the threads that torch uses for everything else: a product of two square
    matrices of `dtype` with float32's accumulation, and the sum over an array far larger than any cache."""
    place, kind = choose_device(device), getattr(torch, dtype)
    on_gpu = place.type == "cuda"
    n = 8192 if on_gpu else 1024
    a, b = torch.randn(n, n, device=place).to(kind), torch.randn(n, n, device=place).to(kind)
    flops = 2 * n**3 / _best(lambda: a @ b, repeat, on_gpu)
    # On a GPU as much as makes the wait for it short beside the reading: 1 GiB gave 3.9 of an H200's 4.7 TB/s.
    size = min(4096 * _MIB, torch.cuda.mem_get_info(place)[0] // 4) if on_gpu else 256 * _MIB
    array = torch.ones(size // 4, device=place)
    seconds = _best(lambda: array.sum(), repeat, on_gpu)
    return Peaks(flops, array.numel() * 4 / seconds)


def _best(work: Callable[[], object], repeat: int, on_gpu: bool) -> float:
    best = float("inf")
    for _ in range(repeat + 1):  # the first one warms up
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if on_gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best
