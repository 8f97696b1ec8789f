"""The loop as Python sees it: executors written in Python, their exceptions, the two ways to drive it, and its outbox."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest

from stoker._core.loop import EngineLoop
from stoker._core.sim import FakeGroup, ScriptedExecutor
from stoker.sampling_params import SamplingParams
from stoker.scheduler import Req, SchedulerConfig

STOP, LENGTH, ABORT, ERROR = 1, 2, 3, 4


def config(**changes: Any) -> SchedulerConfig:
    values: dict[str, Any] = {
        "num_blocks": 40,
        "block_size": 4,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 32,
    }
    return SchedulerConfig(**(values | changes))


def scripted(depth: int = 0, **changes: Any) -> ScriptedExecutor:
    return ScriptedExecutor(
        groups=[FakeGroup(block_size=4, num_blocks=40)], overlap_depth=depth, vocab_size=50, **changes
    )


class Counter:
    """A Python executor whose answer to every row is the id of its step. `fail` maps a batch id to what is raised."""

    overlap_depth = 0

    def __init__(self, fail: dict[int, BaseException] | None = None, where: str = "launch") -> None:
        self.fail = fail or {}
        self.where = where
        self.launched: list[tuple[int, int]] = []
        self.threads: set[int] = set()

    def buffers(self, layout: Any, n: int) -> list[np.ndarray]:
        self.memory = []
        for _ in range(n):
            raw = np.zeros(layout.nbytes + 64, np.uint8)
            skip = -raw.ctypes.data % 64
            self.memory.append(raw[skip : skip + layout.nbytes])
        return self.memory

    def launch(self, index: int) -> None:
        self.threads.add(threading.get_ident())
        words = self.memory[index].view(np.int32)
        batch_id, num_sampled = int(self.memory[index][8:16].view(np.int64)[0]), int(words[9])
        if self.where == "launch" and batch_id in self.fail:
            raise self.fail[batch_id]
        self.launched.append((batch_id, num_sampled))

    def launch_sample(self, batch_id: int) -> None:
        raise AssertionError("no batch asks for it")

    def collect(self, result: Any) -> None:
        batch_id, num_sampled = self.launched.pop(0)
        assert result.batch_id == batch_id
        if self.where == "collect" and batch_id in self.fail:
            raise self.fail[batch_id]
        result.token_ids = np.full(num_sampled, batch_id, np.int32)
        result.device_time = 1000


def finish(loop: EngineLoop) -> tuple[dict[int, list[int]], dict[int, int], list[str]]:
    """Drives to the end; tokens and finish reason by key."""
    for _ in range(10000):
        if not loop.has_unfinished():
            break
        loop.turn()
    out = loop.poll()
    tokens: dict[int, list[int]] = {}
    for key, token in zip(out.token_keys.tolist(), out.tokens.tolist(), strict=True):
        tokens.setdefault(key, []).append(token)
    return tokens, dict(zip(out.end_keys.tolist(), out.finish_reasons.tolist(), strict=True)), out.messages


@pytest.mark.parametrize("worker_thread", [False, True])
def test_python_executor(worker_thread: bool) -> None:
    """Buffers, launch, collect: each step's result reaches its reqs, on the driver's thread or on the worker's."""
    executor = Counter()
    loop = EngineLoop(config(), executor, worker_thread=worker_thread)
    first = loop.add(Req("a", [1, 2, 3], SamplingParams(max_tokens=3)))
    second = loop.add(Req("b", [1, 2], SamplingParams(max_tokens=2)), stream=False)
    tokens, ends, _ = finish(loop)
    assert tokens == {first: [1, 2, 3], second: [1, 2]}
    assert ends == {first: LENGTH, second: LENGTH}
    assert (threading.get_ident() in executor.threads) is not worker_thread
    assert len(executor.memory) == (3 if worker_thread else 2)
    assert [step["device_ns"] for step in loop.trace()] == [1000] * 3


@pytest.mark.parametrize("where", ["launch", "collect"])
def test_exception_fails_the_step_only(where: str) -> None:
    """The reqs of that step end with the exception's words; those that come later run."""
    loop = EngineLoop(config(), Counter({1: RuntimeError("boom")}, where))
    failed = loop.add(Req("a", [1, 2], SamplingParams(max_tokens=2)))
    _, ends, messages = finish(loop)
    assert ends == {failed: ERROR}
    assert "boom" in messages[0]
    fine = loop.add(Req("b", [1, 2], SamplingParams(max_tokens=2)))
    assert finish(loop)[1] == {fine: LENGTH}


def test_fatal_exception_ends_everything() -> None:
    """An exception with `fatal` set loses the device: all reqs end, and so does whatever comes later."""
    error = RuntimeError("device lost")
    error.fatal = True  # type: ignore[attr-defined]
    loop = EngineLoop(config(max_num_seqs=1), Counter({1: error}))
    keys = [loop.add(Req(name, [1, 2], SamplingParams(max_tokens=2))) for name in "ab"]
    assert finish(loop)[1] == dict.fromkeys(keys, ERROR)
    assert "device lost" in loop.stats().failure
    late = loop.add(Req("c", [1], SamplingParams(max_tokens=2)))
    assert finish(loop)[1] == {late: ERROR}


def test_keyboard_interrupt_comes_out_of_turn() -> None:
    """Ctrl-C inside the executor is not swallowed as a failed step."""
    loop = EngineLoop(config(), Counter({1: KeyboardInterrupt()}))
    loop.add(Req("a", [1, 2], SamplingParams(max_tokens=2)))
    with pytest.raises(KeyboardInterrupt):
        finish(loop)
    assert not loop.has_unfinished()


def test_executor_without_the_protocol_is_refused() -> None:
    """The error names what is missing."""
    with pytest.raises(ValueError, match="overlap_depth"):
        EngineLoop(config(), object())  # type: ignore[arg-type]


def test_own_thread_and_two_callers() -> None:
    """run(): adds from several threads, one consumer, all ends exactly once; stop() joins and run() goes on."""
    executor = scripted(1)
    loop = EngineLoop(config(), executor)
    loop.run()
    assert loop.running
    keys: list[int] = []

    def add(name: str) -> None:
        params = [SamplingParams(max_tokens=5, seed=i) for i in range(40)]
        keys.extend(loop.add(Req(f"{name}{i}", [1 + i % 7] * (1 + i % 9), p)) for i, p in enumerate(params))

    callers = [threading.Thread(target=add, args=(name,)) for name in "xy"]
    for thread in callers:
        thread.start()
    ends: list[int] = []
    while len(ends) < 80:
        out = loop.wait(5.0)
        assert out, "nothing came for five seconds"
        ends.extend(out.end_keys.tolist())
    for thread in callers:
        thread.join()
    loop.stop()
    assert not loop.running
    assert sorted(ends) == sorted(keys)
    assert executor.violations == []
    loop.run()
    loop.add(Req("z", [1], SamplingParams(max_tokens=1)))
    assert loop.wait(5.0).num_ends == 1
    loop.stop()


def test_deleting_a_running_loop_joins_its_thread() -> None:
    """No thread outlives its loop, even with work left."""
    before = threading.active_count()
    loop = EngineLoop(config(), Counter(), worker_thread=True)
    loop.add(Req("a", [1, 2], SamplingParams(max_tokens=100)))
    loop.run()
    del loop
    gc.collect()
    assert threading.active_count() == before


def test_sleeping_loop_wakes() -> None:
    """A loop that has found nothing to do sleeps, and wakes for the next req and for stop()."""
    loop = EngineLoop(config(), scripted())
    loop.run()
    assert not loop.wait(0.05)
    loop.add(Req("a", [1], SamplingParams(max_tokens=1)))
    assert loop.wait(5.0).num_ends == 1
    assert not loop.wait(0.05)
    loop.stop()


def test_abort_by_key_and_by_rid() -> None:
    """By key one answer ends, by rid all of them; what is unknown is ignored."""
    loop = EngineLoop(config(), scripted(1))
    key = loop.add(Req("a", [1, 2], SamplingParams(max_tokens=50, ignore_eos=True, n=3)))
    other = loop.add(Req("b", [1, 2], SamplingParams(max_tokens=4, ignore_eos=True)))
    for _ in range(3):
        loop.turn()
    loop.abort(key + 1)
    loop.abort(12345)
    for _ in range(3):
        loop.turn()
    loop.abort("a")
    loop.abort("nobody")
    _, ends, _ = finish(loop)
    assert ends == {key: ABORT, key + 1: ABORT, key + 2: ABORT, other: LENGTH}


def test_logprobs_go_with_their_tokens() -> None:
    """Only the tokens that asked have candidates, and every token has its entry in the index."""
    loop = EngineLoop(config(), scripted())
    plain = loop.add(Req("a", [1, 2], SamplingParams(max_tokens=3, ignore_eos=True, seed=1)), stream=False)
    asked = loop.add(Req("b", [1, 2], SamplingParams(max_tokens=3, ignore_eos=True, seed=1, logprobs=2)))
    while loop.has_unfinished():
        loop.turn()
    out = loop.poll()
    assert len(out.logprob_indptr) == out.num_tokens + 1
    counts = np.diff(out.logprob_indptr)
    assert counts[out.token_keys == asked].tolist() == [3, 3, 3]
    assert counts[out.token_keys == plain].tolist() == [0, 0, 0]
    first = out.logprob_indptr[:-1][out.token_keys == asked]
    assert out.logprob_ids[first].tolist() == out.tokens[out.token_keys == asked].tolist()
