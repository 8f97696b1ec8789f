"""Qwen3: Llama's layers with an RMSNorm of each head of q and k before the rotary embedding. Source: Yang
et al. 2025.
"""

from __future__ import annotations

from stoker.layers.attention import Attention
from stoker.layers.parameters import ParameterStore
from stoker.models.llama import Llama


class Qwen3(Llama):
    """head_dim stands in config.json and need not be hidden_size / num_attention_heads."""

    def make_attention(self, store: ParameterStore, prefix: str, layer: int) -> Attention:
        bias = self.config.attention_bias
        return Attention(
            store, prefix, self.config, layer, self.cos_sin, bias=bias, output_bias=bias, qk_norm=True
        )
