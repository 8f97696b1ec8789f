"""EngineLoop.look: how reqs stand and why they wait, told by the loop between two steps to whoever asks from another thread."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from stoker._core.loop import EngineLoop
from stoker.sampling_params import SamplingParams
from stoker.scheduler import Req, SchedulerConfig


class Slow:
    """Answers every row with token 1, five milliseconds a step."""

    overlap_depth = 0

    def buffers(self, layout: Any, n: int) -> list[np.ndarray]:
        raw = [np.zeros(layout.nbytes + 64, np.uint8) for _ in range(n)]
        self.memory = [one[-one.ctypes.data % 64 :][: layout.nbytes] for one in raw]
        return self.memory

    def launch(self, index: int) -> None:
        self.sampled = int(self.memory[index].view(np.int32)[9])
        time.sleep(0.005)

    def collect(self, result: Any) -> None:
        result.token_ids = np.ones(self.sampled, np.int32)


def a_loop(**changes: Any) -> EngineLoop:
    values = {"num_blocks": 40, "block_size": 4, "max_num_seqs": 2, "max_num_batched_tokens": 32} | changes
    return EngineLoop(SchedulerConfig(**values), Slow())


def test_who_runs_and_who_waits_and_why() -> None:
    """Running reqs come first, then the queue in its order with places, reasons and numbers."""
    loop = a_loop()
    params = SamplingParams(max_tokens=60, ignore_eos=True)
    for name in "abcd":
        loop.add(Req(name, [1, 2, 3, 4, 5], params, tenant="t" + name, priority=3))
    loop.run()
    try:
        looks = loop.look(timeout=10)
        while not looks or looks[0]["state"] != "running":
            looks = loop.look(timeout=10)
        assert [look["rid"] for look in looks] == ["a", "b", "c", "d"]
        assert [look["state"] for look in looks] == ["running", "running", "waiting", "waiting"]
        assert [look["place"] for look in looks] == [-1, -1, 0, 1]
        assert looks[2]["wait_code"] == "seats"
        assert looks[2]["needed"] == 1
        assert looks[2]["free"] == 0
        assert looks[2]["wait"] != ""
        assert looks[0]["wait_code"] == "none"
        assert looks[0]["prompt_len"] == 5
        assert looks[0]["length_limit"] == 65
        assert looks[0]["num_blocks"] >= 1
        assert looks[0]["tenant"] == "ta"
        assert looks[0]["first_scheduled_time"] >= looks[0]["arrival_time"] > 0
        assert looks[2]["first_scheduled_time"] == -1
        assert [look["rid"] for look in loop.look(max_waiting=1, timeout=10)] == ["a", "b", "c"]
    finally:
        for name in "abcd":
            loop.abort(name)
        loop.stop()


def test_one_request_is_all_its_answers() -> None:
    """With a rid only that request, each of its n answers; an unknown rid is an empty list."""
    loop = a_loop(max_num_seqs=4)
    loop.add(Req("x", [1, 2, 3], SamplingParams(max_tokens=80, n=3, ignore_eos=True)))
    loop.add(Req("y", [1, 2, 3], SamplingParams(max_tokens=80, ignore_eos=True)))
    loop.run()
    try:
        assert sorted(look["rid"] for look in loop.look("x", timeout=10)) == ["x/0", "x/1", "x/2"]
        assert [look["rid"] for look in loop.look("y", timeout=10)] == ["y"]
        assert loop.look("z", timeout=10) == []
    finally:
        loop.abort("x")
        loop.abort("y")
        loop.stop()


def test_a_loop_that_nobody_drives_does_not_answer() -> None:
    """TimeoutError, not a wait without end."""
    with pytest.raises(TimeoutError):
        a_loop().look(timeout=0.01)
