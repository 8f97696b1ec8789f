"""The `stoker` command: a table of commands, one file each, imported only when it is called."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

# Each command's module offers HELP, add_arguments(parser) and run(args) -> exit code.
COMMANDS = ("generate", "serve", "demo", "bench", "simulate", "trace", "top", "version")
_HELP = {
    "generate": "answer prompts from arguments, a file or stdin",
    "serve": "serve a model over HTTP, with OpenAI's API",
    "demo": "watch a batch of requests being served by the embedded model",
    "bench": "measure throughput and latency",
    "simulate": "run the scheduler on an imagined machine",
    "trace": "look at what the scheduler did",
    "top": "watch a running server",
    "version": "show versions",
}

BAD_INPUT = 2
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and no more."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise SystemExit(BAD_INPUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0, 2 for bad input (with one line on stderr), 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = next((word for word in arguments if not word.startswith("-")), None)
    parser = _Parser(prog="stoker", description="An LLM inference engine.", allow_abbrev=False)
    parser.add_argument("--version", action="store_true", help="show the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for command in COMMANDS:
        built = importlib.util.find_spec(f"stoker.cli.{command}") is not None
        text = _HELP[command] if built else f"{_HELP[command]} (not built yet)"
        # abbreviated options would change their meaning when a new one comes
        sub = commands.add_parser(command, help=text, description=_HELP[command], allow_abbrev=False)
        if command == name and built:
            importlib.import_module(f"stoker.cli.{command}").add_arguments(sub)
    if name in COMMANDS and importlib.util.find_spec(f"stoker.cli.{name}") is None:
        return _fail(name, f"not built yet; built are {', '.join(_built())}")
    try:
        args = parser.parse_args(arguments)
    except SystemExit as end:  # argparse has said why
        return end.code if isinstance(end.code, int) else BAD_INPUT
    if args.version:
        import stoker

        print(stoker.__version__)
        return 0
    if args.command is None:
        parser.print_help()
        return BAD_INPUT
    try:
        return int(importlib.import_module(f"stoker.cli.{args.command}").run(args))
    except ValueError as error:
        return _fail(args.command, str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader has had enough; Python's own flush at exit would complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _built() -> list[str]:
    return [name for name in COMMANDS if importlib.util.find_spec(f"stoker.cli.{name}") is not None]


def _fail(command: str, message: str) -> int:
    print(f"stoker {command}: error: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT
