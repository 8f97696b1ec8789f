"""The matrix product that widens half-precision weights in pieces gives what a float32 product gives."""

from __future__ import annotations

import pytest
import torch

from stoker.layers.matmul import WideningMatmul, plain_matmul


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 23, 24, 33])
def test_widened_in_pieces(
    dtype: torch.dtype, bias: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects the borders between pieces, the last short one, and the rows below which torch's product is
    used.
    """
    monkeypatch.setattr(WideningMatmul, "_piece", 96 * 50)
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 96, generator=generator).to(dtype)
    weight = torch.randn(170, 96, generator=generator).to(dtype)
    offset = torch.randn(170, generator=generator).to(dtype) if bias else None
    out = torch.empty(rows, 170, dtype=dtype)
    WideningMatmul()(out, x, weight.t(), offset)
    expected = x.float() @ weight.float().t()
    if offset is not None:
        expected += offset.float()
    torch.testing.assert_close(out, expected.to(dtype), rtol=2**-7, atol=1e-2)


def test_a_row_does_not_depend_on_rooms_left_over() -> None:
    """Protects the reused rooms: a small product after a large one gives the same as alone."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 128, generator=generator).bfloat16()
    weight = torch.randn(96, 128, generator=generator).bfloat16()
    used, large, small, alone = WideningMatmul(), *(torch.empty(n, 96).bfloat16() for n in (64, 25, 25))
    used(large, x, weight.t(), None)
    used(small, x[:25], weight.t(), None)
    WideningMatmul()(alone, x[:25], weight.t(), None)
    assert torch.equal(small, alone)


def test_the_plain_product_adds_its_bias() -> None:
    x, weight, bias = torch.ones(2, 3), torch.full((4, 3), 2.0), torch.arange(4.0)
    out = torch.empty(2, 4)
    plain_matmul(out, x, weight.t(), bias)
    assert torch.equal(out, 6 + torch.arange(4.0).expand(2, 4))
