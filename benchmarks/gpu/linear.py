"""Linear layers of a decode step: ours beside cuBLAS (torch.mm) and the bytes' time, alone and as a layer's chain.

    python benchmarks/gpu/linear.py OUT.json [--rows 1,8,64] [--models llama8b,qwen0.6b]

Weights rotate through more than the L2 holds; a layer's chain is norm, qkv, o, norm, gate_up with its activation, down, each
with weights of its own, as a model runs them (attention and rotary left out).
"""
# ruff: noqa: B023 (launches are timed before their loop goes on)

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from harness import filled, graph_us, machine

from stoker import ops

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
# name: (features, in, gated)
MODELS: dict[str, dict[str, tuple[int, int, bool]]] = {
    "llama8b": {
        "qkv": (6144, 4096, False),
        "o": (4096, 4096, False),
        "gate_up": (28672, 4096, True),
        "down": (4096, 14336, False),
        "lm_head": (128256, 4096, False),
    },
    "qwen0.6b": {
        "qkv": (4096, 1024, False),
        "o": (1024, 2048, False),
        "gate_up": (6144, 1024, True),
        "down": (1024, 3072, False),
        "lm_head": (151936, 1024, False),
    },
}
LAYERS = {"llama8b": 32, "qwen0.6b": 28}
L2_BYTES = 3 * (64 << 20)


class Pool:
    """One stretch of random numbers; weights are views of it, one after another."""

    def __init__(self, elements: int) -> None:
        self.wide = filled(elements, BF16).mul_(0.02)
        self.narrow = self.wide[: elements // 2].mul(50.0).to(FP8)

    def weights(self, features: int, columns: int, dtype: torch.dtype, sets: int = 0) -> list[torch.Tensor]:
        source = self.narrow if dtype == FP8 else self.wide
        size = features * columns
        count = sets or max(2, -(-L2_BYTES // (size * source.element_size())))
        count = max(1, min(count, source.numel() // size, 64))
        return [source[i * size : (i + 1) * size].view(features, columns) for i in range(count)]


def rows_of(results: list[dict[str, Any]], pool: Pool, model: str, rows: list[int]) -> None:
    """Each layer alone."""
    for name, (features, columns, gated) in MODELS[model].items():
        wide, narrow = pool.weights(features, columns, BF16), pool.weights(features, columns, FP8)
        for m in rows:
            x = torch.randn(m, columns, device="cuda", dtype=BF16)
            out = torch.empty(m, features, device="cuda", dtype=BF16)
            half = torch.empty(m, features // 2, device="cuda", dtype=BF16)
            x8, s8 = torch.empty(m, columns, device="cuda", dtype=FP8), torch.ones(m, device="cuda")
            w8 = torch.ones(features, device="cuda")
            launches = 32 if name == "lm_head" else 128
            row: dict[str, Any] = {
                "model": model,
                "layer": name,
                "rows": m,
                "mbytes": features * columns / 5e5,
            }

            def timed(launch: Callable[[int], None], replays: int = 5) -> float:
                return graph_us(launch, launches, replays)

            row["cublas_us"] = timed(lambda i: torch.mm(x, wide[i % len(wide)].t(), out=out))
            row["ours_us"] = timed(lambda i: ops.linear(out, x, wide[i % len(wide)]))
            if gated:
                row["gated_us"] = timed(lambda i: ops.linear(half, x, wide[i % len(wide)], silu_and_mul=True))
            row["fp8_us"] = timed(
                lambda i: ops.linear(out, x8, narrow[i % len(narrow)], x_scale=s8, weight_scale=w8)
            )
            row["gbps"] = features * columns * 2 / row["ours_us"] / 1e3
            text = f"{model:9s} {name:8s} {m:3d} rows: cuBLAS {row['cublas_us']:7.2f} ours {row['ours_us']:7.2f} us"
            text += f" ({row['gbps']:5.0f} GB/s) fp8 {row['fp8_us']:7.2f}"
            if gated:
                text += f" with activation {row['gated_us']:7.2f}"
            results.append(row)
            print(text, flush=True)


def chains(results: list[dict[str, Any]], pool: Pool, model: str, rows: list[int]) -> None:
    """One layer after another, every layer with weights of its own."""
    shapes = MODELS[model]
    layers = 8
    qkv, o, gate_up, down = (
        pool.weights(shapes[n][0], shapes[n][1], BF16, layers) for n in ("qkv", "o", "gate_up", "down")
    )
    hidden = shapes["qkv"][1]
    norm = torch.ones(hidden, device="cuda", dtype=BF16)
    for m in rows:
        x, residual = (torch.randn(m, hidden, device="cuda", dtype=BF16) for _ in range(2))
        q = torch.empty(m, shapes["qkv"][0], device="cuda", dtype=BF16)
        a = torch.randn(m, shapes["o"][1], device="cuda", dtype=BF16)
        both = torch.empty(m, shapes["gate_up"][0], device="cuda", dtype=BF16)
        f = torch.empty(m, shapes["down"][1], device="cuda", dtype=BF16)

        def cublas(i: int) -> None:
            i %= len(gate_up)
            ops.add_rms_norm(x, residual, x, norm, 1e-6)
            torch.mm(x, qkv[i].t(), out=q)
            torch.mm(a, o[i].t(), out=x)
            ops.add_rms_norm(x, residual, x, norm, 1e-6)
            torch.mm(x, gate_up[i].t(), out=both)
            ops.silu_and_mul(f, both)
            torch.mm(f, down[i].t(), out=x)

        def ours(i: int) -> None:
            i %= len(gate_up)
            ops.add_rms_norm(x, residual, x, norm, 1e-6)
            ops.linear(q, x, qkv[i])
            ops.linear(x, a, o[i])
            ops.add_rms_norm(x, residual, x, norm, 1e-6)
            ops.linear(f, x, gate_up[i], silu_and_mul=True)
            ops.linear(x, f, down[i])

        row = {"model": model, "layer": "chain of 6", "rows": m}
        row["mbytes"] = sum(shapes[n][0] * shapes[n][1] for n in ("qkv", "o", "gate_up", "down")) / 5e5
        row["cublas_us"], row["ours_us"] = graph_us(cublas, 32), graph_us(ours, 32)
        results.append(row)
        print(
            f"{model:9s} a layer  {m:3d} rows: cuBLAS {row['cublas_us']:7.2f} ours {row['ours_us']:7.2f} us,"
            f" bytes {row['mbytes'] / 4.719:.2f} on an H200",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out")
    parser.add_argument("--rows", default="1,2,4,8,16,32,64")
    parser.add_argument("--models", default="llama8b,qwen0.6b")
    args = parser.parse_args()
    rows = [int(r) for r in args.rows.split(",")]
    pool = Pool(1_900_000_000)
    results: list[dict[str, Any]] = []
    for model in args.models.split(","):
        chains(results, pool, model, rows)
    for model in args.models.split(","):
        rows_of(results, pool, model, rows)
    with open(args.out, "w") as file:
        json.dump({"machine": machine(), "rows": results}, file, indent=0)


if __name__ == "__main__":
    main()
