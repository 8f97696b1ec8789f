"""Requests that make a scheduler do much in one step."""

from __future__ import annotations

import random

_ADMITTED_AT_ONCE = 128  # reqs, in a step


def entering_a_block_together(count: int, block_size: int = 16) -> list[list[int]]:
    """Prompts of `count` reqs, added together to an engine with as many seats, that all enter their second block in the same
    step: those admitted a step later are a token longer.
    """
    draw = random.Random(count)
    steps = -(-count // _ADMITTED_AT_ONCE)
    return [
        [draw.randrange(3, 900) for _ in range(block_size - 2 - steps + i // _ADMITTED_AT_ONCE)]
        for i in range(count)
    ]
