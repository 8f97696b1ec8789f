"""The executor of the engine loop on a CPU: takes batch buffers, runs the model, brings results back."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stoker.engine.forward import Forward
from stoker.engine.read_outputs import read_outputs
from stoker.engine.seats import CpuSeats
from stoker.engine.step_buffer import BATCH_LATE, Layout, StepBuffer, StepHeader, TensorViews
from stoker.engine.step_output import StepOutput
from stoker.engine.transfers import Transfers

_ALIGNMENT = 64


class _LostBlocks(Exception):
    """A copy of KV blocks did not happen: what they hold is unknown."""


class ModelRunner:
    """Runs steps in the order of their launch (the protocol of `stoker._core.loop`'s Python executors).

    `launch` runs the step and returns when it is done: what overlaps steps with scheduling is the loop's
    worker thread, which calls this object and nothing else does. A step that raises comes back as failed
    and the next one runs; a row whose logits hold a NaN fails alone.
    """

    overlap_depth = 0

    def __init__(self, forward: Forward, seats: CpuSeats, transfers: Transfers) -> None:
        self._forward = forward
        self._seats = seats
        self._transfers = transfers
        self._ring: list[tuple[StepBuffer, TensorViews]] = []
        self._finished: deque[StepOutput] = deque()
        self._late: tuple[StepHeader, StepBuffer, TensorViews, torch.Tensor] | None = None

    def buffers(self, layout: Layout, count: int) -> list[npt.NDArray[np.uint8]]:
        """`count` zeroed buffers of layout.nbytes at a multiple of 64 bytes, with views made of each."""
        memories = [_aligned(layout.nbytes) for _ in range(count)]
        groups = self._seats.num_groups
        self._ring = [
            (StepBuffer(memory, layout, groups), TensorViews(torch.from_numpy(memory), layout, groups))
            for memory in memories
        ]
        return memories

    def launch(self, index: int) -> None:
        """Runs the step in ring entry `index`."""
        began = time.perf_counter_ns()
        buffer, views = self._ring[index]
        header = buffer.header()
        output = StepOutput(header.batch_id)
        try:
            with torch.inference_mode():
                self._seats.apply(header, buffer)
                if header.num_transfers:
                    self._move(buffer.transfers[: header.num_transfers], output)
                if header.num_tokens:
                    hidden = self._forward.layers(
                        header.num_tokens, header.num_rows, header.num_decode_rows, views
                    )
                    if header.flags & BATCH_LATE:
                        self._late = header, buffer, views, hidden
                    else:
                        read_outputs(self._forward, hidden, header, buffer, views, output)
        except Exception as error:  # whatever a step can suffer ends that step only
            output.status = "fatal" if isinstance(error, _LostBlocks) else "failed"
            output.message = f"{type(error).__name__}: {error}"
        output.device_time_ns = time.perf_counter_ns() - began
        self._finished.append(output)

    def _move(self, transfers: npt.NDArray[np.void], output: StepOutput) -> None:
        try:
            self._transfers.run(transfers, output)
        except Exception as error:
            raise _LostBlocks(str(error)) from error

    def launch_sample(
        self, batch_id: int, mask_row: npt.NDArray[np.int32], masks: npt.NDArray[np.int32]
    ) -> None:
        """Samples the step that was launched last, under grammar masks."""
        output = self._finished[-1]
        if self._late is None:
            return  # it failed
        began = time.perf_counter_ns()
        header, buffer, views, hidden = self._late
        self._late = None
        assert header.batch_id == batch_id
        try:
            with torch.inference_mode():
                late = (torch.from_numpy(masks), torch.from_numpy(mask_row)) if len(masks) else None
                read_outputs(self._forward, hidden, header, buffer, views, output, late)
        except Exception as error:
            output.status = "failed"
            output.message = f"{type(error).__name__}: {error}"
        output.device_time_ns += time.perf_counter_ns() - began

    def collect(self, result: Any) -> None:
        """Hands over the oldest launched step."""
        fill_result(result, self._finished.popleft())


def fill_result(result: Any, output: StepOutput) -> None:
    """From arrays to the loop's StepResult."""
    result.batch_id = output.batch_id
    result.device_time = output.device_time_ns
    result.finished_transfers = output.finished_transfers
    result.transfer_time = output.transfer_time_ns
    result.transfer_bytes = output.transfer_bytes
    if output.status != "ok":
        result.status = output.status
        result.message = output.message
        return
    if output.tokens is not None:
        result.token_ids = output.tokens
    if output.row_failed is not None:
        result.row_status = output.row_failed.astype(np.int32)
    if output.logprobs is not None:
        result.logprob_indptr = output.logprobs.indptr
        result.logprob_ids = output.logprobs.token_ids
        result.logprobs = output.logprobs.logprobs
        result.logprob_ranks = output.logprobs.ranks
    if output.scores is not None:
        result.scores = output.scores
    if output.pooled is not None:
        result.pooled = output.pooled.reshape(-1)
        result.pooled_width = output.pooled.shape[1]


def _aligned(size: int) -> npt.NDArray[np.uint8]:
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    skip = -memory.ctypes.data % _ALIGNMENT
    return memory[skip : skip + size]
