"""Which class runs which architecture."""

from __future__ import annotations

from stoker.layers.parameters import ParameterStore
from stoker.model_config import ModelConfig
from stoker.models.llama import Llama
from stoker.models.mistral import Mistral
from stoker.models.qwen2 import Qwen2
from stoker.models.qwen3 import Qwen3

ARCHITECTURES: dict[str, type[Llama]] = {
    "LlamaForCausalLM": Llama,
    "MistralForCausalLM": Mistral,
    "Qwen2ForCausalLM": Qwen2,
    "Qwen3ForCausalLM": Qwen3,
}


def build(config: ModelConfig, store: ParameterStore, max_position: int) -> Llama:
    """The model of `config` with its parameters allocated in `store` and not yet filled.

    `max_position`: positions 0 to max_position - 1 can be used. ValueError for an architecture not known
    here.
    """
    model = ARCHITECTURES.get(config.architecture)
    if model is None:
        raise ValueError(
            f"architecture {config.architecture!r} is not known; allowed are {', '.join(ARCHITECTURES)}"
        )
    return model(config, store, max_position)
