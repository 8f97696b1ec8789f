"""`stoker serve`: a model behind OpenAI's HTTP API, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from stoker.cli.options import add_engine_arguments, engine_options

HELP = "serve a model over HTTP, with OpenAI's API"
_NEEDED = ("fastapi", "uvicorn", "zmq", "msgspec", "prometheus_client")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("model", help="'stoker-demo', a checkpoint folder, or a hub id")
    server = parser.add_argument_group("server options")
    server.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (loopback unless you say otherwise)"
    )
    server.add_argument("--port", type=int, default=8000)
    server.add_argument(
        "--served-model-name", action="append", metavar="NAME", help="name(s) that clients use"
    )
    server.add_argument(
        "--api-key", action="append", default=[], metavar="KEY", help="ask clients for one of these keys"
    )
    server.add_argument("--api-key-file", metavar="FILE", help="a file with a key a line")
    server.add_argument("--api-workers", type=int, default=1, metavar="N", help="front-end processes")
    server.add_argument(
        "--cors-origin", action="append", default=[], metavar="ORIGIN", help="allow browsers from here"
    )
    server.add_argument("--ssl-keyfile", metavar="FILE")
    server.add_argument("--ssl-certfile", metavar="FILE")
    server.add_argument("--request-timeout", type=float, metavar="S", help="end a request after S seconds")
    server.add_argument(
        "--drain-timeout", type=float, default=30.0, metavar="S", help="time to finish after SIGTERM"
    )
    server.add_argument(
        "--max-queue", type=int, default=0, metavar="N", help="503 beyond N waiting requests (0: no limit)"
    )
    server.add_argument("--restart-engine", action="store_true", help="start a dead engine process anew")
    server.add_argument("--no-access-log", action="store_true")
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Checks the options, then supervises until the end."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} not installed; the server needs: pip install 'stoker[serve]'")
    from stoker.config import EngineConfig
    from stoker.server.settings import ServerSettings
    from stoker.server.supervisor import Supervisor

    if not 1 <= args.port <= 65535:
        raise ValueError(f"--port {args.port}: 1 to 65535 are allowed")
    if not 1 <= args.api_workers <= 64:
        raise ValueError(f"--api-workers {args.api_workers}: 1 to 64 are allowed")
    if (args.ssl_keyfile is None) != (args.ssl_certfile is None):
        raise ValueError("--ssl-keyfile and --ssl-certfile belong together")
    options = {"model": args.model, **engine_options(args), "progress": False}
    EngineConfig.from_kwargs(**options)  # bad options are told before anything starts
    settings = ServerSettings(
        host=args.host,
        port=args.port,
        served_model_names=tuple(args.served_model_name or [args.model]),
        api_keys=(*args.api_key, *_keys(args.api_key_file)),
        api_workers=args.api_workers,
        cors_origins=tuple(args.cors_origin),
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        request_timeout=args.request_timeout,
        drain_timeout=args.drain_timeout,
        max_queue=args.max_queue,
        restart_engine=args.restart_engine,
        access_log=not args.no_access_log,
    )
    supervisor = Supervisor(settings, options)
    print(f"stoker: serving {settings.served_model_names[0]} at {supervisor.address}", flush=True)
    return supervisor.run()


def _keys(path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as error:
        raise ValueError(f"--api-key-file {path}: {error.strerror}") from None
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise ValueError(f"--api-key-file {path}: holds no key")
    return keys
