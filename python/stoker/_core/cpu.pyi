"""Ops on CPU tensors: positional arguments, in the order of the functions of stoker.ops that call them."""

from typing import Literal

import torch

_Isa = Literal["portable", "avx2", "avx512", "avx512_bf16"]

def rms_norm(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, /) -> None: ...
def add_rms_norm(
    out: torch.Tensor, residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, /
) -> None: ...
def silu_and_mul(out: torch.Tensor, x: torch.Tensor, /) -> None: ...
def gelu_and_mul(out: torch.Tensor, x: torch.Tensor, /) -> None: ...
def rope_and_cache(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    eps: float,
    k_scale: float,
    v_scale: float,
    /,
) -> None: ...
def paged_attention(
    out: torch.Tensor,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    row_seat: torch.Tensor,
    row_indptr: torch.Tensor,
    row_kv_len: torch.Tensor,
    scale: float,
    window: int,
    soft_cap: float,
    k_scale: float,
    v_scale: float,
    num_decode_rows: int | None,
    plan: object | None,
    /,
) -> None: ...
def linear(
    out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, /
) -> None: ...
def sample(
    out_tokens: torch.Tensor,
    logits: torch.Tensor,
    records: torch.Tensor,
    bias_ids: torch.Tensor,
    bias_values: torch.Tensor,
    stop_ids: torch.Tensor,
    penalty_counts: torch.Tensor | None,
    row_seat: torch.Tensor,
    row_position: torch.Tensor,
    mask: torch.Tensor | None,
    mask_row: torch.Tensor | None,
    sampled: torch.Tensor | None,
    rank: torch.Tensor | None,
    top_ids: torch.Tensor | None,
    top_logprobs: torch.Tensor | None,
    /,
) -> None: ...
def copy_blocks(cache: torch.Tensor, pairs: torch.Tensor, /) -> None: ...
def swap_blocks(
    device_cache: torch.Tensor, host_cache: torch.Tensor, pairs: torch.Tensor, to_host: bool, /
) -> None: ...
def gather_tokens(out: torch.Tensor, token_ids: torch.Tensor, last_token: torch.Tensor, /) -> None: ...
def isa() -> _Isa:
    """The instruction set in use."""

def isas() -> list[_Isa]:
    """What this processor has, best last."""

def set_isa(name: str, /) -> None:
    """Chooses by name; '' is the best. For tests and measurements."""

def num_threads() -> int: ...
def set_num_threads(count: int, /) -> None:
    """How many threads an op may use; 0: torch's number."""

def thread_pool() -> Literal["torch", "own"]:
    """Whose threads run the loops: torch's OpenMP team or our own."""

def set_thread_pool(name: Literal["auto", "torch", "own"], /) -> None: ...
