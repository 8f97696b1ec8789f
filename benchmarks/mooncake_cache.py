"""The prefix cache on real traffic: tokens found in it, beside a plain leaf-LRU that is fed the same admissions and ends.

    python benchmarks/mooncake_cache.py mooncake_conversation.jsonl [--reqs 2000] [--blocks 20000,100000,500000]

The trace is Mooncake's (FAST '25, conversation_trace.jsonl): each hash id stands for 512 tokens, drawn from a generator seeded with it. Reqs arrive
in file order, all before the first step; 64 run at most; each gets 2 output tokens. Nothing but the scheduler runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from leaf_lru import LeafLru
from workloads import BLOCK

from stoker.scheduler import Req, SamplingParams, Scheduler, SchedulerConfig

Tokens = npt.NDArray[np.int32]
CHUNK = 512


def read(path: Path, count: int) -> list[Tokens]:
    """The prompts of the first `count` rows."""
    chunks: dict[int, Tokens] = {}
    prompts = []
    with path.open(encoding="utf-8") as lines:
        for line, _ in zip(lines, range(count), strict=False):
            row = json.loads(line)
            for i in row["hash_ids"]:
                if i not in chunks:
                    chunks[i] = np.random.default_rng(i).integers(10, 128_000, CHUNK, dtype=np.int32)
            prompts.append(np.concatenate([chunks[i] for i in row["hash_ids"]])[: row["input_length"]])
    return prompts


def compare(prompts: Iterable[Tokens], blocks: int, running: int = 64, **options: Any) -> dict[str, int]:
    """Cached tokens of both, in all."""
    prompts = list(prompts)
    longest = max(len(p) for p in prompts)
    options = {"max_num_batched_tokens": 8192, "max_model_len": longest + 16, **options}
    s = Scheduler(SchedulerConfig(num_blocks=blocks + 1, block_size=BLOCK, max_num_seqs=running, **options))
    reqs = [Req(str(i), p, SamplingParams(max_tokens=2, ignore_eos=True)) for i, p in enumerate(prompts)]
    for r in reqs:
        s.add(r)
    by_handle = {r.id: i for i, r in enumerate(reqs)}
    model, paths = LeafLru(blocks), {}
    found = steps = retracted = 0
    sampled = [np.full(n, 5, dtype=np.int32) for n in range(running + 1)]
    while (batch := s.schedule()) is not None:
        steps += 1
        retracted += s.last_stats.num_preempted
        for handle in batch.seat_changes["req"].tolist():
            i = by_handle[handle]
            if i in paths:  # it was preempted: its own work is no hit
                continue
            ids = prompts[i]
            full = ids[: len(ids) // BLOCK * BLOCK].reshape(-1, BLOCK)
            matched, paths[i] = model.admit([hash(b.tobytes()) for b in full], (len(ids) - 1) // BLOCK)
            found += matched * BLOCK
        for ended in s.commit(batch, sampled[batch.num_sampled_rows]).ended:
            model.end(paths[int(ended.rid)])
    assert all(r.finished for r in reqs)
    return {
        "prompt": sum(len(p) for p in prompts),
        "scheduler": sum(r.account.cached_tokens for r in reqs),
        "leaf_lru": found,
        "steps": steps,
        "preempted": retracted,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path)
    parser.add_argument("--reqs", type=int, default=2000)
    parser.add_argument("--blocks", default="20000,100000,500000")
    args = parser.parse_args()
    prompts = read(args.trace, args.reqs)
    print(
        "| blocks | prompt tokens | cached | leaf-LRU | ratio | steps | preempted |\n| --- "
        + "| --- " * 6
        + "|"
    )
    for blocks in map(int, args.blocks.split(",")):
        got = compare(prompts, blocks)
        print(
            f"| {blocks:,} | {got['prompt']:,} | {got['scheduler']:,} | {got['leaf_lru']:,} | "
            f"{got['scheduler'] / max(got['leaf_lru'], 1):.4f} | {got['steps']:,} | {got['preempted']} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
