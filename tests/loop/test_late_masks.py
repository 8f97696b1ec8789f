"""Grammar masks in the loop: each comes when every token before it is known, at every depth, and changes nothing but what may be sampled."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from stoker._core.loop import EngineLoop
from stoker._core.sim import FakeGroup, ScriptedExecutor
from stoker.scheduler import Req, SamplingParams, Scheduler, SchedulerConfig, replay

VOCAB, EOS = 100, 7
LENGTH, ABORT, ERROR = 2, 3, 4


class Remainders:
    """A grammar by arithmetic: token t may follow outputs o if (t + sum(o)) % 3 == grammar % 3. Checks what it is told."""

    def __init__(self) -> None:
        self.outputs: dict[int, list[int]] = {}
        self.forgotten: list[int] = []
        self.refuse: set[int] = set()

    def allowed(self, grammar: int, outputs: list[int]) -> list[int]:
        return [t for t in range(VOCAB) if (t + sum(outputs)) % 3 == grammar % 3]

    def fill(self, rows: list[tuple[int, int, int, list[int]]]) -> Any:
        bits = np.zeros((len(rows), 128), np.uint8)
        failed = []
        for i, (key, grammar, count, new) in enumerate(rows):
            known = self.outputs.setdefault(key, [])
            known += new
            assert len(known) == count
            bits[i, self.allowed(grammar, known)] = 1
            if grammar in self.refuse and count == 3:
                failed.append((i, "too hard"))
        return np.packbits(bits, axis=1, bitorder="little").view(np.int32), failed

    def forget(self, key: int, grammar: int) -> None:
        self.forgotten.append(key)


def run(
    depth: int, seed: int, source: Any, **config: Any
) -> tuple[dict[str, list[int]], dict[str, str], Any]:
    """40 reqs, two of three with a grammar, on a pool so small that some are preempted. Tokens, ends and the loop."""
    rng = random.Random(seed)
    options = {"num_blocks": 20, "block_size": 4, "max_num_seqs": 6, "max_num_batched_tokens": 24, **config}
    scheduler = SchedulerConfig(admission="greedy", vocab_size=VOCAB, eos_token_ids=[EOS], **options)
    group = FakeGroup(block_size=4, num_blocks=options["num_blocks"])
    device = ScriptedExecutor(
        groups=[group], overlap_depth=depth, vocab_size=VOCAB, eos=EOS, eos_per_mille=20, eager_percent=30
    )
    loop = EngineLoop(scheduler, device, check_each_step=True, masks=source)
    names: dict[int, str] = {}
    for i in range(40):
        params = SamplingParams(max_tokens=rng.randint(1, 25), n=rng.choice([1, 1, 2]), seed=i)
        prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 20))]
        key = loop.add(Req(f"r{i}", prompt, params, grammar=i % 3 and i))
        names |= {key + child: f"r{i}/{child}" for child in range(params.n)}
    tokens: dict[str, list[int]] = {name: [] for name in names.values()}
    ends: dict[str, str] = {}
    for _ in range(20000):
        if not loop.has_unfinished():
            break
        loop.turn()
        out = loop.poll()
        for key, token in zip(out.token_keys.tolist(), out.tokens.tolist(), strict=True):
            tokens[names[key]].append(token)
        for key, why in zip(out.end_keys.tolist(), out.messages, strict=True):
            ends[names[key]] = why
    assert device.violations == []
    assert len(ends) == len(names)
    assert loop.num_stalls == 0
    masked = [key for key, name in names.items() if int(name[1:].split("/")[0]) % 3]
    assert sorted(source.forgotten) == masked
    return tokens, ends, loop


@pytest.mark.parametrize("seed", range(3))
def test_masks_are_obeyed_and_the_same_at_every_depth(seed: int) -> None:
    """A mask that came a step early or late, or after a preemption for the wrong length, would let a wrong token pass."""
    runs = []
    for depth in range(4):
        source = Remainders()
        tokens, _, loop = run(depth, seed, source)
        for name, out in tokens.items():
            grammar = int(name[1:].split("/")[0])
            for i in range(len(out) if grammar % 3 else 0):
                assert out[i] in source.allowed(grammar, out[:i]), (name, i)
        assert loop.stats().num_preemptions > 0
        runs.append(tokens)
    assert runs[0] == runs[1] == runs[2] == runs[3]


@pytest.mark.parametrize("depth", range(3))
def test_siblings_share_the_prompt_under_a_grammar(depth: int) -> None:
    """n answers, each with a state of its own, begin with one hidden row, and wait together for their grammar."""
    source = Remainders()
    group = FakeGroup(block_size=4, num_blocks=60)
    device = ScriptedExecutor(groups=[group], overlap_depth=depth, vocab_size=VOCAB, eos=EOS)
    options = SchedulerConfig(num_blocks=60, block_size=4, max_num_seqs=8, max_num_batched_tokens=64)
    loop = EngineLoop(options, device, check_each_step=True, masks=source)
    params = SamplingParams(n=4, max_tokens=6, seed=3, ignore_eos=True, prompt_logprobs=0)
    first = loop.add(Req("r", list(range(10, 31)), params, grammar=5, grammar_ready=False))
    for _ in range(3):
        loop.turn()
    assert (loop.num_stalls, loop.stats().num_waiting) == (0, 4)
    loop.grammar_ready("r")
    tokens: dict[int, list[int]] = {first + i: [] for i in range(4)}
    scores: dict[int, list[int]] = {first + i: [] for i in range(4)}
    while loop.has_unfinished():
        loop.turn()
        out = loop.poll()
        for key, token in zip(out.token_keys.tolist(), out.tokens.tolist(), strict=True):
            tokens[key].append(token)
        for key, position in zip(out.score_keys.tolist(), out.score_positions.tolist(), strict=True):
            scores[key].append(position)
    for answer in tokens.values():
        assert len(answer) == 6
        assert all(token in source.allowed(5, answer[:i]) for i, token in enumerate(answer))
    assert len({tuple(answer) for answer in tokens.values()}) == 4
    assert all(told == list(range(1, 21)) for told in scores.values())
    assert device.num_tokens == 21 + 4 * 5
    assert device.violations == []


def test_a_grammar_that_gives_up_ends_its_answers_only() -> None:
    """Its reqs end with its words; the others give the tokens they give without it."""
    source = Remainders()
    fine, _, _ = run(1, 5, source)
    source = Remainders()
    source.refuse = {10}
    tokens, ends, _ = run(1, 5, source)
    assert "too hard" in ends["r10/0"]
    assert {k: v for k, v in tokens.items() if "r10" not in k} == {
        k: v for k, v in fine.items() if "r10" not in k
    }


def test_a_source_that_raises_fails_reqs_not_the_engine() -> None:
    """A bug in a grammar's library is an error of the reqs that use it."""

    class Broken(Remainders):
        def fill(self, rows: Any) -> Any:
            raise RuntimeError("boom")

    tokens, ends, _ = run(1, 1, Broken())
    assert all(("boom" in why) == (int(name[1:].split("/")[0]) % 3 > 0) for name, why in ends.items())
    assert all(tokens[name] for name in ends if int(name[1:].split("/")[0]) % 3 == 0)


class Letters:
    """A Python executor that samples the lowest token allowed; on a worker thread its launch blocks."""

    overlap_depth = 0

    def buffers(self, layout: Any, n: int) -> list[np.ndarray]:
        raw = [np.zeros(layout.nbytes + 64, np.uint8) for _ in range(n)]
        self.memory = [one[-one.ctypes.data % 64 :][: layout.nbytes] for one in raw]
        self.calls: list[str] = []
        return self.memory

    def launch(self, index: int) -> None:
        words = self.memory[index].view(np.int32)
        self.count, self.late = int(words[9]), bool(words[1] & 2)
        self.tokens = np.zeros(self.count, np.int32)
        self.calls.append("launch")

    def launch_sample(self, batch_id: int, mask_row: np.ndarray, masks: np.ndarray) -> None:
        assert self.late
        self.calls.append("sample")
        bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")
        for i, row in enumerate(mask_row.tolist()):
            if row >= 0:
                self.tokens[i] = np.flatnonzero(bits[row])[0]

    def collect(self, result: Any) -> None:
        result.token_ids = self.tokens


@pytest.mark.parametrize("worker_thread", [False, True])
def test_python_executors_get_masks_on_either_thread(worker_thread: bool) -> None:
    """The worker waits for the masks of its step and nothing else; steps without grammar rows never do."""
    config = SchedulerConfig(num_blocks=64, block_size=4, max_num_seqs=4, max_num_batched_tokens=64)
    source, executor = Remainders(), Letters()
    loop = EngineLoop(config, executor, worker_thread=worker_thread, masks=source)
    plain = loop.add(Req("plain", [1, 2], SamplingParams(max_tokens=3)))
    masked = loop.add(Req("masked", [1, 2, 3], SamplingParams(max_tokens=5), grammar=2))
    tokens: dict[int, list[int]] = {plain: [], masked: []}
    while loop.has_unfinished():
        loop.turn()
        out = loop.poll()
        for key, token in zip(out.token_keys.tolist(), out.tokens.tolist(), strict=True):
            tokens[key].append(token)
    assert tokens == {plain: [0, 0, 0], masked: [2, 0, 0, 0, 0]}
    assert executor.calls.count("sample") == 5
    again = loop.add(Req("again", [1], SamplingParams(max_tokens=2)))
    while loop.has_unfinished():
        loop.turn()
    assert again not in source.forgotten
    assert executor.calls.count("sample") == 5
    assert all(step["mask_ns"] > 0 for step in loop.trace()[:5])


def test_a_req_waits_for_its_grammar_and_holds_up_nobody() -> None:
    """Behind it others run; when it is ready it runs, and when it is refused it ends with the reason."""
    config = SchedulerConfig(num_blocks=64, block_size=4, max_num_seqs=4, max_num_batched_tokens=64)
    loop = EngineLoop(config, Letters(), masks=Remainders())
    waits = loop.add(Req("waits", [1, 2], SamplingParams(max_tokens=2, n=2), grammar=1, grammar_ready=False))
    wrong = loop.add(Req("wrong", [1, 2], SamplingParams(max_tokens=2), grammar=2, grammar_ready=False))
    gone = loop.add(Req("gone", [1, 2], SamplingParams(max_tokens=2), grammar=3, grammar_ready=False))
    fine = loop.add(Req("fine", [1, 2], SamplingParams(max_tokens=2)))

    def ends() -> dict[int, tuple[int, str]]:
        for _ in range(10):
            loop.turn()
        out = loop.poll()
        reasons = zip(out.finish_reasons.tolist(), out.messages, strict=True)
        return dict(zip(out.end_keys.tolist(), reasons, strict=True))

    assert ends() == {fine: (LENGTH, "")}
    assert loop.stats().num_waiting == 4
    loop.abort(gone)
    assert ends() == {gone: (ABORT, "")}
    loop.end_with_error("wrong", "no such rule")
    assert ends() == {wrong: (ERROR, "no such rule")}
    loop.grammar_ready("waits")
    assert ends() == {waits: (LENGTH, ""), waits + 1: (LENGTH, "")}
    assert loop.num_stalls == 0


def test_the_reason_is_told_and_the_log_replays() -> None:
    """`grammar` is a reason to wait like others, and readiness an event like others."""
    s = Scheduler(SchedulerConfig(num_blocks=64, block_size=4, max_num_seqs=4, max_num_batched_tokens=64))
    s.start_log()
    req = Req("g", [1, 2, 3], SamplingParams(max_tokens=2), grammar=1, grammar_ready=False)
    s.add(req)
    s.add(Req("bad", [1, 2, 3], SamplingParams(max_tokens=2), grammar=2, grammar_ready=False))
    assert s.schedule() is None
    assert s.explain(req).code == "grammar"
    assert "compiled" in str(s.explain(req))
    assert s.fail("bad", "wrong")
    assert s.grammar_ready("g")
    assert not s.grammar_ready("nobody")
    for _ in range(2):
        batch = s.schedule()
        assert batch is not None
        s.commit(batch, [5])
    assert req.output_ids == [5, 5]
    s.check_integrity()
    report = replay(s.log())
    assert (report.num_steps, report.first_difference) == (2, 0)


def test_a_grammar_needs_a_source() -> None:
    """A loop without one says so at the door, not at the first mask."""
    config = SchedulerConfig(num_blocks=64, block_size=4, max_num_seqs=4, max_num_batched_tokens=64)
    with pytest.raises(ValueError, match="no mask source"):
        EngineLoop(config, Letters()).add(Req("a", [1], SamplingParams(max_tokens=2), grammar=1))
