"""The server's first process: opens the port, starts the engine process and the front-end workers, watches them, and ends them all."""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import zmq

from stoker.server import messages as m
from stoker.server.settings import ServerSettings
from stoker.server.sockets import PrivateFolder, engine_address, worker_address

_EARLY = 30.0
"""Seconds: a worker that ends sooner may never have served."""
_EARLY_ENDS = 3
_OPEN_FILES = 65_536
"""What each process may open, if the system allows as many: each connection is one."""


@dataclass(slots=True)
class _Child:
    name: str
    process: subprocess.Popen[bytes]
    pidfd: int
    started: float


class Supervisor:
    """Runs one server. `engine_options` are EngineConfig's fields; they reach the engine process as JSON."""

    def __init__(self, settings: ServerSettings, engine_options: dict[str, object]) -> None:
        self._settings = settings
        self._engine_options = engine_options
        self._selector = selectors.DefaultSelector()
        self._stop_requested = False
        self._context = zmq.Context()

    def run(self) -> int:
        """Serves until SIGTERM, SIGINT or a failure. Returns the exit code: 0 after a clean end."""
        _raise_open_files()
        listener = self._listen()
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._selector.register(wake_read, selectors.EVENT_READ, None)
        # The children watch the read end; only this process holds the write end, so they see it die.
        self._watch_read, self._watch_write = os.pipe()
        with PrivateFolder() as folder:
            self._folder = folder.path
            self._environment = dict(os.environ)
            if self._settings.api_workers > 1:
                # Any worker may be asked for the metrics of all.
                shared = folder.path / "metrics"
                shared.mkdir()
                self._environment["PROMETHEUS_MULTIPROC_DIR"] = str(shared)
            engine = self._start_engine()
            workers = [self._start_worker(index, listener) for index in range(self._settings.api_workers)]
            try:
                return self._watch(engine, workers, listener)
            finally:
                self._end(engine, workers)

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._settings.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self._settings.host, self._settings.port))
        except OSError as error:
            raise ValueError(
                f"cannot listen on {self._settings.host}:{self._settings.port}: {error.strerror}"
            ) from None
        listener.listen(2048)
        return listener

    def _on_signal(self, number: int, frame: object) -> None:
        self._stop_requested = True

    # --- children -------------------------------------------------------------------------------------------------------

    def _spawn(self, name: str, module: str, options: dict[str, object], *fds: int) -> _Child:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            pass_fds=(self._watch_read, *fds),
            start_new_session=True,
            env=self._environment,
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as options_in:
            # Not as an argument: the keys among them are nobody's business.
            options_in.write(msgspec.json.encode(options))
        pidfd = os.pidfd_open(process.pid)
        child = _Child(name, process, pidfd, time.monotonic())
        self._selector.register(pidfd, selectors.EVENT_READ, child)
        return child

    def _start_engine(self) -> _Child:
        options = {
            "folder": str(self._folder),
            "watch_fd": self._watch_read,
            "max_queue": self._settings.max_queue,
            "engine": self._engine_options,
        }
        return self._spawn("engine", "stoker.cli.engine_main", options)

    def _start_worker(self, index: int, listener: socket.socket) -> _Child:
        options = {
            "settings": msgspec.to_builtins(self._settings),
            "folder": str(self._folder),
            "worker": index,
            "listen_fd": listener.fileno(),
            "watch_fd": self._watch_read,
        }
        return self._spawn(f"worker {index}", "stoker.cli.worker_main", options, listener.fileno())

    def _forget(self, child: _Child) -> int:
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        return child.process.wait()

    # --- watching -------------------------------------------------------------------------------------------------------

    def _watch(self, engine: _Child, workers: list[_Child], listener: socket.socket) -> int:
        restarts = 0
        early_ends = 0  # of workers, one after another
        while not self._stop_requested:
            for key, _ in self._selector.select():
                child = key.data
                if child is None:
                    os.read(key.fd, 4096)
                elif child is engine:
                    code = self._forget(engine)
                    reason = f"the engine process ended ({_how(code)})"
                    print(f"stoker: {reason}", file=sys.stderr, flush=True)
                    self._tell(range(len(workers)), m.EngineDown(reason))
                    if not self._settings.restart_engine or self._stop_requested:
                        return 1
                    self._pause(min(5.0, 0.1 * 2 ** min(restarts, 6)))
                    restarts += 1
                    replacement = self._start_engine()
                    engine.process, engine.pidfd = replacement.process, replacement.pidfd
                    self._selector.modify(replacement.pidfd, selectors.EVENT_READ, engine)
                else:
                    index = workers.index(child)
                    words = f"stoker: {child.name} ended ({_how(self._forget(child))})"
                    early_ends = early_ends + 1 if time.monotonic() - child.started < _EARLY else 0
                    if early_ends >= _EARLY_ENDS:
                        print(f"{words} as soon as it began, again and again", file=sys.stderr, flush=True)
                        return 1
                    print(f"{words}; starting it anew", file=sys.stderr, flush=True)
                    self._tell_engine(m.Goodbye(index))
                    self._pause(0.1)
                    workers[index] = self._start_worker(index, listener)
        return 0

    def _pause(self, seconds: float) -> None:
        """Sleeps, but not on when it is time to stop."""
        end = time.monotonic() + seconds
        while not self._stop_requested and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def _tell(self, workers: range, message: m.ToWorker) -> None:
        for index in workers:
            with self._context.socket(zmq.PUSH) as push:
                push.connect(worker_address(self._folder, index))
                push.send(m.encode(message))
                push.close(linger=500)

    def _tell_engine(self, message: m.ToEngine) -> None:

        with self._context.socket(zmq.PUSH) as push:
            push.connect(engine_address(self._folder))
            push.send(m.encode(message))
            push.close(linger=500)

    def _end(self, engine: _Child, workers: list[_Child]) -> None:
        """Workers drain first, then the engine ends; whoever does not leave in time is killed."""
        for child in workers:
            _signal(child, signal.SIGTERM)
        deadline = time.monotonic() + self._settings.drain_timeout + 2
        for child in workers:
            _wait(child, deadline)
        _signal(engine, signal.SIGTERM)
        _wait(engine, time.monotonic() + 5)


def _raise_open_files() -> None:
    """The usual soft limit, 1024, is less than the streams that one server can hold; children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _signal(child: _Child, number: int) -> None:
    if child.process.poll() is None:
        child.process.send_signal(number)


def _wait(child: _Child, deadline: float) -> None:
    try:
        child.process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        child.process.kill()
        child.process.wait()


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def folder_of(options: dict[str, object]) -> Path:
    """The private folder that a child was told."""
    return Path(str(options["folder"]))
