"""Server-sent events: frames of JSON, a response that streams them, and the end of a request whose client went away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from fastapi.responses import StreamingResponse

from stoker.server.errors import ApiError

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


def frame(value: Any) -> bytes:
    """One `data:` event."""
    return b"data: " + _encode(value) + b"\n\n"


class TextFrames:
    """`frame` for events that differ in one text only: the rest is encoded once.

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
        self._before, self._after = whole.split(_encode(mark))

    def frame(self, text: str) -> bytes:
        """The event with this text."""
        return self._before + _encode(text) + self._after


def named_frame(event: str, value: Any) -> bytes:
    """One event with a name (Anthropic's and the Responses API's form)."""
    return b"event: " + event.encode() + b"\ndata: " + _encode(value) + b"\n\n"


def error_frames(error: ApiError) -> bytes:
    """How OpenAI's streams end with an error."""
    return frame(error.body()) + DONE


async def stream_response(
    frames: AsyncIterator[bytes], on_error: Callable[[ApiError], bytes] = error_frames
) -> StreamingResponse:
    """A streaming response, made only when the first frame is there: an error before it still gets its HTTP status.

    A later error becomes an error event and the stream ends. When the client goes away the generator is closed, which
    ends the request in the engine.
    """
    first = await anext(frames, b"")

    async def body() -> AsyncIterator[bytes]:
        try:
            yield first
            async for one in frames:
                yield one
        except ApiError as error:
            yield on_error(error)
        finally:
            await frames.aclose()  # type: ignore[attr-defined]

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(body(), media_type="text/event-stream", headers=headers)
