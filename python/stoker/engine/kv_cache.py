"""The KV pool: how many blocks the memory holds, and the tensors they live in."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from stoker.layers import host_memory
from stoker.model_config import ModelConfig

_GIB = 1 << 30
_MAX_DEFAULT_GIB = 4.0
_SHARE_OF_FREE = 0.25
# Blocks of one head lie a layer-stack apart. On a CPU an odd distance in cache lines keeps them from
# falling on the same few cache sets, which a power of two would make them do.
_CPU_PAD_BYTES = 64 * 67


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers that share one kind of KV memory."""

    kind: str
    """`full`: all positions are kept. (A window is masked in the attention; its blocks are kept too.)"""
    layers: tuple[int, ...]
    block_size: int
    block_bytes: int
    """Bytes of one block over all layers of the group, K and V."""


def kv_groups(model: ModelConfig, block_size: int, dtype: torch.dtype) -> list[KVGroup]:
    """The model's KV groups: one, `full`, for every architecture built so far."""
    layers = tuple(range(model.num_hidden_layers))
    element = torch.empty(0, dtype=dtype).element_size()
    block = 2 * model.num_key_value_heads * block_size * model.head_dim * element * len(layers)
    return [KVGroup("full", layers, block_size, block)]


def num_blocks_for_memory(group: KVGroup, budget_bytes: float, max_model_len: int, max_num_seqs: int) -> int:
    """Blocks (null block included) that fit the budget, never more than all seats at full length could use."""
    per_req = -(-max_model_len // group.block_size)
    return min(int(budget_bytes // group.block_bytes), per_req * max_num_seqs + 1)


def default_cpu_budget() -> float:
    """Bytes for the KV pool where nothing was said: at most 4 GiB and a quarter of what is free."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(_MAX_DEFAULT_GIB * _GIB, free * _SHARE_OF_FREE)


def gib(value: float) -> float:
    """GiB in bytes."""
    return value * _GIB


class KVPool:
    """The blocks of one KV group on one tier: [num_blocks, layers, 2, kv_heads, block_size, head_dim],
    blocks padded apart.

    Block-major, so that moving a block is one copy. Zeroed lazily: memory is taken from the system as it is
    touched.
    """

    def __init__(
        self,
        group: KVGroup,
        model: ModelConfig,
        num_blocks: int,
        dtype: torch.dtype,
        device: torch.device,
        pin: bool = False,
    ) -> None:
        shape = (len(group.layers), 2, model.num_key_value_heads, group.block_size, model.head_dim)
        element = torch.empty(0, dtype=dtype).element_size()
        used = group.block_bytes // element
        pad = _CPU_PAD_BYTES // element
        self.num_blocks = num_blocks
        self.block_bytes = group.block_bytes
        if device.type == "cpu" and not pin:
            self.storage = host_memory.zeros((num_blocks, used + pad), dtype)
        else:
            self.storage = torch.zeros(num_blocks, used, dtype=dtype, device=device, pin_memory=pin)
        self.blocks = self.storage[:, :used]
        """[num_blocks, elements of a block]: what copies and swaps move."""
        layered = torch.unflatten(self.blocks, 1, shape)
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = [
            (layered[:, i, 0], layered[:, i, 1]) for i in range(len(group.layers))
        ]
        """k_cache, v_cache of each layer: [num_blocks, kv_heads, block_size, head_dim]."""
