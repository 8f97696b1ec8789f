"""Llama (2, 3, 3.1 …): pre-norm decoder layers of rotary GQA attention and a SiLU-gated MLP.

Also the frame of Mistral, Qwen2 and Qwen3, which differ in the attention's details only.
Source: Touvron et al. 2023; Grattafiori et al. 2024.
"""

from __future__ import annotations

import torch

from stoker.layers.attention import Attention
from stoker.layers.context import StepContext
from stoker.layers.embedding import Embedding, Head
from stoker.layers.mlp import GatedMLP
from stoker.layers.parameters import ParameterStore
from stoker.layers.rotary import cos_sin_table
from stoker.model_config import ModelConfig
from stoker.ops import add_rms_norm, rms_norm


class DecoderLayer:
    """Attention, then the MLP; each takes the normed residual stream and adds to it.

    The adding of one half is done with the norm of the next, in one pass over the residual.
    """

    def __init__(
        self, store: ParameterStore, prefix: str, config: ModelConfig, attention: Attention, first: bool
    ) -> None:
        self.attention = attention
        self.mlp = GatedMLP(store, f"{prefix}.mlp", config, config.mlp_bias)
        self.attention_norm = store.norm(f"{prefix}.input_layernorm.weight", config.hidden_size)
        self.mlp_norm = store.norm(f"{prefix}.post_attention_layernorm.weight", config.hidden_size)
        self.eps = config.rms_norm_eps
        self.first = first

    def __call__(self, ctx: StepContext) -> None:
        """hidden (what the layer before wants added) and residual, both [T, hidden], in place."""
        hidden, residual = ctx.activations.hidden, ctx.activations.residual
        if self.first:
            rms_norm(hidden, residual, self.attention_norm, self.eps)
        else:
            add_rms_norm(hidden, residual, hidden, self.attention_norm, self.eps)
        self.attention(ctx)
        add_rms_norm(hidden, residual, hidden, self.mlp_norm, self.eps)
        self.mlp(ctx)


class Llama:
    """The whole model. `forward` runs the layers; `logits` the last norm and the head, on the rows that are
    wanted.
    """

    def __init__(self, config: ModelConfig, store: ParameterStore, max_position: int) -> None:
        self.config = config
        self.fp8_room = store.fp8_room
        self.cos_sin = cos_sin_table(config.rope, config.head_dim, max_position, store.device)
        self.embedding = Embedding(store, "model.embed_tokens", config.vocab_size, config.hidden_size)
        self.layers = [
            DecoderLayer(
                store,
                f"model.layers.{i}",
                config,
                self.make_attention(store, f"model.layers.{i}.self_attn", i),
                first=i == 0,
            )
            for i in range(config.num_hidden_layers)
        ]
        self.norm = store.norm("model.norm.weight", config.hidden_size)
        tied = self.embedding if config.tie_word_embeddings else None
        self.head = Head(store, "lm_head", config.vocab_size, config.hidden_size, tied)
        self.eps = config.rms_norm_eps

    def make_attention(self, store: ParameterStore, prefix: str, layer: int) -> Attention:
        """What the models of this frame differ in."""
        bias = self.config.attention_bias
        return Attention(store, prefix, self.config, layer, self.cos_sin, bias=bias, output_bias=bias)

    def forward(self, tokens: torch.Tensor, ctx: StepContext) -> torch.Tensor:
        """tokens int32 [T] -> the residual stream after the last layer, [T, hidden] (a view of the
        activations).
        """
        room = ctx.activations
        self.embedding(room.residual, tokens)
        for layer in self.layers:
            layer(ctx)
        return room.residual.add_(room.hidden)

    def logits(self, out: torch.Tensor, rows: torch.Tensor) -> None:
        """rows [N, hidden] of forward's result (overwritten) -> out [N, vocab]."""
        rms_norm(rows, rows, self.norm, self.eps)
        self.head(out, rows)
