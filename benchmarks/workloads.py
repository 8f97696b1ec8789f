"""The workloads that the peers' schedulers were measured on (block 16, 8,192 tokens a step, no EOS, all arrive before the first step),
and the cost model under which whole runs are compared.

W1: N reqs decode steadily, prompt 1,024, output 900. W2: 2,000 reqs of log-uniform lengths, 256 running, 131,072 KV tokens. W3: 2,000 reqs,
1,024 tokens of one of 20 shared prefixes and 128 of their own, output 64. W4: 20,000 reqs of 512 tokens, 256 running, 524,288 KV tokens.
"""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import numpy.typing as npt

from stoker.scheduler import AttentionGeometry, Req, SamplingParams, Scheduler, SchedulerConfig

Tokens = npt.NDArray[np.int32]
BLOCK = 16
# What an H200 asks for, for 32 query heads over 8 KV heads of 128: two blocks of threads a multiprocessor.
ATTENTION = AttentionGeometry(
    num_decode_heads=8,
    num_kv_heads=8,
    num_decode_workers=264,
    prefill_tile_tokens=32,
    num_prefill_workers=132,
)


def prompt(stream: int, length: int, begin: int = 0) -> Tokens:
    """Tokens [begin, begin + length) of a stream."""
    with np.errstate(over="ignore"):
        j = np.arange(begin, begin + length, dtype=np.uint64)
        z = (
            np.uint64(stream * 0x9E3779B97F4A7C15 % 2**64)
            + j * np.uint64(0xD1B54A32D192ED03)
            + np.uint64(0x632BE59BD9B4E019)
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        return (np.uint64(10) + z % np.uint64(127990)).astype(np.int32)


def outputs(length: int) -> Tokens:
    """Sampled tokens: what they are does not matter here, except that none ends a req."""
    return (np.arange(length, dtype=np.int64) * 104729 % 127990 + 10).astype(np.int32)


def scheduler(kv_tokens: int, seats: int, *, key: Any = None, **options: Any) -> Scheduler:
    options = {"max_num_batched_tokens": 8192, "attention": ATTENTION, **options}
    config = SchedulerConfig(
        num_blocks=kv_tokens // BLOCK + 1, block_size=BLOCK, max_num_seqs=seats, **options
    )
    return Scheduler(config, key=key)


def req(name: str, ids: Tokens, max_tokens: int, **fields: Any) -> Req:
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0.0)
    return Req(name, ids, params, **fields)


def w1(n: int) -> list[Req]:
    return [req(str(i), prompt(i, 1024), 900) for i in range(n)]


def w2_lengths() -> list[tuple[int, int]]:
    """(prompt tokens, output tokens) of each req."""
    rng = random.Random(0)
    return [
        (
            round(math.exp(rng.uniform(math.log(32), math.log(2048)))),
            round(math.exp(rng.uniform(math.log(16), math.log(512)))),
        )
        for _ in range(2000)
    ]


def w2() -> list[Req]:
    return [req(str(i), prompt(i, p), o) for i, (p, o) in enumerate(w2_lengths())]


def w3() -> list[Req]:
    shared = [prompt(1000000 + i, 1024) for i in range(20)]
    return [req(str(i), np.concatenate([shared[i % 20], prompt(i, 128)]), 64) for i in range(2000)]


def w4(count: int = 20000) -> list[Req]:
    rng = random.Random(4)
    return [
        req(f"w{i}", prompt(i, 512), round(math.exp(rng.uniform(math.log(16), math.log(512)))))
        for i in range(count)
    ]


def step_seconds(batch: Any) -> float:
    """The cost model: max(5 ms, 25 us a token) + 0.03 us a token of context that is read."""
    return max(5e-3, 25e-6 * batch.num_tokens) + 0.03e-6 * int(batch.row_kv_len.sum())
