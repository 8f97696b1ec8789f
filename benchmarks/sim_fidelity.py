"""How well the simulator predicts: a cost model fitted to one recorded run of the demo model on this machine's CPU, and another run
with another rate and other lengths, predicted before it is made.

    python benchmarks/sim_fidelity.py                               # pairs 1 to 5, a minute to two each; --pair 3: that one alone
    python benchmarks/sim_fidelity.py --report build/fidelity/cpu   # benchmarks/results/sim_fidelity.{json,md}
    python benchmarks/sim_fidelity.py --device cuda --seconds 10    # a 0.6B model with random weights on a GPU

A pair: run A is recorded and a cost model fitted to it, what it says of run B is written to a file, run B is made. A run has at least
1,000 reqs and lasts about `--seconds` (20) or longer, in ten parts. The probe (fidelity_run.py) is timed whenever a run falls idle, or
where it never does before and after each part; a part's speed is what its probes took over A's in the mean, for steps with a chunk and for those without, drawn
to the run's mean as far as single probes scatter. The fit takes the speed of A's parts out, the prediction puts that of B's parts in:
that is all it takes from run B. What is written before stands: the cost model, the reqs and their times, and the figures for a few
speeds. A prediction is the mean of ten simulations that differ in their noise.

Reqs come at planned times (Poisson), and time to first token counts from there. Load: the rate of arrivals over the rate at which
the fitted model answers the same reqs when they are all there. The recorded steps of both runs are then repeated in virtual time, and
their batches compared row by row. On a CPU one thread computes: the loop has a core of its own. What of the error is the model's own is
told beside: each run as predicted by its own fit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fidelity_run import PARTS, Engine, Part, RecordedPart, figures, fresh, parts_of

from stoker.sim import Requests, Setting, simulate, synthetic
from stoker.sim.cost import cost_dict
from stoker.sim.fit import Fit, fit
from stoker.sim.replay import replay

RESULTS = Path(__file__).parent / "results"
# What runs where, and (rate as a share of capacity, prompt lengths, answer lengths) of runs A and B of each pair.
ON: dict[str, dict[str, Any]] = {
    "cpu": {
        "engine": {"model": "stoker-demo", "max_num_seqs": 32, "max_num_batched_tokens": 256, "num_kv_blocks": 2049, "max_model_len": 1024},
        "probe": {"num_reqs": 1, "prompt_len": "8", "output_len": "2"},
        "probes_between": 0,
        "pairs": {
            1: ((0.4, "loguniform:16:128", "uniform:2:12"), (0.5, "loguniform:8:64", "uniform:2:16")),
            2: ((0.4, "loguniform:8:160", "uniform:2:16"), (0.3, "loguniform:32:160", "uniform:2:8")),
            3: ((0.5, "uniform:16:96", "uniform:2:12"), (0.3, "loguniform:16:128", "uniform:4:12")),
            4: ((0.45, "loguniform:16:160", "uniform:2:16"), (0.4, "loguniform:8:64", "exponential:7:30")),
            5: ((0.4, "loguniform:16:128", "exponential:6:30"), (0.5, "uniform:16:96", "uniform:2:12")),
        },
    },
    "cuda": {
        "engine": {
            "model": str(Path(__file__).parent / "gpu/models/qwen3-0.6b"), "load_format": "dummy", "dtype": "bfloat16",
            "max_num_seqs": 256, "max_num_batched_tokens": 2048, "num_kv_blocks": 16385, "max_model_len": 4096,
        },
        "probe": {"num_reqs": 16, "prompt_len": "uniform:64:1024", "output_len": "uniform:16:64"},
        "probes_between": 1,
        "pairs": {
            1: ((0.75, "loguniform:32:2048", "loguniform:16:256"), (0.7, "loguniform:32:512", "uniform:16:256")),
            2: ((0.75, "loguniform:16:2048", "uniform:16:256"), (0.6, "loguniform:128:2048", "loguniform:16:128")),
            3: ((0.75, "uniform:64:1024", "uniform:16:128"), (0.4, "loguniform:32:2048", "loguniform:16:256")),
            4: ((0.7, "loguniform:128:2048", "loguniform:16:128"), (0.75, "loguniform:32:512", "exponential:100:400")),
            5: ((0.7, "loguniform:32:2048", "exponential:100:400"), (0.65, "uniform:64:1024", "uniform:16:128")),
        },
    },
}  # fmt: skip
FIGURES = ("ttft_mean", "itl_mean", "throughput", "ttft_p99", "itl_p99")
LIMITS = {"ttft_mean": 0.05, "itl_mean": 0.05, "throughput": 0.05, "ttft_p99": 0.10, "itl_p99": 0.10}
SIMULATIONS = 10
SPEEDS = (0.9, 1.0, 1.1)

Speed = tuple[float, float]
"""How many times as long steps with a chunk take, and steps without."""


def predicted(
    engine: Engine, costs: list[Any], parts: list[Requests], simulations: int = SIMULATIONS
) -> dict[str, float]:
    """By a cost model for each part."""
    found = []
    for seed in range(simulations):
        made = []
        for number, (cost, part) in enumerate(zip(costs, parts, strict=True)):
            run = simulate(setting_of(engine, cost, PARTS * seed + number), part)
            middles, counts = run.gaps
            made.append(
                Part(run.ttft, np.repeat(middles, counts) / 1e9, int(part.answer_lens.sum()), run.seconds)
            )
        found.append(figures(made))
    return {name: statistics.fmean(each[name] for each in found) for name in found[0]}


def setting_of(engine: Engine, cost: Any, seed: int) -> Setting:
    c = engine.loop.config
    names = ("num_blocks", "block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len")
    return Setting(cost, {name: getattr(c, name) for name in names}, overlap=c.overlap_depth > 0, seed=seed)


def mean_probe(run: list[RecordedPart]) -> Speed:
    """Over its parts, each for as much as the others."""
    chunks, decodes = zip(*(part.probe for part in run if len(part.probes) > 1), strict=True)
    return statistics.fmean(chunks), statistics.fmean(decodes)


def speeds_of(run: list[RecordedPart], reference: Speed) -> list[Speed]:
    """Of each part: the mean of its probes over the reference's, drawn to the run's mean by as much as the probes of one part
    scatter more than parts do."""
    chunks, decodes = (
        _drawn([[getattr(probe, kind) / of for probe in part.probes] for part in run])
        for kind, of in zip(("chunks", "decodes"), reference, strict=True)
    )
    return list(zip(chunks, decodes, strict=True))


def _drawn(parts: list[list[float]]) -> list[float]:
    """A part without two probes has the run's mean."""
    told = [part for part in parts if len(part) > 1]
    means = [statistics.fmean(part) for part in told]
    errors = [statistics.variance(part) / len(part) for part in told]
    middle = statistics.fmean(means)
    real = max(statistics.variance(means) - statistics.fmean(errors), 0.0)
    drawn = iter(
        middle + (mean - middle) * real / max(real + error, 1e-12)
        for mean, error in zip(means, errors, strict=True)
    )
    return [next(drawn) if len(part) > 1 else middle for part in parts]


def rescaled(cost: Any, speed: Speed) -> Any:
    """The same model of a machine that takes so many times as long."""
    chunks, decodes = speed
    names = (
        "step",
        "from_idle",
        "row",
        "chunk_row",
        "sampled",
        "weights",
        "token",
        "chunk_token",
        "decode_kv",
        "chunk_kv",
        "score",
    )
    scaled = cost_dict(cost)
    for name in names:
        scaled[name] *= chunks
    for name in ("decodes_step", "decodes_row", "decodes_kv", "host_before", "host_after"):
        scaled[name] *= decodes
    # Sizes with a chunk and without take turns.
    scaled["beyond_of_size"] = [ns * speed[1 - size % 2] for size, ns in enumerate(scaled["beyond_of_size"])]
    scaled["launch_of_size"] = [[ns * decodes for ns in size] for size in scaled["launch_of_size"]]
    return type(cost)(**scaled)


def fitted(run: list[RecordedPart]) -> Fit:
    """To a run, as if its machine had kept the mean speed of its probes all along."""
    slowness = [
        speed[0 if step.has_chunk else 1]
        for part, speed in zip(run, speeds_of(run, mean_probe(run)), strict=True)
        for step in part.trace.steps
    ]
    return fit([step for part in run for step in part.trace.steps], slowness=slowness)


def capacity(engine: Engine, cost: Any, requests: Requests) -> float:
    """Reqs a second that the model answers when all are there from the start."""
    at_once = replace(requests, times=requests.times * 0)
    return len(requests) / simulate(setting_of(engine, cost, 0), at_once).seconds


def run_pair(engine: Engine, device: str, number: int, seconds: float, out: Path) -> None:
    (load_a, prompts_a, answers_a), (load_b, prompts_b, answers_b) = ON[device]["pairs"][number]
    lens_a = {"prompt_len": prompts_a, "output_len": answers_a, "seed": 10 * number + 1}
    lens_b = {"prompt_len": prompts_b, "output_len": answers_b, "seed": 10 * number + 2}

    def at(load: float, cost: Any, lens: dict[str, Any]) -> dict[str, Any]:
        rate = load * capacity(engine, cost, synthetic(num_reqs=500, **lens))
        return {"num_reqs": max(1000, int(rate * seconds)), "rate": rate, **lens}

    # How fast is it at all? A burst says; it also warms everything up.
    engine.record(fresh(synthetic(num_reqs=64, **{**lens_a, "seed": 998})))
    burst = engine.record(fresh(synthetic(num_reqs=300, **{**lens_a, "seed": 999})))
    rough = fit(burst.trace.steps).cost
    made_a = at(load_a, rough, lens_a)
    # What only small steps need, a kernel's first launch say, is over when this is.
    engine.record(fresh(synthetic(**{**made_a, "num_reqs": 150, "seed": 997})))
    run_a = engine.run(fresh(synthetic(**made_a)))
    found, reference = fitted(run_a), mean_probe(run_a)
    # As fast as it was last: what the rate of B goes by, and what is written for.
    last = speeds_of(run_a, reference)[-1]
    made_b = at(load_b, rescaled(found.cost, last), lens_b)
    b = fresh(synthetic(**made_b))
    parts = list(parts_of(b))
    record: dict[str, Any] = {
        "pair": number,
        "device": _device(device),
        "model": Path(ON[device]["engine"]["model"]).name,
        "a": {"load": load_a, **made_a, **_written(run_a, reference)},
        "b": {"load": load_b, **made_b},
        "fit": {
            "num_steps": found.num_steps,
            "mean_error": found.mean_error,
            "cost_model": cost_dict(found.cost),
        },
        "predicted_at_speed": {
            s: predicted(engine, [rescaled(found.cost, (last[0] * s, last[1] * s))] * PARTS, parts, 3)
            for s in SPEEDS
        },
        "predicted_at": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    path = out / f"pair{number}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")  # the prediction stands before the run begins

    run_b = engine.run(b)
    costs = [rescaled(found.cost, speed) for speed in speeds_of(run_b, reference)]
    mean_speed = [m / r for m, r in zip(mean_probe(run_b), reference, strict=True)]
    record["b"] |= {
        **_written(run_b, reference),
        "speed": mean_speed,
        "load": load_b * mean_speed[0] / last[0],
    }
    record["b"]["predicted"] = predicted(engine, costs, parts)
    # What of the error is the model's own, and what the change from A to B.
    own, own_reference = fitted(run_b), mean_probe(run_b)
    own_costs = [rescaled(own.cost, speed) for speed in speeds_of(run_b, own_reference)]
    record["b"]["by_its_own_fit"] = predicted(engine, own_costs, parts)
    own_costs = [rescaled(found.cost, speed) for speed in speeds_of(run_a, reference)]
    record["a"]["by_its_own_fit"] = predicted(engine, own_costs, [part.requests for part in run_a])
    for name, run in (("a", run_a), ("b", run_b)):
        record[name]["steps"] = sum(len(part.trace.steps) for part in run)
        record[name]["differs"] = first_difference(run)
        for place, part in enumerate(run):
            part.trace.save(out / f"pair{number}{name}{place}.jsonl.gz")
    path.write_text(json.dumps(record, indent=1) + "\n")
    for name in FIGURES:
        p, m = record["b"]["predicted"][name], record["b"]["measured"][name]
        errors = [record[x]["by_its_own_fit"][name] / record[x]["measured"][name] - 1 for x in "ab"]
        print(
            f"pair {number} {name}: predicted {p:.5g}, measured {m:.5g}, {100 * (p / m - 1):+.1f}%; "
            f"A and B by their own fits {100 * errors[0]:+.1f}%, {100 * errors[1]:+.1f}%"
        )
    print(
        f"  speed {mean_speed[0]:.3f}, {mean_speed[1]:.3f}; load {record['b']['load']:.2f}; batches differ at "
        f"{record['a']['differs']}, {record['b']['differs']}", flush=True,
    )  # fmt: skip


def _written(run: list[RecordedPart], reference: Speed) -> dict[str, Any]:
    return {
        "measured": figures([part.measured() for part in run]),
        "probes": sum(len(part.probes) for part in run),
        "probe_ms": [ns / 1e6 for ns in mean_probe(run)],
        "speeds": [[round(s, 4) for s in speed] for speed in speeds_of(run, reference)],
        "starts": [part.start for part in run],
    }


def first_difference(run: list[RecordedPart]) -> str | None:
    """Where the batches of a repetition in virtual time differ from the recorded ones."""
    for number, part in enumerate(run):
        if (place := replay(part.trace, part.requests).first_difference) is not None:
            return f"step {place} of part {number}"
    return None


def report(folders: list[Path]) -> None:
    """A table for each folder of pairs, named after its device; the other devices' stay."""
    lines = [
        "# The simulator's predictions beside what was then measured",
        "",
        "`python benchmarks/sim_fidelity.py`; its head says what a pair is. Each cell: predicted / measured (error). Times in ms, throughput in",
        "output tokens a second. Speed: what the probe took during B over during A, its steps with a chunk and those without. The last column: the",
        "recorded step times of runs A and B repeated in virtual time, batches compared row by row.",
        "",
    ]
    kept = RESULTS / "sim_fidelity.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for folder in folders:
        records = [json.loads(path.read_text()) for path in sorted(folder.glob("pair*.json"))]
        records = [r for r in records if "measured" in r["b"]]
        for record in records:
            for name in ("beyond_of_size", "noise", "noise_of_size", "launch_of_size"):
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
        lines.append(
            f"| {r['pair']} | {loads} | {' | '.join(cells)} | {r['b']['speed'][0]:.3f}, {r['b']['speed'][1]:.3f} | {same} |"
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
    on = ON[args.device]
    engine = Engine(args.device, on["engine"], on["probe"], on["probes_between"])
    for number in args.pair:
        run_pair(engine, args.device, number, args.seconds, out)


if __name__ == "__main__":
    main()
