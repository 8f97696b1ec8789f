"""Who goes first, who steps aside, and who may enter: each policy, victim rule, admission estimate and split does what its name says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stoker.scheduler import Req, SamplingParams, Scheduler, SchedulerConfig

Prompt = list[int]


def stream(first: int, length: int) -> Prompt:
    return list(range(1000 * first, 1000 * first + length))


def make(key: Any = None, **options: Any) -> Scheduler:
    values = {"num_blocks": 200, "block_size": 4, "max_num_seqs": 1, "max_num_batched_tokens": 64}
    return Scheduler(SchedulerConfig(**{**values, **options}), key=key)


def add(s: Scheduler, rid: str, prompt: Prompt, max_tokens: int = 2, now: int = 0, **fields: Any) -> None:
    s.add(Req(rid, prompt, SamplingParams(max_tokens=max_tokens, ignore_eos=True), **fields), now=now)


def step(s: Scheduler, now: int = 0) -> list[str]:
    """One step; the reqs that took a seat in it."""
    batch = s.schedule(now=now)
    if batch is None:
        return []
    entered = [s.req(handle) for handle in batch.seat_changes["req"].tolist()]
    s.commit(batch, np.full(batch.num_sampled_rows, 7, dtype=np.int32), now=now)
    return [r.rid for r in entered if r is not None]


def order(s: Scheduler, now: int = 0) -> list[str]:
    """In which order the reqs take the one seat."""
    seen: list[str] = []
    while s.has_unfinished():
        seen += step(s, now)
    return seen


def test_sjf_and_lof() -> None:
    """Shortest declared answer first; longest first."""
    for policy, want in (("sjf", ["b", "c", "a"]), ("lof", ["a", "c", "b"])):
        s = make(schedule_policy=policy)
        for rid, length in (("a", 9), ("b", 2), ("c", 5)):
            add(s, rid, stream(ord(rid), 6), length)
        assert order(s) == want, policy


def test_lpm() -> None:
    """The longest cached prefix first."""
    s = make(schedule_policy="lpm")
    add(s, "seed", stream(1, 40))
    order(s)
    add(s, "none", stream(2, 40))
    add(s, "half", stream(1, 20) + stream(3, 20))
    add(s, "most", stream(1, 36) + stream(4, 4))
    assert order(s) == ["most", "half", "none"]


def test_dfs_weight() -> None:
    """The branch that more waiting reqs hang under first, its reqs together."""
    s = make(schedule_policy="dfs-weight")
    for k in (1, 2):
        add(s, f"seed{k}", stream(k, 8))
    order(s)
    for rid, k in (("a", 1), ("b", 2), ("c", 1), ("d", 2), ("e", 2)):
        add(s, rid, stream(k, 8) + stream(ord(rid), 8))
    for _ in range(2):  # the order drifts: a few reqs are ranked anew a step
        assert s.num_waiting == 5
        s.pause(drain=True)
        s.schedule()
        s.resume()
    seen = order(s)
    assert seen[0] in "bde"
    assert "".join(sorted(seen)) == "abcde"


def test_hrrn() -> None:
    """Highest (waiting + service) / service first: a short one passes a long one that waited a little longer."""
    s = make(schedule_policy="hrrn")
    add(s, "long", stream(1, 60), 60, now=0)
    add(s, "short", stream(2, 4), 2, now=10)
    assert order(s, now=20) == ["short", "long"]


def test_priority_and_key() -> None:
    """Lower is sooner, in both; ties by arrival."""
    s = make(schedule_policy="priority")
    keyed = make(schedule_policy="key", key=lambda r: r.priority)
    for scheduler in (s, keyed):
        for rid, priority in (("a", 3), ("b", 1), ("c", 1), ("d", 2)):
            add(scheduler, rid, stream(ord(rid), 6), priority=priority)
        assert order(scheduler) == ["b", "c", "d", "a"]


def test_deadline() -> None:
    """Earliest first among those that can still be met; those without one come before what is late already."""
    s = make(schedule_policy="deadline")
    for rid, deadline in (("none", None), ("late", 5), ("far", 900), ("near", 100)):
        add(s, rid, stream(len(rid) + ord(rid[0]), 6), deadline_ttft=deadline)
    for _ in range(2):
        s.pause(drain=True)
        s.schedule(now=50)
        s.resume()
    assert order(s, now=50) == ["near", "far", "none", "late"]


def test_random_order_follows_from_the_seed() -> None:
    """Not the order of arrival, and the same again for the same seed."""
    orders = []
    for seed in (1, 1, 2):
        s = make(schedule_policy="random", seed=seed)
        for i in range(12):
            add(s, str(i), stream(i, 6))
        orders.append(order(s))
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != [str(i) for i in range(12)]


def test_fair() -> None:
    """The tenant that was served least, over its weight, is next."""
    s = make(schedule_policy="fair")
    for rid in ("a1", "a2", "a3", "b1"):
        add(s, rid, stream(ord(rid[0]) * 10 + int(rid[1]), 8), tenant=rid[0])
    assert order(s) == ["a1", "b1", "a2", "a3"]
    s = make(schedule_policy="fair")
    for rid in ("a1", "a2", "a3", "b1", "b2"):
        weight = 10.0 if rid[0] == "a" else 1.0
        add(s, rid, stream(ord(rid[0]) * 10 + int(rid[1]), 8), tenant=rid[0], tenant_weight=weight)
    assert order(s) == ["a1", "b1", "a2", "a3", "b2"]


@pytest.mark.parametrize(
    ("policy", "long", "urgent"),
    [
        ("priority", {"priority": 5}, {"priority": 0}),
        ("deadline", {}, {"deadline_ttft": 50}),
        ("deadline", {"deadline_ttft": 90}, {"deadline_ttft": 50}),
    ],
)
def test_an_urgent_req_does_not_wait_for_prompts_under_way(
    policy: str, long: dict[str, Any], urgent: dict[str, Any]
) -> None:
    """What comes before every prompt under way takes its share of the step before them."""
    s = make(schedule_policy=policy, max_num_seqs=4, max_num_batched_tokens=16)
    add(s, "long", stream(1, 100), **long)
    assert step(s) == ["long"]
    add(s, "urgent", stream(2, 12), **urgent)
    batch = s.schedule()
    rows = [r.rid for r in batch.reqs]
    assert rows == ["urgent", "long"]
    assert np.diff(batch.row_indptr).tolist() == [12, 4]


@pytest.mark.parametrize(
    ("rule", "victim"),
    [("least_progress", "b"), ("newest", "c"), ("most_blocks", "a"), ("lowest_priority", "a")],
)
def test_victims(rule: str, victim: str) -> None:
    """Who steps aside when KV runs out."""
    s = make(
        num_blocks=10,
        max_num_seqs=3,
        preemption_victim=rule,
        admission="greedy",
        enable_prefix_caching=False,
    )
    for rid, length, priority in (("a", 13, 9), ("b", 5, 0), ("c", 9, 1)):
        add(s, rid, stream(ord(rid), length), 20, priority=priority)
    for _ in range(8):
        step(s)
        out = [rid for rid in "abc" if s.find(rid).state == "retracted"]
        if out:
            break
    assert out == [victim]


@pytest.mark.parametrize(
    ("admission", "together"), [("greedy", 2), ("guaranteed", 1), ("peak", 1), ("learned", 1)]
)
def test_admission_estimates(admission: str, together: int) -> None:
    """Two reqs that fit now and will not fit at their ends: greedy lets both in, the others do not."""
    s = make(num_blocks=7, max_num_seqs=2, admission=admission, enable_prefix_caching=False)
    for rid in ("a", "b"):
        add(s, rid, stream(ord(rid), 5), 12)
    assert len(step(s)) == together
    while s.has_unfinished():
        step(s)


def test_a_preemption_raises_the_learned_reserve() -> None:
    """The estimate was too small: what the survivors have written already is kept in mind for those to come."""
    s = make(num_blocks=7, max_num_seqs=2, schedule_conservativeness=0.05, enable_prefix_caching=False)
    for rid in ("a", "b"):
        add(s, rid, stream(ord(rid), 5), 12)
    assert len(step(s)) == 2
    before = s.new_token_ratio
    while s.find("b").state == "running":
        step(s)
    assert s.find("b").state == "retracted"
    assert before < 0.1
    assert s.new_token_ratio > 0.9


def test_exact_peak_sees_that_one_ends_before_the_other_grows() -> None:
    """`peak` lets in what `guaranteed` does not: the short one gives its blocks back before the long one needs them."""
    for admission, together in (("peak", 2), ("guaranteed", 1)):
        s = make(num_blocks=17, max_num_seqs=2, admission=admission, enable_prefix_caching=False)
        add(s, "long", stream(1, 4), 37)
        add(s, "short", stream(2, 33), 2)
        assert len(step(s)) == together, admission


@pytest.mark.parametrize(("split", "want"), [("fcfs", [16, 4]), ("equal", [10, 10])])
def test_prefill_split(split: str, want: list[int]) -> None:
    """Two prompts under way share a step first come first, or evenly; neither takes more than the cap."""
    s = make(max_num_seqs=2, max_num_batched_tokens=20, prefill_split=split, long_prefill_token_threshold=16)
    for rid in ("a", "b"):
        add(s, rid, stream(ord(rid), 60))
    batch = s.schedule()
    assert np.diff(batch.row_indptr).tolist() == [16, 4]
    s.commit(batch, np.zeros(0, dtype=np.int32))
    assert np.diff(s.schedule().row_indptr).tolist() == want


def test_a_head_that_nothing_can_help_ends_with_its_reason() -> None:
    """It could run when it came; then a prefix was pinned. The device is idle, so it does not wait for ever."""
    s = make(num_blocks=12)
    add(s, "seed", stream(1, 21))
    order(s)
    s.pause(drain=True)
    big = Req("big", stream(2, 30), SamplingParams(max_tokens=2))
    s.add(big)
    s.pin_prefix(stream(1, 20))
    s.resume()
    assert s.schedule() is None
    assert big.finish_reason == "error"
    assert "cannot be run even alone" in big.error


@pytest.mark.parametrize(("deadline", "entered"), [(None, ["urgent"]), (900, [])])
def test_a_deadline_is_not_bound_by_the_reserve(deadline: int | None, entered: list[str]) -> None:
    """What running reqs without a deadline may still write does not keep one with a deadline out; among those with one it does."""
    s = make(num_blocks=12, max_num_seqs=3, admission="guaranteed", schedule_policy="deadline")
    add(s, "long", stream(1, 8), 32, deadline_ttft=deadline, deadline_tpot=deadline)
    assert step(s) == ["long"]
    add(s, "plain", stream(2, 6))
    add(s, "urgent", stream(3, 6), deadline_ttft=50)
    assert step(s) == entered


def prefilled(s: Scheduler, now: int = 0) -> int:
    """Tokens of one step."""
    batch = s.schedule(now=now)
    assert batch is not None
    tokens = batch.num_tokens
    s.commit(batch, np.full(batch.num_sampled_rows, 7, dtype=np.int32), now=now)
    return int(tokens)


@pytest.mark.parametrize("policy", ["priority", "deadline"])
def test_urgent_reqs_are_expected_for_a_while(policy: str) -> None:
    """Prefill of others is bounded for 1,024 steps after an urgent req, and at no time when nobody outranks anybody."""
    urgent: dict[str, Any] = {"priority": -1} if policy == "priority" else {"deadline_ttft": 10**9}
    s = make(
        max_num_seqs=4,
        num_blocks=4000,
        max_num_batched_tokens=64,
        schedule_policy=policy,
        urgent_prefill_token_threshold=4,
        enable_prefix_caching=False,
    )
    add(s, "first", stream(1, 100), 1)
    add(s, "equal", stream(2, 28), 1)
    assert [prefilled(s), prefilled(s)] == [64, 64]
    add(s, "long", stream(3, 6000), 1)
    add(s, "urgent", stream(9, 2), 1, **urgent)
    assert [prefilled(s) for _ in range(1026)] == [4] * 1024 + [64] * 2


def test_deadlines_on_the_wall_clock() -> None:
    """Nanoseconds since 1970 are times like any other."""
    now = 1_790_000_000 * 10**9
    s = make(schedule_policy="deadline")
    add(s, "none", stream(1, 4), now=now)
    add(s, "soon", stream(2, 4), now=now, deadline_ttft=1000)
    add(s, "late", stream(3, 4), now=now, deadline_ttft=1)
    assert order(s, now=now + 2) == ["soon", "none", "late"]


def test_a_preempted_req_waits_behind_deadlines() -> None:
    """It goes to the front of those that do not outrank it."""
    s = make(schedule_policy="deadline", max_num_seqs=2, num_blocks=9, admission="greedy")
    a, b = (
        Req(rid, stream(i, 11 + i), SamplingParams(max_tokens=20, ignore_eos=True))
        for i, rid in enumerate("ab")
    )
    s.add(a)
    s.add(b)
    while a.account.retractions + b.account.retractions == 0:
        step(s)
    add(s, "urgent", stream(3, 2), 2, deadline_ttft=1000)
    assert step(s) == ["urgent"]
