"""The ops of an LLM's forward step, the same list on CPU and CUDA, each usable by itself
(docs/interfaces.md).
"""

from stoker.ops.functions import (
    add_rms_norm,
    copy_blocks,
    gather_tokens,
    gelu_and_mul,
    linear,
    paged_attention,
    quantize_rows,
    rms_norm,
    rope_and_cache,
    sample,
    silu_and_mul,
    swap_blocks,
)
from stoker.ops.seat_table import SEAT_CHANGE, LogprobBuffers, SeatTable

__all__ = [
    "SEAT_CHANGE",
    "LogprobBuffers",
    "SeatTable",
    "add_rms_norm",
    "copy_blocks",
    "gather_tokens",
    "gelu_and_mul",
    "linear",
    "paged_attention",
    "quantize_rows",
    "rms_norm",
    "rope_and_cache",
    "sample",
    "silu_and_mul",
    "swap_blocks",
]
