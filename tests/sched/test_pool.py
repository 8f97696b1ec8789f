"""Embedding reqs: nothing is sampled, the last token's row is pooled, however the prompt is cut into chunks."""

from __future__ import annotations

import pytest

from stoker._core.sched import StepResult
from stoker.sampling_params import SamplingParams
from stoker.scheduler import Req, Scheduler, SchedulerConfig


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("length", [1, 16, 17, 32, 33, 49, 63, 64, 65])
def test_pool_reqs_end_whatever_their_last_chunk_is(beside: bool, length: int) -> None:
    """A last chunk of one token is no decode row of a req that has reached its length: that was never scheduled."""
    config = SchedulerConfig(
        num_blocks=40, block_size=16, max_num_seqs=4, max_num_batched_tokens=16, max_model_len=128
    )
    s = Scheduler(config)
    if beside:
        s.add(Req("o", list(range(20)), SamplingParams(max_tokens=20, ignore_eos=True)))
    s.add(Req("e", [1 + i % 50 for i in range(length)], pool=True))
    pooled, ended = 0, {}
    while s.has_unfinished():
        batch = s.schedule()
        assert batch is not None
        kinds = batch.out_kind.tolist()
        result = StepResult()
        result.batch_id = batch.batch_id
        result.token_ids = [1] * kinds.count(0)
        if kinds.count(2):
            pooled += kinds.count(2)
            result.pooled, result.pooled_width = [1.0], 1
        ended |= {req.rid: req.finish_reason for req in s.commit(batch, result).ended}
        s.check_integrity()
    assert ended.pop("e") == "stop"
    assert pooled == 1
    assert set(ended.values()) <= {"length"}
