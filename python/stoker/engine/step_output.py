"""What one step produced, as arrays, before it is handed to the loop as a StepResult."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]

Status = Literal["ok", "failed", "fatal"]


@dataclass(slots=True)
class StepLogprobs:
    """Candidates of the rows that asked: row r's are [indptr[r], indptr[r + 1]), the sampled token first."""

    indptr: IntArray
    token_ids: IntArray
    logprobs: FloatArray
    ranks: IntArray
    """Of the sampled token of each output row, from 1; 0: not asked for."""


@dataclass(slots=True)
class StepOutput:
    """One step. `tokens` has one entry for each output row of kind sample, in their order; -1: the row
    failed.
    """

    batch_id: int
    status: Status = "ok"
    message: str = ""
    device_time_ns: int = 0
    tokens: IntArray | None = None
    row_failed: npt.NDArray[np.bool_] | None = None
    """[outs], or None: no row failed."""
    logprobs: StepLogprobs | None = None
    scores: FloatArray | None = None
    """[outs], for steps with score rows; 0 for the other rows."""
    pooled: FloatArray | None = None
    """[pool rows, hidden]"""
    finished_transfers: list[int] = field(default_factory=list)
    transfer_time_ns: int = 0
    """Of the copies between tiers; 0: there were none."""
    transfer_bytes: int = 0
