"""The product of a linear layer against its float64 definition, and a row's independence of the others."""

from __future__ import annotations

import pytest
import torch

from stoker import ops
from stoker._core import cpu
from stoker.ops import reference
from support.op_cases import MODEL_TYPES, tolerance

# Rows on both sides of a register block; whole steps of the inner dimension, tails, and less than one; features that fill
# no column block, and more than one task takes.
SHAPES = [
    (1, 1, 1),
    (2, 7, 3),
    (5, 64, 4),
    (6, 33, 65),
    (7, 96, 130),
    (13, 200, 71),
    (33, 1000, 5),
    (245, 40, 9),
]


def inputs(
    rows: int, inner: int, features: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(rows * inner)
    x, weight = ((torch.randn(n, inner, generator=g) * inner**-0.25).to(dtype) for n in (rows, features))
    return x, weight, torch.randn(features, generator=g).to(dtype)


@pytest.mark.parametrize("dtype", MODEL_TYPES)
@pytest.mark.parametrize(("rows", "inner", "features"), SHAPES)
def test_against_float64(isa: str, dtype: torch.dtype, rows: int, inner: int, features: int) -> None:
    """With and without a bias."""
    x, weight, bias = inputs(rows, inner, features, dtype)
    out, want = torch.empty(rows, features, dtype=dtype), torch.empty(rows, features, dtype=torch.float64)
    for offset in (None, bias):
        ops.linear(out, x, weight, offset)
        reference.linear(want, x.double(), weight.double(), None if offset is None else offset.double())
        torch.testing.assert_close(out.double(), want, **tolerance(dtype))


@pytest.mark.parametrize("dtype", MODEL_TYPES)
def test_rows_of_wider_tensors(isa: str, dtype: torch.dtype) -> None:
    """x, weight and out may be slices of columns; what lies beside them, NaN here, is neither used nor written."""
    x, weight, _ = inputs(9, 70, 20, dtype)
    wide_x, wide_weight, wide_out = (
        torch.full(s, float("nan"), dtype=dtype) for s in ((9, 90), (20, 75), (9, 31))
    )
    wide_x[:, 11:81], wide_weight[:, 3:73] = x, weight
    ops.linear(wide_out[:, 4:24], wide_x[:, 11:81], wide_weight[:, 3:73])
    out = torch.empty(9, 20, dtype=dtype)
    ops.linear(out, x, weight)
    assert torch.equal(wide_out[:, 4:24], out)
    assert wide_out[:, :4].isnan().all()
    assert wide_out[:, 24:].isnan().all()


@pytest.mark.parametrize("dtype", MODEL_TYPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_row_alone(isa: str, dtype: torch.dtype, threads: int) -> None:
    """A row's result is the same bits in any batch, on any number of threads."""
    cpu.set_num_threads(threads)
    x, weight, bias = inputs(260, 1000, 150, dtype)
    whole = torch.empty(260, 150, dtype=dtype)
    ops.linear(whole, x, weight, bias)
    for begin, end in ((0, 1), (3, 5), (100, 107), (17, 41), (235, 260)):
        part = torch.empty(end - begin, 150, dtype=dtype)
        ops.linear(part, x[begin:end], weight, bias)
        assert torch.equal(part, whole[begin:end])


def test_no_rows_and_nothing_to_add() -> None:
    """Empty batches write nothing; an empty inner dimension leaves the bias."""
    ops.linear(torch.empty(0, 3), torch.empty(0, 5), torch.ones(3, 5))
    out = torch.empty(2, 3)
    ops.linear(out, torch.empty(2, 0), torch.empty(3, 0), torch.arange(3.0))
    assert torch.equal(out, torch.arange(3.0).expand(2, 3))


def test_nan_and_infinity_reach_their_outputs_only(isa: str) -> None:
    x, weight = torch.ones(8, 50).bfloat16(), torch.ones(10, 50).bfloat16()
    x[2, 49], weight[7, 0] = float("nan"), float("inf")
    out = torch.empty(8, 10).bfloat16()
    ops.linear(out, x, weight)
    assert out[2].isnan().all()
    rest = out[torch.arange(8) != 2]
    assert (rest[:, 7] == float("inf")).all()
    assert (rest[:, torch.arange(10) != 7] == 50).all()


def test_errors_name_the_argument() -> None:
    x, weight = torch.ones(2, 5), torch.ones(3, 5)
    with pytest.raises(ValueError, match=r"linear: weight .*1"):
        ops.linear(torch.empty(2, 3), x, torch.ones(3, 4))
    with pytest.raises(ValueError, match="linear: out"):
        ops.linear(torch.empty(2, 4), x, weight)
    with pytest.raises(ValueError, match="linear: bias"):
        ops.linear(torch.empty(2, 3), x, weight, torch.ones(3).bfloat16())
