"""The loop's count of preemptions is the sum of the reqs' own accounts, also where schedule() preempts and then launches nothing."""

from __future__ import annotations

from random import Random

import pytest

from stoker import SamplingParams
from stoker._core.loop import EngineLoop
from stoker._core.sim import FakeGroup, ScriptedExecutor
from stoker.scheduler import KVGroup, Req, SchedulerConfig


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


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("retract", "blocks"),
        ("swap", "blocks"),
        ("retract", "priority"),
        ("swap", "priority"),
        ("retract", "failure"),
    ],
)
def test_preemptions_are_counted_by_kind_and_reason(kind: str, reason: str) -> None:
    """Each where only it can be: KV runs out, a req outranks those that run, a step fails under reqs of a shared prefix."""
    host = 64 if kind == "swap" else 0
    num_blocks = 400 if reason == "failure" else 18
    config = SchedulerConfig(
        kv_groups=[KVGroup(block_size=4, num_blocks=num_blocks, num_host_blocks=host, bytes_per_block=64)],
        preemption=kind,
        schedule_policy="priority" if reason == "priority" else "fcfs",
        max_num_seqs=2 if reason == "priority" else 6,
        max_num_batched_tokens=64,
        max_model_len=64,
        admission="greedy",
    )
    device = ScriptedExecutor(
        groups=[FakeGroup(block_size=4, num_blocks=num_blocks, num_host_blocks=host)],
        overlap_depth=1,
        failing_steps=[1] if reason == "failure" else [],
    )
    loop, rng = EngineLoop(config, device), Random(1)
    shared = [rng.randrange(100) for _ in range(40)]
    for i in range(24):
        prompt = [*(shared if reason == "failure" else shared[: rng.randint(1, 12)]), i]
        params = SamplingParams(max_tokens=rng.randint(4, 20), ignore_eos=True)
        rank = -i if reason == "priority" else 0
        loop.add(Req(f"r{i}", origin_input_ids=prompt, sampling_params=params, priority=rank))
        loop.turn()
    while loop.turn() or loop.has_unfinished():
        pass
    stats = loop.stats()
    assert stats.preemptions[kind, reason] > 0
    assert sum(stats.preemptions.values()) == stats.num_preemptions
    if host == 0:
        assert stats.preemptions["swap", "blocks"] == stats.preemptions["swap", "priority"] == 0
    if reason == "blocks":
        assert stats.preemptions[kind, "priority"] == stats.preemptions[kind, "failure"] == 0
