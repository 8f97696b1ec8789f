"""CUDA graphs: the layers for each bucket of decode rows and for each bucket of tokens with prefill chunks among them,
head and sampler for each bucket of output rows, and all of a step that samples each of its decode rows.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch

# Kinds, as in csrc/cuda/step_launcher.h.
DECODE, MIXED, HEAD, WHOLE = 1, 2, 3, 4


class Launcher(Protocol):
    """`_cuda.StepLauncher` as far as it is used here."""

    def set_graph(self, kind: int, bucket: int, graph: int) -> None: ...
    def drop_graphs(self, kind: int) -> None: ...


def default_buckets(max_num_seqs: int) -> list[int]:
    """Rows of a decode step: 1, 2, 4, steps of 8 up to 128, of 16 up to 512, of 64 up to 2,048. Small ones pay: our own
    linear layers read rows of x in every block, and one row costs an 8B model's layer 148 us where eight cost 157 (H100).
    """
    sizes = [1, 2, 4, *range(8, 129, 8), *range(144, 513, 16), *range(576, 2049, 64)]
    largest = min(max_num_seqs, sizes[-1])
    return [*(size for size in sizes if size < largest), largest]


def mixed_buckets(max_num_batched_tokens: int) -> list[int]:
    """Tokens of a step with prefill chunks: from 16 to 1024; longer steps hide their launches by themselves."""
    sizes = [16, 32, 64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024]
    return [size for size in sizes if size <= max_num_batched_tokens]


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """For captures: an event, pinned memory or a graph that the collector frees in the middle of one ends it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class GraphSet:
    """Graphs of one function, by bucket. `body(n)` does the work for n rows on the current stream, at fixed addresses."""

    def __init__(self, kind: int, body: Callable[[int], None], buckets: Sequence[int]) -> None:
        self.kind = kind
        self.buckets = sorted(buckets)
        self.body = body
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def capture(
        self, launcher: Launcher, stream: torch.cuda.Stream, pool: Any, *, again: bool = False
    ) -> float:
        """Captures every bucket, the largest first, so that the smaller ones live in its memory, and hands them to the
        launcher. Seconds taken. `again`: it was captured before, and seats are in use, so nothing may run.
        """
        began = time.perf_counter()
        if not self.buckets:
            return 0.0
        with torch.cuda.stream(stream), no_garbage_collection():
            if not again:
                for size in self.buckets:  # libraries load what they need, which a capture forbids
                    self.body(size)
            stream.synchronize()
            for size in reversed(self.buckets):
                graph = torch.cuda.CUDAGraph(keep_graph=True)
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                self.body(size)
                graph.capture_end()
                launcher.set_graph(self.kind, size, graph.raw_cuda_graph())
                self._graphs[size] = graph  # what it captured lives in its memory
        stream.synchronize()
        return time.perf_counter() - began
