"""What a schema costs: the same batch with and without one, in turns. Answers are as long as they may be."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

from stoker import LLM, SamplingParams

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 100, "maxLength": 400},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 30}},
        "n": {"type": "integer"},
    },
    "required": ["name", "tags", "n"],
}


def rate(llm: LLM, batch: int, tokens: int, schema: dict[str, Any] | None) -> float:
    """Output tokens a second of one batch."""
    form = None if schema is None else {"json": schema}
    params = [
        SamplingParams(max_tokens=tokens, seed=i, ignore_eos=True, structured_outputs=form)  # type: ignore[arg-type]
        for i in range(batch)
    ]
    start = time.perf_counter()
    outs = llm.generate(["Once upon a time"] * batch, params, use_tqdm=False)
    return sum(len(out.outputs[0].token_ids) for out in outs) / (time.perf_counter() - start)


def main() -> None:
    """Runs and prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="stoker-demo")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    with LLM(args.model, max_num_seqs=args.batch) as llm:
        for schema in (None, SCHEMA):
            rate(llm, args.batch, args.tokens, schema)
        found = [[rate(llm, args.batch, args.tokens, s) for s in (None, SCHEMA)] for _ in range(args.repeat)]
        steps = [step for step in llm.engine.loop.trace() if step["mask_ns"]]
    free, held = (statistics.median(column) for column in zip(*found, strict=True))
    figures = {
        "batch": args.batch,
        "free_tokens_per_second": free,
        "schema_tokens_per_second": held,
        "ratio": held / free,
        "mask_us": statistics.median(step["mask_ns"] for step in steps) / 1e3,
        "step_us": statistics.median(step["device_ns"] for step in steps) / 1e3,
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
