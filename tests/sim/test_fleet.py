"""Fleets: requests survive failures, routing does what it says, scaling follows the load, searches find the border."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stoker._core.sim import CostModel
from stoker.sim import Requests, Run, Setting, Slo, simulate, synthetic
from stoker.sim.scenario import Scenario
from stoker.sim.sweep import fewest_replicas, grid, highest_rate, workers

ENGINE = {"num_blocks": 513, "max_num_seqs": 16, "max_num_batched_tokens": 256, "max_model_len": 1024}
COST = CostModel(step=2e6, token=1e4, host_before=1e5)
SECOND = 1_000_000_000


def some(num_reqs: int = 400, rate: float = 100.0, **options: Any) -> Requests:
    return synthetic(
        num_reqs=num_reqs, rate=rate, prompt_len="loguniform:8:300", output_len="uniform:1:60", **options
    )


def run(requests: Requests, **fleet: Any) -> Run:
    return simulate(Setting(COST, ENGINE, fleet, seed=5), requests)


@pytest.mark.parametrize(
    "routing", ["round_robin", "random", "least_loaded", "two_choices", "prefix", "session"]
)
def test_every_request_is_answered_once_by_one_replica(routing: str) -> None:
    """Whatever the policy; and again with failures."""
    requests = some(prefix_len=32, prefix_groups=6)
    done = run(requests, num_replicas=4, routing=routing)
    assert (done.reqs["num_tokens"] == requests.answer_lens).all()
    assert sum(replica["num_reqs"] for replica in done.replicas) == len(requests)
    shaky = run(
        requests, num_replicas=4, routing=routing, mean_time_between_failures=SECOND, repair_time=SECOND // 2
    )
    assert shaky.totals["failures"] > 3
    assert shaky.totals["resent"] > 0
    assert (shaky.reqs["num_tokens"] == requests.answer_lens).all()
    assert (shaky.reqs["attempts"] - 1).sum() == shaky.totals["resent"]


def test_round_robin_gives_each_its_turn() -> None:
    """To the request."""
    done = run(some(), num_replicas=4, routing="round_robin")
    assert done.reqs["replica"].tolist() == [i % 4 for i in range(400)]


def test_a_session_stays_and_prefix_routing_hits_more_than_chance() -> None:
    """Both keep a group's prompts together; random routing computes the prefix on each replica."""
    requests = some(prefix_len=256, prefix_groups=12, rate=30.0)
    replica = run(requests, num_replicas=4, routing="session").reqs["replica"]
    assert all(len(set(replica[requests.sessions == group].tolist())) == 1 for group in range(12))
    hits = {
        routing: run(requests, num_replicas=4, routing=routing).report()["hit_rate"]
        for routing in ("random", "prefix")
    }
    assert hits["prefix"] > hits["random"]


def test_the_less_loaded_get_more_when_some_are_slow() -> None:
    """Least loaded sends less to slow nodes, and so has a shorter tail than taking turns."""
    slow = {"num_replicas": 6, "slow_share": 0.4, "slow_factor": 4.0}
    turns = run(some(), routing="round_robin", **slow)
    least = run(some(), routing="least_loaded", **slow)
    assert np.percentile(least.e2e, 99) < np.percentile(turns.e2e, 99)
    busy = np.bincount(least.reqs["replica"])
    assert busy.max() > 1.5 * busy.min()


def test_scaling_follows_the_load() -> None:
    """Up while requests pile up, down when they are gone; what is paid lies between the two extremes."""
    burst, calm = some(600, 150.0), some(200, 4.0)
    times = np.concatenate([burst.times, burst.times[-1] + calm.times])
    both = Requests(
        times,
        *(
            np.concatenate([getattr(burst, name), getattr(calm, name)])
            for name in ("prompt_lens", "answer_lens", "max_tokens")
        ),
    )
    scaling = {
        "min_replicas": 1,
        "max_replicas": 8,
        "target_load": 8.0,
        "scale_interval": SECOND // 4,
        "startup_time": SECOND // 2,
        "scale_down_delay": SECOND,
    }
    done = run(both, num_replicas=1, routing="least_loaded", **scaling)
    assert done.totals["scale_ups"] >= 3
    assert done.totals["scale_downs"] >= 3
    assert (done.reqs["num_tokens"] == both.answer_lens).all()
    assert done.seconds < done.totals["replica_time"] / 1e9 < 8 * done.seconds
    alone = run(both, num_replicas=1)
    assert np.percentile(done.ttft, 90) < np.percentile(alone.ttft, 90)


@pytest.mark.parametrize(
    ("fleet", "says"),
    [
        ({"num_replicas": 0}, "num_replicas must be at least 1"),
        ({"routing": "best"}, "routing 'best' is not known; allowed are round_robin, random"),
        ({"slow_share": 2.0}, "slow_share must be 0 to 1"),
        ({"max_replicas": 2, "min_replicas": 3}, "min_replicas must be 1 to max_replicas"),
    ],
)
def test_fleets_that_cannot_be(fleet: dict[str, Any], says: str) -> None:
    """The error names what is allowed."""
    with pytest.raises(ValueError, match=says):
        run(some(5), **fleet)


BASE = Scenario(
    cost=None,
    num_reqs=250,
    prompt_len="64",
    output_len="20",
    num_kv_blocks=513,
    max_num_seqs=8,
    max_num_batched_tokens=128,
)


class _Fixed(Scenario):
    """A Scenario whose steps take COST."""

    __slots__ = ()

    def cost_model(self) -> CostModel:
        return COST


def fixed(**changes: Any) -> Scenario:
    names = [name for name in Scenario.__dataclass_fields__ if name not in changes]
    return _Fixed(**{name: getattr(BASE, name) for name in names}, **changes)


def test_the_highest_rate_is_the_border() -> None:
    """There the level is kept, 5% above it is not."""
    slo, base = Slo(ttft=0.05), fixed()
    with workers(1, slo) as evaluate:
        found = highest_rate(base, evaluate, 0.95)
        assert found.value is not None
        kept, broken = (
            report["slo"]["share"]
            for report in evaluate(base.vary("rate", found.value * factor) for factor in (1.0, 1.05))
        )
    assert kept >= 0.95 > broken
    with workers(1, Slo(ttft=1e-6)) as evaluate:
        assert highest_rate(base, evaluate, 0.95).value is None


def test_the_fewest_replicas_are_the_border() -> None:
    """One less is not enough; where nothing is, it says so."""
    slo = Slo(ttft=0.05)
    base = fixed(rate=400.0).vary("routing", "least_loaded")
    with workers(1, slo) as evaluate:
        found = fewest_replicas(base, evaluate, 0.95)
        assert found.value is not None
        assert found.value > 1
        fewer, enough = (
            report["slo"]["share"]
            for report in evaluate(base.vary("num_replicas", int(found.value) - less) for less in (1, 0))
        )
    assert enough >= 0.95 > fewer
    with workers(1, Slo(ttft=1e-6)) as evaluate:
        assert fewest_replicas(base, evaluate, 0.95, most=4).value is None


def test_a_grid_has_every_combination_and_refuses_unknown_names() -> None:
    """Fields of the scenario, of SchedulerConfig and of FleetConfig alike."""
    points = grid(
        fixed(rate=5.0), {"block_size": [16, 32], "schedule_policy": ["fcfs", "sjf"], "num_replicas": [2]}
    )
    assert [chosen["block_size"] for chosen, _ in points] == [16, 16, 32, 32]
    assert points[1][1].setting().scheduler["schedule_policy"] == "sjf"
    assert points[1][1].setting().fleet["num_replicas"] == 2
    with pytest.raises(ValueError, match=r"'colour' cannot be varied; allowed are .*block_size"):
        grid(fixed(), {"colour": [1]})
