"""A batch buffer seen from Python: numpy and torch views of its sections, made once (layout:
csrc/sched/schedule_batch.h).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from stoker.layers.context import Kept

SECTIONS = (
    "row_seat",
    "row_indptr",
    "row_kv_len",
    "out_token",
    "out_seat",
    "out_kind",
    "out_target",
    "out_position",
    "token_ids",
    "positions",
    "slots",
    "work_indptr",
    "work",
    "table_changes",
    "seat_changes",
    "seat_data",
    "transfers",
    "adapter_ids",
    "draft_tokens",
)
HEADER_BYTES = 256
HEADER_WORDS = 12
"""int32 words of the header before the sections' (offset, count) pairs."""
BATCH_FULL = 1
BATCH_LATE = 2
SAMPLE, SCORE, POOL = 0, 1, 2
HOST_TIER = 1

TRANSFER = np.dtype(
    [
        ("ticket", "i8"),
        ("after_step", "i8"),
        ("group", "i4"),
        ("source_tier", "i4"),
        ("source_block", "i4"),
        ("destination_tier", "i4"),
        ("destination_block", "i4"),
        ("reserved", "i4"),
    ]
)


class Layout(Protocol):
    """`_core.sched.BatchLayout` as far as it is used here."""

    @property
    def nbytes(self) -> int: ...
    @property
    def sections(self) -> dict[str, tuple[int, int, int]]:
        """name -> (byte offset, capacity in elements, bytes an element)"""


@dataclass(frozen=True, slots=True)
class StepHeader:
    """The header's numbers for one step."""

    flags: int
    batch_id: int
    num_tokens: int
    num_rows: int
    num_decode_rows: int
    num_outs: int
    num_sampled_rows: int
    used_bytes: int
    num_table_changes: int
    num_seat_changes: int
    num_transfers: int


_COUNT = {name: HEADER_WORDS + 2 * i + 1 for i, name in enumerate(SECTIONS)}


class StepBuffer:
    """One entry of the ring. `memory` is uint8 [layout.nbytes], owned by the runner; the scheduler writes
    into it.
    """

    def __init__(self, memory: npt.NDArray[np.uint8], layout: Layout, num_groups: int) -> None:
        self.memory = memory
        self._header = memory[:HEADER_BYTES].view(np.int32)
        self._batch_id = memory[8:16].view(np.int64)

        def ints(name: str) -> npt.NDArray[np.int32]:
            begin, count, size = layout.sections[name]
            return memory[begin : begin + size * count].view(np.int32)

        self.row_seat = ints("row_seat")
        self.row_indptr = ints("row_indptr")
        self.row_kv_len = ints("row_kv_len")
        self.out_token = ints("out_token")
        self.out_seat = ints("out_seat")
        self.out_kind = ints("out_kind")
        self.out_target = ints("out_target")
        self.out_position = ints("out_position")
        self.token_ids = ints("token_ids")
        self.positions = ints("positions")
        self.slots = ints("slots").reshape(num_groups, -1)
        begin, capacity, size = layout.sections["slots"]
        self.end_of_slots = begin + capacity * size
        """Bytes up to the end of what every row, token and output row may touch."""
        self.table_changes = ints("table_changes").reshape(-1, 4)
        self.seat_changes = ints("seat_changes").reshape(-1, 20)
        self.seat_data = ints("seat_data")
        self.transfers = ints("transfers").view(TRANSFER)

    def header(self) -> StepHeader:
        """What the scheduler wrote for this step."""
        h = self._header.tolist()
        return StepHeader(
            flags=h[1],
            batch_id=int(self._batch_id[0]),
            num_tokens=h[5],
            num_rows=h[6],
            num_decode_rows=h[7],
            num_outs=h[8],
            num_sampled_rows=h[9],
            used_bytes=h[10],
            num_table_changes=h[_COUNT["table_changes"]],
            num_seat_changes=h[_COUNT["seat_changes"]],
            num_transfers=h[_COUNT["transfers"]],
        )


class TensorViews:
    """A step's sections as tensors on one device, cut to how many tokens, rows and output rows a step has.

    `memory` is the whole buffer as uint8 on that device.
    """

    def __init__(self, memory: torch.Tensor, layout: Layout, num_groups: int) -> None:
        def ints(name: str) -> torch.Tensor:
            begin, count, size = layout.sections[name]
            return memory[begin : begin + size * count].view(torch.int32)

        self._token_ids, self._positions = ints("token_ids"), ints("positions")
        self._slots = ints("slots").view(num_groups, -1)
        self._row = ints("row_seat"), ints("row_indptr"), ints("row_kv_len")
        self._out = ints("out_token"), ints("out_seat"), ints("out_position")
        self.seat_changes = ints("seat_changes").view(-1, 20)
        self._tokens: Kept[int, tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]] = Kept()
        self._rows: Kept[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = Kept()
        self._outs: Kept[tuple[int, int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = Kept()

    def tokens(self, n: int) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """token_ids, positions [n]; slots [n] of each group."""
        views = self._tokens.get(n)
        if views is None:
            slots = [row[:n] for row in self._slots]
            views = self._tokens.keep(n, (self._token_ids[:n], self._positions[:n], slots))
        return views

    def rows(self, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """row_seat [n], row_indptr [n + 1], row_kv_len [n]."""
        views = self._rows.get(n)
        if views is None:
            seat, indptr, kv_len = self._row
            views = self._rows.keep(n, (seat[:n], indptr[: n + 1], kv_len[:n]))
        return views

    def outs(self, begin: int, end: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """out_token, out_seat, out_position of output rows [begin, end)."""
        views = self._outs.get((begin, end))
        if views is None:
            token, seat, position = self._out
            cut = slice(begin, end)
            views = self._outs.keep((begin, end), (token[cut], seat[cut], position[cut]))
        return views
