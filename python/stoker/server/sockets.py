"""The private folder and the Unix sockets in it: one for the engine's intake, one for each front-end worker."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType


class PrivateFolder:
    """A folder only its owner can enter (mode 0700), removed at exit. Socket paths must stay under about 100 characters."""

    def __init__(self, base: str | None = None) -> None:
        base = base or os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
        self.path = Path(tempfile.mkdtemp(prefix="stoker-", dir=base))
        self.path.chmod(0o700)
        if len(str(self.path / "worker-999.sock")) > 100:
            shutil.rmtree(self.path)
            raise ValueError(f"{base}: too long a path for Unix sockets; set TMPDIR to a shorter one")

    def close(self) -> None:
        """Removes the folder and what is in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> PrivateFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def engine_address(folder: Path) -> str:
    """Where the engine process listens."""
    return f"ipc://{folder}/engine.sock"


def worker_address(folder: Path, worker: int) -> str:
    """Where a front-end worker listens."""
    return f"ipc://{folder}/worker-{worker}.sock"
