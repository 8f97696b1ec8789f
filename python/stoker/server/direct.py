"""Streams that go from the engine's message to the socket in one pass: no task wakes for a token, which is most of what a front end costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from stoker.server.answers import Answers, Delta
from stoker.server.errors import ApiError
from stoker.server.sse import TextFrames, error_frames

_PATIENCE = 0.2
"""Seconds after which a stream begins with its first frames though no token came."""
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_CONNECTION = "stoker.connection"


class Protocol(HttpToolsProtocol):
    """uvicorn's connection, which also shows itself to the responses on it (an ASGI extension), and takes no head that is too
    large or comes too slowly: nobody above sees it before it is whole."""

    max_head_bytes = 64 << 10
    """Of request line and headers. A head that comes in one piece of the socket's may be as large as that."""
    head_timeout = 30.0
    """Seconds, from the connection's or the request's first byte on."""

    _head_bytes = 0
    _in_head = False
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self.max_head_bytes:
                self._refuse(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {_CONNECTION: {"it": self}}
        self._in_head, self._head_bytes = True, 0
        if self._head_timer is None:
            self._wait_for_head()

    def on_headers_complete(self) -> None:
        self._head_is_there()
        super().on_headers_complete()

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout, self._refuse, b"408 Request Timeout")

    def _head_is_there(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: bytes) -> None:
        self._head_is_there()
        # Not in the middle of an answer.
        if self.cycle is None or self.cycle.response_complete:
            head = b"HTTP/1.1 %b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status
            self.transport.write(head)
        self.transport.close()


class DirectResponse(Response):
    """Server-sent events of one request's answers, of one job a prompt.

    `render(job, delta)` makes the frames of a delta (the first ones follow `first`), `last` those of the end. `quick(job,
    index)` has the frames of an answer whose deltas are nothing but text, where it may take the short way. The response
    starts with the first token, or with `first` where none comes for a while, so that an error before still gets its HTTP
    status; a later one becomes frames by `on_error`.
    A client that goes away ends the request at once; one that reads slowly is waited for by nobody: what it has not
    taken yet is kept and sent in one piece.
    """

    def __init__(
        self,
        jobs: Sequence[Answers],
        render: Callable[[int, Delta], bytes],
        *,
        first: bytes = b"",
        last: Callable[[], bytes],
        on_error: Callable[[ApiError], bytes] = error_frames,
        quick: Callable[[int, int], TextFrames] | None = None,
    ) -> None:
        super().__init__(media_type="text/event-stream", headers=_HEADERS)
        del self.headers["content-length"]
        self._jobs = jobs
        self._jobs_left = len(jobs)
        self._render = render
        self._next = first
        self._last = last
        self._on_error = on_error
        self._quick = quick
        self._backlog: list[bytes] = []
        self._wake = asyncio.Event()
        self._started = False
        self._over = False  # nothing is added any more
        self._gone = False
        self._failure: Exception | None = None
        self._connection: HttpToolsProtocol | None = None  # while bytes may go to it past `send`

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Streams until all answers have ended or the client has gone."""
        loop = asyncio.get_running_loop()
        connection = scope.get("extensions", {}).get(_CONNECTION, {}).get("it")
        watcher = loop.create_task(self._watch(receive))
        # Who waits long in the queue is told the request's name meanwhile, and no proxy takes the silence for death.
        waiting = loop.call_later(_PATIENCE, self._announce)
        try:
            self._listen()
            while not self._gone:
                await self._wake.wait()
                self._wake.clear()
                if self._failure is not None:
                    raise self._failure
                if self._backlog and not self._started:
                    self._started = True
                    # Said here and not left to the server, because chunks are written past it.
                    headers = [*self.raw_headers, (b"transfer-encoding", b"chunked")]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                while self._backlog and not self._gone:
                    data, self._backlog = b"".join(self._backlog), []
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                if self._over:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    return
                self._connection = connection
        finally:
            waiting.cancel()
            watcher.cancel()
            self._over, self._connection = True, None
            for job in self._jobs:
                job.close()

    def _listen(self) -> None:
        for number, job in enumerate(self._jobs):
            job.listen(partial(self._take, number), self._end)
            if self._quick is not None:
                for index in range(len(job.ended)):
                    job.tap(index, self._quick(number, index), self._write)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = self._over = True
        self._wake.set()

    def _announce(self) -> None:
        if self._next and not self._over:
            self._write(b"")

    def _take(self, number: int, delta: Delta) -> None:
        try:
            data = self._render(number, delta)
        except Exception as error:  # ours: it ends this response and nobody else's
            self._stop(error)
            return
        if data:
            self._write(data)

    def _end(self, error: ApiError | None) -> None:
        if self._over:
            return
        if error is not None and not self._started and not self._backlog:
            self._stop(error)
            return
        self._jobs_left -= 1
        if error is not None or self._jobs_left == 0:
            self._write(self._on_error(error) if error is not None else self._last())
            self._over = True
            self._wake.set()

    def _stop(self, failure: Exception) -> None:
        if not self._over:
            self._failure, self._over = failure, True
            self._wake.set()

    def _write(self, data: bytes) -> None:
        """To the socket where it takes it now; else it is kept for `__call__`."""
        if self._over:
            return
        connection = self._connection
        if connection is not None and not connection.flow.write_paused:
            try:
                connection.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
            except RuntimeError:  # closed just now; the watcher is about to be told
                self._connection = None
            return
        self._connection = None
        if self._next:
            data, self._next = self._next + data, b""
        self._backlog.append(data)
        self._wake.set()
