"""POST /v1/responses: OpenAI's Responses API: text, reasoning and function calls, streaming in its named
events."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Iterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stoker.server.answers import Delta
from stoker.server.body import read
from stoker.server.call_reader import CallPart
from stoker.server.chat import template_kwargs
from stoker.server.conversation import ChatRun, Conversation, start
from stoker.server.direct import DirectResponse
from stoker.server.errors import ApiError, bad_request
from stoker.server.parsers import Piece
from stoker.server.protocol import Sampling
from stoker.server.response_store import Items, ResponseStore, Stored
from stoker.server.sse import named_frame
from stoker.server.state import ServerState


class ResponsesRequest(Sampling, kw_only=True):
    """The body."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    background: bool | None = False
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None


async def create_response(request: Request, state: ServerState) -> Response:
    """The endpoint."""
    body = await read(request, ResponsesRequest, state.settings.limits)
    model = state.check_model(body.model)
    if body.conversation is not None:
        raise bad_request(
            "conversation: conversations are not stored here; send the whole in input, or a "
            "previous_response_id",
            "conversation",
        )
    given = [_user(body.input)] if isinstance(body.input, str) else body.input
    items = [*state.responses.items_before(body.previous_response_id), *given]
    if body.background:
        raise bad_request("background responses are not built here", "background")
    if (body.n or 1) != 1:
        raise bad_request(f"n={body.n}: a response has one answer", "n")
    effort = (body.reasoning or {}).get("effort")
    conversation = Conversation(
        messages=_messages(body.instructions, items),
        tools=[_chat_tool(tool, index) for index, tool in enumerate(body.tools or ())],
        tool_choice=body.tool_choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        template_kwargs=template_kwargs(None, effort if isinstance(effort, str) else None),
    )
    if body.text and (form := body.text.get("format")) is not None:
        if not isinstance(form, dict):
            raise bad_request("text.format must be an object", "text.format")
        body.response_format = form
    run = await start(request, state, "resp", conversation, body, max_tokens=body.max_output_tokens)
    response = _Response(model, body, run, items, state.responses)
    if body.stream:
        return response.stream()
    return Response(msgspec.json.encode(await response.whole()), media_type="application/json")


def _chat_tool(tool: dict[str, Any], index: int) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise bad_request(f"tools[{index}] is of type {tool.get('type')!r}; only function is served", "tools")
    return {"type": "function", "function": {k: v for k, v in tool.items() if k not in ("type", "strict")}}


async def stored_response(request: Request, state: ServerState) -> Response:
    """GET and DELETE /v1/responses/{id}."""
    return state.responses.answer(request)


def _user(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": text}


def _messages(instructions: str | None, items: Items) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    for index, item in enumerate(items):
        kind = item.get("type", "message")
        if kind == "message":
            messages.append({"role": item.get("role"), "content": item.get("content")})
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            if messages and messages[-1].get("tool_calls"):
                messages[-1]["tool_calls"].append(call)
            else:
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif kind == "function_call_output":
            output = item.get("output")
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
        elif kind != "reasoning":  # what a model thought before is not shown to it again
            raise bad_request(
                f"input[{index}] is of type {kind!r}; allowed are messages and function calls", "input"
            )
    return messages


class _Response:
    """One response in the making: output items grow one after another."""

    def __init__(
        self, model: str, body: ResponsesRequest, run: ChatRun, before: Items, store: ResponseStore
    ) -> None:
        self._run = run
        self._before = before
        self._store = store
        self._items: list[dict[str, Any]] = []
        self._numbers = itertools.count()
        self._reasoning_tokens = 0
        self._head: dict[str, Any] = {
            "id": run.rid,
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "reasoning": body.reasoning,
            "text": body.text or {"format": {"type": "text"}},
            "store": body.store is not False and store.limit > 0,
            "background": False,
            "previous_response_id": body.previous_response_id,
            "truncation": "disabled",
            "user": body.user,
            "error": None,
            "incomplete_details": None,
            "usage": None,
        }

    def _done(self, finish: str) -> dict[str, Any]:
        answers = self._run.answers
        complete = finish in ("stop", "tool_calls")
        why = "max_output_tokens" if finish == "length" else finish
        done = {
            **self._head,
            "status": "completed" if complete else "incomplete",
            "incomplete_details": None if complete else {"reason": why},
            "output": self._items,
            "usage": {
                "input_tokens": answers.num_prompt_tokens,
                "input_tokens_details": {"cached_tokens": answers.num_cached_tokens},
                "output_tokens": answers.num_output_tokens,
                "output_tokens_details": {"reasoning_tokens": self._reasoning_tokens},
                "total_tokens": answers.num_prompt_tokens + answers.num_output_tokens,
            },
        }
        if done["store"]:
            self._store.put(self._run.rid, Stored(done, [*self._before, *self._items]))
        return done

    async def whole(self) -> dict[str, Any]:
        """The response that does not stream."""
        ((answer, pieces),) = await self._run.whole()
        for _ in self._grow(pieces):
            pass
        for _ in self._close_item("completed" if answer.finish_reason != "length" else "incomplete"):
            pass
        self._need_an_item()
        return self._done(answer.finish_reason)

    def error_event(self, error: ApiError) -> bytes:
        """How a stream ends with an error."""
        failure = {"code": "server_error", "message": error.message}
        failed = {**self._head, "status": "failed", "error": failure, "output": self._items}
        return self._event("response.failed", response=failed)

    def stream(self) -> Response:
        """SSE frames with their event names and sequence numbers."""
        begun = {**self._head, "status": "in_progress", "output": []}
        first = [self._event(f"response.{kind}", response=begun) for kind in ("created", "in_progress")]
        finish = "stop"

        def render(_: int, delta: Delta) -> bytes:
            nonlocal finish
            events = self._grow(self._run.pieces_of(delta), len(delta.token_ids))
            data = b"".join(events)
            finish = delta.finish_reason or finish
            return data

        def last() -> bytes:
            events = b"".join(self._close_item("incomplete" if finish == "length" else "completed"))
            self._need_an_item()
            done = self._done(finish)
            return events + self._event(f"response.{done['status']}", response=done)

        return DirectResponse(
            [self._run.answers], render, first=b"".join(first), last=last, on_error=self.error_event
        )

    def _event(self, kind: str, **fields: Any) -> bytes:
        return named_frame(kind, {"type": kind, "sequence_number": next(self._numbers), **fields})

    def _need_an_item(self) -> None:
        if not self._items:  # an answer that ended at once is an empty message
            self._items.append(_message("", "completed"))

    def _grow(self, pieces: list[Piece], num_tokens: int = 0) -> Iterator[bytes]:
        for piece in pieces:
            if piece.call is not None:
                yield from self._grow_call(piece.call)
            elif piece.reasoning:
                self._reasoning_tokens += num_tokens
                yield from self._grow_text("reasoning", piece.reasoning)
            else:
                yield from self._grow_text("message", piece.content)

    def _grow_call(self, part: CallPart) -> Iterator[bytes]:
        if part.first:
            yield from self._close_item("completed")
            call = {
                "type": "function_call",
                "id": f"fc_{secrets.token_hex(12)}",
                "call_id": part.id,
                "name": part.name,
                "arguments": "",
                "status": "in_progress",
            }
            yield from self._open_item(call)
        item = self._items[-1]
        item["arguments"] += part.arguments
        if part.arguments:
            place = {"item_id": item["id"], "output_index": len(self._items) - 1}
            yield self._event("response.function_call_arguments.delta", **place, delta=part.arguments)

    def _grow_text(self, kind: str, text: str) -> Iterator[bytes]:
        item = self._items[-1] if self._items and self._items[-1]["status"] == "in_progress" else None
        if item is None or item["type"] != kind:
            yield from self._close_item("completed")
            item = _message("", "in_progress") if kind == "message" else _reasoning("", "in_progress")
            part = item["content"].pop()
            yield from self._open_item(item)
            item["content"].append(part)
            yield self._event("response.content_part.added", **self._place(), part=part)
        item["content"][0]["text"] += text
        if kind == "message":
            yield self._event("response.output_text.delta", **self._place(), delta=text, logprobs=[])
        else:
            yield self._event("response.reasoning_text.delta", **self._place(), delta=text)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1, "content_index": 0}

    def _open_item(self, item: dict[str, Any]) -> Iterator[bytes]:
        self._items.append(item)
        yield self._event("response.output_item.added", output_index=len(self._items) - 1, item=item)

    def _close_item(self, status: str) -> Iterator[bytes]:
        if not self._items or self._items[-1]["status"] != "in_progress":
            return
        item = self._items[-1]
        item["status"] = status
        if item["type"] == "function_call":
            said = {key: item[key] for key in ("name", "arguments")}
            place = {"item_id": item["id"], "output_index": len(self._items) - 1}
            yield self._event("response.function_call_arguments.done", **place, **said)
        else:
            part = item["content"][0]
            kind = "output_text" if item["type"] == "message" else "reasoning_text"
            extra: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
            yield self._event(f"response.{kind}.done", **self._place(), text=part["text"], **extra)
            yield self._event("response.content_part.done", **self._place(), part=part)
        yield self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)


def _message(text: str, status: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    name = f"msg_{secrets.token_hex(12)}"
    return {"type": "message", "id": name, "role": "assistant", "status": status, "content": [part]}


def _reasoning(text: str, status: str) -> dict[str, Any]:
    part = {"type": "reasoning_text", "text": text}
    name = f"rs_{secrets.token_hex(12)}"
    return {"type": "reasoning", "id": name, "summary": [], "status": status, "content": [part]}
