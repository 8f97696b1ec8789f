"""The ops beside attention: microseconds, and bytes moved against what memory gives. Usage: python benchmarks/gpu/ops.py OUT.json"""
# ruff: noqa: B023 (launches are timed before their loop goes on)

from __future__ import annotations

import json
import sys

import torch
from harness import graph_us, machine

from stoker import ops

BF16 = torch.bfloat16


def main() -> None:
    rows = []

    def report(name: str, us: float, bytes_moved: float) -> None:
        rows.append({"op": name, "us": us, "gbps": bytes_moved / us / 1e3})
        print(f"{name:52s} {us:9.2f} us {bytes_moved / us / 1e3:7.0f} GB/s", flush=True)

    for tokens in (1, 256, 8192):
        sets = max(2, min(16, (1 << 30) // (tokens * 4096 * 8)))
        x = [torch.randn(tokens, 4096, device="cuda", dtype=BF16) for _ in range(sets)]
        r = [torch.randn(tokens, 4096, device="cuda", dtype=BF16) for _ in range(sets)]
        out, w = torch.empty_like(x[0]), torch.randn(4096, device="cuda", dtype=BF16)
        us = graph_us(lambda i: ops.rms_norm(out, x[i % sets], w, 1e-6), 64)
        report(f"rms_norm {tokens} x 4096", us, tokens * 4096 * 4)
        us = graph_us(lambda i: ops.add_rms_norm(out, r[i % sets], x[i % sets], w, 1e-6), 64)
        report(f"add_rms_norm {tokens} x 4096", us, tokens * 4096 * 8)
        g = [torch.randn(tokens, 28672, device="cuda", dtype=BF16) for _ in range(min(sets, 4))]
        act = torch.empty(tokens, 14336, device="cuda", dtype=BF16)
        us = graph_us(lambda i: ops.silu_and_mul(act, g[i % len(g)]), 64)
        report(f"silu_and_mul {tokens} x 14336", us, tokens * 14336 * 6)
        qkv = [torch.randn(tokens, 48, 128, device="cuda", dtype=BF16) for _ in range(min(sets, 8))]
        cos_sin = torch.randn(16384, 128, device="cuda")
        position = torch.arange(tokens, device="cuda", dtype=torch.int32)
        slots = torch.randperm(8192, device="cuda")[:tokens].int()
        k, v = (torch.zeros(600, 8, 16, 128, device="cuda", dtype=BF16) for _ in range(2))
        norm = torch.randn(128, device="cuda", dtype=BF16)

        def rope(i: int) -> None:
            t = qkv[i % len(qkv)]
            ops.rope_and_cache(
                t[:, :32], t[:, 32:40], t[:, 40:], position, cos_sin, k, v, slots, q_norm=norm, k_norm=norm
            )

        report(f"rope_and_cache {tokens} tokens 32/8", graph_us(rope, 64), tokens * 96 * 128 * 2)
    for n in (1, 256):
        logits = [torch.randn(n, 151936, device="cuda", dtype=BF16) * 3 for _ in range(4)]
        out = torch.zeros(n, dtype=torch.int32, device="cuda")
        seats, position = (torch.arange(k, n + k, dtype=torch.int32, device="cuda") for k in (1, 0))
        for name, options in {
            "greedy": {},
            "temperature": {"temperature": 0.8},
            "top-p 0.95": {"temperature": 0.8, "top_p": 0.95},
            "top-k 50, top-p 0.95, min-p 0.01": {
                "temperature": 0.8,
                "top_k": 50,
                "top_p": 0.95,
                "min_p": 0.01,
            },
        }.items():
            table = ops.SeatTable(n + 1, 151936, "cuda")
            for field, value in options.items():
                getattr(table, field).fill_(value)
            us = graph_us(lambda i: ops.sample(out, logits[i % 4], table, seats, position), 32)
            report(f"sample {n} x 151936 {name}", us, n * 151936 * 2)
    device = torch.randn(2048, 512 * 1024, device="cuda", dtype=BF16)
    host = torch.zeros(1024, 512 * 1024, dtype=BF16).pin_memory()
    pairs = torch.stack([torch.randperm(1024), torch.randperm(1024)], 1)[:256].int()
    for to_host in (True, False):
        for where in ("cpu", "cuda"):
            moved = pairs.to(where)
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            times = []
            for _ in range(3):
                begin.record()
                ops.swap_blocks(device, host, moved, to_host=to_host)
                end.record()
                end.synchronize()
                times.append(begin.elapsed_time(end) * 1e3)
            report(
                f"swap_blocks to_host={to_host} pairs on {where}, 256 x 1 MiB", sorted(times)[1], 256 * 2**20
            )
    moved = torch.stack([torch.arange(256), torch.arange(256, 512)], 1).int().cuda()
    report("copy_blocks 256 x 1 MiB", graph_us(lambda i: ops.copy_blocks(device, moved), 8), 2 * 256 * 2**20)
    with open(sys.argv[1], "w") as file:
        json.dump({"machine": machine(), "rows": rows}, file, indent=0)


if __name__ == "__main__":
    main()
