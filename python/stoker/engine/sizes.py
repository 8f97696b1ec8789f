"""How long, how many, how large: what the options left open, settled for a model and a device, with the
errors for what cannot work. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass

from stoker.config import EngineConfig
from stoker.model_config import ModelConfig

_CPU_SEQS, _CPU_TOKENS = 64, 512
_GPU_SEQS, _GPU_TOKENS = 256, 8192
_LARGE_GPU_SEQS, _LARGE_GPU_BYTES = 1024, 70 << 30  # as vLLM: an A100 or H100 of 80 GB and what came after


@dataclass(frozen=True, slots=True)
class StepSizes:
    """What bounds a step."""

    max_num_seqs: int
    max_num_batched_tokens: int

    @classmethod
    def settle(cls, config: EngineConfig, gpu_bytes: int | None) -> StepSizes:
        """Defaults filled in; a step must have room for a token of every running request. gpu_bytes: the GPU's memory, None
        on a CPU.
        """
        seqs, tokens = _CPU_SEQS, _CPU_TOKENS
        if gpu_bytes is not None:
            seqs = _GPU_SEQS if gpu_bytes < _LARGE_GPU_BYTES else _LARGE_GPU_SEQS
            tokens = _GPU_TOKENS
        seqs = config.max_num_seqs or seqs
        tokens = config.max_num_batched_tokens or max(tokens, seqs)
        if tokens < seqs:
            raise ValueError(
                f"max_num_batched_tokens={tokens}: must be at least max_num_seqs ({seqs}), so that every "
                "running request can have its token in a step"
            )
        return cls(seqs, tokens)


def model_len(config: EngineConfig, model: ModelConfig) -> int:
    """max_model_len as far as the model goes."""
    longest = model.max_position_embeddings
    if config.max_model_len is None:
        return longest
    if config.max_model_len > longest:
        raise ValueError(f"max_model_len={config.max_model_len}: the model allows at most {longest}")
    return config.max_model_len


def fit_model_len(config: EngineConfig, max_model_len: int, num_blocks: int) -> int:
    """max_model_len as far as the KV pool goes. One that was asked for is never cut but refused."""
    room = (num_blocks - 1) * config.block_size
    if max_model_len <= room:
        return max_model_len
    if config.max_model_len is not None:
        raise ValueError(
            f"the KV pool of {num_blocks} blocks (one of them the null block) of {config.block_size} tokens "
            f"holds {max(room, 0)} tokens, less than one request of max_model_len={max_model_len}; "
            "allow more blocks or a shorter max_model_len"
        )
    if room < 1:
        raise ValueError(
            f"the memory for KV holds {num_blocks} blocks; at least 2 are needed (num_kv_blocks=, "
            "kv_cache_memory=)"
        )
    return room
