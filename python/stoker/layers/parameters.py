"""The model's parameters: allocated once, with a view for each tensor of the checkpoint that fills them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from stoker.layers import host_memory
from stoker.layers.fp8 import Fp8Room, Fp8Rows, Fp8Weight

Target: TypeAlias = torch.Tensor | Fp8Rows
"""What a checkpoint's tensor fills."""


@dataclass(slots=True)
class KVScales:
    """Of a layer's fp8 cache: stored = value / scale."""

    k: float = 1.0
    v: float = 1.0
    given: bool = False
    """Whether the checkpoint told them."""


@dataclass(slots=True)
class ParameterStore:
    """Where layers get their parameters while a model is built.

    A checkpoint's tensor has exactly one place, `targets[name]`; a fused parameter is one tensor with
    several places that are slices of its rows. Whoever loads fills the places; `weights` and `ones` say how
    dummy values look.
    """

    dtype: torch.dtype
    device: torch.device
    fp8: bool = False
    """Whether linear layers are quantised, ..."""
    fp8_ignored: tuple[str, ...] = ()
    """... all but these modules: whole names, their last parts, or `re:` and a pattern."""
    targets: dict[str, Target] = field(default_factory=dict)
    """Name in the checkpoint -> the tensor (or the rows of one) that it fills."""
    weights: list[torch.Tensor] = field(default_factory=list)
    ones: list[torch.Tensor] = field(default_factory=list)
    fp8_weights: list[Fp8Weight] = field(default_factory=list)
    kv_scales: dict[str, KVScales] = field(default_factory=dict)
    """By the attention's name in the checkpoint."""
    fp8_room: Fp8Room = field(init=False)

    def __post_init__(self) -> None:
        self.fp8_room = Fp8Room(self.device)

    def quantizes(self, names: Sequence[str]) -> bool:
        """Whether the linear layer of these modules is kept in fp8. ValueError if it is of both kinds."""
        if not self.fp8:
            return False
        ignored = [self._ignores(name) for name in names]
        if any(ignored) and not all(ignored):
            raise ValueError(
                f"the checkpoint quantises some of {', '.join(names)} and not others; they are one product here"
            )
        return not any(ignored)

    def _ignores(self, name: str) -> bool:
        return any(
            re.match(entry[3:], name)
            if entry.startswith("re:")
            else name == entry or name.endswith(f".{entry}")
            for entry in self.fp8_ignored
        )

    def fp8_matrix(self, parts: Sequence[tuple[str, int]], columns: int) -> Fp8Weight:
        """As `matrix`, in fp8 with a scale a row."""
        made = Fp8Weight(sum(n for _, n in parts), columns, self.fp8_room, self.device)
        self.fp8_weights.append(made)
        row = 0
        for name, rows in parts:
            assert name not in self.targets, name
            self.targets[name] = Fp8Rows(made, row, row + rows)
            row += rows
        return made

    def attention_scales(self, name: str) -> KVScales:
        """The scales of an attention layer's fp8 cache, told by whoever loads."""
        return self.kv_scales.setdefault(name, KVScales())

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
        quantized = [t for w in self.fp8_weights for t in (w.weight, w.scale)]
        return sum(t.numel() * t.element_size() for t in (*self.weights, *self.ones, *quantized))
