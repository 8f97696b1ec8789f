"""The executor of the engine loop on an NVIDIA GPU: one upload and one or two graph launches a step; the device brings the
tokens back by itself.
"""

from __future__ import annotations

import importlib
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stoker._core.sched import StepStager
from stoker.engine.cuda_graphs import DECODE, HEAD, MIXED, WHOLE, GraphSet, mixed_buckets
from stoker.engine.cuda_seats import CudaSeats
from stoker.engine.cuda_step import DeviceStep, HostStep
from stoker.engine.cuda_transfers import CudaTransfers
from stoker.engine.forward import Forward
from stoker.engine.model_runner import fill_result
from stoker.engine.read_outputs import Masks, read_outputs
from stoker.engine.step_buffer import BATCH_FULL, BATCH_LATE, Layout, StepHeader
from stoker.engine.step_output import StepOutput
from stoker.ops.attention_plan import AttentionSpace

_BATCH_ID, _NUM_OUTS = 1, 8
"""Of the batch's header, in int64 and int32 words (csrc/sched/schedule_batch.h)."""


@dataclass(slots=True)
class _Launched:
    """A step in flight."""

    entry: int
    batch_id: int
    num_outs: int
    output: StepOutput | None = None
    """What is known already; None: its tokens come, and nothing else."""
    header: StepHeader | None = None
    """Of a step that waits for its grammar masks."""


class CudaRunner:
    """Launches steps on one stream and returns while they run (the protocol of `stoker._core.loop`'s executors).

    A step that captured graphs can do goes out in one native call: layers by the graph of its bucket (of its rows if all of
    them decode, else of its tokens), head and sampler by one of their own. Others go op by op as far as they must: longer
    ones, and those that want more than tokens (logprobs, scores, penalties' counts), which are waited for at launch. A CUDA
    error is fatal; any other exception fails its step.
    """

    def __init__(
        self,
        forward: Forward,
        seats: CudaSeats,
        transfers: CudaTransfers,
        space: AttentionSpace,
        windows: list[int],
        buckets: list[int],
        overlap: bool,
        enforce_eager: bool,
        native_sampler: bool = True,
    ) -> None:
        self.overlap_depth = 1 if overlap else 0
        self.capture_seconds = 0.0
        self.graph_bytes = 0
        """Of device memory that the captured graphs take."""
        self._forward = forward
        self._seats = seats
        self._transfers = transfers
        self._space = space
        self._windows = windows
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._ring: list[HostStep] = []
        self._pending: deque[_Launched] = deque()
        graphs = not enforce_eager
        mixed = mixed_buckets(forward.max_tokens) if space.plans_chunks and forward.max_rows > 1 else []
        self.graphs = {
            DECODE: GraphSet(DECODE, self._run_decode, buckets if graphs else []),
            MIXED: GraphSet(MIXED, self._run_mixed, mixed if graphs else []),
            # The sampler's definition in plain torch asks the device for numbers, which a graph cannot.
            HEAD: GraphSet(HEAD, self._run_head, buckets if graphs and native_sampler else []),
            WHOLE: GraphSet(WHOLE, self._run_whole, buckets if graphs and native_sampler else []),
        }
        self._hidden = forward.hidden
        self._late_masks: LateMasks | None = None
        self._sampling_tables: tuple[int, ...] = ()
        self._ops: Any = importlib.import_module("stoker._cuda")

    def buffers(self, layout: Layout, count: int) -> list[npt.NDArray[np.uint8]]:
        """`count` pinned buffers; then captures the graphs, which read the device's copy of them."""
        groups, rows = self._seats.num_groups, self._forward.max_rows
        device = self._forward.sampled.device
        self._ring = [HostStep(layout, groups, rows) for _ in range(count)]
        self._device = DeviceStep(layout, groups, device)
        self._plans = self._device.plans(self._space, self._windows)
        self._stager = StepStager(
            layout,
            decode=self.graphs[DECODE].buckets,
            mixed=self.graphs[MIXED].buckets,
            heads=self.graphs[HEAD].buckets,
            tables=self._seats.host_tables,
            num_logprobs=self._seats.num_logprobs,
            num_prompt_logprobs=self._seats.num_prompt_logprobs,
            has_penalties=self._seats.has_penalties,
        )
        self._launcher: Any = self._ops.StepLauncher(
            self._device.memory.data_ptr(), self._stream.cuda_stream, device.index or 0
        )
        for host in self._ring:
            self._stager.add(host.memory, host.sampled.data_ptr())
            self._launcher.add_entry(host.pinned.data_ptr())
        self._headers = [
            (host.batch[:64].view(np.int64), host.batch[:64].view(np.int32)) for host in self._ring
        ]
        if device.type == "cuda":
            torch.cuda.synchronize()
        before = _used(device)
        with torch.inference_mode():
            pool = torch.cuda.graph_pool_handle()
            for graphs in self.graphs.values():
                self.capture_seconds += graphs.capture(self._launcher, self._stream, pool)
            self._sampling_tables = self._table_addresses()
        self.graph_bytes = _used(device) - before
        return [host.batch for host in self._ring]

    def _follow_tables(self) -> None:
        """Head and sampler again, if a table that they have burnt in has moved."""
        tables = self._table_addresses()
        if tables == self._sampling_tables:
            return
        self._sampling_tables = tables
        self._launcher.drop_graphs(WHOLE)  # layers and head by two graphs from now on
        self.graphs[HEAD].capture(self._launcher, self._stream, torch.cuda.graph_pool_handle(), again=True)

    def _table_addresses(self) -> tuple[int, ...]:
        """What the sampler's graph has burnt in and the seat table may move when it grows."""
        s = self._seats.sampling
        counts = 0 if s.penalty_counts is None else s.penalty_counts.data_ptr()
        return s.bias_ids.data_ptr(), s.bias_values.data_ptr(), s.stop_ids.data_ptr(), counts

    def _run_decode(self, rows: int) -> None:
        self._begin()
        self._forward.layers(rows, rows, rows, self._device.views, self._plans)

    def _run_mixed(self, tokens: int) -> None:
        # How many rows there are and which decode is in the lists: here it need only be some of each.
        self._begin()
        rows = min(tokens, self._forward.max_rows)
        self._forward.layers(tokens, rows, 1, self._device.views, self._plans)

    def _run_head(self, outs: int, masks: Masks = None) -> None:
        views = self._device.views
        _, logits, sampled = self._forward.logits(self._hidden, views, 0, outs)
        self._forward.sample(logits, sampled, views, 0, outs, masks=masks)
        self._ops.end_step(self._device.front, sampled, views.outs(0, outs)[1], self._seats.last_token)

    def _run_whole(self, rows: int) -> None:
        self._run_decode(rows)
        self._run_head(rows)

    def _begin(self) -> None:
        device, seats = self._device, self._seats
        self._ops.begin_step(
            device.front,
            device.table_changes,
            device.views.seat_changes,
            seats.tables,
            seats.sampling.records,
        )

    def launch(self, index: int) -> None:
        """Starts the step in ring entry `index`."""
        longs, ints = self._headers[index]
        launched = _Launched(index, int(longs[_BATCH_ID]), int(ints[_NUM_OUTS]))
        try:
            simple, *how = self._stager.stage(index)
            if simple:
                self._launcher.launch(index, *how)
            else:
                self._launch_in_parts(launched, *how)
        except Exception as error:
            _note(launched, error)
        self._pending.append(launched)

    def native_steps(self) -> tuple[StepStager, Any] | None:
        """What the loop needs to launch and collect simple steps by itself; the others come to `launch_parts`."""
        calls = getattr(self._launcher, "calls", None)
        return None if calls is None else (self._stager, calls())

    def launch_parts(self, index: int, *staged: int) -> None:
        """Starts the step in ring entry `index`, which the loop has staged."""
        longs, ints = self._headers[index]
        launched = _Launched(index, int(longs[_BATCH_ID]), int(ints[_NUM_OUTS]))
        try:
            self._launch_in_parts(launched, *staged)
        except Exception as error:
            _note(launched, error)
        self._pending.append(launched)

    @property
    def transfers_under_way(self) -> bool:
        """Whether `add_transfers` may bring news later."""
        return self._transfers.any_under_way

    def add_transfers(self, result: Any) -> None:
        """Tickets of swaps that have ended, to a step's result that the loop has filled itself."""
        output = StepOutput(0)
        self._transfers.add_finished(output)
        result.finished_transfers = output.finished_transfers
        result.transfer_time, result.transfer_bytes = output.transfer_time_ns, output.transfer_bytes

    def _launch_in_parts(self, launched: _Launched, graph: int, tokens: int, outs: int, *upload: int) -> None:
        index = launched.entry
        header = launched.header = self._ring[index].buffer.header()
        output = launched.output = StepOutput(header.batch_id)
        torch.cuda.set_stream(self._stream)  # of this thread: whoever drives the loop
        self._launcher.begin(index)
        try:
            with torch.inference_mode():
                self._run_parts(index, header, output, graph, tokens, outs, upload)
        finally:
            self._launcher.end(index)

    def _run_parts(
        self,
        index: int,
        header: StepHeader,
        output: StepOutput,
        graph: int,
        tokens: int,
        outs: int,
        upload: tuple[int, ...],
    ) -> None:
        host = self._ring[index]
        if header.flags & BATCH_FULL:
            self._seats.clear()
        self._seats.apply_seats(header, host.buffer)
        self._follow_tables()
        self._launcher.upload(index, *upload)
        if header.num_transfers:
            self._transfers.run(host.buffer.transfers[: header.num_transfers], output)
        if header.num_tokens == 0:
            self._begin()
            self._transfers.join()
            return
        if graph:
            self._launcher.replay(graph, tokens)
        else:
            self._begin()
            self._forward.layers(
                header.num_tokens,
                header.num_rows,
                header.num_decode_rows,
                self._device.views,
                self._plans,
            )
        if header.num_outs == 0 or header.flags & BATCH_LATE:
            return
        if outs:
            self._launcher.replay(HEAD, outs)
        else:
            self._read(host, header, output)

    def _read(self, host: HostStep, header: StepHeader, output: StepOutput, masks: Masks = None) -> None:
        """Head and sampler op by op, waiting for the step where more than its tokens is wanted, or they are counted."""
        seats = host.buffer.out_seat[: header.num_outs]
        if (
            header.num_sampled_rows == header.num_outs <= self._forward.max_rows
            and (self._seats.num_logprobs[seats] < 0).all()
            and not self._seats.has_penalties[seats].any()
        ):
            self._run_head(header.num_outs, masks)
        else:
            hidden = self._hidden[: header.num_tokens]
            read_outputs(self._forward, hidden, header, host.buffer, self._device.views, output, masks)

    def launch_sample(
        self, batch_id: int, mask_row: npt.NDArray[np.int32], masks: npt.NDArray[np.int32]
    ) -> None:
        """Starts head and sampler of a step whose grammar masks were not known at its launch."""
        launched = next(one for one in self._pending if one.batch_id == batch_id)
        output, header = launched.output, launched.header
        if output is None or header is None or output.status != "ok":
            return
        torch.cuda.set_stream(self._stream)
        try:
            with torch.inference_mode():
                if self._late_masks is None:
                    self._late_masks = LateMasks(self._forward.sampled.device)
                late = self._late_masks.upload(mask_row, masks) if len(masks) else None
                self._read(self._ring[launched.entry], header, output, late)
        except Exception as error:
            _note(launched, error)
        self._launcher.end(launched.entry)

    def ready(self) -> bool:
        """Whether collect() would return at once."""
        return not self._pending or bool(self._launcher.is_done(self._pending[0].entry))

    def collect(self, result: Any) -> None:
        """Waits for the oldest launched step, without the GIL, and fills `result`."""
        launched = self._pending.popleft()
        output = launched.output
        try:
            nanoseconds = int(self._launcher.wait(launched.entry) * 1e6)
        except Exception as error:
            output = StepOutput(launched.batch_id, "fatal", f"{type(error).__name__}: {error}")
            nanoseconds = 0
        tokens = self._ring[launched.entry].tokens[: launched.num_outs]
        swaps = self._transfers.any_under_way
        if output is None and not swaps and (launched.num_outs == 0 or tokens.min() >= 0):
            result.batch_id, result.device_time = launched.batch_id, nanoseconds
            result.token_ids = tokens
            return
        output = output or StepOutput(launched.batch_id)
        output.device_time_ns = nanoseconds
        if swaps and output.status != "fatal":
            self._transfers.add_finished(output)
        if output.status == "ok" and output.tokens is None and launched.num_outs:
            output.tokens = tokens.copy()
            if tokens.min() < 0:
                output.row_failed = tokens < 0
        fill_result(result, output)


def _note(launched: _Launched, error: Exception) -> None:
    output = launched.output = launched.output or StepOutput(launched.batch_id)
    output.status = "fatal" if is_device_error(error) else "failed"
    output.message = f"{type(error).__name__}: {error}"


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


def _used(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def is_device_error(error: Exception) -> bool:
    """Whether the device is lost: every later call would fail too."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError"
