"""The prefix cache finds as much as a plain leaf-LRU that is fed the same admissions and ends: benchmarks/mooncake_cache.py on made-up
conversations."""

from __future__ import annotations

import random

import numpy as np
import pytest
from mooncake_cache import Tokens, compare


def conversations(seed: int, count: int, turns: int) -> list[Tokens]:
    """Prompts of chats that take turns: each repeats the chat so far behind one of three system prompts."""
    rng = random.Random(seed)
    system = [np.arange(100 * k, 100 * k + 60, dtype=np.int32) for k in range(3)]
    chats = [rng.choice(system) for _ in range(count)]
    prompts = []
    for _ in range(turns * count):
        i = min(int(rng.expovariate(6 / count)), count - 1)  # some chats are busier than others
        said = np.array([rng.randrange(1000, 9000) for _ in range(rng.randrange(20, 120))], dtype=np.int32)
        chats[i] = np.concatenate([chats[i], said])[-1500:]
        prompts.append(chats[i])
    return prompts


@pytest.mark.parametrize("blocks", [300, 1200, 6000])
def test_as_good_as_a_plain_leaf_lru(blocks: int) -> None:
    """Evicting what is needed again, or keeping what is not, would show in the tokens found."""
    got = compare(conversations(1, 40, 6), blocks, running=8, max_num_batched_tokens=512)
    assert got["leaf_lru"] > 0.1 * got["prompt"]
    assert abs(got["scheduler"] / got["leaf_lru"] - 1) <= 0.01
