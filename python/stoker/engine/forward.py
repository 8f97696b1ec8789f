"""One forward pass into memory that is allocated once: layers, logits of the rows that are read, and the sampler."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from stoker.engine.step_buffer import TensorViews
from stoker.layers.context import ActivationPool, AttentionPlans, Kept, StepContext
from stoker.model_config import ModelConfig
from stoker.models.llama import Llama
from stoker.ops import LogprobBuffers, SeatTable, gather_tokens, sample


class Seats(Protocol):
    """What is kept for each seat between steps (seats.py, cuda_seats.py)."""

    block_tables: list[torch.Tensor]
    last_token: torch.Tensor
    sampling: SeatTable

    def logprobs_wanted(self, seats: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]: ...
    def prompt_logprobs_wanted(self, seats: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]: ...
    def record(self, seats: npt.NDArray[np.int32], tokens: npt.NDArray[np.int32]) -> None: ...


class Forward:
    """The same on every device. Steps must come in the order of their launch, all from one thread at a time.

    `max_rows`: output rows whose logits there is room for at once.
    """

    def __init__(
        self,
        model: Llama,
        config: ModelConfig,
        kv_caches: list[tuple[torch.Tensor, torch.Tensor]],
        seats: Seats,
        max_num_batched_tokens: int,
        max_rows: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.model = model
        self.seats = seats
        self.max_rows = max_rows
        self.max_tokens = max_num_batched_tokens
        self.kv_caches = kv_caches
        model.fp8_room.reserve(max_num_batched_tokens)
        self._activations = ActivationPool(config, max_num_batched_tokens, dtype, device)
        self.hidden = self._activations.residual
        """[max tokens, hidden]: where `layers` leaves its result."""
        self._tokens = torch.zeros(max_num_batched_tokens, dtype=torch.int32, device=device)
        self._token_views: Kept[int, torch.Tensor] = Kept()
        self._rows = torch.zeros(max_rows, config.hidden_size, dtype=dtype, device=device)
        self._logits = torch.zeros(max_rows, config.vocab_size, dtype=dtype, device=device)
        self.sampled = torch.zeros(max_rows, dtype=torch.int32, device=device)
        """[max_rows]: where `sample` writes."""
        self._row_views: Kept[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = Kept()
        self._logprobs: LogprobBuffers | None = None

    def layers(
        self,
        num_tokens: int,
        num_rows: int,
        num_decode_rows: int,
        views: TensorViews,
        plans: AttentionPlans | None = None,
    ) -> torch.Tensor:
        """All layers over the step's tokens: the hidden states [num_tokens, hidden]."""
        token_ids, positions, slots = views.tokens(num_tokens)
        row_seat, row_indptr, row_kv_len = views.rows(num_rows)
        tokens = self._token_views.get(num_tokens)
        if tokens is None:
            tokens = self._token_views.keep(num_tokens, self._tokens[:num_tokens])
        gather_tokens(tokens, token_ids, self.seats.last_token)
        context = StepContext(
            positions=positions,
            slots=slots,
            block_tables=self.seats.block_tables,
            row_seat=row_seat,
            row_indptr=row_indptr,
            row_kv_len=row_kv_len,
            num_decode_rows=num_decode_rows,
            kv_caches=self.kv_caches,
            activations=self._activations.views(num_tokens),
            plans=plans,
        )
        return self.model.forward(tokens, context)

    def logits(
        self, hidden: torch.Tensor, views: TensorViews, begin: int, end: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Normed hidden rows, logits and room for tokens of output rows [begin, end)."""
        count = end - begin
        room = self._row_views.get(count)
        if room is None:
            room = self._row_views.keep(
                count, (self._rows[:count], self._logits[:count], self.sampled[:count])
            )
        torch.index_select(hidden, 0, views.outs(begin, end)[0], out=room[0])
        self.model.logits(room[1], room[0])
        return room

    def sample(
        self,
        logits: torch.Tensor,
        sampled: torch.Tensor,
        views: TensorViews,
        begin: int,
        end: int,
        best: int = -1,
        masks: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> LogprobBuffers | None:
        """Tokens of output rows [begin, end) into `sampled`; with best >= 0 also logprobs, up to `best` a row.

        `masks`: grammar masks [n, words] and the one that each of these rows takes (-1: none).
        """
        _, seats, positions = views.outs(begin, end)
        buffers = self._logprob_room(best, end - begin) if best >= 0 else None
        mask, mask_row = masks if masks is not None else (None, None)
        sample(
            sampled,
            logits,
            self.seats.sampling,
            seats,
            positions,
            mask=mask,
            mask_row=mask_row,
            logprobs=buffers,
        )
        return buffers

    def _logprob_room(self, best: int, rows: int) -> LogprobBuffers:
        room = self._logprobs
        if room is None or room.top_ids.shape[1] < best:
            room = self._logprobs = LogprobBuffers.allocate(self.max_rows, best, self.sampled.device)
        return LogprobBuffers(
            room.sampled[:rows], room.rank[:rows], room.top_ids[:rows], room.top_logprobs[:rows]
        )
