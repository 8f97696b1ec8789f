"""The work lists in the step's buffer: one a window, each what a planner makes of the step's rows."""

from __future__ import annotations

import numpy as np
import torch

from stoker import _core
from stoker.scheduler import AttentionGeometry, Req, SamplingParams, Scheduler, SchedulerConfig

GEOMETRY = {
    "num_decode_heads": 4,
    "num_kv_heads": 4,
    "num_decode_workers": 16,
    "prefill_tile_tokens": 32,
    "num_prefill_workers": 8,
    "num_processors": 8,
}
WINDOWS = [0, 40]


def test_a_list_for_each_window() -> None:
    """A list that is stale, of another window or short of a row would be a wrong answer on a GPU and nowhere else."""
    s = Scheduler(
        SchedulerConfig(
            num_blocks=200,
            block_size=16,
            max_num_seqs=8,
            max_num_batched_tokens=128,
            attention=AttentionGeometry(**GEOMETRY),
            attention_windows=WINDOWS,
        )
    )
    planners = [_core.AttentionPlanner(window=window, **GEOMETRY) for window in WINDOWS]
    kinds = set()
    for step in range(12):
        if step < 8:
            s.add(
                Req(
                    str(step),
                    list(range(30 + 17 * step)),
                    SamplingParams(max_tokens=20, ignore_eos=True),
                )
            )
        batch = s.schedule()
        assert batch is not None
        rows, decodes = batch.num_rows, batch.num_decode_rows
        kinds.add((decodes > 0, rows > decodes))
        capacity = batch.layout.limits.max_attention_work
        lists = batch.buffer[batch.layout.offset("work") :].view(np.int32)
        indptr = batch.work_indptr.reshape(len(WINDOWS), -1)
        for i, planner in enumerate(planners):
            work = torch.zeros(planner.work_capacity(rows, batch.num_tokens), 8, dtype=torch.int32)
            want = torch.zeros(planner.indptr_size, dtype=torch.int32)
            tensors = [
                torch.from_numpy(a.copy()) for a in (batch.row_seat, batch.row_indptr, batch.row_kv_len)
            ]
            used, _, _ = planner.plan(*tensors, decodes, work, want)
            np.testing.assert_array_equal(indptr[i], want.numpy())
            mine = lists[8 * capacity * i :][: 8 * used].reshape(-1, 8)
            busy = work[:used].numpy()
            np.testing.assert_array_equal(mine[busy[:, 0] >= 0], busy[busy[:, 0] >= 0])
            assert (mine[busy[:, 0] < 0, 0] == -1).all()
        s.commit(batch, [7] * batch.num_sampled_rows)
    assert kinds == {(False, True), (True, True), (True, False)}
