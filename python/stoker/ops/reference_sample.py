"""`sample` in plain torch, a row at a time: the part of reference.py that needs a file of its own."""

from __future__ import annotations

import torch

from stoker.ops.seat_table import PROMPT_BIT, LogprobBuffers, SeatTable

_MASK32 = 0xFFFFFFFF

# As vLLM: a temperature below this is greedy.
GREEDY_BELOW = 1e-5


def philox_uniform(seed_low: int, seed_high: int, position: int) -> float:
    """The draw at a position: Philox4x32-10 (Salmon et al., SC 2011) on (position, 0, 0, 0), upper 24 bits
    of the first word.
    """
    key = [seed_low & _MASK32, seed_high & _MASK32]
    c = [position & _MASK32, 0, 0, 0]
    for _ in range(10):
        low, high = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(high >> 32) ^ c[1] ^ key[0], high & _MASK32, (low >> 32) ^ c[3] ^ key[1], low & _MASK32]
        key = [(key[0] + 0x9E3779B9) & _MASK32, (key[1] + 0xBB67AE85) & _MASK32]
    return (c[0] >> 8) * 2.0**-24


def adjusted_logits(
    logits: torch.Tensor, seats: SeatTable, seat: int, position: int, mask_words: torch.Tensor | None
) -> torch.Tensor:
    """One row's float32 logits after mask, bias, stop ban and penalties, before the temperature."""
    x = logits.float().clone()
    vocab = x.shape[0]
    if mask_words is not None:
        index = torch.arange(vocab, device=x.device)
        allowed = (mask_words[index // 32] >> (index % 32)) & 1
        x[allowed == 0] = float("-inf")
    for i in range(int(seats.num_bias[seat])):
        x[seats.bias_ids[seat, i].long()] += seats.bias_values[seat, i]
    if position < int(seats.min_position[seat]):
        x[seats.stop_ids[seat, : int(seats.num_stop[seat])].long()] = float("-inf")
    if seats.penalty_counts is not None:
        counts = seats.penalty_counts[seat]
        repetition = seats.repetition_penalty[seat]
        output = counts & (PROMPT_BIT - 1)
        if float(repetition) != 1.0:
            x = torch.where(counts != 0, torch.where(x > 0, x / repetition, x * repetition), x)
        x = x - seats.frequency_penalty[seat] * output
        x = x - seats.presence_penalty[seat] * (output > 0)
    return x


def survivors(x: torch.Tensor, min_p: float, top_k: int, top_p: float) -> torch.Tensor:
    """Which tokens may be drawn: bool [V]. x: float32 logits after the temperature. min-p, then top-k, then
    top-p.
    """
    keep = x > float("-inf")
    if min_p > 0:
        # p / p_max >= min_p, said in logits
        threshold = torch.log(torch.tensor(min_p, dtype=torch.float64)).float()
        keep &= (x - x.max()) >= threshold
    # Best first; the lower id first on a tie.
    order = torch.argsort(x, descending=True, stable=True)
    order = order[keep[order]]
    if 0 < top_k < len(order):
        order = order[:top_k]
    if top_p < 1:
        weights = torch.exp(x[order] - x.max()).double()
        before = weights.cumsum(0) - weights
        order = order[
            (before < float(top_p) * weights.sum()) | (torch.arange(len(order), device=x.device) == 0)
        ]
    kept = torch.zeros_like(keep)
    kept[order] = True
    return kept


def sample(
    out_tokens: torch.Tensor,
    logits: torch.Tensor,
    seats: SeatTable,
    row_seat: torch.Tensor,
    row_position: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    mask_row: torch.Tensor | None = None,
    logprobs: LogprobBuffers | None = None,
) -> None:
    """One token for each row of logits [N, V], by the parameters of its seat, into out_tokens int32 [N].

    mask (int32 [*, ceil(V/32)], row mask_row[i], -1: none) -> logit bias -> stop tokens banned while
    row_position < min_position -> penalties (as vLLM) -> temperature -> min-p -> top-k -> top-p -> draw by
    Philox. Temperature 0 (below 1e-5), or an infinite best logit: the best token, the lowest id on a tie. A
    NaN in the row, or nothing left: -1.
    """
    for i, (seat, position) in enumerate(zip(row_seat.tolist(), row_position.tolist(), strict=True)):
        raw = logits[i].float()
        if bool(torch.isnan(raw).any()):
            out_tokens[i] = -1
            continue
        words = None
        if mask is not None and mask_row is not None and int(mask_row[i]) >= 0:
            words = mask[int(mask_row[i])]
        token = _draw(adjusted_logits(raw, seats, seat, position, words), seats, seat, position)
        out_tokens[i] = token
        best = int(seats.num_logprobs[seat])
        if logprobs is None or best < 0 or token < 0:
            continue
        scores = torch.log_softmax(raw, dim=-1)
        logprobs.sampled[i] = scores[token]
        logprobs.rank[i] = 1 + (raw > raw[token]).sum()
        best = min(best, logprobs.top_ids.shape[1], raw.shape[0])
        ids = torch.argsort(raw, descending=True, stable=True)[:best]
        logprobs.top_ids[i, :best] = ids.to(torch.int32)
        logprobs.top_logprobs[i, :best] = scores[ids]


def _draw(x: torch.Tensor, seats: SeatTable, seat: int, position: int) -> int:
    temperature = float(seats.temperature[seat])
    best = float(x.max())
    if best == float("-inf") or best != best:
        return -1
    if temperature < GREEDY_BELOW or best == float("inf"):
        return int((x == x.max()).nonzero()[0])
    x = x * (1.0 / seats.temperature[seat])
    kept = survivors(x, float(seats.min_p[seat]), int(seats.top_k[seat]), float(seats.top_p[seat]))
    weights = torch.where(kept, torch.exp(x - x.max()), 0).double()
    low, high = (int(word) for word in seats.seed[seat])
    u = philox_uniform(low, high, position)
    cumulative = weights.cumsum(0)
    over = (cumulative > u * cumulative[-1]).nonzero()
    return int(over[0]) if len(over) else int(kept.nonzero()[-1])
