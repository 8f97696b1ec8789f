"""The device-side tables that `sample` reads: what each seat's req asked for, sent once when it takes its
seat.

`records` keeps the SeatChange records of the step's buffer as they come (csrc/sched/schedule_batch.h), so
that taking a seat is one copy; the named tensors (temperature, top_k, ...) are views of it. Bias and stop
ids lie in padded tables that grow, penalty counts `[seats, vocab]` are allocated when the first req asks for
penalties.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

# Fields of SeatChange, in order; 4 bytes each.
_FIELDS = (
    ("seat", "i4"),
    ("flags", "i4"),
    ("temperature", "f4"),
    ("top_p", "f4"),
    ("min_p", "f4"),
    ("top_k", "i4"),
    ("repetition_penalty", "f4"),
    ("presence_penalty", "f4"),
    ("frequency_penalty", "f4"),
    ("num_logprobs", "i4"),
    ("seed_low", "u4"),
    ("seed_high", "u4"),
    ("min_position", "i4"),
    ("prompt_len", "i4"),
    ("data_begin", "i4"),
    ("num_bias", "i4"),
    ("num_stop", "i4"),
    ("num_context", "i4"),
    ("req", "i4"),
    ("num_prompt_logprobs", "i4"),
)
SEAT_CHANGE = np.dtype(list(_FIELDS))
RECORD_WORDS = len(_FIELDS)
_COLUMN = {name: i for i, (name, _) in enumerate(_FIELDS)}
SEAT_PENALTIES = 1  # SeatFlag kSeatPenalties

# In penalty_counts: the token stands in the prompt; the bits below count how often it stands in the output.
PROMPT_BIT = 1 << 30


@dataclass(frozen=True, slots=True)
class LogprobBuffers:
    """Where `sample` writes logprobs. A row of a seat with num_logprobs < 0 is left as it is.

    All are of log_softmax of the raw logits. `rank` is 1 for the best token. Rows hold the seat's
    num_logprobs best (at most K, lower id first on a tie), the rest of a row is left as it is.
    """

    sampled: torch.Tensor  # float32 [N]: of the sampled token
    rank: torch.Tensor  # int32 [N]
    top_ids: torch.Tensor  # int32 [N, K]
    top_logprobs: torch.Tensor  # float32 [N, K]

    @classmethod
    def allocate(cls, rows: int, best: int, device: torch.device | str = "cpu") -> LogprobBuffers:
        """Buffers for `rows` rows and up to `best` best tokens each."""
        width = max(best, 1)
        return cls(
            torch.zeros(rows, dtype=torch.float32, device=device),
            torch.zeros(rows, dtype=torch.int32, device=device),
            torch.zeros(rows, width, dtype=torch.int32, device=device),
            torch.zeros(rows, width, dtype=torch.float32, device=device),
        )


_FEW = 16
"""Entries of bias and of stop tokens that every seat has room for from the start: captured graphs hold the tables' places."""


class SeatTable:
    """All seats' sampling parameters on one device. Seat 0 is padding: greedy, no penalties.

    `num_seats` counts seat 0. Not thread-safe: one runner owns it.
    """

    def __init__(self, num_seats: int, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self.vocab_size = vocab_size
        self.device = torch.device(device)
        self.records = torch.zeros(num_seats, RECORD_WORDS, dtype=torch.int32, device=self.device)
        floats = self.records.view(torch.float32)
        self.temperature = floats[:, _COLUMN["temperature"]]
        self.top_p = floats[:, _COLUMN["top_p"]]
        self.min_p = floats[:, _COLUMN["min_p"]]
        self.top_k = self.records[:, _COLUMN["top_k"]]
        self.repetition_penalty = floats[:, _COLUMN["repetition_penalty"]]
        self.presence_penalty = floats[:, _COLUMN["presence_penalty"]]
        self.frequency_penalty = floats[:, _COLUMN["frequency_penalty"]]
        self.num_logprobs = self.records[:, _COLUMN["num_logprobs"]]
        self.seed = self.records[:, _COLUMN["seed_low"] : _COLUMN["seed_high"] + 1]  # bits of two uint32
        self.min_position = self.records[:, _COLUMN["min_position"]]
        self.num_bias = self.records[:, _COLUMN["num_bias"]]
        self.num_stop = self.records[:, _COLUMN["num_stop"]]
        self.top_p.fill_(1.0)
        self.repetition_penalty.fill_(1.0)
        self.num_logprobs.fill_(-1)
        # Only the first num_bias / num_stop entries of a seat's row count.
        self.bias_ids = torch.zeros(num_seats, _FEW, dtype=torch.int32, device=self.device)
        self.bias_values = torch.zeros(num_seats, _FEW, dtype=torch.float32, device=self.device)
        self.stop_ids = torch.zeros(num_seats, _FEW, dtype=torch.int32, device=self.device)
        self.penalty_counts: torch.Tensor | None = None
        # The same fact on the host, so that nobody has to ask the device.
        self._has_penalties = np.zeros(num_seats, dtype=bool)

    @property
    def num_seats(self) -> int:
        return self.records.shape[0]

    def apply(self, changes: npt.NDArray[np.void], seat_data: npt.NDArray[np.int32]) -> None:
        """Takes the SeatChange records of a step (dtype SEAT_CHANGE) and the section that holds their
        variable parts.
        """
        if len(changes) == 0:
            return
        seats = changes["seat"].astype(np.int64)
        if seats.min() < 0 or seats.max() >= self.num_seats:
            raise ValueError(
                f"seat changes name seats {seats.min()}..{seats.max()}, there are {self.num_seats}"
            )
        words = np.ascontiguousarray(changes).view(np.int32).reshape(len(changes), RECORD_WORDS)
        self.records[torch.from_numpy(seats).to(self.device)] = torch.from_numpy(words.copy()).to(self.device)
        self._has_penalties[seats] = (changes["flags"] & SEAT_PENALTIES) != 0
        for change in changes[
            (changes["num_bias"] > 0) | (changes["num_stop"] > 0) | self._has_penalties[seats]
        ]:
            self._apply_data(change, seat_data)

    def count(self, seats: torch.Tensor, tokens: torch.Tensor) -> None:
        """Counts tokens just sampled (one for each entry of seats; negative tokens and seat 0 are passed
        over).
        """
        if self.penalty_counts is None:
            return
        flat = self.penalty_counts.view(-1)
        valid = (tokens >= 0) & (seats > 0)
        index = torch.where(valid, seats.long() * self.vocab_size + tokens, 0)
        flat.index_add_(0, index, valid.to(torch.int32))

    @property
    def any_penalties(self) -> bool:
        """Whether any seat's req asks for penalties, so that `count` is worth a call."""
        return bool(self._has_penalties.any())

    def _apply_data(self, change: np.void, seat_data: npt.NDArray[np.int32]) -> None:
        seat, begin = int(change["seat"]), int(change["data_begin"])
        num_bias, num_stop = int(change["num_bias"]), int(change["num_stop"])
        ends = np.cumsum([begin, num_bias, num_bias, num_stop, int(change["num_context"])])
        ids, bits, stop, context = (seat_data[a:b] for a, b in itertools.pairwise(ends))
        if num_bias:
            self.bias_ids = self._widened(self.bias_ids, num_bias)
            self.bias_values = self._widened(self.bias_values, num_bias)
            self.bias_ids[seat, :num_bias] = self._uploaded(ids)
            self.bias_values[seat, :num_bias] = self._uploaded(bits).view(torch.float32)
        if num_stop:
            self.stop_ids = self._widened(self.stop_ids, num_stop)
            self.stop_ids[seat, :num_stop] = self._uploaded(stop)
        if self._has_penalties[seat]:
            counts = self._counts()[seat]
            counts.zero_()
            prompt = self._uploaded(context[: int(change["prompt_len"])]).long()
            output = self._uploaded(context[int(change["prompt_len"]) :]).long()
            counts.index_add_(0, output, torch.ones_like(output, dtype=torch.int32))
            counts[prompt] |= PROMPT_BIT

    def _counts(self) -> torch.Tensor:
        if self.penalty_counts is None:
            self.penalty_counts = torch.zeros(
                self.num_seats, self.vocab_size, dtype=torch.int32, device=self.device
            )
        return self.penalty_counts

    def _uploaded(self, values: npt.NDArray[np.int32]) -> torch.Tensor:
        return torch.from_numpy(values.copy()).to(self.device)

    @staticmethod
    def _widened(table: torch.Tensor, width: int) -> torch.Tensor:
        if table.shape[1] >= width:
            return table
        wider = table.new_zeros(table.shape[0], max(width, 2 * table.shape[1]))
        wider[:, : table.shape[1]] = table
        return wider
