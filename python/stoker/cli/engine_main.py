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
        made: tuple[DrivenEngine, dict[str, Any]] = getattr(importlib.import_module(module), name)(options)
        return made
    from stoker.config import EngineConfig
    from stoker.engine.engine import Engine

    built = Engine(EngineConfig.from_kwargs(**options))
    facts: dict[str, Any] = {
        "vocab_size": built.model_config.vocab_size,
        "architecture": built.model_config.architecture,
        "generation_defaults": built.generation_config.defaults,
        "dtype": built.dtype,
        "ledger": built.ledger,
    }
    print(ledger(built), flush=True)
    return built, facts


def ledger(engine: Any) -> str:
    """What the start took, and where the memory went."""
    parts = [
        f"{name.replace('_', ' ')} {value:.2f} {'s' if name.endswith('seconds') else 'GiB'}"
        for name, value in engine.ledger.items()
        if value or name in ("weights", "kv", "host_kv")
    ]
    block_size = engine.config.block_size
    return (
        f"stoker: {engine.model_config.architecture} in {engine.dtype}; {', '.join(parts)}; {engine.loop.config.num_blocks - 1} KV blocks of "
        f"{block_size} tokens for at most {engine.max_num_seqs} requests of {engine.max_model_len} tokens"
    )


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
