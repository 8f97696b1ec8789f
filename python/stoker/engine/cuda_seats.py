"""What the runner keeps for each seat on a GPU: block tables, last tokens, sampling parameters, and a copy on the host."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from stoker.engine.step_buffer import StepBuffer, StepHeader
from stoker.ops.seat_table import SEAT_CHANGE, SeatTable

_SIMPLE_WORDS = ("num_bias", "num_stop", "flags")


class CudaSeats:
    """Block tables, last tokens and sampling parameters of all seats, on the device.

    A step's own first kernel applies its changes there (`begin_step`); the host's copies are kept by the stager
    (csrc/sched/step_stager.h), which is handed them.
    """

    def __init__(
        self, num_seats: int, num_groups: int, max_blocks_per_req: int, vocab_size: int, device: torch.device
    ) -> None:
        shape = (num_groups, num_seats, max_blocks_per_req)
        self.num_groups = num_groups
        self.tables = torch.zeros(shape, dtype=torch.int32, device=device)
        self.host_tables = np.zeros(shape, np.int32)
        self.num_logprobs = np.full(num_seats, -1, np.int32)
        self.num_prompt_logprobs = np.zeros(num_seats, np.int32)
        self.has_penalties = np.zeros(num_seats, np.uint8)
        self.block_tables = list(self.tables)
        self.last_token = torch.zeros(num_seats, dtype=torch.int32, device=device)
        self.sampling = SeatTable(num_seats, vocab_size, device)

    def clear(self) -> None:
        """Forgets every table, before a step that resends all."""
        self.tables.zero_()

    def apply_seats(self, header: StepHeader, buffer: StepBuffer) -> None:
        """What of a step's seat changes is more than a record: bias, stop tokens, penalties."""
        if header.num_seat_changes == 0:
            return
        changes = buffer.seat_changes[: header.num_seat_changes].reshape(-1).view(SEAT_CHANGE)
        if any(changes[word].any() for word in _SIMPLE_WORDS):
            self.sampling.apply(changes, buffer.seat_data)

    def logprobs_wanted(self, seats: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """How many logprobs each of these seats asks for; -1: none."""
        wanted: npt.NDArray[np.int32] = self.num_logprobs[seats]
        return wanted

    def prompt_logprobs_wanted(self, seats: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """How many best candidates each of these seats wants beside a prompt token's own logprob."""
        wanted: npt.NDArray[np.int32] = self.num_prompt_logprobs[seats]
        return wanted

    def record(self, seats: npt.NDArray[np.int32], tokens: npt.NDArray[np.int32]) -> None:
        """Tokens that were read on the host, with the penalties' counts; a failed one (-1) leaves one that can be embedded."""
        device = self.last_token.device
        on_device = torch.from_numpy(seats.copy()).to(device)
        sampled = torch.from_numpy(tokens.copy()).to(device)
        self.last_token.index_put_((on_device,), sampled.clamp_min(0))
        if self.sampling.any_penalties:
            self.sampling.count(on_device, sampled)
