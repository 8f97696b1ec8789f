"""The loop's count of preemptions is the sum of the reqs' own accounts, also where schedule() preempts and then launches nothing."""

from __future__ import annotations

from random import Random

import pytest

from stoker import SamplingParams
from stoker._core.loop import EngineLoop
from stoker._core.sim import FakeGroup, ScriptedExecutor
from stoker.scheduler import Req, SchedulerConfig


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_no_preemption_is_lost_from_the_count(depth: int) -> None:
    """Pools from just enough for one req on, so that preemptions fall into turns without a launch too."""
    total = 0
    for num_blocks in range(17, 24):
        config = SchedulerConfig(
            num_blocks=num_blocks,
            block_size=4,
            max_num_seqs=6,
            max_num_batched_tokens=24,
            max_model_len=64,
            admission="greedy",
        )
        device = ScriptedExecutor(
            groups=[FakeGroup(block_size=4, num_blocks=num_blocks)], overlap_depth=depth
        )
        loop, rng = EngineLoop(config, device), Random(num_blocks)
        for i in range(24):
            prompt = [rng.randrange(100) for _ in range(rng.randint(1, 30))]
            params = SamplingParams(max_tokens=rng.randint(1, 30), ignore_eos=True)
            loop.add(Req(f"r{i}", origin_input_ids=prompt, sampling_params=params))
        in_accounts = 0
        while loop.has_unfinished():
            loop.turn()
            in_accounts += int(sum(loop.poll().num_preemptions))
        while loop.turn():
            pass
        assert loop.stats().num_preemptions == in_accounts
        total += in_accounts
    assert total > 0
