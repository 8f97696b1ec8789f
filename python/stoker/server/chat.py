"""POST /v1/chat/completions: the checkpoint's chat template, streaming or whole, logprobs, reasoning and tool calls parsed out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stoker.server import messages as m
from stoker.server.answers import Answer, Delta
from stoker.server.body import read
from stoker.server.completions import prompt_logprobs, token_name, usage
from stoker.server.conversation import ChatRun, Conversation, start
from stoker.server.direct import DirectResponse
from stoker.server.errors import bad_request
from stoker.server.parsers import Piece, whole_calls
from stoker.server.protocol import ChatRequest
from stoker.server.sse import DONE, TextFrames, frame
from stoker.server.state import ServerState
from stoker.text import Tokenizer


async def create_chat_completion(request: Request, state: ServerState) -> Response:
    """The endpoint."""
    body = await read(request, ChatRequest, state.settings.limits)
    model = state.check_model(body.model)
    _refuse_what_is_not_built(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs=true", "top_logprobs")
    conversation = Conversation(
        messages=body.messages,
        tools=body.tools,
        tool_choice=body.tool_choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        template_kwargs=template_kwargs(body.chat_template_kwargs, body.reasoning_effort),
        add_generation_prompt=body.add_generation_prompt and not body.continue_final_message,
        continue_final_message=body.continue_final_message,
        documents=body.documents,
    )
    run = await start(
        request,
        state,
        "chatcmpl",
        conversation,
        body,
        max_tokens=body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    chat = _Chat(model, body, run, state.tokenizer)
    if body.stream:
        return chat.stream()
    return Response(msgspec.json.encode(await chat.whole()), media_type="application/json")


def template_kwargs(given: dict[str, Any] | None, effort: str | None) -> dict[str, Any]:
    """The template's variables; a reasoning effort is one of them, and "none" also turns Qwen3's thinking off."""
    found = dict(given or {})
    if effort is not None:
        found.setdefault("reasoning_effort", effort)
        if effort == "none":
            found.setdefault("enable_thinking", False)
    return found


def _refuse_what_is_not_built(body: ChatRequest) -> None:
    if body.functions:
        raise bad_request("functions is the old form of tools; send tools", "functions")
    if body.modalities and body.modalities != ["text"]:
        raise bad_request(f"modalities={body.modalities!r}: only text is served", "modalities")
    if body.chat_template is not None:
        raise bad_request(
            "chat_template: a template from outside is not run; the checkpoint's is", "chat_template"
        )


class _Chat:
    """One response in the making."""

    def __init__(self, model: str, body: ChatRequest, run: ChatRun, tokenizer: Tokenizer) -> None:
        self._model, self._created = model, int(time.time())
        self._body = body
        self._run = run
        self._tokenizer = tokenizer
        self._by_id = bool(body.return_tokens_as_token_ids)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._run.rid, "object": kind, "created": self._created, "model": self._model}

    @property
    def _echo(self) -> str:
        """The last message's text, where the answer goes on with it and echo asks for it."""
        last = self._body.messages[-1].get("content") if self._body.echo else None
        return last if isinstance(last, str) else ""

    async def whole(self) -> dict[str, Any]:
        """The response that does not stream."""
        found = await self._run.whole()
        choices = [self._choice(index, answer, pieces) for index, (answer, pieces) in enumerate(found)]
        response = {**self._head("chat.completion"), "choices": choices, "usage": usage([self._run.answers])}
        if self._body.prompt_logprobs is not None:
            entries = self._run.answers.prompt_logprobs
            response["prompt_logprobs"] = prompt_logprobs(self._tokenizer, entries)
        if self._body.return_token_ids:
            response["prompt_token_ids"] = self._run.prompt.token_ids
        return response

    def _choice(self, index: int, answer: Answer, pieces: list[Piece]) -> dict[str, Any]:
        content = self._echo + "".join(piece.content for piece in pieces)
        reasoning = "".join(piece.reasoning for piece in pieces)
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if reasoning and self._body.include_reasoning:
            message["reasoning_content"] = message["reasoning"] = reasoning
        calls = tool_calls(pieces)
        if calls:
            message["tool_calls"] = calls
            message["content"] = content or None
        choice = {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(answer.token_ids, answer.logprobs),
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
        }
        if self._body.return_token_ids:
            choice["token_ids"] = answer.token_ids
        return choice

    def _logprobs(self, token_ids: list[int], entries: list[m.Logprobs] | None) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        return chat_logprobs(self._tokenizer, token_ids, entries or [], by_id=self._by_id)

    def stream(self) -> Response:
        """SSE frames."""
        head = self._head("chat.completion.chunk")
        options = self._body.stream_options
        with_usage = options is not None and options.include_usage
        if options is not None and options.continuous_usage_stats and with_usage:
            head["usage"] = None
        first = []
        for index in range(self._run.n):
            delta = _delta(index, {"role": "assistant", "content": self._echo})
            extra = {"prompt_token_ids": self._run.prompt.token_ids} if self._body.return_token_ids else {}
            first.append(frame({**head, "choices": [delta], **extra}))
        plain = not (self._body.logprobs or self._body.return_token_ids or "usage" in head)

        def quick(_: int, index: int) -> TextFrames:
            return TextFrames(head, _delta(index, {"content": ""}), ("delta", "content"))

        def last() -> bytes:
            tail = frame({**head, "choices": [], "usage": usage([self._run.answers])}) if with_usage else b""
            return tail + DONE

        made: dict[int, TextFrames] = {}

        def render(_: int, delta: Delta) -> bytes:
            pieces = self._run.pieces_of(delta)
            if not plain or delta.finish_reason is not None or not all(piece.content for piece in pieces):
                return b"".join(self._frames(head, delta, pieces))
            if delta.index not in made:
                made[delta.index] = quick(0, delta.index)
            return b"".join(made[delta.index].frame(piece.content) for piece in pieces)

        return DirectResponse(
            [self._run.answers],
            render,
            first=b"".join(first),
            last=last,
            quick=quick if plain and self._run.is_plain else None,
        )

    def _frames(self, head: dict[str, Any], delta: Delta, pieces: list[Piece]) -> Iterator[bytes]:
        if "usage" in head:
            head["usage"] = usage([self._run.answers])
        index = delta.index
        logprobs = self._logprobs(delta.token_ids, delta.logprobs) if delta.token_ids else None
        token_ids = delta.token_ids if self._body.return_token_ids else None
        for piece in pieces:
            shown = self._piece_delta(piece)
            if shown:
                yield frame({**head, "choices": [_delta(index, shown, logprobs, token_ids)]})
                logprobs = token_ids = None
        if logprobs is not None or token_ids:
            yield frame({**head, "choices": [_delta(index, {}, logprobs, token_ids)]})
        if delta.finish_reason is not None:
            last = _delta(index, {}, None, None, delta.finish_reason, delta.stop_reason)
            yield frame({**head, "choices": [last]})

    def _piece_delta(self, piece: Piece) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if piece.reasoning and self._body.include_reasoning:
            delta["reasoning_content"] = delta["reasoning"] = piece.reasoning
        if piece.content:
            delta["content"] = piece.content
        if piece.call is not None:
            delta["tool_calls"] = [piece.call.delta()]
        return delta


def _delta(
    index: int,
    delta: dict[str, Any],
    logprobs: Any = None,
    token_ids: list[int] | None = None,
    finish: str | None = None,
    stop_reason: int | str | None = None,
) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
    if token_ids:
        choice["token_ids"] = token_ids
    return choice if stop_reason is None else {**choice, "stop_reason": stop_reason}


def tool_calls(pieces: list[Piece]) -> list[dict[str, Any]]:
    """The calls among pieces, in OpenAI's form."""
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in whole_calls(pieces)
    ]


def chat_logprobs(
    tokenizer: Tokenizer, token_ids: list[int], entries: list[m.Logprobs], *, by_id: bool = False
) -> dict[str, Any]:
    """The chat API's logprobs: one object a token."""

    def one(token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": token_name(tokenizer, token_id, by_id),
            "logprob": logprob,
            "bytes": list(tokenizer.token_bytes(token_id)),
        }

    content = []
    for token_id, entry in zip(token_ids, entries, strict=False):
        top = [one(i, p) for i, p in list(zip(entry.token_ids, entry.logprobs, strict=True))[1:]]
        content.append({**one(token_id, entry.logprobs[0]), "top_logprobs": top})
    return {"content": content}
