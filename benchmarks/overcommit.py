"""Over-commit must not collapse: workload W2 under a cost model, with KV for half of what the unlimited run needs at its peak.

`cd benchmarks && python overcommit.py` prints, for each admission, with retraction and with swap, and for `max_tokens` as true lengths and ten times
too large, the total time relative to the oracle (the same scheduler told the true lengths, exact-peak admission) and the share of tokens computed
twice. The engine loop runs on the simulated executor in virtual time (csrc/sim): step = max(5 ms, 25 us x tokens) + 0.03 us x context tokens read;
swap: 131,072 bytes a token at 55 GB/s, and a step is not over before its copies are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from workloads import BLOCK, w2_lengths

from stoker._core.sim import CostModel, Simulation, Workload
from stoker.scheduler import KVGroup, SchedulerConfig

BLOCK_BYTES = 131_072 * BLOCK
COST = CostModel(step=0, weights=5e6, token=25e3, decode_kv=30, chunk_kv=30, host_copy=BLOCK_BYTES / 55)


@dataclass(frozen=True)
class Outcome:
    seconds: float
    twice: float  # share of the tokens computed
    preemptions: int
    peak: int  # blocks


def simulate(blocks: int, factor: int = 1, **options: Any) -> Outcome:
    prompts, outputs = map(np.array, zip(*w2_lengths(), strict=True))
    group = KVGroup(
        block_size=BLOCK, num_blocks=blocks, num_host_blocks=4 * blocks, bytes_per_block=BLOCK_BYTES
    )
    run = Simulation(
        scheduler=SchedulerConfig(
            kv_groups=[group],
            max_num_seqs=256,
            max_num_batched_tokens=8192,
            max_model_len=16384,
            **options,
        ),
        cost=COST,
        workload=Workload(
            times=np.zeros(len(prompts), np.int64),
            prompt_lens=prompts,
            answer_lens=outputs,
            max_tokens=outputs * factor,
        ),
        overlap_depth=0,
        record=True,
    )
    while not run.run(1 << 16):
        pass
    totals = run.totals()
    return Outcome(
        totals["end"] / 1e9,
        totals["recomputed_tokens"] / (totals["prefill_tokens"] + totals["output_tokens"]),
        totals["preemptions"],
        max(step["used_blocks"] for step in run.take_recording()["steps"]),
    )


def main() -> None:
    peak = simulate(1 << 16, admission="greedy").peak
    blocks = peak // 2 + 1
    oracle = simulate(blocks, admission="peak").seconds
    print(f"unlimited peak {peak} blocks; {blocks} given; oracle {oracle:.2f} s")
    for factor in (1, 10):
        for admission in ("learned", "greedy", "guaranteed", "peak"):
            for preemption in ("retract", "swap", "auto"):
                o = simulate(blocks, factor, admission=admission, preemption=preemption)
                print(
                    f"max_tokens x {factor:2d} {admission:10s} {preemption:7s}: {o.seconds / oracle:.3f} of the oracle, "
                    f"{o.twice:.2%} twice, {o.preemptions} preemptions",
                    flush=True,
                )


if __name__ == "__main__":
    main()
