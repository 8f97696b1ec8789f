"""What the runner keeps for each seat on a GPU: block tables, last tokens, sampling parameters, and a copy on the host."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from stoker.engine.step_buffer import BATCH_FULL, StepBuffer, StepHeader, TensorViews
from stoker.ops.seat_table import SEAT_CHANGE, SeatTable

_SIMPLE_WORDS = ("num_bias", "num_stop", "flags")


class CudaSeats:
    """Block tables, last tokens and sampling parameters of all seats, on the device.

    Table changes are staged by the host as (flat index, block) pairs that travel with the step's upload; `scatter`
    applies them on the device and may be captured in a graph: unused places write the null block to the padding seat.
    """

    def __init__(
        self, num_seats: int, num_groups: int, max_blocks_per_req: int, vocab_size: int, device: torch.device
    ) -> None:
        shape = (num_groups, num_seats, max_blocks_per_req)
        self.num_groups = num_groups
        self._tables = torch.zeros(shape, dtype=torch.int32, device=device)
        self._flat_tables = self._tables.view(-1)
        self._host_tables = np.zeros(shape, np.int32)
        self._num_logprobs = np.full(num_seats, -1, np.int32)
        self._num_prompt_logprobs = np.zeros(num_seats, np.int32)
        self._has_penalties = np.zeros(num_seats, bool)
        self.block_tables = list(self._tables)
        self.last_token = torch.zeros(num_seats, dtype=torch.int32, device=device)
        self.sampling = SeatTable(num_seats, vocab_size, device)

    def stage(
        self,
        header: StepHeader,
        buffer: StepBuffer,
        flat_index: npt.NDArray[np.int64],
        blocks: npt.NDArray[np.int32],
    ) -> None:
        """Writes the step's table changes to the staging arrays (of equal length, at least as many as changes)."""
        if header.flags & BATCH_FULL:
            self._host_tables.fill(0)
            self._num_logprobs.fill(-1)
        count = header.num_table_changes
        if count:
            group, seat, index, block = buffer.table_changes[:count].T
            self._host_tables[group, seat, index] = block
            _, seats, width = self._host_tables.shape
            flat_index[:count] = (group.astype(np.int64) * seats + seat) * width + index
            # Read back, so that an entry that is named twice gets its last value from either.
            blocks[:count] = self._host_tables.reshape(-1)[flat_index[:count]]
        flat_index[count:] = 0
        blocks[count:] = 0

    def scatter(self, flat_index: torch.Tensor, blocks: torch.Tensor) -> None:
        """Applies staged changes, on the current stream."""
        self._flat_tables.scatter_(0, flat_index, blocks)

    def clear(self) -> None:
        """Forgets every table, before a step that resends all."""
        self._tables.zero_()

    def apply_seats(self, header: StepHeader, buffer: StepBuffer, views: TensorViews) -> None:
        """The step's seat changes, from the uploaded buffer where they are plain records."""
        if header.num_seat_changes == 0:
            return
        changes = buffer.seat_changes[: header.num_seat_changes].reshape(-1).view(SEAT_CHANGE)
        self._num_logprobs[changes["seat"]] = changes["num_logprobs"]
        self._num_prompt_logprobs[changes["seat"]] = changes["num_prompt_logprobs"]
        self._has_penalties[changes["seat"]] = (changes["flags"] & 1) != 0
        if any(changes[word].any() for word in _SIMPLE_WORDS):
            self.sampling.apply(changes, buffer.seat_data)
            return
        records = views.seat_changes[: header.num_seat_changes]
        self.sampling.records.index_put_((records[:, 0],), records)

    def logprobs_wanted(self, seats: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """How many logprobs each of these seats asks for; -1: none."""
        wanted: npt.NDArray[np.int32] = self._num_logprobs[seats]
        return wanted

    def prompt_logprobs_wanted(self, seats: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """How many best candidates each of these seats wants beside a prompt token's own logprob."""
        wanted: npt.NDArray[np.int32] = self._num_prompt_logprobs[seats]
        return wanted

    def needs_host(self, seats: npt.NDArray[np.int32]) -> bool:
        """Whether a step that samples these seats must bring more back than its tokens, or count them."""
        return bool((self._num_logprobs[seats] >= 0).any() or self._has_penalties[seats].any())

    def record_on_device(self, seats: torch.Tensor, tokens: torch.Tensor) -> None:
        """Tokens just sampled, all on the device; a failed one (-1) leaves a token that can be embedded."""
        self.last_token.index_put_((seats,), tokens.clamp_min(0))

    def record(self, seats: npt.NDArray[np.int32], tokens: npt.NDArray[np.int32]) -> None:
        """The same from the host, with the penalties' counts."""
        device = self.last_token.device
        on_device = torch.from_numpy(seats.copy()).to(device)
        sampled = torch.from_numpy(tokens.copy()).to(device)
        self.record_on_device(on_device, sampled)
        if self.sampling.any_penalties:
            self.sampling.count(on_device, sampled)
