"""One request's answers as text while they grow: tokens from the engine become deltas, stop strings end an answer at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from starlette.requests import Request

from stoker.sampling_params import SamplingParams
from stoker.server import messages as m
from stoker.server.engine_client import EngineClient, EngineDeadError, RefusedError, Stream
from stoker.server.errors import ApiError
from stoker.server.metrics import Metrics, Pace
from stoker.server.sse import TextFrames, json_text
from stoker.structured_outputs import is_refusal
from stoker.text import AnswerText, Tokenizer


@dataclass(slots=True)
class Delta:
    """What a step added to one answer. `finish_reason` (stop, length, abort, error) ends it."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[m.Logprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    message: str = ""


@dataclass(slots=True)
class Answer:
    """The whole of one answer, for a response that does not stream."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[m.Logprobs] = field(default_factory=list)
    finish_reason: str = "abort"
    stop_reason: int | str | None = None


class Answers:
    """All answers of one prompt: `listen` to them, or `await whole()`."""

    def __init__(
        self,
        client: EngineClient,
        stream: Stream,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        params: SamplingParams,
        metrics: Metrics,
        pieces: Pieces,
        timeout: float | None = None,
    ) -> None:
        self._client = client
        self._stream = stream
        self.rid = stream.rid
        self.pooled: list[float] | None = None
        self.timed_out = False
        self._timeout = timeout or 0.0
        self._timer = None
        if timeout is not None:
            self._timer = asyncio.get_running_loop().call_later(timeout, self._time_is_over)
        self.ended = [False] * params.n
        self._metrics = metrics
        self._pieces = pieces
        self._paces = [Pace(metrics) for _ in range(params.n)]
        self._texts = [
            AnswerText(
                tokenizer,
                prompt,
                stop=params.stop,
                include_stop=params.include_stop_str_in_output,
                min_tokens=params.min_tokens,
                skip_special_tokens=params.skip_special_tokens,
            )
            for _ in range(params.n)
        ]
        self.num_prompt_tokens = len(prompt)
        self.num_output_tokens = 0
        self.num_cached_tokens = 0
        self.prompt_logprobs: list[m.Logprobs | None] | None = None
        self.accounts: list[m.Account] = []
        self.finish_reasons: list[str] = []

    def listen(self, take: Callable[[Delta], None], end: Callable[[ApiError | None], None]) -> None:
        """Calls `take` with what comes, in the turn in which it comes, and `end` once: with None after the last delta, or with
        why the request was refused or failed, or that the engine died."""

        def on_news(news: m.News | None, failure: Exception | None) -> None:
            if news is None:
                status = failure.status if isinstance(failure, RefusedError) else 503
                words = str(failure) if status != 503 else f"the engine stopped: {failure}"
                end(ApiError(status, words, retry_after=1 if status == 503 else None))
                return
            over = all(self.ended)  # then these are the remains of what a stop string has ended
            delta = self._take(news)
            if over:
                return
            if delta is not None and delta.finish_reason == "error":
                end(_failed(delta))
                return
            if delta is not None:
                take(delta)
            if all(self.ended):
                end(None)

        self._stream.listen(on_news)

    async def accepted(self) -> None:
        """Returns once the engine has taken the request; before that nothing has begun. Raises ApiError if it does not."""
        try:
            await self._stream.accepted()
        except RefusedError as error:
            self.close()
            raise ApiError(error.status, str(error), retry_after=1 if error.status == 503 else None) from None
        except EngineDeadError as error:
            self.close()
            raise ApiError(503, f"the engine stopped: {error}", retry_after=1) from None
        except BaseException:
            self.close()
            raise

    def tap(self, index: int, frames: TextFrames, write: Callable[[bytes], None]) -> None:
        """The short way for the bare tokens of one answer: each becomes a frame and is written, without a Delta. After
        `listen`; does nothing where tokens alone do not tell the text (stop strings, tokenizers with context)."""
        if not self.ended[index] and self._texts[index].whole_characters:
            self._stream.tap(index, _Tap(self, index, frames, write).take)

    async def whole(self) -> list[Answer]:
        """All answers, complete."""
        answers = [Answer() for _ in self._texts]
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def take(delta: Delta) -> None:
            answer = answers[delta.index]
            answer.token_ids += delta.token_ids
            if delta.logprobs:
                answer.logprobs += delta.logprobs
            if delta.finish_reason is not None:
                answer.finish_reason, answer.stop_reason = delta.finish_reason, delta.stop_reason

        def end(error: ApiError | None) -> None:
            if not done.done():
                done.set_result(None) if error is None else done.set_exception(error)

        try:
            self.listen(take, end)
            await done
        finally:
            self.close()
        if self.timed_out:
            raise ApiError(504, f"the request did not end within {self._timeout:g} s")
        for answer, text in zip(answers, self._texts, strict=True):
            answer.text = text.text
        return answers

    def close(self) -> None:
        """Ends what still runs."""
        if self._timer is not None:
            self._timer.cancel()
        self._stream.close()

    def _time_is_over(self) -> None:
        self.timed_out = True
        self._client.abort(self.rid)

    def account(self) -> str:
        """One line for the access log: what the request was, cost and waited for."""
        line = f"{self.rid} prompt={self.num_prompt_tokens} cached={self.num_cached_tokens} output={self.num_output_tokens}"
        if not self.accounts:
            return f"{line} aborted"
        began = min(one.arrival_time for one in self.accounts)
        ended = max(one.finished_time for one in self.accounts)
        preempted = sum(one.num_preemptions for one in self.accounts)
        parts = [line, f"preempted={preempted}" if preempted else "", f"end={','.join(self.finish_reasons)}"]
        for name, times in (
            ("queue", [one.first_scheduled_time for one in self.accounts]),
            ("ttft", [one.first_token_time for one in self.accounts]),
        ):
            first = min((time for time in times if time > 0), default=0.0)
            if first:
                parts.append(f"{name}={(first - began) * 1e3:.1f}ms")
        parts.append(f"total={(ended - began) * 1e3:.1f}ms")
        return " ".join(filter(None, parts))

    def _take(self, news: m.News) -> Delta | None:
        self.num_cached_tokens = max(self.num_cached_tokens, news.num_cached_tokens)
        if news.prompt_logprobs is not None:
            self.prompt_logprobs = news.prompt_logprobs
        if news.pooled is not None:
            self.pooled = news.pooled
        if news.account is not None:
            self.accounts.append(news.account)
            self.finish_reasons.append("stop" if self.ended[news.index] else news.finish_reason or "abort")
            self._metrics.account(news.account, self.finish_reasons[-1])
            if len(self.accounts) == 1:  # n answers share one prompt
                self._metrics.prompt_tokens.inc(self.num_prompt_tokens)
                self._metrics.cached_tokens.inc(self.num_cached_tokens)
        index = news.index
        if self.ended[index]:
            return None  # tokens that were in flight when a stop string ended the answer
        token_ids, logprobs = news.token_ids, news.logprobs
        last = news.finish_reason is not None
        # A stop token ends the answer and is counted, but is not part of its text.
        silent = news.finish_reason == "stop" and bool(token_ids)
        delta = self._texts[index].feed(token_ids, last=last, silent_last=silent)
        finish, reason = news.finish_reason, news.stop_reason
        stop_reason: int | str | None = reason
        if delta.stop is not None:
            token_ids = token_ids[: delta.num_tokens]
            logprobs = None if logprobs is None else logprobs[: delta.num_tokens]
            finish, stop_reason = "stop", delta.stop
            if not last:
                self._client.abort(news.rid, index)
        if token_ids:
            self._paces[index].delivered(len(token_ids), self._client.now)
        self.num_output_tokens += len(token_ids)
        if finish is not None:
            self.ended[index] = True
        if not token_ids and not delta.text and finish is None:
            return None
        return Delta(index, delta.text, token_ids, logprobs, finish, stop_reason, news.message)


async def all_whole(request: Request, jobs: Sequence[Answers]) -> list[list[Answer]]:
    """All answers of all jobs, complete. Ends every job when one fails or when the client goes away."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work: asyncio.Future[list[list[Answer]]] = asyncio.gather(*(job.whole() for job in jobs))
    leaving: asyncio.Future[None] = asyncio.ensure_future(gone())
    try:
        await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ApiError(499, "the client went away")
        return work.result()
    finally:
        leaving.cancel()
        work.cancel()
        for job in jobs:
            job.close()


class Pieces(dict[int, bytes | None]):
    """What a token adds to a JSON string, made when first asked for; None where it is not whole characters."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()

    def __missing__(self, token: int) -> bytes | None:
        try:
            text = "" if token in self._skipped else self._tokenizer.token_bytes(token).decode()
        except UnicodeDecodeError:
            self[token] = None
        else:
            self[token] = json_text(text)
        return self[token]


class _Tap:
    """One answer's bare tokens on their way to frames: what a streamed token costs is here."""

    __slots__ = ("_after", "_answers", "_before", "_pace", "_pieces", "_text", "_whole", "_write")

    def __init__(
        self, answers: Answers, index: int, frames: TextFrames, write: Callable[[bytes], None]
    ) -> None:
        self._answers = answers
        self._pieces = answers._pieces
        self._text = answers._texts[index]
        self._whole = True
        self._pace = answers._paces[index]
        self._before, self._after = frames.before, frames.after
        self._write = write

    def take(self, token: int) -> None:
        piece = self._pieces[token]
        if piece is None or not self._whole:
            piece = json_text(self._text.feed((token,)).text)
            self._whole = self._text.whole_characters
        answers = self._answers
        answers.num_output_tokens += 1
        self._pace.delivered(1, answers._client.now)
        # Also where no text came of it: who measures gaps counts frames.
        self._write(self._before + piece + self._after)


def _failed(delta: Delta) -> ApiError:
    """An answer that ended with an error: the request's own fault where its grammar was refused."""
    status = 400 if is_refusal(delta.message) else 500
    return ApiError(status, delta.message or "the request failed in the engine")
