"""Every op of `stoker.ops` in plain torch: the definition, the oracle of the tests, and what runs where
nothing native does.

Clarity over speed, any device. Signatures are those of the public functions. Arithmetic is float32, or
float64 when the tensors are float64 (the oracle's own oracle).
"""

from __future__ import annotations

import torch

from stoker.ops.reference_sample import philox_uniform, sample
from stoker.ops.seat_table import LogprobBuffers, SeatTable

__all__ = [
    "LogprobBuffers",
    "SeatTable",
    "add_rms_norm",
    "copy_blocks",
    "gather_tokens",
    "gelu_and_mul",
    "linear",
    "paged_attention",
    "philox_uniform",
    "quantize_rows",
    "rms_norm",
    "rope_and_cache",
    "sample",
    "silu_and_mul",
    "swap_blocks",
]


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = _wide(x)
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return wide * scale * _wide(weight)


def rms_norm(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
    """out = x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang & Sennrich 2019).

    x, out [T, H] or [T, heads, D]; weight [H] or [D]. One rounding, at the end.
    """
    out.copy_(_normed(x, weight, eps))


def add_rms_norm(
    out: torch.Tensor, residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float
) -> None:
    """residual += x (rounded to its dtype), then out = rms_norm(residual). All [T, H]."""
    residual.copy_(_wide(residual) + _wide(x))
    out.copy_(_normed(residual, weight, eps))


def silu_and_mul(out: torch.Tensor, x: torch.Tensor) -> None:
    """out = silu(x[:, :F]) * x[:, F:]; x [T, 2F], out [T, F] (SwiGLU, Shazeer 2020)."""
    gate, up = _wide(x).chunk(2, dim=-1)
    out.copy_(torch.nn.functional.silu(gate) * up)


def gelu_and_mul(out: torch.Tensor, x: torch.Tensor) -> None:
    """out = gelu(x[:, :F]) * x[:, F:], gelu in its tanh form; x [T, 2F], out [T, F]."""
    gate, up = _wide(x).chunk(2, dim=-1)
    out.copy_(torch.nn.functional.gelu(gate, approximate="tanh") * up)


def linear(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    x_scale: torch.Tensor | None = None,
    weight_scale: torch.Tensor | None = None,
    silu_and_mul: bool = False,
) -> None:
    """out = x @ weight.T + bias, one rounding at the end; with scales x and weight are fp8 rows times their scale.

    x [T, in], weight [features, in], bias [features], x_scale [T], weight_scale [features]. silu_and_mul: weight
    [2 * features, in], gate then up, and silu_and_mul of their products, which are rounded to out's dtype first.
    """
    y = _wide(x) @ _wide(weight).t()
    if x_scale is not None and weight_scale is not None:
        y = y * x_scale.unsqueeze(1) * weight_scale
    if bias is not None:
        y = y + _wide(bias)
    if silu_and_mul:
        both = y.to(out.dtype)
        gate, up = _wide(both).chunk(2, dim=-1)
        y = torch.nn.functional.silu(gate) * up
    out.copy_(y)


def quantize_rows(out: torch.Tensor, scale: torch.Tensor, x: torch.Tensor) -> None:
    """x [T, H] as float8_e4m3fn times a scale a row: scale = max |x| / 448, 1 for a row of zeros."""
    wide = x.float()
    most = wide.abs().amax(-1)
    scale.copy_(torch.where(most > 0, most * (1.0 / 448.0), torch.ones_like(most)))
    out.copy_((wide / scale.unsqueeze(1)).clamp(-448.0, 448.0))


def _rotated(x: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """x [T, heads, D] (wide), cos_sin [T, rotary_dim]: the halves form (as GPT-NeoX and Llama in Hugging
    Face).
    """
    rotary = cos_sin.shape[-1]
    cos, sin = cos_sin.to(x.dtype).unsqueeze(1).chunk(2, dim=-1)
    x1, x2 = x[..., :rotary].chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin, x[..., rotary:]], dim=-1)


def _stored(x: torch.Tensor, cache: torch.Tensor, scale: float) -> torch.Tensor:
    """x as the cache keeps it: divided by the scale where the cache is fp8, which saturates at its largest
    value.
    """
    if cache.dtype == torch.float8_e4m3fn:
        return (x / scale).clamp(-448.0, 448.0).to(cache.dtype)
    return x.to(cache.dtype)


def rope_and_cache(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    *,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Optional RMSNorm of each q and k head, rotary, and K and V to their slots. q changes in place, k and v
    do not.

    q [T, Hq, D], k, v [T, Hk, D]; positions, slots int32 [T]; cos_sin float32 [max_position, rotary_dim];
    caches [num_blocks, Hk, block_size, D]. slot < 0: the row is padding and nothing of it is written.
    """
    table = cos_sin[positions.long()]
    wide_q = _wide(q) if q_norm is None else _normed(q, q_norm, eps)
    wide_k = _wide(k) if k_norm is None else _normed(k, k_norm, eps)
    live = slots >= 0
    rows = live.nonzero().flatten()
    q[rows] = _rotated(wide_q, table)[rows].to(q.dtype)
    block, offset = (slots[rows] // k_cache.shape[2]).long(), (slots[rows] % k_cache.shape[2]).long()
    # The cache holds what the model's dtype holds: rounded to it first, then to fp8 where the cache is fp8.
    rotated_k = _rotated(wide_k, table)[rows].to(k.dtype)
    k_cache[block, :, offset] = _stored(_wide(rotated_k), k_cache, k_scale)
    v_cache[block, :, offset] = _stored(_wide(v[rows]), v_cache, v_scale)


def paged_attention(
    out: torch.Tensor,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    row_seat: torch.Tensor,
    row_indptr: torch.Tensor,
    row_kv_len: torch.Tensor,
    *,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    num_decode_rows: int | None = None,
    plan: object | None = None,
) -> None:
    """Causal attention of query tokens over paged KV (Kwon et al. 2023, vLLM), decode rows and chunks alike.

    q, out [T, Hq, D]; caches [num_blocks, Hk, block_size, D]; block_table int32 [seats, max_blocks];
    row_seat, row_kv_len int32 [R]; row_indptr int32 [R + 1]. The last token of row r sees KV positions [0,
    row_kv_len[r]), earlier ones one less each; window w > 0: the last w of these. soft_cap c > 0: scores
    become c * tanh(s / c).
    """
    del num_decode_rows, plan
    block_size, num_kv_heads = k_cache.shape[2], k_cache.shape[1]
    group = q.shape[1] // num_kv_heads
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    indptr, seats, lengths = row_indptr.tolist(), row_seat.tolist(), row_kv_len.tolist()
    for row, (seat, length) in enumerate(zip(seats, lengths, strict=True)):
        begin, end = indptr[row], indptr[row + 1]
        if begin == end or length <= 0:
            continue
        position = torch.arange(length, device=q.device)
        block = block_table[seat, position // block_size].long()
        k = k_cache[block, :, position % block_size].to(compute) * k_scale  # [length, Hk, D]
        v = v_cache[block, :, position % block_size].to(compute) * v_scale
        query = q[begin:end].to(compute).reshape(end - begin, num_kv_heads, group, -1)
        scores = torch.einsum("nhgd,lhd->hgnl", query, k) * scale
        if soft_cap > 0:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        last = torch.arange(length - (end - begin), length, device=q.device).unsqueeze(1)
        seen = position <= last
        if window > 0:
            seen &= position > last - window
        # What a token does not see must not touch it, not even as 0 * NaN.
        weights = torch.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1)
        any_seen = seen.any(0)
        result = torch.einsum("hgnl,lhd->nhgd", weights[..., any_seen], v[any_seen])
        out[begin:end] = result.flatten(1, 2).to(out.dtype)


def copy_blocks(cache: torch.Tensor, pairs: torch.Tensor) -> None:
    """cache[pairs[i, 1]] = cache[pairs[i, 0]] for all i; cache [num_blocks, ...], pairs int32 [n, 2], no
    overlap.
    """
    source, destination = pairs.long().unbind(1)
    raw = cache if cache.element_size() > 1 else cache.view(torch.uint8)
    raw[destination] = raw[source]


def swap_blocks(
    device_cache: torch.Tensor, host_cache: torch.Tensor, pairs: torch.Tensor, *, to_host: bool
) -> None:
    """Blocks from one cache to the other: pairs int32 [n, 2] of (source, destination); to_host says which is
    which.
    """
    source, destination = pairs.long().unbind(1)
    read, write = (device_cache, host_cache) if to_host else (host_cache, device_cache)
    if read.element_size() == 1:
        read, write = read.view(torch.uint8), write.view(torch.uint8)
    write[destination.to(write.device)] = read[source.to(read.device)].to(write.device)


def gather_tokens(out: torch.Tensor, token_ids: torch.Tensor, last_token: torch.Tensor) -> None:
    """out[i] = token_ids[i] if it is a token, else last_token[seat] where token_ids[i] = -1 - seat. All
    int32.
    """
    seat = (-1 - token_ids).clamp_min(0).long()
    out.copy_(torch.where(token_ids >= 0, token_ids, last_token[seat]))
