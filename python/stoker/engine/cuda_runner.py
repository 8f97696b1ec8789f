"""The executor of the engine loop on an NVIDIA GPU: one upload, one or two graph launches and one small download a step."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stoker.engine.cuda_graphs import GraphSet, mixed_buckets
from stoker.engine.cuda_plans import CudaPlans
from stoker.engine.cuda_seats import CudaSeats
from stoker.engine.cuda_step import DeviceStep, Front, HostStep
from stoker.engine.forward import Forward
from stoker.engine.model_runner import fill_result
from stoker.engine.read_outputs import Masks, read_outputs
from stoker.engine.step_buffer import BATCH_FULL, BATCH_LATE, Layout, StepHeader
from stoker.engine.step_output import StepOutput
from stoker.engine.transfers import Transfers


class CudaRunner:
    """Launches steps on one stream and returns while they run (the protocol of `stoker._core.loop`'s executors).

    Layers replay a captured graph of the step's bucket, where there is one: of its rows if all of them decode, else of its
    tokens. Longer steps run op by op. Head and sampler replay a graph of their own. Steps that want more than tokens (logprobs, scores, penalties' counts) are waited for at
    launch. A CUDA error is fatal; any other exception fails its step.
    """

    def __init__(
        self,
        forward: Forward,
        seats: CudaSeats,
        transfers: Transfers,
        plans: CudaPlans,
        buckets: list[int],
        overlap: bool,
        enforce_eager: bool,
        native_sampler: bool = True,
    ) -> None:
        self.overlap_depth = 1 if overlap else 0
        self.capture_seconds = 0.0
        self._forward = forward
        self._seats = seats
        self._transfers = transfers
        self._plans = plans
        self._eager = enforce_eager
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._ring: list[HostStep] = []
        self._pending: deque[tuple[HostStep, StepHeader, StepOutput]] = deque()
        self._late_masks: LateMasks | None = None  # made when the first grammar comes
        self._decode = GraphSet(self._run_decode, buckets)
        mixed = mixed_buckets(forward.max_tokens) if plans.has_prefill and forward.max_rows > 1 else []
        self._mixed = GraphSet(self._run_mixed, mixed)
        # The sampler's definition in plain torch asks the device for numbers, which a graph cannot.
        self._head = GraphSet(self._run_head, buckets if native_sampler else [])
        self._hidden = forward.hidden
        self._sampling_tables: tuple[int, ...] = ()

    def buffers(self, layout: Layout, count: int) -> list[npt.NDArray[np.uint8]]:
        """`count` pinned buffers; then captures the graphs, which read the device's copy of them."""
        changes = layout.sections["table_changes"][1]
        front = Front(self._plans.work_entries, self._plans.indptr_entries, len(self._plans.windows), changes)
        groups, rows = self._seats.num_groups, self._forward.max_rows
        self._ring = [HostStep(front, layout, groups, rows) for _ in range(count)]
        self._device = DeviceStep(front, layout, groups, self._forward.sampled.device)
        self._device_plans = self._plans.on_device(self._device)
        # Graphs apply this many staged changes; a step with more of them runs op by op.
        self._graph_changes = min(changes, max(2 * rows, 256))
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            # An empty step, so that what runs below reads lists that say so.
            self._plans.plan_nothing(self._ring[0])
            self._device.upload(self._ring[0], front.nbytes)
        if not self._eager:
            with torch.inference_mode():
                self._capture()
        return [host.memory for host in self._ring]

    def _capture(self) -> None:
        pool = torch.cuda.graph_pool_handle()
        self.capture_seconds = self._decode.capture(self._stream, pool)
        self.capture_seconds += self._mixed.capture(self._stream, pool)
        self._capture_head(pool)

    def _capture_head(self, pool: Any = None) -> None:
        self._sampling_tables = self._table_addresses()
        self.capture_seconds += self._head.capture(self._stream, pool or torch.cuda.graph_pool_handle())

    def _table_addresses(self) -> tuple[int, ...]:
        """What the sampler's graph has burnt in and the seat table may move when it grows."""
        s = self._seats.sampling
        counts = 0 if s.penalty_counts is None else s.penalty_counts.data_ptr()
        return s.bias_ids.data_ptr(), s.bias_values.data_ptr(), s.stop_ids.data_ptr(), counts

    def _run_decode(self, rows: int) -> None:
        self._apply_changes(self._graph_changes)
        self._forward.layers(rows, rows, rows, self._device.views, self._device_plans)

    def _run_mixed(self, tokens: int) -> None:
        # How many rows there are and which decode is in the lists: here it need only be some of each.
        self._apply_changes(self._graph_changes)
        rows = min(tokens, self._forward.max_rows)
        self._forward.layers(tokens, rows, 1, self._device.views, self._device_plans)

    def _run_head(self, outs: int, masks: Masks = None) -> None:
        views = self._device.views
        _, logits, sampled = self._forward.logits(self._hidden, views, 0, outs)
        self._forward.sample(logits, sampled, views, 0, outs, masks=masks)
        self._seats.record_on_device(views.outs(0, outs)[1], sampled)

    def _apply_changes(self, count: int) -> None:
        if count:
            self._seats.scatter(self._device.change_index[:count], self._device.change_block[:count])

    def launch(self, index: int) -> None:
        """Starts the step in ring entry `index`."""
        torch.cuda.set_stream(self._stream)  # of this thread: whoever drives the loop
        host = self._ring[index]
        header = host.buffer.header()
        output = StepOutput(header.batch_id)
        host.began.record(self._stream)
        try:
            with torch.inference_mode():
                self._launch(host, header, output)
        except Exception as error:
            output.status = "fatal" if is_device_error(error) else "failed"
            output.message = f"{type(error).__name__}: {error}"
        host.ended.record(self._stream)
        self._pending.append((host, header, output))

    def _launch(self, host: HostStep, header: StepHeader, output: StepOutput) -> None:
        self._seats.stage(header, host.buffer, host.change_index, host.change_block)
        graphs, bucket = self._graph_of(header)
        simple = self._is_simple(host, header)
        late = bool(header.flags & BATCH_LATE)
        head = None
        if simple and header.num_outs and not self._eager and not late:
            head = self._head.bucket(header.num_outs)
        host.pad(header, bucket, self._forward.max_rows, head or 0)
        self._plans.plan(header, host)
        self._device.upload(host, host.front_bytes + self._num_bytes(host, header))
        if header.flags & BATCH_FULL:
            self._seats.clear()
        self._seats.apply_seats(header, host.buffer, self._device.views)
        if graphs is None:
            self._apply_changes(header.num_table_changes)
        if header.num_transfers:
            self._transfers.run(host.buffer.transfers[: header.num_transfers], output)
        if header.num_tokens == 0:
            return
        if graphs is not None:
            graphs.replay(bucket)
        else:
            self._forward.layers(
                header.num_tokens,
                header.num_rows,
                header.num_decode_rows,
                self._device.views,
                self._device_plans,
            )
        if header.num_outs == 0 or late:
            return
        if head is not None:
            if self._sampling_tables != self._table_addresses():
                self._capture_head()
            self._head.replay(head)
            self._download(host, header)
        else:
            self._read(host, header, output, simple)

    def _read(
        self, host: HostStep, header: StepHeader, output: StepOutput, simple: bool, masks: Masks = None
    ) -> None:
        """Head and sampler op by op."""
        if simple:
            self._run_head(header.num_outs, masks)
            self._download(host, header)
        else:
            hidden = self._hidden[: header.num_tokens]
            read_outputs(self._forward, hidden, header, host.buffer, self._device.views, output, masks)

    def _is_simple(self, host: HostStep, header: StepHeader) -> bool:
        """Whether nothing but tokens is wanted of the step."""
        return header.num_sampled_rows == header.num_outs <= self._forward.max_rows and not (
            self._seats.needs_host(host.buffer.out_seat[: header.num_outs])
        )

    def _download(self, host: HostStep, header: StepHeader) -> None:
        host.sampled[: header.num_outs].copy_(self._forward.sampled[: header.num_outs], non_blocking=True)

    def _graph_of(self, header: StepHeader) -> tuple[GraphSet | None, int]:
        """The graphs and the bucket that the step's layers can replay; (None, 0): they run op by op."""
        count = header.num_tokens
        if self._eager or count == 0 or header.num_table_changes > self._graph_changes:
            return None, 0
        graphs = self._decode if count == header.num_decode_rows else self._mixed
        bucket = graphs.bucket(count)
        return (None, 0) if bucket is None else (graphs, bucket)

    @staticmethod
    def _num_bytes(host: HostStep, header: StepHeader) -> int:
        """What must go up: what the scheduler used, and the padding, which may lie behind it."""
        return max(header.used_bytes, host.buffer.end_of_slots)

    def launch_sample(
        self, batch_id: int, mask_row: npt.NDArray[np.int32], masks: npt.NDArray[np.int32]
    ) -> None:
        """Starts head and sampler of a step whose grammar masks were not known at its launch."""
        host, header, output = next(one for one in self._pending if one[1].batch_id == batch_id)
        if output.status != "ok":
            return
        try:
            with torch.inference_mode():
                if self._late_masks is None:
                    self._late_masks = LateMasks(self._forward.sampled.device)
                late = self._late_masks.upload(mask_row, masks) if len(masks) else None
                self._read(host, header, output, self._is_simple(host, header), late)
        except Exception as error:
            output.status = "fatal" if is_device_error(error) else "failed"
            output.message = f"{type(error).__name__}: {error}"
        host.ended.record(self._stream)

    def ready(self) -> bool:
        """Whether collect() would return at once."""
        return not self._pending or bool(self._pending[0][0].ended.query())  # type: ignore[no-untyped-call]

    def collect(self, result: Any) -> None:
        """Waits for the oldest launched step, without the GIL, and fills `result`."""
        host, header, output = self._pending.popleft()
        try:
            host.ended.synchronize()
            output.device_time_ns = int(host.began.elapsed_time(host.ended) * 1e6)
        except Exception as error:
            output.status, output.message = "fatal", f"{type(error).__name__}: {error}"
        if output.status == "ok" and output.tokens is None and header.num_outs:
            output.tokens = host.sampled[: header.num_outs].numpy().copy()
            if output.tokens.min() < 0:
                output.row_failed = output.tokens < 0
        fill_result(result, output)


class LateMasks:
    """Grammar masks on their way to the device. One step has them at a time, so one staging buffer is enough."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._host = torch.empty(0, dtype=torch.int32)
        self._on_device = torch.empty(0, dtype=torch.int32, device=device)

    def upload(self, mask_row: npt.NDArray[np.int32], masks: npt.NDArray[np.int32]) -> Masks:
        """Copies without waiting, on the current stream."""
        count = mask_row.size + masks.size
        if len(self._host) < count:
            self._host = torch.empty(2 * count, dtype=torch.int32, pin_memory=self._device.type == "cuda")
            self._on_device = torch.empty(2 * count, dtype=torch.int32, device=self._device)
        staged = self._host.numpy()
        staged[: masks.size] = masks.reshape(-1)
        staged[masks.size : count] = mask_row
        self._on_device[:count].copy_(self._host[:count], non_blocking=True)
        return self._on_device[: masks.size].view(masks.shape), self._on_device[masks.size : count]


def is_device_error(error: Exception) -> bool:
    """Whether the device is lost: every later call would fail too."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError"
