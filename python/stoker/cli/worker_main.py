"""Entry point of a front-end worker process (started by the supervisor, never by hand)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec

from stoker.server.settings import ServerSettings
from stoker.server.worker import run_worker


def main() -> None:
    """Reads its options from stdin, as JSON."""
    options = json.load(sys.stdin)
    settings = msgspec.convert(options["settings"], ServerSettings)
    run_worker(
        settings, Path(options["folder"]), options["worker"], options["listen_fd"], options["watch_fd"]
    )


if __name__ == "__main__":
    main()
