"""Copies of KV blocks on a GPU: inside the device's pool in the steps' own order, to and from the host beside them on a stream of
their own.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt
import torch

from stoker.engine.kv_cache import KVPool
from stoker.engine.step_output import StepOutput
from stoker.engine.transfers import Transfers


class CudaTransfers(Transfers):
    """A swap begins when what was launched before it has run, and ends at any time: its tickets come with a later step."""

    def __init__(self, pools: list[KVPool], host_pools: list[KVPool]) -> None:
        super().__init__(pools, host_pools)
        self._stream = torch.cuda.Stream() if host_pools else None  # type: ignore[no-untyped-call]
        self._under_way: deque[tuple[torch.cuda.Event, list[int]]] = deque()

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
        with torch.cuda.stream(self._stream):
            super().run(swaps, StepOutput(output.batch_id))
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        self._under_way.append((event, swaps["ticket"].tolist()))

    def join(self) -> None:
        """What follows on the current stream waits for all swaps."""
        if self._under_way and self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)

    def finished(self) -> list[int]:
        """Tickets of swaps that are done and were not told yet."""
        tickets: list[int] = []
        while self._under_way and self._under_way[0][0].query():  # type: ignore[no-untyped-call]
            tickets += self._under_way.popleft()[1]
        return tickets
