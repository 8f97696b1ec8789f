"""POST /v1/chat/completions: the checkpoint's chat template, streaming or whole, logprobs, reasoning and tool calls parsed out."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from fastapi import Request
from fastapi.responses import Response

from stoker.server import messages as m
from stoker.server.answers import Answer, Answers
from stoker.server.body import read
from stoker.server.completions import usage
from stoker.server.errors import ApiError, bad_request
from stoker.server.parsers import AnswerParser, Piece, parser_for
from stoker.server.protocol import ChatRequest, sampling_params
from stoker.server.sse import DONE, frame, with_first
from stoker.server.state import ServerState
from stoker.text import Tokenizer

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


async def create_chat_completion(request: Request, state: ServerState) -> Response:
    """The endpoint."""
    body = await read(request, ChatRequest, state.settings.limits)
    model = state.check_model(body.model)
    messages = checked_messages(body.messages, state)
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs=true", "top_logprobs")
    tools = None if body.tool_choice == "none" else body.tools
    try:
        prompt_text = state.template.render(
            messages,
            tools=tools,
            add_generation_prompt=body.add_generation_prompt and not body.continue_final_message,
            continue_final_message=body.continue_final_message,
            **(body.chat_template_kwargs or {}),
        )
    except (ValueError, TypeError) as error:
        raise bad_request(f"the chat template refuses these messages: {error}", "messages") from None
    prompt = await state.encode(prompt_text, add_special_tokens=False)
    params = sampling_params(
        body,
        state.settings.limits,
        max_tokens=body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        defaults=state.defaults,
    )
    rid = body.request_id or state.new_id("chatcmpl")
    request.state.rids.append(rid)
    answers = state.submit(
        rid, prompt, params, priority=body.priority, cache_salt=body.cache_salt, tenant=body.user
    )
    parsers = [parser_for(state.template, prompt_text, bool(tools)) for _ in range(params.n)]
    chat = _Chat(rid, model, body, answers, parsers, state.tokenizer)
    if body.stream:
        return await with_first(chat.stream())
    return Response(msgspec.json.encode(await chat.whole()), media_type="application/json")


def checked_messages(messages: list[dict[str, Any]], state: ServerState) -> list[dict[str, Any]]:
    """The messages in the form that templates take: text parts joined, roles known. 400 for what a template cannot show."""
    if not messages:
        raise bad_request("messages is empty; at least one is needed", "messages")
    limit = state.settings.limits.max_messages
    if len(messages) > limit:
        raise bad_request(f"{len(messages)} messages: at most {limit} are allowed", "messages")
    checked = []
    for index, message in enumerate(messages):
        role = message.get("role")
        if role not in ROLES:
            raise bad_request(
                f"messages[{index}].role is {role!r}; allowed are {', '.join(ROLES)}",
                f"messages[{index}].role",
            )
        checked.append(
            {**message, "role": "system" if role == "developer" else role, "content": _text(message, index)}
        )
    return checked


def _text(message: dict[str, Any], index: int) -> str | None:
    content = message.get("content")
    if content is None:
        if message.get("tool_calls") or message["role"] == "assistant":
            return None
        raise bad_request(f"messages[{index}].content is missing", f"messages[{index}].content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_request(
            f"messages[{index}].content must be a string or a list of text parts",
            f"messages[{index}].content",
        )
    parts = []
    for part in content:
        if (
            not isinstance(part, dict)
            or part.get("type") not in ("text", "input_text", "output_text")
            or not isinstance(part.get("text"), str)
        ):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise bad_request(
                f"messages[{index}].content holds a part of type {kind!r}; only text is served",
                f"messages[{index}].content",
            )
        parts.append(part["text"])
    return "".join(parts)


class _Chat:
    """One response in the making."""

    def __init__(
        self,
        rid: str,
        model: str,
        body: ChatRequest,
        answers: Answers,
        parsers: list[AnswerParser],
        tokenizer: Tokenizer,
    ) -> None:
        self._id, self._model, self._created = rid, model, int(time.time())
        self._body = body
        self._answers = answers
        self._parsers = parsers
        self._tokenizer = tokenizer

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    async def whole(self) -> dict[str, Any]:
        """The response that does not stream."""
        choices = [self._choice(index, answer) for index, answer in enumerate(await self._answers.whole())]
        return {**self._head("chat.completion"), "choices": choices, "usage": usage([self._answers])}

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        parser = self._parsers[index]
        pieces = [*parser.feed(answer.text), *parser.finish()]
        content = "".join(piece.content for piece in pieces)
        reasoning = "".join(piece.reasoning for piece in pieces)
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if reasoning:
            message["reasoning_content"] = reasoning
        finish = answer.finish_reason
        calls = tool_calls(pieces)
        if calls:
            message["tool_calls"] = calls
            message["content"] = content or None
            finish = "tool_calls" if finish == "stop" else finish
        logprobs = (
            chat_logprobs(self._tokenizer, answer.token_ids, answer.logprobs) if self._body.logprobs else None
        )
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": finish,
            "stop_reason": answer.stop_reason,
        }

    async def stream(self) -> AsyncIterator[bytes]:
        """SSE frames."""
        head = self._head("chat.completion.chunk")
        options = self._body.stream_options
        for index in range(len(self._parsers)):
            yield frame({**head, "choices": [_delta(index, {"role": "assistant", "content": ""})]})
        called = [False] * len(self._parsers)
        async for delta in self._answers.deltas():
            if delta.finish_reason == "error":
                raise ApiError(500, delta.message or "the request failed in the engine")
            index, parser = delta.index, self._parsers[delta.index]
            pieces = parser.feed(delta.text)
            if delta.finish_reason is not None:
                pieces = [*pieces, *parser.finish()]
            logprobs = None
            if self._body.logprobs and delta.token_ids:
                logprobs = chat_logprobs(self._tokenizer, delta.token_ids, delta.logprobs or [])
            for piece in pieces:
                called[index] = called[index] or piece.call is not None
                yield frame({**head, "choices": [_delta(index, _piece_delta(piece), logprobs)]})
                logprobs = None
            if logprobs is not None:
                yield frame({**head, "choices": [_delta(index, {}, logprobs)]})
            if delta.finish_reason is not None:
                finish = (
                    "tool_calls" if called[index] and delta.finish_reason == "stop" else delta.finish_reason
                )
                yield frame({**head, "choices": [_delta(index, {}, None, finish, delta.stop_reason)]})
        if options is not None and options.include_usage:
            yield frame({**head, "choices": [], "usage": usage([self._answers])})
        yield DONE


def _delta(
    index: int,
    delta: dict[str, Any],
    logprobs: Any = None,
    finish: str | None = None,
    stop_reason: int | str | None = None,
) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
    return choice if stop_reason is None else {**choice, "stop_reason": stop_reason}


def _piece_delta(piece: Piece) -> dict[str, Any]:
    delta: dict[str, Any] = {}
    if piece.reasoning:
        delta["reasoning_content"] = piece.reasoning
    if piece.content:
        delta["content"] = piece.content
    if piece.call is not None:
        delta["tool_calls"] = [piece.call.delta()]
    return delta


def tool_calls(pieces: list[Piece]) -> list[dict[str, Any]]:
    """The calls that pieces put together, in OpenAI's form."""
    calls: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        if piece.call is None:
            continue
        part = piece.call
        call = calls.setdefault(
            part.index, {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": ""}}
        )
        call["function"]["arguments"] += part.arguments
    return list(calls.values())


def chat_logprobs(tokenizer: Tokenizer, token_ids: list[int], entries: list[m.Logprobs]) -> dict[str, Any]:
    """The chat API's logprobs: one object a token."""

    def one(token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": tokenizer.token_text(token_id),
            "logprob": logprob,
            "bytes": list(tokenizer.token_bytes(token_id)),
        }

    content = []
    for token_id, entry in zip(token_ids, entries, strict=False):
        top = [one(i, p) for i, p in list(zip(entry.token_ids, entry.logprobs, strict=True))[1:]]
        content.append({**one(token_id, entry.logprobs[0]), "top_logprobs": top})
    return {"content": content}
