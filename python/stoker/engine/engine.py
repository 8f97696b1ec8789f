"""The engine as `LLM` and `AsyncLLM` drive it: model, KV memory, runner, scheduler and loop behind one
object, in token ids.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from stoker._core.loop import EngineLoop
from stoker._core.sched import AttentionGeometry
from stoker.config import EngineConfig
from stoker.engine.answers import Answers
from stoker.engine.build import Parts, build
from stoker.engine.grammars import Grammars
from stoker.engine.output import EngineOutput, EngineStats, StepNews
from stoker.model_config import GenerationConfig, ModelConfig
from stoker.scheduler import KVGroup, Req, SchedulerConfig

if TYPE_CHECKING:
    from stoker.sampling_params import SamplingParams

# How long step() sleeps at a time while every request waits for its grammar.
_IDLE_SECONDS = 0.05


class Engine:
    """Builds everything that `config` names and runs requests of token ids.

    Two ways to drive it, never both at once:

    - on the caller's thread (`LLM`): `add_request(...)`, then `step()` until `has_unfinished()` is False;
    - with its own thread (`AsyncLLM`): `start()`, then `poll()`/`wait(timeout)` from one consumer,
      `add_request` and `abort` from any thread, `close()` at the end.

    Raises ValueError from the constructor for what `EngineConfig` or the checkpoint gets wrong.
    """

    config: EngineConfig
    """As given."""
    model_config: ModelConfig
    generation_config: GenerationConfig
    model_path: str
    """The checkpoint's folder on this machine (a hub id resolved): where the tokenizer's files are."""
    max_model_len: int
    """Prompt and output tokens of one request, at most."""
    dtype: str
    """Of weights and activations, with `auto` resolved."""
    ledger: dict[str, float]
    """GiB of weights, kv and host_kv, and seconds of loading."""
    eos_token_ids: tuple[int, ...]
    """Tokens that end an answer unless `ignore_eos`; add_request applies them by itself."""

    def __init__(self, config: EngineConfig) -> None:
        parts = build(config)
        self.config = config
        self.model_config = parts.model_config
        self.generation_config = parts.generation_config
        self.model_path = parts.model_path
        self.max_model_len = parts.max_model_len
        self.eos_token_ids = parts.generation_config.eos_token_ids
        self.dtype = parts.dtype
        self.ledger = parts.ledger
        self.max_num_seqs = parts.sizes.max_num_seqs
        self.runner = parts.runner
        # Not through self: the loop holds the grammars, and what it holds no collector sees.
        tokenizer = Path(parts.model_path) / "tokenizer.json"
        self._grammars = Grammars(
            lambda: tokenizer.read_text(encoding="utf-8"),
            self.model_config.vocab_size,
            tuple(self.eos_token_ids),
        )
        self.loop = EngineLoop(
            scheduler_config(config, parts),
            parts.runner,
            worker_thread=parts.worker_thread,
            masks=self._grammars,
            event_log=config.event_log or "",
        )
        graphs = getattr(parts.runner, "graph_bytes", None)  # captured just now
        if graphs is not None:
            self.ledger["graphs"] = graphs / (1 << 30)
        self._answers = Answers()
        self._lock = threading.Lock()  # guards _answers: requests come in on other threads than news goes out
        self._closed = False

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
        """Puts a request in the inbox and returns at once.

        `prompt_token_ids` is a list of ints or an int32 array. Raises ValueError, and leaves nothing
        behind, for a prompt that is empty, too long for the model, or holds ids outside the vocabulary; for
        a request that could never fit the KV pool or the seats; and for a rid that is still running.
        `params.max_tokens=None` means as far as the model's length allows. `params.stop` (strings) is not
        looked at here: whoever holds the text calls `abort` when it sees one. With `pool` nothing is sampled: the
        answer is its last token's hidden row (EngineOutput.pooled). With `stream=False` its tokens come all at
        once, with its end. `ticket` is what `wait_step` calls its first answer by, ticket + 1 the second.
        """
        prompt = self._checked_prompt(prompt_token_ids)
        if params.n > self.max_num_seqs:
            raise ValueError(
                f"n={params.n}: at most max_num_seqs={self.max_num_seqs} answers can run at once"
            )
        self._check_token_ids("stop_token_ids", params.stop_token_ids)
        self._check_token_ids("logit_bias", params.logit_bias or ())
        self._check_token_ids("allowed_token_ids", params.allowed_token_ids or ())
        for word in params.bad_words_token_ids:
            self._check_token_ids("bad_words_token_ids", word)
        if params.bad_words:
            raise ValueError("bad_words: an engine knows token ids only; give bad_words_token_ids")
        grammar, ready = self._open_grammar(params)
        try:
            req = Req(
                rid,
                prompt,
                params,
                priority=priority,
                cache_salt=cache_salt or "",
                tenant=tenant or "",
                pool=pool,
                grammar=grammar,
                grammar_ready=ready,
            )
            with self._lock:
                if self._closed:
                    raise ValueError("the engine is closed")
                if rid in self._answers:
                    raise ValueError(f"rid {rid!r} is still running; a rid must be new")
                self._answers.add(rid, self.loop.add(req, stream=stream), prompt_token_ids, params, ticket)
        except BaseException:
            self._grammars.close(grammar)
            raise
        if not ready:
            self._grammars.when_done(grammar, lambda error: self._grammar_is_done(rid, error))

    def use_tokenizer(self, to_json: Callable[[], str]) -> None:
        """Another tokenizer than the checkpoint's, for grammars: `to_json()` gives its tokenizer.json."""
        self._grammars.tokenizer_json = to_json

    def _open_grammar(self, params: SamplingParams) -> tuple[int, bool]:
        """The number of what makes a request's masks (0: nothing does) and whether it is compiled."""
        if not params.needs_masks:
            return 0, True
        if params.structured_outputs is not None and self.config.skip_tokenizer_init:
            raise ValueError(
                "structured_outputs needs the tokenizer, which skip_tokenizer_init=True left out"
            )
        number = self._grammars.open(params)
        try:
            return number, self._grammars.is_ready(number)
        except ValueError:
            self._grammars.close(number)
            raise

    def _grammar_is_done(self, rid: str, error: str | None) -> None:
        if error is None:
            self.loop.grammar_ready(rid)
        else:
            self.loop.end_with_error(rid, error)

    def _checked_prompt(self, prompt_token_ids: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int32]]:
        try:
            prompt = np.asarray(prompt_token_ids, dtype=np.int64)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"a prompt must be a list of token ids ({error})") from None
        if prompt.ndim != 1 or len(prompt) == 0:
            raise ValueError("the prompt is empty; at least one token is needed")
        if len(prompt) >= self.max_model_len:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens; at most {self.max_model_len - 1} leave room for one "
                f"more in max_model_len={self.max_model_len}"
            )
        vocab_size = self.model_config.vocab_size
        if prompt.min() < 0 or prompt.max() >= vocab_size:
            wrong = prompt[(prompt < 0) | (prompt >= vocab_size)][0]
            raise ValueError(f"token id {wrong} is outside the vocabulary; allowed are 0 to {vocab_size - 1}")
        return prompt.astype(np.int32)

    def _check_token_ids(self, name: str, token_ids: Iterable[int]) -> None:
        last = self.model_config.vocab_size - 1
        wrong = next((token_id for token_id in token_ids if token_id > last), None)
        if wrong is not None:
            raise ValueError(f"{name}: token id {wrong} is outside the vocabulary; allowed are 0 to {last}")

    def abort(self, rid: str, index: int | None = None) -> None:
        """Ends a request (or one of its n answers) as soon as may be; its last EngineOutput says `abort`.
        Any thread.
        """
        with self._lock:
            keys = self._answers.to_abort(rid, index)
        for key in keys:
            self.loop.abort(key)

    def step(self) -> list[EngineOutput]:
        """One turn of the loop on this thread: receive, schedule, launch, collect. What is new, possibly
        nothing.
        """
        self.loop.turn(_IDLE_SECONDS)
        return self.poll()

    def has_unfinished(self) -> bool:
        """True while a request was added whose end was not handed out yet."""
        return len(self._answers) > 0

    def start(self) -> None:
        """Runs the loop on a thread of its own until `close()`."""
        self.loop.run()

    def poll(self) -> list[EngineOutput]:
        """What is new, without waiting."""
        return self._news(self.loop.poll())

    def wait(self, timeout: float) -> list[EngineOutput]:
        """What is new, waiting at most `timeout` seconds (without the GIL) for something to come."""
        return self._news(self.loop.wait(timeout))

    def wait_step(self, timeout: float) -> StepNews:
        """As `wait`, the bare tokens of requests with a ticket apart."""
        outputs = self.loop.wait(timeout)
        if not outputs:
            return StepNews([], [], [])
        with self._lock:
            return self._answers.step_news(outputs)

    def _news(self, outputs: Any) -> list[EngineOutput]:
        if not outputs:
            return []
        with self._lock:
            return self._answers.news(outputs)

    @property
    def graph_buckets(self) -> list[int]:
        """Rows of decode steps that CUDA graphs were captured for; empty: none."""
        graphs = getattr(self.runner, "graphs", None)
        return [] if graphs is None else list(graphs[1].buckets)

    def stats(self) -> EngineStats:
        """A look at queue, seats and KV now."""
        s = self.loop.stats()
        return EngineStats(
            num_waiting=s.num_waiting,
            num_running=s.num_running,
            num_prefilling=s.num_prefilling,
            num_blocks=s.num_blocks,
            num_free_blocks=s.num_free_blocks,
            num_cached_blocks=s.num_cached_blocks,
            num_steps=s.num_steps,
            num_preemptions=s.num_preemptions,
            num_swaps=s.num_swaps,
            num_swapped=s.num_swapped,
            num_used_blocks=s.num_used_blocks,
            num_draining_blocks=s.num_draining_blocks,
            num_host_blocks=s.num_host_blocks,
            num_free_host_blocks=s.num_free_host_blocks,
            prompt_tokens=s.prefill_tokens,
            output_tokens=s.output_tokens,
            preemptions=s.preemptions,
        )

    @property
    def failure(self) -> str:
        """Why the engine has stopped for good; empty: it has not."""
        return self.loop.stats().failure

    def look(self, rid: str = "", *, max_waiting: int = 256, timeout: float = 1.0) -> list[dict[str, Any]]:
        """How requests stand and why they wait; see `_core.loop.EngineLoop.look`. For an engine that `start()` drives."""
        return self.loop.look(rid, max_waiting=max_waiting, timeout=timeout)

    def close(self) -> None:
        """Ends what still runs, joins the threads and gives the memory back. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._grammars.shutdown()
        self.loop.stop()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def scheduler_config(config: EngineConfig, parts: Parts) -> SchedulerConfig:
    """The engine's options in the scheduler's words."""
    group = KVGroup(
        block_size=config.block_size,
        num_blocks=parts.num_blocks,
        num_host_blocks=parts.num_host_blocks,
        bytes_per_block=parts.block_bytes,
    )
    options: dict[str, Any] = {
        "kv_groups": [group],
        "preemption": config.preemption,
        "max_num_seqs": parts.sizes.max_num_seqs,
        "max_num_batched_tokens": parts.sizes.max_num_batched_tokens,
        "max_model_len": parts.max_model_len,
        "vocab_size": parts.model_config.vocab_size,
        "eos_token_ids": list(parts.generation_config.eos_token_ids),
        "enable_prefix_caching": config.enable_prefix_caching,
        "batching": config.batching,
        "schedule_policy": config.schedule_policy,
        "schedule_conservativeness": config.schedule_conservativeness,
        "urgent_prefill_token_threshold": config.urgent_prefill_token_threshold,
        "admission": config.admission,
        "seed": config.seed,
    }
    if parts.attention is not None:
        options["attention"] = AttentionGeometry(**parts.attention.geometry)
        options["attention_windows"] = parts.attention.windows
    return SchedulerConfig(**options | config.scheduler_options)
