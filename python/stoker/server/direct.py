"""Streams that go from the engine's message to the socket in one pass: no task wakes for a token, which is most of what a front end costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from stoker.server.answers import Answers, Delta
from stoker.server.errors import ApiError
from stoker.server.sse import error_frames

_PATIENCE = 0.2
"""Seconds after which a stream begins with its first frames though no token came."""
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class DirectResponse(Response):
    """Server-sent events of one request's answers.

    `render` makes the frames of a delta (the first ones follow `first`), `last` those of the end. The response starts
    with the first token, or with `first` where none comes for a while, so that an error before still gets its HTTP
    status; a later one becomes frames by `on_error`.
    A client that goes away ends the request at once; one that reads slowly is waited for by nobody: what it has not
    taken yet is kept and sent in one piece.
    """

    def __init__(
        self,
        answers: Answers,
        render: Callable[[Delta], bytes],
        *,
        first: bytes = b"",
        last: Callable[[], bytes],
        on_error: Callable[[ApiError], bytes] = error_frames,
    ) -> None:
        super().__init__(media_type="text/event-stream", headers=_HEADERS)
        del self.headers["content-length"]
        self._answers = answers
        self._render = render
        self._next = first
        self._last = last
        self._on_error = on_error
        self._backlog: list[bytes] = []
        self._blocked = False
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Streams until all answers have ended or the client has gone."""
        loop = asyncio.get_running_loop()
        self._send = send
        self._over: asyncio.Future[None] = loop.create_future()
        watcher = loop.create_task(self._watch(receive))
        # Who waits long in the queue is told the request's name meanwhile, and no proxy takes the silence for death.
        waiting = loop.call_later(_PATIENCE, self._announce)
        try:
            self._answers.listen(self._take, self._end)
            await self._over
            if self._backlog:
                await self._send_body(b"".join(self._backlog))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            waiting.cancel()
            self._blocked = True  # nothing is sent any more
            watcher.cancel()
            self._answers.close()

    def _announce(self) -> None:
        if self._next and not self._started and not self._blocked and not self._over.done():
            data, self._next = self._next, b""
            self._write(data)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if not self._over.done():
            self._backlog.clear()
            self._over.set_result(None)

    def _take(self, delta: Delta) -> None:
        try:
            data = self._render(delta)
        except Exception as error:  # ours: it ends this response and nobody else's
            if not self._over.done():
                self._over.set_exception(error)
            return
        if self._next:
            data, self._next = self._next + data, b""
        if data:
            self._write(data)

    def _end(self, error: ApiError | None) -> None:
        if self._over.done():
            return
        if error is not None and not self._started:
            self._over.set_exception(error)
            return
        self._backlog.append(self._next + (self._last() if error is None else self._on_error(error)))
        if not self._blocked:
            self._over.set_result(None)

    def _write(self, data: bytes) -> None:
        if self._blocked or self._over.done():
            self._backlog.append(data)
            return
        self._drive(self._send_body(data))

    async def _send_body(self, data: bytes) -> None:
        if not self._started:
            self._started = True
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await self._send(start)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    def _drive(self, sending: Coroutine[Any, Any, None]) -> None:
        """Runs a send, here and now: it waits for nothing unless the client reads too slowly."""
        try:
            waits_for = sending.send(None)
        except StopIteration:
            return
        except Exception as error:  # the connection is lost in a way that the server did not expect
            if not self._over.done():
                self._over.set_exception(error)
            return
        self._blocked = True
        if waits_for is None:  # a bare yield: go on in the next turn of the event loop
            asyncio.get_running_loop().call_soon(self._go_on, sending)
        else:
            waits_for._asyncio_future_blocking = False
            waits_for.add_done_callback(lambda _: self._go_on(sending))

    def _go_on(self, sending: Coroutine[Any, Any, None]) -> None:
        self._blocked = False
        self._drive(sending)
        if self._blocked or self._over.done():
            return
        ended = all(self._answers.ended)
        if self._backlog and not ended:
            data, self._backlog = b"".join(self._backlog), []
            self._drive(self._send_body(data))
        elif ended:
            self._over.set_result(None)
