"""The work list of paged attention on a GPU, with the workspace its pieces merge in.

An engine's plan lies in its step buffers and is written by the scheduler's core; this class is for whoever calls
`paged_attention` by itself: it plans on the host and uploads. One plan serves every layer of a step that has the
same heads and window.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch


class AttentionPlan:
    """Buffers for steps of up to `max_rows` rows and `max_tokens` tokens; `update` fills them for one step.

    q and k_cache: tensors of the shapes, dtypes and device that will be used ([*, Hq, D] and
    [*, Hk, block_size, D]). early: the caller promises that the kernel launched just before paged_attention
    writes nothing that attention reads but q and the KV of this step's own tokens, so that older KV may be
    fetched while it still runs; rope_and_cache is such a one, a norm or linear is not (they let what follows
    start before what is ahead of them has ended). num_prefill_workers: thread blocks of the prefill kernel, 0 for as many as the
    device runs at once; fewer leave multiprocessors to decode rows on another stream.
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
    ) -> None:
        from stoker import _core, _cuda

        heads, head_dim, kv_heads = q.shape[1], q.shape[2], k_cache.shape[1]
        device = q.device
        self.early = early
        self.overlap = True
        self.num_workers = num_workers or _cuda.decode_workers(q, k_cache)
        tile_tokens, sharing_workers = _cuda.prefill_geometry(q, k_cache)
        self.num_prefill_workers = num_prefill_workers
        self.run_decode = self.run_prefill = True
        self.used_prefill_slots = 0
        self.planner: Any = _core.AttentionPlanner(
            num_decode_heads=_cuda.decode_heads(heads, kv_heads),
            num_kv_heads=kv_heads,
            window=window,
            num_decode_workers=self.num_workers,
            prefill_tile_tokens=tile_tokens,
            num_prefill_workers=min(sharing_workers, num_prefill_workers or sharing_workers),
        )
        capacity = self.planner.work_capacity(max_rows, max_tokens)
        slots = self.planner.decode_slot_capacity
        words = _cuda.decode_slot_words(heads, kv_heads, head_dim)
        self._host_work = torch.zeros(capacity, 8, dtype=torch.int32)
        self._host_indptr = torch.zeros(self.planner.indptr_size, dtype=torch.int32)
        self.work = torch.zeros(capacity, 8, dtype=torch.int32, device=device)
        self.work_indptr = torch.zeros(self.planner.indptr_size, dtype=torch.int32, device=device)
        self.workspace = torch.zeros(slots * words, dtype=torch.float32, device=device)
        self.counters = torch.zeros(slots, dtype=torch.int32, device=device)
        # Without prefill tiles chunks are left to the plain kernel.
        self.prefill_slots: int = self.planner.prefill_slot_capacity if tile_tokens > 0 else -1
        self.prefill_workspace = torch.zeros(
            _cuda.prefill_workspace_bytes(max(self.prefill_slots, 0), kv_heads, head_dim),
            dtype=torch.uint8,
            device=device,
        )

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
