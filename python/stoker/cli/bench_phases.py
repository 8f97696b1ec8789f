"""`stoker bench phases`: prefill against decode with this machine's own numbers, the table that explains the scheduler."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stoker.viz.trace import Step
from stoker.viz.work import work_of

if TYPE_CHECKING:
    from stoker.llm import LLM
    from stoker.sampling_params import SamplingParams

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_IDLE = 0.25
"""A phase that reaches less than this share of either peak is bound by something else."""

EXPLAINS = (
    "Prefill: steps that only compute prompt tokens. Decode: steps in which N requests get one token each. A weight is read "
    "once a step, however many tokens use it: more tokens a step, more FLOP a byte. FLOP and bytes are counted (activations "
    "are not, they stay in caches), times and peaks are measured; over 100% of the bandwidth means that caches held it."
)


def measure(
    llm: LLM, take: Callable[[int], list[list[int]]], params: SamplingParams, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for prefill and for decode at each batch size; medians over steps."""
    from stoker.engine.peaks import measure_peaks
    from stoker.viz.recorder import recording

    engine = llm.engine
    if max(args.batch_size) > engine.max_num_seqs:
        raise ValueError(
            f"--batch-size {max(args.batch_size)}: this engine has {engine.max_num_seqs} seats (--max-num-seqs)"
        )
    peaks = measure_peaks(engine.config.device, engine.dtype)

    def steps_of(prompts: list[list[int]], length: int) -> list[Step]:
        with recording(engine.loop) as recorded:
            llm.generate(prompts, replace(params, max_tokens=length), use_tqdm=False)
        return recorded.trace.steps

    def row(name: str, steps: list[Step]) -> dict[str, Any]:
        size = _BYTES[engine.dtype]
        works = [work_of(step, engine.model_config, size) for step in steps]
        seconds = statistics.median((step.end - step.start) / 1e9 for step in steps)
        flop, moved = statistics.median(w.flop for w in works), statistics.median(w.num_bytes for w in works)
        tokens = statistics.median(sum(r.num_tokens for r in step.rows) for step in steps)
        arithmetic, bandwidth = flop / seconds / peaks.flops, moved / seconds / peaks.bandwidth
        bound = "arithmetic" if arithmetic > bandwidth else "bandwidth"
        return {
            "phase": name,
            "steps": len(steps),
            "tokens_a_step": int(tokens),
            "ms_a_step": 1e3 * seconds,
            "tokens_per_s": tokens / seconds,
            "MFLOP_a_token": flop / tokens / 1e6,
            "MB_a_token": moved / tokens / 1e6,
            "FLOP_a_byte": flop / moved,
            "GFLOP_per_s": flop / seconds / 1e9,
            "of_peak": f"{100 * arithmetic:.0f}%",
            "GB_per_s": moved / seconds / 1e9,
            "of_peak_bandwidth": f"{100 * bandwidth:.0f}%",
            "bound_by": bound if max(arithmetic, bandwidth) >= _IDLE else "overheads",
        }

    rows = []
    steps = [step for _ in range(args.repeat) for step in steps_of(take(1), 1)]
    rows.append(row("prefill x1", _alike(steps, decodes=False)))
    many = max(args.batch_size)
    if many > 1:
        rows.append(row(f"prefill x{many}", _alike(steps_of(take(many), 1), decodes=False)))
    for size in args.batch_size:
        steps = [step for step in steps_of(take(size), args.output_len) if len(step.rows) == size]
        decode = _alike(steps, decodes=True)
        if decode:
            rows.append(row(f"decode x{size}", decode))
    if args.json != "-":
        print(
            f"this machine: {peaks.flops / 1e9:,.0f} GFLOP/s in {engine.dtype}, {peaks.bandwidth / 1e9:,.1f} GB/s; "
            f"both are met at {peaks.flops / peaks.bandwidth:,.0f} FLOP a byte"
        )
    return rows


def _alike(steps: list[Step], *, decodes: bool) -> list[Step]:
    """Steps of one phase only, without those much smaller than the largest: a prompt's last chunk, an emptying batch."""
    pure = [step for step in steps if step.rows and all(row.decodes == decodes for row in step.rows)]
    largest = max((int(step.stats["num_tokens"]) for step in pure), default=0)
    return [step for step in pure if int(step.stats["num_tokens"]) >= 0.9 * largest]
