"""Takes reasoning and tool calls out of an answer's text while it streams. A format is a few markers and one small parser."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from stoker.server.call_reader import CallPart, CallReader


@dataclass(slots=True)
class Piece:
    """A part of an answer: text, reasoning, or some of a call."""

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
    held back until it is decided, so that an answer gives the same pieces however it is cut. A call's arguments come as
    they grow."""

    def __init__(self, spans: dict[str, tuple[str, str]], thinking: bool, bare_tools: frozenset[str]) -> None:
        self._spans = spans
        self._begins = [begin for begin, _ in spans.values()]
        self._first_characters = {begin[0] for begin in self._begins}
        self._inside: str | None = "think" if thinking else None
        self._bare_tools = bare_tools  # empty once something else than a bare call has begun
        self._reader: CallReader | None = None
        self._held = ""
        self._calls = 0
        self._fresh = thinking  # right behind a marker, where line breaks are no part of the text

    def feed(self, text: str) -> list[Piece]:
        if self._is_plain(text):
            return [Piece(content=text) if self._inside is None else Piece(reasoning=text)]
        self._held += text
        pieces: list[Piece] = []
        while self._advance(pieces):
            pass
        return pieces

    def _is_plain(self, text: str) -> bool:
        """Whether a text, as most are, neither begins nor ends anything: what _advance would find out at ten times the cost."""
        if self._held or self._fresh or self._bare_tools or text[-1:] in ("", "\n"):
            return False
        if self._inside == "think":
            return self._spans["think"][1][0] not in text
        return self._inside is None and not any(first in text for first in self._first_characters)

    def finish(self) -> list[Piece]:
        pieces: list[Piece] = []
        if self._inside == "call":
            self._read_calls(len(self._held), pieces)
            self._leave_call("", pieces)
        elif self._inside == "bare":
            self._held = self._leave_bare()
        rest, self._held = self._held, ""
        if self._fresh or self._inside == "think":
            rest = rest.strip("\n")
        if rest:
            pieces.append(Piece(reasoning=rest) if self._inside == "think" else Piece(content=rest))
        return pieces

    def _advance(self, pieces: list[Piece]) -> bool:
        """One move through what is held; False when more text is needed."""
        if self._fresh:
            self._held = self._held.lstrip("\n")
            if not self._held:
                return False
            self._fresh = False
        if self._inside is None:
            return self._advance_outside(pieces)
        if self._inside == "bare":
            self._read_calls(len(self._held), pieces)
            if self._reader is None or not self._reader.failed:
                return False
            self._held = self._leave_bare()
            return True
        end = self._spans[self._inside][1]
        at = self._held.find(end) if end else -1
        if self._inside == "think":
            if at < 0:
                self._show(self._safe([end]), pieces)
                return False
            rest = self._held[at:]
            self._show(len(self._held[:at].rstrip("\n")), pieces)
            self._held = rest
        else:
            self._read_calls(at if at >= 0 else self._safe([end] if end else []), pieces)
            if at < 0:
                return False
            self._held = self._held[self._held.index(end) :]
            self._leave_call(end, pieces)
        self._enter(None, len(end))
        return True

    def _advance_outside(self, pieces: list[Piece]) -> bool:
        begins = [
            (at, kind) for kind, (begin, _) in self._spans.items() if (at := self._held.find(begin)) >= 0
        ]
        if self._bare_tools and not begins:
            first = self._held.lstrip()[:1]
            if first and first in "{[":
                self._inside, self._reader = "bare", CallReader(self._calls, self._bare_tools)
                return True
            if not first:
                return False
        if not begins:
            self._show(self._safe(self._begins), pieces)
            return False
        at, kind = min(begins)
        self._show(len(self._held[:at].rstrip("\n")), pieces)
        self._enter(kind, self._held.index(self._spans[kind][0]) + len(self._spans[kind][0]))
        return True

    def _enter(self, kind: str | None, skip: int) -> None:
        self._held = self._held[skip:]
        self._inside = kind
        self._fresh = kind != "call"
        self._reader = CallReader(self._calls) if kind == "call" else None

    def _show(self, count: int, pieces: list[Piece]) -> None:
        text, self._held = self._held[:count], self._held[count:]
        if text:
            if self._inside is None and text.strip():
                self._bare_tools = frozenset()
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

    def _read_calls(self, count: int, pieces: list[Piece]) -> None:
        text, self._held = self._held[:count], self._held[count:]
        if self._reader is not None:
            pieces.extend(Piece(call=part) for part in self._reader.feed(text))

    def _leave_call(self, end: str, pieces: list[Piece]) -> None:
        """Behind a span of calls: what was none of it is text."""
        reader, self._reader = self._reader, None
        if reader is None:
            return
        self._calls += reader.num_calls
        if not reader.started:
            pieces.append(Piece(content=self._spans["call"][0] + reader.rest + end))
        elif reader.failed and reader.rest.strip():
            pieces.append(Piece(content=reader.rest))

    def _leave_bare(self) -> str:
        """Behind bare calls: the text that was none."""
        reader, self._reader, self._inside = self._reader, None, None
        self._bare_tools = frozenset()
        if reader is None:
            return ""
        self._calls += reader.num_calls
        return reader.rest if reader.failed or not reader.started else ""


class ForcedCalls:
    """An answer that was made under the schema of a forced tool_choice: nothing but a JSON list of calls."""

    def __init__(self) -> None:
        self._reader = CallReader(0)

    def feed(self, text: str) -> list[Piece]:
        return [Piece(call=part) for part in self._reader.feed(text)]

    def finish(self) -> list[Piece]:
        if self._reader.started or not self._reader.rest:
            return []
        return [Piece(content=self._reader.rest)]  # cut off by the length


def whole_calls(pieces: Iterable[Piece]) -> list[CallPart]:
    """The calls among pieces, each put together."""
    calls: dict[int, CallPart] = {}
    for piece in pieces:
        if (part := piece.call) is not None:
            whole = calls.setdefault(part.index, CallPart(part.index, part.id, part.name, first=True))
            whole.arguments += part.arguments
    return list(calls.values())
