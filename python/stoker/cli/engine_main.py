"""Entry point of a server's engine process (started by the supervisor, never by hand)."""

from __future__ import annotations

import importlib
import json
import signal
import sys
from pathlib import Path
from typing import Any

from stoker.engine_process import DrivenEngine, EngineProcess
from stoker.server.orphan import leave_with_parent


def build_engine(options: dict[str, Any]) -> tuple[DrivenEngine, dict[str, Any]]:
    """The engine and what /version and the ledger show of it. `factory` ("module:function") names another engine, for tests."""
    factory = options.pop("factory", None)
    if factory is not None:
        module, _, name = factory.partition(":")
        engine, info = getattr(importlib.import_module(module), name)(options)
        return engine, info
    from stoker.config import EngineConfig
    from stoker.engine.engine import Engine

    built = Engine(EngineConfig.from_kwargs(**options))
    info = {"vocab_size": built.model_config.vocab_size, "architecture": built.model_config.architecture}
    return built, info


def main() -> None:
    """Reads its options from stdin, as JSON."""
    options = json.load(sys.stdin)
    try:
        engine, info = build_engine(dict(options["engine"]))
    except ValueError as error:
        raise SystemExit(f"stoker: {error}") from None
    process = EngineProcess(engine, Path(options["folder"]), info, max_queue=options["max_queue"])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: process.stop())
    leave_with_parent(process.stop, options["watch_fd"])
    process.run()


if __name__ == "__main__":
    main()
