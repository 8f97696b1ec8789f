"""Norms and activations against their float64 definitions."""

from __future__ import annotations

import pytest
import torch

from stoker import ops
from stoker.ops import reference
from support.op_cases import MODEL_TYPES, tolerance

SIZES = [(1, 1), (3, 7), (5, 64), (130, 200), (2, 1024)]


@pytest.mark.parametrize("dtype", MODEL_TYPES)
@pytest.mark.parametrize(("rows", "size"), SIZES)
def test_rms_norm(isa: str, dtype: torch.dtype, rows: int, size: int) -> None:
    """Right for whole vectors and for tails, and for rows of a wider tensor."""
    torch.manual_seed(rows)
    x = torch.randn(rows, size + 5)[:, :size].to(dtype).contiguous()
    x = torch.cat([x, x], 1)[:, :size]
    weight = torch.randn(size).to(dtype)
    out, want = torch.empty(rows, size, dtype=dtype), torch.empty(rows, size, dtype=torch.float64)
    ops.rms_norm(out, x, weight, 1e-5)
    reference.rms_norm(want, x.double(), weight.double(), 1e-5)
    torch.testing.assert_close(out.double(), want, **tolerance(dtype))


@pytest.mark.parametrize("dtype", MODEL_TYPES)
def test_rms_norm_of_heads(isa: str, dtype: torch.dtype) -> None:
    """[T, heads, D] as a view of a qkv tensor, as q/k norm uses it."""
    torch.manual_seed(0)
    x = torch.randn(6, 7, 80).to(dtype)[:, 1:5]
    weight = torch.randn(80).to(dtype)
    out, want = torch.empty(6, 4, 80, dtype=dtype), torch.empty(6, 4, 80, dtype=torch.float64)
    ops.rms_norm(out, x, weight, 1e-6)
    reference.rms_norm(want, x.double(), weight.double(), 1e-6)
    torch.testing.assert_close(out.double(), want, **tolerance(dtype))


@pytest.mark.parametrize("dtype", MODEL_TYPES)
@pytest.mark.parametrize(("rows", "size"), SIZES)
def test_add_rms_norm(isa: str, dtype: torch.dtype, rows: int, size: int) -> None:
    """The residual is rounded once, exactly as the reference rounds it; the norm is of what was stored."""
    torch.manual_seed(rows)
    x, residual, weight = (torch.randn(s).to(dtype) for s in ((rows, size), (rows, size), (size,)))
    want_residual = residual.clone()
    out, want = torch.empty_like(x), torch.empty_like(x)
    ops.add_rms_norm(out, residual, x, weight, 1e-5)
    reference.add_rms_norm(want, want_residual, x, weight, 1e-5)
    assert torch.equal(residual, want_residual)
    torch.testing.assert_close(out, want, **tolerance(dtype))


@pytest.mark.parametrize("dtype", MODEL_TYPES)
@pytest.mark.parametrize("name", ["silu_and_mul", "gelu_and_mul"])
@pytest.mark.parametrize(("rows", "size"), SIZES)
def test_activations(isa: str, dtype: torch.dtype, name: str, rows: int, size: int) -> None:
    """Also where e^-x over- and underflows."""
    torch.manual_seed(rows)
    x = torch.randn(rows, 2 * size).to(dtype) * 5
    x[0, 0], x[-1, size - 1] = 90.0, -90.0
    out, want = torch.empty(rows, size, dtype=dtype), torch.empty(rows, size, dtype=torch.float64)
    getattr(ops, name)(out, x)
    getattr(reference, name)(want, x.double())
    torch.testing.assert_close(out.double(), want, **tolerance(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_torchs(isa: str, dtype: torch.dtype) -> None:
    """Storing rounds to nearest even as torch does, for every exponent, NaN and the infinities included."""
    bits = torch.arange(0, 1 << 32, 65521, dtype=torch.int64)
    wide = (bits - (1 << 31)).to(torch.int32).view(torch.float32)
    a = wide.to(dtype)
    b = (torch.rand(len(wide), generator=torch.Generator().manual_seed(0)) * wide).to(dtype)
    residual = a.clone().reshape(1, -1)
    ops.add_rms_norm(torch.empty_like(residual), residual, b.reshape(1, -1), torch.ones_like(a), 1e-6)
    want = (a.float() + b.float()).to(dtype)
    torch.testing.assert_close(residual[0], want, rtol=0, atol=0, equal_nan=True)
