"""What the runner keeps for each seat between steps, on the host's side of a CPU engine: tables, last
tokens, parameters.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from stoker.engine.step_buffer import BATCH_FULL, StepBuffer, StepHeader
from stoker.ops.seat_table import SEAT_CHANGE, SeatTable


class CpuSeats:
    """Block tables, last tokens and sampling parameters of all seats, in numpy arrays that torch tensors
    share.

    `num_seats` counts seat 0. `apply` takes a step's changes; `record` its tokens.
    """

    def __init__(self, num_seats: int, num_groups: int, max_blocks_per_req: int, vocab_size: int) -> None:
        self.num_groups = num_groups
        self._tables = np.zeros((num_groups, num_seats, max_blocks_per_req), np.int32)
        self._last_token = np.zeros(num_seats, np.int32)
        self._num_logprobs = np.full(num_seats, -1, np.int32)
        self._num_prompt_logprobs = np.zeros(num_seats, np.int32)
        self.block_tables = [torch.from_numpy(table) for table in self._tables]
        """[seats, max blocks] of each KV group."""
        self.last_token = torch.from_numpy(self._last_token)
        """[seats]"""
        self.sampling = SeatTable(num_seats, vocab_size)

    def apply(self, header: StepHeader, buffer: StepBuffer) -> None:
        """The step's changes of block tables and seats, before its rows run."""
        if header.flags & BATCH_FULL:
            self._tables.fill(0)
            self._num_logprobs.fill(-1)
        if header.num_table_changes:
            group, seat, index, block = buffer.table_changes[: header.num_table_changes].T
            self._tables[group, seat, index] = block
        if header.num_seat_changes:
            changes = buffer.seat_changes[: header.num_seat_changes].reshape(-1).view(SEAT_CHANGE)
            self._num_logprobs[changes["seat"]] = changes["num_logprobs"]
            self._num_prompt_logprobs[changes["seat"]] = changes["num_prompt_logprobs"]
            self.sampling.apply(changes, buffer.seat_data)

    def logprobs_wanted(self, seats: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """How many logprobs each of these seats asks for; -1: none."""
        wanted: npt.NDArray[np.int32] = self._num_logprobs[seats]
        return wanted

    def prompt_logprobs_wanted(self, seats: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """How many best candidates each of these seats wants beside a prompt token's own logprob."""
        wanted: npt.NDArray[np.int32] = self._num_prompt_logprobs[seats]
        return wanted

    def record(self, seats: npt.NDArray[np.int32], tokens: npt.NDArray[np.int32]) -> None:
        """Tokens just sampled, one for each of `seats`; a failed one (-1) leaves a token that can be
        embedded.
        """
        self._last_token[seats] = np.maximum(tokens, 0)
        if self.sampling.any_penalties:
            self.sampling.count(torch.from_numpy(seats), torch.from_numpy(tokens))
