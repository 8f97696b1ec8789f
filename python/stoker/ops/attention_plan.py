"""The work list of paged attention on a GPU, with the workspace its pieces merge in.

An engine's lists lie in its step buffers and are written by the scheduler, from the geometry that `AttentionSpace` tells;
`AttentionPlan` is for whoever calls `paged_attention` by itself: it plans on the host and uploads. A list serves every
layer of a step that has the same heads and window; the workspace serves one layer after another.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class PlanTensors:
    """What `paged_attention` takes as `plan`: a list on the device, the workspace, and how to launch."""

    work: torch.Tensor
    """int32 [entries, 8]"""
    work_indptr: torch.Tensor
    """int32 [decode workers + 4]"""
    workspace: torch.Tensor
    counters: torch.Tensor
    prefill_workspace: torch.Tensor
    prefill_slots: int
    """-1: chunks are left to the plain kernel."""
    num_prefill_workers: int = 0
    early: bool = False
    overlap: bool = True
    side_by_side: bool = False
    """Decode rows and chunks run at once, on the multiprocessors that the list gives each."""
    run_decode: bool = True
    run_prefill: bool = True


class AttentionSpace:
    """For tensors like q [*, Hq, D] and k_cache [*, Hk, block_size, D] on their device: the geometry that a planner of
    work lists needs, and the workspace.

    num_workers: thread blocks of the decode kernel; num_prefill_workers: of the prefill kernel. By default as many as the
    device runs at once, and then the planner shares the multiprocessors out where a step has both kinds of rows, as
    prefill_step_in_tokens says (csrc/sched/attention_plan.h).
    """

    def __init__(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        *,
        num_workers: int | None = None,
        num_prefill_workers: int = 0,
        prefill_step_in_tokens: int = 200,
    ) -> None:
        from stoker import _cuda

        heads, head_dim, kv_heads = q.shape[1], q.shape[2], k_cache.shape[1]
        tile_tokens, sharing_workers = _cuda.prefill_geometry(q, k_cache)
        workers = num_workers or _cuda.decode_workers(q, k_cache)
        free = num_workers is None and num_prefill_workers == 0 and sharing_workers > 0
        self.geometry: dict[str, int] = {
            "num_decode_heads": _cuda.decode_heads(heads, kv_heads),
            "num_kv_heads": kv_heads,
            "num_decode_workers": workers,
            "prefill_tile_tokens": tile_tokens,
            "num_prefill_workers": min(sharing_workers, num_prefill_workers or sharing_workers),
            "num_processors": sharing_workers if free and workers % sharing_workers == 0 else 0,
            "prefill_step_in_tokens": prefill_step_in_tokens,
        }
        """Fields of `AttentionGeometry` and `AttentionPlanner`, all but the window."""
        self.num_prefill_workers = num_prefill_workers
        planner = self.planner(0)
        slots = planner.decode_slot_capacity
        words = _cuda.decode_slot_words(heads, kv_heads, head_dim)
        self.workspace = torch.zeros(slots * words, dtype=torch.float32, device=q.device)
        self.counters = torch.zeros(slots, dtype=torch.int32, device=q.device)
        self.prefill_slots: int = planner.prefill_slot_capacity if tile_tokens > 0 else -1
        prefill_bytes = _cuda.prefill_workspace_bytes(max(self.prefill_slots, 0), kv_heads, head_dim)
        self.prefill_workspace = torch.zeros(prefill_bytes, dtype=torch.uint8, device=q.device)
        self.plans_chunks: bool = tile_tokens > 0 and q.dtype != torch.float32
        """Whether chunks walk the list, so that a captured graph serves any of them."""

    def planner(self, window: int) -> Any:
        """A planner of lists for this geometry."""
        from stoker import _core

        return _core.AttentionPlanner(window=window, **self.geometry)

    def tensors(self, work: torch.Tensor, work_indptr: torch.Tensor, *, early: bool = False) -> PlanTensors:
        """A plan whose list lies in these tensors."""
        return PlanTensors(
            work,
            work_indptr,
            self.workspace,
            self.counters,
            self.prefill_workspace,
            self.prefill_slots,
            num_prefill_workers=self.num_prefill_workers,
            early=early,
            side_by_side=self.geometry["num_processors"] > 0,
        )


class AttentionPlan(PlanTensors):
    """Buffers for steps of up to `max_rows` rows and `max_tokens` tokens; `update` fills them for one step.

    q, k_cache, num_workers, num_prefill_workers: as `AttentionSpace`; fewer prefill workers leave multiprocessors to decode
    rows on another stream. early: the caller promises that the kernel launched just before paged_attention writes nothing
    that attention reads but q and the KV of this step's own tokens, so that older KV may be fetched while it still runs;
    rope_and_cache is such a one, a norm or linear is not (they let what follows start before what is ahead of them has ended).
    """

    def __init__(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        *,
        max_rows: int,
        max_tokens: int,
        window: int = 0,
        early: bool = False,
        num_workers: int | None = None,
        num_prefill_workers: int = 0,
        prefill_step_in_tokens: int = 200,
    ) -> None:
        space = AttentionSpace(
            q,
            k_cache,
            num_workers=num_workers,
            num_prefill_workers=num_prefill_workers,
            prefill_step_in_tokens=prefill_step_in_tokens,
        )
        self.num_workers = space.geometry["num_decode_workers"]
        self.used_prefill_slots = 0
        self.planner: Any = space.planner(window)
        capacity, indptr = self.planner.work_capacity(max_rows, max_tokens), self.planner.indptr_size
        self._host_work = torch.zeros(capacity, 8, dtype=torch.int32)
        self._host_indptr = torch.zeros(indptr, dtype=torch.int32)
        work = torch.zeros(capacity, 8, dtype=torch.int32, device=q.device)
        work_indptr = torch.zeros(indptr, dtype=torch.int32, device=q.device)
        super().__init__(**vars(space.tensors(work, work_indptr, early=early)))

    def half(self, *, decode: bool) -> AttentionPlan:
        """The same plan for the decode rows alone or the chunks alone: two calls on two streams run side by side.

        Launch the chunks first, with few enough num_prefill_workers that the decode rows find multiprocessors: a
        block of the Hopper prefill kernel fills one.
        """
        half = copy.copy(self)
        half.run_decode, half.run_prefill = decode, not decode
        return half

    def update(
        self,
        row_seat: Sequence[int],
        row_indptr: Sequence[int],
        row_kv_len: Sequence[int],
        num_decode_rows: int,
    ) -> None:
        """Plans a step and sends the list to the device, on its current stream."""
        seat, indptr, length = (
            torch.tensor(list(values), dtype=torch.int32) for values in (row_seat, row_indptr, row_kv_len)
        )
        used, _, self.used_prefill_slots = self.planner.plan(
            seat, indptr, length, num_decode_rows, self._host_work, self._host_indptr
        )
        self.work[:used].copy_(self._host_work[:used])
        self.work_indptr.copy_(self._host_indptr)

    @property
    def num_prefill_share(self) -> int:
        """Thread blocks that may take tiles of the planned step, where decode rows have the rest."""
        return int(self._host_indptr[-1])
