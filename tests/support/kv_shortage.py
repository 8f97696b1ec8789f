"""Engines that have too little KV for what they run, so that reqs step aside."""

from __future__ import annotations

from typing import Any


def short_of_kv(num_kv_blocks: int, *, swap: bool = False) -> dict[str, Any]:
    """Options of an engine that admits greedily and then retracts, or moves KV to the host and back."""
    options: dict[str, Any] = {"num_kv_blocks": num_kv_blocks, "admission": "greedy"}
    return options | ({"preemption": "swap", "swap_space": 0.02} if swap else {})
