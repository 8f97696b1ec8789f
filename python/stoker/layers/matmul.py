"""out = x @ weight.T + bias: torch's product, on GPUs our own for few rows, or on CPUs without half-precision arithmetic a
float32 one in pieces.
"""

from __future__ import annotations

from typing import Protocol

import torch

from stoker.ops import linear, silu_and_mul


class Matmul(Protocol):
    """What a linear layer computes with. x [T, in], weight_t [in, features] (a view of the weight), bias [features]."""

    def __call__(
        self, out: torch.Tensor, x: torch.Tensor, weight_t: torch.Tensor, bias: torch.Tensor | None
    ) -> None: ...


def plain_matmul(
    out: torch.Tensor, x: torch.Tensor, weight_t: torch.Tensor, bias: torch.Tensor | None
) -> None:
    """torch's own product in the tensors' type."""
    if bias is None:
        torch.mm(x, weight_t, out=out)
    else:
        torch.addmm(bias, x, weight_t, out=out)


class StreamingMatmul:
    """For GPUs: few rows go to `ops.linear`, which reads the weights at the memory's speed, more of them to torch's own
    product (cuBLAS).
    """

    most_rows = 16
    """Up to here ours is the quicker for a whole layer (docs/kernels.md)."""

    def __call__(
        self, out: torch.Tensor, x: torch.Tensor, weight_t: torch.Tensor, bias: torch.Tensor | None
    ) -> None:
        if x.shape[0] <= self.most_rows:
            linear(out, x, weight_t.t(), bias)
        else:
            plain_matmul(out, x, weight_t, bias)

    def gated(self, out: torch.Tensor, room: torch.Tensor, x: torch.Tensor, weight_t: torch.Tensor) -> None:
        """silu_and_mul of the product, in one kernel for few rows."""
        if x.shape[0] <= self.most_rows:
            linear(out, x, weight_t.t(), silu_and_mul=True)
        else:
            plain_matmul(room, x, weight_t, None)
            silu_and_mul(out, room)


class WideningMatmul:
    """For half-precision weights on a processor that computes in float32 only.

    torch's bf16 product there converts as it goes and reaches a quarter of the float32 product's speed
    (measured: 250 ms against 59 for 512 x 1024 x 6144 on AVX-512 without bf16 dot products). From
    `min_rows` rows on it pays to widen the weight a piece at a time, small enough to stay in cache. One
    thread at a time may use it.
    """

    min_rows = 24
    _piece = 1 << 20  # elements: 4 MB of float32

    def __init__(self) -> None:
        self._weight = torch.empty(self._piece, dtype=torch.float32)
        self._x = torch.empty(0)
        self._out = torch.empty(0)

    def __call__(
        self, out: torch.Tensor, x: torch.Tensor, weight_t: torch.Tensor, bias: torch.Tensor | None
    ) -> None:
        rows, columns = x.shape
        if rows < self.min_rows or columns > self._piece:
            plain_matmul(out, x, weight_t, bias)
            return
        weight = weight_t.t()
        features = weight.shape[0]
        step = min(self._piece // columns, features)
        self._x = _grown(self._x, rows * columns)
        self._out = _grown(self._out, rows * step)
        wide_x = self._x[: rows * columns].view(rows, columns).copy_(x)
        for begin in range(0, features, step):
            count = min(step, features - begin)
            wide_weight = self._weight[: count * columns].view(count, columns)
            wide_weight.copy_(weight[begin : begin + count])
            wide_out = self._out[: rows * count].view(rows, count)
            if bias is None:
                torch.mm(wide_x, wide_weight.t(), out=wide_out)
            else:
                torch.addmm(bias[begin : begin + count].float(), wide_x, wide_weight.t(), out=wide_out)
            out[:, begin : begin + count].copy_(wide_out)


def _grown(room: torch.Tensor, count: int) -> torch.Tensor:
    return room if room.numel() >= count else torch.empty(count, dtype=torch.float32)


def choose_matmul(dtype: torch.dtype, device: torch.device) -> Matmul:
    """The quicker of the two for weights of `dtype` on this machine."""
    if device.type == "cuda" and dtype != torch.float32:
        return StreamingMatmul()
    if device.type != "cpu" or dtype == torch.float32:
        return plain_matmul
    return plain_matmul if computes_in(dtype) else WideningMatmul()


def computes_in(dtype: torch.dtype) -> bool:
    """Whether the processor multiplies in bf16 or fp16 (dot products or tiles); torch keeps the answer
    under names that changed between its versions.
    """
    names = {
        torch.bfloat16: ("_is_avx512_bf16_supported", "_is_amx_tile_supported"),
        torch.float16: ("_is_amx_fp16_supported",),
    }
    return any(bool(getattr(torch.cpu, name, bool)()) for name in names.get(dtype, ()))
