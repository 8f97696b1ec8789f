"""The executor of the engine loop on a CPU: takes batch buffers, runs the model on a worker thread, brings
results back.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stoker.engine.forward import CpuForward
from stoker.engine.seats import CpuSeats
from stoker.engine.step_buffer import Layout, StepBuffer, TensorViews
from stoker.engine.step_output import FAILED, StepOutput
from stoker.engine.transfers import Transfers

_ALIGNMENT = 64


class ModelRunner:
    """Runs steps in the order of their launch (the protocol of `stoker._core.loop`'s Python executors).

    With `overlap` steps run on a thread of this object and `launch` returns at once, so that the loop
    schedules the next step meanwhile; without it `launch` runs the step. A step that raises comes back as
    failed and the next one runs; a row whose logits hold a NaN fails alone.
    """

    def __init__(self, forward: CpuForward, seats: CpuSeats, transfers: Transfers, overlap: bool) -> None:
        self.overlap_depth = 1 if overlap else 0
        self._forward = forward
        self._seats = seats
        self._transfers = transfers
        self._ring: list[tuple[StepBuffer, TensorViews]] = []
        self._launched: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[StepOutput] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if overlap:
            self._thread = threading.Thread(target=self._work, name="stoker-model-runner", daemon=True)
            self._thread.start()

    def buffers(self, layout: Layout, count: int) -> list[npt.NDArray[np.uint8]]:
        """`count` zeroed buffers of layout.bytes at a multiple of 64 bytes, with views made of each."""
        memories = [_aligned(layout.bytes) for _ in range(count)]
        rings = [StepBuffer(memory, layout, self._seats.num_groups) for memory in memories]
        self._ring = [(buffer, TensorViews(buffer)) for buffer in rings]
        return memories

    def launch(self, index: int) -> None:
        """Starts the step in ring entry `index`."""
        if self._thread is None:
            with torch.inference_mode():
                self._finished.put(self._run(index))
        else:
            self._launched.put(index)

    def launch_sample(self, batch_id: int) -> None:
        """For steps with grammar masks, which no batch asks for yet."""
        raise NotImplementedError(f"batch {batch_id} asks for late masks; grammars are not built yet")

    def collect(self, result: Any) -> None:
        """Waits for the oldest launched step, without the GIL, and fills `result`."""
        fill_result(result, self._finished.get())

    def close(self) -> None:
        """Waits for the step that runs and joins the thread. Safe to call twice."""
        if self._thread is not None:
            self._launched.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        with torch.inference_mode():
            while (index := self._launched.get()) is not None:
                self._finished.put(self._run(index))

    def _run(self, index: int) -> StepOutput:
        began = time.perf_counter_ns()
        buffer, views = self._ring[index]
        header = buffer.header()
        output = StepOutput(header.batch_id)
        try:
            self._seats.apply(header, buffer)
            if header.num_transfers:
                self._transfers.run(buffer.transfers[: header.num_transfers], output)
            if header.num_tokens:
                self._forward.run(header, buffer, views, output)
        except Exception as error:  # whatever a step can suffer ends that step only
            output.status = FAILED
            output.message = f"{type(error).__name__}: {error}"
        output.device_time_ns = time.perf_counter_ns() - began
        return output


def fill_result(result: Any, output: StepOutput) -> None:
    """From arrays to the loop's StepResult."""
    result.batch_id = output.batch_id
    result.device_time = output.device_time_ns
    result.finished_transfers = output.finished_transfers
    if output.status:
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
