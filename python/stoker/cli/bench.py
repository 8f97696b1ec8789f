"""`stoker bench throughput | latency | phases | batching`: what this machine does with a model, offline, on random token
ids; and `stoker bench serve`: load for a server."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from stoker.cli import bench_serve
from stoker.cli.options import add_engine_arguments, engine_options

if TYPE_CHECKING:
    from stoker.llm import LLM
    from stoker.sampling_params import SamplingParams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two measurements and their sizes."""
    parser.add_argument(
        "what",
        choices=("throughput", "latency", "phases", "batching", "serve", "kernels"),
        help="many requests at once; one batch again and again; prefill against decode; the batching modes; load for a server; "
        "a GPU's attention kernels beside their floors",
    )
    parser.add_argument(
        "-m", "--model", default="stoker-demo", help="checkpoint folder or hub id (default: stoker-demo)"
    )
    parser.add_argument(
        "--input-len", type=int, default=128, metavar="N", help="tokens of a prompt (default: 128)"
    )
    parser.add_argument(
        "--output-len", type=int, default=64, metavar="N", help="tokens of an answer (default: 64)"
    )
    parser.add_argument(
        "--num-prompts", type=int, default=128, metavar="N", help="throughput: requests (default: 128)"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        nargs="+",
        default=[1, 8, 32],
        metavar="N",
        help="latency: requests at once (default: 1 8 32)",
    )
    parser.add_argument(
        "--repeat", type=int, default=5, metavar="N", help="latency: times each batch is run (default: 5)"
    )
    parser.add_argument(
        "--heads", default="32/8", metavar="Q/KV", help="kernels: query heads/KV heads (default: 32/8)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random prompts")
    parser.add_argument(
        "--json", metavar="PATH", help='write the figures there too ("-": only JSON, on stdout)'
    )
    bench_serve.add_arguments(parser)
    add_engine_arguments(parser, without=("seed",))


def run(args: argparse.Namespace) -> int:
    """Prints the figures, with what they were measured on."""
    for name in ("input_len", "output_len", "num_prompts", "repeat"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least 1")
    if min(args.batch_size) < 1:
        raise ValueError(f"--batch-size {min(args.batch_size)}: must be at least 1")
    if args.what == "serve":
        return _report({"what": args.what, **_asked(args), **bench_serve.measure(args)}, args)
    if args.what == "kernels":
        from stoker.engine import kernel_bench

        kv_dtype = engine_options(args).get("kv_cache_dtype", "auto")
        return _report(
            {
                "what": args.what,
                **_asked(args),
                "heads": args.heads,
                "results": list(kernel_bench.measure(args.heads, kv_dtype)),
                "note": "Floors by the bandwidth and the bf16 products measured here; rows are (query tokens, KV).",
            },
            args,
        )
    if args.what == "batching":
        from stoker.cli import bench_batching

        return _report(
            {
                "what": args.what,
                **_asked(args),
                "results": bench_batching.measure(args),
                "note": bench_batching.EXPLAINS,
            },
            args,
        )
    from stoker.cli import bench_phases
    from stoker.llm import LLM
    from stoker.sampling_params import SamplingParams

    with LLM(args.model, skip_tokenizer_init=True, **engine_options(args)) as llm:
        needed = args.input_len + args.output_len
        if needed > llm.engine.max_model_len:
            raise ValueError(
                f"--input-len + --output-len is {needed}; this model allows {llm.engine.max_model_len}"
            )
        params = SamplingParams(temperature=0.0, max_tokens=args.output_len, ignore_eos=True)
        prompts = _Prompts(llm, args.input_len, args.seed)
        llm.generate(prompts.take(4), params, use_tqdm=False)  # the first steps of a process are slow
        figures = {"what": args.what, **_setting(llm, args)}
        if args.what == "phases":
            figures["results"] = bench_phases.measure(llm, prompts.take, params, args)
            figures["note"] = bench_phases.EXPLAINS
        else:
            measure = _throughput if args.what == "throughput" else _latency
            figures["results"] = measure(llm, prompts, params, args)
    return _report(figures, args)


def _report(figures: dict[str, Any], args: argparse.Namespace) -> int:
    text = json.dumps(figures, indent=2)
    if args.json == "-":
        print(text)
    else:
        _show(figures)
        if args.json is not None:
            Path(args.json).write_text(text + "\n", encoding="utf-8")
    return 0


class _Prompts:
    """Random prompts, all different, so that the prefix cache finds nothing."""

    def __init__(self, llm: LLM, length: int, seed: int) -> None:
        self._vocab_size, self._length, self._rng = llm.engine.model_config.vocab_size, length, Random(seed)

    def take(self, count: int) -> list[list[int]]:
        return [[self._rng.randrange(self._vocab_size) for _ in range(self._length)] for _ in range(count)]


def _throughput(
    llm: LLM, prompts: _Prompts, params: SamplingParams, args: argparse.Namespace
) -> list[dict[str, float]]:
    batch = prompts.take(args.num_prompts)
    start = time.perf_counter()
    outputs = llm.generate(batch, params, use_tqdm=args.json != "-")
    seconds = time.perf_counter() - start
    out = sum(len(output.outputs[0].token_ids) for output in outputs)
    tokens_in = sum(len(prompt) for prompt in batch)
    return [
        {
            "num_prompts": len(batch),
            "seconds": seconds,
            "requests_per_second": len(batch) / seconds,
            "output_tokens_per_second": out / seconds,
            "total_tokens_per_second": (out + tokens_in) / seconds,
            "num_preemptions": sum(output.metrics.num_preemptions for output in outputs),
        }
    ]


def _latency(
    llm: LLM, prompts: _Prompts, params: SamplingParams, args: argparse.Namespace
) -> list[dict[str, float]]:
    results = []
    for size in args.batch_size:
        times, firsts, gaps = [], [], []
        for _ in range(args.repeat):
            start = time.perf_counter()
            outputs = llm.generate(prompts.take(size), params, use_tqdm=False)
            times.append(time.perf_counter() - start)
            for output in outputs:
                metrics = output.metrics
                firsts.append(metrics.time_to_first_token or 0.0)
                if args.output_len > 1:
                    gaps.append((metrics.finished_time - metrics.first_token_time) / (args.output_len - 1))
        results.append(
            {
                "batch_size": size,
                "seconds_median": statistics.median(times),
                "seconds_min": min(times),
                "seconds_max": max(times),
                "time_to_first_token_median": statistics.median(firsts),
                "time_per_output_token_median": statistics.median(gaps) if gaps else 0.0,
                "output_tokens_per_second": size * args.output_len / statistics.median(times),
            }
        )
    return results


def _setting(llm: LLM, args: argparse.Namespace) -> dict[str, Any]:
    config = llm.engine.model_config
    engine = llm.engine
    return {
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "dtype": engine.dtype,
        "max_num_seqs": engine.max_num_seqs,
        "prefix_caching": engine.config.enable_prefix_caching,
        "graph_buckets": engine.graph_buckets,
        "ledger": engine.ledger,
        **_asked(args),
    }


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "command": "stoker " + " ".join(sys.argv[1:]),
        "model": args.model,
        "input_len": args.input_len,
        "output_len": args.output_len,
        "engine_options": engine_options(args),
    }


def _show(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if figures["what"] != "kernels":
        console.print(
            f"{figures['what']} of {figures['model']}: prompts of {figures['input_len']} tokens, answers of {figures['output_len']}"
        )
    results = figures["results"]
    names = list(results[0])
    cells = [[_shown(row[name]) for name in names] for row in results]
    heads = [name.replace("_", " ") for name in names]
    table = Table()
    lines = [heads, *cells]
    if len(names) > 8:  # too wide: a row for each figure
        lines = [list(line) for line in zip(*lines, strict=True)]
        table = Table(box=None, padding=(0, 1))
    for head in lines[0]:
        table.add_column(head, justify="right")
    for line in lines[1:]:
        table.add_row(*line)
    console.print(table)
    if "note" in figures:
        console.print(figures["note"], style="dim")


def _shown(value: float | str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if value < 100 else f"{value:,.0f}"
