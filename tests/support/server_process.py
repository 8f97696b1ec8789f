"""Starts a real server (supervisor, worker and engine processes) on a free port of the loopback address."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from stoker import demo_model

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = Path(demo_model.__file__).parent / "checkpoint"

_RUN = """
import json, sys
import msgspec
from stoker.server.settings import ServerSettings
from stoker.server.supervisor import Supervisor
settings, engine = json.loads(sys.argv[1])
raise SystemExit(Supervisor(msgspec.convert(settings, ServerSettings), engine).run())
"""


@dataclass
class RunningServer:
    """A server in its own process group."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    verify: Path | None = None
    """The certificate to trust, where the server speaks TLS."""

    def client(self, **kwargs: Any) -> httpx.Client:
        """A plain HTTP client."""
        return httpx.Client(base_url=self.url, timeout=30, **kwargs)

    def children(self) -> dict[str, int]:
        """Process ids of the server's children by what they are: "engine_main", "worker_main"."""
        return dict(self._children())

    def busiest_worker(self) -> int:
        """The worker with most connections; which of several takes them is nobody's choice."""

        def sockets(pid: int) -> int:
            return sum(os.readlink(fd).startswith("socket:") for fd in Path(f"/proc/{pid}/fd").iterdir())

        return max((pid for name, pid in self._children() if name == "worker_main"), key=sockets)

    def _children(self) -> list[tuple[str, int]]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in path.read_text().split()}
        names = ("engine_main", "worker_main")
        return [
            (name, pid) for pid, command in commands.items() for name in names if name in command.decode()
        ]

    def wait_ready(self, seconds: float = 60.0) -> None:
        """Until /ready says so."""
        end = time.monotonic() + seconds
        trust = True if self.verify is None else ssl.create_default_context(cafile=str(self.verify))
        while time.monotonic() < end:
            try:
                if httpx.get(self.url + "/ready", timeout=5, verify=trust).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise AssertionError(f"not ready: {self.log.read_text()}")


def start_server(
    folder: Path,
    engine: dict[str, Any] | None = None,
    verify: Path | None = None,
    *,
    log: Path | None = None,
    **settings: Any,
) -> RunningServer:
    """Starts a server and waits until it is ready. Without `engine` options it runs the fake engine. `log` takes what it
    prints; a file in `folder` if none is given."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = {"port": port, "served_model_names": ["m"], "drain_timeout": 5.0, **settings}
    fake = {"factory": "served_engine:build", "model_path": str(CHECKPOINT), "tick": 0.005}
    path = os.pathsep.join(
        [str(Path(__file__).parent), str(ROOT / "python"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    log = log or folder / f"server-{port}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", _RUN, json.dumps([given, engine or fake])],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path},
        )
    scheme = "http" if verify is None else "https"
    server = RunningServer(process, f"{scheme}://127.0.0.1:{port}", log, verify)
    try:
        server.wait_ready()
    except BaseException:
        process.kill()
        raise
    return server


def stop_server(server: RunningServer) -> None:
    """SIGTERM, then the exit."""
    if server.process.poll() is None:
        server.process.terminate()
        server.process.wait(20)
