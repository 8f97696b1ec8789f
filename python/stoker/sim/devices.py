"""The devices that `--device` knows: what they can do at most, and how much of it an engine's step gets out.

Peaks are the makers' figures (dense bf16, fp32 accumulation; SXM versions of the data-centre cards). What a step gets out of
them was measured on an H200 only, with this engine (benchmarks/results/simulator.md); the other GPUs carry its shares over and
have not been measured. The CPU is the 2-core machine of the project's own CPU figures; for another one, fit a model to a trace.
"""

from __future__ import annotations

from typing import NamedTuple


class DeviceRow(NamedTuple):
    """One line of the table."""

    tflops: float
    """Peak of matrix products, TFLOP/s."""
    gb_per_s: float
    """Peak of memory."""
    memory_gib: float
    host_gb_per_s: float
    """To and from host memory."""
    flops_share: float
    """Of the peak, in linear layers of many tokens."""
    attention_share: float
    """Of the peak, in prefill attention."""
    bytes_share: float
    """Of memory's peak, reading weights and KV."""
    step_us: float
    """A step, whatever it holds: launch, sampler, the results' way back."""
    layer_us: float
    """A layer, whatever the step holds: norms, rotary, small launches."""
    row_us: float
    """Each row in a layer: what attention needs for a request besides reading its KV."""


# fmt: off
DEVICES: dict[str, DeviceRow] = {
    #                TFLOP/s   GB/s    GiB  host  flops  attn  bytes  step  layer   row
    "h200": DeviceRow(  989,   4800, 139.8,  55,  0.64,  0.50,  0.85,   40,  17,  0.15),
    "h100": DeviceRow(  989,   3350,  79.1,  55,  0.64,  0.50,  0.85,   40,  17,  0.15),
    "a100": DeviceRow(  312,   2039,  79.2,  25,  0.64,  0.50,  0.85,   40,  17,  0.15),
    "l40s": DeviceRow(  362,    864,  44.4,  25,  0.64,  0.50,  0.85,   40,  17,  0.15),
    "4090": DeviceRow(  165,   1008,  23.6,  25,  0.64,  0.50,  0.85,   40,  17,  0.15),
    "cpu":  DeviceRow(0.436,     40,  16.0,  10,  0.80,  0.30,  0.80,  300,  60,  0.00),
}
# fmt: on
