"""Tokens a second of the whole engine on a CPU beside transformers' own, in one run: decode at batch 1, 8 and 32.

    python benchmarks/engine_cpu.py [--models demo,0.6b] [--batches 1,8,32] [--engines stoker,transformers] [--keep]

Random weights of bf16 checkpoints, greedy, prompts of random ids; both engines compute in bf16.
A figure is (time of n + 1 tokens - time of 1 token) / n tokens a request, all requests at once, so prefill is not in
it; prefill is reported beside it as prompt tokens a second of the 1-token run. Engines take turns for each batch size,
and the best of `--repeats` counts: machines are shared. Writes benchmarks/results/engine_cpu.{json,md}; with --keep what stands there of other models and
batch sizes stays, so that a run can be taken in pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
SHAPES: dict[str, dict[str, Any]] = {
    "demo": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 2816,
        "hidden_size": 256,
        "intermediate_size": 576,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    },
    "0.6b": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rope_theta": 1000000,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    },
}
Generate = Callable[[list[list[int]], int], int]
"""Prompts and how many tokens each is to get; returns how many came in all."""
Started = tuple[str, Generate]
"""The type it computes in, and what generates."""


def stoker(shape: dict[str, Any], batch: int) -> Started:
    from stoker.config import EngineConfig
    from stoker.engine.engine import Engine
    from stoker.sampling_params import SamplingParams

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(shape))
        engine = Engine(
            EngineConfig(
                folder,
                load_format="dummy",
                max_num_seqs=max(batch, 32),
                max_model_len=1024,
                kv_cache_memory=1.0,
                enable_prefix_caching=False,
            )
        )
    numbers = iter(range(1 << 30))

    def generate(prompts: list[list[int]], count: int) -> int:
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        for prompt in prompts:
            engine.add_request(str(next(numbers)), prompt, params)
        total = 0
        while engine.has_unfinished():
            for output in engine.step():
                total += len(output.new_token_ids)
        return total

    return engine.dtype, generate


def transformers(shape: dict[str, Any], batch: int) -> Started:
    import transformers as hf

    hf.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = hf.AutoConfig.for_model(
        **{k: v for k, v in shape.items() if k not in ("architectures", "torch_dtype")}
    )
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()

    def generate(prompts: list[list[int]], count: int) -> int:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
            )
        return (out.shape[1] - ids.shape[1]) * len(prompts)

    return "bfloat16", generate


ENGINES = {"stoker": stoker, "transformers": transformers}


def measure(
    generate: Generate, shape: dict[str, Any], batch: int, prompt_len: int, new: int
) -> dict[str, float]:
    rng = random.Random(batch)
    prompts = [[rng.randrange(shape["vocab_size"]) for _ in range(prompt_len)] for _ in range(batch)]

    def timed(count: int) -> float:
        began = time.perf_counter()
        produced = generate(prompts, count)
        assert produced == count * batch, (produced, count, batch)
        return time.perf_counter() - began

    return {"first": timed(1), "all": timed(1 + new)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="demo,0.6b")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--engines", default="stoker,transformers")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    rows = []
    for name in args.models.split(","):
        shape = SHAPES[name]
        for batch in map(int, args.batches.split(",")):
            started = {e: ENGINES[e](shape, batch) for e in args.engines.split(",")}
            engines = {e: generate for e, (_, generate) in started.items()}
            for generate in engines.values():
                generate([[1, 2, 3]] * batch, 2)
            best: dict[str, dict[str, float]] = {e: {} for e in engines}  # seconds
            for _ in range(args.repeats):
                for engine, generate in engines.items():
                    got = measure(generate, shape, batch, args.prompt, args.new)
                    best[engine] = {k: min(v, best[engine].get(k, v)) for k, v in got.items()}
            for engine, seconds in best.items():
                figures = {
                    "decode_tok_s": args.new * batch / (seconds["all"] - seconds["first"]),
                    "prefill_tok_s": args.prompt * batch / seconds["first"],
                }
                rows.append(
                    {
                        "model": name,
                        "batch": batch,
                        "engine": engine,
                        "dtype": started[engine][0],
                        "prompt": args.prompt,
                        "new": args.new,
                        **figures,
                    }
                )
                print(
                    {k: round(v, 1) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True
                )
            del engines, started
    write(rows, args)


def write(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    if args.keep:
        measured = {(r["model"], r["batch"]) for r in rows}
        kept = RESULTS / "engine_cpu.json"
        before = json.loads(kept.read_text())["rows"] if kept.exists() else []
        rows = [r for r in before if (r["model"], r["batch"]) not in measured] + rows
        rows.sort(key=lambda r: (list(SHAPES).index(r["model"]), r["batch"]))
    facts = {
        "what": "decode and prefill tokens a second, bf16, random weights, greedy, prefix cache off",
        "command": "python " + " ".join(sys.argv),
        "machine": f"{_processor()}, {torch.get_num_threads()} threads",
        "load": f"{os.getloadavg()[0]:.1f} processes wanted a core while it ran (1-minute mean at its end)",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "engine_cpu.json").write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    lines = [f"# The engine on a CPU: {facts['what']}", ""]
    lines += [f"- {key}: {facts[key]}" for key in ("command", "machine", "load", "torch", "date")]
    lines += [
        "",
        "| model | batch | engine | computes in | prompt, new tokens | decode tok/s | prefill tok/s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['model']} | {r['batch']} | {r['engine']} | {r['dtype']} | {r['prompt']}, {r['new']} | {r['decode_tok_s']:.1f} | {r['prefill_tok_s']:.1f} |"
        for r in rows
    ]
    (RESULTS / "engine_cpu.md").write_text("\n".join(lines) + "\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
