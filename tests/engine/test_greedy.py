"""The whole engine against transformers: the same greedy tokens however steps are made, chunked, preempted and overlapped."""

from __future__ import annotations

from typing import Any

import pytest

from stoker.config import EngineConfig
from stoker.engine.engine import Engine
from stoker.sampling_params import SamplingParams
from support import checkpoints
from support.kv_shortage import short_of_kv

AMPLE, SHORT = 2800, 120
WAYS: dict[str, dict[str, Any]] = {
    "continuous": {"num_kv_blocks": AMPLE},
    "no_overlap": {"num_kv_blocks": AMPLE, "overlap": False, "enable_prefix_caching": False},
    "short_of_kv": short_of_kv(SHORT),
    "short_of_kv_no_cache": short_of_kv(SHORT) | {"enable_prefix_caching": False, "overlap": False},
    "swapped": short_of_kv(SHORT, swap=True) | {"enable_prefix_caching": False},
    "prefill_first": {"num_kv_blocks": AMPLE, "batching": "prefill_first"},
    "static": {"num_kv_blocks": AMPLE, "batching": "static", "overlap": False},
}


def run(engine: Engine, prompts: list[list[int]], new_tokens: int) -> tuple[list[list[int]], int]:
    """Answers in the order of the prompts, and how many prompt tokens came from the cache."""
    params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, params)
    answers: list[list[int]] = [[] for _ in prompts]
    cached = 0
    while engine.has_unfinished():
        for output in engine.step():
            answers[int(output.rid)] += output.new_token_ids
            assert output.finish_reason in (None, "length"), output.message
            cached += output.num_cached_tokens
    return answers, cached


@pytest.mark.parametrize("way", list(WAYS))
def test_greedy_tokens_equal_transformers(golden: Any, way: str, record_property: Any) -> None:
    """Protects everything between a prompt and its tokens: a wrong block, slot, position, seat or chunk changes them.

    Equal, except after a first place where the reference's two best logits are closer than 1e-4 relative.
    """
    options = WAYS[way]
    config = EngineConfig(
        str(golden.folder), max_num_seqs=16, max_num_batched_tokens=96, max_model_len=700, **options
    )
    with Engine(config) as engine:
        answers, cached = run(engine, golden.prompts, 64)
        stats = engine.stats()
        swaps = engine.loop.stats().num_swaps
    agreement = checkpoints.compare(golden.reference, answers)
    record_property("near_ties", agreement.near_ties)
    assert agreement.wrong == 0, agreement
    assert agreement.near_ties <= 4, agreement
    assert stats.num_running == stats.num_waiting == 0
    assert stats.num_free_blocks + stats.num_cached_blocks == stats.num_blocks
    assert (stats.num_preemptions > 0) == (options["num_kv_blocks"] == SHORT)
    assert (swaps > 0) == (options.get("preemption") == "swap")
    assert (cached > 0) == options.get("enable_prefix_caching", True)
