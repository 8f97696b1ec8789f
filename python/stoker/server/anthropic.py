"""POST /v1/messages: Anthropic's Messages API on the same chat path: text, thinking and tool use, streaming in its named
events; and /v1/messages/count_tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stoker.server.answers import Delta
from stoker.server.body import read
from stoker.server.conversation import ChatRun, Conversation, render, start
from stoker.server.direct import DirectResponse
from stoker.server.errors import ApiError, bad_request
from stoker.server.parsers import Piece, whole_calls
from stoker.server.protocol import Sampling
from stoker.server.sse import named_frame
from stoker.server.state import ServerState

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "abort": "end_turn", "tool_calls": "tool_use"}
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class CountTokensRequest(Sampling, kw_only=True):
    """The body of count_tokens."""

    messages: list[dict[str, Any]]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None


class MessagesRequest(CountTokensRequest, kw_only=True):
    """The body."""

    max_tokens: int
    stop_sequences: list[str] | None = None
    metadata: dict[str, Any] | None = None


def error_body(error: ApiError) -> dict[str, Any]:
    """An error in Anthropic's shape."""
    kind = _ERROR_TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def _error_frame(error: ApiError) -> bytes:
    return named_frame("error", error_body(error))


async def create_message(request: Request, state: ServerState) -> Response:
    """The endpoint."""
    body = await read(request, MessagesRequest, state.settings.limits)
    model = state.check_model(body.model)
    if (body.n or 1) != 1:
        raise bad_request(f"n={body.n}: a message has one answer", "n")
    body.stop = body.stop_sequences if body.stop_sequences is not None else body.stop
    user = (body.metadata or {}).get("user_id")
    body.user = user if isinstance(user, str) else body.user
    conversation = _conversation(body)
    run = await start(request, state, "msg", conversation, body, max_tokens=body.max_tokens)
    answer = _Message(model, run)
    if body.stream:
        return answer.stream()
    return Response(msgspec.json.encode(await answer.whole()), media_type="application/json")


async def count_tokens(request: Request, state: ServerState) -> Response:
    """POST /v1/messages/count_tokens."""
    body = await read(request, CountTokensRequest, state.settings.limits)
    state.check_model(body.model)
    prompt = await render(state, _conversation(body))
    return Response(
        msgspec.json.encode({"input_tokens": len(prompt.token_ids)}), media_type="application/json"
    )


def _conversation(body: CountTokensRequest) -> Conversation:
    messages: list[dict[str, Any]] = []
    if body.system:
        messages.append({"role": "system", "content": body.system})
    for index, message in enumerate(body.messages):
        if message.get("role") not in ("user", "assistant"):
            raise bad_request(
                f"messages[{index}].role is {message.get('role')!r}; allowed are user, assistant", "messages"
            )
        messages += _chat_messages(message, index)
    choice = body.tool_choice or {}
    kind = choice.get("type", "auto")
    names: dict[str, Any] = {"auto": "auto", "none": "none", "any": "required"}
    if kind == "tool":
        chosen: str | dict[str, Any] = {"type": "function", "function": {"name": choice.get("name")}}
    elif kind in names:
        chosen = names[kind]
    else:
        raise bad_request(f"tool_choice.type is {kind!r}; allowed are auto, any, tool, none", "tool_choice")
    thinking = (body.thinking or {}).get("type")
    return Conversation(
        messages=messages,
        tools=[_chat_tool(tool, index) for index, tool in enumerate(body.tools or ())],
        tool_choice=chosen,
        parallel_tool_calls=choice.get("disable_parallel_tool_use") is not True,
        template_kwargs=None if thinking is None else {"enable_thinking": thinking != "disabled"},
    )


def _chat_tool(tool: dict[str, Any], index: int) -> dict[str, Any]:
    if tool.get("type", "custom") not in ("custom", None):
        raise bad_request(
            f"tools[{index}] is of type {tool['type']!r}; only custom tools are served", "tools"
        )
    function = {"name": tool.get("name"), "parameters": tool.get("input_schema") or {"type": "object"}}
    if tool.get("description"):
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _chat_messages(message: dict[str, Any], index: int) -> Iterator[dict[str, Any]]:
    """One message as OpenAI's chat messages: results of tools are messages of their own."""
    role, content = message["role"], message.get("content")
    if not isinstance(content, list):
        yield {"role": role, "content": content}
        return
    texts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else type(block).__name__
        if kind == "tool_result" and role == "user":
            result = block.get("content")
            yield {
                "role": "tool",
                "tool_call_id": block.get("tool_use_id"),
                "content": "" if result is None else result,
            }
        elif kind == "tool_use" and role == "assistant":
            function = {"name": block.get("name"), "arguments": block.get("input") or {}}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "text":
            texts.append(block)
        elif kind not in ("thinking", "redacted_thinking"):  # what was thought before is not shown again
            raise bad_request(
                f"messages[{index}].content holds a block of type {kind!r}; only text and tools are served",
                "messages",
            )
    if texts or calls or role == "assistant":
        yield {"role": role, "content": texts, **({"tool_calls": calls} if calls else {})}


class _Message:
    """One response in the making."""

    def __init__(self, model: str, run: ChatRun) -> None:
        self._run = run
        self._head = {"id": run.rid, "type": "message", "role": "assistant", "model": model}
        self._index, self._open_kind = -1, ""  # the block that is being streamed
        self._ended = _stop("stop", None)

    def _usage(self) -> dict[str, int]:
        answers = self._run.answers
        return {
            "input_tokens": answers.num_prompt_tokens - answers.num_cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": answers.num_cached_tokens,
            "output_tokens": answers.num_output_tokens,
        }

    async def whole(self) -> dict[str, Any]:
        """The response that does not stream."""
        ((answer, pieces),) = await self._run.whole()
        blocks: list[dict[str, Any]] = []
        for piece in pieces:
            kind, field, text = _shown(piece)
            if piece.call is not None:
                continue
            if blocks and blocks[-1]["type"] == kind:
                blocks[-1][field] += text
            else:
                blocks.append(_block(piece))
        blocks += [_block(Piece(call=call)) for call in whole_calls(pieces)]
        return {
            **self._head,
            "content": blocks or [{"type": "text", "text": ""}],
            **_stop(answer.finish_reason, answer.stop_reason),
            "usage": self._usage(),
        }

    def stream(self) -> Response:
        """SSE frames with their event names."""
        start: dict[str, Any] = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(),
        }
        first = named_frame("message_start", {"type": "message_start", "message": start})
        return DirectResponse(
            [self._run.answers], self._render, first=first, last=self._last, on_error=_error_frame
        )

    def _render(self, _: int, delta: Delta) -> bytes:
        events = []
        for piece in self._run.pieces_of(delta):
            kind, field, text = _shown(piece)
            if kind != self._open_kind or (piece.call is not None and piece.call.first):
                events += self._close_block()
                self._index, self._open_kind = self._index + 1, kind
                events.append(
                    _event("content_block_start", self._index, content_block=_block(piece, empty=True))
                )
            events.append(
                _event("content_block_delta", self._index, delta={"type": _DELTAS[kind], field: text})
            )
        if delta.finish_reason is not None:
            self._ended = _stop(delta.finish_reason, delta.stop_reason)
        return b"".join(events)

    def _close_block(self) -> list[bytes]:
        return [_event("content_block_stop", self._index)] if self._open_kind else []

    def _last(self) -> bytes:
        events = self._close_block()
        if not events:
            empty = {"type": "text", "text": ""}
            events = [_event("content_block_start", 0, content_block=empty), _event("content_block_stop", 0)]
        change = {"type": "message_delta", "delta": self._ended, "usage": self._usage()}
        events += [
            named_frame("message_delta", change),
            named_frame("message_stop", {"type": "message_stop"}),
        ]
        return b"".join(events)


_DELTAS = {"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}


def _event(kind: str, index: int, **fields: Any) -> bytes:
    return named_frame(kind, {"type": kind, "index": index, **fields})


def _shown(piece: Piece) -> tuple[str, str, str]:
    """The block's type, the delta's field, and the text."""
    if piece.call is not None:
        return "tool_use", "partial_json", piece.call.arguments
    if piece.reasoning:
        return "thinking", "thinking", piece.reasoning
    return "text", "text", piece.content


def _block(piece: Piece, *, empty: bool = False) -> dict[str, Any]:
    if piece.call is not None:
        arguments = {} if empty else _object(piece.call.arguments)
        return {"type": "tool_use", "id": piece.call.id, "name": piece.call.name, "input": arguments}
    if piece.reasoning:
        return {"type": "thinking", "thinking": "" if empty else piece.reasoning, "signature": ""}
    return {"type": "text", "text": "" if empty else piece.content}


def _object(arguments: str) -> Any:
    try:
        return json.loads(arguments or "{}")
    except ValueError:  # what a model wrote is shown, whatever it is
        return {"arguments": arguments}


def _stop(finish: str, stop_reason: int | str | None) -> dict[str, Any]:
    if isinstance(stop_reason, str) and finish == "stop":
        return {"stop_reason": "stop_sequence", "stop_sequence": stop_reason}
    return {"stop_reason": _STOP_REASONS.get(finish, "end_turn"), "stop_sequence": None}
