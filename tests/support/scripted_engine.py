"""The real loop and scheduler over the scripted executor, at a fixed pace: what a server is loaded with. No model, no torch."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stoker._core.loop import EngineLoop
from stoker._core.sim import FakeGroup, ScriptedExecutor
from stoker.engine.answers import Answers
from stoker.engine.output import EngineOutput, EngineStats, StepNews
from stoker.sampling_params import SamplingParams
from stoker.scheduler import Req, SchedulerConfig

VOCAB = 2000
FIRST = 300  # token ids below are left to tokenizers' special tokens and bytes


class ScriptedEngine:
    """`stoker.engine.Engine`'s driven side at `steps_per_second` (None: as fast as it can). An answer's tokens are a hash
    of its prompt and seed, so whoever knows those knows them: `expected`. `steps_file` gets of each turn the time (monotonic),
    the steps so far and the seats taken."""

    eos_token_ids = (0,)

    def __init__(
        self,
        model_path: str,
        *,
        steps_per_second: float | None = None,
        max_num_seqs: int = 256,
        max_model_len: int = 4096,
        num_blocks: int = 20000,
        steps_file: str | None = None,
        failing_steps: Sequence[int] = (),
    ) -> None:
        self.model_path = model_path
        self.max_model_len = max_model_len
        self.max_num_seqs = max_num_seqs
        self._device = ScriptedExecutor(
            groups=[FakeGroup(block_size=16, num_blocks=num_blocks)],
            vocab_size=VOCAB,
            read_all_rows=False,
            failing_steps=list(failing_steps),
        )
        config = SchedulerConfig(
            num_blocks=num_blocks,
            block_size=16,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=8192,
            max_model_len=max_model_len,
            vocab_size=VOCAB,
            eos_token_ids=list(self.eos_token_ids),
        )
        self.loop = EngineLoop(config, self._device)
        self._answers = Answers()
        self._lock = threading.Lock()
        self._pace = None if steps_per_second is None else 1 / steps_per_second
        self._steps_file = steps_file
        self._turns: list[tuple[float, int, int]] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._drive, daemon=True)

    def add_request(
        self,
        rid: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        tenant: str | None = None,
        pool: bool = False,
        stream: bool = True,
        ticket: int | None = None,
    ) -> None:
        req = Req(rid, list(prompt_token_ids), params, priority=priority, cache_salt=cache_salt or "")
        with self._lock:
            self._answers.add(rid, self.loop.add(req, stream=stream), prompt_token_ids, params, ticket)

    def abort(self, rid: str, index: int | None = None) -> None:
        with self._lock:
            keys = self._answers.to_abort(rid, index)
        for key in keys:
            self.loop.abort(key)

    def start(self) -> None:
        self._thread.start()

    def _drive(self) -> None:
        due = time.monotonic()
        while not self._closed.is_set():
            if not self.loop.turn(timeout=0.2):
                due = time.monotonic()
                continue
            now = self.loop.stats()
            self._turns.append((time.monotonic(), now.num_steps, now.num_running))
            if self._pace is not None:
                due = max(due + self._pace, time.monotonic() - self._pace)
                self._closed.wait(max(0.0, due - time.monotonic()))

    def wait(self, timeout: float) -> list[EngineOutput]:
        outputs = self.loop.wait(timeout)
        with self._lock:
            return self._answers.news(outputs) if outputs else []

    def wait_step(self, timeout: float) -> StepNews:
        outputs = self.loop.wait(timeout)
        with self._lock:
            return self._answers.step_news(outputs) if outputs else StepNews([], [], [])

    def stats(self) -> EngineStats:
        s = self.loop.stats()
        names = {
            "prompt_tokens": "prefill_tokens",
        }
        return EngineStats(**{n: getattr(s, names.get(n, n)) for n in EngineStats.__slots__})

    failure = ""

    def look(self, rid: str = "", *, max_waiting: int = 256, timeout: float = 1.0) -> list[dict[str, Any]]:
        return []

    def close(self) -> None:
        self._closed.set()
        if self._thread.ident is not None:
            self._thread.join(5)
        assert self._device.violations == [], self._device.violations
        if self._steps_file is not None:
            Path(self._steps_file).write_text(json.dumps(self._turns))


def expected(jobs: Sequence[tuple[Sequence[int], int, int]]) -> list[list[int]]:
    """The tokens of answers to (prompt, seed, number of tokens), whoever shares their batches."""
    engine = ScriptedEngine("")
    for i, (prompt, seed, count) in enumerate(jobs):
        engine.add_request(str(i), prompt, SamplingParams(max_tokens=count, seed=seed, ignore_eos=True))
    tokens: list[list[int]] = [[] for _ in jobs]
    while engine.loop.has_unfinished():
        engine.loop.turn()
        for output in engine.wait(0):
            tokens[int(output.rid)] += output.new_token_ids
    return tokens


def build(options: dict[str, Any]) -> tuple[ScriptedEngine, dict[str, Any]]:
    """For `stoker.cli.engine_main`."""
    return ScriptedEngine(**options), {"vocab_size": VOCAB}
