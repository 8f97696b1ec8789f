"""How well the simulator predicts: a cost model fitted to one recorded run of the demo model on this machine's CPU, and another run
with another rate and other lengths, predicted before it is made.

    python benchmarks/sim_fidelity.py --pair 1 --out DIR      # for each of the pairs 1..5
    python benchmarks/sim_fidelity.py --report DIR            # benchmarks/results/sim_fidelity.{json,md}
    python benchmarks/sim_fidelity.py --device cuda --pair 1 --num-reqs 3000     # a 0.6B model with random weights on a GPU

A pair: probe, run A recorded, probe; a cost model is fitted to A; probe; the prediction for B is written to DIR; run B; probe. The
probe is a fixed batch of decodes and one prefill; its time before B over that around A rescales the model's step times. Reqs come at
planned times (Poisson), and time to first token counts from there. Load: the rate of arrivals over the rate at which the fitted
model answers the same reqs when they are all there. Each run has `--num-reqs` reqs (1,000). The recorded steps of both runs are
then repeated in virtual time, and their batches compared row by row.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stoker.config import EngineConfig
from stoker.engine.engine import Engine as StokerEngine
from stoker.scheduler import Req, SamplingParams
from stoker.sim import Requests, Run, Setting, simulate, synthetic
from stoker.sim.cost import cost_dict
from stoker.sim.fit import fit
from stoker.sim.replay import replay
from stoker.viz.measures import inter_token_latencies, percentile
from stoker.viz.recorder import recording
from stoker.viz.trace import Trace

RESULTS = Path(__file__).parent / "results"
# What runs where, and (rate as a share of capacity, prompt lengths, answer lengths) of runs A and B of each pair.
ON: dict[str, dict[str, Any]] = {
    "cpu": {
        "engine": {"model": "stoker-demo", "max_num_seqs": 32, "max_num_batched_tokens": 256, "num_kv_blocks": 2049, "max_model_len": 1024},
        "probe": {"num_reqs": 8, "prompt_len": "64", "output_len": "24"},
        "pairs": {
            1: ((0.5, "loguniform:16:160", "uniform:2:12"), (0.7, "loguniform:8:64", "uniform:2:16")),
            2: ((0.5, "loguniform:8:64", "uniform:2:16"), (0.6, "loguniform:32:256", "uniform:2:8")),
            3: ((0.6, "uniform:16:128", "uniform:2:12"), (0.4, "loguniform:16:160", "uniform:4:12")),
            4: ((0.6, "loguniform:32:256", "uniform:2:16"), (0.75, "loguniform:8:64", "exponential:7:30")),
            5: ((0.5, "loguniform:16:160", "exponential:6:30"), (0.65, "uniform:16:128", "uniform:2:12")),
        },
    },
    "cuda": {
        "engine": {
            "model": str(Path(__file__).parent / "gpu/models/qwen3-0.6b"), "load_format": "dummy", "dtype": "bfloat16",
            "max_num_seqs": 256, "max_num_batched_tokens": 2048, "num_kv_blocks": 16385, "max_model_len": 4096,
        },
        "probe": {"num_reqs": 64, "prompt_len": "256", "output_len": "64"},
        "pairs": {
            1: ((0.5, "loguniform:32:2048", "loguniform:16:256"), (0.7, "loguniform:32:512", "uniform:16:256")),
            2: ((0.5, "loguniform:32:512", "uniform:16:256"), (0.6, "loguniform:128:2048", "loguniform:16:128")),
            3: ((0.6, "uniform:64:1024", "uniform:16:128"), (0.4, "loguniform:32:2048", "loguniform:16:256")),
            4: ((0.6, "loguniform:128:2048", "loguniform:16:128"), (0.75, "loguniform:32:512", "exponential:100:400")),
            5: ((0.5, "loguniform:32:2048", "exponential:100:400"), (0.65, "uniform:64:1024", "uniform:16:128")),
        },
    },
}  # fmt: skip
NS = 1_000_000_000
FIGURES = ("ttft_mean", "itl_mean", "throughput", "ttft_p99", "itl_p99")
LIMITS = {"ttft_mean": 0.05, "itl_mean": 0.05, "throughput": 0.05, "ttft_p99": 0.10, "itl_p99": 0.10}


class Engine:
    """The model, driven on this thread."""

    def __init__(self, device: str) -> None:
        engine = StokerEngine(EngineConfig(device=device, progress=False, **ON[device]["engine"]))
        self.engine, self.loop = engine, engine.loop
        self.vocab = engine.model_config.vocab_size
        self._probe = ON[device]["probe"]
        self._batches = 0

    def feed(self, requests: Requests) -> None:
        """Adds each when its time has come, until all are answered. The loop's clock is time.monotonic_ns()."""
        workload = requests.native(self.vocab)
        self._batches += 1
        reqs = [
            Req(
                f"{self._batches}-{i}",
                workload.prompt(i),
                SamplingParams(temperature=0.0, max_tokens=int(requests.answer_lens[i]), ignore_eos=True),
            )
            for i in range(len(requests))
        ]
        gc.collect()
        gc.disable()
        self.start = time.monotonic_ns() + 20_000_000
        due = [self.start + int(t) for t in requests.times]
        loop, added, count = self.loop, 0, len(reqs)
        while added < count or loop.has_unfinished():
            now = time.monotonic_ns()
            while added < count and due[added] <= now:
                loop.add(reqs[added])
                added += 1
            if loop.has_unfinished():
                loop.turn()
                loop.poll()
            elif (left := due[added] - now) > 400_000:
                time.sleep((left - 300_000) / 1e9)  # the rest is spun away: sleep wakes late
        gc.enable()

    def record(self, requests: Requests) -> Trace:
        with recording(self.loop, model="stoker-demo", command="benchmarks/sim_fidelity.py") as recorded:
            self.feed(requests)
        return recorded.trace

    def probe(self) -> float:
        """Seconds of the device for a fixed batch: the median of a few."""
        times = []
        for _ in range(7):
            trace = self.record(fresh(seed=1234, **self._probe))
            times.append(sum(step.end - step.start for step in trace.steps) / 1e9)
        return statistics.median(times)


_used = 0


def fresh(**made: Any) -> Requests:
    """Made-up requests whose prompts no run before has seen: the prefix cache outlives a run."""
    global _used
    requests = synthetic(**made)
    count = len(requests)
    ids = _used + np.arange(count, dtype=np.int64)
    _used += count
    return replace(requests, hash_ids=ids, hash_indptr=np.arange(count + 1), hash_block=1 << 16)


def figures_of_trace(trace: Trace, requests: Requests, start: int) -> dict[str, float]:
    reqs = [trace.reqs[key] for key in sorted(trace.reqs)]
    ttft = sorted(
        (r.first_token_time - start - int(t)) / 1e9 for r, t in zip(reqs, requests.times, strict=True)
    )
    gaps = inter_token_latencies(trace)
    seconds = (max(r.finish_time for r in reqs) - start - int(requests.times[0])) / 1e9
    return {
        "ttft_mean": statistics.fmean(ttft),
        "ttft_p99": percentile(ttft, 99),
        "itl_mean": statistics.fmean(gaps),
        "itl_p99": percentile(gaps, 99),
        "throughput": sum(r.num_outputs for r in reqs) / seconds,
        "seconds": seconds,
    }


def figures_of_run(run: Run) -> dict[str, float]:
    report = run.report()
    return {
        "ttft_mean": report["ttft"]["mean"],
        "ttft_p99": report["ttft"]["p99"],
        "itl_mean": report["itl"]["mean"],
        "itl_p99": report["itl"]["p99"],
        "throughput": report["output_tokens_per_s"],
        "seconds": report["seconds"],
    }


def setting_of(engine: Engine, cost: Any, seed: int) -> Setting:
    c = engine.loop.config
    names = ("num_blocks", "block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len")
    scheduler = {name: getattr(c, name) for name in names}
    return Setting(cost, scheduler, overlap=c.overlap_depth > 0, seed=seed)


def rescaled(cost: Any, factor: float) -> Any:
    """The same model of a machine that takes `factor` times as long."""
    keep = {"noise", "window", "windowed_share"}
    return type(cost)(**{n: v if n in keep else v * factor for n, v in cost_dict(cost).items()})


def capacity(engine: Engine, cost: Any, requests: Requests) -> float:
    """Reqs a second that the model answers when all are there from the start."""
    return (
        len(requests)
        / simulate(setting_of(engine, cost, 0), replace(requests, times=requests.times * 0)).seconds
    )


def run_pair(device: str, number: int, num_reqs: int, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    engine = Engine(device)
    (load_a, prompts_a, answers_a), (load_b, prompts_b, answers_b) = ON[device]["pairs"][number]
    made = {"prompt_len": prompts_a, "output_len": answers_a, "seed": 10 * number + 1}
    # How fast is it at all? A burst says; it also warms everything up.
    burst = fresh(num_reqs=300, **{**made, "seed": 999})
    engine.feed(fresh(num_reqs=64, **{**made, "seed": 998}))
    rough = fit(engine.record(burst).steps).cost
    a = fresh(num_reqs=num_reqs, rate=load_a * capacity(engine, rough, burst), **made)
    before_a = engine.probe()
    trace_a = engine.record(a)
    start_a = engine.start
    after_a = engine.probe()
    fitted = fit(trace_a.steps)
    probe_a = (before_a + after_a) / 2

    probe_b = engine.probe()
    cost = rescaled(fitted.cost, probe_b / probe_a)
    b = fresh(num_reqs=num_reqs, prompt_len=prompts_b, output_len=answers_b, seed=10 * number + 2)
    full = capacity(engine, cost, b)
    b = fresh(
        num_reqs=num_reqs,
        rate=load_b * full,
        prompt_len=prompts_b,
        output_len=answers_b,
        seed=10 * number + 2,
    )
    predicted = figures_of_run(simulate(setting_of(engine, cost, number), b))
    record: dict[str, Any] = {
        "pair": number,
        "num_reqs": num_reqs,
        "device": _device(device),
        "model": Path(ON[device]["engine"]["model"]).name,
        "a": {"load": load_a, "prompt_len": prompts_a, "output_len": answers_a, "measured": figures_of_trace(trace_a, a, start_a)},
        "b": {"load": load_b, "prompt_len": prompts_b, "output_len": answers_b, "predicted": predicted},
        "probe": {"before_a": before_a, "after_a": after_a, "before_b": probe_b},
        "fit": {"num_steps": fitted.num_steps, "mean_error": fitted.mean_error, "cost_model": cost_dict(fitted.cost)},
        "predicted_at": time.strftime("%Y-%m-%d %H:%M:%S"),
    }  # fmt: skip
    path = out / f"pair{number}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")  # the prediction stands before the run begins

    trace_b = engine.record(b)
    start_b = engine.start
    record["run_b_began_after"] = record["predicted_at"]
    record["b"]["measured"] = figures_of_trace(trace_b, b, start_b)
    record["probe"]["after_b"] = engine.probe()
    for name, trace, requests in (("a", trace_a, a), ("b", trace_b, b)):
        both = replay(trace, requests)
        record[name]["steps"] = len(both.recorded)
        record[name]["first_batch_that_differs"] = both.first_difference
        trace.save(out / f"pair{number}{name}.jsonl.gz")
    path.write_text(json.dumps(record, indent=1) + "\n")
    for name in FIGURES:
        p, m = predicted[name], record["b"]["measured"][name]
        print(f"pair {number} {name}: predicted {p:.5g}, measured {m:.5g}, {100 * (p / m - 1):+.1f}%")
    print(
        f"  probes {record['probe']}; batches differ at {record['a']['first_batch_that_differs']}, {record['b']['first_batch_that_differs']}"
    )


def report(folders: list[Path]) -> None:
    """A table for each folder of pairs."""
    lines = [
        "# The simulator's predictions beside what was then measured",
        "",
        "`python benchmarks/sim_fidelity.py`; its head says what a pair is. Each cell: predicted / measured (error). Times in ms, throughput in",
        "output tokens a second. The last column: the recorded step times of runs A and B repeated in virtual time, batches compared row by row.",
        "",
    ]
    found: dict[str, Any] = {}
    for folder in folders:
        records = [json.loads(path.read_text()) for path in sorted(folder.glob("pair*.json"))]
        records = [r for r in records if "measured" in r["b"]]
        for record in records:
            for name in ("noise",):
                record["fit"]["cost_model"].pop(name, None)
        errors = {n: [r["b"]["predicted"][n] / r["b"]["measured"][n] - 1 for r in records] for n in FIGURES}
        medians = {name: statistics.median(abs(e) for e in values) for name, values in errors.items()}
        found[folder.name] = {"pairs": records, "median_errors": medians}
        lines += _table(records, errors, medians)
    (RESULTS / "sim_fidelity.md").write_text("\n".join(lines))
    (RESULTS / "sim_fidelity.json").write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(lines))


def _table(
    records: list[dict[str, Any]], errors: dict[str, list[float]], medians: dict[str, float]
) -> list[str]:
    first = records[0]
    lines = [
        f"## {first['model']} on {first['device']}",
        "",
        f"{first['predicted_at'][:10]}, {first['num_reqs']:,} reqs a run{first.get('note', '')}.",
        "",
        "| pair | load A, B | "
        + " | ".join(FIGURES)
        + " | probe before B / around A | batches repeated, A and B |",
        "| --- | --- |" + " --- |" * (len(FIGURES) + 2),
    ]
    for place, r in enumerate(records):
        cells = [
            f"{_shown(name, r['b']['predicted'][name])} / {_shown(name, r['b']['measured'][name])} ({100 * errors[name][place]:+.1f}%)"
            for name in FIGURES
        ]
        probes = r["probe"]
        scale = probes["before_b"] / ((probes["before_a"] + probes["after_a"]) / 2)
        same = ", ".join(
            f"all {r[x]['steps']:,} the same" if r[x]["first_batch_that_differs"] is None
            else f"differ at {r[x]['first_batch_that_differs']} of {r[x]['steps']:,}"
            for x in "ab"
        )  # fmt: skip
        lines.append(
            f"| {r['pair']} | {r['a']['load']}, {r['b']['load']} | {' | '.join(cells)} | {scale:.3f} | {same} |"
        )
    cells = [f"**{100 * medians[name]:.1f}%** (limit {100 * LIMITS[name]:.0f}%)" for name in FIGURES]
    return [*lines, f"| median of \\|error\\| | | {' | '.join(cells)} | | |", ""]


def _shown(name: str, value: float) -> str:
    return f"{value:,.0f}" if name == "throughput" else f"{1e3 * value:.2f}"


def _device(device: str) -> str:
    if device == "cuda":
        import torch

        return f"one {torch.cuda.get_device_name()}"
    cores = f", {os.cpu_count()} threads"
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return (names[0] if names else platform.processor()) + cores


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", type=int, choices=range(1, 6))
    parser.add_argument("--device", choices=tuple(ON), default="cpu")
    parser.add_argument("--num-reqs", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("build/fidelity"))
    parser.add_argument("--report", type=Path, nargs="+")
    args = parser.parse_args()
    if args.report is not None:
        report(args.report)
    else:
        run_pair(args.device, args.pair, args.num_reqs, args.out)


if __name__ == "__main__":
    main()
