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


def test_children_of_n() -> None:
    """n answers are n reqs rid/0.. that share the prompt's full blocks and end each alone."""
    from stoker.scheduler import Req, SamplingParams, Scheduler

    c = config()
    s = Scheduler(c)
    parent = Req("p", list(range(1, 18)), SamplingParams(max_tokens=5, n=3, seed=1))
    run(c, [parent], scheduler=s)
    assert s.children("p") == []  # all ended


def test_children_share_and_differ() -> None:
    """Children find the prompt in the prefix cache at once, and draw from different seeds."""
    from stoker.scheduler import Req, SamplingParams, Scheduler

    s = Scheduler(config())
    s.add(Req("p", list(range(1, 18)), SamplingParams(max_tokens=5, n=3, seed=1)))
    batch = s.schedule()
    children = s.children("p")
    assert [c.rid for c in children] == ["p/0", "p/1", "p/2"]
    assert len({c.seed for c in children}) == 3
    assert [c.account.cached_tokens for c in children] == [0, 16, 16]
    assert batch.num_tokens == 17 + 1 + 1
    assert s.abort("p")
    assert not s.has_unfinished()
