"""KV for half of what workload A wants, on one GPU: what preemption costs, and that tokens do not change.

    python benchmarks/gpu/overcommit.py [--model qwen3-0.6b] [--swap-space GIB] [--out FILE]

All runs are greedy (temperature 0) over the same requests: with ample KV; with half of it and admission that preempts, by
retraction and by swapping (`greedy`, which preempts most, and `learned`, the default); with half of it and `guaranteed`
admission, which never preempts. What the same requests in flight reach without preemption: runs with ample KV and fewer
seats (`cap`), between whose mean numbers of running requests the preempting run's is found.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import e2e
import numpy as np
import torch

LOOK_EVERY = 8


def run(args: argparse.Namespace, name: str, **options: Any) -> dict[str, Any]:
    case = argparse.Namespace(**(vars(args) | options))
    runner = e2e.Runner(case)
    prompts, counts = e2e.requests(e2e.WORKLOADS["A"], 0)
    runner.timed(e2e.random_prompts(64, 300, 98), [32] * 64, 0.0)
    before = runner.engine.loop.stats()
    began = time.perf_counter()
    for i, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        params = runner.params(temperature=0.0, max_tokens=count, ignore_eos=True)
        runner.engine.add_request(f"r{i}", prompt, params, stream=False)
    answers: dict[str, list[int]] = {f"r{i}": [] for i in range(len(prompts))}
    running: list[int] = []
    turns = 0
    while runner.engine.has_unfinished():
        for output in runner.engine.step():
            if output.finish_reason == "error":
                raise RuntimeError(output.message)
            answers[output.rid] += output.new_token_ids
        turns += 1
        if turns % LOOK_EVERY == 0:
            running.append(runner.engine.loop.stats().num_running)
    seconds = time.perf_counter() - began
    assert [len(answer) for answer in answers.values()] == counts
    after = runner.engine.loop.stats()
    runner.engine.close()
    del runner
    gc.collect()  # the next engine needs the memory
    torch.cuda.empty_cache()
    return {
        "name": name,
        "blocks": case.num_kv_blocks,
        "admission": case.admission,
        "seconds": seconds,
        "out_tok_s": sum(counts) / seconds,
        "steps": after.num_steps - before.num_steps,
        "preemptions": after.num_preemptions - before.num_preemptions,
        "swaps": after.num_swaps - before.num_swaps,
        "prefill_tokens": after.prefill_tokens - before.prefill_tokens,
        "mean_running": statistics.fmean(running),
        "answers": list(answers.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    e2e.add_engine_arguments(parser)
    parser.set_defaults(swap_space=8.0)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    prompts, counts = e2e.requests(e2e.WORKLOADS["A"], 0)
    demand = sum(-(-(len(p) + c) // 16) for p, c in zip(prompts, counts, strict=True))
    rows: list[dict[str, Any]] = []
    ample: list[list[int]] = []

    def measure(name: str, **options: Any) -> dict[str, Any]:
        row = run(args, name, **options)
        answers = row.pop("answers")
        if not rows:
            ample.extend(answers)
        row["answers_that_differ"] = sum(a != b for a, b in zip(answers, ample, strict=True))
        row["first_token_that_differs_median"] = _first_difference(answers, ample)
        rows.append(row)
        print(json.dumps(row), flush=True)
        if args.out:
            results = {"command": "python " + " ".join(sys.argv), "gpu": e2e.gpu_name(), "rows": rows}
            args.out.write_text(json.dumps(results, indent=1) + "\n")
        return row

    plenty = {"num_kv_blocks": demand + 100, "swap_space": 0.0, "preemption": "retract"}
    half = {"num_kv_blocks": demand // 2}
    measure("ample", **plenty)
    preempting = [
        measure(f"{way}, {admission}", **half, preemption=way, admission=admission)
        for way, admission in (("retract", "greedy"), ("swap", "greedy"), ("auto", "learned"))
    ]
    most = max(row["mean_running"] for row in preempting)
    plain = [
        rows[0],
        *(measure(f"cap {cap}", **plenty, max_num_seqs=cap) for cap in (round(most), round(1.5 * most))),
    ]
    points = sorted((row["mean_running"], row["out_tok_s"]) for row in plain)
    for row in preempting:
        without = float(np.interp(row["mean_running"], *zip(*points, strict=True)))
        row["of_the_same_without_preemption"] = row["out_tok_s"] / without
        print(row["name"], f"{row['of_the_same_without_preemption']:.3f}", flush=True)
    measure("guaranteed", **half, admission="guaranteed")


def _first_difference(answers: list[list[int]], others: list[list[int]]) -> float | None:
    places = sorted(
        next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
        for a, b in zip(answers, others, strict=True)
        if a != b
    )
    return places[len(places) // 2] if places else None


if __name__ == "__main__":
    main()
