"""CUDA graphs: the layers for each bucket of decode rows and for each bucket of tokens with prefill chunks among them, and
head and sampler for each bucket of output rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch


def default_buckets(max_num_seqs: int) -> list[int]:
    """Rows of a decode step: steps of 8 up to 128, steps of 16 up to 512. None below 8: cuBLAS is slower there (all linear
    layers of a 0.6B model take 1.00 ms at one row and 0.82 at eight on an H200), and the padding rows cost nothing else.
    """
    sizes = [*range(8, 129, 8), *range(144, 513, 16)]
    largest = min(max_num_seqs, sizes[-1])
    return [*(size for size in sizes if size < largest), largest]


def mixed_buckets(max_num_batched_tokens: int) -> list[int]:
    """Tokens of a step with prefill chunks: from 16 to 1024; longer steps hide their launches by themselves."""
    sizes = [16, 32, 64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024]
    return [size for size in sizes if size <= max_num_batched_tokens]


class GraphSet:
    """Graphs of one function, by bucket. `body(n)` does the work for n rows on the current stream, at fixed addresses."""

    def __init__(self, body: Callable[[int], None], buckets: Sequence[int]) -> None:
        self._body = body
        self._buckets = sorted(buckets)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def bucket(self, rows: int) -> int | None:
        """The smallest bucket that holds `rows`; None: it is too many."""
        return next((size for size in self._buckets if size >= rows), None)

    def capture(self, stream: torch.cuda.Stream, pool: Any) -> float:
        """Captures every bucket, the largest first, so that the smaller ones live in its memory. Seconds taken."""
        began = time.perf_counter()
        self._graphs.clear()
        if not self._buckets:
            return 0.0
        with torch.cuda.stream(stream):
            for size in (self._buckets[0], self._buckets[-1]):
                self._body(size)
            stream.synchronize()
            for size in reversed(self._buckets):
                graph = torch.cuda.CUDAGraph()
                graph.capture_begin(pool=pool)
                self._body(size)
                graph.capture_end()
                self._graphs[size] = graph
        stream.synchronize()
        return time.perf_counter() - began

    def replay(self, bucket: int) -> None:
        """Launches one bucket's graph on the current stream."""
        self._graphs[bucket].replay()
