"""Paged attention against the reference: every shape, type and option that the contract names."""

from __future__ import annotations

import pytest
import torch

from stoker import ops
from stoker.ops import reference
from support.op_cases import MODEL_TYPES, AttentionCase, int32, tolerance

# Decode rows, chunks that begin at 0, chunks in the middle, across tiles (64) and splits (512).
MIXED = ((1, 1), (17, 1), (64, 1), (700, 1), (5, 5), (130, 70), (600, 90))


def check(case: AttentionCase) -> None:
    tensors = case.tensors()
    out = torch.full_like(tensors["q"], 7.0)
    ops.paged_attention(out, **tensors, **case.options())
    want = torch.full(out.shape, 7.0, dtype=torch.float64)
    wide = {**tensors, "q": tensors["q"].double()}
    reference.paged_attention(want, **wide, **case.options())
    torch.testing.assert_close(out.double(), want, **tolerance(case.dtype))


@pytest.mark.parametrize("dtype", MODEL_TYPES)
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256, 72, 8])
def test_head_dims_and_types(isa: str, dtype: torch.dtype, head_dim: int) -> None:
    """All head dims of the contract, and some that take the general path."""
    check(AttentionCase(MIXED, head_dim=head_dim, dtype=dtype))


@pytest.mark.parametrize(("q_heads", "kv_heads"), [(1, 1), (3, 3), (6, 2), (7, 1), (16, 2), (72, 1)])
def test_groups(isa: str, q_heads: int, kv_heads: int) -> None:
    """MHA, GQA and MQA, also more heads a group than share one walk."""
    check(AttentionCase(MIXED, q_heads=q_heads, kv_heads=kv_heads, dtype=torch.bfloat16))


@pytest.mark.parametrize("block_size", [8, 16, 24, 64, 256])
def test_block_sizes(isa: str, block_size: int) -> None:
    """Any multiple of 8: tiles may begin and end anywhere in a block."""
    check(AttentionCase(MIXED, block_size=block_size))


@pytest.mark.parametrize("window", [1, 8, 63, 64, 100, 600, 5000])
def test_windows(isa: str, window: int) -> None:
    """Windows that begin in the middle of tiles and splits, and chunks longer than the window."""
    check(AttentionCase(((1, 1), (300, 1), (130, 130), (1200, 90), (1300, 1)), window=window))


@pytest.mark.parametrize("dtype", MODEL_TYPES)
def test_soft_cap(isa: str, dtype: torch.dtype) -> None:
    """Scores become c * tanh(s / c)."""
    check(AttentionCase(MIXED, dtype=dtype, soft_cap=3.0))


@pytest.mark.parametrize("seed", range(12))
def test_random_batches(isa: str, seed: int) -> None:
    """Random rows, heads and options together."""
    g = torch.Generator().manual_seed(seed)

    def draw(*choices: int) -> int:
        return choices[int(torch.randint(0, len(choices), (), generator=g))]

    rows = []
    for _ in range(draw(1, 3, 6)):
        kv = int(torch.randint(1, 900, (), generator=g))
        rows.append((kv, min(kv, draw(1, 1, 2, 33, 150))))
    kv_heads = draw(1, 2, 3)
    check(
        AttentionCase(
            tuple(rows),
            q_heads=kv_heads * draw(1, 2, 5),
            kv_heads=kv_heads,
            head_dim=draw(64, 128, 80),
            block_size=draw(8, 16, 32),
            dtype=MODEL_TYPES[draw(0, 1, 2)],
            window=draw(0, 0, 70),
            soft_cap=draw(0, 0, 10),
            seed=seed,
        )
    )


@pytest.mark.parametrize("window", [0, 40])
def test_nothing_unseen_is_read(isa: str, window: int) -> None:
    """NaN behind the window, after the end and in the null block reaches no result."""
    case = AttentionCase(MIXED, window=window, poison=True)
    out = torch.zeros_like(case.tensors()["q"])
    ops.paged_attention(out, **case.tensors(), **case.options())
    assert torch.isfinite(out).all()
    check(case)


def test_a_nan_harms_only_those_who_see_it(isa: str) -> None:
    """A NaN in the KV of a chunk's last token leaves the tokens before it as they were."""
    case = AttentionCase(((130, 70), (40, 1)))
    clean = case.tensors()
    want = torch.zeros_like(clean["q"])
    ops.paged_attention(want, **clean, **case.options())
    broken = case.tensors()
    block = int(broken["block_table"][1, 129 // 16])
    broken["k_cache"][block, :, 129 % 16] = float("nan")
    broken["v_cache"][block, :, 129 % 16] = float("nan")
    out = torch.zeros_like(want)
    ops.paged_attention(out, **broken, **case.options())
    assert torch.equal(out[:69], want[:69])
    assert torch.equal(out[70:], want[70:])
    assert torch.isnan(out[69]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_cache(isa: str, dtype: torch.dtype) -> None:
    """KV as float8_e4m3fn with one scale for K and one for V."""
    case = AttentionCase(MIXED, dtype=dtype, cache_dtype=torch.float8_e4m3fn, head_dim=72)
    tensors = case.tensors()
    out = torch.zeros_like(tensors["q"])
    ops.paged_attention(out, **tensors, **case.options(), k_scale=0.5, v_scale=2.0)
    want = torch.zeros(out.shape, dtype=torch.float64)
    reference.paged_attention(
        want, **{**tensors, "q": tensors["q"].double()}, **case.options(), k_scale=0.5, v_scale=2.0
    )
    torch.testing.assert_close(out.double(), want, **tolerance(dtype))


def test_every_fp8_value_is_read_right(isa: str) -> None:
    """A row that sees one position returns that position's V: all 256 codes through the vector path and the tail."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    cache = codes.reshape(1, 1, 1, 256).repeat(2, 1, 8, 1)
    q = torch.zeros(1, 1, 256)
    out = torch.empty_like(q)
    k_cache = torch.zeros(2, 1, 8, 256).to(torch.float8_e4m3fn)
    ops.paged_attention(
        out, q, k_cache, cache, int32([[1]]), int32([0]), int32([0, 1]), int32([1]), scale=1.0
    )
    torch.testing.assert_close(out[0, 0], codes.float(), rtol=0, atol=0, equal_nan=True)


def test_tokens_without_a_row_are_left_alone(isa: str) -> None:
    """A batch padded to a bucket: rows of no tokens, and tokens behind the last row."""
    case = AttentionCase(((20, 3), (9, 1)))
    tensors = case.tensors()
    q = torch.cat([tensors["q"], torch.randn(2, 4, 64)])
    out = torch.full_like(q, 5.0)
    tensors |= {
        "q": q,
        "row_seat": int32([1, 2, 0]),
        "row_indptr": int32([0, 3, 4, 4]),
        "row_kv_len": int32([20, 9, 0]),
    }
    ops.paged_attention(out, **tensors, **case.options())
    want = torch.full_like(q, 5.0)
    reference.paged_attention(want, **tensors, **case.options())
    assert (out[4:] == 5.0).all()
    torch.testing.assert_close(out, want, **tolerance(torch.float32))
