"""The attention work lists of a GPU engine: planned on the host into a step's front, read on the device by every layer."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch

from stoker.config import ModelConfig
from stoker.engine.cuda_step import DeviceStep, HostStep
from stoker.engine.step_buffer import StepHeader
from stoker.layers.context import AttentionPlans


@dataclass(slots=True)
class DevicePlan:
    """What `paged_attention` takes as `plan` (python/stoker/ops/attention_plan.py)."""

    work: torch.Tensor
    work_indptr: torch.Tensor
    workspace: torch.Tensor
    counters: torch.Tensor
    prefill_workspace: torch.Tensor
    prefill_slots: int
    num_prefill_workers: int = 0
    early: bool = False
    overlap: bool = True


class CudaPlans:
    """A planner for each window that the model's layers use, and the workspace that one layer after another uses.

    `has_prefill`: chunks walk the list too. Else (float32, odd head dims) they are left to the plain kernel.
    """

    def __init__(
        self,
        config: ModelConfig,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        max_rows: int,
        max_tokens: int,
    ) -> None:
        native: Any = importlib.import_module("stoker._core")
        cuda: Any = importlib.import_module("stoker._cuda")
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        tile_tokens, sharing_workers = cuda.prefill_geometry(q, k_cache)
        self.has_prefill: bool = tile_tokens > 0 and q.dtype != torch.float32
        self.windows = sorted({config.window(layer) for layer in range(config.num_hidden_layers)})
        self._planners: list[Any] = [
            native.AttentionPlanner(
                num_decode_heads=cuda.decode_heads(heads, kv_heads),
                num_kv_heads=kv_heads,
                window=window,
                num_decode_workers=cuda.decode_workers(q, k_cache),
                prefill_tile_tokens=tile_tokens,
                num_prefill_workers=sharing_workers,
            )
            for window in self.windows
        ]
        first = self._planners[0]
        self.work_entries: int = max(p.work_capacity(max_rows, max_tokens) for p in self._planners)
        self.indptr_entries: int = first.indptr_size
        slots = first.decode_slot_capacity
        words = cuda.decode_slot_words(heads, kv_heads, config.head_dim)
        self._prefill_slots: int = first.prefill_slot_capacity if tile_tokens > 0 else -1
        prefill_bytes = cuda.prefill_workspace_bytes(max(self._prefill_slots, 0), kv_heads, config.head_dim)
        self._workspace = torch.zeros(slots * words, dtype=torch.float32, device=q.device)
        self._counters = torch.zeros(slots, dtype=torch.int32, device=q.device)
        self._prefill_workspace = torch.zeros(prefill_bytes, dtype=torch.uint8, device=q.device)

    def on_device(self, step: DeviceStep) -> AttentionPlans:
        """The lists as every layer of every step reads them."""
        lists = zip(self.windows, step.work, step.work_indptr, strict=True)
        return {
            window: DevicePlan(
                work,
                indptr,
                self._workspace,
                self._counters,
                self._prefill_workspace,
                self._prefill_slots,
            )
            for window, work, indptr in lists
        }

    def plan(self, header: StepHeader, host: HostStep) -> None:
        """Writes the step's lists into its front."""
        self._plan(header.num_rows, header.num_decode_rows, host)

    def plan_nothing(self, host: HostStep) -> None:
        """Lists of a step without rows."""
        self._plan(0, 0, host)

    def _plan(self, num_rows: int, num_decode_rows: int, host: HostStep) -> None:
        row_seat, row_indptr, row_kv_len = host.rows.rows(num_rows)
        for planner, work, indptr in zip(self._planners, host.work, host.work_indptr, strict=True):
            planner.plan(row_seat, row_indptr, row_kv_len, num_decode_rows, work, indptr)
