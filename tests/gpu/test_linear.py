"""Linear layers for few rows and the quantisation of rows on the GPU, against their definitions in float64."""

from __future__ import annotations

import pytest
import torch

from stoker import ops
from stoker.ops import reference

DEVICE = "cuda"
TYPES = [torch.float32, torch.float16, torch.bfloat16]
LIMIT = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}
# (features, in): whole tiles, odd ends of features and of chunks, fewer chunks than ranges, real layers.
SHAPES = [(16, 1024), (4096, 1024), (1024, 3072), (37, 136), (5, 8), (200, 72), (1000, 2056), (512, 14336)]


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert not got.isnan().any()
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def poisoned(rows: int, features: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of a wider tensor full of NaN, and that tensor."""
    wide = torch.full((rows, features + 24), float("nan"), device=DEVICE, dtype=dtype)
    return wide[:, :features], wide


def exact(rows: int, features: int) -> torch.Tensor:
    return torch.empty(rows, features, dtype=torch.float64, device=DEVICE)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 2, 5, 8, 13, 16, 31, 64, 67])
def test_linear(dtype: torch.dtype, shape: tuple[int, int], rows: int) -> None:
    """Every width of the tensor cores' narrow side, with and without bias; nothing beside `out` is written."""
    features, columns = shape
    torch.manual_seed(features + rows)
    x = torch.randn(rows, columns + 8, device=DEVICE).to(dtype)[:, :columns]
    weight = (torch.randn(features, columns, device=DEVICE) / columns**0.5).to(dtype)
    for bias in (None, torch.randn(features, device=DEVICE).to(dtype)):
        out, wide = poisoned(rows, features, dtype)
        ops.linear(out, x, weight, bias)
        want = exact(rows, features)
        reference.linear(want, x.double(), weight.double(), None if bias is None else bias.double())
        assert error(out, want) < LIMIT[dtype]
        assert wide[:, features:].isnan().all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(3072, 1024), (24, 136), (13, 512), (344, 4096)])
@pytest.mark.parametrize("rows", [1, 8, 20, 64])
def test_silu_and_mul_of_both_products(dtype: torch.dtype, shape: tuple[int, int], rows: int) -> None:
    """The fused form has the very bits of the two ops one after another."""
    features, columns = shape
    torch.manual_seed(features + rows)
    x = torch.randn(rows, columns, device=DEVICE).to(dtype)
    weight = (2 * torch.randn(2 * features, columns, device=DEVICE) / columns**0.5).to(dtype)
    out, wide = poisoned(rows, features, dtype)
    ops.linear(out, x, weight, silu_and_mul=True)
    both, two = torch.empty(rows, 2 * features, device=DEVICE, dtype=dtype), torch.empty_like(out)
    ops.linear(both, x, weight)
    ops.silu_and_mul(two, both)
    assert torch.equal(out, two)
    want = exact(rows, features)
    reference.silu_and_mul(want, x.double() @ weight.double().t())
    assert error(out, want) < 2 * LIMIT[dtype]
    assert wide[:, features:].isnan().all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("columns", [136, 2048])
@pytest.mark.parametrize("features", [16, 3072, 4224, 5280, 6336, 7392, 8448, 10560, 12672, 14784])
def test_silu_and_mul_of_many_rows(dtype: torch.dtype, columns: int, features: int) -> None:
    """Each width of the tiles that 132 multiprocessors make the best, alone and sharing x; more rows than one launch takes;
    a row's bits do not depend on how many there are, nor on NaN rows beside it.
    """
    torch.manual_seed(features)
    x = torch.randn(300, columns, device=DEVICE).to(dtype)
    weight = (2 * torch.randn(2 * features, columns, device=DEVICE) / columns**0.5).to(dtype)
    want = exact(300, features)
    reference.silu_and_mul(want, x.double() @ weight.double().t())
    whole, _ = poisoned(256, features, dtype)
    ops.linear(whole, x[:256], weight, silu_and_mul=True)
    for rows in (65, 100, 128, 130, 192, 256, 300):
        out, wide = poisoned(rows + 1, features, dtype)
        ops.linear(out[:rows], x[:rows], weight, silu_and_mul=True)
        assert error(out[:rows], want[:rows]) < 2 * LIMIT[dtype], rows
        assert wide[:, features:].isnan().all()
        assert out[rows].isnan().all()
        if dtype != torch.float32:
            assert torch.equal(out[: min(rows, 256)], whole[:rows])
    x[70] = float("nan")
    out, _ = poisoned(100, features, dtype)
    ops.linear(out, x[:100], weight, silu_and_mul=True)
    assert out[70].isnan().all()
    assert error(out[:70], want[:70]) < 2 * LIMIT[dtype]
    assert error(out[71:], want[71:100]) < 2 * LIMIT[dtype]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    "shape", [(4096, 1024), (1024, 4096), (128, 14336), (136, 1000), (6144, 4096), (20008, 512)]
)
def test_a_row_does_not_depend_on_the_others(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Bitwise, whatever the number of rows and so the kernel, whatever its cut, and wherever the row lies, NaN rows beside
    it too (DESIGN 10.2 b).
    """
    features, columns = shape
    x = torch.randn(70, columns, device=DEVICE).to(dtype)
    x[40] = float("nan")
    weight = torch.randn(features, columns, device=DEVICE).to(dtype)
    whole = torch.empty(70, features, device=DEVICE, dtype=dtype)
    ops.linear(whole, x, weight)
    for begin, end in ((0, 1), (3, 5), (7, 15), (41, 57), (0, 32), (10, 43), (0, 64)):
        part = torch.empty(end - begin, features, device=DEVICE, dtype=dtype)
        ops.linear(part, x[begin:end], weight)
        want = whole[begin:end]
        assert torch.equal(part.nan_to_num(7.0), want.nan_to_num(7.0)), (begin, end)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [8, 100, 4096, 14336])
def test_quantize_rows(dtype: torch.dtype, width: int) -> None:
    """The reference's bits; a row of zeros stays one."""
    x = (3 * torch.randn(9, width + 16, device=DEVICE)).to(dtype)[:, :width]
    x[4] = 0.0
    got, want = (torch.empty(9, width, device=DEVICE, dtype=torch.float8_e4m3fn) for _ in range(2))
    scale, want_scale = (torch.full((9,), float("nan"), device=DEVICE) for _ in range(2))
    ops.quantize_rows(got, scale, x)
    reference.quantize_rows(want, want_scale, x)
    assert torch.equal(scale, want_scale)
    assert torch.equal(got.float(), want.float())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(4096, 1024), (1024, 4096), (56, 14336), (24, 96), (20, 40)])
@pytest.mark.parametrize("rows", [1, 7, 16, 40, 64])
def test_fp8(dtype: torch.dtype, shape: tuple[int, int], rows: int) -> None:
    """e4m3 rows times their scales, plain and with the activation: products are exact, sums float32."""
    features, columns = shape
    torch.manual_seed(features + rows)
    x, x_scale = _quantized(torch.randn(rows, columns, device=DEVICE))
    weight, weight_scale = _quantized(torch.randn(2 * features, columns, device=DEVICE) / columns**0.5)
    bias = torch.randn(2 * features, device=DEVICE).to(dtype)
    out, wide = poisoned(rows, 2 * features, dtype)
    ops.linear(out, x, weight, bias, x_scale=x_scale, weight_scale=weight_scale)
    want = exact(rows, 2 * features)
    scales = {"x_scale": x_scale.double(), "weight_scale": weight_scale.double()}
    reference.linear(want, x.double(), weight.double(), bias.double(), **scales)
    assert error(out, want) < LIMIT[dtype]
    assert wide[:, 2 * features :].isnan().all()
    fused, two = (torch.empty(rows, features, device=DEVICE, dtype=dtype) for _ in range(2))
    ops.linear(fused, x, weight, x_scale=x_scale, weight_scale=weight_scale, silu_and_mul=True)
    ops.linear(out, x, weight, x_scale=x_scale, weight_scale=weight_scale)
    ops.silu_and_mul(two, out)
    assert torch.equal(fused, two)


def _quantized(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scale = torch.empty(x.shape[0], device=DEVICE)
    reference.quantize_rows(rows, scale, x)
    return rows, scale


def test_errors_name_the_argument() -> None:
    """Wrong shapes and half a pair of scales."""
    x, weight = torch.zeros(2, 16, device=DEVICE), torch.zeros(8, 16, device=DEVICE)
    with pytest.raises(ValueError, match="weight"):
        ops.linear(torch.zeros(2, 9, device=DEVICE), x, weight)
    with pytest.raises(ValueError, match="x_scale"):
        ops.linear(torch.zeros(2, 8, device=DEVICE), x, weight, x_scale=torch.ones(2, device=DEVICE))
    with pytest.raises(ValueError, match="bias"):
        ops.linear(
            torch.zeros(2, 4, device=DEVICE), x, weight, torch.zeros(4, device=DEVICE), silu_and_mul=True
        )
