"""Puts an engine's parts together: weights, KV memory, seats and runner, on a CPU or a GPU."""

from __future__ import annotations

import importlib.util
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stoker.config import EngineConfig
from stoker.engine import checkpoint, weights
from stoker.engine.forward import Forward
from stoker.engine.kv_cache import KVGroup, KVPool, default_cpu_budget, gib, kv_groups, num_blocks_for_memory
from stoker.engine.model_runner import ModelRunner
from stoker.engine.seats import CpuSeats
from stoker.engine.sizes import StepSizes, fit_model_len, model_len
from stoker.engine.transfers import Transfers
from stoker.layers.parameters import ParameterStore
from stoker.model_config import GenerationConfig, ModelConfig
from stoker.models import registry


@dataclass(frozen=True, slots=True)
class Attention:
    """Of the work lists that the scheduler writes: one for each window that the layers use."""

    geometry: dict[str, int]
    windows: list[int]


@dataclass(frozen=True, slots=True)
class Parts:
    """What an Engine is made of."""

    model_path: str
    model_config: ModelConfig
    generation_config: GenerationConfig
    max_model_len: int
    sizes: StepSizes
    num_blocks: int
    num_host_blocks: int
    """For swapped requests, the null block included; 0: none."""
    block_bytes: int
    dtype: str
    """Of weights and activations."""
    runner: Any
    """The executor."""
    worker_thread: bool
    """Whether the loop's worker thread runs the executor's steps (one that returns only when the step is done)."""
    attention: Attention | None = None
    """What the executor's attention kernels want work lists for; None: they balance by themselves."""
    ledger: dict[str, float] = field(default_factory=dict)
    """GiB of weights, kv and host_kv, on a GPU also activations and graphs; seconds of loading."""


def build(config: EngineConfig) -> Parts:
    """Loads and allocates everything. ValueError for what the options or the checkpoint get wrong."""
    folder = checkpoint.resolve(config.model, config.revision, config.download_dir)
    model_config = ModelConfig.from_folder(folder)
    device = choose_device(config.device)
    on_gpu = device.type == "cuda"
    dtype: torch.dtype = getattr(torch, model_config.torch_dtype if config.dtype == "auto" else config.dtype)
    sizes = StepSizes.settle(
        config, torch.cuda.get_device_properties(device).total_memory if on_gpu else None
    )
    longest = model_len(config, model_config)
    kv_dtype = dtype if config.kv_cache_dtype == "auto" else torch.float8_e4m3fn
    group = kv_groups(model_config, config.block_size, kv_dtype)[0]
    if not on_gpu:
        num_blocks = _num_blocks(config, group, longest, sizes, default_cpu_budget())
        longest = fit_model_len(config, longest, num_blocks)

    began = time.perf_counter()
    store = _store(config, model_config, dtype, device)
    model = registry.build(model_config, store, longest)
    _fill(store, folder, config)
    if config.kv_cache_dtype != "auto" and not all(scales.given for scales in store.kv_scales.values()):
        warnings.warn(
            f"kv_cache_dtype={config.kv_cache_dtype!r}: the checkpoint tells no scales of some layers' KV; 1.0 is used",
            stacklevel=2,
        )
    ledger = {"load_seconds": time.perf_counter() - began, "weights": store.num_bytes() / gib(1)}
    place = (sizes.max_num_seqs + 1, 1, -(-longest // config.block_size), model_config.vocab_size)
    if on_gpu:
        from stoker.engine.build_cuda import CudaParts

        gpu = CudaParts(config, model, sizes, place, group, dtype, kv_dtype, device)
        num_blocks = _num_blocks(config, group, longest, sizes, gpu.kv_budget(ledger))
        longest = fit_model_len(config, longest, num_blocks)
    pool = KVPool(group, model_config, num_blocks, kv_dtype, device)
    num_host_blocks = num_host_blocks_for(config, group)
    cpu = torch.device("cpu")
    host_pools = (
        [KVPool(group, model_config, num_host_blocks, kv_dtype, cpu, pin=on_gpu)] if num_host_blocks else []
    )
    ledger["kv"] = num_blocks * group.block_bytes / gib(1)
    ledger["host_kv"] = num_host_blocks * group.block_bytes / gib(1)
    runner: Any
    attention: Attention | None = None
    if on_gpu:
        runner, attention = gpu.runner(pool, host_pools), gpu.attention
    else:
        seats = CpuSeats(*place)
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
        runner = ModelRunner(forward, seats, Transfers([pool], host_pools))
    return Parts(
        str(folder),
        model_config,
        GenerationConfig.from_folder(folder, model_config),
        longest,
        sizes,
        num_blocks,
        num_host_blocks,
        group.block_bytes,
        str(dtype).removeprefix("torch."),
        runner,
        worker_thread=config.overlap and not on_gpu,
        attention=attention,
        ledger=ledger,
    )


def choose_device(name: str) -> torch.device:
    """The device that an option names; auto: a GPU where torch sees one and stoker._cuda was built."""
    have_ops = importlib.util.find_spec("stoker._cuda") is not None
    if name == "auto":
        return torch.device("cuda" if have_ops and torch.cuda.is_available() else "cpu")
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise ValueError(
                f"device={name!r}: torch {torch.__version__} sees no CUDA device; allowed is 'cpu'"
            )
        if not have_ops:
            raise ValueError(f"device={name!r}: stoker was built without CUDA (STOKER_CUDA=ON builds it)")
    return torch.device(name)


def _store(
    config: EngineConfig, model: ModelConfig, dtype: torch.dtype, device: torch.device
) -> ParameterStore:
    fp8 = (config.quantization or model.quantization) == "fp8"
    if fp8 and device.type == "cuda" and dtype != torch.bfloat16:
        raise ValueError(
            f"fp8 weights on a GPU need dtype='bfloat16', not {str(dtype).removeprefix('torch.')!r}"
        )
    return ParameterStore(dtype, device, fp8=fp8, fp8_ignored=model.quantization_ignored)


def _fill(store: ParameterStore, folder: Path, config: EngineConfig) -> None:
    if config.load_format == "dummy":
        weights.fill_dummy(store, config.seed)
    else:
        weights.load(store, folder, config.progress)


def num_host_blocks_for(config: EngineConfig, group: KVGroup) -> int:
    """Blocks of swap_space and a null block, which is never used; 0 where nothing is to be swapped."""
    if config.swap_space == 0 or config.preemption == "retract":
        return 0
    blocks = int(gib(config.swap_space) // group.block_bytes)
    if blocks < 1:
        raise ValueError(
            f"swap_space={config.swap_space}: holds no KV block; a block takes {group.block_bytes / gib(1):.3g} GiB"
        )
    return blocks + 1


def _num_blocks(
    config: EngineConfig, group: KVGroup, max_model_len: int, sizes: StepSizes, default_budget: float
) -> int:
    if config.num_kv_blocks is not None:
        return config.num_kv_blocks
    budget = gib(config.kv_cache_memory) if config.kv_cache_memory else default_budget
    return num_blocks_for_memory(group, budget, max_model_len, sizes.max_num_seqs)
