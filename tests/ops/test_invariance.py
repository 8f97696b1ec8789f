"""A token's result depends on its own inputs only, bitwise: not on the batch, the chunks, the threads or the pool."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from stoker import ops
from stoker._core import cpu
from support.op_cases import AttentionCase, int32

TYPES = [torch.float32, torch.bfloat16]
OPTIONS: list[dict[str, Any]] = [{}, {"window": 70}, {"soft_cap": 5.0}, {"head_dim": 72}]
LENGTH = 1100  # two splits and a bit


def attend(case: AttentionCase, rows: list[tuple[int, int]], tokens: list[int]) -> torch.Tensor:
    """The tokens of seat 1 that `tokens` names, computed in rows of (KV length, number of tokens)."""
    tensors = case.tensors()
    starts = [0]
    for _, count in rows:
        starts.append(starts[-1] + count)
    q = tensors["q"][tokens]
    tensors |= {
        "q": q,
        "row_seat": int32([1] * len(rows)),
        "row_indptr": int32(starts),
        "row_kv_len": int32([kv for kv, _ in rows]),
    }
    out = torch.zeros_like(q)
    ops.paged_attention(out, **tensors, **case.options())
    return out


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("q_heads", "kv_heads"), [(2, 2), (6, 1)])
def test_attention_chunks(
    isa: str, dtype: torch.dtype, options: dict[str, Any], q_heads: int, kv_heads: int
) -> None:
    """Whole prompt, chunks of any size, and one decode row after another give the same bits."""
    case = AttentionCase(((LENGTH, LENGTH),), q_heads, kv_heads, dtype=dtype, **options)
    whole = attend(case, [(LENGTH, LENGTH)], list(range(LENGTH)))
    cuts = [0, 1, 38, 64, 170, 511, 513, 900, LENGTH]
    chunks = [(end, end - begin) for begin, end in itertools.pairwise(cuts)]
    assert torch.equal(attend(case, chunks, list(range(LENGTH))), whole)
    some = [0, 5, 63, 64, 65, 200, 511, 512, 700, LENGTH - 1]
    assert torch.equal(attend(case, [(t + 1, 1) for t in some], some), whole[some])
    # Each alone: a batch of one long row is what takes splits as items of their own.
    for token in (512, LENGTH - 1):
        assert torch.equal(attend(case, [(token + 1, 1)], [token])[0], whole[token])


@pytest.mark.parametrize("dtype", TYPES)
def test_attention_company(isa: str, dtype: torch.dtype) -> None:
    """A row alone, and the same row among others."""
    rows = ((700, 1), (30, 30), (1, 1), (1300, 1), (260, 100))
    case = AttentionCase(rows, dtype=dtype)
    tensors = case.tensors()
    together = torch.zeros_like(tensors["q"])
    ops.paged_attention(together, **tensors, **case.options())
    for row in range(len(rows)):
        begin, end = (int(tensors["row_indptr"][row + i]) for i in (0, 1))
        alone = {
            **tensors,
            "q": tensors["q"][begin:end],
            "row_seat": int32([row + 1]),
            "row_indptr": int32([0, end - begin]),
            "row_kv_len": int32([rows[row][0]]),
        }
        out = torch.zeros_like(alone["q"])
        ops.paged_attention(out, **alone, **case.options())
        assert torch.equal(out, together[begin:end])


@pytest.mark.parametrize("pool", ["auto", "own"])
def test_attention_threads(isa: str, pool: str) -> None:
    """One thread, two, five: the cuts differ, the bits do not."""
    case = AttentionCase(((2000, 1), (300, 200), (40, 1)), q_heads=8, kv_heads=1, dtype=torch.bfloat16)
    results = []
    cpu.set_thread_pool(pool)
    for threads in (1, 2, 5):
        cpu.set_num_threads(threads)
        out = torch.zeros_like(case.tensors()["q"])
        ops.paged_attention(out, **case.tensors(), **case.options())
        results.append(out)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ["rms_norm", "add_rms_norm", "silu_and_mul", "gelu_and_mul"])
def test_rows_of_elementwise_ops(isa: str, dtype: torch.dtype, name: str) -> None:
    """A row alone, unaligned, and in a batch large enough for threads."""
    torch.manual_seed(0)
    rows, size = 300, 1000

    def run(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(len(x), size, dtype=dtype)
        if name == "rms_norm":
            ops.rms_norm(out, x[:, :size], weight, 1e-6)
        elif name == "add_rms_norm":
            ops.add_rms_norm(out, x[:, size:].clone(), x[:, :size], weight, 1e-6)
        else:
            getattr(ops, name)(out, x)
        return out

    x, weight = torch.randn(rows, 2 * size).to(dtype), torch.randn(size).to(dtype)
    whole = run(x)
    for row in (0, 77, 299):
        shifted = torch.empty(2 * size + 1, dtype=dtype)[1:].copy_(x[row]).reshape(1, -1)
        assert torch.equal(run(shifted)[0], whole[row])
