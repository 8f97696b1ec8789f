"""The bar of `LLM.generate`: requests done, and tokens a second in and out."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any


class GenerateBar:
    """Shown on stderr where that is a terminal; costs nothing otherwise."""

    def __init__(self, total: int, *, shown: bool = True) -> None:
        self._total = total
        self._progress: Any = None
        self._task: Any = None
        self._start = time.monotonic()
        self._tokens_in = 0
        self._tokens_out = 0
        if shown and total and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                TextColumn("answers"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[rate]}"),
                console=Console(stderr=True),
            )

    def advance(self, new_tokens: int, finished_prompt_tokens: int | None = None) -> None:
        """Counts output tokens; `finished_prompt_tokens` is given when a request has ended."""
        self._tokens_out += new_tokens
        if finished_prompt_tokens is not None:
            self._tokens_in += finished_prompt_tokens
        if self._progress is not None:
            seconds = max(time.monotonic() - self._start, 1e-6)
            rate = f"in {self._tokens_in / seconds:,.0f} tok/s, out {self._tokens_out / seconds:,.0f} tok/s"
            self._progress.update(self._task, advance=finished_prompt_tokens is not None, rate=rate)

    def __enter__(self) -> GenerateBar:
        if self._progress is not None:
            self._progress.start()
            self._task = self._progress.add_task("answers", total=self._total, rate="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
