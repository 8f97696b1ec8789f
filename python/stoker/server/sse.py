"""Server-sent events: frames of JSON."""

from __future__ import annotations

from typing import Any

import msgspec

from stoker.server.errors import ApiError

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


def frame(value: Any) -> bytes:
    """One `data:` event."""
    return b"data: " + _encode(value) + b"\n\n"


def json_text(text: str) -> bytes:
    """A text as it stands between a JSON string's quotes."""
    return _encode(text)[1:-1]


class TextFrames:
    """`frame` for events that differ in one text only: the rest, `before` and `after` the text, is encoded once.

    `choice` is the only one of `choices` and holds the text, empty here, at `keys` (a path).
    """

    def __init__(
        self, head: dict[str, Any], choice: dict[str, Any], keys: tuple[str, ...] = ("text",)
    ) -> None:
        mark = "\x00here\x00"
        holder = choice = {**choice}
        for key in keys[:-1]:
            holder[key] = {**holder[key]}
            holder = holder[key]
        holder[keys[-1]] = mark
        whole = frame({**head, "choices": [choice]})
        self.before, self.after = whole.split(json_text(mark))

    def frame(self, text: str) -> bytes:
        """The event with this text."""
        return self.before + json_text(text) + self.after


def named_frame(event: str, value: Any) -> bytes:
    """One event with a name (Anthropic's and the Responses API's form)."""
    return b"event: " + event.encode() + b"\ndata: " + _encode(value) + b"\n\n"


def error_frames(error: ApiError) -> bytes:
    """How OpenAI's streams end with an error."""
    return frame(error.body()) + DONE
