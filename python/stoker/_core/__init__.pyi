"""The native core: one stub a submodule; here what has none of its own."""

from typing import Any

from stoker._core import cpu as cpu
from stoker._core import loop as loop
from stoker._core import sched as sched
from stoker._core import sim as sim

class AttentionPlanner:
    """Makes the work list of a step's attention (csrc/sched/attention_plan.h). Host only; one for each shape of attention."""

    def __init__(
        self,
        *,
        num_decode_heads: int,
        num_kv_heads: int,
        window: int,
        num_decode_workers: int,
        prefill_tile_tokens: int,
        num_prefill_workers: int,
        num_processors: int = 0,
        prefill_step_in_tokens: int = 200,
    ) -> None: ...
    def plan(
        self,
        row_seat: Any,
        row_indptr: Any,
        row_kv_len: Any,
        num_decode_rows: int,
        work: Any,
        work_indptr: Any,
    ) -> tuple[int, int, int]:
        """Writes `work` [entries, 8] and `work_indptr` (int32 tensors on the host); returns (entries, decode slots, prefill
        slots). ValueError names the tensor that does not fit."""

    def work_capacity(self, max_rows: int, max_tokens: int) -> int: ...
    @property
    def indptr_size(self) -> int: ...
    @property
    def decode_slot_capacity(self) -> int: ...
    @property
    def prefill_slot_capacity(self) -> int: ...
