"""The GPU's half of putting an engine together: what a step needs is allocated and measured first, KV takes what is left."""

from __future__ import annotations

import gc
import importlib

import torch

from stoker._core.sched import AttentionGeometry, BatchLayout, Scheduler, SchedulerConfig
from stoker.config import EngineConfig
from stoker.engine.build import Attention
from stoker.engine.cuda_graphs import default_buckets
from stoker.engine.cuda_runner import CudaRunner
from stoker.engine.cuda_seats import CudaSeats
from stoker.engine.cuda_transfers import CudaTransfers
from stoker.engine.forward import Forward
from stoker.engine.kv_cache import KVGroup, KVPool, gib
from stoker.engine.sizes import StepSizes
from stoker.models.llama import Llama
from stoker.ops.attention_plan import AttentionSpace

# Left free beside all that is measured: fragments, and what libraries take later.
_SPARE_GIB = 0.5
_PROBE_BLOCKS = 2


class CudaParts:
    """Activations, seats and attention's workspace on the device, then the runner over a KV pool."""

    def __init__(
        self,
        config: EngineConfig,
        model: Llama,
        sizes: StepSizes,
        place: tuple[int, int, int, int],
        group: KVGroup,
        dtype: torch.dtype,
        kv_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        torch.cuda.set_device(device.index or 0)
        self._config, self._model, self._sizes = config, model, sizes
        self._group, self._dtype, self._device = group, dtype, device
        self._windows = sorted({model.config.window(i) for i in range(model.config.num_hidden_layers)})
        before = _used(device)
        self._seats = CudaSeats(*place, device)
        tokens, seqs = sizes.max_num_batched_tokens, sizes.max_num_seqs
        self._forward = Forward(model, model.config, [], self._seats, tokens, seqs, dtype, device)
        self._probe_pool = KVPool(group, model.config, _PROBE_BLOCKS, kv_dtype, device)
        q = torch.empty(
            1, model.config.num_attention_heads, model.config.head_dim, dtype=dtype, device=device
        )
        self._space = AttentionSpace(q, self._probe_pool.layers[0][0])
        self.attention = Attention(self._space.geometry, self._windows)
        self._buckets = list(config.cuda_graph_sizes or default_buckets(seqs))
        self._activations = _used(device) - before

    def kv_budget(self, ledger: dict[str, float]) -> float:
        """Bytes for KV: the share of the memory that the engine may use, less what is used and what graphs will take.

        Graphs are measured: the largest of each kind is captured over a pool of two blocks, and thrown away. Fills
        `activations` and `graphs` (GiB) of the ledger.
        """
        before = _used(self._device)
        probe = self._runner(self._probe_pool, CudaTransfers([self._probe_pool], []), self._buckets[-1:])
        warm = _used(self._device)
        probe.buffers(self._probe_layout(), 1)
        graphs = max(_used(self._device) - warm, 0)
        counted = sum(len(g.buckets) for g in probe.graphs.values())
        planned = self._runner(self._probe_pool, CudaTransfers([self._probe_pool], []), self._buckets)
        wanted = sum(len(g.buckets) for g in planned.graphs.values())
        del probe, planned
        gc.collect()  # a runner and its graphs know each other
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        kept = max(_used(self._device) - before, 0)  # what libraries took and keep
        estimate = (graphs - kept) / counted * wanted if counted else 0.0
        ledger["activations"] = (self._activations + kept) / gib(1)
        ledger["graphs"] = max(estimate, 0.0) / gib(1)
        _, total = torch.cuda.mem_get_info(self._device)
        share = total * self._config.gpu_memory_utilization
        return share - _used(self._device) - max(estimate, 0.0) - gib(_SPARE_GIB)

    def _probe_layout(self) -> BatchLayout:
        """Of batch buffers as the scheduler will write them."""
        return Scheduler(
            SchedulerConfig(
                num_blocks=_PROBE_BLOCKS,
                block_size=self._config.block_size,
                max_num_seqs=self._sizes.max_num_seqs,
                max_num_batched_tokens=self._sizes.max_num_batched_tokens,
                attention=AttentionGeometry(**self._space.geometry),
                attention_windows=self._windows,
            )
        ).layout

    def runner(self, pool: KVPool, host_pools: list[KVPool]) -> CudaRunner:
        """The executor over the engine's KV pool; it captures its graphs when the loop asks for its buffers."""
        return self._runner(pool, CudaTransfers([pool], host_pools), self._buckets)

    def _runner(self, pool: KVPool, transfers: CudaTransfers, buckets: list[int]) -> CudaRunner:
        self._forward.kv_caches = pool.layers
        return CudaRunner(
            self._forward,
            self._seats,
            transfers,
            self._space,
            self._windows,
            buckets,
            self._config.overlap,
            enforce_eager=self._config.enforce_eager,
            native_sampler=hasattr(importlib.import_module("stoker._cuda"), "sample"),
        )


def _used(device: torch.device) -> int:
    free, total = torch.cuda.mem_get_info(device)
    return total - free
