"""No orphan processes: a child leaves when its parent is gone, however the parent died."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


def leave_with_parent(stop: Callable[[], None], pipe: int, grace: float = 5.0) -> None:
    """Watches `pipe`, whose other end only the parent holds. At its end (the parent is gone) calls `stop`, and leaves
    the process by force if it is still there `grace` seconds later."""

    def watch() -> None:
        while os.read(pipe, 1):
            pass
        stop()
        timer = threading.Event()
        timer.wait(grace)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
