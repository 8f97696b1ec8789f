"""POST /v1/completions: text continues a prompt, or several prompts at once; streaming or whole; echo, logprobs, n."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from fastapi import Request
from fastapi.responses import Response

from stoker.server import messages as m
from stoker.server.answers import Answer, Answers
from stoker.server.body import read
from stoker.server.errors import ApiError, bad_request
from stoker.server.protocol import CompletionRequest, sampling_params
from stoker.server.sse import DONE, frame, with_first
from stoker.server.state import ServerState
from stoker.text import Tokenizer


async def create_completion(request: Request, state: ServerState) -> Response:
    """The endpoint."""
    body = await read(request, CompletionRequest, state.settings.limits)
    model = state.check_model(body.model)
    if body.suffix:
        raise bad_request("suffix is not supported", "suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise bad_request(f"best_of={body.best_of}: only best_of equal to n is supported", "best_of")
    prompts = await _prompts(body, state)
    # echo with max_tokens=0 asks for the prompt's own logprobs: one token is sampled and dropped.
    only_prompt = bool(body.echo) and body.max_tokens == 0
    params = sampling_params(
        body,
        state.settings.limits,
        max_tokens=1 if only_prompt else body.max_tokens,
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
        defaults=state.defaults,
    )
    base = request.state.request_id or state.new_id("cmpl")
    jobs: list[Answers] = []
    try:
        for prompt in prompts:
            rid = state.new_id("cmpl") if len(prompts) > 1 or body.request_id is None else body.request_id
            request.state.rids.append(rid)
            jobs.append(
                state.submit(
                    rid, prompt, params, priority=body.priority, cache_salt=body.cache_salt, tenant=body.user
                )
            )
    except BaseException:
        for job in jobs:
            job.close()
        raise
    completion = _Completion(base, model, body, prompts, jobs, state.tokenizer, params.n, only_prompt)
    if body.stream:
        return await with_first(completion.stream())
    return Response(msgspec.json.encode(await completion.whole()), media_type="application/json")


async def _prompts(body: CompletionRequest, state: ServerState) -> list[list[int]]:
    given = body.prompt
    texts: list[str | list[int]]
    if isinstance(given, str):
        texts = [given]
    elif given and all(isinstance(one, int) for one in given):
        texts = [[one for one in given if isinstance(one, int)]]
    else:
        texts = [one for one in given if not isinstance(one, int)]
        if len(texts) != len(given):
            raise bad_request(
                "prompt mixes token ids with texts; give one list of ids, or a list of prompts", "prompt"
            )
    if not texts:
        raise bad_request("the prompt is empty", "prompt")
    if len(texts) > state.settings.limits.max_prompts:
        raise bad_request(
            f"{len(texts)} prompts: at most {state.settings.limits.max_prompts} are allowed", "prompt"
        )
    return [
        await state.encode(one, add_special_tokens=body.add_special_tokens)
        if isinstance(one, str)
        else list(one)
        for one in texts
    ]


class _Completion:
    """One response in the making."""

    def __init__(
        self,
        rid: str,
        model: str,
        body: CompletionRequest,
        prompts: list[list[int]],
        jobs: list[Answers],
        tokenizer: Tokenizer,
        n: int,
        only_prompt: bool,
    ) -> None:
        self._head = {"id": rid, "object": "text_completion", "created": int(time.time()), "model": model}
        self._body = body
        self._prompts = prompts
        self._jobs = jobs
        self._tokenizer = tokenizer
        self._n = n
        self._only_prompt = only_prompt

    async def whole(self) -> dict[str, Any]:
        """The response that does not stream."""
        try:
            results = await asyncio.gather(*(job.whole() for job in self._jobs))
        except BaseException:
            for job in self._jobs:
                job.close()
            raise
        choices = [
            self._choice(job, index * self._n + number, index, answer)
            for index, (job, answers) in enumerate(zip(self._jobs, results, strict=True))
            for number, answer in enumerate(answers)
        ]
        return {**self._head, "choices": choices, "usage": usage(self._jobs, drop_output=self._only_prompt)}

    def _choice(self, job: Answers, number: int, prompt: int, answer: Answer) -> dict[str, Any]:
        text = "" if self._only_prompt else answer.text
        token_ids = [] if self._only_prompt else answer.token_ids
        entries: list[m.Logprobs | None] = [] if self._only_prompt else list(answer.logprobs)
        if self._body.echo:
            ids = self._prompts[prompt]
            text = self._tokenizer.decode(ids) + text
            token_ids = [*ids, *token_ids]
            entries = [*(job.prompt_logprobs or [None] * len(ids)), *entries]
        logprobs = None
        if self._body.logprobs is not None:
            logprobs = completion_logprobs(self._tokenizer, token_ids, entries, self._body.logprobs)
        finish = "length" if self._only_prompt else answer.finish_reason
        return {
            "index": number,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish,
            "stop_reason": answer.stop_reason,
        }

    async def stream(self) -> AsyncIterator[bytes]:
        """SSE frames; several prompts come interleaved, as their tokens come."""
        options = self._body.stream_options
        queue: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()

        async def pump(prompt: int, job: Answers) -> None:
            try:
                if self._body.echo:
                    for number in range(self._n):
                        queue.put_nowait(
                            self._frame(
                                prompt * self._n + number, self._tokenizer.decode(self._prompts[prompt])
                            )
                        )
                async for delta in job.deltas():
                    if delta.finish_reason == "error":
                        raise ApiError(500, delta.message or "the request failed in the engine")
                    text = "" if self._only_prompt else delta.text
                    logprobs = None
                    if self._body.logprobs is not None and delta.token_ids and not self._only_prompt:
                        logprobs = completion_logprobs(
                            self._tokenizer, delta.token_ids, list(delta.logprobs or ()), self._body.logprobs
                        )
                    queue.put_nowait(
                        self._frame(
                            prompt * self._n + delta.index,
                            text,
                            logprobs,
                            delta.finish_reason,
                            delta.stop_reason,
                        )
                    )
                queue.put_nowait(None)
            except Exception as error:
                queue.put_nowait(error)

        tasks = [asyncio.create_task(pump(index, job)) for index, job in enumerate(self._jobs)]
        try:
            left = len(tasks)
            while left:
                item = await queue.get()
                if item is None:
                    left -= 1
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
            if options is not None and options.include_usage:
                yield frame(
                    {**self._head, "choices": [], "usage": usage(self._jobs, drop_output=self._only_prompt)}
                )
            yield DONE
        finally:
            for task in tasks:
                task.cancel()
            for job in self._jobs:
                job.close()

    def _frame(
        self,
        index: int,
        text: str,
        logprobs: Any = None,
        finish: str | None = None,
        stop_reason: int | str | None = None,
    ) -> bytes:
        choice = {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish,
            "stop_reason": stop_reason,
        }
        return frame({**self._head, "choices": [choice]})


def completion_logprobs(
    tokenizer: Tokenizer, token_ids: list[int], entries: list[m.Logprobs | None], top: int
) -> dict[str, Any]:
    """The completions API's logprobs: parallel lists over the tokens."""
    tokens = [tokenizer.token_text(one) for one in token_ids]
    offsets, offset = [], 0
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [None if entry is None else entry.logprobs[0] for entry in entries],
        "top_logprobs": [
            None
            if entry is None
            else {
                tokenizer.token_text(one): value
                for one, value in list(zip(entry.token_ids, entry.logprobs, strict=True))[: top + 1]
            }
            for entry in entries
        ],
        "text_offset": offsets,
    }


def usage(jobs: list[Answers], *, drop_output: bool = False) -> dict[str, Any]:
    """Tokens of a response, cached ones told apart."""
    prompt = sum(job.num_prompt_tokens for job in jobs)
    output = 0 if drop_output else sum(job.num_output_tokens for job in jobs)
    cached = sum(job.num_cached_tokens for job in jobs)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
