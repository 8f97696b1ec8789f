"""Takes reasoning and tool calls out of an answer's text while it streams. A format is one small parser; the template tells which."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any, Protocol

from stoker.text import ChatTemplate


@dataclass(frozen=True, slots=True)
class CallPart:
    """A tool call; here always the whole of it, in one piece."""

    index: int
    id: str
    name: str
    arguments: str

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
class Markup:
    """How a family of models marks reasoning and tool calls."""

    think: tuple[str, str] | None
    call: tuple[str, str] | None  # an end of "" means: until the answer ends


QWEN3 = Markup(think=("<think>", "</think>"), call=("<tool_call>", "</tool_call>"))
MISTRAL = Markup(think=("[THINK]", "[/THINK]"), call=("[TOOL_CALLS]", ""))
LLAMA3 = Markup(think=None, call=("<|python_tag|>", ""))


class MarkedText:
    """Reasoning and calls between markers; text that may begin a marker is held back until it is decided."""

    def __init__(
        self, markup: Markup, *, thinking: bool = False, calls: bool = True, bare_json: bool = False
    ) -> None:
        self._spans: dict[str, tuple[str, str]] = {}
        if markup.think is not None:
            self._spans["think"] = markup.think
        if markup.call is not None and calls:
            self._spans["call"] = markup.call
        self._inside: str | None = "think" if thinking else None
        self._bare_json = bare_json and calls
        self._held = ""
        self._calls = 0
        self._begun = False

    def feed(self, text: str) -> list[Piece]:
        self._held += text
        pieces: list[Piece] = []
        while self._advance(pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        rest, self._held = self._held, ""
        if not rest:
            return []
        if self._inside == "call" or (
            self._inside is None and self._bare_json and not self._begun and rest.lstrip().startswith("{")
        ):
            pieces = self._parse_calls(rest)
            return pieces or [Piece(content=rest)]
        return [Piece(reasoning=rest)] if self._inside == "think" else [Piece(content=rest)]

    def _advance(self, pieces: list[Piece]) -> bool:
        """One move through what is held; False when more text is needed."""
        if self._inside is None:
            # Llama 3 may answer with nothing but a JSON object: held back until the answer ends.
            if self._bare_json and not self._begun and self._held.lstrip()[:1] in ("", "{"):
                return False
            begins = [
                (at, kind) for kind, (begin, _) in self._spans.items() if (at := self._held.find(begin)) >= 0
            ]
            if not begins:
                self._show(self._held[: self._safe([begin for begin, _ in self._spans.values()])], pieces)
                return False
            at, kind = min(begins)
            self._show(self._held[:at], pieces)
            self._held = self._held[len(self._spans[kind][0]) :]
            self._inside = kind
            return True
        end = self._spans[self._inside][1]
        at = self._held.find(end) if end else -1
        if at < 0:
            if self._inside == "think":
                self._show(self._held[: self._safe([end])], pieces)
            return False
        if self._inside == "think":
            self._show(self._held[:at], pieces)
            self._held = self._held[len(end) :].lstrip("\n")
        else:
            pieces.extend(self._parse_calls(self._held[:at]) or [Piece(content=self._held[:at])])
            self._held = self._held[at + len(end) :].lstrip("\n")
        self._inside = None
        return True

    def _show(self, text: str, pieces: list[Piece]) -> None:
        self._held = self._held[len(text) :]
        if text:
            self._begun = self._begun or bool(text.strip())
            pieces.append(Piece(reasoning=text) if self._inside == "think" else Piece(content=text))

    def _safe(self, markers: list[str]) -> int:
        """How much of what is held cannot be the beginning of a marker."""
        for start in range(max(0, len(self._held) - max(map(len, markers), default=0) + 1), len(self._held)):
            if any(marker.startswith(self._held[start:]) for marker in markers):
                return start
        return len(self._held)

    def _parse_calls(self, text: str) -> list[Piece]:
        try:
            value = json.loads(text.strip())
        except ValueError:
            return []
        pieces = []
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, dict) or not isinstance(one.get("name"), str):
                return []
            arguments = one.get("arguments", one.get("parameters", {}))
            text_of = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            pieces.append(
                Piece(call=CallPart(self._calls, f"call_{secrets.token_hex(12)}", one["name"], text_of))
            )
            self._calls += 1
        return pieces


def parser_for(template: ChatTemplate, prompt: str, tools: bool) -> AnswerParser:
    """The parser for one answer. `prompt` may end inside reasoning that the template has opened."""
    text = "".join(template.templates.values())
    if "<tool_call>" in text or "<think>" in text:
        opened = prompt.rstrip().endswith("<think>")
        return MarkedText(QWEN3, thinking=opened, calls=tools)
    if "[TOOL_CALLS]" in text or "[THINK]" in text:
        return MarkedText(MISTRAL, calls=tools)
    if "<|python_tag|>" in text or "<|start_header_id|>" in text:
        return MarkedText(LLAMA3, calls=tools, bare_json=True) if tools else PlainText()
    return PlainText()
