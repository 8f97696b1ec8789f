"""Random inputs for the ops' tests, always from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

MODEL_TYPES = [torch.float32, torch.bfloat16, torch.float16]


def int32(values: list[int] | list[list[int]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """How far an op may be from its float64 definition: some units in the last place of its output type."""
    return {
        torch.float32: {"rtol": 1e-5, "atol": 1e-5},
        torch.bfloat16: {"rtol": 1.6e-2, "atol": 4e-3},
        torch.float16: {"rtol": 2e-3, "atol": 1e-3},
    }[dtype]


@dataclass(frozen=True)
class AttentionCase:
    """Rows of (KV length, query tokens) over a cache whose blocks are shuffled."""

    rows: tuple[tuple[int, int], ...]
    q_heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    block_size: int = 16
    dtype: torch.dtype = torch.float32
    cache_dtype: torch.dtype | None = None
    window: int = 0
    soft_cap: float = 0.0
    seed: int = 0
    poison: bool = False  # NaN in every slot that no row may read

    def tensors(self) -> dict[str, Any]:
        g = torch.Generator().manual_seed(self.seed)
        size, d = self.block_size, self.head_dim
        needed = [-(-kv // size) for kv, _ in self.rows]
        shape = (sum(needed) + 1, self.kv_heads, size, d)
        # Wider than the model's so that the first stride is free; layers may share one allocation.
        wide = torch.randn(shape[0], 2, *shape[1:], generator=g)
        cache = wide.to(self.cache_dtype or self.dtype)
        k_cache, v_cache = cache.unbind(1)
        order = (torch.randperm(shape[0] - 1, generator=g) + 1).tolist()
        table = torch.zeros(len(self.rows) + 1, max(needed, default=1), dtype=torch.int32)
        for row, count in enumerate(needed):
            for block in range(count):
                table[row + 1, block] = order.pop()
        starts = [0]
        for _, tokens in self.rows:
            starts.append(starts[-1] + tokens)
        if self.poison:
            self._poison(k_cache, v_cache, table)
        qkv = torch.randn(starts[-1], self.q_heads + 3, d, generator=g).to(self.dtype)
        return {
            "q": qkv[:, : self.q_heads],
            "k_cache": k_cache,
            "v_cache": v_cache,
            "block_table": table,
            "row_seat": torch.arange(1, len(self.rows) + 1, dtype=torch.int32),
            "row_indptr": int32(starts),
            "row_kv_len": int32([kv for kv, _ in self.rows]),
        }

    def options(self) -> dict[str, Any]:
        return {"scale": self.head_dim**-0.5, "window": self.window, "soft_cap": self.soft_cap}

    def _poison(self, k_cache: torch.Tensor, v_cache: torch.Tensor, table: torch.Tensor) -> None:
        k_cache[0] = float("nan")
        v_cache[0] = float("nan")
        for row, (kv, tokens) in enumerate(self.rows):
            first = max(0, kv - tokens + 1 - self.window) if self.window else 0
            for position in range(table.shape[1] * self.block_size):
                block = int(table[row + 1, position // self.block_size])
                if block and not first <= position < kv:
                    k_cache[block, :, position % self.block_size] = float("nan")
                    v_cache[block, :, position % self.block_size] = float("nan")
