"""An engine without a model: every answer is a fixed walk through the vocabulary, a token each tick. For tests of the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stoker.engine.output import EngineOutput, EngineStats, TokenLogprobs
from stoker.sampling_params import SamplingParams

VOCAB = 2000


def expected_token(prompt: Sequence[int], index: int, position: int) -> int:
    """The token that answer `index` to `prompt` has at `position`."""
    return 300 + (sum(prompt) * 31 + index * 17 + position * 7919) % 1200


@dataclass
class _Running:
    rid: str
    index: int
    prompt: list[int]
    params: SamplingParams
    limit: int
    arrival: float = field(default_factory=time.monotonic)
    done: int = 0
    first: float = 0.0


class FakeEngine:
    """`stoker.engine.Engine`'s driven side. A prompt that begins with token 7 fails; one with token 8 makes the engine die."""

    max_model_len = 2048
    eos_token_ids = (0,)

    def __init__(self, model_path: str, tick: float) -> None:
        self.model_path = model_path
        self._tick = tick
        self._lock = threading.Condition()
        self._running: list[_Running] = []
        self._news: list[EngineOutput] = []
        self._closed = False
        self._steps = 0
        self._tokens = 0
        self._thread = threading.Thread(target=self._drive, daemon=True)

    def add_request(
        self,
        rid: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> None:
        prompt = list(prompt_token_ids)
        if max(prompt) >= VOCAB:
            raise ValueError(f"token id {max(prompt)}: 0 to {VOCAB - 1} are allowed")
        limit = params.max_tokens or self.max_model_len - len(prompt)
        with self._lock:
            self._running += [_Running(rid, i, prompt, params, limit) for i in range(params.n)]
            self._lock.notify_all()

    def abort(self, rid: str, index: int | None = None) -> None:
        with self._lock:
            for one in [r for r in self._running if r.rid == rid and index in (None, r.index)]:
                self._running.remove(one)
                self._news.append(self._output(one, [], "abort"))
            self._lock.notify_all()

    def start(self) -> None:
        self._thread.start()

    def wait(self, timeout: float) -> list[EngineOutput]:
        with self._lock:
            self._lock.wait_for(lambda: self._news or self._closed, timeout)
            news, self._news = self._news, []
            return news

    def stats(self) -> EngineStats:
        with self._lock:
            names = EngineStats.__slots__
            values: dict[str, Any] = dict.fromkeys(names, 0)
            values |= {
                "num_running": len(self._running),
                "num_steps": self._steps,
                "output_tokens": self._tokens,
            }
            return EngineStats(**values)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify_all()

    def _output(
        self, one: _Running, tokens: list[int], finish: str | None, message: str = ""
    ) -> EngineOutput:
        logprobs = None
        if one.params.logprobs is not None:
            logprobs = [
                TokenLogprobs([t, *range(one.params.logprobs)], [-0.5] * (one.params.logprobs + 1), 1)
                for t in tokens
            ]
        now = time.monotonic()
        return EngineOutput(
            one.rid,
            one.index,
            tokens,
            logprobs,
            finish_reason=finish,
            message=message,
            arrival_time=one.arrival,
            first_scheduled_time=one.arrival,
            first_token_time=one.first,
            finished_time=now if finish else 0.0,
        )

    def _drive(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._running or self._closed)
                if self._closed:
                    return
                self._steps += 1
                for one in list(self._running):
                    self._step(one)
                self._lock.notify_all()
            time.sleep(self._tick)

    def _step(self, one: _Running) -> None:
        if one.prompt[0] == 7:
            self._running.remove(one)
            self._news.append(self._output(one, [], "error", "this prompt always fails"))
            return
        token = expected_token(one.prompt, one.index, one.done)
        one.done += 1
        one.first = one.first or time.monotonic()
        self._tokens += 1
        finish = "length" if one.done >= one.limit else None
        if finish:
            self._running.remove(one)
        self._news.append(self._output(one, [token], finish))


def build(options: dict[str, Any]) -> tuple[FakeEngine, dict[str, Any]]:
    """For `stoker.cli.engine_main`: options are model_path and tick (seconds a step)."""
    return FakeEngine(options["model_path"], options.get("tick", 0.01)), {"vocab_size": VOCAB}
