"""Reads tool calls out of JSON while it is still being written: the name as soon as it stands there, the arguments as they grow."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from typing import Any

_SPACE = " \t\r\n"
_CALL_KEYS = frozenset({"name", "arguments", "parameters", "type", "id"})

_Chars = Generator[None, None, str]
"""Runs until it has what it returns; yields where it needs more text."""


@dataclass(slots=True)
class CallPart:
    """A call's beginning (`first`), or what its arguments grow by."""

    index: int
    id: str
    name: str
    arguments: str = ""
    """JSON, or a piece of it; taken as the model writes it."""
    first: bool = False

    def delta(self) -> dict[str, Any]:
        """As a streaming delta of the chat API."""
        function = {"arguments": self.arguments}
        if not self.first:
            return {"index": self.index, "function": function}
        head = {"index": self.index, "id": self.id, "type": "function"}
        return {**head, "function": {"name": self.name, **function}}


class NoCall(Exception):
    """What came is no call."""


class CallReader:
    """One call after another: JSON objects (one, several with ";" or "," between, or a list of them) with `name` and
    `arguments` (or `parameters`), or Mistral's NAME[ARGS]{...}. With `known` only these names are calls, and nothing else
    but a call may stand there.

    `failed` says that what follows the last whole call is none; `rest` is that text.
    """

    def __init__(self, first_index: int, known: Collection[str] = ()) -> None:
        self.started = False
        self.failed = False
        self.num_calls = 0
        self._first_index = first_index
        self._known = known
        self._text = ""
        self._at = 0
        self._whole = 0  # where the last whole call ended
        self._parts: list[CallPart] = []
        self._current: CallPart | None = None
        self._reading = self._read()

    @property
    def rest(self) -> str:
        """The text behind the last whole call."""
        return self._text[self._whole :]

    def feed(self, text: str) -> list[CallPart]:
        """What this text adds to calls."""
        self._text += text
        if not self.failed:
            try:
                next(self._reading)
            except (NoCall, ValueError, RecursionError):
                self.failed = True
        parts, self._parts = self._parts, []
        return parts

    # --- the grammar ----------------------------------------------------------------------------------------------------

    def _read(self) -> Generator[None, None, None]:
        first = yield from self._next()
        self._at -= 1
        while True:
            if first in "[{":
                yield from self._object()
            else:
                yield from self._named()
            self._whole, self._current = self._at, None

    def _object(self) -> Generator[None, None, None]:
        if (yield from self._next(_SPACE + ",;[]")) != "{":
            raise NoCall
        named, early = False, ""  # arguments that came before their name
        while (char := (yield from self._next(_SPACE + ","))) != "}":
            if char != '"':
                raise NoCall
            key = yield from self._string()
            if (yield from self._next()) != ":" or (self._known and key not in _CALL_KEYS):
                raise NoCall
            char = yield from self._next()
            if key == "name":
                if char != '"':
                    raise NoCall
                self._begin((yield from self._string()))
                self._grow(early)
                named = True
            elif key not in ("arguments", "parameters"):
                yield from self._value(char, lambda text: None)
            elif named:
                yield from self._arguments(char, self._grow)
            else:
                kept: list[str] = []
                yield from self._arguments(char, kept.append)
                early = "".join(kept)
        self._end()

    def _named(self) -> Generator[None, None, None]:
        name = (yield from self._until("[")).strip()
        while (tag := (yield from self._until("]"))) != "ARGS":
            if tag != "CALL_ID" and (tag != "TOOL_CALLS" or name):
                raise NoCall
            text = yield from self._until("[")
            name = name or text.strip()
        self._begin(name)
        yield from self._arguments((yield from self._next()), self._grow)
        self._end()

    def _arguments(self, char: str, out: Callable[[str], None]) -> Generator[None, None, None]:
        if char == '"':  # JSON inside of a JSON string
            out((yield from self._string()))
        else:
            yield from self._value(char, out)

    def _value(self, char: str, out: Callable[[str], None]) -> Generator[None, None, None]:
        """A JSON value that begins with `char`; whether it is well formed inside is for its reader."""
        depth, quoted, escaped = 0, False, False
        while True:
            out(char)
            if quoted:
                quoted = escaped or char != '"'
                escaped = char == "\\" and not escaped
            elif char == '"':
                quoted = True
            elif char in "{[":
                depth += 1
            elif char in "}]":
                depth -= 1
            if depth == 0 and not quoted:
                if char in '"}]':
                    return
                char = yield from self._next("")
                if char in ",}] \t\r\n":  # behind a number or a word
                    self._at -= 1
                    return
            else:
                char = yield from self._next("")

    # --- what it is made of ---------------------------------------------------------------------------------------------

    def _next(self, skipped: str = _SPACE) -> _Chars:
        while True:
            while self._at >= len(self._text):
                yield
            self._at += 1
            if (char := self._text[self._at - 1]) not in skipped:
                return char

    def _until(self, end: str) -> _Chars:
        begin = self._at
        while (yield from self._next("")) != end:
            if self._at - begin > 256:
                raise NoCall
        return self._text[begin : self._at - 1]

    def _string(self) -> _Chars:
        """The text of a string whose first quote was read."""
        raw: list[str] = []
        yield from self._value('"', raw.append)
        return str(json.loads("".join(raw)))

    def _begin(self, name: str) -> None:
        if self._current is not None or not name or (self._known and name not in self._known):
            raise NoCall
        self.started = True
        identity = f"call_{secrets.token_hex(12)}"
        self._current = CallPart(self._first_index + self.num_calls, identity, name, first=True)
        self._parts.append(self._current)
        self.num_calls += 1
        self._argued = False

    def _grow(self, text: str) -> None:
        call = self._current
        if call is None or not text:
            return
        self._argued = True
        if not self._parts or self._parts[-1].index != call.index:
            self._parts.append(CallPart(call.index, call.id, call.name))
        self._parts[-1].arguments += text

    def _end(self) -> None:
        if self._current is None:
            raise NoCall
        if not self._argued:
            self._grow("{}")
