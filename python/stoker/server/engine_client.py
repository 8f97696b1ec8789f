"""The front end's side of the engine: submits requests, hands each its news, and ends all of them when the engine dies."""

from __future__ import annotations

import array
import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import zmq

from stoker.sampling_params import SamplingParams
from stoker.server import messages as m
from stoker.server.sockets import engine_address, worker_address

log = logging.getLogger("stoker.server")
_AT_ONCE = 64
"""Messages that are taken in one turn of the event loop."""


class EngineDeadError(RuntimeError):
    """The engine process ended while this request was open, or is not up now."""


class RefusedError(ValueError):
    """The engine did not take a request; `status` is the HTTP status that fits."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


Sink = Callable[["m.News | None", "Exception | None"], None]
"""Takes one piece of news, or why there will be none any more."""


class Stream:
    """The news of one request: kept until somebody listens, then handed on in the turn in which they come."""

    __slots__ = ("_accepted", "_client", "_failure", "_news", "_sink", "answers_left", "n", "rid", "ticket")

    def __init__(self, client: EngineClient, rid: str, n: int, ticket: int) -> None:
        self._client = client
        self._news: list[m.News] = []
        self._accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failure: Exception | None = None
        self._sink: Sink | None = None
        self.rid = rid
        self.n = n
        self.ticket = ticket
        self.answers_left = n

    def put(self, news: m.News) -> None:
        """Called by the client's receiver."""
        if self._sink is not None:
            self._pass_on(self._sink, news)
            return
        self._news.append(news)
        self.accept()

    def put_token(self, index: int, token: int) -> None:
        """A bare token of one answer."""
        self.put(m.News(self.rid, index, [token]))

    def tap(self, index: int, take: Callable[[int], None]) -> None:
        """From now on the bare tokens of one answer go to `take`. Only after `listen`."""
        self._client.route(self.ticket + index, take)

    def listen(self, sink: Sink) -> None:
        """From now on news go straight to `sink`, in the receiver's turn; those that are there already first."""
        self._sink = sink
        news, self._news = self._news, []
        for one in news:
            self._pass_on(sink, one)
        if self._failure is not None:
            self.answers_left = 0
            sink(None, self._failure)

    def _pass_on(self, sink: Sink, news: m.News) -> None:
        if news.finish_reason is not None:
            self.answers_left -= 1
        sink(news, None)

    def accept(self) -> None:
        """The engine has taken the request."""
        if not self._accepted.done():
            self._accepted.set_result(None)

    def fail(self, error: Exception) -> None:
        """Ends the stream with an error."""
        self._failure = error
        if self._sink is not None:
            self.answers_left = 0
            self._sink(None, error)
        self.accept()

    async def accepted(self) -> None:
        """Returns once the engine has taken the request. Raises RefusedError or EngineDeadError if it does not."""
        await self._accepted
        if self._failure is not None and not self._news:
            self.answers_left = 0
            raise self._failure

    def close(self) -> None:
        """Forgets the request; what still runs of it is aborted at once."""
        self._client.forget(self)


class EngineClient:
    """One front-end worker's connection. Used from one event loop only."""

    def __init__(self, folder: Path, worker: int) -> None:
        self.worker = worker
        self.ready: m.Ready | None = None
        self.down_reason = "the engine is still loading"
        self._folder = folder
        self._streams: dict[str, Stream] = {}
        self._routes: dict[int, Callable[[int], None]] = {}  # who takes the bare tokens of a ticket
        self._next_ticket = m.first_ticket(worker)
        self.now = 0.0
        """When the news that are being handed on came, on time.monotonic()'s clock."""
        self._questions = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._context = zmq.Context()
        self._out: zmq.Socket[bytes] | None = None
        self._in: zmq.Socket[bytes] | None = None
        self._is_ready = asyncio.Event()

    @property
    def num_open(self) -> int:
        """Requests of this worker that have not ended."""
        return len(self._streams)

    async def start(self) -> None:
        """Binds this worker's socket and greets the engine. Returns at once; `wait_ready` waits for the model."""
        address = worker_address(self._folder, self.worker)
        self._in = self._context.socket(zmq.PULL)
        self._in.setsockopt(zmq.RCVHWM, 0)
        self._in.bind(address)
        self._connect()
        asyncio.get_running_loop().add_reader(self._in.fileno(), self._receive)
        self._receive()

    def _connect(self) -> None:
        if self._out is not None:
            self._out.close(linger=0)
        self._out = self._context.socket(zmq.PUSH)
        self._out.setsockopt(zmq.SNDHWM, 0)
        self._out.connect(engine_address(self._folder))
        self._send(m.Hello(self.worker, worker_address(self._folder, self.worker)))

    async def wait_ready(self, timeout: float | None = None) -> m.Ready:
        """The engine's Ready message, once the model is loaded."""
        await asyncio.wait_for(self._is_ready.wait(), timeout)
        assert self.ready is not None
        return self.ready

    async def close(self) -> None:
        """Says goodbye (which aborts this worker's requests) and closes the sockets."""
        if self._out is not None:
            self._send(m.Goodbye(self.worker))
        if self._in is not None:
            asyncio.get_running_loop().remove_reader(self._in.fileno())
        for socket in (self._out, self._in):
            if socket is not None:
                socket.close(linger=200)
        self._context.term()

    def submit(
        self,
        rid: str,
        token_ids: Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        tenant: str | None = None,
        pool: bool = False,
        stream: bool = True,
    ) -> Stream:
        """Sends a request; its news come through the stream (without `stream` all with its end). Raises EngineDeadError while
        no engine is up."""
        if self.ready is None:
            raise EngineDeadError(self.down_reason)
        if rid in self._streams:
            raise RefusedError(400, f"request id {rid!r} is in use")
        ticket = self._next_ticket
        self._next_ticket += params.n
        found = self._streams[rid] = Stream(self, rid, params.n, ticket)
        for index in range(params.n):
            self._routes[ticket + index] = partial(found.put_token, index)
        ids = array.array("i", token_ids).tobytes()
        self._send(
            m.Submit(self.worker, rid, ticket, ids, params, priority, cache_salt, tenant, pool, stream)
        )
        return found

    def route(self, ticket: int, take: Callable[[int], None]) -> None:
        """Whom the bare tokens of an answer go to, while its request is open."""
        if ticket in self._routes:
            self._routes[ticket] = take

    def abort(self, rid: str, index: int | None = None) -> None:
        """Ends a request or one of its answers; its stream still gets the last news."""
        self._send(m.Abort(self.worker, rid, index))

    def abort_any(self, rid: str) -> None:
        """Ends a request, also of another worker: its client is told that it was aborted."""
        self._send(m.Abort(None, rid))

    def forget(self, stream: Stream) -> None:
        """Drops a stream; aborts its request if it still runs."""
        if self._streams.get(stream.rid) is stream:
            del self._streams[stream.rid]
            for index in range(stream.n):
                del self._routes[stream.ticket + index]
            if stream.answers_left > 0 and self.ready is not None:
                self._send(m.Abort(self.worker, stream.rid))

    async def stats(self, timeout: float = 1.0) -> m.Stats:
        """A look at the engine. Raises TimeoutError if it does not answer, EngineDeadError if it is down."""
        ticket = next(self._questions)
        answer: m.Stats = await self._ask(m.AskStats(self.worker, ticket), ticket, timeout)
        return answer

    async def looks(self, rid: str = "", max_waiting: int = 256, timeout: float = 5.0) -> m.Looks:
        """How requests stand and why they wait. Raises as `stats` does."""
        ticket = next(self._questions)
        answer: m.Looks = await self._ask(m.AskLooks(self.worker, ticket, rid, max_waiting), ticket, timeout)
        return answer

    async def _ask(self, question: m.ToEngine, ticket: int, timeout: float) -> Any:
        if self.ready is None:
            raise EngineDeadError(self.down_reason)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[ticket] = future
        try:
            self._send(question)
            return await asyncio.wait_for(future, timeout)
        finally:
            self._asked.pop(ticket, None)

    def _send(self, message: m.ToEngine) -> None:
        assert self._out is not None
        self._out.send(m.encode(message), zmq.NOBLOCK)  # the queue has no limit, so it never waits

    def _receive(self) -> None:
        """Takes what is there. The socket tells of news once, so it is read until it has none."""
        assert self._in is not None
        try:
            for _ in range(_AT_ONCE):
                self._take(m.decode_to_worker(self._in.recv(zmq.NOBLOCK)))
            asyncio.get_running_loop().call_soon(self._receive)
        except zmq.ZMQError:  # nothing more, or closed meanwhile
            return
        except Exception:  # ours: what comes next must still be read
            log.exception("news from the engine could not be taken")
            asyncio.get_running_loop().call_soon(self._receive)

    def _take(self, message: m.ToWorker) -> None:
        if isinstance(message, m.Step):
            self._take_step(message)
        elif isinstance(message, m.Accepted):
            stream = self._streams.get(message.rid)
            if stream is not None:
                stream.accept()
        elif isinstance(message, m.Refused):
            stream = self._streams.get(message.rid)
            if stream is not None:
                stream.fail(RefusedError(message.status, message.message))
        elif isinstance(message, m.Stats | m.Looks):
            future = self._asked.get(message.ticket)
            if future is not None and not future.done():
                future.set_result(message)
        elif isinstance(message, m.Ready):
            self.ready = message
            self._is_ready.set()
        else:
            self._engine_is_down(message.reason)

    def _take_step(self, step: m.Step) -> None:
        self.now = time.monotonic()
        route = self._routes.get
        for ticket, token in zip(step.tickets, step.tokens, strict=True):
            take = route(ticket)
            if take is not None:
                try:
                    take(token)
                except Exception as error:
                    self._break(self._stream_of(ticket), error)
        for news in step.news:
            stream = self._streams.get(news.rid)
            if stream is not None:
                try:
                    stream.put(news)
                except Exception as error:
                    self._break(stream, error)

    def _stream_of(self, ticket: int) -> Stream | None:
        own = (s for s in self._streams.values() if s.ticket <= ticket < s.ticket + s.n)
        return next(own, None)

    def _break(self, stream: Stream | None, error: Exception) -> None:
        """Ends a request whose news could not be delivered, and no other: an answer with a hole is worse than none."""
        log.error("news could not be delivered", exc_info=error)
        if stream is None:
            return
        self.forget(stream)
        try:
            stream.fail(RefusedError(500, "internal error; the server's log has the details"))
        except Exception:
            log.exception("nor could that be told")

    def _engine_is_down(self, reason: str) -> None:
        self.ready = None
        self.down_reason = reason
        self._is_ready.clear()
        streams, self._streams = self._streams, {}
        self._routes = {}
        for stream in streams.values():
            stream.fail(EngineDeadError(reason))
        for future in self._asked.values():
            if not future.done():
                future.set_exception(EngineDeadError(reason))
        # The new engine binds the same path: a fresh socket, so that nothing meant for the dead one reaches it.
        self._connect()
