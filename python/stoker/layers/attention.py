"""Self-attention over the paged KV cache: projections, optional q/k norm, rotary, cache write, attention,
output projection.
"""

from __future__ import annotations

import torch

from stoker.layers.context import StepContext
from stoker.layers.linear import Linear
from stoker.layers.parameters import ParameterStore
from stoker.model_config import ModelConfig
from stoker.ops import paged_attention, rope_and_cache


class Attention:
    """One layer's attention; reads `activations.hidden` and writes the result back there.

    `prefix` names it in the checkpoint (`model.layers.3.self_attn`). `bias` is for q, k and v;
    `output_bias` for the output projection; `qk_norm` norms each head of q and k before the rotary
    embedding (Qwen3).
    """

    def __init__(
        self,
        store: ParameterStore,
        prefix: str,
        config: ModelConfig,
        layer: int,
        cos_sin: torch.Tensor,
        *,
        bias: bool = False,
        output_bias: bool = False,
        qk_norm: bool = False,
    ) -> None:
        query = config.num_attention_heads * config.head_dim
        key = config.num_key_value_heads * config.head_dim
        self.layer = layer
        self.group = 0
        self.qkv = Linear.of(
            store,
            [(f"{prefix}.q_proj", query), (f"{prefix}.k_proj", key), (f"{prefix}.v_proj", key)],
            config.hidden_size,
            bias,
        )
        self.output = Linear.of(store, [(f"{prefix}.o_proj", config.hidden_size)], query, output_bias)
        self.q_norm = store.norm(f"{prefix}.q_norm.weight", config.head_dim) if qk_norm else None
        self.k_norm = store.norm(f"{prefix}.k_norm.weight", config.head_dim) if qk_norm else None
        self.kv_scales = store.attention_scales(prefix)
        self.cos_sin = cos_sin
        self.scale = config.scale
        self.window = config.window(layer)
        self.eps = config.rms_norm_eps

    def __call__(self, ctx: StepContext) -> None:
        """activations.hidden [T, hidden] -> activations.hidden, through the layer's KV cache."""
        room = ctx.activations
        k_cache, v_cache = ctx.kv_caches[self.layer]
        self.qkv(room.qkv, room.hidden)
        rope_and_cache(
            room.q,
            room.k,
            room.v,
            ctx.positions,
            self.cos_sin,
            k_cache,
            v_cache,
            ctx.slots[self.group],
            q_norm=self.q_norm,
            k_norm=self.k_norm,
            eps=self.eps,
            k_scale=self.kv_scales.k,
            v_scale=self.kv_scales.v,
        )
        paged_attention(
            room.attention,
            room.q,
            k_cache,
            v_cache,
            ctx.block_tables[self.group],
            ctx.row_seat,
            ctx.row_indptr,
            ctx.row_kv_len,
            scale=self.scale,
            window=self.window,
            k_scale=self.kv_scales.k,
            v_scale=self.kv_scales.v,
            num_decode_rows=ctx.num_decode_rows,
            plan=None if ctx.plans is None else ctx.plans[self.window],
        )
        self.output(room.hidden, room.attention_flat)
