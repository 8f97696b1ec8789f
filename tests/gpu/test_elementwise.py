"""Norms, gated activations, rotary with the KV write, gathers and block copies on the GPU against the definitions in plain torch."""

from __future__ import annotations

import pytest
import torch

from stoker import ops
from stoker.ops import reference

DEVICE = "cuda"
TYPES = [torch.float32, torch.float16, torch.bfloat16]
LIMIT = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert not got.isnan().any()
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("hidden", [8, 100, 1024, 4096, 5120, 12288, 20000, 33333])
def test_norms(dtype: torch.dtype, hidden: int) -> None:
    """Register paths and the plain one, with and without the residual, rows of wider tensors, and per head."""
    torch.manual_seed(hidden)
    wide = torch.randn(7, hidden + 16, device=DEVICE).to(dtype)
    x, weight = wide[:, :hidden], torch.randn(hidden, device=DEVICE).to(dtype)
    out, want = (
        torch.full((7, hidden), float("nan"), device=DEVICE, dtype=dtype),
        torch.empty(7, hidden, device=DEVICE, dtype=torch.float64),
    )
    ops.rms_norm(out, x, weight, 1e-6)
    reference.rms_norm(want, x.double(), weight.double(), 1e-6)
    assert error(out, want) < LIMIT[dtype]
    residual = torch.randn(7, hidden, device=DEVICE).to(dtype)
    sums = (residual.float() + x.float()).to(dtype)
    ops.add_rms_norm(out, residual, x, weight, 1e-5)
    assert torch.equal(residual, sums)
    reference.rms_norm(want, sums.double(), weight.double(), 1e-5)
    assert error(out, want) < LIMIT[dtype]
    alone = torch.empty(1, hidden, device=DEVICE, dtype=dtype)
    ops.rms_norm(alone, x[3:4], weight, 1e-6)
    ops.rms_norm(out, x, weight, 1e-6)
    assert torch.equal(alone[0], out[3]), "a row does not depend on the others"


@pytest.mark.parametrize("dtype", TYPES)
def test_norm_per_head(dtype: torch.dtype) -> None:
    """q of a fused qkv tensor, in place."""
    qkv = torch.randn(5, 3 * 8, 128, device=DEVICE).to(dtype)
    weight = torch.randn(128, device=DEVICE).to(dtype)
    q, before = qkv[:, :8], qkv.clone()
    want = torch.empty(5, 8, 128, device=DEVICE, dtype=torch.float64)
    reference.rms_norm(want, q.double(), weight.double(), 1e-6)
    ops.rms_norm(q, q, weight, 1e-6)
    assert error(q, want) < LIMIT[dtype]
    assert torch.equal(qkv[:, 8:], before[:, 8:])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [3, 64, 3072, 14336])
def test_gated_activations(dtype: torch.dtype, width: int) -> None:
    """Both activations, vector and scalar paths."""
    x = (3 * torch.randn(9, 2 * width, device=DEVICE)).to(dtype)
    for name in ("silu_and_mul", "gelu_and_mul"):
        out = torch.full((9, width), float("nan"), device=DEVICE, dtype=dtype)
        want = torch.empty(9, width, device=DEVICE, dtype=torch.float64)
        getattr(ops, name)(out, x)
        getattr(reference, name)(want, x.double())
        assert error(out, want) < LIMIT[dtype]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("fp8", [False, True])
def test_rope_and_cache(dtype: torch.dtype, dim: int, fp8: bool) -> None:
    """Full and partial rotary, with and without q/k norms, padding rows, 16-bit, 32-bit and fp8 caches."""
    torch.manual_seed(dim)
    i32 = {"dtype": torch.int32, "device": DEVICE}
    tokens, hq, hkv, block = 11, 6, 2, 16
    cache_type = torch.float8_e4m3fn if fp8 else dtype
    for rotary, normed in ((dim, False), (dim, True), (dim // 2, True)):
        qkv = torch.randn(tokens, hq + 2 * hkv, dim, device=DEVICE).to(dtype)
        ours, theirs = qkv.clone(), qkv.clone()
        cos_sin = torch.randn(50, rotary, device=DEVICE)
        positions = torch.randint(0, 50, (tokens,), **i32)
        slots = torch.randperm(9 * block, device=DEVICE)[:tokens].int()
        slots[4] = -1
        norms = {}
        if normed:
            norms = {n: torch.randn(dim, device=DEVICE).to(dtype) for n in ("q_norm", "k_norm")}
        caches = []
        for module, rows in ((ops, ours), (reference, theirs)):
            store = torch.zeros(9, 2, hkv, block, dim, device=DEVICE, dtype=dtype).to(cache_type)
            q, k, v = rows[:, :hq], rows[:, hq : hq + hkv], rows[:, hq + hkv :]
            module.rope_and_cache(
                q,
                k,
                v,
                positions,
                cos_sin,
                store[:, 0],
                store[:, 1],
                slots,
                **norms,
                k_scale=0.5,
                v_scale=2.0,
            )
            caches.append(store.float())
        assert error(ours, theirs) < LIMIT[dtype]
        assert error(caches[0], caches[1]) < (3e-2 if fp8 else LIMIT[dtype])
        assert torch.equal(ours[4], qkv[4])
        assert torch.equal(ours[:, hq:], qkv[:, hq:]), "k and v are not changed"


def test_gather_tokens() -> None:
    """Tokens and seats mixed."""
    i32 = {"dtype": torch.int32, "device": DEVICE}
    last = torch.randint(0, 1000, (33,), **i32)
    ids = torch.randint(-33, 1000, (1000,), **i32)
    got, want = torch.full_like(ids, -7), torch.full_like(ids, -7)
    ops.gather_tokens(got, ids, last)
    reference.gather_tokens(want, ids, last)
    assert torch.equal(got, want)


@pytest.mark.parametrize("shape", [(50, 2, 16, 64), (50, 3), (50, 8, 64, 128)])
def test_copy_and_swap_blocks(shape: tuple[int, ...]) -> None:
    """Within a pool and over the link both ways, pairs on the host or on the device, odd sizes too."""
    cache = torch.randn(*shape, device=DEVICE).to(torch.bfloat16)
    order = torch.randperm(50)
    pairs = order[:40].view(20, 2).int()
    want = cache.clone()
    reference.copy_blocks(want, pairs.to(DEVICE))
    ops.copy_blocks(cache, pairs.to(DEVICE))
    assert torch.equal(cache, want)
    host = torch.randn(*shape).to(torch.bfloat16).pin_memory()
    for to_host in (True, False):
        for where in ("cpu", DEVICE):
            # Scattered blocks, and a run of neighbours that goes as one copy.
            run = torch.stack([torch.arange(20, 30), torch.arange(5, 15)], 1)
            scattered = torch.stack([torch.arange(30, 36), torch.arange(49, 43, -1)], 1)
            list_ = torch.cat([run, scattered]).int()
            device_want, host_want = cache.clone(), host.clone()
            reference.swap_blocks(device_want, host_want, list_, to_host=to_host)
            ops.swap_blocks(cache, host, list_.to(where), to_host=to_host)
            torch.cuda.synchronize()
            assert torch.equal(cache, device_want)
            assert torch.equal(host, host_want)
