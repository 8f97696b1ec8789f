"""POST /v1/responses: OpenAI's Responses API for text, without stored state; streaming in its named events."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from fastapi import Request
from fastapi.responses import Response

from stoker.server.answers import Answers
from stoker.server.body import read
from stoker.server.chat import checked_messages
from stoker.server.errors import ApiError, bad_request
from stoker.server.protocol import Sampling, sampling_params
from stoker.server.sse import named_frame, with_first
from stoker.server.state import ServerState


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """The body."""

    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = False
    user: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None


async def create_response(request: Request, state: ServerState) -> Response:
    """The endpoint."""
    body = await read(request, ResponsesRequest, state.settings.limits)
    model = state.check_model(body.model)
    if body.previous_response_id is not None:
        raise bad_request(
            "responses are not stored here; send the whole conversation in input", "previous_response_id"
        )
    messages = _messages(body)
    try:
        text = state.template.render(checked_messages(messages, state), add_generation_prompt=True)
    except (ValueError, TypeError) as error:
        raise bad_request(f"the chat template refuses this input: {error}", "input") from None
    sampling = Sampling(temperature=body.temperature, top_p=body.top_p, user=body.user)
    params = sampling_params(
        sampling, state.settings.limits, max_tokens=body.max_output_tokens, defaults=state.defaults
    )
    rid = state.new_id("resp")
    request.state.rids.append(rid)
    prompt = await state.encode(text, add_special_tokens=False)
    response = _Response(rid, model, body, state.submit(rid, prompt, params, tenant=body.user))
    if body.stream:
        return await with_first(response.stream())
    return Response(msgspec.json.encode(await response.whole()), media_type="application/json")


def _messages(body: ResponsesRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    for index, item in enumerate(body.input):
        if item.get("type", "message") != "message":
            raise bad_request(
                f"input[{index}] is of type {item.get('type')!r}; only messages are served", "input"
            )
        messages.append({"role": item.get("role"), "content": item.get("content")})
    return messages


class _Response:
    """One response in the making."""

    def __init__(self, rid: str, model: str, body: ResponsesRequest, answers: Answers) -> None:
        self._answers = answers
        self._item = f"msg_{rid.removeprefix('resp-')}"
        self._head: dict[str, Any] = {
            "id": rid,
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "metadata": body.metadata or {},
            "parallel_tool_calls": False,
            "tool_choice": "none",
            "tools": [],
            "error": None,
            "incomplete_details": None,
        }

    def _message(self, text: str, status: str) -> dict[str, Any]:
        part = {"type": "output_text", "text": text, "annotations": []}
        return {"type": "message", "id": self._item, "role": "assistant", "status": status, "content": [part]}

    def _done(self, text: str, finish: str) -> dict[str, Any]:
        answers = self._answers
        status = "incomplete" if finish == "length" else "completed"
        return {
            **self._head,
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if finish == "length" else None,
            "output": [self._message(text, status)],
            "usage": {
                "input_tokens": answers.num_prompt_tokens,
                "input_tokens_details": {"cached_tokens": answers.num_cached_tokens},
                "output_tokens": answers.num_output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": answers.num_prompt_tokens + answers.num_output_tokens,
            },
        }

    async def whole(self) -> dict[str, Any]:
        """The response that does not stream."""
        (answer,) = await self._answers.whole()
        return self._done(answer.text, answer.finish_reason)

    async def stream(self) -> AsyncIterator[bytes]:
        """SSE frames with their event names and sequence numbers."""
        numbers = itertools.count()

        def event(kind: str, **fields: Any) -> bytes:
            return named_frame(kind, {"type": kind, "sequence_number": next(numbers), **fields})

        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        empty = {"type": "output_text", "text": "", "annotations": []}
        begun = {**self._head, "status": "in_progress", "output": []}
        yield event("response.created", response=begun)
        yield event("response.in_progress", response=begun)
        item = {**self._message("", "in_progress"), "content": []}
        yield event("response.output_item.added", output_index=0, item=item)
        yield event("response.content_part.added", **place, part=empty)
        pieces: list[str] = []
        finish = "stop"
        async for delta in self._answers.deltas():
            if delta.finish_reason == "error":
                raise ApiError(500, delta.message or "the request failed in the engine")
            if delta.text:
                pieces.append(delta.text)
                yield event("response.output_text.delta", **place, delta=delta.text, logprobs=[])
            finish = delta.finish_reason or finish
        text = "".join(pieces)
        done = self._done(text, finish)
        yield event("response.output_text.done", **place, text=text, logprobs=[])
        yield event("response.content_part.done", **place, part={**empty, "text": text})
        yield event("response.output_item.done", output_index=0, item=done["output"][0])
        yield event("response.incomplete" if finish == "length" else "response.completed", response=done)
