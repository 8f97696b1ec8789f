"""A step's way to the GPU: pinned ring buffers, and their one copy on the device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from stoker._core.sched import StepStager
from stoker.engine.step_buffer import Layout, StepBuffer, TensorViews
from stoker.layers.context import AttentionPlans
from stoker.ops.attention_plan import AttentionSpace

_FRONT = StepStager.FRONT_BYTES


class HostStep:
    """One ring entry: pinned memory of a front (csrc/sched/step_stager.h) and a batch buffer, and where its tokens come
    back, which the device writes by itself.
    """

    def __init__(self, layout: Layout, num_groups: int, max_rows: int) -> None:
        self.pinned = torch.zeros(_FRONT + layout.nbytes, dtype=torch.uint8, pin_memory=True)
        self.memory: npt.NDArray[np.uint8] = self.pinned.numpy()
        self.batch = self.memory[_FRONT:]
        self.buffer = StepBuffer(self.batch, layout, num_groups)
        self.sampled = torch.zeros(max_rows, dtype=torch.int32, pin_memory=True)
        self.tokens: npt.NDArray[np.int32] = self.sampled.numpy()


class DeviceStep:
    """The device's copy: fixed addresses, so that captured graphs read whatever step was uploaded last."""

    def __init__(self, layout: Layout, num_groups: int, device: torch.device) -> None:
        self.memory = torch.zeros(_FRONT + layout.nbytes, dtype=torch.uint8, device=device)
        self.front = self.memory[:_FRONT]
        batch = self.memory[_FRONT:]
        self.views = TensorViews(batch, layout, num_groups)

        def ints(name: str) -> torch.Tensor:
            begin, count, size = layout.sections[name]
            return batch[begin : begin + size * count].view(torch.int32)

        self.table_changes = ints("table_changes").view(-1, 4)
        self.work, self.work_indptr = ints("work"), ints("work_indptr")

    def plans(self, space: AttentionSpace, windows: list[int]) -> AttentionPlans:
        """The work lists that the scheduler writes for these windows, as every layer of every step reads them; now of a
        step without rows.
        """
        work = self.work.view(len(windows), -1, 8)
        indptr = self.work_indptr.view(len(windows), -1)
        work[:, :, 0] = -1
        indptr.fill_(space.geometry["num_decode_workers"])
        return {window: space.tensors(work[i], indptr[i], early=True) for i, window in enumerate(windows)}
