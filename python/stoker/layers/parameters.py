"""The model's parameters: allocated once, with a view for each tensor of the checkpoint that fills them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from stoker.layers import host_memory


@dataclass(slots=True)
class ParameterStore:
    """Where layers get their parameters while a model is built.

    A checkpoint's tensor has exactly one place, `targets[name]`; a fused parameter is one tensor with
    several places that are slices of its rows. Whoever loads fills the places; `weights` and `ones` say how
    dummy values look.
    """

    dtype: torch.dtype
    device: torch.device
    targets: dict[str, torch.Tensor] = field(default_factory=dict)
    """Name in the checkpoint -> the tensor (or the rows of one) that it fills."""
    weights: list[torch.Tensor] = field(default_factory=list)
    ones: list[torch.Tensor] = field(default_factory=list)

    def matrix(self, parts: Sequence[tuple[str, int]], columns: int) -> torch.Tensor:
        """[sum of rows, columns]; `parts` are (checkpoint name, rows), one after another."""
        tensor = self._room(sum(n for _, n in parts), columns)
        self.weights.append(tensor)
        self._place(tensor, parts)
        return tensor

    def vector(self, parts: Sequence[tuple[str, int]]) -> torch.Tensor:
        """[sum of elements], for biases."""
        tensor = self._room(sum(n for _, n in parts))
        self.weights.append(tensor)
        self._place(tensor, parts)
        return tensor

    def norm(self, name: str, size: int) -> torch.Tensor:
        """[size], a norm's weight."""
        tensor = self._room(size)
        self.ones.append(tensor)
        self.targets[name] = tensor
        return tensor

    def _room(self, *shape: int) -> torch.Tensor:
        if self.device.type == "cpu":
            return host_memory.zeros(shape, self.dtype)
        return torch.empty(*shape, dtype=self.dtype, device=self.device)

    def _place(self, tensor: torch.Tensor, parts: Sequence[tuple[str, int]]) -> None:
        row = 0
        for name, rows in parts:
            assert name not in self.targets, name
            self.targets[name] = tensor[row : row + rows]
            row += rows

    def num_bytes(self) -> int:
        """Memory that the parameters take."""
        return sum(t.numel() * t.element_size() for t in (*self.weights, *self.ones))
