"""Rotary, q/k norm and the write of K and V to their slots."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stoker import ops
from stoker.ops import reference
from support.op_cases import MODEL_TYPES, int32, tolerance


def make(
    dtype: torch.dtype, head_dim: int, rotary: int, norm: bool, cache_dtype: torch.dtype
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(head_dim)
    tokens, q_heads, kv_heads, size = 37, 4, 2, 8
    qkv = torch.randn(tokens, q_heads + 2 * kv_heads, head_dim, generator=g).to(dtype)
    slots = (torch.randperm(15 * size, generator=g)[:tokens] + size).to(torch.int32)
    slots[5] = slots[20] = -1
    cache = torch.zeros(16, 2, kv_heads, size, head_dim).to(cache_dtype)
    return {
        "q": qkv[:, :q_heads],
        "k": qkv[:, q_heads : q_heads + kv_heads],
        "v": qkv[:, q_heads + kv_heads :],
        "positions": torch.randint(0, 100, (tokens,), generator=g, dtype=torch.int32),
        "cos_sin": torch.randn(100, rotary, generator=g),
        "k_cache": cache[:, 0],
        "v_cache": cache[:, 1],
        "slots": slots,
        "q_norm": torch.randn(head_dim, generator=g).to(dtype) if norm else None,
        "k_norm": torch.randn(head_dim, generator=g).to(dtype) if norm else None,
    }


@pytest.mark.parametrize("dtype", MODEL_TYPES)
@pytest.mark.parametrize(("head_dim", "rotary"), [(64, 64), (80, 32), (128, 128), (72, 72), (256, 64)])
@pytest.mark.parametrize("norm", [False, True])
def test_against_reference(isa: str, dtype: torch.dtype, head_dim: int, rotary: int, norm: bool) -> None:
    """Views of one qkv tensor; partial rotary; padding rows are neither read into the cache nor changed."""
    got, want = (make(dtype, head_dim, rotary, norm, dtype) for _ in range(2))
    ops.rope_and_cache(**got)
    reference.rope_and_cache(**want)
    for name in ("q", "k", "k_cache", "v_cache"):
        torch.testing.assert_close(got[name], want[name], **tolerance(dtype))
    assert torch.equal(got["v_cache"], want["v_cache"])
    assert torch.equal(got["q"][5], make(dtype, head_dim, rotary, norm, dtype)["q"][5])


def test_fp8_cache(isa: str) -> None:
    """The cache keeps value / scale in float8_e4m3fn, rounded as torch rounds and saturated at 448."""
    got, want = (make(torch.bfloat16, 64, 64, False, torch.float8_e4m3fn) for _ in range(2))
    for case in (got, want):
        case["v"][0, 0, :4] = torch.tensor([1e4, -1e4, 1e-3, 0.0])
    ops.rope_and_cache(**got, k_scale=0.5, v_scale=0.25)
    reference.rope_and_cache(**want, k_scale=0.5, v_scale=0.25)
    assert torch.equal(got["v_cache"].view(torch.uint8), want["v_cache"].view(torch.uint8))
    differ = got["k_cache"].view(torch.uint8) != want["k_cache"].view(torch.uint8)
    assert differ.float().mean() < 1e-3  # a last bit of the rotation may tip a rounding
    torch.testing.assert_close(got["k_cache"].float(), want["k_cache"].float(), rtol=0.13, atol=1e-2)


def test_a_token_stands_alone(isa: str) -> None:
    """Bitwise: one token's q and cache entries are the same alone and in company."""
    whole = make(torch.float32, 80, 64, True, torch.float32)
    ops.rope_and_cache(**whole)
    for token in (0, 7, 36):
        fresh = make(torch.float32, 80, 64, True, torch.float32)
        alone = {n: fresh[n][token : token + 1] for n in ("q", "k", "v", "positions", "slots")}
        ops.rope_and_cache(**{**fresh, **alone})
        assert torch.equal(alone["q"][0], whole["q"][token])
        block, offset = divmod(int(whole["slots"][token]), 8)
        for cache in ("k_cache", "v_cache"):
            assert torch.equal(fresh[cache][block, :, offset], whole[cache][block, :, offset])


def test_bad_slots_and_positions_are_refused(isa: str) -> None:
    """A wrong slot must not become a write past the cache."""
    case = make(torch.float32, 64, 64, False, torch.float32)
    with pytest.raises(ValueError, match="slots names a slot outside the cache"):
        ops.rope_and_cache(**{**case, "slots": int32([128] * 37)})
    with pytest.raises(ValueError, match="positions has an entry outside"):
        ops.rope_and_cache(**{**case, "positions": int32([100] * 37)})
