"""The native scheduler as a library: usable without any model, imports neither torch nor the engine.

s = Scheduler(SchedulerConfig(num_blocks=1024, block_size=16, max_num_seqs=64, max_num_batched_tokens=2048))
s.add(Req("a", origin_input_ids=[1, 2, 3], sampling_params=SamplingParams(max_tokens=8)))
batch = s.schedule()  # a ScheduleBatch, or None
events = s.commit(batch, tokens)  # one token id for each sampled row, or a StepResult
"""

from stoker._core.sched import (
    AttentionGeometry,
    BatchLayout,
    BatchLimits,
    BlockCounts,
    BlockPool,
    KVGroup,
    ReplayReport,
    Req,
    ReqAccount,
    ScheduleBatch,
    Scheduler,
    SchedulerConfig,
    StepEvents,
    StepResult,
    StepStats,
    WaitReason,
    redact,
    replay,
)
from stoker.sampling_params import SamplingParams

__all__ = [
    "AttentionGeometry",
    "BatchLayout",
    "BatchLimits",
    "BlockCounts",
    "BlockPool",
    "KVGroup",
    "ReplayReport",
    "Req",
    "ReqAccount",
    "SamplingParams",
    "ScheduleBatch",
    "Scheduler",
    "SchedulerConfig",
    "StepEvents",
    "StepResult",
    "StepStats",
    "WaitReason",
    "redact",
    "replay",
]
