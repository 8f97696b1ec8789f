"""The event log: running it again reaches the same batches, byte for byte; redacted it holds no token and no name and replays the same."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import numpy as np
import pytest

from stoker.scheduler import (
    KVGroup,
    Req,
    SamplingParams,
    Scheduler,
    SchedulerConfig,
    StepResult,
    redact,
    replay,
)
from support.toy_executor import EOS, ToyExecutor, random_reqs


def record(seed: int, **options: Any) -> tuple[bytes, int]:
    """A busy run with aborts, pauses and flushes; its log and its number of steps."""
    rng = random.Random(seed)
    config = SchedulerConfig(
        **{
            "num_blocks": 26,
            "block_size": 4,
            "max_num_seqs": 5,
            "max_num_batched_tokens": 20,
            "eos_token_ids": [EOS],
            "overlap_depth": 1,
            "admission": "greedy",
            **options,
        }
    )
    s = Scheduler(config)
    s.start_log()
    device = ToyExecutor(config)
    reqs = random_reqs(seed, 20, cache_salt="secret", tenant="acme")
    steps = turn = 0
    while reqs or s.has_unfinished() or device.flight:
        while reqs and rng.random() < 0.5:
            s.add(reqs.pop(), now=turn)
        if rng.random() < 0.05:
            s.abort(f"r{rng.randrange(20)}", now=turn)
        if rng.random() < 0.05:
            s.flush_cache()
        if (batch := s.schedule(now=turn)) is not None:
            device.launch(batch)
            steps += 1
        if device.flight and (batch is None or len(device.flight) > 1):
            batch_id, tokens, tickets = device.collect()
            result = StepResult()
            result.token_ids = np.asarray(tokens, dtype=np.int32)
            result.finished_transfers = np.asarray(tickets, dtype=np.int64)
            s.commit(batch_id, result, now=turn)
            if rng.random() < 0.05:
                s.set_rates(rng.uniform(1e3, 1e5), rng.uniform(0.01, 1))
        turn += 1
    return s.log(), steps


@pytest.mark.parametrize("policy", ["fcfs", "lpm", "hrrn", "random", "fair", "dfs-weight"])
def test_replays_the_same(policy: str) -> None:
    """Decisions follow from state, events and seed alone."""
    log, steps = record(1, schedule_policy=policy)
    report = replay(log)
    assert (report.num_steps, report.first_difference, report.what) == (steps, 0, "")


def test_news_taken_between_commits_replay_the_same() -> None:
    """Handles of ended reqs go to others when their end was told, which the loop may ask for between commits too: they
    are in the seat changes, so a replay has to give out the same ones."""
    s = Scheduler(SchedulerConfig(num_blocks=20, block_size=4, max_num_seqs=4, max_num_batched_tokens=16))
    s.start_log()
    for i in range(6):
        s.add(Req(f"r{i}", [1, 2, 3 + i], SamplingParams(max_tokens=1 + i % 2)))
        batch = s.schedule()
        assert batch is not None
        s.commit(batch, [5] * batch.num_sampled_rows)
        for _ in range(i % 3):
            s.take_events()
    report = replay(s.log())
    assert (report.num_steps, report.first_difference, report.what) == (6, 0, "")


@pytest.mark.parametrize("preemption", ["auto", "swap"])
def test_swaps_replay_the_same(preemption: str) -> None:
    """Rates and returned tickets are events: the choice between recompute and swap is made again as it was."""
    group = KVGroup(block_size=4, num_blocks=20, num_host_blocks=30, bytes_per_block=400_000)
    log, steps = record(1, kv_groups=[group], preemption=preemption)
    for written in (log, redact(log)):
        report = replay(written)
        assert (report.num_steps, report.first_difference, report.what) == (steps, 0, "")


def test_redacted_log_replays_and_tells_nothing() -> None:
    """Tokens, rids, salts and tenants are renumbered; the decisions stay."""
    log, steps = record(2)
    clean = redact(log)
    report = replay(clean)
    assert (report.num_steps, report.first_difference) == (steps, 0)
    for word in (b"secret", b"acme"):
        assert word in log
        assert word not in clean
    assert redact(clean) == clean
    s = Scheduler(SchedulerConfig(num_blocks=20, max_num_seqs=4))
    s.start_log()
    s.add(Req("a", [1234567, 7654321], SamplingParams(max_tokens=3)))
    s.commit(s.schedule(), [2345678])
    for token in (1234567, 7654321, 2345678):
        assert token.to_bytes(4, "little") in s.log()
        assert token.to_bytes(4, "little") not in redact(s.log())


def test_a_different_decision_is_seen() -> None:
    """A log whose events were changed does not pass for the same run."""
    s = Scheduler(SchedulerConfig(num_blocks=20, block_size=4, max_num_seqs=4, max_num_batched_tokens=16))
    s.start_log()
    s.add(Req("a", [1234567, 2, 3], SamplingParams(max_tokens=3)))
    while (batch := s.schedule()) is not None:
        s.commit(batch, [5])
    log = s.log()
    changed = log.replace((1234567).to_bytes(4, "little"), (1234568).to_bytes(4, "little"))
    assert replay(changed).first_difference == 1
    assert replay(log).first_difference == 0


def test_broken_logs_are_refused() -> None:
    """A log may come from anywhere: cut off or scribbled over it is a ValueError, never a crash."""
    log, _ = record(3)
    with pytest.raises(ValueError, match="no event log"):
        replay(b"hello")
    rng = random.Random(0)
    for _ in range(150):
        broken = bytearray(log[: rng.randrange(20, len(log))])
        for _ in range(rng.randrange(3)):
            broken[rng.randrange(16, len(broken))] = rng.randrange(256)
        with contextlib.suppress(ValueError):
            replay(bytes(broken))


@pytest.mark.parametrize("field", ["priority", "policy_key"])
def test_a_req_that_no_order_can_place_is_refused(field: str) -> None:
    """NaN is neither before nor after anything: in the ordered queue it would break the order of all others."""
    s = Scheduler(SchedulerConfig(num_blocks=20, max_num_seqs=4, schedule_policy="key"), key=lambda r: nan)
    nan = float("nan")
    r = Req("a", [1, 2], SamplingParams(max_tokens=2), priority=nan if field == "priority" else 0)
    with pytest.raises(ValueError, match="finite"):
        s.add(r)


def test_a_cut_or_changed_log_is_refused_or_told_apart() -> None:
    """A log comes from anywhere: whatever was cut off or changed, replay() ends with a report or a ValueError."""
    log, _ = record(3)
    rng = random.Random(0)
    for _ in range(60):
        data = bytearray(log[: rng.randrange(len(log))] if rng.random() < 0.3 else log)
        for _ in range(rng.choice([0, 1, 1, 3])):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        with contextlib.suppress(ValueError):
            replay(bytes(data), check=True)


@pytest.mark.parametrize("event", ["abort", "fail"])
def test_an_impossible_time_is_refused(event: str) -> None:
    """Times of a log are bounded, so that sums of them stay numbers: of failures too."""
    s = Scheduler(SchedulerConfig(num_blocks=20, max_num_seqs=4))
    s.start_log()
    s.add(Req("a", [1, 2], SamplingParams(max_tokens=2)))
    if event == "abort":
        s.abort("a", now=2**62)
    else:
        s.fail("a", "why", now=2**62)
    with pytest.raises(ValueError, match="impossible time"):
        replay(s.log())
