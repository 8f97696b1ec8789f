"""KV for half of what workload A wants, on one GPU: what preemption costs, and that tokens do not change.

    python benchmarks/gpu/overcommit.py [--model qwen3-0.6b] [--swap-space GIB] [--out FILE]

All runs are greedy (temperature 0) over the same requests: with ample KV; with half of it and `guaranteed` admission, which
never preempts and so is what the same tokens in flight reach without; with half of it and admission that preempts, by
retraction and, with --swap-space, by swapping.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import e2e
import torch


def run(args: argparse.Namespace, blocks: int, admission: str, swap_space: float) -> dict[str, Any]:
    args.num_kv_blocks, args.admission, args.swap_space = blocks, admission, swap_space
    runner = e2e.Runner(args)
    prompts, counts = e2e.requests(e2e.WORKLOADS["A"], 0)
    runner.timed(e2e.random_prompts(64, 300, 98), [32] * 64, 0.0)
    before = runner.engine.stats().num_preemptions
    began = time.perf_counter()
    for i, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        params = runner.params(temperature=0.0, max_tokens=count, ignore_eos=True)
        runner.engine.add_request(f"r{i}", prompt, params, stream=False)
    answers: dict[str, list[int]] = {f"r{i}": [] for i in range(len(prompts))}
    while runner.engine.has_unfinished():
        for output in runner.engine.step():
            if output.finish_reason == "error":
                raise RuntimeError(output.message)
            answers[output.rid] += output.new_token_ids
    seconds = time.perf_counter() - began
    assert [len(answer) for answer in answers.values()] == counts
    preemptions = runner.engine.stats().num_preemptions - before
    runner.engine.close()
    del runner
    gc.collect()  # the next engine needs the memory
    torch.cuda.empty_cache()
    return {
        "blocks": blocks,
        "admission": admission,
        "swap_space": swap_space,
        "seconds": seconds,
        "out_tok_s": sum(counts) / seconds,
        "preemptions": preemptions,
        "answers": list(answers.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    e2e.add_engine_arguments(parser)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    prompts, counts = e2e.requests(e2e.WORKLOADS["A"], 0)
    demand = sum(-(-(len(p) + c) // 16) for p, c in zip(prompts, counts, strict=True))
    swap_space = args.swap_space
    cases = [(demand + 100, "greedy", 0.0)]
    cases += [(demand // 2, admission, 0.0) for admission in ("guaranteed", "learned", "greedy")]
    if swap_space:
        cases.append((demand // 2, "greedy", swap_space))
    rows: list[dict[str, Any]] = []
    for case in cases:
        row = run(args, *case)
        answers = row.pop("answers")
        if not rows:
            ample = answers
        row["answers_that_differ"] = sum(a != b for a, b in zip(answers, ample, strict=True))
        row["first_token_that_differs_median"] = _first_difference(answers, ample)
        rows.append(row)
        print(json.dumps(row), flush=True)
    if args.out:
        results = {"command": "python " + " ".join(sys.argv), "gpu": e2e.gpu_name(), "rows": rows}
        args.out.write_text(json.dumps(results, indent=1) + "\n")


def _first_difference(answers: list[list[int]], others: list[list[int]]) -> float | None:
    places = sorted(
        next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
        for a, b in zip(answers, others, strict=True)
        if a != b
    )
    return places[len(places) // 2] if places else None


if __name__ == "__main__":
    main()
