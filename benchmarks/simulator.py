"""How fast the simulator is, and how its roofline of an H200 stands beside what the engine did on one.

    python benchmarks/simulator.py [--trace mooncake_conversation.jsonl] [--fleet]     # benchmarks/results/simulator.{json,md}

Speed: one process, one thread. `decode`: 256 users of a closed loop, prompts of 1,024 and answers of 900 tokens; `churn`: 256 users
with workload W2's lengths and KV. `trace`: the whole hour of Mooncake's conversation trace on 16 H200, an 8B model, prefix cache on.
`fleet` (minutes): 1,000 replicas, 1,000,000 requests with W2's lengths, Poisson, least loaded first.
Beside the engine: the workloads of benchmarks/gpu/e2e.py, whose measured figures stand in benchmarks/results/gpu_e2e_*.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stoker.cli.simulate_options import read_model
from stoker.sim import Device, Requests, Run, roofline, simulate
from stoker.sim.run import finish, prepare
from stoker.sim.scenario import Scenario

RESULTS = Path(__file__).parent / "results"
MODEL = read_model("llama-3.1-8b")
W2 = {"prompt_len": "loguniform:32:2048", "output_len": "loguniform:16:512", "num_kv_blocks": 8193}


def timed(scenario: Scenario, repeat: int) -> dict[str, float]:
    """The median of a few runs; each with a simulation of its own."""
    setting, requests = scenario.setting(), scenario.requests()
    cpu, wall = [], []
    for _ in range(repeat):
        simulation = prepare(setting, requests)
        began, began_cpu = time.perf_counter(), time.process_time()
        finish(simulation)
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    totals = simulation.totals()
    report = Run(requests, setting, simulation).report()
    seconds = statistics.median(wall)
    return {
        "requests": len(requests),
        "prompt_tokens": report["prompt_tokens"],
        "output_tokens": report["output_tokens"],
        "steps": totals["steps"],
        "wall_s": seconds,
        "cpu_s": statistics.median(cpu),
        "output_tokens_per_wall_s": report["output_tokens"] / seconds,
        "us_per_step": 1e6 * statistics.median(cpu) / totals["steps"],
        "simulated_s": report["seconds"],
        "hit_rate": report["hit_rate"],
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def speed(trace: str | None, fleet: bool) -> dict[str, dict[str, float]]:
    closed = Scenario(model=MODEL, model_len=131072, users=256)
    jobs = {
        "decode": (
            replace(closed, num_reqs=1536, prompt_len="1024", output_len="900", num_kv_blocks=32769),
            5,
        ),
        "churn": (replace(closed, num_reqs=6000, **W2), 5),  # type: ignore[arg-type]
    }
    if trace:
        hour = (
            Scenario(model=MODEL, model_len=131072, trace=trace)
            .vary("replicas", 16)
            .vary("routing", "prefix")
        )
        jobs["trace"] = (hour, 3)
    if fleet:
        many = Scenario(
            model=MODEL, model_len=131072, num_reqs=1_000_000, rate=30_000.0, max_model_len=4096, **W2
        )  # type: ignore[arg-type]
        jobs["fleet"] = (many.vary("replicas", 1000).vary("routing", "least_loaded"), 1)
    return {name: timed(scenario, repeat) for name, (scenario, repeat) in jobs.items()}


def beside_the_engine() -> list[dict[str, Any]]:
    """The roofline of an H200 on the workloads that were measured there."""
    workloads = json.loads((Path(__file__).parent / "gpu" / "workloads.json").read_text())
    rows = []
    for name in ("qwen3-0.6b", "llama-3.1-8b"):
        measured = json.loads((RESULTS / f"gpu_e2e_{name}.json").read_text())
        model = read_model(name)
        cost = roofline(model, Device.find("h200"))
        for batch, line in measured["D"].items():
            n = int(batch)
            modelled = cost.device_ns(rows=n, tokens=n, sampled=n, decode_kv=n * (512 + 65)) / 1e6
            rows.append(_row(name, f"D: ms a step at {n}", modelled, line["ms_per_step"]))
        scenario = Scenario(model=model, model_len=4096, max_model_len=4096)
        for letter in "AB":
            w = workloads[letter]
            rng = random.Random(w["seed"])
            pairs = [(rng.randint(*w["prompt"]), rng.randint(*w["output"])) for _ in range(w["requests"])]
            lens = np.array(pairs, np.int64)
            requests = Requests(np.zeros(len(lens), np.int64), lens[:, 0], lens[:, 1], lens[:, 1])
            run = simulate(scenario.setting(), requests)
            best = max(line["out_tok_s"] for line in measured[letter])
            rows.append(_row(name, f"{letter}: output tokens/s", run.report()["output_tokens_per_s"], best))
        one = replace(scenario, num_reqs=1, prompt_len="1024", output_len="256", users=1)
        run = simulate(one.setting(), one.requests())
        rows.append(_row(name, "C: ms a token", 1e3 * float(run.itl[0]), measured["C"]["ms_per_token"]))
        rows.append(
            _row(name, "C: ms to the first token", 1e3 * float(run.ttft[0]), measured["C"]["ttft_ms"])
        )
    return rows


def _row(model: str, what: str, modelled: float, measured: float) -> dict[str, Any]:
    return {
        "model": model,
        "what": what,
        "modelled": modelled,
        "measured": measured,
        "error": modelled / measured - 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace")
    parser.add_argument("--fleet", action="store_true")
    args = parser.parse_args()
    path = RESULTS / "simulator.json"
    old = json.loads(path.read_text()) if path.exists() else {"speed": {}}
    found = {
        "machine": _machine(),
        "speed": {**old["speed"], **speed(args.trace, args.fleet)},
        "beside_the_engine": beside_the_engine(),
    }
    path.write_text(json.dumps(found, indent=1) + "\n")
    text = page(found)
    (RESULTS / "simulator.md").write_text(text)
    print(text)


def page(found: dict[str, Any]) -> str:
    lines = [
        "# The simulator: speed, and its roofline beside the engine",
        "",
        f"`python benchmarks/simulator.py --trace mooncake_conversation.jsonl --fleet`, one thread of {found['machine']}.",
        "",
        "| | requests | prompt tokens | output tokens | steps | wall s | output tokens a wall s | us a step (CPU) | simulated s | peak GiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in found["speed"].items():
        lines.append(
            f"| {name} | {row['requests']:,} | {row['prompt_tokens']:,} | {row['output_tokens']:,} | {row['steps']:,} | "
            f"{row['wall_s']:.2f} | {row['output_tokens_per_wall_s']:,.0f} | {row['us_per_step']:.1f} | {row['simulated_s']:,.0f} | "
            f"{row['peak_gib']:.2f} |"
        )
    lines += [
        "",
        "decode: 256 users in a closed loop, prompts of 1,024, answers of 900 tokens. churn: 256 users, lengths and KV of workload W2.",
        "trace: the hour of Mooncake's conversation trace, llama-3.1-8b on 16 H200 behind a prefix-aware router. fleet: 1,000",
        "replicas with W2's lengths and KV, 30 requests a second each (Poisson), least loaded first.",
        "",
        "## The roofline of an H200 beside this engine on one",
        "",
        "Measured figures: [gpu_e2e.md](gpu_e2e.md), at most 256 running. The device table's shares of the peaks were set by all lines",
        "at once, those of the first token at 0.4 of the others' weight.",
        "",
        "| model | workload | modelled | measured | error |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in found["beside_the_engine"]:
        numbers = (
            f"{row[key]:,.0f}" if row[key] > 1000 else f"{row[key]:.2f}" for key in ("modelled", "measured")
        )
        lines.append(
            f"| {row['model']} | {row['what']} | {' | '.join(numbers)} | {100 * row['error']:+.1f}% |"
        )
    return "\n".join([*lines, ""])


def _machine() -> str:
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{names[0] if names else 'a CPU'}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
