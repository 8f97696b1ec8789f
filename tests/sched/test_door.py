"""The checks at the door, the binding's errors, and what is told: each bad input is a ValueError that says what was given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stoker.scheduler import KVGroup, Req, SamplingParams, Scheduler, SchedulerConfig, StepResult


def make(**options: Any) -> Scheduler:
    return Scheduler(
        SchedulerConfig(
            **{"num_blocks": 20, "block_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 16, **options}
        )
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_blocks": 1}, "num_blocks must be at least 2, not 1"),
        ({"block_size": 0}, "block_size must be at least 1"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1"),
        ({"max_num_batched_tokens": 3}, "must be at least max_num_seqs"),
        ({"overlap_depth": 9}, "overlap_depth must be 0 to"),
        ({"kv_groups": [KVGroup(kind="state", num_blocks=4)]}, "not built yet"),
        ({"schedule_policy": "best"}, "schedule_policy must be one of fcfs, lpm"),
        ({"admission": "x"}, "admission must be one of learned"),
        ({"max_model_len": 1}, "max_model_len"),
    ],
)
def test_bad_config(options: dict[str, Any], words: str) -> None:
    """A configuration that cannot work is refused with the numbers."""
    with pytest.raises(ValueError, match=words):
        make(**options)


def test_unknown_field() -> None:
    """A misspelt option is an error, never ignored."""
    with pytest.raises(TypeError, match="has no field 'num_block'"):
        SchedulerConfig(num_block=3)


@pytest.mark.parametrize(
    "ids", [[1, -2], ["a"], "abc", [1.5], np.zeros((2, 2), dtype=np.int32), np.zeros(2), [2**40]]
)
def test_bad_tokens(ids: Any) -> None:
    """Token ids are non-negative integers in one dimension."""
    with pytest.raises(ValueError, match=r"token id|origin_input_ids"):
        Req("a", ids)


def test_vocabulary_and_queue_limits() -> None:
    """Token ids outside the vocabulary and a full queue are refused."""
    s = make(vocab_size=10, max_queued_reqs=1)
    with pytest.raises(ValueError, match="token id 10 is outside the vocabulary of 10"):
        s.add(Req("a", [1, 10]))
    s.add(Req("a", [1, 9]))
    with pytest.raises(ValueError, match="queue is full"):
        s.add(Req("b", [1]))


def test_refused_req_leaves_no_trace() -> None:
    """A refused req can be mended and added again; a req is added once."""
    s = make(num_blocks=3, max_model_len=100)
    with pytest.raises(ValueError, match="can never fit"):
        s.add(Req("a", [1] * 8, SamplingParams(max_tokens=8)))
    r = Req("a", [1] * 3, SamplingParams(max_tokens=2))
    s.add(r)
    with pytest.raises(ValueError, match="was added before"):
        s.add(r)
    s.check_integrity()


def test_commit_checks_what_it_gets() -> None:
    """Steps come back in order, with one token for each sampled row."""
    s = make(overlap_depth=1)
    s.add(Req("a", [1, 2, 3], SamplingParams(max_tokens=9)))
    first, second = s.schedule(), s.schedule()
    assert first is not None
    assert second is not None
    with pytest.raises(ValueError, match="not the oldest step in flight"):
        s.commit(second, [1])
    with pytest.raises(ValueError, match="takes 1 tokens"):
        s.commit(first, [1, 2])
    with pytest.raises(ValueError, match="are in flight already"):
        s.schedule()
    s.commit(first, [4])
    s.check_integrity()


def test_token_from_outside_the_vocabulary() -> None:
    """A row that failed, or gave an impossible token, ends its own req only."""
    s = make(vocab_size=50)
    for name in "abc":
        s.add(Req(name, [1, 2, 3], SamplingParams(max_tokens=9)))
    batch = s.schedule()
    result = StepResult()
    result.token_ids = np.array([5, 60, 6], dtype=np.int32)
    result.row_status = [0, 0, 1]
    events = s.commit(batch, result)
    assert [(r.rid, r.finish_reason) for r in events.ended] == [("b", "error"), ("c", "error")]
    assert s.num_running == 1
    s.check_integrity()


def test_several_tokens_a_row() -> None:
    """A row may bring none or several tokens: the length is cut at the limit and the rest goes on from there."""
    s = make()
    s.add(Req("a", [1, 2, 3], SamplingParams(max_tokens=6)))
    a = s.find("a")
    assert a is not None
    for indptr, tokens in (([0, 3], [7, 8, 9]), ([0, 0], []), ([0, 5], [1, 2, 3, 4, 5])):
        result = StepResult()
        batch = s.schedule()
        assert batch is not None
        result.row_indptr, result.token_ids = np.array(indptr, np.int32), np.array(tokens, np.int32)
        s.commit(batch, result)
        s.check_integrity()
    assert a.output_ids == [7, 8, 9, 1, 2, 3]
    assert a.finish_reason == "length"


def test_scores_and_pools() -> None:
    """Prompt logprobs ask for every prompt token but the first, over chunks; an embedding ends with its pooled row."""
    s = make(max_num_batched_tokens=6)
    s.add(Req("a", list(range(10, 20)), SamplingParams(max_tokens=1, prompt_logprobs=0)))
    positions: list[int] = []
    while (batch := s.schedule()) is not None:
        targets = batch.out_target.tolist()
        result = StepResult()
        result.token_ids = np.full(batch.num_sampled_rows, 3, np.int32)
        events = s.commit(batch, result)
        positions += events.score_positions.tolist()
        assert [t for t in targets if t >= 0] == [10 + p for p in events.score_positions.tolist()]
    assert positions == list(range(1, 10))
    s.add(Req("e", [1, 2, 3], pool=True))
    batch = s.schedule()
    assert batch is not None
    assert batch.out_kind.tolist() == [2]
    events = s.commit(batch, [])
    assert events.pooled_reqs.size == 1
    assert events.ended[0].rid == "e"
    s.check_integrity()


def test_fatal_step_ends_everything() -> None:
    """When the device is lost every req ends with an error, once, and nothing is scheduled any more."""
    s = make()
    for name in "abcdef":
        s.add(Req(name, [1, 2, 3], SamplingParams(max_tokens=9)))
    batch = s.schedule()
    result = StepResult()
    result.status, result.message = "fatal", "lost"
    events = s.commit(batch, result)
    assert sorted(r.rid for r in events.ended) == list("abcdef")
    assert {r.error for r in events.ended} == {"lost"}
    assert s.schedule() is None


def test_events_of_idle_aborts() -> None:
    """An abort while nothing is in flight is told by take_events(), and told once."""
    s = make()
    s.add(Req("a", [1, 2, 3]))
    assert s.abort("a")
    assert not s.abort("a")
    assert [r.rid for r in s.take_events().ended] == ["a"]
    assert len(s.take_events()) == 0


def test_account_and_explain() -> None:
    """Each req carries its account; a waiting one its reason."""
    s = make(max_num_seqs=1)
    s.add(Req("a", [1] * 20, SamplingParams(max_tokens=3)), now=10)
    s.add(Req("b", [2] * 3, SamplingParams(max_tokens=3)), now=11)
    a, b = s.find("a"), s.find("b")
    assert a is not None
    assert b is not None
    now = 20
    while (batch := s.schedule(now=now)) is not None:
        if not a.finished and a.num_outputs:
            assert s.explain(b).code == "seats"
        s.commit(batch, [5] * batch.num_sampled_rows, now=now + 5)
        now += 10
    assert (a.account.prefill_steps, a.account.decode_steps, a.account.prefill_tokens) == (2, 2, 20)
    assert (a.account.arrival_time, a.account.first_scheduled_time, a.account.first_token_time) == (
        10,
        20,
        35,
    )
    assert a.account.finish_time == 55
    assert b.account.queue_time == 60 - 11


def test_key_function() -> None:
    """The policy `key` asks the user's function when a req comes and on invalidate()."""
    keys = {"a": 3.0, "b": 2.0, "c": 1.0}
    asked: list[str] = []

    def key(r: Req) -> float:
        asked.append(r.rid)
        return keys[r.rid]

    s = Scheduler(
        SchedulerConfig(
            num_blocks=20, block_size=4, max_num_seqs=1, max_num_batched_tokens=16, schedule_policy="key"
        ),
        key=key,
    )
    for name in "abc":
        s.add(Req(name, [1, 2, 3], SamplingParams(max_tokens=1)))
    assert asked == ["a", "b", "c"]
    batch = s.schedule()
    assert batch is not None
    assert [r.rid for r in batch.reqs] == ["c"]
    keys["a"] = 0.0
    s.invalidate()
    s.commit(batch, [1])
    batch = s.schedule()
    assert batch is not None
    assert [r.rid for r in batch.reqs] == ["a"]
