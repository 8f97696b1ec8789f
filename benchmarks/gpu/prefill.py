"""Prefill attention and mixed batches over the peers' grid: microseconds, TFLOP/s, the best paged peer beside them.

Usage: python benchmarks/gpu/prefill.py OUT.json [--heads 32/8,16/8,28/4] [--pool-gb 16] [--seconds 200]
    [--parts prefill,mixed,fp8] [--shares 56,60,64] [--small-shares 14,16,18,22]
fp8: the same cells over an e4m3 cache (name it last: it replaces the pools), beside the peers' bf16 figures.
A mixed batch is timed in one call (side by side on shares of the multiprocessors, and one after the other), and as two calls on two streams with the chunk on a share of the multiprocessors.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import READ_GBPS, filled, graph_us, machine, rotations

from stoker import _cuda
from stoker.ops.attention_plan import AttentionPlan

HEAD_DIM, BLOCK = 128, 16
PEAK_TFLOPS = 680.0  # a sustained matrix product on this kind of machine
# batch x (tokens, KV): best paged peer in TFLOP/s, by heads (32/8, 16/8, 28/4)
PREFILL = {
    (64, 128, 128): (113, 92, 101),
    (16, 512, 512): (283, 241, 257),
    (4, 2048, 2048): (504, 477, 469),
    (1, 2048, 2048): (471, 421, 438),
    (1, 8192, 8192): (646, 621, 605),
    (16, 512, 8192): (605, 588, 579),
    (4, 2048, 32768): (590, 602, 579),
    (1, 2048, 32768): (622, 608, 557),
}
HEADS = ("32/8", "16/8", "28/4")
# (chunk, context, decodes, decode context): best peer in microseconds at 32/8 and 16/8
MIXED = {(2048, 2048, 64, 2048): (215.4, 180.4), (512, 2048, 128, 2048): (287.2, 272.3)}


class Batch:
    """Rows of (tokens, KV length) over rotated KV sets."""

    def __init__(
        self, pools: tuple[torch.Tensor, torch.Tensor], rows: list[tuple[int, int]], hq: int, hkv: int
    ) -> None:
        blocks = [-(-kv // BLOCK) for _, kv in rows]
        total = sum(blocks)
        elements = total * BLOCK * hkv * HEAD_DIM
        self.rotation = min(16, rotations(2 * elements * pools[0].element_size(), 2 * pools[0].nbytes))
        shape = (total, hkv, BLOCK, HEAD_DIM)
        self.sets = [
            tuple(p[r * elements : (r + 1) * elements].view(shape) for p in pools)
            for r in range(self.rotation)
        ]
        order = torch.randperm(total, device="cuda", dtype=torch.int32)
        self.table = torch.zeros(len(rows), max(blocks), dtype=torch.int32, device="cuda")
        at = 0
        for row, count in enumerate(blocks):
            self.table[row, :count] = order[at : at + count]
            at += count
        self.tokens = [n for n, _ in rows]
        self.lengths = [kv for _, kv in rows]
        self.indptr = [sum(self.tokens[:i]) for i in range(len(rows) + 1)]
        self.queries = [
            torch.randn(self.indptr[-1], hq, HEAD_DIM, dtype=torch.bfloat16, device="cuda") for _ in range(2)
        ]
        self.out = torch.empty_like(self.queries[0])
        i32: dict[str, Any] = {"dtype": torch.int32, "device": "cuda"}
        self.index = [torch.tensor(x, **i32) for x in (range(len(rows)), self.indptr, self.lengths)]

    def plan(self, decode: int, **options: int) -> AttentionPlan:
        plan = AttentionPlan(
            self.queries[0], self.sets[0][0], max_rows=len(self.tokens), max_tokens=self.indptr[-1], **options
        )
        plan.update(range(len(self.tokens)), self.indptr, self.lengths, decode)
        return plan

    def launch(self, i: int, decode: int, plan: AttentionPlan) -> None:
        k, v = self.sets[i % self.rotation]
        _cuda.paged_attention(
            self.out,
            self.queries[i % 2],
            k,
            v,
            self.table,
            *self.index,
            HEAD_DIM**-0.5,
            0,
            0.0,
            1.0,
            1.0,
            decode,
            plan,
        )


def flops(rows: list[tuple[int, int]], hq: int) -> float:
    return sum(4 * hq * HEAD_DIM * (n * (kv - n) + n * (n + 1) / 2) for n, kv in rows)


def measure_prefill(
    pools: tuple[torch.Tensor, torch.Tensor], heads: str, cell: tuple[int, int, int]
) -> dict[str, Any]:
    hq, hkv = (int(x) for x in heads.split("/"))
    batch, tokens, kv = cell
    rows = [(tokens, kv)] * batch
    b = Batch(pools, rows, hq, hkv)
    plan = b.plan(0)
    work = flops(rows, hq)
    us = graph_us(lambda i: b.launch(i, 0, plan), max(4, min(64, int(4000 / (work / 4e8 + 4)))))
    peer = PREFILL[cell][HEADS.index(heads)]
    return {
        "cell": f"prefill {heads} {batch} x ({tokens}, {kv})",
        "us": us,
        "tflops": work / us / 1e6,
        "floor_us": work / PEAK_TFLOPS / 1e6,
        "best_paged_peer_tflops": peer,
        "ours_over_peer": work / us / 1e6 / peer,
    }


def measure_mixed(
    pools: tuple[torch.Tensor, torch.Tensor],
    heads: str,
    cell: tuple[int, int, int, int],
    shares: list[int],
    weights: list[int],
) -> list[dict[str, Any]]:
    hq, hkv = (int(x) for x in heads.split("/"))
    chunk, context, decodes, length = cell
    b = Batch(pools, [(1, length)] * decodes + [(chunk, context)], hq, hkv)
    whole = b.plan(decodes)
    apart = b.plan(decodes, num_workers=whole.num_workers)
    apart.side_by_side = False
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    per_processor = whole.num_workers // processors
    side = torch.cuda.Stream()
    urgent = torch.cuda.Stream(priority=-1)

    def two_streams(i: int, prefill: AttentionPlan, decode: AttentionPlan) -> None:
        here = torch.cuda.current_stream()
        urgent.wait_stream(here)
        side.wait_stream(here)
        with torch.cuda.stream(urgent):
            b.launch(i, decodes, prefill)
        with torch.cuda.stream(side):
            b.launch(i, decodes, decode)
        here.wait_stream(urgent)
        here.wait_stream(side)

    def one_stream(plan: AttentionPlan) -> Callable[[int], None]:
        return lambda i: b.launch(i, decodes, plan)

    runs = {
        f"side by side, chunk on {whole.num_prefill_share}": one_stream(whole),
        "one after the other": one_stream(apart),
        "of side by side the chunk alone": one_stream(whole.half(decode=False)),
        "of side by side the decode rows alone": one_stream(whole.half(decode=True)),
    }
    for weight in weights:
        plan = b.plan(decodes, prefill_step_in_tokens=weight)
        runs[f"side by side, chunk on {plan.num_prefill_share} ({weight})"] = one_stream(plan)
    for share in shares:
        plan = b.plan(decodes, num_workers=per_processor * (processors - share), num_prefill_workers=share)
        halves = {"prefill": plan.half(decode=False), "decode": plan.half(decode=True)}
        runs[f"two streams, chunk on {share}"] = partial(two_streams, **halves)
    bytes_floor = sum(b.lengths) * hkv * HEAD_DIM * 4 / READ_GBPS / 1e3
    rows = []
    for how, run in runs.items():
        us = graph_us(run, max(b.rotation, 16))
        rows.append(
            {
                "cell": f"mixed {heads} chunk {chunk} at {context} + {decodes} decodes at {length}",
                "how": how,
                "us": us,
                "decode_bytes_floor_us": bytes_floor,
                "best_peer_us": MIXED[cell][HEADS.index(heads)],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--heads", default="32/8,16/8,28/4")
    parser.add_argument("--pool-gb", type=float, default=16)
    parser.add_argument("--seconds", type=float, default=200)
    parser.add_argument("--parts", default="prefill,mixed")
    parser.add_argument("--shares", default="56,60,64", help="multiprocessors for a chunk of 2048")
    parser.add_argument("--small-shares", default="14,16,18,22", help="for a chunk of 512")
    parser.add_argument("--weights", default="", help="prefill_step_in_tokens to try besides")
    options = parser.parse_args()
    begin = time.monotonic()
    elements = int(options.pool_gb * 1e9 / 4)
    pools = (filled(elements, torch.bfloat16), filled(elements, torch.bfloat16))
    rows: list[dict[str, Any]] = []
    for part in options.parts.split(","):
        if part == "fp8":
            pools = tuple(filled(elements, torch.float8_e4m3fn) for _ in range(2))
        for heads in options.heads.split(","):
            for cell in MIXED if part == "mixed" else PREFILL:
                if time.monotonic() - begin > options.seconds:
                    print("out of time before", part, heads, cell)
                    continue
                if part != "mixed":
                    row = measure_prefill(pools, heads, cell)
                    row["cell"] = row["cell"].replace("prefill", part)
                    rows.append(row)
                    print(
                        f"{row['cell']:34s} {row['us']:9.1f} us {row['tflops']:6.1f} TFLOP/s  floor {row['floor_us']:8.1f} us"
                        f"  best paged peer {row['best_paged_peer_tflops']:4d}  ours / peer {row['ours_over_peer']:.2f}",
                        flush=True,
                    )
                elif heads != "28/4":
                    given = options.shares if cell[0] > 512 else options.small_shares
                    shares = [int(x) for x in given.split(",") if x]
                    weights = [int(x) for x in options.weights.split(",") if x]
                    for row in measure_mixed(pools, heads, cell, shares, weights):
                        rows.append(row)
                        print(
                            f"{row['cell']:52s} {row['how']:26s} {row['us']:7.1f} us  best peer {row['best_peer_us']:.1f}",
                            flush=True,
                        )
    with open(options.out, "w") as file:
        json.dump({"machine": machine(), "rows": rows}, file, indent=0)


if __name__ == "__main__":
    main()
