"""One step's tensors, handed through the model as an argument: positions, slots, block tables, rows, and
room to work in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch

from stoker.model_config import ModelConfig

K = TypeVar("K")
V = TypeVar("V")
AttentionPlans: TypeAlias = dict[int, Any]
"""Window -> what paged_attention takes as `plan`."""


@dataclass(slots=True)
class StepContext:
    """What the layers may know of a step: T tokens in R rows, decode rows first. Index tensors are int32."""

    positions: torch.Tensor
    """[T]"""
    slots: list[torch.Tensor]
    """[T] for each KV group."""
    block_tables: list[torch.Tensor]
    """[seats, max blocks] for each KV group."""
    row_seat: torch.Tensor
    """[R]"""
    row_indptr: torch.Tensor
    """[R + 1]"""
    row_kv_len: torch.Tensor
    """[R]"""
    num_decode_rows: int
    kv_caches: list[tuple[torch.Tensor, torch.Tensor]]
    """k_cache, v_cache of each layer: [num_blocks, num_kv_heads, block_size, head_dim]."""
    activations: Activations
    plans: AttentionPlans | None = None
    """The attention work lists on the device, by window; CPU ops balance by themselves."""


class Kept(dict[K, V]):
    """What was made for sizes of steps, the newest 512 of it: most steps have few sizes, but over days all come up."""

    def keep(self, key: K, made: V) -> V:
        """Remembers and returns it; the oldest makes room."""
        if len(self) >= 512:
            del self[next(iter(self))]
        self[key] = made
        return made


class Activations:
    """Room for T tokens' activations: views of buffers that live as long as the engine."""

    __slots__ = ("attention", "attention_flat", "ffn", "gate_up", "hidden", "k", "q", "qkv", "residual", "v")

    def __init__(self, pool: ActivationPool, num_tokens: int) -> None:
        config = pool.config
        heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.residual = pool.residual[:num_tokens]
        self.hidden = pool.hidden[:num_tokens]
        self.qkv = pool.qkv[:num_tokens]
        shaped = self.qkv.view(num_tokens, heads + 2 * kv_heads, dim)
        self.q = shaped[:, :heads]
        self.k = shaped[:, heads : heads + kv_heads]
        self.v = shaped[:, heads + kv_heads :]
        self.attention_flat = pool.attention[:num_tokens]
        self.attention = self.attention_flat.view(num_tokens, heads, dim)
        self.gate_up = pool.gate_up[:num_tokens]
        self.ffn = pool.ffn[:num_tokens]


class ActivationPool:
    """Allocates the activations of the widest step once and makes views of it for narrower ones."""

    def __init__(
        self, config: ModelConfig, max_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        def room(width: int) -> torch.Tensor:
            return torch.zeros(max_tokens, width, dtype=dtype, device=device)

        query = config.num_attention_heads * config.head_dim
        self.config = config
        self.residual = room(config.hidden_size)
        self.hidden = room(config.hidden_size)
        self.qkv = room(query + 2 * config.num_key_value_heads * config.head_dim)
        self.attention = room(query)
        self.gate_up = room(2 * config.intermediate_size)
        self.ffn = room(config.intermediate_size)
        self._views: Kept[int, Activations] = Kept()

    def views(self, num_tokens: int) -> Activations:
        """The first `num_tokens` rows of every buffer."""
        views = self._views.get(num_tokens)
        return views if views is not None else self._views.keep(num_tokens, Activations(self, num_tokens))
