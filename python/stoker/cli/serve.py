"""`stoker serve`: a model behind OpenAI's HTTP API, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import argparse
import importlib.util
import os
from dataclasses import fields
from pathlib import Path

from stoker.cli.options import add_engine_arguments, engine_options
from stoker.server.settings import Limits, ServerSettings

HELP = "serve a model over HTTP, with OpenAI's API"
_NEEDED = ("starlette", "uvicorn", "uvloop", "httptools", "zmq", "msgspec", "prometheus_client")


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
    server.add_argument(
        "--store-responses",
        type=int,
        default=0,
        metavar="N",
        help="keep the newest N responses of /v1/responses for previous_response_id",
    )
    server.add_argument("--no-access-log", action="store_true")
    server.add_argument(
        "--log-prompts", action="store_true", help="write prompts to the log (off unless asked)"
    )
    server.add_argument(
        "--embeddings",
        choices=("auto", "last", "off"),
        default="auto",
        help="/v1/embeddings: as the checkpoint says, the last token's hidden row of any model, or not at all",
    )
    server.add_argument(
        "--answer-parser",
        default="auto",
        metavar="NAME",
        help="how reasoning and tool calls are marked: auto, none, qwen3, llama3, mistral, or module:NAME",
    )
    server.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"what one request may ask for; names: {', '.join(f.name for f in fields(Limits))}",
    )
    server.add_argument(
        "--stall-timeout",
        type=float,
        default=120.0,
        metavar="S",
        help="/ready fails after S seconds without a step",
    )
    server.add_argument(
        "--otlp-endpoint", metavar="URL", help="send OpenTelemetry traces there (OTLP over HTTP)"
    )
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Checks the options, then supervises until the end."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} not installed; the server needs: pip install 'stoker[serve]'")
    from stoker.config import EngineConfig
    from stoker.server.parsers import format_for
    from stoker.server.supervisor import Supervisor

    if not 1 <= args.port <= 65535:
        raise ValueError(f"--port {args.port}: 1 to 65535 are allowed")
    if not 1 <= args.api_workers <= 64:
        raise ValueError(f"--api-workers {args.api_workers}: 1 to 64 are allowed")
    if args.store_responses < 0 or (args.store_responses and args.api_workers > 1):
        raise ValueError(
            f"--store-responses {args.store_responses} with --api-workers {args.api_workers}: 0 or more, and one "
            "worker, because each would remember its own"
        )
    if (args.ssl_keyfile is None) != (args.ssl_certfile is None):
        raise ValueError("--ssl-keyfile and --ssl-certfile belong together")
    for name in ("ssl_keyfile", "ssl_certfile"):
        if getattr(args, name) is not None and not Path(getattr(args, name)).is_file():
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: no such file")
    for name in ("request_timeout", "drain_timeout", "stall_timeout"):
        if (getattr(args, name) or 1) <= 0 or args.max_queue < 0:
            raise ValueError(f"--{name.replace('_', '-')} and --max-queue must not be negative")
    if args.otlp_endpoint is not None and importlib.util.find_spec("opentelemetry") is None:
        raise ValueError("opentelemetry not installed; traces need: pip install 'stoker[otel]'")
    format_for(args.answer_parser, ())
    options = {"model": args.model, **engine_options(args), "progress": False}
    EngineConfig.from_kwargs(**options)  # bad options are told before anything starts
    settings = ServerSettings(
        host=args.host,
        port=args.port,
        served_model_names=tuple(args.served_model_name or [args.model]),
        api_keys=_all_keys(args),
        api_workers=args.api_workers,
        cors_origins=tuple(args.cors_origin),
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        request_timeout=args.request_timeout,
        drain_timeout=args.drain_timeout,
        max_queue=args.max_queue,
        restart_engine=args.restart_engine,
        store_responses=args.store_responses,
        access_log=not args.no_access_log,
        log_prompts=args.log_prompts,
        embeddings=args.embeddings,
        answer_parser=args.answer_parser,
        stall_timeout=args.stall_timeout,
        otlp_endpoint=args.otlp_endpoint,
        limits=_limits(args.limit),
    )
    supervisor = Supervisor(settings, options)
    print(f"stoker: serving {settings.served_model_names[0]} at {settings.address}", flush=True)
    return supervisor.run()


def _all_keys(args: argparse.Namespace) -> tuple[str, ...]:
    """From the command line, a file, and the environment (where a key is seen by nobody else)."""
    keys = (*args.api_key, *_keys(args.api_key_file), *filter(None, [os.environ.get("STOKER_API_KEY")]))
    wrong = next((key for key in keys if not key.isascii() or key != key.strip() or not key), None)
    if wrong is not None:
        raise ValueError("an API key must be ASCII, not empty, and without white space around it")
    return keys


def _limits(given: list[str]) -> Limits:
    known = {field.name: str(field.type) for field in fields(Limits)}
    values: dict[str, float] = {}
    for one in given:
        name, _, text = one.partition("=")
        try:
            values[name] = float(text) if known[name] == "float" else int(text)
        except (KeyError, ValueError):
            raise ValueError(
                f"--limit {one}: must be NAME=NUMBER, with a name of {', '.join(known)}"
            ) from None
        if values[name] < 1:
            raise ValueError(f"--limit {one}: must be at least 1")
    return Limits(**values)  # type: ignore[arg-type]


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
