"""Copies of KV blocks on a GPU: inside the device's pool in the steps' own order, to and from the host beside them on a stream of
their own.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stoker.engine.kv_cache import KVPool
from stoker.engine.step_output import StepOutput
from stoker.engine.transfers import Transfers


@dataclass(frozen=True, slots=True)
class _Swap:
    """Copies of one step on their way."""

    began: Any
    ended: Any
    """Events on the copies' stream."""
    tickets: list[int]
    num_bytes: int


class CudaTransfers(Transfers):
    """A swap begins when what was launched before it has run, and ends at any time: its tickets come with a later step."""

    def __init__(self, pools: list[KVPool], host_pools: list[KVPool]) -> None:
        super().__init__(pools, host_pools)
        self._stream = torch.cuda.Stream() if host_pools else None  # type: ignore[no-untyped-call]
        self._under_way: deque[_Swap] = deque()

    def run(self, transfers: npt.NDArray[np.void], output: StepOutput) -> None:
        """On the current stream, and beside it. Tickets of swaps come from `finished`."""
        across = transfers["source_tier"] != transfers["destination_tier"]
        within = transfers[~across]
        if len(within):
            super().run(within, output)
        swaps = transfers[across]
        if len(swaps) == 0:
            return
        assert self._stream is not None, "a swap without host memory"
        self._stream.wait_stream(torch.cuda.current_stream())
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        done = StepOutput(output.batch_id)
        with torch.cuda.stream(self._stream):
            began.record()
            super().run(swaps, done)
            ended.record()
        self._under_way.append(_Swap(began, ended, done.finished_transfers, done.transfer_bytes))

    @property
    def any_under_way(self) -> bool:
        return len(self._under_way) > 0

    def join(self) -> None:
        """What follows on the current stream waits for all swaps."""
        if self._under_way and self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)

    def add_finished(self, output: StepOutput) -> None:
        """Tickets of swaps that are done and were not told yet, the time they took and what they moved."""
        while self._under_way and self._under_way[0].ended.query():
            swap = self._under_way.popleft()
            output.finished_transfers += swap.tickets
            output.transfer_time_ns += int(swap.began.elapsed_time(swap.ended) * 1e6)
            output.transfer_bytes += swap.num_bytes
