"""POST /v1/completions: text continues a prompt, or several prompts at once; streaming or whole; echo, logprobs, n."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stoker.server import messages as m
from stoker.server.answers import Answer, Answers, Delta, all_whole
from stoker.server.body import read
from stoker.server.conversation import truncated
from stoker.server.direct import DirectResponse
from stoker.server.errors import bad_request
from stoker.server.protocol import CompletionRequest, sampling_params
from stoker.server.sse import DONE, TextFrames, frame
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
    prompts = await encoded_prompts(
        body.prompt,
        state,
        "prompt",
        add_special_tokens=body.add_special_tokens,
        keep=body.truncate_prompt_tokens,
    )
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
    params = await state.with_word_tokens(params)
    base = state.new_id("cmpl", body.request_id)
    jobs: list[Answers] = []
    try:
        for index, prompt in enumerate(prompts):
            rid = base if index == 0 else f"{base}-{index}"
            jobs.append(
                state.submit(
                    request,
                    rid,
                    prompt,
                    params,
                    priority=body.priority,
                    cache_salt=body.cache_salt,
                    tenant=body.user,
                    stream=bool(body.stream),
                )
            )
        for job in jobs:
            await job.accepted()
    except BaseException:
        for job in jobs:
            job.close()
        raise
    completion = _Completion(base, model, body, prompts, jobs, state.tokenizer, params.n, only_prompt)
    if body.stream:
        return completion.stream()
    found = await all_whole(request, jobs)
    return Response(msgspec.json.encode(completion.whole(found)), media_type="application/json")


async def encoded_prompts(
    given: str | Sequence[str | int | list[int]],
    state: ServerState,
    name: str,
    *,
    add_special_tokens: bool = True,
    keep: int | None = None,
) -> list[list[int]]:
    """Token ids of what OpenAI's `prompt` and `input` may hold: a text, token ids, or a list of either."""
    texts: list[str | list[int]]
    if isinstance(given, str):
        texts = [given]
    elif given and all(isinstance(one, int) for one in given):
        texts = [[one for one in given if isinstance(one, int)]]
    else:
        texts = [one for one in given if not isinstance(one, int)]
        if len(texts) != len(given):
            raise bad_request(
                f"{name} mixes token ids with texts; give one list of ids, or a list of prompts", name
            )
    if not texts:
        raise bad_request(f"the {name} is empty", name)
    if len(texts) > state.settings.limits.max_prompts:
        raise bad_request(
            f"{len(texts)} prompts: at most {state.settings.limits.max_prompts} are allowed", name
        )
    words = [one for one in texts if isinstance(one, str)]
    encoded = iter(await state.encode_all(words, add_special_tokens=add_special_tokens))
    return [truncated(next(encoded) if isinstance(one, str) else list(one), keep) for one in texts]


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
        self._offsets = [0] * (n * len(prompts))

    def whole(self, results: list[list[Answer]]) -> dict[str, Any]:
        """The response that does not stream."""
        choices = [
            self._choice(job, index * self._n + number, index, answer)
            for index, (job, answers) in enumerate(zip(self._jobs, results, strict=True))
            for number, answer in enumerate(answers)
        ]
        return {**self._head, "choices": choices, "usage": self._usage()}

    def _usage(self) -> dict[str, Any]:
        return usage(self._jobs, drop_output=self._only_prompt)

    def _choice(self, job: Answers, number: int, prompt: int, answer: Answer) -> dict[str, Any]:
        text, token_ids, entries = self._echoed(job, prompt)
        if not self._only_prompt:
            text, token_ids = text + answer.text, [*token_ids, *answer.token_ids]
            entries = [*entries, *answer.logprobs]
        finish = "length" if self._only_prompt else answer.finish_reason
        choice = self._shown(
            number, text, self._logprobs(number, token_ids, entries), finish, answer.stop_reason
        )
        if self._body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(self._tokenizer, job.prompt_logprobs)
        if self._body.return_token_ids:
            choice |= {"prompt_token_ids": self._prompts[prompt], "token_ids": answer.token_ids}
        return choice

    def _echoed(self, job: Answers, prompt: int) -> tuple[str, list[int], list[m.Logprobs | None]]:
        if not self._body.echo:
            return "", [], []
        ids = self._prompts[prompt]
        return self._tokenizer.decode(ids), ids, list(job.prompt_logprobs or [None] * len(ids))

    def _logprobs(
        self, number: int, token_ids: list[int], entries: list[m.Logprobs | None]
    ) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        found, self._offsets[number] = completion_logprobs(
            self._tokenizer,
            token_ids,
            entries,
            self._body.logprobs,
            offset=self._offsets[number],
            by_id=bool(self._body.return_tokens_as_token_ids),
        )
        return found

    def stream(self) -> Response:
        """SSE frames; several prompts come interleaved, as their tokens come."""
        body, options = self._body, self._body.stream_options
        with_usage = options is not None and options.include_usage
        if options is not None and with_usage and options.continuous_usage_stats:
            self._head["usage"] = None
        not_echoed = set(range(len(self._jobs))) if body.echo else set()
        plain = not (body.echo or body.return_token_ids or self._only_prompt or "usage" in self._head)

        def render(prompt: int, delta: Delta) -> bytes:
            echoed = b""
            if prompt in not_echoed:  # with the first news, because that brings the prompt's logprobs
                not_echoed.remove(prompt)
                echoed = self._echo_frames(prompt)
            return echoed + self._frame(self._delta(prompt, delta))

        def last() -> bytes:
            usage = frame({**self._head, "choices": [], "usage": self._usage()}) if with_usage else b""
            return usage + DONE

        def quick(prompt: int, index: int) -> TextFrames:
            return TextFrames(self._head, self._shown(prompt * self._n + index, ""))

        short_way = quick if plain and body.logprobs is None else None
        return DirectResponse(self._jobs, render, last=last, quick=short_way)

    def _echo_frames(self, prompt: int) -> bytes:
        frames = []
        for number in range(prompt * self._n, (prompt + 1) * self._n):
            text, ids, entries = self._echoed(self._jobs[prompt], prompt)
            frames.append(self._frame(self._shown(number, text, self._logprobs(number, ids, entries))))
        return b"".join(frames)

    def _delta(self, prompt: int, delta: Delta) -> dict[str, Any]:
        number = prompt * self._n + delta.index
        text, logprobs = "", None
        if not self._only_prompt:
            text = delta.text
            if delta.token_ids:
                logprobs = self._logprobs(number, delta.token_ids, list(delta.logprobs or ()))
        choice = self._shown(number, text, logprobs, delta.finish_reason, delta.stop_reason)
        if self._body.return_token_ids:
            choice["token_ids"] = delta.token_ids
        return choice

    def _frame(self, choice: dict[str, Any]) -> bytes:
        if "usage" in self._head:
            self._head["usage"] = self._usage()
        return frame({**self._head, "choices": [choice]})

    @staticmethod
    def _shown(
        index: int,
        text: str,
        logprobs: Any = None,
        finish: str | None = None,
        stop_reason: int | str | None = None,
    ) -> dict[str, Any]:
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish,
            "stop_reason": stop_reason,
        }


def token_name(tokenizer: Tokenizer, token_id: int, by_id: bool) -> str:
    """A token in logprobs: its text, or "token_id:N" (vLLM's return_tokens_as_token_ids)."""
    return f"token_id:{token_id}" if by_id else tokenizer.token_text(token_id)


def completion_logprobs(
    tokenizer: Tokenizer,
    token_ids: list[int],
    entries: list[m.Logprobs | None],
    top: int,
    *,
    offset: int = 0,
    by_id: bool = False,
) -> tuple[dict[str, Any], int]:
    """The completions API's logprobs (parallel lists over the tokens), and the text offset behind them."""
    tokens = [token_name(tokenizer, one, by_id) for one in token_ids]
    offsets = []
    for one in token_ids:
        offsets.append(offset)
        offset += len(tokenizer.token_text(one))
    found = {
        "tokens": tokens,
        "token_logprobs": [None if entry is None else entry.logprobs[0] for entry in entries],
        "top_logprobs": [
            None
            if entry is None
            else {
                token_name(tokenizer, one, by_id): value
                for one, value in reversed(list(zip(entry.token_ids, entry.logprobs, strict=True))[: top + 1])
            }
            for entry in entries
        ],
        "text_offset": offsets,
    }
    return found, offset


def prompt_logprobs(
    tokenizer: Tokenizer, entries: list[m.Logprobs | None] | None
) -> list[dict[str, Any] | None]:
    """vLLM's prompt_logprobs: for each prompt token its candidates by id; the first has none."""
    return [
        None
        if entry is None
        else {
            str(one): {
                "logprob": value,
                "rank": entry.rank if place == 0 else place,
                "decoded_token": tokenizer.token_text(one),
            }
            for place, (one, value) in reversed(
                list(enumerate(zip(entry.token_ids, entry.logprobs, strict=True)))
            )
        }
        for entry in entries or ()
    ]


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
