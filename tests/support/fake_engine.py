"""An engine without a model: it plays answers from a script, one token a step and answer, with the interface of `Engine`."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from stoker.config import EngineConfig
from stoker.engine.output import EngineOutput, EngineStats, TokenLogprobs
from stoker.model_config import GenerationConfig
from stoker.sampling_params import SamplingParams

Script = Callable[[list[int], int], list[int]]


@dataclass
class Running:
    prompt: list[int]
    params: SamplingParams
    tokens: list[list[int]]
    arrival: float = field(default_factory=time.monotonic)
    at: list[int] = field(default_factory=list)
    live: set[int] = field(default_factory=set)


class FakeEngine:
    """`script(prompt_token_ids, index)` gives an answer's tokens; a token of `eos` ends it."""

    def __init__(
        self, script: Script, *, eos: int = 2, vocab_size: int = 400, tokens_a_step: int = 1
    ) -> None:
        self._script = script
        self.config = EngineConfig.from_kwargs("fake", skip_tokenizer_init=True)
        self.generation_config = GenerationConfig(eos_token_ids=(eos,), defaults={"temperature": 0.5})
        self.model_path = "fake"
        self.max_model_len = 64
        self.eos_token_ids = (eos,)
        self.vocab_size = vocab_size
        self.tokens_a_step = tokens_a_step
        self.fail_on: int | None = None
        """A prompt token whose requests end with an error."""
        self.die_at_step: int | None = None
        self.delay = 0.0
        self.steps = 0
        self.running: dict[str, Running] = {}
        self.seen: list[str] = []
        self.aborted: list[tuple[str, int | None]] = []
        self.closed = False
        self._lock = threading.RLock()
        self._out: queue.Queue[EngineOutput | Exception] = queue.Queue()
        self._ended: list[EngineOutput] = []
        self._thread: threading.Thread | None = None

    def add_request(
        self,
        rid: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        stream: bool = True,
    ) -> None:
        prompt = list(prompt_token_ids)
        if max(prompt) >= self.vocab_size or min(prompt) < 0:
            raise ValueError(f"token id outside the vocabulary: allowed are 0 to {self.vocab_size - 1}")
        if len(prompt) >= self.max_model_len:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens, at most {self.max_model_len - 1} are allowed"
            )
        with self._lock:
            assert rid not in self.running
            self.seen.append(rid)
            answers = [self._script(prompt, index) for index in range(params.n)]
            self.running[rid] = Running(prompt, params, answers, at=[0] * params.n, live=set(range(params.n)))

    def abort(self, rid: str, index: int | None = None) -> None:
        with self._lock:
            self.aborted.append((rid, index))
            if rid in self.running:
                for which in sorted(self.running[rid].live) if index is None else [index]:
                    self._end(rid, which, EngineOutput(rid, which, finish_reason="abort"))

    def _end(self, rid: str, index: int, news: EngineOutput) -> None:
        request = self.running[rid]
        # The account comes with the end, as from the real engine.
        news.arrival_time = news.first_scheduled_time = news.first_token_time = request.arrival
        news.finished_time = time.monotonic()
        news.num_cached_tokens = len(request.prompt) // 16 * 16
        request.live.discard(index)
        self._ended.append(news)
        if not request.live:
            del self.running[rid]

    def step(self) -> list[EngineOutput]:
        time.sleep(self.delay)
        with self._lock:
            self.steps += 1
            if self.steps == self.die_at_step:
                raise RuntimeError("the device is lost")
            outputs: list[EngineOutput] = []
            for rid, request in list(self.running.items()):
                for index in sorted(request.live):
                    news = self._advance(rid, index, request)
                    if news.finish_reason is None:
                        outputs.append(news)
                    else:
                        self._end(rid, index, news)
            outputs += self._ended
            self._ended = []
            return outputs

    def _advance(self, rid: str, index: int, request: Running) -> EngineOutput:
        news = EngineOutput(rid, index)
        if self.fail_on in request.prompt:
            news.finish_reason, news.message = "error", "NaN logits"
            return news
        params = request.params
        for _ in range(self.tokens_a_step):
            token = request.tokens[index][request.at[index] % len(request.tokens[index])]
            request.at[index] += 1
            news.new_token_ids.append(token)
            done = request.at[index]
            if token in self.eos_token_ids and not params.ignore_eos:
                news.finish_reason = "stop"
            elif token in params.stop_token_ids:
                news.finish_reason, news.stop_reason = "stop", token
            elif done >= (params.max_tokens or self.max_model_len - len(request.prompt)):
                news.finish_reason = "length"
            if news.finish_reason:
                break
        if params.logprobs is not None:
            news.new_logprobs = [
                TokenLogprobs(
                    [t, *range(params.logprobs)], [-0.5, *(-1.0 - k for k in range(params.logprobs))], 3
                )
                for t in news.new_token_ids
            ]
        return news

    def has_unfinished(self) -> bool:
        with self._lock:
            return bool(self.running or self._ended)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self.closed:
                for news in self.step():
                    self._out.put(news)
                time.sleep(0.0005)
            with self._lock:
                for rid in list(self.running):
                    self.abort(rid)
                for news in self._ended:
                    self._out.put(news)
        except RuntimeError as error:
            self._out.put(error)

    def poll(self) -> list[EngineOutput]:
        outputs: list[EngineOutput] = []
        while not self._out.empty():
            outputs.append(self._checked(self._out.get_nowait()))
        return outputs

    def wait(self, timeout: float) -> list[EngineOutput]:
        try:
            first = self._checked(self._out.get(timeout=timeout))
        except queue.Empty:
            return []
        return [first, *self.poll()]

    @staticmethod
    def _checked(news: EngineOutput | Exception) -> EngineOutput:
        if isinstance(news, Exception):
            raise news
        return news

    def stats(self) -> EngineStats:
        """Everything runs, nothing waits."""
        running = len(self.running)
        return EngineStats(
            num_waiting=0,
            num_running=running,
            num_prefilling=0,
            num_blocks=100,
            num_free_blocks=90,
            num_cached_blocks=0,
            num_steps=self.steps,
            num_preemptions=0,
            num_swaps=0,
            num_swapped=0,
            num_used_blocks=10,
            num_draining_blocks=0,
            num_host_blocks=0,
            num_free_host_blocks=0,
            prompt_tokens=0,
            output_tokens=0,
        )

    def close(self) -> None:
        self.closed = True
        if self._thread is not None:
            self._thread.join()
