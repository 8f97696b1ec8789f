"""A req's tokens are the same whatever the scheduler does around it: held here on small pools for every batching mode, admission, depth of
overlap, policy and victim rule; after every call nothing is lost and nothing is in two hands."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from stoker.scheduler import KVGroup, SchedulerConfig
from support.toy_executor import EOS, check_outputs, random_reqs, run

SMALL: dict[str, Any] = {
    "num_blocks": 40,
    "block_size": 4,
    "max_num_seqs": 6,
    "max_num_batched_tokens": 24,
    "eos_token_ids": [EOS],
}


def config(**options: Any) -> SchedulerConfig:
    return SchedulerConfig(**{**SMALL, **options})


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("admission", ["learned", "greedy", "guaranteed", "peak"])
@pytest.mark.parametrize("batching", ["continuous", "prefill_first", "static"])
def test_modes(batching: str, admission: str, depth: int) -> None:
    """Batching, admission and overlap move work, never tokens."""
    for seed, cached in itertools.product(range(2), (True, False)):
        reqs = random_reqs(seed, 24)
        s = run(
            config(batching=batching, admission=admission, overlap_depth=depth, enable_prefix_caching=cached),
            reqs,
        )
        check_outputs(reqs)
        assert s.steps_in_flight == 0


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("victim", ["least_progress", "newest", "lowest_priority", "most_blocks"])
def test_preemption_keeps_tokens(victim: str, depth: int) -> None:
    """A tiny pool with greedy admission preempts again and again; nothing is lost or said twice."""
    preempted = 0
    for seed in range(4):
        reqs = random_reqs(seed, 16)
        run(config(num_blocks=24, admission="greedy", preemption_victim=victim, overlap_depth=depth), reqs)
        check_outputs(reqs)
        preempted += sum(r.account.retractions for r in reqs)
    assert preempted > 0


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("host", [3, 60])
@pytest.mark.parametrize("cached", [True, False])
def test_swap_keeps_tokens(cached: bool, host: int, depth: int) -> None:
    """KV goes to host memory and comes back, or is computed again where the host pool is full; the tokens stay."""
    swaps = retractions = 0
    for seed in range(4):
        reqs = random_reqs(seed, 16)
        run(
            config(
                num_blocks=24,
                num_host_blocks=host,
                admission="greedy",
                preemption="swap",
                overlap_depth=depth,
                enable_prefix_caching=cached,
            ),
            reqs,
        )
        check_outputs(reqs)
        swaps += sum(r.account.swaps for r in reqs)
        retractions += sum(r.account.retractions for r in reqs)
        if host == 60:
            assert not cached or sum(r.account.tokens_computed_twice for r in reqs) < 60
    assert swaps > 0 or host == 3
    assert retractions > 0 or host == 60


@pytest.mark.parametrize(
    "policy",
    ["fcfs", "lpm", "dfs-weight", "sjf", "lof", "hrrn", "random", "priority", "key", "deadline", "fair"],
)
@pytest.mark.parametrize("head_of_line", ["strict", "bypass", "scan"])
def test_policies(policy: str, head_of_line: str) -> None:
    """Every policy under every treatment of the first that does not fit, with arrivals over time, priorities and tenants."""
    rng = random.Random(5)
    for depth in (0, 1):
        reqs = random_reqs(7, 30)
        reqs = [
            type(r)(
                r.rid,
                r.origin_input_ids,
                _params(r.rid, rng),
                priority=rng.randrange(3),
                tenant=rng.choice("xyz"),
                deadline_ttft=rng.choice([None, 20, 200]),
            )
            for r in reqs
        ]
        run(
            config(
                schedule_policy=policy,
                head_of_line=head_of_line,
                overlap_depth=depth,
                bypass_limit=2,
                num_blocks=30,
            ),
            reqs,
            arrivals=[rng.randrange(60) for _ in reqs],
        )
        check_outputs(reqs)


def _params(rid: str, rng: random.Random) -> Any:
    from stoker.scheduler import SamplingParams

    return SamplingParams(max_tokens=rng.randint(1, 30))


@pytest.mark.parametrize("eviction", ["lru", "slru", "lfu", "priority"])
@pytest.mark.parametrize("split", ["fcfs", "equal"])
def test_eviction_and_split(eviction: str, split: str) -> None:
    """Eviction strategies and the split of the prefill budget."""
    reqs = random_reqs(3, 40, longest=60)
    run(config(prefix_eviction=eviction, prefill_split=split, num_blocks=36, overlap_depth=1), reqs)
    check_outputs(reqs)


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("kinds", [("window",), ("full", "window"), ("full", "latent")])
def test_kv_groups(kinds: tuple[str, ...], cached: bool, depth: int) -> None:
    """Window groups give back what they leave behind; a match is what all groups hold."""
    groups = [
        KVGroup(
            kind=kind,
            block_size=4,
            num_blocks=30 if kind == "window" else 40,
            window=10 if kind == "window" else 0,
        )
        for kind in kinds
    ]
    for seed in range(3):
        reqs = random_reqs(seed, 16)
        options = {k: v for k, v in SMALL.items() if k not in ("num_blocks", "block_size")}
        run(
            SchedulerConfig(
                kv_groups=groups,
                enable_prefix_caching=cached,
                overlap_depth=depth,
                max_model_len=100,
                **options,
            ),
            reqs,
        )
        check_outputs(reqs, window=10 if kinds == ("window",) else 0)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_aborts_at_random_times(depth: int) -> None:
    """An abort in any state ends that req only."""
    for seed in range(4):
        rng = random.Random(seed)
        reqs = random_reqs(seed, 20)
        doomed = {rng.randrange(40): r for r in rng.sample(reqs, 8)}

        def each_step(turn: int, s: Any, doomed: dict[int, Any] = doomed) -> None:
            if turn in doomed:
                s.abort(doomed[turn].rid)
                s.check_integrity()

        run(config(overlap_depth=depth, admission="greedy", num_blocks=28), reqs, each_step=each_step)
        check_outputs([r for r in reqs if r.finish_reason != "abort"])
        assert any(r.finish_reason == "abort" for r in reqs)


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_failed_steps(depth: int) -> None:
    """A failed step ends its own reqs with an error; the others go on, also those that had shared its blocks."""
    ended = {"error": 0, "other": 0}
    for seed in range(6):
        reqs = random_reqs(seed, 24, shared=1, longest=60)
        run(
            config(overlap_depth=depth, num_blocks=80),
            reqs,
            fail=[2 + seed, 9],
            arrivals=[i // 4 for i in range(24)],
        )
        good = [r for r in reqs if r.finish_reason != "error"]
        check_outputs(good)
        ended["error"] += len(reqs) - len(good)
        ended["other"] += len(good)
    assert min(ended.values()) > 0


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("length", [3, 16, 17, 40])
def test_children_of_n(length: int, cached: bool, depth: int) -> None:
    """n answers are n reqs rid/0.. that fork from one hidden row: the prompt is computed once, its partial block copied."""
    from stoker.scheduler import Req, SamplingParams, Scheduler

    c = config(overlap_depth=depth, enable_prefix_caching=cached)
    s = Scheduler(c)
    s.add(Req("p", list(range(1, length + 1)), SamplingParams(max_tokens=9, n=4, seed=1)))
    children = s.children("p")
    run(c, [], scheduler=s)
    assert s.children("p") == []  # all ended
    check_outputs(children)
    assert [r.account.prefill_tokens for r in children] == [length, 0, 0, 0]


def test_children_short_of_blocks() -> None:
    """Families among other reqs on a pool that is far too small: preempted alone, answers as ever."""
    from stoker.scheduler import Req, SamplingParams, Scheduler

    for seed, depth, host in itertools.product(range(3), (0, 1, 3), (0, 20)):
        c = config(
            num_blocks=18,
            num_host_blocks=host,
            overlap_depth=depth,
            admission="greedy",
            enable_prefix_caching=seed % 2 == 0,
        )
        s = Scheduler(c)
        children = []
        for i in range(6):
            s.add(Req(f"p{i}", list(range(1, 6 + 3 * i)), SamplingParams(max_tokens=20, n=1 + i % 4)))
            children += s.children(f"p{i}")
        run(c, random_reqs(seed, 6), scheduler=s)
        check_outputs(children)
        assert sum(r.account.retractions + r.account.swaps for r in children) > 0


def test_children_share_and_differ() -> None:
    """The siblings wait for the prompt of the first one, then sit at once: one row, three tokens, different seeds."""
    from stoker.scheduler import Req, SamplingParams, Scheduler

    s = Scheduler(config(max_num_batched_tokens=12))
    s.add(Req("p", list(range(1, 18)), SamplingParams(max_tokens=5, n=3, seed=1)))
    batch = s.schedule()
    children = s.children("p")
    assert [c.rid for c in children] == ["p/0", "p/1", "p/2"]
    assert len({c.seed for c in children}) == 3
    assert [s.explain(c).code for c in children] == ["none", "sibling", "sibling"]
    s.commit(batch, [])
    batch = s.schedule()
    assert (batch.num_tokens, batch.num_rows, batch.num_sampled_rows) == (5, 1, 3)
    assert len({*batch.out_seat.tolist()}) == 3
    assert {*batch.out_token.tolist()} == {4}
    tables = [c.block_table() for c in children]
    assert tables[0][:4] == tables[1][:4] == tables[2][:4]
    assert len({t[4] for t in tables}) == 3
    s.commit(batch, [5, 6, 7])
    batch = s.schedule()
    assert len(batch.transfers) == 2
    assert s.abort("p")
    assert not s.has_unfinished()
    s.check_integrity()


def test_children_one_by_one() -> None:
    """A sibling can be aborted while it waits; where the first ends early, the others go on alone."""
    from stoker.scheduler import Req, SamplingParams, Scheduler

    for doomed in ("p/0", "p/1"):
        c = config(max_num_batched_tokens=8)
        s = Scheduler(c)
        s.add(Req("p", list(range(1, 18)), SamplingParams(max_tokens=5, n=3, seed=1)))
        children = s.children("p")

        def each_step(turn: int, s: Any, doomed: str = doomed) -> None:
            if turn == 1:
                assert s.abort(doomed)

        run(c, [], scheduler=s, each_step=each_step)
        check_outputs([r for r in children if r.rid != doomed])
