"""The public ops: one function an op, which hands its tensors to the native module of their device.

Shapes, dtypes and strides are checked in C++; an error is a ValueError that names the argument and the
dimension. What each op computes is defined by the function of the same name in reference.py. All write into
tensors that the caller gives, on the device's current stream. Last dimensions are contiguous; ° marks
tensors whose row strides are free. T tokens, R rows, Hq/Hk heads, D head dim; index tensors are int32 on the
same device.
"""

from __future__ import annotations

import torch

from stoker.ops import reference
from stoker.ops.backend import CPU, Backend, backend_of
from stoker.ops.seat_table import LogprobBuffers, SeatTable


def rms_norm(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
    """out° = rms_norm(x°) * weight over the last dimension: [T, H] with weight [H], or [T, heads, D] with
    [D].
    """
    (CPU if x.is_cpu else backend_of(x)).rms_norm(out, x, weight, eps)


def add_rms_norm(
    out: torch.Tensor, residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float
) -> None:
    """residual° += x°; out° = rms_norm(residual) * weight. [T, H], weight [H]. out may be x."""
    (CPU if x.is_cpu else backend_of(x)).add_rms_norm(out, residual, x, weight, eps)


def silu_and_mul(out: torch.Tensor, x: torch.Tensor) -> None:
    """out° [T, F] = silu(x°[:, :F]) * x[:, F:]."""
    (CPU if x.is_cpu else backend_of(x)).silu_and_mul(out, x)


def gelu_and_mul(out: torch.Tensor, x: torch.Tensor) -> None:
    """out° [T, F] = gelu(x°[:, :F]) * x[:, F:], the tanh form."""
    (CPU if x.is_cpu else backend_of(x)).gelu_and_mul(out, x)


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
    """Optional RMSNorm of each head, rotary on q° [T, Hq, D] in place and on k° [T, Hk, D], k and v° to
    their slots.

    cos_sin float32 [max_position, rotary_dim], cos half then sin half; caches [num_blocks, Hk, block_size,
    D] with a free first stride, in the model's dtype or float8_e4m3fn (stored = value / scale). slot < 0: a
    row of padding.
    """
    (CPU if q.is_cpu else backend_of(q)).rope_and_cache(
        q, k, v, positions, cos_sin, k_cache, v_cache, slots, q_norm, k_norm, eps, k_scale, v_scale
    )


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
    """Causal attention of the query tokens of R rows over paged KV; decode rows, prefill chunks or both.

    q°, out° [T, Hq, D]; row r is tokens [row_indptr[r], row_indptr[r + 1]) of seat row_seat[r], and its last
    token sees KV positions [0, row_kv_len[r]). window: at most the last `window` positions, itself included;
    0 for all. num_decode_rows: how many leading rows have one token, where the caller knows. plan: the work
    list (CUDA needs it).
    """
    (CPU if q.is_cpu else backend_of(q)).paged_attention(
        out,
        q,
        k_cache,
        v_cache,
        block_table,
        row_seat,
        row_indptr,
        row_kv_len,
        scale,
        window,
        soft_cap,
        k_scale,
        v_scale,
        num_decode_rows,
        plan,
    )


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
    """One token for each row of logits° [N, V] by its seat's parameters, into out_tokens int32 [N]; see
    reference.sample. On a GPU V is at most 2^20 - 1.
    """
    backend: Backend = CPU if logits.is_cpu else backend_of(logits)
    if backend.sample is None:
        reference.sample(
            out_tokens, logits, seats, row_seat, row_position, mask=mask, mask_row=mask_row, logprobs=logprobs
        )
        return
    backend.sample(
        out_tokens,
        logits,
        seats.records,
        seats.bias_ids,
        seats.bias_values,
        seats.stop_ids,
        seats.penalty_counts,
        row_seat,
        row_position,
        mask,
        mask_row,
        None if logprobs is None else logprobs.sampled,
        None if logprobs is None else logprobs.rank,
        None if logprobs is None else logprobs.top_ids,
        None if logprobs is None else logprobs.top_logprobs,
    )


def copy_blocks(cache: torch.Tensor, pairs: torch.Tensor) -> None:
    """cache[destination] = cache[source] for each row (source, destination) of pairs int32 [n, 2]; no
    overlap.
    """
    (CPU if cache.is_cpu else backend_of(cache)).copy_blocks(cache, pairs)


def swap_blocks(
    device_cache: torch.Tensor, host_cache: torch.Tensor, pairs: torch.Tensor, *, to_host: bool
) -> None:
    """Copies blocks between a device's cache and the host's: pairs int32 [n, 2] of (source, destination)."""
    (CPU if device_cache.is_cpu else backend_of(device_cache)).swap_blocks(
        device_cache, host_cache, pairs, to_host
    )


def gather_tokens(out: torch.Tensor, token_ids: torch.Tensor, last_token: torch.Tensor) -> None:
    """out[i] = token_ids[i], or last_token[-1 - token_ids[i]] where that is negative. All int32, one
    dimension.
    """
    (CPU if out.is_cpu else backend_of(out)).gather_tokens(out, token_ids, last_token)


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
    """out° [T, features] = x° [T, in] @ weight°.T [in, features] + bias, accumulated in float32. Made for few
    rows: on a GPU the weights are read once for each 64 rows, on a CPU for each 240, and a row's bits do not depend on
    the others. (On Hopper with silu_and_mul once for each 256; there they depend on whether there are more than 64.)

    With x_scale [T] and weight_scale [features] (float32) x and weight are float8_e4m3fn, each row times its
    scale. silu_and_mul: weight has 2 * features rows, and out = silu(x @ gate.T) * (x @ up.T), both products
    rounded to out's dtype first; no bias then.
    """
    if not x.is_cpu:
        backend_of(x).linear(out, x, weight, bias, x_scale, weight_scale, silu_and_mul)
    elif x_scale is None and weight_scale is None and not silu_and_mul:
        CPU.linear(out, x, weight, bias)
    else:
        reference.linear(
            out, x, weight, bias, x_scale=x_scale, weight_scale=weight_scale, silu_and_mul=silu_and_mul
        )


def quantize_rows(out: torch.Tensor, scale: torch.Tensor, x: torch.Tensor) -> None:
    """scale [T] float32 = max |x°| / 448 of each row (1 where that is 0); out° float8_e4m3fn = x / scale."""
    (CPU if x.is_cpu else backend_of(x)).quantize_rows(out, scale, x)
