"""The engine process of a server: takes Submit and Abort messages from the front-end workers' socket, sends each worker one message a step.

Three threads: the intake blocks on its socket and puts requests in the engine's inbox; the main one waits on the engine's
outbox and sends; the third asks the loop how requests stand, which waits for the end of a step. None polls, so an idle
server uses no CPU.
"""

from __future__ import annotations

import array
import queue
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import zmq

from stoker.engine.output import EngineOutput, EngineStats, StepNews, TokenLogprobs
from stoker.sampling_params import SamplingParams
from stoker.server import messages as m
from stoker.server.sockets import engine_address

_LINGER_MS = 200
"""How long what was sent may take to reach a worker when this process ends."""


class QueueFull(RuntimeError):
    """The waiting queue is at its limit: the request may be tried again later."""


class DrivenEngine(Protocol):
    """What this process needs of an engine; `stoker.engine.Engine` is one."""

    max_model_len: int
    max_num_seqs: int
    eos_token_ids: tuple[int, ...]
    model_path: str

    @property
    def failure(self) -> str: ...
    def add_request(
        self,
        rid: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        tenant: str | None = None,
        pool: bool = False,
        stream: bool = True,
        ticket: int | None = None,
    ) -> None: ...
    def abort(self, rid: str, index: int | None = None) -> None: ...
    def start(self) -> None: ...
    def wait_step(self, timeout: float) -> StepNews: ...
    def stats(self) -> EngineStats: ...
    def look(
        self, rid: str = "", *, max_waiting: int = 256, timeout: float = 1.0
    ) -> list[dict[str, Any]]: ...
    def close(self) -> None: ...


class EngineProcess:
    """Connects one engine with the workers of one server. `run()` returns after `stop()` or when the parent is gone."""

    def __init__(
        self, engine: DrivenEngine, folder: Path, info: dict[str, Any], *, max_queue: int = 0
    ) -> None:
        self._engine = engine
        self._info = info
        self._max_queue = max_queue
        self._context = zmq.Context()
        self._intake = self._context.socket(zmq.PULL)
        self._intake.setsockopt(zmq.RCVHWM, 0)
        self._intake.bind(engine_address(folder))
        self._lock = threading.Lock()  # guards _addresses and _owners; held for dictionary operations only
        self._addresses: dict[int, str] = {}
        self._owners: dict[str, tuple[int, int]] = {}  # rid -> worker, answers that still run
        self._stopping = threading.Event()
        self._questions: queue.SimpleQueue[m.AskLooks | None] = queue.SimpleQueue()
        self._moved = time.monotonic()  # when the loop was last seen to take a step, or to have nothing to do
        self._steps_seen = -1
        self._look_again = 0.0

    def run(self) -> None:
        """Serves until stopped. Raises what broke the engine."""
        intake = threading.Thread(target=self._take_in, name="intake", daemon=True)
        intake.start()
        threading.Thread(target=self._answer_looks, name="looks", daemon=True).start()
        out: dict[int, zmq.Socket[bytes]] = {}
        try:
            self._engine.start()
            while not self._stopping.is_set():
                news = self._engine.wait_step(1.0)
                if news.tokens or news.outputs:
                    self._send(news, out)
                elif failure := self._engine.failure:
                    # Every request has been told; a new process can go on where this one cannot.
                    raise SystemExit(f"stoker: the engine stopped for good: {failure}")
                self._watch_loop()
        finally:
            self._stopping.set()
            self._engine.close()
            self._questions.put(None)
            for socket in out.values():
                socket.close()
            # What was just sent may wait for its connection still: a process that simply left would take it along.
            ending = threading.Thread(target=self._context.term, daemon=True)
            ending.start()
            ending.join(2 * _LINGER_MS / 1000)

    def stop(self) -> None:
        """Makes `run` return within a second; any thread, also a signal handler."""
        self._stopping.set()

    def _watch_loop(self) -> None:
        now = time.monotonic()
        if now < self._look_again:
            return
        self._look_again = now + 0.5
        stats = self._engine.stats()
        if stats.num_steps != self._steps_seen or not self._owners:
            self._steps_seen, self._moved = stats.num_steps, now

    # --- out ------------------------------------------------------------------------------------------------------------

    def _send(self, news: StepNews, out: dict[int, zmq.Socket[bytes]]) -> None:
        with self._lock:
            steps = {worker: m.Step([], [], []) for worker in self._addresses}
            if len(steps) == 1:
                (step,) = steps.values()
                step.tickets, step.tokens = news.tickets, news.tokens
            else:
                for ticket, token in zip(news.tickets, news.tokens, strict=True):
                    if (found := steps.get(m.worker_of(ticket))) is not None:
                        found.tickets.append(ticket)
                        found.tokens.append(token)
            for output in news.outputs:
                owner = self._owners.get(output.rid)
                if owner is None:
                    continue  # its worker is gone
                worker, left = owner
                if output.finish_reason is not None:
                    if left > 1:
                        self._owners[output.rid] = (worker, left - 1)
                    else:
                        del self._owners[output.rid]
                if worker in steps:
                    steps[worker].news.append(_news(output))
            addresses = dict(self._addresses)
        for worker, step in steps.items():
            if not step.tokens and not step.news:
                continue
            socket = out.get(worker)
            if socket is None:
                socket = out[worker] = self._connect(addresses[worker])
            socket.send(m.encode(step))

    def _connect(self, address: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.PUSH)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.LINGER, _LINGER_MS)
        socket.connect(address)
        return socket

    # --- in -------------------------------------------------------------------------------------------------------------

    def _take_in(self) -> None:
        replies: dict[int, zmq.Socket[bytes]] = {}
        with self._intake:
            while not self._stopping.is_set():
                try:
                    data = self._intake.recv()
                except zmq.ContextTerminated:
                    return
                try:
                    self._handle(m.decode_to_engine(data), replies)
                except Exception:  # a bad message harms nobody but its sender
                    traceback.print_exc(file=sys.stderr)

    def _reply(self, worker: int, message: m.ToWorker, replies: dict[int, zmq.Socket[bytes]]) -> None:
        socket = replies.get(worker)
        if socket is None:
            with self._lock:
                address = self._addresses.get(worker)
            if address is None:
                return
            socket = replies[worker] = self._connect(address)
        socket.send(m.encode(message))

    def _handle(self, message: m.ToEngine, replies: dict[int, zmq.Socket[bytes]]) -> None:
        if isinstance(message, m.Submit):
            self._submit(message, replies)
        elif isinstance(message, m.Abort):
            with self._lock:
                owner = self._owners.get(message.rid)
            # Ids may come from clients: a worker ends its own requests only.
            if owner is not None and message.worker in (None, owner[0]):
                self._engine.abort(message.rid, message.index)
        elif isinstance(message, m.AskStats):
            self._reply(message.worker, self._stats(message.ticket), replies)
        elif isinstance(message, m.AskLooks):
            self._questions.put(message)
        elif isinstance(message, m.Hello):
            with self._lock:
                self._addresses[message.worker] = message.address
            if (old := replies.pop(message.worker, None)) is not None:
                old.close(linger=0)
            self._reply(message.worker, self._ready(), replies)
        else:
            self._forget_worker(message.worker)

    def _answer_looks(self) -> None:
        replies: dict[int, zmq.Socket[bytes]] = {}
        known: dict[int, str] = {}
        while not self._stopping.is_set():
            question = self._questions.get()
            if question is None:
                return
            with self._lock:
                address = self._addresses.get(question.worker)
            if address is None:
                continue
            if known.get(question.worker) != address:
                known[question.worker] = address
                if (old := replies.pop(question.worker, None)) is not None:
                    old.close(linger=0)
            looks: list[m.Look] | None = None
            try:
                found = self._engine.look(question.rid, max_waiting=question.max_waiting, timeout=4.0)
                looks = [_look(one) for one in found]
            except TimeoutError:
                pass
            except Exception:  # who asks how things stand harms nobody
                traceback.print_exc(file=sys.stderr)
            self._reply(question.worker, m.Looks(question.ticket, looks, self._numbers()), replies)

    def _submit(self, message: m.Submit, replies: dict[int, zmq.Socket[bytes]]) -> None:
        try:
            self._check_queue(message.params.n)
            token_ids = array.array("i", message.token_ids)
            with self._lock:
                if message.rid in self._owners:
                    raise ValueError(f"request id {message.rid!r} is in use")
                # Before add_request: the first token may come back before it returns.
                self._owners[message.rid] = (message.worker, message.params.n)
            try:
                self._engine.add_request(
                    message.rid,
                    token_ids,
                    message.params,
                    priority=message.priority,
                    cache_salt=message.cache_salt,
                    tenant=message.tenant,
                    pool=message.pool,
                    stream=message.stream,
                    ticket=message.ticket,
                )
                self._reply(message.worker, m.Accepted(message.rid), replies)
            except BaseException:
                with self._lock:
                    self._owners.pop(message.rid, None)
                raise
        except QueueFull as error:
            self._reply(message.worker, m.Refused(message.rid, 503, str(error)), replies)
        except ValueError as error:
            self._reply(message.worker, m.Refused(message.rid, 400, str(error)), replies)
        except Exception as error:  # nobody may wait for ever, whatever it was
            traceback.print_exc(file=sys.stderr)
            self._reply(
                message.worker, m.Refused(message.rid, 500, f"{type(error).__name__}: {error}"), replies
            )

    def _check_queue(self, n: int) -> None:
        """The numbers of the newest step say who waits; what came since is bounded by the seats."""
        if not self._max_queue:
            return
        waiting = self._engine.stats().num_waiting
        with self._lock:
            open_answers = sum(left for _, left in self._owners.values())
        if waiting >= self._max_queue or open_answers + n > self._engine.max_num_seqs + self._max_queue:
            raise QueueFull(
                f"the queue is full: {waiting} wait, {open_answers} are open, and at most {self._max_queue} may "
                f"wait beside the {self._engine.max_num_seqs} that run; try again later"
            )

    def _forget_worker(self, worker: int) -> None:
        with self._lock:
            self._addresses.pop(worker, None)
            gone = [rid for rid, (owner, _) in self._owners.items() if owner == worker]
            for rid in gone:
                del self._owners[rid]
        for rid in gone:
            self._engine.abort(rid)

    def _ready(self) -> m.Ready:
        engine = self._engine
        return m.Ready(
            protocol=m.PROTOCOL,
            max_model_len=engine.max_model_len,
            vocab_size=int(self._info.get("vocab_size", 0)),
            eos_token_ids=list(engine.eos_token_ids),
            model_path=engine.model_path,
            generation_defaults=dict(self._info.get("generation_defaults", {})),
            info=self._info,
        )

    def _stats(self, ticket: int) -> m.Stats:
        preemptions = [(*why, count) for why, count in self._engine.stats().preemptions.items()]
        return m.Stats(ticket, self._numbers(), time.monotonic() - self._moved, preemptions)

    def _numbers(self) -> dict[str, float]:
        stats = self._engine.stats()
        return {name: float(getattr(stats, name)) for name in stats.__slots__ if name != "preemptions"}


def _look(found: dict[str, Any]) -> m.Look:
    now = time.monotonic_ns()
    arrival = found.pop("arrival_time")
    scheduled, first = found.pop("first_scheduled_time"), found.pop("first_token_time")
    return m.Look(
        **found,
        age=(now - arrival) * 1e-9,
        queue_time=None if scheduled < 0 else (scheduled - arrival) * 1e-9,
        time_to_first_token=None if first < 0 else (first - arrival) * 1e-9,
    )


def _logprobs(entry: TokenLogprobs) -> m.Logprobs:
    return m.Logprobs(list(entry.token_ids), list(entry.logprobs), entry.rank)


def _news(output: EngineOutput) -> m.News:
    account = None
    if output.finish_reason is not None:
        account = m.Account(
            output.arrival_time,
            output.first_scheduled_time,
            output.first_token_time,
            output.finished_time,
            output.num_preemptions,
        )
    return m.News(
        rid=output.rid,
        index=output.index,
        token_ids=output.new_token_ids,
        finish_reason=output.finish_reason,
        stop_reason=output.stop_reason,
        message=output.message,
        num_cached_tokens=output.num_cached_tokens,
        logprobs=None if output.new_logprobs is None else [_logprobs(e) for e in output.new_logprobs],
        prompt_logprobs=None
        if output.prompt_logprobs is None
        else [None if e is None else _logprobs(e) for e in output.prompt_logprobs],
        account=account,
        pooled=output.pooled,
    )
