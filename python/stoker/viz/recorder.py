"""Recording a run: switches an engine loop's recorder on and off and makes a Trace of what it kept."""

from __future__ import annotations

import os
import platform
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stoker.viz.trace import Trace

if TYPE_CHECKING:
    from stoker._core.loop import EngineLoop

_CONFIG = [
    "num_blocks",
    "block_size",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "batching",
    "schedule_policy",
    "admission",
    "enable_prefix_caching",
    "overlap_depth",
    "seed",
]


class Recorded:
    """Where `recording` puts the trace when its block ends."""

    trace: Trace


@contextmanager
def recording(loop: EngineLoop, **meta: Any) -> Generator[Recorded, None, None]:
    """Records what `loop` does inside the block; afterwards `.trace` holds it. `meta` (model=, command=, ...) goes into
    the trace's first line."""
    out = Recorded()
    loop.start_recording()
    try:
        yield out
    finally:
        loop.stop_recording()
        out.trace = Trace.from_recording(loop.take_recording(), {**meta, **_setting(loop)})


def _setting(loop: EngineLoop) -> dict[str, Any]:
    config = {name: getattr(loop.config, name) for name in _CONFIG if hasattr(loop.config, name)}
    return {
        "config": {
            key: value if isinstance(value, int | float) else str(value) for key, value in config.items()
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
    }
