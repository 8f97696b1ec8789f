"""A step's way to the GPU: pinned ring buffers with room for what the host adds, and their one copy on the device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from stoker.engine.step_buffer import Layout, StepBuffer, StepHeader, TensorViews

_ALIGNMENT = 256


class Front:
    """Where the host's additions lie before the batch buffer, so that one copy takes both: offsets in bytes.

    Attention work lists (one for each window), then staged table changes.
    """

    def __init__(self, work_entries: int, indptr_entries: int, num_plans: int, max_changes: int) -> None:
        self.num_plans = num_plans
        self.max_changes = max_changes
        at = 0
        self.work: list[slice] = []
        self.indptr: list[slice] = []
        for _ in range(num_plans):
            self.work.append(slice(at, at + 32 * work_entries))
            at = _round_up(self.work[-1].stop)
            self.indptr.append(slice(at, at + 4 * indptr_entries))
            at = _round_up(self.indptr[-1].stop)
        self.change_index = slice(at, at + 8 * max_changes)
        self.change_block = slice(self.change_index.stop, self.change_index.stop + 4 * max_changes)
        self.nbytes = _round_up(self.change_block.stop)


class HostStep:
    """One ring entry: pinned memory of a front and a batch buffer, numpy views of it, and where its tokens come back."""

    def __init__(self, front: Front, layout: Layout, num_groups: int, max_rows: int) -> None:
        self.pinned = torch.zeros(front.nbytes + layout.nbytes, dtype=torch.uint8, pin_memory=True)
        memory: npt.NDArray[np.uint8] = self.pinned.numpy()
        self.front_bytes = front.nbytes
        self.memory = memory[front.nbytes :]
        self.buffer = StepBuffer(self.memory, layout, num_groups)
        self.work = [self.pinned[part].view(torch.int32).view(-1, 8) for part in front.work]
        self.work_indptr = [self.pinned[part].view(torch.int32) for part in front.indptr]
        self.change_index = memory[front.change_index].view(np.int64)
        self.change_block = memory[front.change_block].view(np.int32)
        self.rows = TensorViews(torch.from_numpy(self.memory), layout, num_groups)
        self.sampled = torch.zeros(max_rows, dtype=torch.int32, pin_memory=True)
        self.began = _timing_event()
        self.ended = _timing_event()

    def pad(self, header: StepHeader, tokens: int, max_rows: int, outs: int) -> None:
        """Makes what lies between the step's own and a graph's bucket harmless: tokens, rows and output rows."""
        b, n = self.buffer, header.num_tokens
        if tokens > n:
            b.token_ids[n:tokens] = 0
            b.positions[n:tokens] = 0
            b.slots[:, n:tokens] = -1
        rows, padded = header.num_rows, min(tokens, max_rows)
        if padded > rows:
            b.row_seat[rows:padded] = 0
            b.row_kv_len[rows:padded] = 0
            b.row_indptr[rows + 1 : padded + 1] = n
        if outs > header.num_outs:
            rest = slice(header.num_outs, outs)
            b.out_token[rest] = 0
            b.out_seat[rest] = 0
            b.out_position[rest] = 0


class DeviceStep:
    """The device's copy: fixed addresses, so that captured graphs read whatever step was uploaded last."""

    def __init__(self, front: Front, layout: Layout, num_groups: int, device: torch.device) -> None:
        self.memory = torch.zeros(front.nbytes + layout.nbytes, dtype=torch.uint8, device=device)
        self.views = TensorViews(self.memory[front.nbytes :], layout, num_groups)
        self.work = [self.memory[part].view(torch.int32).view(-1, 8) for part in front.work]
        self.work_indptr = [self.memory[part].view(torch.int32) for part in front.indptr]
        self.change_index = self.memory[front.change_index].view(torch.int64)
        self.change_block = self.memory[front.change_block].view(torch.int32)

    def upload(self, host: HostStep, num_bytes: int) -> None:
        """One copy of the first `num_bytes`, on the current stream."""
        self.memory[:num_bytes].copy_(host.pinned[:num_bytes], non_blocking=True)


def _timing_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _round_up(value: int) -> int:
    return -(-value // _ALIGNMENT) * _ALIGNMENT
