"""Decode attention over the peers' grid: microseconds, bandwidth, and ratios to the best peer and to the bytes' floor.

Usage: python benchmarks/gpu/decode.py OUT.json [--cells quick|full] [--pool-gb 24] [--seconds 300] [--modes early,plain] [--only TEXT]
Modes: early = programmatic dependent launch with KV fetched before the launch ahead has ended (what an engine runs),
late = the same launch, nothing fetched before, plain = ordinary launches.
"""

from __future__ import annotations

import argparse
import json
import random
import time

import torch
from harness import ANCHORS, READ_GBPS, filled, graph_us, launches_for, machine, rotations

from stoker import _cuda
from stoker.ops.attention_plan import AttentionPlan

HEAD_DIM, BLOCK = 128, 16
BATCH = (1, 8, 32, 64, 128, 256)
CONTEXT = (128, 512, 1024, 2048, 4096, 8192, 16384, 65536)
HEADS = ((32, 8), (16, 8), (28, 4), (40, 8), (32, 32))
QUICK = (
    [
        ("decode", 32, 8, b, c)
        for b, c in ((1, 128), (1, 1024), (1, 4096), (1, 16384), (1, 65536), (8, 128), (8, 1024))
    ]
    + [
        ("decode", 32, 8, b, c)
        for b, c in ((8, 4096), (8, 16384), (32, 128), (32, 1024), (32, 4096), (64, 512))
    ]
    + [
        ("decode", 32, 8, b, c)
        for b, c in ((64, 2048), (128, 128), (128, 1024), (256, 128), (256, 512), (256, 4096))
    ]
    + [("decode", 16, 8, b, c) for b, c in ((8, 1024), (64, 128), (256, 128), (256, 2048))]
    + [("decode", 28, 4, b, c) for b, c in ((1, 1024), (8, 4096), (64, 1024), (256, 512))]
    + [("decode", 40, 8, b, c) for b, c in ((8, 1024), (64, 512), (256, 1024))]
    + [
        ("decode", 32, 32, b, c)
        for b, c in ((1, 128), (1, 1024), (8, 1024), (64, 128), (64, 1024), (256, 512))
    ]
    + [("ragged", 32, 8, 64, "63 x 512 + 1 x 65536"), ("ragged", 32, 8, 8, "uniform 100..2048")]
    + [("ragged", 32, 8, 64, "uniform 100..2048"), ("ragged", 32, 8, 256, "uniform 100..8192")]
    + [("fp8", 32, 8, b, c) for b, c in ((1, 4096), (8, 4096), (64, 4096), (256, 4096))]
)


def contexts(batch: int, context: int | str) -> list[int]:
    """KV lengths of a cell; the ragged ones drawn as the peers' were."""
    if isinstance(context, int):
        return [context] * batch
    if context.startswith("63"):
        return [512] * 63 + [65536]
    low, high = (int(x) for x in context.split()[1].split(".."))
    draw = random.Random(batch + high)
    return [draw.randint(low, high) for _ in range(batch)]


def full_grid() -> list[tuple[str, int, int, int, int | str]]:
    cells: list[tuple[str, int, int, int, int | str]] = [
        ("decode", hq, hkv, b, c)
        for hq, hkv in HEADS
        for b in BATCH
        for c in CONTEXT
        if f"decode {hq}/{hkv} {b} x {c}" in ANCHORS
    ]
    for hq, hkv in ((32, 8), (16, 8)):
        cells += [
            ("ragged", hq, hkv, b, f"uniform {lo}..{hi}")
            for b in (8, 64, 128, 256)
            for lo, hi in ((100, 2048), (100, 8192))
        ]
        cells.append(("ragged", hq, hkv, 64, "63 x 512 + 1 x 65536"))
    return cells + [("fp8", 32, 8, b, c) for b in (1, 8, 64, 256) for c in (1024, 4096, 16384)]


class Pools:
    """Memory that K and V sets are cut from, made when first needed."""

    def __init__(self, gigabytes: float) -> None:
        self.bytes = int(gigabytes * 1e9 / 2)
        self._made: dict[torch.dtype, tuple[torch.Tensor, torch.Tensor]] = {}

    def get(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        if dtype not in self._made:
            self._made.clear()
            n = self.bytes // dtype.itemsize
            self._made[dtype] = (filled(n, dtype), filled(n, dtype))
        return self._made[dtype]


def measure(
    pools: Pools, kind: str, hq: int, hkv: int, batch: int, context: int | str, modes: list[str]
) -> list[dict]:
    dtype = torch.float8_e4m3fn if kind == "fp8" else torch.bfloat16
    lengths = contexts(batch, context)
    blocks = [(n + BLOCK - 1) // BLOCK for n in lengths]
    total = sum(blocks)
    elements = total * BLOCK * hkv * HEAD_DIM
    k_pool, v_pool = pools.get(dtype)
    if elements > k_pool.numel():
        return []
    rotation = rotations(2 * elements * dtype.itemsize, 2 * pools.bytes)
    shape = (total, hkv, BLOCK, HEAD_DIM)
    sets = [
        tuple(p[r * elements : (r + 1) * elements].view(shape) for p in (k_pool, v_pool))
        for r in range(rotation)
    ]
    order = torch.randperm(total, device="cuda", dtype=torch.int32)
    table = torch.zeros(batch, max(blocks), dtype=torch.int32, device="cuda")
    at = 0
    for row, count in enumerate(blocks):
        table[row, :count] = order[at : at + count]
        at += count
    queries = [torch.randn(batch, hq, HEAD_DIM, dtype=torch.bfloat16, device="cuda") for _ in range(4)]
    out = torch.empty_like(queries[0])
    seat = torch.arange(batch, dtype=torch.int32, device="cuda")
    indptr = torch.arange(batch + 1, dtype=torch.int32, device="cuda")
    length = torch.tensor(lengths, dtype=torch.int32, device="cuda")
    plan = AttentionPlan(queries[0], sets[0][0], max_rows=batch, max_tokens=batch)
    begin = time.perf_counter()
    plan.update(range(batch), range(batch + 1), lengths, batch)
    plan_us = (time.perf_counter() - begin) * 1e6
    bytes_read = 2 * sum(lengths) * hkv * HEAD_DIM * dtype.itemsize
    name = f"{kind} {hq}/{hkv} {batch} x {context}"
    anchor = ANCHORS.get(name, {})
    floor = bytes_read / READ_GBPS / 1e3
    rows = []
    for mode in modes:
        plan.early, plan.overlap = mode == "early", mode != "plain"

        def launch(i: int) -> None:
            k, v = sets[i % rotation]
            _cuda.paged_attention(
                out,
                queries[i % 4],
                k,
                v,
                table,
                seat,
                indptr,
                length,
                HEAD_DIM**-0.5,
                0,
                0.0,
                1.0,
                1.0,
                batch,
                plan,
            )

        us = graph_us(launch, launches_for(rotation, floor + 4))
        best = anchor.get("best_us")
        rows.append(
            {
                "cell": name,
                "mode": mode,
                "us": us,
                "gbps": bytes_read / us / 1e3,
                "mb": bytes_read / 1e6,
                "floor_us": floor,
                "best_peer_us": best,
                "peer_over_ours": best / us if best else None,
                "aim_us": 2 + 1.1 * floor,
                "plan_us": plan_us,
                "workers": plan.num_workers,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--cells", default="quick", choices=("quick", "full"))
    parser.add_argument("--pool-gb", type=float, default=24)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--modes", default="early,plain")
    parser.add_argument("--only", default="", help="cells whose name holds this")
    options = parser.parse_args()
    begin = time.monotonic()
    pools = Pools(options.pool_gb)
    rows: list[dict] = []
    cells = list(QUICK) if options.cells == "quick" else full_grid()
    for cell in cells:
        if options.only not in "{} {}/{} {} x {}".format(*cell):
            continue
        if time.monotonic() - begin > options.seconds:
            print("out of time before", cell)
            break
        for row in measure(pools, *cell, options.modes.split(",")):
            rows.append(row)
            peer = (
                f"{row['best_peer_us']:8.1f} {row['peer_over_ours']:5.2f}x"
                if row["best_peer_us"]
                else " " * 15
            )
            print(
                f"{row['cell']:44s} {row['mode']:6s} {row['us']:8.1f} us {row['gbps']:6.0f} GB/s  floor {row['floor_us']:7.1f}"
                f"  aim {row['aim_us']:7.1f}  peer {peer}",
                flush=True,
            )
    for mode in options.modes.split(","):
        ratios = [
            r["peer_over_ours"]
            for r in rows
            if r["mode"] == mode and r["peer_over_ours"] and "fp8" not in r["cell"]
        ]
        if ratios:
            mean = torch.tensor(ratios).log().mean().exp().item()
            print(
                f"{mode}: {len(ratios)} cells, best peer / ours: geometric mean {mean:.3f}, least {min(ratios):.3f}"
            )
    with open(options.out, "w") as file:
        json.dump({"machine": machine(), "rows": rows}, file, indent=0)


if __name__ == "__main__":
    main()
