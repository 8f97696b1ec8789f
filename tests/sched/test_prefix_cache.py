"""What the prefix cache finds, keeps and gives up, seen through the scheduler."""

from __future__ import annotations

import random
from collections import OrderedDict

import pytest

from stoker.scheduler import Req, SamplingParams, Scheduler, SchedulerConfig
from support.toy_executor import run

BLOCK = 4


def make(blocks: int, **options: object) -> Scheduler:
    return Scheduler(
        SchedulerConfig(
            num_blocks=blocks + 1, block_size=BLOCK, max_num_seqs=4, max_num_batched_tokens=512, **options
        )
    )


def once(s: Scheduler, name: str, prompt: list[int], **options: object) -> int:
    """Runs one req of one output token; returns how many prompt tokens were cached."""
    r = Req(name, prompt, SamplingParams(max_tokens=1), **options)
    s.add(r)
    while (batch := s.schedule()) is not None:
        s.commit(batch, [5] * batch.num_sampled_rows)
    s.check_integrity()
    assert r.finish_reason == "length"
    return r.account.cached_tokens


def stream(i: int, n: int) -> list[int]:
    return [1000 * i + j for j in range(n)]


def test_match_leaves_one_token() -> None:
    """A match is at most floor((len - 1) / block) blocks: one token is always computed."""
    s = make(20)
    assert once(s, "a", stream(1, 8)) == 0
    assert once(s, "b", stream(1, 8)) == 4
    assert once(s, "c", stream(1, 9)) == 8


def test_branches() -> None:
    """Paths that part after some blocks are told apart by their tokens."""
    s = make(60)
    head = stream(1, 8)
    for i in range(5):
        once(s, f"a{i}", head + stream(2 + i, 8))
    for i in range(5):
        assert once(s, f"b{i}", head + stream(2 + i, 8) + [7]) == 16
    assert once(s, "c", head + stream(9, 8)) == 8


def test_leaf_lru_against_a_plain_one() -> None:
    """Eviction is leaf-LRU: the same hits as a dict of prefixes that drops the one released longest ago."""
    rng = random.Random(3)
    s = make(40)
    cached: OrderedDict[tuple[int, ...], None] = OrderedDict()
    for i in range(300):
        prompt = stream(rng.randrange(6), BLOCK * rng.randint(1, 3)) + stream(
            10 + rng.randrange(5), rng.randint(1, 12)
        )
        full = len(prompt) // BLOCK
        want = 0
        while want < (len(prompt) - 1) // BLOCK and tuple(prompt[: BLOCK * (want + 1)]) in cached:
            want += 1
        assert once(s, f"r{i}", prompt) == want * BLOCK, i
        held = [tuple(prompt[: BLOCK * (k + 1)]) for k in range(full)]
        need = -(-len(prompt) // BLOCK) - want
        for key in held[:want]:
            cached.pop(key)
        while 40 - len(cached) - want < need:
            cached.popitem(last=False)
        for key in reversed(held):
            cached.pop(key, None)
            cached[key] = None


@pytest.mark.parametrize(("eviction", "kept"), [("lru", False), ("slru", True), ("lfu", True)])
def test_strategies_keep_what_is_used_often(eviction: str, kept: bool) -> None:
    """A prefix matched twice outlives a scan of prompts used once, under slru and lfu, not under lru."""
    s = make(12, prefix_eviction=eviction)
    for i in range(3):
        once(s, f"hot{i}", [*stream(1, 8), 7])
    for i in range(6):
        once(s, f"cold{i}", stream(2 + i, 12))
    assert (once(s, "again", [*stream(1, 8), 7]) == 8) == kept


def test_priority_eviction() -> None:
    """What urgent reqs use stays longer."""
    s = make(12, prefix_eviction="priority")
    once(s, "urgent", [*stream(1, 8), 7], priority=-2)
    for i in range(6):
        once(s, f"other{i}", stream(2 + i, 12), priority=2)
    assert once(s, "again", [*stream(1, 8), 7], priority=-2) == 8


def test_pinned_prefix_stays() -> None:
    """A pinned prefix survives until it is unpinned; pinning over half of the pool is refused."""
    s = make(12)
    once(s, "a", [*stream(1, 8), 7])
    pin = s.pin_prefix(stream(1, 8))
    for i in range(6):
        once(s, f"other{i}", stream(2 + i, 16))
    assert s.match_prefix(Req("probe", [*stream(1, 8), 7])) == 8
    assert s.unpin_prefix(pin)
    assert not s.unpin_prefix(pin)
    for i in range(6):
        once(s, f"more{i}", stream(12 + i, 16))
    assert s.match_prefix(Req("probe", [*stream(1, 8), 7])) == 0
    once(s, "long", stream(50, 33))
    with pytest.raises(ValueError, match="over half"):
        s.pin_prefix(stream(50, 33))
    with pytest.raises(ValueError, match="nothing of this prefix"):
        s.pin_prefix(stream(99, 33))


def test_recompute_is_no_hit() -> None:
    """What a preempted req finds again of its own is counted as recovered, never as a cache hit."""
    c = SchedulerConfig(
        num_blocks=16, block_size=BLOCK, max_num_seqs=4, max_num_batched_tokens=64, admission="greedy"
    )
    reqs = [Req(f"r{i}", stream(i + 1, 10), SamplingParams(max_tokens=20, ignore_eos=True)) for i in range(4)]
    run(c, reqs)
    assert sum(r.account.retractions for r in reqs) > 0
    assert all(r.account.cached_tokens == 0 for r in reqs)


def test_duplicates_are_merged() -> None:
    """Two reqs that computed the same blocks at the same time end up sharing one copy."""
    s = make(40, max_model_len=64)
    s.add(Req("a", stream(1, 3), SamplingParams(max_tokens=12)))
    s.add(Req("b", stream(1, 3), SamplingParams(max_tokens=12)))
    for _ in range(8):
        batch = s.schedule()
        s.commit(batch, [5] * batch.num_sampled_rows)
        s.check_integrity()
    a, b = s.find("a"), s.find("b")
    assert a is not None
    assert b is not None
    assert a.block_table()[:2] == b.block_table()[:2]
