"""What is read from a step's hidden rows, on the host: tokens, logprobs, scores, pooled vectors. Waits for the device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from stoker.engine.forward import Forward
from stoker.engine.step_buffer import POOL, SAMPLE, SCORE, StepBuffer, StepHeader, TensorViews
from stoker.engine.step_output import StepLogprobs, StepOutput
from stoker.ops import LogprobBuffers

Masks = tuple[torch.Tensor, torch.Tensor] | None
"""Grammar masks [rows, words] and the one that each output row takes [outs], -1: none."""


def read_outputs(
    forward: Forward,
    hidden: torch.Tensor,
    header: StepHeader,
    buffer: StepBuffer,
    views: TensorViews,
    output: StepOutput,
    masks: Masks = None,
) -> None:
    """Reads the output rows of `forward.layers`' result, writes sampled tokens back to the seats and fills `output`."""
    count = header.num_outs
    if count == 0:
        return
    if header.num_sampled_rows == count <= forward.max_rows:
        seats = buffer.out_seat[:count]
        wanted = forward.seats.logprobs_wanted(seats)
        _, logits, sampled = forward.logits(hidden, views, 0, count)
        output.tokens, output.logprobs = _drawn(forward, logits, sampled, views, 0, wanted, masks)
        if output.tokens.min() < 0:
            output.row_failed = output.tokens < 0
        forward.seats.record(seats, output.tokens)
    else:
        _mixed_kinds(forward, hidden, count, buffer, views, output, masks)


def _drawn(
    forward: Forward,
    logits: torch.Tensor,
    sampled: torch.Tensor,
    views: TensorViews,
    begin: int,
    wanted: npt.NDArray[np.int32],
    masks: Masks,
) -> tuple[npt.NDArray[np.int32], StepLogprobs | None]:
    """Tokens of output rows from `begin` on, and their logprobs where `wanted` (a count for each row) is not -1."""
    end = begin + len(wanted)
    if masks is not None:
        masks = masks[0], masks[1][begin:end]
    buffers = forward.sample(logits, sampled, views, begin, end, int(wanted.max()), masks)
    tokens = sampled.cpu().numpy().copy()
    return tokens, None if buffers is None else _gathered(buffers, tokens, wanted)


def _mixed_kinds(
    forward: Forward,
    hidden: torch.Tensor,
    count: int,
    buffer: StepBuffer,
    views: TensorViews,
    output: StepOutput,
    masks: Masks,
) -> None:
    """Score and pool rows among the sampled ones, a few rows at a time."""
    kinds = buffer.out_kind[:count]
    tokens = np.full(count, -1, np.int32)
    failed = np.zeros(count, bool)
    scores = np.zeros(count, np.float32)
    pooled: list[npt.NDArray[np.float32]] = []
    pieces: list[StepLogprobs | None] = []
    begins = range(0, count, forward.max_rows)
    ends = [min(begin + forward.max_rows, count) for begin in begins]
    for begin, end in zip(begins, ends, strict=True):
        part = slice(begin, end)
        rows, logits, sampled = forward.logits(hidden, views, begin, end)
        wanted = np.where(kinds[part] == SAMPLE, forward.seats.logprobs_wanted(buffer.out_seat[part]), -1)
        tokens[part], logprobs = _drawn(forward, logits, sampled, views, begin, wanted, masks)
        pieces.append(logprobs)
        failed[part] = tokens[part] < 0
        scored = np.flatnonzero(kinds[part] == SCORE)
        if len(scored):
            found = _scored(logits, scored, buffer.out_target[part][scored], forward, buffer.out_seat[part])
            scores[part][scored] = found.logprobs[found.indptr[scored]]
            pieces[-1] = found if logprobs is None else _merged(logprobs, found)
        pooled += [rows[row].float().cpu().numpy().copy() for row in np.flatnonzero(kinds[part] == POOL)]
    sampled_rows = kinds == SAMPLE
    forward.seats.record(buffer.out_seat[:count][sampled_rows], tokens[sampled_rows])
    output.tokens = tokens[sampled_rows]
    output.row_failed = failed if failed.any() else None
    output.scores = scores if (kinds == SCORE).any() else None
    output.pooled = np.stack(pooled) if pooled else None
    output.logprobs = _joined(pieces, [end - begin for begin, end in zip(begins, ends, strict=True)])


def _scored(
    logits: torch.Tensor,
    rows: npt.NDArray[np.intp],
    targets: npt.NDArray[np.int32],
    forward: Forward,
    seats: npt.NDArray[np.int32],
) -> StepLogprobs:
    """Of each score row the logprob and the rank of its target, and as many best candidates as its seat wants."""
    wide = logits[torch.from_numpy(rows).to(logits.device)].float()
    norm = wide.logsumexp(1)
    target = torch.from_numpy(targets.astype(np.int64)).to(logits.device)[:, None]
    own = wide.gather(1, target)
    ids = torch.arange(wide.shape[1], device=wide.device)
    ahead = (wide > own) | ((wide == own) & (ids < target))
    wanted = forward.seats.prompt_logprobs_wanted(seats[rows])
    most = min(int(wanted.max()), wide.shape[1])
    best = torch.sort(wide, dim=1, descending=True, stable=True) if most else None
    own_logprob = (own[:, 0] - norm).cpu().numpy()
    lengths = np.zeros(len(logits), np.int32)
    lengths[rows] = np.minimum(wanted, most) + 1
    indptr = np.zeros(len(logits) + 1, np.int32)
    np.cumsum(lengths, out=indptr[1:])
    token_ids, values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    ranks = np.zeros(len(logits), np.int32)
    ranks[rows] = ahead.sum(1).cpu().numpy() + 1
    token_ids[indptr[rows]], values[indptr[rows]] = targets, own_logprob
    if best is not None:
        top_ids = best.indices[:, :most].cpu().numpy()
        top = (best.values[:, :most] - norm[:, None]).cpu().numpy()
        for place, row in enumerate(rows):
            part, count = slice(indptr[row] + 1, indptr[row + 1]), lengths[row] - 1
            token_ids[part], values[part] = top_ids[place, :count], top[place, :count]
    return StepLogprobs(indptr, token_ids, values, ranks)


def _merged(one: StepLogprobs, other: StepLogprobs) -> StepLogprobs:
    """Two pieces over the same rows, each with entries where the other has none."""
    indptr = one.indptr + other.indptr
    token_ids, values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    for piece in (one, other):
        for row in np.flatnonzero(np.diff(piece.indptr)):
            source, goal = slice(*piece.indptr[row : row + 2]), slice(*indptr[row : row + 2])
            token_ids[goal], values[goal] = piece.token_ids[source], piece.logprobs[source]
    return StepLogprobs(indptr, token_ids, values, one.ranks + other.ranks)


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
    top_ids, top = buffers.top_ids.cpu().numpy(), buffers.top_logprobs.cpu().numpy()
    sampled, rank = buffers.sampled.cpu().numpy(), buffers.rank.cpu().numpy()
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
