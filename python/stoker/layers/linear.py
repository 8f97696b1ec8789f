"""A linear layer, also of several checkpoint tensors side by side (q, k, v; gate, up): one matrix product."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

import torch

from stoker.layers.fp8 import Fp8Linear
from stoker.layers.parameters import ParameterStore
from stoker.ops import linear, silu_and_mul


class Linear:
    """out = x @ weight.T + bias, written into `out`: by our own op where rows are few, else by torch's product."""

    __slots__ = ("_few_gated", "_few_rows", "_weight_t", "bias", "weight")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias
        self._weight_t = weight.t()
        self._few_rows = few_rows(weight.dtype, weight.device.type, *weight.shape)
        fused = bias is None and weight.is_cuda
        self._few_gated = (
            few_rows(weight.dtype, weight.device.type, *weight.shape, gated=True) if fused else 0
        )

    @classmethod
    def of(
        cls, store: ParameterStore, parts: Sequence[tuple[str, int]], in_features: int, bias: bool = False
    ) -> Linear | Fp8Linear:
        """`parts` are (checkpoint prefix, output features); the weight is [sum of features, in_features], in fp8 where the
        store quantises.
        """
        names = [(f"{name}.weight", n) for name, n in parts]
        added = store.vector([(f"{name}.bias", n) for name, n in parts]) if bias else None
        if store.quantizes([name for name, _ in parts]):
            return Fp8Linear(store.fp8_matrix(names, in_features), added)
        return cls(store.matrix(names, in_features), added)

    def __call__(self, out: torch.Tensor, x: torch.Tensor) -> None:
        """x [T, in] -> out [T, out features]."""
        if x.size(0) <= self._few_rows:
            linear(out, x, self.weight, self.bias)
        elif self.bias is None:
            torch.mm(x, self._weight_t, out=out)
        else:
            torch.addmm(self.bias, x, self._weight_t, out=out)

    def silu_and_mul(self, out: torch.Tensor, x: torch.Tensor, room: torch.Tensor) -> None:
        """out [T, features / 2] = silu_and_mul of x's product, by way of `room` [T, features] or in one kernel."""
        if x.size(0) <= self._few_gated:
            linear(out, x, self.weight, silu_and_mul=True)
        else:
            self(room, x)
            silu_and_mul(out, room)


@functools.cache
def few_rows(dtype: torch.dtype, device_type: str, features: int, columns: int, gated: bool = False) -> int:
    """Up to how many rows our own op is at least as quick as torch's product with such weights here, and its activation
    where `gated` (docs/kernels.md for GPUs, benchmarks/results/cpu_ops.md for CPUs).

    On processors that compute in float32 only, torch's half-precision product never catches up.
    """
    if device_type == "cuda":
        if dtype == torch.float32:
            return 0
        if torch.cuda.get_device_capability() != (9, 0) or columns > 8192:
            return 16
        small = features * columns <= 8 << 20
        if gated:
            return 256 if small else 64
        return 64 if small else 32
    if device_type != "cpu" or not _torch_says("_is_avx2_supported"):
        return 0
    if dtype == torch.float32:
        return 64
    by_processor = {
        torch.bfloat16: ("_is_avx512_bf16_supported", "_is_amx_tile_supported"),
        torch.float16: ("_is_amx_fp16_supported",),
    }
    return 24 if any(map(_torch_says, by_processor[dtype])) else sys.maxsize


def _torch_says(name: str) -> bool:
    """What torch knows of the processor, under names that changed between its versions."""
    return bool(getattr(torch.cpu, name, bool)())
