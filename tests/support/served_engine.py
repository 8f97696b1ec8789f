"""An engine without a model: every answer is a fixed walk through the vocabulary, a token each tick. For tests of the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stoker.engine.output import EngineOutput, EngineStats, StepNews, TokenLogprobs
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
    tenant: str = ""
    pool: bool = False
    arrival: float = field(default_factory=time.monotonic)
    done: int = 0
    first: float = 0.0


class FakeEngine:
    """`stoker.engine.Engine`'s driven side. A prompt that begins with token 7 fails; one with token 8 makes the engine die."""

    eos_token_ids = (0,)

    def __init__(
        self, model_path: str, tick: float, max_num_seqs: int = 256, max_model_len: int = 2048
    ) -> None:
        self.max_model_len = max_model_len
        self.model_path = model_path
        self.max_num_seqs = max_num_seqs
        self._waiting: list[_Running] = []
        self._tick = tick
        self._lock = threading.Condition()
        self._running: list[_Running] = []
        self._news: list[EngineOutput] = []
        self._closed = False
        self.failure = ""
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
        tenant: str | None = None,
        pool: bool = False,
        stream: bool = True,
        ticket: int | None = None,
    ) -> None:
        prompt = list(prompt_token_ids)
        wrong = [t for t in (*params.stop_token_ids, *(params.logit_bias or {})) if t >= VOCAB]
        if wrong:
            raise ValueError(f"token id {wrong[0]}: 0 to {VOCAB - 1} are allowed")
        if max(prompt) >= VOCAB:
            raise ValueError(f"token id {max(prompt)}: 0 to {VOCAB - 1} are allowed")
        limit = min(params.max_tokens or self.max_model_len, self.max_model_len - len(prompt))
        with self._lock:
            new = [_Running(rid, i, prompt, params, limit, tenant or "", pool) for i in range(params.n)]
            self._waiting += new
            self._seat()
            self._lock.notify_all()

    def abort(self, rid: str, index: int | None = None) -> None:
        with self._lock:
            both = [*self._running, *self._waiting]
            for one in [r for r in both if r.rid == rid and index in (None, r.index)]:
                (self._running if one in self._running else self._waiting).remove(one)
                self._news.append(self._output(one, [], "abort"))
            self._seat()
            self._lock.notify_all()

    def start(self) -> None:
        self._thread.start()

    def wait_step(self, timeout: float) -> StepNews:
        with self._lock:
            self._lock.wait_for(lambda: self._news or self._closed or self.failure, timeout)
            news, self._news = self._news, []
            return StepNews([], [], news)

    def stats(self) -> EngineStats:
        with self._lock:
            names = EngineStats.__slots__
            values: dict[str, Any] = dict.fromkeys(names, 0)
            values |= {
                "num_running": len(self._running),
                "num_waiting": len(self._waiting),
                "num_steps": self._steps,
                "output_tokens": self._tokens,
                "preemptions": {("retract", "blocks"): 0},
            }
            return EngineStats(**values)

    def look(self, rid: str = "", *, max_waiting: int = 256, timeout: float = 1.0) -> list[dict[str, Any]]:
        with self._lock:
            places = [(one, -1) for one in self._running]
            places += [(one, place) for place, one in enumerate(self._waiting[:max_waiting])]
            return [self._looked(one, place) for one, place in places if rid in ("", one.rid)]

    def _looked(self, one: _Running, place: int) -> dict[str, Any]:
        waits = place >= 0
        return {
            "rid": one.rid if one.params.n == 1 else f"{one.rid}/{one.index}",
            "tenant": one.tenant,
            "state": "waiting" if waits else "running",
            "prefilling": False,
            "wait_code": "seats" if waits else "none",
            "wait": "waits for a seat" if waits else "",
            "needed": int(waits),
            "place": place,
            "prompt_len": len(one.prompt),
            "num_outputs": one.done,
            "computed": len(one.prompt) + one.done,
            "length_limit": len(one.prompt) + one.limit,
            "arrival_time": int(one.arrival * 1e9),
            "first_scheduled_time": -1 if waits else int(one.arrival * 1e9),
            "first_token_time": int(one.first * 1e9) if one.first else -1,
            **dict.fromkeys(("free", "evictable", "num_blocks", "priority", "prefill_steps"), 0),
            **dict.fromkeys(("decode_steps", "retractions", "swaps", "cached_tokens"), 0),
        }

    def _seat(self) -> None:
        while self._waiting and len(self._running) < self.max_num_seqs:
            self._running.append(self._waiting.pop(0))

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
                self._seat()
                for one in list(self._running):
                    self._step(one)
                self._lock.notify_all()
            time.sleep(self._tick)

    def _step(self, one: _Running) -> None:
        if self.failure:
            return
        if one.prompt[0] == 8:
            self.failure = "the device is lost"
            for lost in [*self._running, *self._waiting]:
                self._news.append(self._output(lost, [], "error", self.failure))
            self._running, self._waiting = [], []
            return
        if one.prompt[0] == 7:
            self._running.remove(one)
            self._news.append(self._output(one, [], "error", "this prompt always fails"))
            return
        if one.pool:
            self._running.remove(one)
            output = self._output(one, [], "stop")
            output.pooled = [float(sum(one.prompt)), 1.0, 2.0, 4.0]
            self._news.append(output)
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
    """For `stoker.cli.engine_main`: options are model_path, tick (seconds a step) and max_num_seqs."""
    given = {name: options[name] for name in ("max_num_seqs", "max_model_len") if name in options}
    return FakeEngine(options["model_path"], options.get("tick", 0.01), **given), {"vocab_size": VOCAB}
