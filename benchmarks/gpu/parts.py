"""What each part of a decode step costs on one GPU: the step's graph replayed whole and with one part left out of it.

    python benchmarks/gpu/parts.py [--model qwen3-0.6b] [--batches 1,64,256] [--out FILE]

In the middle of a decode of `batch` requests the graph of the whole step is captured anew with a part's ops replaced by
nothing, and replayed back to back; what is missing from the whole graph's time is what the part costs where it stands, overlap
with its neighbours included. The parts' costs add up to more or less than the whole where kernels overlap.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import e2e
import step
import torch

from stoker.engine.cuda_graphs import WHOLE

# part: what it is in the engine's modules
PARTS: dict[str, list[str]] = {
    "attention": ["stoker.layers.attention.paged_attention"],
    "rope": ["stoker.layers.attention.rope_and_cache"],
    "norms": ["stoker.models.llama.add_rms_norm", "stoker.models.llama.rms_norm"],
    "linear": ["stoker.layers.linear.Linear.__call__", "stoker.layers.linear.Linear.silu_and_mul"],
    "activation": ["stoker.layers.linear.silu_and_mul"],
    "head and sampler": ["stoker.engine.cuda_runner.CudaRunner._run_head"],
    "sampler": ["stoker.engine.forward.Forward.sample"],
}
PARTS["attention and linear"] = PARTS["attention"] + PARTS["linear"]


def nothing(*_: Any, **__: Any) -> None: ...


@contextlib.contextmanager
def without(part: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in PARTS.get(part, []):
            stack.enter_context(mock.patch(name, nothing))
        yield


def capture(engine: e2e.Runner, rows: int) -> None:
    """The whole step's graph of `rows`, as the ops are now, in the place of the last one."""
    runner = engine.engine.runner
    graphs = runner.graphs[WHOLE]
    every, graphs.buckets = graphs.buckets, [next(b for b in graphs.buckets if b >= rows)]
    try:
        with torch.inference_mode():
            graphs.capture(runner._launcher, runner._stream, torch.cuda.graph_pool_handle(), again=True)
    finally:
        graphs.buckets = every


def measure(engine: e2e.Runner, batch: int) -> dict[str, Any]:
    step.add(engine, batch, 40 + batch, stream=False)
    turns = -(-batch * step.PROMPT // engine.engine.runner._forward.max_tokens) + step.TOKENS // 2
    for _ in range(turns):
        engine.engine.step()
    whole = step.replayed_us(engine, batch)
    parts = {}
    for part in PARTS:
        with without(part):
            capture(engine, batch)
        parts[part] = whole - step.replayed_us(engine, batch)
    capture(engine, batch)
    again = step.replayed_us(engine, batch)
    while engine.engine.has_unfinished():
        engine.engine.step()
    return {"batch": batch, "graphs_us": whole, "graphs_again_us": again, "parts_us": parts}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    e2e.add_engine_arguments(parser)
    parser.add_argument("--batches", default="1,64,256")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    engine = e2e.Runner(args)
    engine.timed(e2e.random_prompts(64, 300, 98), [32] * 64, 0.6)
    rows = []
    for batch in args.batches.split(","):
        rows.append(measure(engine, int(batch)))
        print(json.dumps(rows[-1]), flush=True)
    if args.out:
        results = {"command": "python " + " ".join(sys.argv), "gpu": e2e.gpu_name(), "rows": rows}
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    engine.engine.close()


if __name__ == "__main__":
    main()
