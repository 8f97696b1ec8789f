"""What the three chat dialects (OpenAI chat, OpenAI responses, Anthropic messages) share: messages and tools are checked, the
checkpoint's template makes the prompt, the request starts, and its answers come back as pieces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request

from stoker.server.answers import Answer, Answers, Delta, all_whole
from stoker.server.errors import bad_request
from stoker.server.parsers import AnswerParser, ForcedCalls, Piece, PlainText
from stoker.server.protocol import Sampling, sampling_params
from stoker.server.settings import Limits
from stoker.server.state import ServerState
from stoker.structured_outputs import StructuredOutputsParams

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")


@dataclass(slots=True)
class Conversation:
    """What a dialect makes of its body: messages in OpenAI's chat form, and what shapes the answer."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    documents: list[dict[str, Any]] | None = None


@dataclass(slots=True)
class Prompt:
    """A conversation through the template."""

    text: str
    token_ids: list[int]
    tool_names: tuple[str, ...]


class ChatRun:
    """One chat request under way: its answers, each with its parser."""

    def __init__(
        self,
        request: Request,
        answers: Answers,
        parsers: list[AnswerParser],
        prompt: Prompt,
        parallel: bool,
    ) -> None:
        self._request = request
        self.answers = answers
        self.prompt = prompt
        self._parsers = parsers
        self._parallel = parallel
        self._called = [False] * len(parsers)

    @property
    def rid(self) -> str:
        """The request's name in the engine."""
        return self.answers.rid

    @property
    def n(self) -> int:
        """How many answers there will be."""
        return len(self._parsers)

    @property
    def is_plain(self) -> bool:
        """Whether all that comes is content as it stands."""
        return all(isinstance(parser, PlainText) for parser in self._parsers)

    def pieces_of(self, delta: Delta) -> list[Piece]:
        """The pieces that a delta makes certain; each delta once, in order. Its `finish_reason` says tool_calls afterwards
        where an answer ended with one."""
        parser = self._parsers[delta.index]
        pieces = parser.feed(delta.text)
        if delta.finish_reason is not None:
            pieces = [*pieces, *parser.finish()]
        pieces = self._kept(delta.index, pieces)
        if delta.finish_reason == "stop" and self._called[delta.index]:
            delta.finish_reason = "tool_calls"
        return pieces

    async def whole(self) -> list[tuple[Answer, list[Piece]]]:
        """All answers complete, each with its pieces."""
        found = []
        (answers,) = await all_whole(self._request, [self.answers])
        for index, answer in enumerate(answers):
            parser = self._parsers[index]
            pieces = self._kept(index, [*parser.feed(answer.text), *parser.finish()])
            if self._called[index] and answer.finish_reason == "stop":
                answer.finish_reason = "tool_calls"
            found.append((answer, pieces))
        return found

    def _kept(self, index: int, pieces: list[Piece]) -> list[Piece]:
        if not self._parallel:
            pieces = [piece for piece in pieces if piece.call is None or piece.call.index == 0]
        self._called[index] = self._called[index] or any(piece.call is not None for piece in pieces)
        return pieces


async def start(
    request: Request,
    state: ServerState,
    kind: str,
    conversation: Conversation,
    body: Sampling,
    *,
    max_tokens: int | None,
    logprobs: int | None = None,
) -> ChatRun:
    """Renders, encodes and submits; returns once the engine has taken the request. `kind` begins its id, unless the body
    names one."""
    params = sampling_params(
        body,
        state.settings.limits,
        max_tokens=max_tokens,
        logprobs=logprobs,
        skip_special_tokens=False if _needs_special_tokens(state, conversation) else None,
        defaults=state.defaults,
    )
    prompt = await render(state, conversation, truncate=body.truncate_prompt_tokens)
    forced = _forced_calls(conversation)
    if forced is not None:
        if params.structured_outputs is not None:
            raise bad_request(
                "a forced tool_choice and a response format both say what the answer must look like; give one"
            )
        params = replace(params, structured_outputs=_constraint(forced))
    params = await state.with_word_tokens(params)
    answers = state.submit(
        request,
        state.new_id(kind, body.request_id),
        prompt.token_ids,
        params,
        priority=body.priority,
        cache_salt=body.cache_salt,
        tenant=body.user,
        stream=bool(body.stream),
    )
    parsers: list[AnswerParser] = [
        ForcedCalls() if forced else state.answer_format.parser(prompt.text, prompt.tool_names)
        for _ in range(params.n)
    ]
    await answers.accepted()
    return ChatRun(request, answers, parsers, prompt, conversation.parallel_tool_calls)


def _needs_special_tokens(state: ServerState, conversation: Conversation) -> bool:
    """Whether the answer's text must be made with special tokens in it, because calls are marked by them."""
    offered = bool(conversation.tools) and conversation.tool_choice != "none"
    return state.answer_format.special and (offered or state.answer_format.think is not None)


async def render(state: ServerState, conversation: Conversation, *, truncate: int | None = None) -> Prompt:
    """The prompt of a conversation. 400 for what the template refuses."""
    limits = state.settings.limits
    tools = checked_tools(conversation.tools, limits)
    choice = conversation.tool_choice
    if choice is not None and choice not in ("none", "auto"):
        _check_choice(choice, tools)
    if choice == "none":
        tools = []
    messages = checked_messages(conversation.messages, limits)
    try:
        text = state.template.render(
            messages,
            tools=tools or None,
            documents=conversation.documents,
            add_generation_prompt=conversation.add_generation_prompt,
            continue_final_message=conversation.continue_final_message,
            **_template_kwargs(conversation.template_kwargs),
        )
    except (ValueError, TypeError) as error:
        raise bad_request(f"the chat template refuses these messages: {error}", "messages") from None
    except RecursionError:
        raise bad_request("these messages nest too deeply for the chat template", "messages") from None
    token_ids = await state.encode(text, add_special_tokens=False)
    names = tuple(tool["function"]["name"] for tool in tools)
    return Prompt(text, truncated(token_ids, truncate), names)


def truncated(token_ids: list[int], keep: int | None) -> list[int]:
    """The last `keep` tokens (vLLM's truncate_prompt_tokens); None or -1: all."""
    if keep is None or keep == -1:
        return token_ids
    if keep < 1:
        raise bad_request(
            f"truncate_prompt_tokens={keep}: at least 1 is allowed, or -1 for no limit",
            "truncate_prompt_tokens",
        )
    return token_ids[-keep:]


_OWN_NAMES = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template"}
)


def _template_kwargs(given: dict[str, Any] | None) -> dict[str, Any]:
    wrong = sorted(_OWN_NAMES & set(given or ()))
    if wrong:
        raise bad_request(f"chat_template_kwargs may not hold {wrong[0]!r}", "chat_template_kwargs")
    return given or {}


def _check_choice(choice: str | dict[str, Any], tools: Sequence[dict[str, Any]]) -> None:
    name = _named(choice) if isinstance(choice, dict) else None
    if choice != "required" and name is None:
        raise bad_request(
            f"tool_choice={choice!r}: allowed are none, auto, required, or an object that names a function",
            "tool_choice",
        )
    names = [tool["function"]["name"] for tool in tools]
    if not names or (name is not None and name not in names):
        what = "some tool" if name is None else repr(name)
        raise bad_request(
            f"tool_choice asks for {what}; given are {', '.join(names) or 'none'}", "tool_choice"
        )


def _named(choice: dict[str, Any]) -> str | None:
    """The function that {"type": "function", "function": {"name": ...}} names; the responses API writes it flat."""
    function = choice.get("function", choice)
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _forced_calls(conversation: Conversation) -> dict[str, Any] | None:
    """The schema of an answer that must be calls: a list of {"name", "arguments"}; None where no call is forced."""
    choice = conversation.tool_choice
    if choice is None or choice in ("none", "auto"):
        return None
    name = _named(choice) if isinstance(choice, dict) else None
    calls = []
    for tool in conversation.tools or ():
        function = tool["function"]
        if name not in (None, function["name"]):
            continue
        fields = {
            "name": {"const": function["name"]},
            "arguments": function.get("parameters") or {"type": "object"},
        }
        calls.append(
            {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
        )
    one_only = name is not None or not conversation.parallel_tool_calls
    return {"type": "array", "minItems": 1, "maxItems": 1 if one_only else 8, "items": {"anyOf": calls}}


def _constraint(schema: dict[str, Any]) -> StructuredOutputsParams:
    try:
        return StructuredOutputsParams(json=schema, disable_any_whitespace=True)
    except (ValueError, TypeError) as error:
        raise bad_request(f"the tools' parameters: {error}", "tools") from None


def checked_tools(tools: Sequence[dict[str, Any]] | None, limits: Limits) -> list[dict[str, Any]]:
    """Function tools in OpenAI's chat form. 400 for another kind, or one without a name."""
    if len(tools or ()) > limits.max_tools:
        raise bad_request(f"{len(tools or ())} tools: at most {limits.max_tools} are allowed", "tools")
    for index, tool in enumerate(tools or ()):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise bad_request(
                f"tools[{index}] is of type {tool.get('type')!r}; only function is served", "tools"
            )
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise bad_request(f"tools[{index}].function.name is missing", "tools")
        if not isinstance(function.get("parameters", {}), dict | None):
            raise bad_request(f"tools[{index}].function.parameters must be a JSON schema", "tools")
    return list(tools or ())


def checked_messages(messages: list[dict[str, Any]], limits: Limits) -> list[dict[str, Any]]:
    """The messages in the form that templates take: text parts joined, roles known, arguments of calls as objects. 400 for
    what a template cannot show."""
    if not messages:
        raise bad_request("messages is empty; at least one is needed", "messages")
    if len(messages) > limits.max_messages:
        raise bad_request(f"{len(messages)} messages: at most {limits.max_messages} are allowed", "messages")
    return [_checked_message(message, index) for index, message in enumerate(messages)]


def _checked_message(message: dict[str, Any], index: int) -> dict[str, Any]:
    role = message.get("role")
    if role not in ROLES:
        raise bad_request(
            f"messages[{index}].role is {role!r}; allowed are {', '.join(ROLES)}", f"messages[{index}].role"
        )
    checked = {**message, "role": "system" if role == "developer" else role, "content": _text(message, index)}
    calls = message.get("tool_calls")
    if calls is None:
        checked.pop("tool_calls", None)
        return checked
    if not isinstance(calls, list):
        raise bad_request(f"messages[{index}].tool_calls must be a list", f"messages[{index}].tool_calls")
    checked["tool_calls"] = [_checked_call(call, index) for call in calls]
    return checked


def _checked_call(call: Any, index: int) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise bad_request(
            f"messages[{index}].tool_calls holds a call without a function's name",
            f"messages[{index}].tool_calls",
        )
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            # Templates write the arguments out themselves, as JSON.
            arguments = json.loads(arguments) if arguments else {}
        except (ValueError, RecursionError):
            raise bad_request(
                f"messages[{index}].tool_calls: the arguments are not JSON", f"messages[{index}].tool_calls"
            ) from None
    return {**call, "function": {**function, "arguments": {} if arguments is None else arguments}}


def _text(message: dict[str, Any], index: int) -> str:
    content, place = message.get("content"), f"messages[{index}].content"
    if content is None:
        if message.get("tool_calls") or message["role"] == "assistant":
            return ""
        raise bad_request(f"{place} is missing", place)
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_request(f"{place} must be a string or a list of text parts", place)
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        text = part.get("text", part.get("refusal")) if isinstance(part, dict) else None
        if kind not in _TEXT_PARTS or not isinstance(text, str):
            raise bad_request(f"{place} holds a part of type {kind!r}; only text is served", place)
        parts.append(text)
    return "".join(parts)
