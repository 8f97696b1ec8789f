"""config.json in its several spellings, and options that are refused with what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stoker.config import EngineConfig
from stoker.model_config import GenerationConfig, ModelConfig

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def config(**changes: Any) -> ModelConfig:
    return ModelConfig.from_dict(LLAMA | changes)


def test_what_is_left_out_follows_from_the_rest() -> None:
    """Old checkpoints name neither head_dim nor num_key_value_heads."""
    read = config()
    assert (read.head_dim, read.num_key_value_heads, read.tie_word_embeddings) == (16, 4, False)
    assert read.rope.theta == 10000.0


def test_both_spellings_of_rope() -> None:
    """transformers 4 writes rope_theta and rope_scaling, 5 writes rope_parameters."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    old = config(rope_theta=5e5, rope_scaling=scaling)
    new = config(rope_parameters=scaling | {"rope_theta": 5e5})
    assert old.rope == new.rope
    assert (old.rope.theta, old.rope.factor, old.rope.rope_type) == (5e5, 8.0, "llama3")
    assert config(rope_scaling={"type": "linear", "factor": 2.0}).rope.rope_type == "linear"


def test_windows() -> None:
    """Qwen names a window that it does not use; layer_types says which layers do."""
    assert config(sliding_window=10).window(1) == 10
    qwen = config(architectures=["Qwen2ForCausalLM"], sliding_window=10, use_sliding_window=False)
    assert qwen.window(1) == 0
    mixed = config(sliding_window=10, layer_types=["full_attention", "sliding_attention"])
    assert (mixed.window(0), mixed.window(1)) == (0, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": []}, "architectures"),
        ({"vocab_size": 0}, "vocab_size=0 must be a positive integer"),
        ({"hidden_size": "64"}, "hidden_size='64'"),
        ({"num_key_value_heads": 3}, "multiple of num_key_value_heads=3"),
        ({"hidden_act": "relu"}, "hidden_act='relu'.*allowed is 'silu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn' is not built.*linear"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "factor=0.5"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized by .awq. is not built"),
    ],
)
def test_a_bad_config_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json"):
        ModelConfig.from_folder(tmp_path)


def test_end_tokens_come_from_generation_config(tmp_path: Path) -> None:
    """It may name several, and goes before config.json."""
    model = config(eos_token_id=5)
    assert GenerationConfig.from_folder(tmp_path, model).eos_token_ids == (5,)
    (tmp_path / "generation_config.json").write_text(
        '{"eos_token_id": [6, 7], "temperature": 0.6, "top_k": null}'
    )
    read = GenerationConfig.from_folder(tmp_path, model)
    assert read.eos_token_ids == (6, 7)
    assert read.defaults == {"temperature": 0.6}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype='int8': must be 'auto'"),
        ({"max_num_seqs": 0}, "max_num_seqs=0: must be at least 1"),
        ({"block_size": 12}, "block_size=12: must be a multiple of 8"),
        ({"num_kv_blocks": 1}, "num_kv_blocks=1"),
        ({"gpu_memory_utilization": 1.5}, r"gpu_memory_utilization=1\.5"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size=2: not built yet"),
        ({"max_seqs": 4}, "unknown option 'max_seqs'; allowed are .*max_num_seqs"),
    ],
)
def test_a_bad_option_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineConfig.from_kwargs("stoker-demo", **options)
