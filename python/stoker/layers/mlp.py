"""The gated feed-forward layer: down(silu(gate(x)) * up(x)), gate and up as one product."""

from __future__ import annotations

from stoker.layers.context import StepContext
from stoker.layers.linear import Linear
from stoker.layers.parameters import ParameterStore
from stoker.model_config import ModelConfig


class GatedMLP:
    """Reads `activations.hidden` and writes the result back there."""

    def __init__(self, store: ParameterStore, prefix: str, config: ModelConfig, bias: bool = False) -> None:
        width = config.intermediate_size
        self.gate_up = Linear.of(
            store, [(f"{prefix}.gate_proj", width), (f"{prefix}.up_proj", width)], config.hidden_size, bias
        )
        self.down = Linear.of(store, [(f"{prefix}.down_proj", config.hidden_size)], width, bias)

    def __call__(self, ctx: StepContext) -> None:
        """activations.hidden [T, hidden] -> activations.hidden."""
        room = ctx.activations
        self.gate_up.silu_and_mul(room.ffn, room.hidden, room.gate_up)
        self.down(room.hidden, room.ffn)
