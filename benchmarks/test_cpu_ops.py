"""Each CPU op against its torch reference, attention against scaled_dot_product_attention too.

Run: pytest benchmarks/test_cpu_ops.py --benchmark-enable. Rows of one group belong together; extra_info has GB/s of
what must be moved, or GFLOP/s of what must be computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from stoker import ops
from stoker._core import cpu
from stoker.ops import reference

SDPA = torch.nn.functional.scaled_dot_product_attention
TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def measure(benchmark: BenchmarkFixture, group: str, run: Callable[[], object], **work: float) -> None:
    """Times `run`; work: bytes or flops of one run."""
    benchmark.group = group
    benchmark.pedantic(run, rounds=5, iterations=1, warmup_rounds=1)
    benchmark.extra_info |= {
        "isa": cpu.isa(),
        "threads": cpu.num_threads(),
        "torch_threads": torch.get_num_threads(),
    }
    if benchmark.stats is not None:
        best = benchmark.stats.stats.min
        for name, unit in (("bytes", "GB/s"), ("flops", "GFLOP/s")):
            if name in work:
                benchmark.extra_info[unit] = round(work[name] / best / 1e9, 2)


def attention_inputs(
    dtype: torch.dtype, q_heads: int, kv_heads: int, head_dim: int, rows: list[tuple[int, int]]
) -> Any:
    g = torch.Generator().manual_seed(0)
    blocks = [-(-kv // 16) for kv, _ in rows]
    cache = torch.randn(sum(blocks) + 1, 2, kv_heads, 16, head_dim, generator=g).to(dtype)
    order = torch.randperm(sum(blocks), generator=g).to(torch.int32) + 1
    table = torch.zeros(len(rows), max(blocks), dtype=torch.int32)
    for row, part in enumerate(order.split(blocks)):
        table[row, : len(part)] = part
    lengths = torch.tensor([n for _, n in rows])
    q = torch.randn(int(lengths.sum()), q_heads, head_dim, generator=g).to(dtype)
    return {
        "q": q,
        "k_cache": cache[:, 0],
        "v_cache": cache[:, 1],
        "block_table": table,
        "row_seat": torch.arange(len(rows), dtype=torch.int32),
        "row_indptr": torch.cat([torch.zeros(1), lengths.cumsum(0)]).to(torch.int32),
        "row_kv_len": torch.tensor([kv for kv, _ in rows], dtype=torch.int32),
        "scale": head_dim**-0.5,
    }


ATTENTION = {
    "decode 8 x 2048": [(2048, 1)] * 8,
    "decode 1 x 4096": [(4096, 1)],
    "prefill 1024": [(1024, 1024)],
    "mixed": [(700, 1)] * 16 + [(512, 240)],
}


@pytest.mark.parametrize("who", ["stoker", "reference", "sdpa"])
@pytest.mark.parametrize("shape", list(ATTENTION))
@pytest.mark.parametrize("dtype", list(TYPES))
def test_attention(benchmark: BenchmarkFixture, who: str, shape: str, dtype: str) -> None:
    """16 query heads, 8 KV heads, head dim 128 (Qwen3-0.6B). sdpa reads dense KV that lies ready for it."""
    rows, q_heads, kv_heads, head_dim = ATTENTION[shape], 16, 8, 128
    inputs = attention_inputs(TYPES[dtype], q_heads, kv_heads, head_dim, rows)
    out, want = torch.empty_like(inputs["q"]), torch.empty_like(inputs["q"])
    element = inputs["q"].element_size()
    flops = sum(4.0 * q_heads * head_dim * (n * kv - n * (n - 1) / 2) for kv, n in rows)
    moved = sum(2.0 * kv * kv_heads * head_dim * element for kv, _ in rows)
    work = {"bytes": moved} if shape.startswith("decode") else {"flops": flops}
    if who == "stoker":
        reference.paged_attention(want, **inputs)
        run: Callable[[], object] = lambda: ops.paged_attention(out, **inputs)  # noqa: E731
        run()
        torch.testing.assert_close(out, want, rtol=2e-2, atol=1e-2)
    elif who == "reference":
        run = lambda: reference.paged_attention(out, **inputs)  # noqa: E731
    elif len(set(rows)) > 1:
        pytest.skip("a mixed batch is no single call of scaled_dot_product_attention")
    else:
        kv, n = rows[0]
        q = torch.randn(len(rows), q_heads, n, head_dim).to(TYPES[dtype])
        k, v = (torch.randn(len(rows), kv_heads, kv, head_dim).to(TYPES[dtype]) for _ in range(2))
        run = lambda: SDPA(q, k, v, is_causal=n > 1, enable_gqa=True)  # noqa: E731
    measure(benchmark, f"attention {shape} {dtype}", run, **work)


@pytest.mark.parametrize("who", ["stoker", "reference"])
@pytest.mark.parametrize("tokens", [1, 32, 512])
@pytest.mark.parametrize("name", ["rms_norm", "add_rms_norm", "silu_and_mul", "gelu_and_mul"])
def test_elementwise(benchmark: BenchmarkFixture, who: str, tokens: int, name: str) -> None:
    """Hidden size 1024, feed-forward 3072, bf16."""
    module: Any = ops if who == "stoker" else reference
    op, size = getattr(module, name), 3072 if name.endswith("mul") else 1024
    x = torch.randn(tokens, 2 * size if name.endswith("mul") else size).bfloat16()
    out, weight, residual = torch.empty(tokens, size).bfloat16(), torch.ones(size).bfloat16(), x.clone()
    arguments = {"rms_norm": (out, x, weight, 1e-6), "add_rms_norm": (out, residual, x, weight, 1e-6)}
    given = arguments.get(name, (out, x))
    moved = sum(t.numel() for t in given if isinstance(t, torch.Tensor)) * 2
    measure(benchmark, f"{name} [{tokens}, {size}]", lambda: op(*given), bytes=moved)


@pytest.mark.parametrize("who", ["stoker", "reference"])
@pytest.mark.parametrize("tokens", [1, 32, 512])
def test_rope_and_cache(benchmark: BenchmarkFixture, who: str, tokens: int) -> None:
    """Qwen3-0.6B's heads with q/k norm, bf16."""
    module: Any = ops if who == "stoker" else reference
    qkv = torch.randn(tokens, 32, 128).bfloat16()
    cache = torch.zeros(2, tokens // 16 + 2, 8, 16, 128).bfloat16()
    norm, index = torch.ones(128).bfloat16(), torch.arange(tokens, dtype=torch.int32)
    table = torch.randn(tokens, 128)
    q, k, v = qkv.split([16, 8, 8], dim=1)
    measure(
        benchmark,
        f"rope_and_cache [{tokens}]",
        lambda: module.rope_and_cache(
            q, k, v, index, table, cache[0], cache[1], index, q_norm=norm, k_norm=norm
        ),
        bytes=qkv.numel() * 2 * 2,
    )


@pytest.mark.parametrize("who", ["stoker", "torch"])
@pytest.mark.parametrize("rows", [1, 8, 32, 128, 512])
@pytest.mark.parametrize(("features", "inner"), [(4096, 1024), (1024, 3072)])
@pytest.mark.parametrize("dtype", list(TYPES))
def test_linear(
    benchmark: BenchmarkFixture, who: str, rows: int, features: int, inner: int, dtype: str
) -> None:
    """Eight matrices by turns, so that none is in the cache when its turn comes: q, k, v and down of Qwen3-0.6B."""
    weights = [torch.randn(features, inner).to(TYPES[dtype]) for _ in range(8)]
    x, out = torch.randn(rows, inner).to(TYPES[dtype]), torch.empty(rows, features).to(TYPES[dtype])

    def run() -> None:
        for weight in weights:
            if who == "stoker":
                ops.linear(out, x, weight)
            else:
                torch.mm(x, weight.t(), out=out)

    size = weights[0].numel() * len(weights)
    work = {"bytes": size * x.element_size(), "flops": 2.0 * rows * size}
    measure(benchmark, f"linear {rows} x {inner} x {features} {dtype}", run, **work)


SAMPLING: dict[str, dict[str, float]] = {
    "greedy": {},
    "temperature": {"temperature": 1.0},
    "top-k": {"temperature": 0.7, "top_k": 50},
    "top-p": {"temperature": 0.7, "top_p": 0.9},
    "all": {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "min_p": 0.02},
}


@pytest.mark.parametrize("who", ["stoker", "reference"])
@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("how", list(SAMPLING))
def test_sample(benchmark: BenchmarkFixture, who: str, rows: int, how: str) -> None:
    """V = 151,936 in bf16, logits with a deviation of 4: about as peaked as a trained model's."""
    module: Any = ops if who == "stoker" else reference
    logits = (torch.randn(rows, 151_936, generator=torch.Generator().manual_seed(0)) * 4).bfloat16()
    table = ops.SeatTable(rows + 1, 151_936)
    for name, value in SAMPLING[how].items():
        getattr(table, name).fill_(value)
    seats, out = torch.arange(1, rows + 1, dtype=torch.int32), torch.zeros(rows, dtype=torch.int32)
    measure(
        benchmark,
        f"sample {how} x {rows}",
        lambda: module.sample(out, logits, table, seats, seats),
        bytes=logits.numel() * 2,
    )


@pytest.mark.parametrize("who", ["stoker", "reference"])
@pytest.mark.parametrize("name", ["copy_blocks", "swap_blocks", "gather_tokens"])
def test_copies(benchmark: BenchmarkFixture, who: str, name: str) -> None:
    """64 blocks of 64 KiB; 256 tokens."""
    module: Any = ops if who == "stoker" else reference
    cache, host = (torch.zeros(256, 2, 8, 16, 128).bfloat16() for _ in range(2))
    pairs = torch.stack([torch.arange(64), torch.arange(128, 192)], 1).to(torch.int32)
    ids = torch.arange(-128, 128, dtype=torch.int32)
    out, last = torch.empty_like(ids), torch.arange(128, dtype=torch.int32)
    runs: dict[str, Callable[[], object]] = {
        "copy_blocks": lambda: module.copy_blocks(cache, pairs),
        "swap_blocks": lambda: module.swap_blocks(cache, host, pairs, to_host=True),
        "gather_tokens": lambda: module.gather_tokens(out, ids, last),
    }
    moved = 2.0 * ids.numel() * 4 if name == "gather_tokens" else 2.0 * 64 * cache[0].numel() * 2
    measure(benchmark, name, runs[name], bytes=moved)


def test_call_overhead(benchmark: BenchmarkFixture) -> None:
    """A decode row of a tiny model: nine tensors checked, and almost nothing to compute."""
    inputs = attention_inputs(torch.bfloat16, 4, 2, 64, [(16, 1)])
    out = torch.empty_like(inputs["q"])
    benchmark.group = "call overhead"
    benchmark.pedantic(lambda: ops.paged_attention(out, **inputs), rounds=200, iterations=50, warmup_rounds=5)


def test_call_overhead_of_three_tensors(benchmark: BenchmarkFixture) -> None:
    """RMSNorm of one row of 8: three tensors checked."""
    x, weight = torch.ones(1, 8), torch.ones(8)
    benchmark.group = "call overhead"
    benchmark.pedantic(lambda: ops.rms_norm(x, x, weight, 1e-6), rounds=200, iterations=50, warmup_rounds=5)
