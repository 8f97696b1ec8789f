"""Ctrl-C while the engine is driven: noticed between steps, so that no step is torn in two."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """Within `with`, the first Ctrl-C is only noted and `check()` raises KeyboardInterrupt; a second one is raised where it comes.

    Does nothing outside the main thread, or where the program has a handler of its own for SIGINT.
    """

    def __init__(self) -> None:
        self._previous: Any = None
        self._pending = False

    def check(self) -> None:
        """Raises KeyboardInterrupt if one came."""
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt

    def __enter__(self) -> Interrupts:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._pending = True
        self._restore()

    def _restore(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None
