"""Takes reasoning and tool calls out of an answer's text while it streams. A format is a few markers and one small parser."""

from __future__ import annotations

import importlib
import json
import re
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class CallPart:
    """A tool call, whole: calls are short, and half of one is of no use."""

    index: int
    id: str
    name: str
    arguments: str
    """JSON."""

    def delta(self) -> dict[str, Any]:
        """As a streaming delta of the chat API."""
        return {
            "index": self.index,
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer: text, reasoning, or a call."""

    content: str = ""
    reasoning: str = ""
    call: CallPart | None = None


class AnswerParser(Protocol):
    """Fed with the text of one answer as it comes."""

    def feed(self, text: str) -> list[Piece]:
        """Pieces that have become certain."""
        ...

    def finish(self) -> list[Piece]:
        """What is left when the answer has ended."""
        ...


class PlainText:
    """No markup: all is content."""

    def feed(self, text: str) -> list[Piece]:
        return [Piece(content=text)] if text else []

    def finish(self) -> list[Piece]:
        return []


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """How a family of models marks reasoning and tool calls: (begin, end); an end of "" means: until the answer ends."""

    think: tuple[str, str] | None = None
    call: tuple[str, str] | None = None
    bare_json: bool = False
    """An answer that is nothing but the JSON of a call of one of the tools is a call."""
    special: bool = False
    """The markers are special tokens: text must be made with them in it."""

    def parser(self, prompt: str, tools: Collection[str]) -> AnswerParser:
        """The parser of one answer. `prompt` may end inside reasoning that the template has opened; `tools`: names."""
        opened = self.think is not None and prompt.rstrip().endswith(self.think[0])
        spans = {}
        if self.think is not None:
            spans["think"] = self.think
        if self.call is not None and tools:
            spans["call"] = self.call
        if not spans and not self.bare_json:
            return PlainText()
        return MarkedText(spans, opened, frozenset(tools) if self.bare_json else frozenset())


FORMATS: dict[str, AnswerFormat] = {
    "none": AnswerFormat(),
    "qwen3": AnswerFormat(think=("<think>", "</think>"), call=("<tool_call>", "</tool_call>")),
    "llama3": AnswerFormat(call=("<|python_tag|>", ""), bare_json=True, special=True),
    "mistral": AnswerFormat(think=("[THINK]", "[/THINK]"), call=("[TOOL_CALLS]", ""), special=True),
}
"""By the name that --answer-parser takes."""


def format_for(setting: str, templates: Iterable[str]) -> AnswerFormat:
    """The format that `setting` names ("auto": what the chat templates show; or "module:NAME" of an AnswerFormat)."""
    if setting in FORMATS:
        return FORMATS[setting]
    if setting != "auto":
        module, _, name = setting.partition(":")
        found = getattr(importlib.import_module(module), name, None) if name else None
        if not isinstance(found, AnswerFormat):
            raise ValueError(
                f"answer_parser={setting!r}: must be auto, {', '.join(FORMATS)}, or module:NAME of an AnswerFormat"
            )
        return found
    text = "".join(templates)
    if "<tool_call>" in text or "<think>" in text:
        return FORMATS["qwen3"]
    if "[TOOL_CALLS]" in text or "[THINK]" in text:
        return FORMATS["mistral"]
    if "<|python_tag|>" in text or "<|start_header_id|>" in text:
        return FORMATS["llama3"]
    return FORMATS["none"]


class MarkedText:
    """Reasoning and calls between markers. Text that may begin a marker, and line breaks that may stand before one, are
    held back until it is decided, so that an answer gives the same pieces however it is cut."""

    def __init__(self, spans: dict[str, tuple[str, str]], thinking: bool, bare_tools: frozenset[str]) -> None:
        self._spans = spans
        self._begins = [begin for begin, _ in spans.values()]
        self._inside: str | None = "think" if thinking else None
        self._bare_tools = bare_tools
        self._held = ""
        self._calls = 0
        self._begun = False  # content was shown
        self._fresh = thinking  # right behind a marker, where line breaks are no part of the text

    def feed(self, text: str) -> list[Piece]:
        self._held += text
        pieces: list[Piece] = []
        while self._advance(pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        rest, self._held = self._held, ""
        if self._inside == "call":
            return self._parse_calls(rest) or ([Piece(content=self._spans["call"][0] + rest)])
        if self._inside is None and self._may_be_bare(rest):
            calls = self._parse_calls(rest, self._bare_tools)
            if calls:
                return calls
        if self._fresh or self._inside == "think":
            rest = rest.strip("\n")
        if not rest:
            return []
        return [Piece(reasoning=rest)] if self._inside == "think" else [Piece(content=rest)]

    def _may_be_bare(self, text: str) -> bool:
        return bool(self._bare_tools) and not self._begun and text.lstrip()[:1] in ("", "{", "[")

    def _advance(self, pieces: list[Piece]) -> bool:
        """One move through what is held; False when more text is needed."""
        if self._fresh:
            self._held = self._held.lstrip("\n")
            if not self._held:
                return False
            self._fresh = False
        if self._inside is None:
            begins = [
                (at, kind) for kind, (begin, _) in self._spans.items() if (at := self._held.find(begin)) >= 0
            ]
            if not begins:
                if not self._may_be_bare(self._held):
                    self._show(self._safe(self._begins), pieces)
                return False
            at, kind = min(begins)
            self._show(len(self._held[:at].rstrip("\n")), pieces)
            self._enter(kind, self._held.index(self._spans[kind][0]) + len(self._spans[kind][0]))
            return True
        end = self._spans[self._inside][1]
        at = self._held.find(end) if end else -1
        if at < 0:
            if self._inside == "think":
                self._show(self._safe([end]), pieces)
            return False
        if self._inside == "think":
            rest = self._held[at:]
            self._show(len(self._held[:at].rstrip("\n")), pieces)
            self._held = rest
        else:
            text = self._held[:at]
            pieces.extend(self._parse_calls(text) or [Piece(content=self._spans["call"][0] + text + end)])
            self._held = self._held[at:]
        self._enter(None, len(end))
        return True

    def _enter(self, kind: str | None, skip: int) -> None:
        self._held = self._held[skip:]
        self._inside = kind
        self._fresh = kind != "call"

    def _show(self, count: int, pieces: list[Piece]) -> None:
        text, self._held = self._held[:count], self._held[count:]
        if text:
            if self._inside is None:
                self._begun = self._begun or bool(text.strip())
            pieces.append(Piece(reasoning=text) if self._inside == "think" else Piece(content=text))

    def _safe(self, markers: list[str]) -> int:
        """How much of what is held cannot be a marker's beginning or a line break before one."""
        held = self._held
        longest = max(map(len, markers), default=0)
        end = len(held)
        for start in range(max(0, end - longest + 1), end):
            if any(marker.startswith(held[start:]) for marker in markers):
                end = start
                break
        return len(held[:end].rstrip("\n"))

    def _parse_calls(self, text: str, known: Collection[str] = ()) -> list[Piece]:
        found = _named_args(text) if "[ARGS]" in text else _json_calls(text)
        if not found or (known and any(name not in known for name, _ in found)):
            return []
        pieces = []
        for name, arguments in found:
            pieces.append(Piece(call=CallPart(self._calls, f"call_{secrets.token_hex(12)}", name, arguments)))
            self._calls += 1
        return pieces


class ForcedCalls:
    """An answer that was made under the schema of a forced tool_choice: nothing but a JSON list of calls."""

    def __init__(self) -> None:
        self._text = ""

    def feed(self, text: str) -> list[Piece]:
        self._text += text
        return []

    def finish(self) -> list[Piece]:
        calls = _json_calls(self._text)
        if not calls:  # cut off by the length
            return [Piece(content=self._text)] if self._text else []
        return [
            Piece(call=CallPart(index, f"call_{secrets.token_hex(12)}", name, arguments))
            for index, (name, arguments) in enumerate(calls)
        ]


def _json_calls(text: str) -> list[tuple[str, str]]:
    """One call or a list of them; Llama 3 puts ";" between several. Empty for anything else."""
    decoder, calls, at = json.JSONDecoder(), [], 0
    text = text.strip()
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return []
        at += len(text[at:]) - len(text[at:].lstrip(" \n\r\t;"))
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, dict) or not isinstance(one.get("name"), str):
                return []
            arguments = one.get("arguments", one.get("parameters", {}))
            text_of = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            calls.append((one["name"], text_of))
    return calls


def _named_args(text: str) -> list[tuple[str, str]]:
    """Mistral's newer form: name[ARGS]{...}, and [TOOL_CALLS] between several."""
    calls = []
    for one in text.split("[TOOL_CALLS]"):
        name, _, arguments = re.sub(r"\[CALL_ID\][^\[]*", "", one).strip().partition("[ARGS]")
        try:
            json.loads(arguments)
        except (ValueError, RecursionError):
            return []
        calls.append((name.strip(), arguments.strip()))
    return calls
