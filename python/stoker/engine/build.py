"""Puts an engine's parts together: weights, KV memory, seats and runner, on a CPU or a GPU."""

from __future__ import annotations

import importlib
import importlib.util
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stoker.config import EngineConfig, GenerationConfig, ModelConfig
from stoker.engine import checkpoint, weights
from stoker.engine.forward import Forward
from stoker.engine.kv_cache import KVGroup, KVPool, default_cpu_budget, gib, kv_groups, num_blocks_for_memory
from stoker.engine.model_runner import ModelRunner
from stoker.engine.seats import CpuSeats
from stoker.engine.sizes import StepSizes, fit_model_len, model_len
from stoker.engine.transfers import Transfers
from stoker.layers.parameters import ParameterStore
from stoker.models import registry
from stoker.models.llama import Llama

# Of a GPU's memory, beside weights, activations and KV: graphs, the libraries' workspaces, fragments.
_GPU_SPARE_GIB = 1.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What an Engine is made of."""

    model_path: str
    model_config: ModelConfig
    generation_config: GenerationConfig
    max_model_len: int
    sizes: StepSizes
    num_blocks: int
    dtype: str
    """Of weights and activations."""
    runner: Any
    """The executor."""
    worker_thread: bool
    """Whether the loop's worker thread runs the executor's steps (one that returns only when the step is done)."""
    ledger: dict[str, float] = field(default_factory=dict)
    """GiB of weights, activations, kv and host_kv; seconds of loading."""


def build(config: EngineConfig) -> Parts:
    """Loads and allocates everything. ValueError for what the options or the checkpoint get wrong."""
    folder = checkpoint.resolve(config.model, config.revision, config.download_dir)
    model_config = ModelConfig.from_folder(folder)
    device = choose_device(config.device)
    on_gpu = device.type == "cuda"
    dtype: torch.dtype = getattr(torch, model_config.torch_dtype if config.dtype == "auto" else config.dtype)
    sizes = StepSizes.settle(config, on_gpu)
    longest = model_len(config, model_config)
    group = kv_groups(model_config, config.block_size, dtype)[0]
    if not on_gpu:
        num_blocks = _num_blocks(config, group, longest, sizes, default_cpu_budget())
        longest = fit_model_len(config, longest, num_blocks)

    began = time.perf_counter()
    store = ParameterStore(dtype, device)
    model = registry.build(model_config, store, longest)
    _fill(store, folder, config)
    ledger = {"load_seconds": time.perf_counter() - began, "weights": store.num_bytes() / gib(1)}
    if on_gpu:
        budget = _gpu_budget(config, model_config, sizes, dtype, device)
        num_blocks = _num_blocks(config, group, longest, sizes, budget)
        longest = fit_model_len(config, longest, num_blocks)
    pool = KVPool(group, model_config, num_blocks, dtype, device)
    num_host_blocks = int(gib(config.swap_space) // group.block_bytes)
    cpu = torch.device("cpu")
    host_pools = (
        [KVPool(group, model_config, num_host_blocks, dtype, cpu, pin=on_gpu)] if num_host_blocks else []
    )
    ledger["kv"] = num_blocks * group.block_bytes / gib(1)
    ledger["host_kv"] = num_host_blocks * group.block_bytes / gib(1)
    place = (sizes.max_num_seqs + 1, 1, -(-longest // config.block_size), model_config.vocab_size)
    transfers = Transfers([pool], host_pools)
    runner: Any
    if on_gpu:
        runner = _cuda_runner(config, model, pool, place, sizes, dtype, device, transfers)
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
        runner = ModelRunner(forward, seats, transfers)
    return Parts(
        str(folder),
        model_config,
        GenerationConfig.from_folder(folder, model_config),
        longest,
        sizes,
        num_blocks,
        str(dtype).removeprefix("torch."),
        runner,
        worker_thread=config.overlap and not on_gpu,
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


def _fill(store: ParameterStore, folder: Path, config: EngineConfig) -> None:
    if config.load_format == "dummy":
        weights.fill_dummy(store, config.seed)
    else:
        weights.load(store, folder, config.progress)


def _num_blocks(
    config: EngineConfig, group: KVGroup, max_model_len: int, sizes: StepSizes, default_budget: float
) -> int:
    if config.num_kv_blocks is not None:
        return config.num_kv_blocks
    budget = gib(config.kv_cache_memory) if config.kv_cache_memory else default_budget
    return num_blocks_for_memory(group, budget, max_model_len, sizes.max_num_seqs)


def _gpu_budget(
    config: EngineConfig, model: ModelConfig, sizes: StepSizes, dtype: torch.dtype, device: torch.device
) -> float:
    """Bytes for KV: the share that the engine may use, less what is used already and what activations will take."""
    free, total = torch.cuda.mem_get_info(device)
    element = torch.empty(0, dtype=dtype).element_size()
    width = 2 * model.hidden_size + 3 * model.intermediate_size
    width += 2 * (model.num_attention_heads + model.num_key_value_heads) * model.head_dim
    activations = element * (sizes.max_num_batched_tokens * width + sizes.max_num_seqs * model.vocab_size)
    return total * config.gpu_memory_utilization - (total - free) - activations - gib(_GPU_SPARE_GIB)


def _cuda_runner(
    config: EngineConfig,
    model: Llama,
    pool: KVPool,
    place: tuple[int, int, int, int],
    sizes: StepSizes,
    dtype: torch.dtype,
    device: torch.device,
    transfers: Transfers,
) -> Any:
    from stoker.engine.cuda_graphs import default_buckets
    from stoker.engine.cuda_plans import CudaPlans
    from stoker.engine.cuda_runner import CudaRunner
    from stoker.engine.cuda_seats import CudaSeats

    torch.cuda.set_device(device.index or 0)
    tokens, seqs = sizes.max_num_batched_tokens, sizes.max_num_seqs
    seats = CudaSeats(*place, device)
    forward = Forward(model, model.config, pool.layers, seats, tokens, seqs, dtype, device)
    q = torch.empty(1, model.config.num_attention_heads, model.config.head_dim, dtype=dtype, device=device)
    plans = CudaPlans(model.config, q, pool.layers[0][0], seqs, tokens)
    buckets = list(config.cuda_graph_sizes or default_buckets(seqs))
    return CudaRunner(
        forward,
        seats,
        transfers,
        plans,
        buckets,
        config.overlap,
        enforce_eager=config.enforce_eager,
        native_sampler=hasattr(importlib.import_module("stoker._cuda"), "sample"),
    )
