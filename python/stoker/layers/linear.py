"""A linear layer, also of several checkpoint tensors side by side (q, k, v; gate, up): one matrix product."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stoker.layers.parameters import ParameterStore
from stoker.ops import silu_and_mul


class Linear:
    """out = x @ weight.T + bias, written into `out`.

    `parts` are (checkpoint prefix, output features); the weight is [sum of features, in_features] in the
    store's type.
    """

    __slots__ = ("_gated", "_matmul", "bias", "weight", "weight_t")

    def __init__(
        self, store: ParameterStore, parts: Sequence[tuple[str, int]], in_features: int, bias: bool = False
    ) -> None:
        self.weight = store.matrix([(f"{name}.weight", n) for name, n in parts], in_features)
        self.weight_t = self.weight.t()
        self.bias = store.vector([(f"{name}.bias", n) for name, n in parts]) if bias else None
        self._matmul = store.matmul
        self._gated = getattr(store.matmul, "gated", None) if self.bias is None else None

    def __call__(self, out: torch.Tensor, x: torch.Tensor) -> None:
        """x [T, in] -> out [T, out features]."""
        self._matmul(out, x, self.weight_t, self.bias)

    def silu_and_mul(self, out: torch.Tensor, x: torch.Tensor, room: torch.Tensor) -> None:
        """out [T, features / 2] = silu_and_mul of x's product, by way of `room` [T, features] or in one kernel."""
        if self._gated is None:
            self._matmul(room, x, self.weight_t, self.bias)
            silu_and_mul(out, room)
        else:
            self._gated(out, room, x, self.weight_t)
