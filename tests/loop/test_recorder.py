"""The recorder tells of every row, token, preemption and end, as the loop's own accounts have them."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from stoker import SamplingParams
from stoker._core.loop import EngineLoop
from stoker._core.sim import FakeGroup, ScriptedExecutor
from stoker.scheduler import Req, SchedulerConfig


def run(depth: int, *, record: bool = True, max_rows: int = 1 << 20) -> tuple[EngineLoop, dict[str, Any]]:
    """24 reqs through a pool so small that some are retracted."""
    config = SchedulerConfig(
        num_blocks=24,
        block_size=4,
        max_num_seqs=6,
        max_num_batched_tokens=24,
        max_model_len=64,
        admission="greedy",
    )
    device = ScriptedExecutor(groups=[FakeGroup(block_size=4, num_blocks=24)], overlap_depth=depth)
    loop, rng = EngineLoop(config, device), Random(3)
    if record:
        loop.start_recording(max_rows)
    for i in range(24):
        prompt = [rng.randrange(100) for _ in range(rng.randint(1, 30))]
        loop.add(
            Req(
                f"r{i}",
                origin_input_ids=prompt,
                sampling_params=SamplingParams(max_tokens=rng.randint(1, 30), ignore_eos=True),
            )
        )
    outputs: Counter[int] = Counter()
    while loop.has_unfinished():
        loop.turn()
        for key in loop.poll().token_keys:
            outputs[int(key)] += 1
    taken = loop.take_recording()
    taken["outputs"] = outputs
    return loop, taken


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_what_is_recorded_adds_up(depth: int) -> None:
    """Rows sum to each step's tokens, tokens to each answer's length, and every req comes once and ends once."""
    loop, recorded = run(depth)
    steps = {step["batch_id"]: step for step in recorded["steps"]}
    assert len(steps) == loop.stats().num_steps
    tokens: Counter[int] = Counter()
    decodes: Counter[int] = Counter()
    for batch_id, _, seat, num_tokens, kv_len, is_decode in recorded["rows"]:
        assert 1 <= seat <= 6
        assert 1 <= num_tokens <= kv_len
        tokens[batch_id] += num_tokens
        decodes[batch_id] += is_decode
    for batch_id, step in steps.items():
        assert (tokens[batch_id], decodes[batch_id]) == (step["num_tokens"], step["num_decode_rows"])
    told: Counter[int] = Counter()
    for _, key, count in recorded["tokens"]:
        told[key] += count
    assert told == recorded["outputs"]
    assert sorted(key for key, *_ in recorded["reqs"]) == list(range(24))
    assert {end[1]: end[3] for end in recorded["ends"]} == dict(told)
    assert len(recorded["ends"]) == 24
    retracted = Counter(change[2] for change in recorded["changes"] if change[3] == "retracted")
    assert sum(retracted.values()) > 0
    assert set(retracted) == {end[1] for end in recorded["ends"] if end[4] > 0}
    waits = {change[4] for change in recorded["changes"] if change[3] == "waiting"}
    assert {"seats", "blocks", "token_budget"} & waits


def test_off_records_nothing_and_changes_nothing() -> None:
    """Tokens and steps are the same whether somebody records or not."""
    loop, recorded = run(1, record=False)
    assert not any(recorded[name] for name in ("steps", "rows", "tokens", "changes", "reqs", "ends"))
    other, again = run(1)
    assert recorded["outputs"] == again["outputs"]
    assert loop.stats().num_steps == other.stats().num_steps


def test_a_full_recording_counts_what_it_drops() -> None:
    """No step is kept in part."""
    loop, recorded = run(1, max_rows=20)
    assert recorded["dropped_steps"] == loop.stats().num_steps - len(recorded["steps"]) > 0
    by_step = Counter(row[0] for row in recorded["rows"])
    for step in recorded["steps"]:
        rows = step["num_decode_rows"] + step["num_prefill_rows"]
        assert by_step[step["batch_id"]] == rows
