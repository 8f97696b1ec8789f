"""Puts an engine's parts together for a CPU: weights, KV memory and runner, and the scheduler's
configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from stoker.config import EngineConfig, GenerationConfig, ModelConfig
from stoker.engine import checkpoint, weights
from stoker.engine.forward import Forward
from stoker.engine.kv_cache import KVPool, default_cpu_budget, gib, kv_groups, num_blocks_for_memory
from stoker.engine.model_runner import ModelRunner
from stoker.engine.seats import CpuSeats
from stoker.engine.sizes import StepSizes, fit_model_len, model_len
from stoker.engine.transfers import Transfers
from stoker.layers.parameters import ParameterStore
from stoker.models import registry


@dataclass(frozen=True, slots=True)
class Parts:
    """What an Engine is made of."""

    model_path: str
    model_config: ModelConfig
    generation_config: GenerationConfig
    max_model_len: int
    sizes: StepSizes
    num_blocks: int
    runner: Any
    """The executor."""
    worker_thread: bool
    """Whether the loop's worker thread runs the executor's steps (one that returns only when the step is
    done).
    """


def build(config: EngineConfig) -> Parts:
    """Loads and allocates everything. ValueError for what the options or the checkpoint get wrong."""
    folder = checkpoint.resolve(config.model, config.revision, config.download_dir)
    model_config = ModelConfig.from_folder(folder)
    generation_config = GenerationConfig.from_folder(folder, model_config)
    device = choose_device(config.device)
    if device.type != "cpu":
        raise ValueError(f"device={config.device!r}: not built yet; only 'cpu' is allowed")
    dtype: torch.dtype = getattr(torch, model_config.torch_dtype if config.dtype == "auto" else config.dtype)
    sizes = StepSizes.settle(config, on_gpu=False)
    max_len = model_len(config, model_config)
    group = kv_groups(model_config, config.block_size, dtype)[0]
    if config.num_kv_blocks is not None:
        num_blocks = config.num_kv_blocks
    else:
        budget = gib(config.kv_cache_memory) if config.kv_cache_memory else default_cpu_budget()
        num_blocks = num_blocks_for_memory(group, budget, max_len, sizes.max_num_seqs)
    max_len = fit_model_len(config, max_len, num_blocks)

    store = ParameterStore(dtype, device)
    model = registry.build(model_config, store, max_len)
    if config.load_format == "dummy":
        weights.fill_dummy(store, config.seed)
    else:
        weights.load(store, folder, config.progress)
    pool = KVPool(group, model_config, num_blocks, dtype, device)
    num_host_blocks = int(gib(config.swap_space) // group.block_bytes)
    host_pools = [KVPool(group, model_config, num_host_blocks, dtype, device)] if num_host_blocks else []
    max_blocks = -(-max_len // config.block_size)
    seats = CpuSeats(sizes.max_num_seqs + 1, 1, max_blocks, model_config.vocab_size)
    forward = Forward(
        model,
        model_config,
        pool.layers,
        seats,
        sizes.max_num_batched_tokens,
        sizes.max_num_seqs,
        dtype,
        device,
    )
    return Parts(
        str(folder),
        model_config,
        generation_config,
        max_len,
        sizes,
        num_blocks,
        ModelRunner(forward, seats, Transfers([pool], host_pools)),
        worker_thread=config.overlap,
    )


def choose_device(name: str) -> torch.device:
    """The device that an option names; auto: the CPU, until the CUDA runner is there."""
    return torch.device("cpu" if name == "auto" else name)
