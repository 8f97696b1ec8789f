"""How well the simulator predicts: a cost model fitted to one recorded run of the demo model on this machine's CPU, and another run
with another rate and other lengths, predicted before it is made.

    python benchmarks/sim_fidelity.py                               # pairs 1 to 5, a minute or two each; --pair 3: that one alone
    python benchmarks/sim_fidelity.py --report build/fidelity/cpu   # benchmarks/results/sim_fidelity.{json,md}
    python benchmarks/sim_fidelity.py --device cuda                 # a 0.6B model with random weights on a GPU

A pair: run A is recorded and a cost model fitted to it, what it says of run B is written to a file, run B is made. A run has at least
1,000 reqs and lasts at least `--seconds` (20), in ten parts; before, between and after them a probe is timed: a fixed few prompts and
decodes. What B's probes took over A's, in the mean, rescales the model's step times; that is all the prediction takes from run B.
What is written before stands: the cost model, the reqs and their times, and the figures for a few speeds. A prediction is the mean of
ten simulations that differ in their noise.

Reqs come at planned times (Poisson), and time to first token counts from there. Load: the rate of arrivals over the rate at which
the fitted model answers the same reqs when they are all there. The recorded steps of both runs are then repeated in virtual time, and
their batches compared row by row. On a CPU one thread computes: the loop has a core of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stoker.config import EngineConfig
from stoker.engine.engine import Engine as StokerEngine
from stoker.scheduler import Req, SamplingParams
from stoker.sim import Requests, Setting, simulate, synthetic
from stoker.sim.cost import cost_dict
from stoker.sim.fit import fit
from stoker.sim.replay import replay
from stoker.viz.measures import inter_token_latencies
from stoker.viz.recorder import recording
from stoker.viz.trace import Step, Trace

RESULTS = Path(__file__).parent / "results"
# What runs where, and (rate as a share of capacity, prompt lengths, answer lengths) of runs A and B of each pair.
ON: dict[str, dict[str, Any]] = {
    "cpu": {
        "engine": {"model": "stoker-demo", "max_num_seqs": 32, "max_num_batched_tokens": 256, "num_kv_blocks": 2049, "max_model_len": 1024},
        "probe": {"num_reqs": 4, "prompt_len": "uniform:16:128", "output_len": "uniform:4:12"},
        "pairs": {
            1: ((0.5, "loguniform:16:160", "uniform:2:12"), (0.6, "loguniform:8:64", "uniform:2:16")),
            2: ((0.5, "loguniform:8:256", "uniform:2:16"), (0.5, "loguniform:32:256", "uniform:2:8")),
            3: ((0.6, "uniform:16:128", "uniform:2:12"), (0.4, "loguniform:16:160", "uniform:4:12")),
            4: ((0.6, "loguniform:32:256", "uniform:2:16"), (0.7, "loguniform:8:64", "exponential:7:30")),
            5: ((0.5, "loguniform:16:160", "exponential:6:30"), (0.65, "uniform:16:128", "uniform:2:12")),
        },
    },
    "cuda": {
        "engine": {
            "model": str(Path(__file__).parent / "gpu/models/qwen3-0.6b"), "load_format": "dummy", "dtype": "bfloat16",
            "max_num_seqs": 256, "max_num_batched_tokens": 2048, "num_kv_blocks": 16385, "max_model_len": 4096,
        },
        "probe": {"num_reqs": 16, "prompt_len": "uniform:64:1024", "output_len": "uniform:16:64"},
        "pairs": {
            1: ((0.5, "loguniform:32:2048", "loguniform:16:256"), (0.7, "loguniform:32:512", "uniform:16:256")),
            2: ((0.5, "loguniform:16:2048", "uniform:16:256"), (0.6, "loguniform:128:2048", "loguniform:16:128")),
            3: ((0.6, "uniform:64:1024", "uniform:16:128"), (0.4, "loguniform:32:2048", "loguniform:16:256")),
            4: ((0.6, "loguniform:128:2048", "loguniform:16:128"), (0.75, "loguniform:32:512", "exponential:100:400")),
            5: ((0.5, "loguniform:32:2048", "exponential:100:400"), (0.65, "uniform:64:1024", "uniform:16:128")),
        },
    },
}  # fmt: skip
FIGURES = ("ttft_mean", "itl_mean", "throughput", "ttft_p99", "itl_p99")
LIMITS = {"ttft_mean": 0.05, "itl_mean": 0.05, "throughput": 0.05, "ttft_p99": 0.10, "itl_p99": 0.10}
PARTS = 10
PROBES = 5
SIMULATIONS = 10
SPEEDS = (0.8, 0.9, 1.0, 1.1, 1.25)


class Engine:
    """The model, driven on this thread."""

    def __init__(self, device: str) -> None:
        if device == "cpu":
            torch.set_num_threads(1)
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
        """Seconds of the device for a fixed few reqs: the median of some."""
        times = []
        for _ in range(PROBES):
            trace = self.record(fresh(seed=1234, **self._probe))
            times.append(sum(step.end - step.start for step in trace.steps) / 1e9)
        return statistics.median(times)


@dataclass(frozen=True, slots=True)
class Part:
    """What came of some reqs."""

    ttft: NDArray[np.float64]
    gaps: NDArray[np.float64]
    tokens: int
    seconds: float


@dataclass(slots=True)
class Recorded:
    """A run made: its parts, and the probe before, between and after them."""

    requests: list[Requests]
    traces: list[Trace]
    starts: list[int]
    probes: list[float]

    @classmethod
    def make(cls, engine: Engine, requests: Requests) -> Recorded:
        run = cls(list(parts_of(requests)), [], [], [engine.probe()])
        for part in run.requests:
            run.traces.append(engine.record(part))
            run.starts.append(engine.start)
            run.probes.append(engine.probe())
        return run

    @property
    def steps(self) -> list[Step]:
        return [step for trace in self.traces for step in trace.steps]

    @property
    def probe(self) -> float:
        return statistics.fmean(self.probes)

    def figures(self) -> dict[str, float]:
        made = []
        for requests, trace, start in zip(self.requests, self.traces, self.starts, strict=True):
            reqs = [trace.reqs[key] for key in sorted(trace.reqs)]
            due = requests.times + start
            ttft = np.array([r.first_token_time for r in reqs]) - due
            made.append(
                Part(
                    ttft / 1e9,
                    np.array(inter_token_latencies(trace)),
                    sum(r.num_outputs for r in reqs),
                    (max(r.finish_time for r in reqs) - int(due[0])) / 1e9,
                )
            )
        return figures(made)


def figures(parts: list[Part]) -> dict[str, float]:
    ttft = np.concatenate([part.ttft for part in parts])
    gaps = np.concatenate([part.gaps for part in parts])
    seconds = sum(part.seconds for part in parts)
    return {
        "ttft_mean": float(ttft.mean()),
        "ttft_p99": float(np.percentile(ttft, 99, method="inverted_cdf")),
        "itl_mean": float(gaps.mean()),
        "itl_p99": float(np.percentile(gaps, 99, method="inverted_cdf")),
        "throughput": sum(part.tokens for part in parts) / seconds,
        "seconds": seconds,
    }


def predicted(engine: Engine, cost: Any, requests: list[Requests]) -> dict[str, float]:
    found = []
    for seed in range(SIMULATIONS):
        parts = []
        for number, part in enumerate(requests):
            run = simulate(setting_of(engine, cost, PARTS * seed + number), part)
            middles, counts = run.gaps
            gaps = np.repeat(middles, counts) / 1e9
            parts.append(Part(run.ttft, gaps, int(part.answer_lens.sum()), run.seconds))
        found.append(figures(parts))
    return {name: statistics.fmean(each[name] for each in found) for name in found[0]}


_used = 0


def fresh(**made: Any) -> Requests:
    """Made-up requests whose prompts no run before has seen: the prefix cache outlives a run."""
    global _used
    requests = synthetic(**made)
    count = len(requests)
    ids = _used + np.arange(count, dtype=np.int64)
    _used += count
    return replace(requests, hash_ids=ids, hash_indptr=np.arange(count + 1), hash_block=1 << 16)


def parts_of(requests: Requests) -> Iterator[Requests]:
    """PARTS in turn, each from its own time 0 on."""
    for some in np.array_split(np.arange(len(requests)), PARTS):
        first, end = int(some[0]), int(some[-1]) + 1
        yield replace(
            requests,
            **{
                name: getattr(requests, name)[first:end]
                for name in ("prompt_lens", "answer_lens", "max_tokens", "hash_ids")
            },
            times=requests.times[first:end] - requests.times[first],
            hash_indptr=np.arange(end - first + 1),
        )


def setting_of(engine: Engine, cost: Any, seed: int) -> Setting:
    c = engine.loop.config
    names = ("num_blocks", "block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len")
    scheduler = {name: getattr(c, name) for name in names}
    return Setting(cost, scheduler, overlap=c.overlap_depth > 0, seed=seed)


def rescaled(cost: Any, factor: float) -> Any:
    """The same model of a machine that takes `factor` times as long."""
    keep = {"noise", "noise_of_size", "window", "windowed_share"}
    coefficients = cost_dict(cost)
    launch = [[ns * factor for ns in size] for size in coefficients.pop("launch_of_size")]
    scaled = {name: v if name in keep else v * factor for name, v in coefficients.items()}
    return type(cost)(**scaled, launch_of_size=launch)


def capacity(engine: Engine, cost: Any, requests: Requests) -> float:
    """Reqs a second that the model answers when all are there from the start."""
    at_once = replace(requests, times=requests.times * 0)
    return len(requests) / simulate(setting_of(engine, cost, 0), at_once).seconds


def run_pair(engine: Engine, device: str, number: int, seconds: float, out: Path) -> None:
    (load_a, prompts_a, answers_a), (load_b, prompts_b, answers_b) = ON[device]["pairs"][number]
    made_a = {"prompt_len": prompts_a, "output_len": answers_a, "seed": 10 * number + 1}
    made_b = {"prompt_len": prompts_b, "output_len": answers_b, "seed": 10 * number + 2}

    def at(load: float, cost: Any, made: dict[str, Any]) -> dict[str, Any]:
        rate = load * capacity(engine, cost, synthetic(num_reqs=500, **made))
        return {"num_reqs": max(1000, int(rate * seconds)), "rate": rate, **made}

    # How fast is it at all? A burst says; it also warms everything up.
    engine.feed(fresh(num_reqs=64, **{**made_a, "seed": 998}))
    rough = fit(engine.record(fresh(num_reqs=300, **{**made_a, "seed": 999})).steps).cost
    run_a = Recorded.make(engine, fresh(**(made_a := at(load_a, rough, made_a))))
    fitted = fit(run_a.steps)
    # As fast as it was last: what the rate of B goes by, and what is written for.
    speed = run_a.probes[-1] / run_a.probe
    made_b = at(load_b, rescaled(fitted.cost, speed), made_b)
    b = fresh(**made_b)
    speeds = {s: rescaled(fitted.cost, speed * s) for s in SPEEDS}
    record: dict[str, Any] = {
        "pair": number,
        "device": _device(device),
        "model": Path(ON[device]["engine"]["model"]).name,
        "a": {"load": load_a, **made_a, "probes": run_a.probes, "measured": run_a.figures()},
        "b": {"load": load_b, **made_b},
        "fit": {"num_steps": fitted.num_steps, "mean_error": fitted.mean_error, "cost_model": cost_dict(fitted.cost)},
        "predicted_at_speed": {s: predicted(engine, cost, list(parts_of(b))) for s, cost in speeds.items()},
        "predicted_at": time.strftime("%Y-%m-%d %H:%M:%S"),
    }  # fmt: skip
    path = out / f"pair{number}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")  # the prediction stands before the run begins

    run_b = Recorded.make(engine, b)
    record["b"]["probes"] = run_b.probes
    record["b"]["speed"] = run_b.probe / run_a.probe
    record["b"]["load"] = load_b * record["b"]["speed"] / speed
    record["b"]["predicted"] = predicted(engine, rescaled(fitted.cost, record["b"]["speed"]), run_b.requests)
    record["b"]["measured"] = run_b.figures()
    for name, run in (("a", run_a), ("b", run_b)):
        record[name]["steps"] = len(run.steps)
        record[name]["differs"] = first_difference(run)
        for part, trace in enumerate(run.traces):
            trace.save(out / f"pair{number}{name}{part}.jsonl.gz")
    path.write_text(json.dumps(record, indent=1) + "\n")
    for name in FIGURES:
        p, m = record["b"]["predicted"][name], record["b"]["measured"][name]
        print(f"pair {number} {name}: predicted {p:.5g}, measured {m:.5g}, {100 * (p / m - 1):+.1f}%")
    print(
        f"  speed {record['b']['speed']:.3f}, load {record['b']['load']:.2f}; batches differ at {record['a']['differs']}, "
        f"{record['b']['differs']}", flush=True,
    )  # fmt: skip


def first_difference(run: Recorded) -> str | None:
    """Where the batches of a repetition in virtual time differ from the recorded ones."""
    for number, (trace, requests) in enumerate(zip(run.traces, run.requests, strict=True)):
        if (place := replay(trace, requests).first_difference) is not None:
            return f"step {place} of part {number}"
    return None


def report(folders: list[Path]) -> None:
    """A table for each folder of pairs, named after its device; the other devices' stay."""
    lines = [
        "# The simulator's predictions beside what was then measured",
        "",
        "`python benchmarks/sim_fidelity.py`; its head says what a pair is. Each cell: predicted / measured (error). Times in ms, throughput in",
        "output tokens a second. Speed: what the probe took during B over during A. The last column: the recorded step times of runs A and B",
        "repeated in virtual time, batches compared row by row.",
        "",
    ]
    kept = RESULTS / "sim_fidelity.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for folder in folders:
        records = [json.loads(path.read_text()) for path in sorted(folder.glob("pair*.json"))]
        records = [r for r in records if "measured" in r["b"]]
        for record in records:
            for name in ("noise", "noise_of_size", "launch_of_size"):
                record["fit"]["cost_model"].pop(name, None)
        found[folder.name] = {"pairs": records}
    for kind in found.values():
        records = kind["pairs"]
        errors = {n: [r["b"]["predicted"][n] / r["b"]["measured"][n] - 1 for r in records] for n in FIGURES}
        medians = {name: statistics.median(abs(e) for e in values) for name, values in errors.items()}
        kind["median_errors"] = medians
        lines += _table(records, errors, medians)
    (RESULTS / "sim_fidelity.md").write_text("\n".join(lines))
    kept.write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(lines))


def _table(
    records: list[dict[str, Any]], errors: dict[str, list[float]], medians: dict[str, float]
) -> list[str]:
    first = records[0]
    lines = [
        f"## {first['model']} on {first['device']}",
        "",
        f"{first['predicted_at'][:10]}, {min(r[x]['num_reqs'] for r in records for x in 'ab'):,} to "
        f"{max(r[x]['num_reqs'] for r in records for x in 'ab'):,} reqs a run.{first.get('note', '')}",
        "",
        "| pair | load A, B | " + " | ".join(FIGURES) + " | speed | batches repeated, A and B |",
        "| --- | --- |" + " --- |" * (len(FIGURES) + 2),
    ]
    for place, r in enumerate(records):
        cells = [
            f"{_shown(name, r['b']['predicted'][name])} / {_shown(name, r['b']['measured'][name])} ({100 * errors[name][place]:+.1f}%)"
            for name in FIGURES
        ]
        same = ", ".join(
            f"all {r[x]['steps']:,} the same" if r[x]["differs"] is None else f"differ at {r[x]['differs']}"
            for x in "ab"
        )
        loads = f"{r['a']['load']}, {r['b']['load']:.2f}"
        lines.append(f"| {r['pair']} | {loads} | {' | '.join(cells)} | {r['b']['speed']:.3f} | {same} |")
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
    parser.add_argument("--pair", type=int, choices=range(1, 6), nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--device", choices=tuple(ON), default="cpu")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--out", type=Path, help="(default: build/fidelity/DEVICE)")
    parser.add_argument("--report", type=Path, nargs="+")
    args = parser.parse_args()
    if args.report is not None:
        report(args.report)
        return
    out = args.out or Path("build/fidelity") / args.device
    out.mkdir(parents=True, exist_ok=True)
    engine = Engine(args.device)
    for number in args.pair:
        run_pair(engine, args.device, number, args.seconds, out)


if __name__ == "__main__":
    main()
