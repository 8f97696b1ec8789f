"""The ops for NVIDIA GPUs (csrc/bind/cuda*.cpp). `stoker.ops` is the public way in; arguments are those of its functions."""

from typing import Any

import torch

def rms_norm(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> None: ...
def add_rms_norm(
    out: torch.Tensor, residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float
) -> None: ...
def silu_and_mul(out: torch.Tensor, x: torch.Tensor) -> None: ...
def gelu_and_mul(out: torch.Tensor, x: torch.Tensor) -> None: ...
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
    plan: Any | None,
) -> None: ...
def gather_tokens(out: torch.Tensor, token_ids: torch.Tensor, last_token: torch.Tensor) -> None: ...
def copy_blocks(cache: torch.Tensor, pairs: torch.Tensor) -> None: ...
def swap_blocks(
    device_cache: torch.Tensor, host_cache: torch.Tensor, pairs: torch.Tensor, to_host: bool
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
) -> None: ...
def linear(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    x_scale: torch.Tensor | None,
    weight_scale: torch.Tensor | None,
    silu_and_mul: bool,
) -> None: ...
def quantize_rows(out: torch.Tensor, scale: torch.Tensor, x: torch.Tensor) -> None: ...
def decode_workers(q: torch.Tensor, k_cache: torch.Tensor) -> int:
    """Blocks of the decode kernel that fill the device, for tensors shaped like these."""

def decode_heads(num_q_heads: int, num_kv_heads: int) -> int:
    """Heads of a decode unit: KV heads, or several to a KV head whose group is larger than 8."""

def decode_slot_words(num_q_heads: int, num_kv_heads: int, head_dim: int) -> int:
    """float32 words of one decode slot of the workspace."""

def prefill_geometry(q: torch.Tensor, k_cache: torch.Tensor) -> tuple[int, int]:
    """(query tokens of a prefill tile, workers) for the planner; (0, 0) where no prefill kernel takes such tensors."""

def prefill_workspace_bytes(num_slots: int, num_kv_heads: int, head_dim: int) -> int:
    """Of a workspace that is zeroed once."""

def begin_step(
    front: torch.Tensor,
    table_changes: torch.Tensor,
    seat_changes: torch.Tensor,
    tables: torch.Tensor,
    records: torch.Tensor,
) -> None:
    """Applies as many of a step's table and seat changes as its front says."""

def end_step(
    front: torch.Tensor, sampled: torch.Tensor, seats: torch.Tensor, last_token: torch.Tensor
) -> None:
    """last_token[seats[i]] = sampled[i], and the tokens to the host's memory that the front names."""

class StepLauncher:
    """Starts steps on one stream (csrc/cuda/step_launcher.h); addresses and handles are integers."""

    def __init__(self, device: int, stream: int, index: int) -> None: ...
    def add_entry(self, host: int) -> None: ...
    def set_graph(self, kind: int, bucket: int, graph: int) -> None: ...
    def drop_graphs(self, kind: int) -> None: ...
    def begin(self, entry: int) -> None: ...
    def upload(
        self,
        entry: int,
        body: int,
        table_begin: int,
        table_bytes: int,
        seat_begin: int,
        seat_bytes: int,
    ) -> None: ...
    def replay(self, kind: int, bucket: int) -> None: ...
    def end(self, entry: int) -> None: ...
    def launch(
        self,
        entry: int,
        kind: int,
        tokens: int,
        outs: int,
        body: int,
        table_begin: int,
        table_bytes: int,
        seat_begin: int,
        seat_bytes: int,
    ) -> None:
        """All of a step that graphs do."""

    def wait(self, entry: int) -> float:
        """Until the entry's step is done, without the GIL: milliseconds that it took on the device."""

    def is_done(self, entry: int) -> bool: ...
    def calls(self) -> Any:
        """A capsule of csrc/bind/step_calls.h, for who launches and waits without Python."""
