"""From the engine's news to what a user holds: one `Assembly` a request collects token ids, makes text of them, and says which
answers a stop string has ended. Shared by `LLM` and `AsyncLLM`; runs on whichever one thread feeds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stoker.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from stoker.text import AnswerText, Tokenizer

if TYPE_CHECKING:
    from stoker.engine.output import EngineOutput, TokenLogprobs
    from stoker.sampling_params import SamplingParams


class Assembly:
    """One request on its way out: `update` with each EngineOutput of its rid, `output()` for how it stands."""

    def __init__(
        self,
        rid: str,
        prompt: str | None,
        prompt_token_ids: list[int],
        params: SamplingParams,
        tokenizer: Tokenizer | None,
    ) -> None:
        self.rid = rid
        self.prompt = prompt
        self.prompt_token_ids = prompt_token_ids
        self.num_output_tokens = 0
        self._params = params
        self._tokenizer = tokenizer
        self._answers = [self._new_answer(index) for index in range(params.n)]
        self._unfinished = params.n
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        self._num_cached_tokens = 0
        self._latest: list[EngineOutput | None] = [None] * params.n

    @property
    def finished(self) -> bool:
        """Whether every answer is at its end and the engine has closed its account."""
        return self._unfinished == 0

    def update(self, news: EngineOutput) -> bool:
        """Takes the engine's news of one answer. True: a stop string has ended it and the engine does not know yet, so
        `engine.abort(rid, index)` is due. Tokens that come after a stop string are dropped; the request counts as
        finished once the engine's last word brought its account."""
        answer = self._answers[news.index]
        if answer.closed:
            return False
        self._latest[news.index] = news
        self._num_cached_tokens = max(self._num_cached_tokens, news.num_cached_tokens)
        if news.prompt_logprobs is not None:
            self._prompt_logprobs = [
                None if entry is None else _logprobs(entry, self._tokenizer) for entry in news.prompt_logprobs
            ]
        was_growing = answer.growing
        self.num_output_tokens += answer.take(news)
        self._unfinished -= answer.closed
        return was_growing and not answer.growing and not answer.closed

    def output(self) -> RequestOutput:
        """How the request stands now; later updates do not change what was returned."""
        return RequestOutput(
            request_id=self.rid,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            outputs=[answer.output() for answer in self._answers],
            finished=self.finished,
            prompt_logprobs=self._prompt_logprobs,
            num_cached_tokens=self._num_cached_tokens,
            metrics=self._metrics(),
        )

    def _new_answer(self, index: int) -> _Answer:
        params, tokenizer = self._params, self._tokenizer
        text = None
        if tokenizer is not None and params.detokenize:
            text = AnswerText(
                tokenizer,
                self.prompt_token_ids,
                stop=params.stop,
                include_stop=params.include_stop_str_in_output,
                min_tokens=params.min_tokens,
                skip_special_tokens=params.skip_special_tokens,
            )
        return _Answer(index, text, tokenizer, params)

    def _metrics(self) -> RequestMetrics:
        news = [known for known in self._latest if known is not None]
        if not news:
            return RequestMetrics()

        def first(times: Sequence[float]) -> float:
            return min((time for time in times if time), default=0.0)

        return RequestMetrics(
            arrival_time=first([known.arrival_time for known in news]),
            first_scheduled_time=first([known.first_scheduled_time for known in news]),
            first_token_time=first([known.first_token_time for known in news]),
            finished_time=max(known.finished_time for known in news) if self.finished else 0.0,
            num_preemptions=sum(known.num_preemptions for known in news),
        )


class _Answer:
    """One of a request's answers while it grows."""

    __slots__ = (
        "_cumulative",
        "_error",
        "_finish_reason",
        "_logprobs",
        "_params",
        "_stop_reason",
        "_text",
        "_token_ids",
        "_tokenizer",
        "closed",
        "index",
    )

    def __init__(
        self, index: int, text: AnswerText | None, tokenizer: Tokenizer | None, params: SamplingParams
    ) -> None:
        self.index = index
        self._text = text
        self._tokenizer = tokenizer
        self._params = params
        self._token_ids: list[int] = []
        self._logprobs: list[dict[int, Logprob]] | None = None if params.logprobs is None else []
        self._cumulative = 0.0
        self._finish_reason: str | None = None
        self._stop_reason: int | str | None = None
        self._error: str | None = None
        self.closed = False  # the engine has said its last word

    @property
    def growing(self) -> bool:
        return self._finish_reason is None

    def take(self, news: EngineOutput) -> int:
        """Appends what is new; returns how many of the new tokens belong to the answer."""
        self.closed = news.finish_reason is not None
        if not self.growing:
            return 0
        token_ids, count = news.new_token_ids, len(news.new_token_ids)
        self._finish_reason, self._stop_reason = news.finish_reason, news.stop_reason
        self._error = news.message if news.finish_reason == "error" else None
        if self._text is not None:
            ended = news.finish_reason is not None
            silent = news.finish_reason == "stop" and not self._params.include_stop_str_in_output
            delta = self._text.feed(token_ids, last=ended, silent_last=silent and count > 0)
            if delta.stop is not None:
                count = delta.num_tokens
                self._finish_reason, self._stop_reason = "stop", delta.stop
        self._token_ids.extend(token_ids[:count])
        if self._logprobs is not None and news.new_logprobs is not None:
            for entry in news.new_logprobs[:count]:
                self._logprobs.append(_logprobs(entry, self._tokenizer))
                self._cumulative += entry.logprobs[0]
        return count

    def output(self) -> CompletionOutput:
        return CompletionOutput(
            index=self.index,
            text=self._text.text if self._text is not None else "",
            token_ids=list(self._token_ids),
            cumulative_logprob=None if self._logprobs is None else self._cumulative,
            logprobs=None if self._logprobs is None else list(self._logprobs),
            finish_reason=self._finish_reason,
            stop_reason=self._stop_reason,
            error=self._error,
        )


def _logprobs(entry: TokenLogprobs, tokenizer: Tokenizer | None) -> dict[int, Logprob]:
    """By token id, the token itself first; the others are ranked by their order."""
    found: dict[int, Logprob] = {}
    for order, (token_id, logprob) in enumerate(zip(entry.token_ids, entry.logprobs, strict=True)):
        if token_id not in found:
            text = None if tokenizer is None else tokenizer.token_text(token_id)
            found[token_id] = Logprob(logprob, (entry.rank or None) if order == 0 else order, text)
    return found
