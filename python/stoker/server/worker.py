"""One front-end worker process: uvicorn on a socket that the supervisor has opened, this worker's share of the connections."""

from __future__ import annotations

import logging
import socket
import sys
from pathlib import Path

import uvicorn
import uvloop

from stoker.server.app import build_app
from stoker.server.direct import Protocol
from stoker.server.engine_client import EngineClient
from stoker.server.orphan import leave_with_parent
from stoker.server.settings import ServerSettings
from stoker.server.state import ServerState


class _Server(uvicorn.Server):
    """Tells the endpoints when it begins to drain, and ends what still runs after the drain time."""

    def __init__(self, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config)
        self._state = state

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._state.draining = True
        await super().shutdown(sockets)


def run_worker(settings: ServerSettings, folder: Path, worker: int, listen_fd: int, watch_fd: int) -> None:
    """Serves until SIGTERM or SIGINT, then drains: open requests may end within the drain time."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    logging.raiseExceptions = False  # a full disk must not harm a request
    state = ServerState(settings, EngineClient(folder, worker))
    limits = settings.limits
    Protocol.max_head_bytes, Protocol.head_timeout = limits.max_head_bytes, limits.body_timeout
    config = uvicorn.Config(
        build_app(state),
        loop="none",
        http=Protocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.drain_timeout),
        ssl_keyfile=settings.ssl_keyfile,
        ssl_certfile=settings.ssl_certfile,
        lifespan="on",
    )
    server = _Server(config, state)

    def stop() -> None:
        server.should_exit = True

    leave_with_parent(stop, watch_fd, settings.drain_timeout + 2)
    listener = socket.socket(fileno=listen_fd)
    uvloop.run(server.serve(sockets=[listener]))
