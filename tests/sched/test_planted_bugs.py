"""Named bugs, switched on one at a time in a test build (-DSTOKER_PLANTED_BUGS=ON), are each caught by the toy executor or the integrity check."""

from __future__ import annotations

from typing import Any

import pytest

from stoker._core import sched
from stoker.scheduler import Req, SamplingParams, SchedulerConfig
from support.toy_executor import EOS, check_outputs, random_reqs, run

BUGS: list[str] = getattr(sched, "PLANTED_BUGS", [])
pytestmark = pytest.mark.skipif(not BUGS, reason="no planted bugs in this build")


def workload(**options: Any) -> None:
    """Small runs that together touch every mechanism."""
    for depth in (0, 1, 2):
        for seed in range(3):
            config = SchedulerConfig(
                **{
                    "num_blocks": 30,
                    "block_size": 4,
                    "max_num_seqs": 6,
                    "max_num_batched_tokens": 24,
                    "eos_token_ids": [EOS],
                    "admission": "greedy",
                    "overlap_depth": depth,
                    **options,
                }
            )
            reqs = random_reqs(seed, 24, shared=1)
            for i, r in enumerate(reqs):
                assert r.prompt_len > 0, i
            run(config, reqs)
            check_outputs(reqs)
            whole = [Req(f"w{i}", list(range(1, 9)), SamplingParams(max_tokens=4)) for i in range(3)]
            salted = [
                Req(f"s{i}", list(range(1, 14)), SamplingParams(max_tokens=2), cache_salt=str(i))
                for i in range(2)
            ]
            run(config, whole + salted)
            check_outputs(whole + salted)
            assert all(r.account.cached_tokens == 0 for r in salted)
            assert all(r.account.cached_tokens <= 4 for r in whole)
            failing = random_reqs(seed, 12, shared=1, longest=60)
            run(config, failing, fail=[2, 5], arrivals=[i // 2 for i in range(12)])
            check_outputs([r for r in failing if r.finish_reason != "error"])


def test_no_bug_no_alarm() -> None:
    """The workload passes as long as nothing is planted."""
    sched.plant("none")  # type: ignore[attr-defined]
    workload()


@pytest.mark.parametrize("bug", BUGS)
def test_bug_is_caught(bug: str) -> None:
    """Something breaks loudly: a wrong token, a lost block, a seat in two hands, or no progress."""
    sched.plant(bug)  # type: ignore[attr-defined]
    try:
        with pytest.raises((AssertionError, RuntimeError, ValueError, KeyError)):
            workload()
    finally:
        sched.plant("none")  # type: ignore[attr-defined]
