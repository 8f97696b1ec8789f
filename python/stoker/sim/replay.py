"""Repeats a recorded run in virtual time: the same arrivals, each step as long as it was; are the batches the same?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from stoker._core.sim import CostModel
from stoker.sim.requests import Requests
from stoker.sim.run import Setting, finish, prepare

_CONFIG = (
    "num_blocks", "block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len", "batching", "schedule_policy",
    "admission", "enable_prefix_caching", "seed",
)  # fmt: skip

Batch = list[tuple[int, int, int]]
"""Of each row: which req (by order of arrival), tokens, KV length."""


class _Row(Protocol):
    @property
    def key(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def kv_len(self) -> int: ...


class _Step(Protocol):
    stats: dict[str, Any]

    @property
    def rows(self) -> Sequence[_Row]: ...
    @property
    def end(self) -> int: ...


class _Req(Protocol):
    @property
    def prompt_len(self) -> int: ...
    @property
    def num_outputs(self) -> int: ...
    @property
    def arrival_time(self) -> int: ...
    @property
    def reason(self) -> str: ...


class RecordedRun(Protocol):
    """A stoker.viz Trace."""

    @property
    def steps(self) -> Sequence[_Step]: ...
    @property
    def reqs(self) -> dict[int, Any]: ...
    @property
    def config(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Comparison:
    """Recorded batches beside those of the repetition."""

    recorded: list[Batch]
    repeated: list[Batch]

    @property
    def first_difference(self) -> int | None:
        """Which step (from 0) differs first; None: they are the same."""
        for place, (a, b) in enumerate(zip(self.recorded, self.repeated, strict=False)):
            if a != b:
                return place
        same = len(self.recorded) == len(self.repeated)
        return None if same else min(len(self.recorded), len(self.repeated))


def replay(trace: RecordedRun, requests: Requests | None = None) -> Comparison:
    """Runs it again. `requests`: what the run was fed with, where prompts shared prefixes (a trace does not hold tokens);
    its arrival times are the trace's. Raises ValueError for a trace that does not hold a whole run."""
    keys = sorted(trace.reqs)
    if not trace.steps or any(not trace.reqs[key].reason for key in keys):
        raise ValueError("a whole run is needed to repeat it: this trace ends before its requests do")
    places = {key: place for place, key in enumerate(keys)}
    reqs: list[_Req] = [trace.reqs[key] for key in keys]
    zero = min(reqs[0].arrival_time, int(trace.steps[0].stats["began"]))
    made = requests or _made([req.prompt_len for req in reqs], [max(req.num_outputs, 1) for req in reqs])
    # Keys rise in the order of add(), which is the order of arrival at the loop.
    times = np.maximum.accumulate(np.array([req.arrival_time - zero for req in reqs], np.int64))
    made = Requests(
        times,
        made.prompt_lens,
        made.answer_lens,
        made.max_tokens,
        made.hash_indptr,
        made.hash_ids,
        made.hash_block,
    )
    steps = np.array(
        [
            (_received(step.stats) - zero, step.end - zero, step.stats["in_flight"])
            for step in trace.steps
        ],
        np.int64,
    )  # fmt: skip
    config = {name: trace.config[name] for name in _CONFIG if name in trace.config}
    setting = Setting(CostModel(), config, overlap=bool(trace.config.get("overlap_depth", 1)))
    simulation = prepare(setting, made, record=True, replayed=steps)
    finish(simulation)
    again: dict[int, Batch] = {}
    for batch_id, key, _, num_tokens, kv_len, _ in simulation.take_recording()["rows"]:
        again.setdefault(batch_id, []).append((key, num_tokens, kv_len))
    recorded = [[(places[row.key], row.num_tokens, row.kv_len) for row in step.rows] for step in trace.steps]
    return Comparison(recorded, [again[batch] for batch in sorted(again)])


def _made(prompts: list[int], answers: list[int]) -> Requests:
    lens, outs = np.array(prompts, np.int64), np.array(answers, np.int64)
    return Requests(np.zeros(len(lens), np.int64), lens, outs, outs)


def _received(stats: dict[str, Any]) -> int:
    return int(stats["began"]) + int(stats["receive_ns"])
