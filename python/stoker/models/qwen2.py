"""Qwen2 and Qwen2.5: Llama's layers with a bias on q, k and v. Source: Yang et al. 2024."""

from __future__ import annotations

from stoker.layers.attention import Attention
from stoker.layers.parameters import ParameterStore
from stoker.models.llama import Llama


class Qwen2(Llama):
    """The bias is part of the architecture; config.json does not name it."""

    def make_attention(self, store: ParameterStore, prefix: str, layer: int) -> Attention:
        return Attention(store, prefix, self.config, layer, self.cos_sin, bias=True)
