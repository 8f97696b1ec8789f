"""The engine loop from Python, step by step, against the reference model: hypothesis decides what happens next and shrinks what fails.

Protects the same promises as the C++ workloads, through the bindings and with an oracle of its own (reference_model.py):
requests come, are aborted and turned in any order; in the end each has ended once with exactly the expected tokens.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, ClassVar

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from stoker._core.loop import EngineLoop
from stoker._core.sim import FakeGroup, ScriptedExecutor
from stoker.sampling_params import SamplingParams
from stoker.scheduler import KVGroup, Req, SchedulerConfig

EOS = 2
VOCAB = 11
REASONS = {1: "stop", 2: "length", 3: "abort", 4: "error"}


class EngineMachine(RuleBasedStateMachine):
    """One engine on the scripted executor. `model` is the reference model's module."""

    model: ClassVar[ModuleType]

    @initialize(
        depth=st.integers(0, 3),
        block_size=st.sampled_from([1, 2, 4, 8]),
        tokens_of_kv=st.integers(24, 120),
        seats=st.integers(1, 5),
        spare_budget=st.integers(0, 20),
        caching=st.booleans(),
        batching=st.sampled_from(["continuous", "prefill_first", "static"]),
        admission=st.sampled_from(["learned", "guaranteed", "greedy"]),
        policy=st.sampled_from(["fcfs", "lpm", "priority", "sjf", "deadline", "fair"]),
        preemption=st.sampled_from(["auto", "swap"]),
        host_tokens=st.sampled_from([0, 0, 16, 120]),
        delay=st.integers(0, 3),
        eager=st.sampled_from([0, 50, 100]),
    )
    def start(
        self,
        depth: int,
        block_size: int,
        tokens_of_kv: int,
        seats: int,
        spare_budget: int,
        caching: bool,
        batching: str,
        admission: str,
        policy: str,
        preemption: str,
        host_tokens: int,
        delay: int,
        eager: int,
    ) -> None:
        num_blocks = 1 + tokens_of_kv // block_size
        host_blocks = 1 + host_tokens // block_size if host_tokens else 0
        group = KVGroup(
            block_size=block_size,
            num_blocks=num_blocks,
            num_host_blocks=host_blocks,
            bytes_per_block=300_000 * block_size,
        )
        self.rule = self.model.Rule(vocab_size=VOCAB, eos=EOS, eos_per_mille=30)
        self.max_model_len = (num_blocks - 1) * block_size + 1
        self.seats = seats
        self.executor = ScriptedExecutor(
            groups=[FakeGroup(block_size=block_size, num_blocks=num_blocks, num_host_blocks=host_blocks)],
            max_transfer_delay=delay,
            overlap_depth=depth,
            vocab_size=VOCAB,
            eos=EOS,
            eos_per_mille=30,
            eager_percent=eager,
        )
        config = SchedulerConfig(
            kv_groups=[group],
            preemption=preemption if host_blocks else "auto",
            max_num_seqs=seats,
            max_num_batched_tokens=seats + spare_budget,
            vocab_size=VOCAB,
            eos_token_ids=[EOS],
            enable_prefix_caching=caching,
            batching=batching,
            admission=admission,
            schedule_policy=policy,
        )
        self.loop = EngineLoop(config, self.executor, check_each_step=True)
        self.requests: dict[int, Any] = {}
        self.tokens: dict[int, list[int]] = {}
        self.ends: dict[int, str] = {}
        self.aborted: set[int] = set()
        self.turns = 0

    @rule(
        shared=st.integers(0, 12),
        own=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=24),
        max_tokens=st.integers(1, 16),
        min_tokens=st.integers(0, 3),
        ignore_eos=st.booleans(),
        stop=st.lists(st.integers(0, VOCAB - 1), max_size=2),
        seed=st.integers(0, 2**63 - 1),
        n=st.sampled_from([1, 1, 1, 2, 3]),
        priority=st.integers(0, 2),
        stream=st.booleans(),
    )
    def add(
        self,
        shared: int,
        own: list[int],
        max_tokens: int,
        min_tokens: int,
        ignore_eos: bool,
        stop: list[int],
        seed: int,
        n: int,
        priority: int,
        stream: bool,
    ) -> None:
        """A prompt may begin like others do. What can never fit must be refused, nothing else."""
        prompt = [5, 6, 7, 8, 9, 10, 3, 4, 5, 6, 7, 8][:shared] + own
        min_tokens = min(min_tokens, max_tokens)
        params = SamplingParams(
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            ignore_eos=ignore_eos,
            stop_token_ids=stop,
            seed=seed,
            n=n,
        )
        fits = len(prompt) < self.max_model_len and n <= self.seats
        try:
            req = Req(f"r{len(self.requests)}-{self.turns}", prompt, params, priority=priority)
            key = self.loop.add(req, stream=stream)
        except ValueError:
            assert not fits, "refused a request that fits"
            return
        assert fits, "took a request that can never fit"
        for child in range(n):
            self.requests[key + child] = self.model.Request(
                prompt=tuple(prompt),
                max_tokens=min(max_tokens, self.max_model_len - len(prompt)),
                seed=self.model.child_seed(seed, child),
                stop=tuple(stop) if ignore_eos else (*stop, EOS),
                min_tokens=min_tokens,
            )
            self.tokens[key + child] = []

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.requests)))
        self.loop.abort(key)
        self.aborted.add(key)

    @rule(turns=st.integers(1, 12))
    def turn(self, turns: int) -> None:
        for _ in range(turns):
            self.loop.turn()
            self.turns += 1
        self.read()

    def read(self) -> None:
        out = self.loop.poll()
        for key, token in zip(out.token_keys.tolist(), out.tokens.tolist(), strict=True):
            assert key not in self.ends, "a token after the end"
            self.tokens[key].append(token)
        for key, reason, count in zip(
            out.end_keys.tolist(), out.finish_reasons.tolist(), out.end_num_tokens.tolist(), strict=True
        ):
            assert key not in self.ends, "ended twice"
            self.ends[key] = REASONS[reason]
            assert count == len(self.tokens[key])

    @invariant()
    def device_saw_nothing_wrong(self) -> None:
        if hasattr(self, "executor"):
            assert self.executor.violations == []
            assert self.loop.num_stalls == 0
            assert self.loop.stats().num_running <= self.seats

    def teardown(self) -> None:
        """To the end: every request ends, with what it would have got alone."""
        if not hasattr(self, "loop"):
            return
        work = sum(len(r.prompt) + r.max_tokens for r in self.requests.values())
        for _ in range(1000 + 20 * work):
            if not self.loop.has_unfinished():
                break
            self.loop.turn()
        assert not self.loop.has_unfinished(), "something waits for ever"
        while self.loop.turn():
            pass  # rows of reqs whose end was seen late may still be in flight
        self.read()
        for key, request in self.requests.items():
            expected = self.model.expected_answer(self.rule, request)
            got = tuple(self.tokens[key])
            if key in self.aborted and self.ends[key] == "abort":
                assert got == expected.tokens[: len(got)]
            else:
                assert (got, self.ends[key]) == (expected.tokens, expected.finish_reason)
        stats = self.loop.stats()
        assert stats.num_used_blocks == 0
        assert stats.num_draining_blocks == 0
        assert stats.num_free_blocks + stats.num_cached_blocks == stats.num_blocks


def test_any_order_of_events(reference_model: ModuleType) -> None:
    """The short form: the same examples in every run."""
    EngineMachine.model = reference_model
    run_state_machine_as_test(
        EngineMachine,
        settings=settings(
            max_examples=40,
            phases=[Phase.generate],
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
