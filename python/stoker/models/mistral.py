"""Mistral: Llama's layers, attending to a sliding window of the context where config.json names one.

The window is `ModelConfig.window(layer)`, which the attention layer masks by. Source: Jiang et al. 2023.
"""

from __future__ import annotations

from stoker.layers.attention import Attention
from stoker.layers.parameters import ParameterStore
from stoker.models.llama import Llama


class Mistral(Llama):
    """Never a bias, whatever config.json says."""

    def make_attention(self, store: ParameterStore, prefix: str, layer: int) -> Attention:
        return Attention(store, prefix, self.config, layer, self.cos_sin)
