"""POST /v1/messages: Anthropic's Messages API on the same chat path; streaming in its named events."""

from __future__ import annotations

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

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "abort": "end_turn"}


class MessagesRequest(msgspec.Struct, kw_only=True):
    """The body."""

    messages: list[dict[str, Any]]
    max_tokens: int
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stream: bool | None = False
    metadata: dict[str, Any] | None = None


async def create_message(request: Request, state: ServerState) -> Response:
    """The endpoint."""
    body = await read(request, MessagesRequest, state.settings.limits)
    model = state.check_model(body.model)
    messages = list(body.messages)
    if body.system:
        messages.insert(0, {"role": "system", "content": body.system})
    for index, message in enumerate(body.messages):
        if message.get("role") not in ("user", "assistant"):
            raise bad_request(
                f"messages[{index}].role is {message.get('role')!r}; allowed are user, assistant", "messages"
            )
    try:
        text = state.template.render(checked_messages(messages, state), add_generation_prompt=True)
    except (ValueError, TypeError) as error:
        raise bad_request(f"the chat template refuses these messages: {error}", "messages") from None
    user = (body.metadata or {}).get("user_id")
    sampling = Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        stop=body.stop_sequences,
        user=user if isinstance(user, str) else None,
    )
    params = sampling_params(
        sampling, state.settings.limits, max_tokens=body.max_tokens, defaults=state.defaults
    )
    rid = state.new_id("msg")
    request.state.rids.append(rid)
    prompt = await state.encode(text, add_special_tokens=False)
    answer = _Message(rid, model, state.submit(rid, prompt, params, tenant=sampling.user))
    if body.stream:
        return await with_first(answer.stream())
    return Response(msgspec.json.encode(await answer.whole()), media_type="application/json")


class _Message:
    """One response in the making."""

    def __init__(self, rid: str, model: str, answers: Answers) -> None:
        self._answers = answers
        self._head = {"id": rid, "type": "message", "role": "assistant", "model": model}

    def _usage(self) -> dict[str, int]:
        answers = self._answers
        return {
            "input_tokens": answers.num_prompt_tokens - answers.num_cached_tokens,
            "cache_read_input_tokens": answers.num_cached_tokens,
            "output_tokens": answers.num_output_tokens,
        }

    async def whole(self) -> dict[str, Any]:
        """The response that does not stream."""
        (answer,) = await self._answers.whole()
        return {
            **self._head,
            "content": [{"type": "text", "text": answer.text}],
            **_stop(answer.finish_reason, answer.stop_reason),
            "usage": self._usage(),
        }

    async def stream(self) -> AsyncIterator[bytes]:
        """SSE frames with their event names."""
        start: dict[str, Any] = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(),
        }
        yield named_frame("message_start", {"type": "message_start", "message": start})
        block = {"type": "text", "text": ""}
        yield named_frame(
            "content_block_start", {"type": "content_block_start", "index": 0, "content_block": block}
        )
        ended = _stop("stop", None)
        async for delta in self._answers.deltas():
            if delta.finish_reason == "error":
                raise ApiError(500, delta.message or "the request failed in the engine")
            if delta.text:
                piece = {"type": "text_delta", "text": delta.text}
                yield named_frame(
                    "content_block_delta", {"type": "content_block_delta", "index": 0, "delta": piece}
                )
            if delta.finish_reason is not None:
                ended = _stop(delta.finish_reason, delta.stop_reason)
        yield named_frame("content_block_stop", {"type": "content_block_stop", "index": 0})
        yield named_frame("message_delta", {"type": "message_delta", "delta": ended, "usage": self._usage()})
        yield named_frame("message_stop", {"type": "message_stop"})


def _stop(finish: str, stop_reason: int | str | None) -> dict[str, Any]:
    if isinstance(stop_reason, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": stop_reason}
    return {"stop_reason": _STOP_REASONS.get(finish, "end_turn"), "stop_sequence": None}
