"""Copies of KV blocks that a step asks for: inside the device pool, and to and from the host's."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import torch

from stoker.engine.kv_cache import KVPool
from stoker.engine.step_buffer import HOST_TIER
from stoker.engine.step_output import StepOutput
from stoker.ops import copy_blocks, swap_blocks


class Transfers:
    """Does a batch's transfers at once and in order; every earlier step has run by then (one thread runs
    them all).
    """

    def __init__(self, pools: list[KVPool], host_pools: list[KVPool]) -> None:
        self._pools = pools
        self._host_pools = host_pools

    def run(self, transfers: npt.NDArray[np.void], output: StepOutput) -> None:
        """Runs of one kind (group, source tier, destination tier) go to one op. Tickets go to `output`."""
        began = time.perf_counter_ns()
        kinds = transfers[["group", "source_tier", "destination_tier"]]
        borders = np.flatnonzero(kinds[1:] != kinds[:-1]) + 1
        for run in np.split(transfers, borders):
            pairs = np.stack([run["source_block"], run["destination_block"]], axis=1).astype(np.int32)
            self._move(run[0], torch.from_numpy(pairs))
        output.finished_transfers = transfers["ticket"].tolist()
        between = transfers["source_tier"] != transfers["destination_tier"]
        if between.all():
            output.transfer_time_ns = time.perf_counter_ns() - began
            output.transfer_bytes = sum(
                self._pools[group].block_bytes for group in transfers["group"].tolist()
            )

    def _move(self, kind: np.void, pairs: torch.Tensor) -> None:
        pool = self._pools[kind["group"]].blocks
        to_host = kind["destination_tier"] == HOST_TIER
        if kind["source_tier"] == kind["destination_tier"]:
            cache = self._host_pools[kind["group"]].blocks if to_host else pool
            copy_blocks(cache, pairs.to(cache.device))
        else:
            swap_blocks(pool, self._host_pools[kind["group"]].blocks, pairs, to_host=bool(to_host))
