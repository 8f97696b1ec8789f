"""The engine end to end on one GPU: workloads A to D of workloads.json, random weights, bf16, token ids in and out.

    python benchmarks/gpu/e2e.py --model qwen3-0.6b [--workloads ACBD] [--budget 240] [--out FILE] [--eager]

A and B: offline throughput. C: one request, time to first token and time a token. D: time of a decode step against batch.
Lengths and first token ids are those that the peers' figures were measured with; ids are drawn afresh for each repeat, so
a prefix cache never helps. Also reported: seconds from the call to ready and to the first token, and, of D's last
batch, the host's share of a step from the loop's trace. Writes JSON, prints a line a result.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WORKLOADS: dict[str, Any] = json.loads((HERE / "workloads.json").read_text())


class Runner:
    """An engine, driven with token ids."""

    def __init__(self, args: argparse.Namespace) -> None:
        began = time.perf_counter()
        from stoker.config import EngineConfig
        from stoker.engine.engine import Engine
        from stoker.sampling_params import SamplingParams

        imported = time.perf_counter()
        self.params = SamplingParams
        self.engine = Engine(
            EngineConfig(
                str(HERE / "models" / args.model),
                load_format="dummy",
                dtype="bfloat16",
                device=args.device,
                max_num_seqs=args.max_num_seqs,
                max_model_len=4096,
                enforce_eager=args.eager,
                enable_prefix_caching=True,
                num_kv_blocks=args.num_kv_blocks,
                overlap=not args.no_overlap,
                quantization=args.quantization,
                kv_cache_dtype=args.kv_cache_dtype,
                swap_space=args.swap_space,
                admission=args.admission,
                preemption=args.preemption,
            )
        )
        self.import_seconds = imported - began
        self.ready_seconds = time.perf_counter() - imported
        self.next_rid = 0
        self.stream = args.stream

    def generate(self, prompts: list[list[int]], counts: list[int], temperature: float) -> list[int]:
        """Tokens that each prompt got."""
        first = self.next_rid
        for prompt, count in zip(prompts, counts, strict=True):
            params = self.params(temperature=temperature, max_tokens=count, ignore_eos=True)
            self.engine.add_request(str(self.next_rid), prompt, params, stream=self.stream)
            self.next_rid += 1
        produced = [0] * len(prompts)
        while self.engine.has_unfinished():
            for output in self.engine.step():
                if output.finish_reason == "error":
                    raise RuntimeError(output.message)
                produced[int(output.rid) - first] += len(output.new_token_ids)
        return produced

    def timed(self, prompts: list[list[int]], counts: list[int], temperature: float) -> float:
        """Seconds; RuntimeError if any request got more or fewer tokens than it asked for."""
        began = time.perf_counter()
        produced = self.generate(prompts, counts, temperature)
        seconds = time.perf_counter() - began
        if produced != counts:
            raise RuntimeError("tokens produced differ from those asked for")
        return seconds


def requests(workload: dict[str, Any], repeat: int) -> tuple[list[list[int]], list[int]]:
    """All prompts, then all output lengths, from one generator; later repeats draw other ids of the same lengths."""
    rng = random.Random(workload["seed"])
    low, high = workload["prompt"]
    prompts = [
        [rng.randint(0, 10000) for _ in range(rng.randint(low, high))] for _ in range(workload["requests"])
    ]
    counts = [rng.randint(*workload["output"]) for _ in range(workload["requests"])]
    if repeat:
        other = random.Random(1000 * repeat + workload["seed"])
        prompts = [[other.randint(0, 10000) for _ in prompt] for prompt in prompts]
    return prompts, counts


def random_prompts(count: int, length: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randint(0, 10000) for _ in range(length)] for _ in range(count)]


def throughput(runner: Runner, workload: dict[str, Any]) -> list[dict[str, float]]:
    """A and B."""
    results = []
    for repeat in range(workload["repeats"]):
        prompts, counts = requests(workload, repeat)
        seconds = runner.timed(prompts, counts, workload["temperature"])
        results.append(
            {"s": seconds, "out_tok_s": sum(counts) / seconds, "prompt_tokens": sum(map(len, prompts))}
        )
    return results


def single(runner: Runner, workload: dict[str, Any]) -> dict[str, float]:
    """C: medians over the repeats."""
    repeats = []
    for repeat in range(workload["repeats"]):
        prompts, counts = requests(workload, repeat + 1)
        first = runner.timed(random_prompts(1, 1024, 500 + repeat), [1], workload["temperature"])
        whole = runner.timed(prompts, counts, workload["temperature"])
        repeats.append({"ttft_ms": first * 1e3, "ms_per_token": (whole - first) / (counts[0] - 1) * 1e3})
    return {key: statistics.median(r[key] for r in repeats) for key in repeats[0]}


def step_times(
    runner: Runner, workload: dict[str, Any], batches: list[int] | None = None
) -> dict[str, dict[str, float]]:
    """D: the better of two for each batch size, with medians of the loop's trace over its decode steps."""
    results = {}
    for batch in batches or workload["batches"]:
        best: dict[str, float] = {}
        for repeat in range(2):
            length, output, heat = workload["prompt"], workload["output"], workload["temperature"]
            first = runner.timed(random_prompts(batch, length, 700 + 10 * batch + repeat), [1] * batch, heat)
            whole = runner.timed(
                random_prompts(batch, length, 900 + 10 * batch + repeat), [output] * batch, heat
            )
            milliseconds = (whole - first) / (output - 1) * 1e3
            if not best or milliseconds < best["ms_per_step"]:
                best = {"ms_per_step": milliseconds, "prefill_ms": first * 1e3, **traced(runner)}
        results[str(batch)] = best
    return results


def gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name()


def traced(runner: Runner) -> dict[str, float]:
    """Medians in microseconds over the newest decode steps."""
    trace = [t for t in runner.engine.loop.trace(100) if t["num_prefill_rows"] == 0 and t["num_tokens"]]
    names = ("schedule_ns", "launch_ns", "collect_ns", "commit_ns", "device_ns")
    return {
        name.replace("_ns", "_us"): statistics.median(t[name] for t in trace) / 1e3 for name in names if trace
    }


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """What `Runner` reads."""
    parser.add_argument("--model", default="qwen3-0.6b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--max-num-seqs", type=int, default=None)
    parser.add_argument("--num-kv-blocks", type=int, default=None)
    parser.add_argument("--swap-space", type=float, default=0.0)
    parser.add_argument("--admission", default="learned")
    parser.add_argument("--preemption", default="auto")
    parser.add_argument("--quantization", default=None)
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--no-overlap", action="store_true")
    parser.add_argument(
        "--stream", action="store_true", help="take every token as it comes, not with the end"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_engine_arguments(parser)
    parser.add_argument("--workloads", default="ACBD")
    parser.add_argument("--batches", type=int, nargs="+", default=None, help="of D")
    parser.add_argument("--budget", type=float, default=1e9, help="seconds after which no workload is begun")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    began = time.perf_counter()
    runner = Runner(args)
    results: dict[str, Any] = {
        "command": "python " + " ".join(sys.argv),
        "gpu": gpu_name(),
        "graph_buckets": runner.engine.runner.graphs[1].buckets,
        "max_num_seqs": runner.engine.max_num_seqs,
        "ledger": runner.engine.ledger,
        "import_seconds": runner.import_seconds,
        "ready_seconds": runner.ready_seconds,
    }
    results["first_token_seconds"] = runner.ready_seconds + runner.timed([[1] * 64], [1], 0.6)
    runner.timed(random_prompts(64, 300, 98), [32] * 64, 0.6)
    print(json.dumps(results), flush=True)
    measures = {
        "A": throughput,
        "B": throughput,
        "C": single,
        "D": functools.partial(step_times, batches=args.batches),
    }
    for name in args.workloads:
        if time.perf_counter() - began > args.budget:
            results[name] = "skipped: out of time"
            continue
        results[name] = measures[name](runner, WORKLOADS[name])
        print(name, json.dumps(results[name]), flush=True)
        if args.out:
            args.out.write_text(json.dumps(results, indent=1) + "\n")
    runner.engine.close()


if __name__ == "__main__":
    main()
