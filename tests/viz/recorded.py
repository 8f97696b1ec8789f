"""Runs of the scripted executor as traces, for the tests of pictures."""

from __future__ import annotations

from functools import cache
from random import Random

from stoker import SamplingParams
from stoker._core.loop import EngineLoop
from stoker._core.sim import FakeGroup, ScriptedExecutor
from stoker.scheduler import Req, SchedulerConfig
from stoker.viz import Trace, recording


@cache
def recorded(
    batching: str = "continuous", *, num_blocks: int = 40, num_reqs: int = 10, num_host_blocks: int = 0
) -> Trace:
    """Prompts of 1 to 30 tokens and answers of 1 to 30 on 4 seats."""
    config = SchedulerConfig(
        num_blocks=num_blocks,
        block_size=4,
        max_num_seqs=4,
        max_num_batched_tokens=16,
        max_model_len=64,
        admission="greedy",
        batching=batching,
        num_host_blocks=num_host_blocks,
        preemption="swap" if num_host_blocks else "retract",
    )
    device = ScriptedExecutor(
        groups=[FakeGroup(block_size=4, num_blocks=num_blocks, num_host_blocks=num_host_blocks)],
        overlap_depth=1,
        eos=7,
        eos_per_mille=30,
    )
    loop, rng = EngineLoop(config, device), Random(5)
    with recording(loop, model="scripted") as out:
        for i in range(num_reqs):
            prompt = [rng.randrange(100) for _ in range(rng.randint(1, 30))]
            params = SamplingParams(max_tokens=rng.randint(1, 30), stop_token_ids=[7])
            loop.add(Req(f"r{i}", origin_input_ids=prompt, sampling_params=params))
        while loop.has_unfinished():
            loop.turn()
            loop.poll()
    return out.trace
