"""One forward pass and what is read from it: logits of the output rows, tokens, logprobs, scores, pooled
vectors.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from stoker.config import ModelConfig
from stoker.engine.seats import CpuSeats
from stoker.engine.step_buffer import POOL, SAMPLE, SCORE, StepBuffer, StepHeader, TensorViews
from stoker.engine.step_output import StepLogprobs, StepOutput
from stoker.layers.context import ActivationPool, StepContext
from stoker.models.llama import Llama
from stoker.ops import LogprobBuffers, gather_tokens, sample


class CpuForward:
    """Runs steps on the CPU into memory that is allocated here once.

    Steps must come in the order of their launch, all from one thread.
    """

    def __init__(
        self,
        model: Llama,
        config: ModelConfig,
        kv_caches: list[tuple[torch.Tensor, torch.Tensor]],
        seats: CpuSeats,
        max_num_batched_tokens: int,
        max_rows: int,
        dtype: torch.dtype,
    ) -> None:
        cpu = torch.device("cpu")
        self.model = model
        self.seats = seats
        self._kv_caches = kv_caches
        self._activations = ActivationPool(config, max_num_batched_tokens, dtype, cpu)
        self._tokens = torch.zeros(max_num_batched_tokens, dtype=torch.int32)
        self._token_views: dict[int, torch.Tensor] = {}
        # Output rows are read at most max_rows at a time: prompts that are scored have many.
        self._max_rows = max_rows
        self._rows = torch.zeros(max_rows, config.hidden_size, dtype=dtype)
        self._logits = torch.zeros(max_rows, config.vocab_size, dtype=dtype)
        self._sampled = torch.zeros(max_rows, dtype=torch.int32)
        self._row_views: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        self._logprobs: LogprobBuffers | None = None

    def run(self, header: StepHeader, buffer: StepBuffer, views: TensorViews, output: StepOutput) -> None:
        """Runs the step's rows and fills `output`. Seats and KV transfers have been applied."""
        hidden = self._layers(header, views)
        if header.num_outs == 0:
            return
        if header.num_sampled_rows == header.num_outs <= self._max_rows:
            seats = buffer.out_seat[: header.num_outs]
            _, logits, sampled = self._logits_of(hidden, views, 0, header.num_outs)
            wanted = self.seats.logprobs_wanted(seats)
            output.tokens, output.logprobs = self._sample(logits, sampled, views, 0, wanted)
            if output.tokens.min() < 0:
                output.row_failed = output.tokens < 0
            self.seats.record(seats, output.tokens)
        else:
            self._mixed_kinds(hidden, header, buffer, views, output)

    def _layers(self, header: StepHeader, views: TensorViews) -> torch.Tensor:
        count = header.num_tokens
        token_ids, positions, slots = views.tokens(count)
        row_seat, row_indptr, row_kv_len = views.rows(header.num_rows)
        tokens = self._token_views.get(count)
        if tokens is None:
            tokens = self._token_views[count] = self._tokens[:count]
        gather_tokens(tokens, token_ids, self.seats.last_token)
        context = StepContext(
            positions=positions,
            slots=slots,
            block_tables=self.seats.block_tables,
            row_seat=row_seat,
            row_indptr=row_indptr,
            row_kv_len=row_kv_len,
            num_decode_rows=header.num_decode_rows,
            kv_caches=self._kv_caches,
            activations=self._activations.views(count),
        )
        return self.model.forward(tokens, context)

    def _logits_of(
        self, hidden: torch.Tensor, views: TensorViews, begin: int, end: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Normed hidden rows, logits and room for tokens of output rows [begin, end)."""
        count = end - begin
        room = self._row_views.get(count)
        if room is None:
            room = (self._rows[:count], self._logits[:count], self._sampled[:count])
            self._row_views[count] = room
        torch.index_select(hidden, 0, views.outs(begin, end)[0], out=room[0])
        self.model.logits(room[1], room[0])
        return room

    def _sample(
        self,
        logits: torch.Tensor,
        sampled: torch.Tensor,
        views: TensorViews,
        begin: int,
        wanted: npt.NDArray[np.int32],
    ) -> tuple[npt.NDArray[np.int32], StepLogprobs | None]:
        """Tokens of output rows from `begin` on, and their logprobs where `wanted` (a count for each row)
        is not -1.
        """
        _, seats, positions = views.outs(begin, begin + len(wanted))
        buffers = self._logprob_room(int(wanted.max()), len(wanted))
        sample(sampled, logits, self.seats.sampling, seats, positions, logprobs=buffers)
        tokens = sampled.numpy().copy()
        return tokens, None if buffers is None else _gathered(buffers, tokens, wanted)

    def _logprob_room(self, best: int, rows: int) -> LogprobBuffers | None:
        if best < 0:
            return None
        room = self._logprobs
        if room is None or room.top_ids.shape[1] < best:
            room = self._logprobs = LogprobBuffers.allocate(self._max_rows, best)
        return LogprobBuffers(
            room.sampled[:rows], room.rank[:rows], room.top_ids[:rows], room.top_logprobs[:rows]
        )

    def _mixed_kinds(
        self,
        hidden: torch.Tensor,
        header: StepHeader,
        buffer: StepBuffer,
        views: TensorViews,
        output: StepOutput,
    ) -> None:
        """Score and pool rows among the sampled ones, a few rows at a time."""
        count = header.num_outs
        kinds = buffer.out_kind[:count]
        tokens = np.full(count, -1, np.int32)
        failed = np.zeros(count, bool)
        scores = np.zeros(count, np.float32)
        pooled: list[npt.NDArray[np.float32]] = []
        pieces: list[StepLogprobs | None] = []
        for begin in range(0, count, self._max_rows):
            end = min(begin + self._max_rows, count)
            part = slice(begin, end)
            rows, logits, sampled = self._logits_of(hidden, views, begin, end)
            wanted = np.where(kinds[part] == SAMPLE, self.seats.logprobs_wanted(buffer.out_seat[part]), -1)
            tokens[part], logprobs = self._sample(logits, sampled, views, begin, wanted)
            pieces.append(logprobs)
            failed[part] = tokens[part] < 0
            for row in np.flatnonzero(kinds[part] == SCORE):
                wide = logits[row].float()
                target = int(buffer.out_target[begin + row])
                scores[begin + row] = float(wide[target] - wide.logsumexp(0))
            pooled += [rows[row].float().numpy().copy() for row in np.flatnonzero(kinds[part] == POOL)]
        sampled = kinds == SAMPLE
        self.seats.record(buffer.out_seat[:count][sampled], tokens[sampled])
        output.tokens = tokens[sampled]
        output.row_failed = failed if failed.any() else None
        output.scores = scores if (kinds == SCORE).any() else None
        output.pooled = np.stack(pooled) if pooled else None
        output.logprobs = _joined(
            pieces, [min(self._max_rows, count - b) for b in range(0, count, self._max_rows)]
        )


def _gathered(
    buffers: LogprobBuffers, tokens: npt.NDArray[np.int32], wanted: npt.NDArray[np.int32]
) -> StepLogprobs:
    """From padded rows to candidates one after another: the sampled token, then the row's best."""
    lengths = np.where(wanted >= 0, wanted + 1, 0)
    indptr = np.zeros(len(tokens) + 1, np.int32)
    np.cumsum(lengths, out=indptr[1:])
    ids = np.empty(indptr[-1], np.int32)
    values = np.empty(indptr[-1], np.float32)
    ranks = np.zeros(len(tokens), np.int32)
    top_ids, top = buffers.top_ids.numpy(), buffers.top_logprobs.numpy()
    sampled, rank = buffers.sampled.numpy(), buffers.rank.numpy()
    for row in np.flatnonzero(wanted >= 0):
        begin, best = indptr[row], wanted[row]
        ids[begin], values[begin], ranks[row] = tokens[row], sampled[row], rank[row]
        ids[begin + 1 : begin + 1 + best] = top_ids[row, :best]
        values[begin + 1 : begin + 1 + best] = top[row, :best]
    return StepLogprobs(indptr, ids, values, ranks)


def _joined(pieces: list[StepLogprobs | None], lengths: list[int]) -> StepLogprobs | None:
    """Pieces over consecutive output rows as one; a piece without logprobs stands for empty rows."""
    if not any(pieces):
        return None
    indptr = [np.zeros(1, np.int32)]
    for piece, length in zip(pieces, lengths, strict=True):
        base = indptr[-1][-1]
        indptr.append(base + piece.indptr[1:] if piece else np.full(length, base, np.int32))
    have = [piece for piece in pieces if piece]
    ranks = [p.ranks if p else np.zeros(n, np.int32) for p, n in zip(pieces, lengths, strict=True)]
    return StepLogprobs(
        np.concatenate(indptr).astype(np.int32),
        np.concatenate([p.token_ids for p in have]),
        np.concatenate([p.logprobs for p in have]),
        np.concatenate(ranks),
    )
