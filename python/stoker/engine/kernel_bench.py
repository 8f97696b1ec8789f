"""Times the attention kernels on this GPU over a grid of batches and contexts, each beside its floor: what `stoker bench
kernels` shows. A launch's time is a replayed graph's over its launches, over KV that is rotated so that no cache serves it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch

from stoker.engine.peaks import measure_peaks
from stoker.ops import paged_attention
from stoker.ops.attention_plan import AttentionPlan

HEAD_DIM, BLOCK = 128, 16
DECODE = [(batch, context) for batch in (1, 8, 32, 64, 128, 256) for context in (128, 1024, 4096, 16384)]
PREFILL = [(64, 128, 128), (16, 512, 512), (1, 2048, 2048), (1, 8192, 8192), (16, 512, 8192)]
MIXED = [(2048, 2048, 64, 2048), (512, 2048, 128, 2048)]
_ROTATED = 1 << 30  # bytes of KV that launches go round


def measure(heads: str, kv_dtype: str) -> Iterator[dict[str, Any]]:
    """A row for each cell: microseconds, its floor by the arithmetic and the bandwidth measured here, and their ratio.

    `heads`: query heads/KV heads, such as "32/8"; `kv_dtype`: "auto" (bf16) or "fp8". ValueError without a GPU.
    """
    if not torch.cuda.is_available():
        raise ValueError("bench kernels needs an NVIDIA GPU; torch sees none")
    try:
        q_heads, kv_heads = (int(part) for part in heads.split("/"))
    except ValueError:
        raise ValueError(f"--heads {heads}: must be query heads/KV heads, such as 32/8") from None
    if kv_heads < 1 or q_heads < 1 or q_heads % kv_heads:
        raise ValueError(f"--heads {heads}: query heads must be a multiple of KV heads, both at least 1")
    peaks = measure_peaks("cuda", "bfloat16")
    dtype = torch.bfloat16 if kv_dtype == "auto" else torch.float8_e4m3fn
    free, _ = torch.cuda.mem_get_info()
    tokens = min(256 * 16384, int(free * 0.7) // (2 * kv_heads * HEAD_DIM * dtype.itemsize))
    shape = (tokens // BLOCK, kv_heads, BLOCK, HEAD_DIM)
    pools = [torch.empty(shape, device="cuda", dtype=torch.bfloat16).normal_().to(dtype) for _ in range(2)]
    cells = [("decode", [(1, context)] * batch) for batch, context in DECODE]
    cells += [("prefill", [(n, kv)] * batch) for batch, n, kv in PREFILL]
    cells += [("mixed", [(1, length)] * decodes + [(n, kv)]) for n, kv, decodes, length in MIXED]
    for kind, rows in cells:
        if sum(-(-kv // BLOCK) for _, kv in rows) > len(pools[0]):
            continue  # more KV than the memory holds
        read = sum(kv for _, kv in rows) * 2 * kv_heads * HEAD_DIM * dtype.itemsize
        flops = sum(4.0 * q_heads * HEAD_DIM * (n * (kv - n) + n * (n + 1) / 2) for n, kv in rows)
        us = graph_us(*_launches(rows, q_heads, pools, read))
        floor = max(read / peaks.bandwidth, flops / peaks.flops) * 1e6
        yield {
            "kernel": kind,
            "rows": _named(rows),
            "us": us,
            "floor_us": floor,
            "times_floor": us / floor,
            "gb_per_second": read / us / 1e3,
            "tflops": flops / us / 1e6,
        }


def _named(rows: list[tuple[int, int]]) -> str:
    counts: dict[tuple[int, int], int] = {}
    for row in rows:
        counts[row] = counts.get(row, 0) + 1
    return " + ".join(f"{count} x ({n}, {kv})" for (n, kv), count in counts.items())


def _launches(
    rows: list[tuple[int, int]], q_heads: int, pools: list[torch.Tensor], read: int
) -> tuple[Callable[[int], None], int]:
    """What launches the i-th of a batch's launches, and how many go round the rotated KV."""
    blocks = [-(-kv // BLOCK) for _, kv in rows]
    total = sum(blocks)
    sets = max(1, min(math.ceil(_ROTATED / read), len(pools[0]) // total, 64))
    views = [[pool[i * total : (i + 1) * total] for pool in pools] for i in range(sets)]
    order = torch.randperm(total, device="cuda", dtype=torch.int32)
    table = torch.zeros(len(rows), max(blocks), dtype=torch.int32, device="cuda")
    at = 0
    for row, count in enumerate(blocks):
        table[row, :count] = order[at : at + count]
        at += count
    decodes = sum(n == 1 for n, _ in rows)
    indptr = [0]
    for n, _ in rows:
        indptr.append(indptr[-1] + n)
    q = torch.randn(indptr[-1], q_heads, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(q)
    plan = AttentionPlan(q, views[0][0], max_rows=len(rows), max_tokens=indptr[-1])
    lengths = [kv for _, kv in rows]
    plan.update(range(len(rows)), indptr, lengths, decodes)
    seat, starts, kv_len = (
        torch.tensor(values, dtype=torch.int32, device="cuda")
        for values in (range(len(rows)), indptr, lengths)
    )

    def launch(i: int) -> None:
        k, v = views[i % sets]
        paged_attention(
            out,
            q,
            k,
            v,
            table,
            seat,
            starts,
            kv_len,
            scale=HEAD_DIM**-0.5,
            num_decode_rows=decodes,
            plan=plan,
        )

    return launch, max(sets, 16)


def launcher(kind: str, heads: str = "32/8") -> Callable[[], None]:
    """Runs a graph of launches of one cell (of a middle size) and waits for it: for other benchmark tools."""
    q_heads, kv_heads = (int(part) for part in heads.split("/"))
    rows = {
        "decode": [(1, 4096)] * 32,
        "prefill": [(2048, 2048)],
        "mixed": [(1, 2048)] * 64 + [(2048, 2048)],
    }[kind]
    shape = (1 << 14, kv_heads, BLOCK, HEAD_DIM)
    pools = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    graph = _graph(*_launches(rows, q_heads, pools, sum(kv for _, kv in rows) * 4 * kv_heads * HEAD_DIM))

    def run() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return run


def _graph(launch: Callable[[int], None], launches: int) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        launch(0)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(launches):
            launch(i)
    return graph


def graph_us(launch: Callable[[int], None], launches: int, replays: int = 5) -> float:
    """Median microseconds of one launch inside a replayed graph of `launches`; launch(i) launches the i-th."""
    graph = _graph(launch, launches)
    graph.replay()
    torch.cuda.synchronize()
    times: list[float] = []
    for _ in range(replays):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(float(begin.elapsed_time(end)) / launches * 1e3)
    return statistics.median(times)
