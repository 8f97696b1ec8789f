"""`stoker bench batching`: static, prefill-first and mixed batching on one workload."""

from __future__ import annotations

import argparse
import statistics
from random import Random
from typing import Any

from stoker.cli.options import engine_options

MODES = ("static", "prefill_first", "continuous")

EXPLAINS = (
    "All requests come at once. static: a batch runs until its last request is done. prefill_first: prefill steps and decode "
    "steps apart. continuous: decodes and prefill chunks in one step. Modes take turns; medians over the rounds. "
    "seats in use: share of seats, over time, that computed something for a request."
)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each mode. Prompts of a quarter to twice --input-len, answers of 1 to twice --output-len tokens."""
    from stoker.llm import LLM
    from stoker.sampling_params import SamplingParams
    from stoker.viz.measures import Summary, summary
    from stoker.viz.recorder import recording

    options = {"progress": False, "max_num_seqs": 8, **engine_options(args)}
    found: dict[str, list[Summary]] = {mode: [] for mode in MODES}
    for _ in range(args.repeat):
        for mode in MODES:
            with LLM(args.model, skip_tokenizer_init=True, **{**options, "batching": mode}) as llm:
                rng, vocab = Random(args.seed), llm.engine.model_config.vocab_size
                most = llm.engine.max_model_len
                if 2 * (args.input_len + args.output_len) > most:
                    raise ValueError(
                        f"twice --input-len + --output-len is {2 * (args.input_len + args.output_len)}; this model "
                        f"allows {most}"
                    )
                prompts, params = [], []
                for _ in range(args.num_prompts):
                    length = rng.randint(max(1, args.input_len // 4), 2 * args.input_len)
                    prompts.append([rng.randrange(vocab) for _ in range(length)])
                    answer = rng.randint(1, 2 * args.output_len)
                    params.append(SamplingParams(temperature=0.0, max_tokens=answer, ignore_eos=True))
                warm = SamplingParams(max_tokens=4)
                llm.generate([[1] * args.input_len] * 4, warm, use_tqdm=False)
                with recording(llm.engine.loop) as recorded:
                    llm.generate(prompts, params, use_tqdm=False)
                found[mode].append(summary(recorded.trace))

    def middle(mode: str, name: str, scale: float = 1.0) -> float:
        return scale * float(statistics.median(getattr(run, name) for run in found[mode]))

    base = middle("static", "tokens_per_second")
    return [
        {
            "batching": mode,
            "steps": int(middle(mode, "num_steps")),
            "seconds": middle(mode, "seconds"),
            "output_tokens_per_s": middle(mode, "tokens_per_second"),
            "vs_static": f"{middle(mode, 'tokens_per_second') / base:.2f}x",
            "TTFT_p50_ms": middle(mode, "ttft_p50", 1e3),
            "TTFT_p99_ms": middle(mode, "ttft_p99", 1e3),
            "ITL_p50_ms": middle(mode, "itl_p50", 1e3),
            "ITL_p99_ms": middle(mode, "itl_p99", 1e3),
            "seats_in_use": f"{middle(mode, 'seats_in_use', 100):.0f}%",
        }
        for mode in MODES
    ]
