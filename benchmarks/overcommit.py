"""Over-commit must not collapse: workload W2 under a cost model, with KV for half of what the unlimited run needs at its peak.

`python benchmarks/overcommit.py` prints, for each admission and for `max_tokens` as true lengths and ten times too large, the total time
relative to the oracle (the same scheduler told the true lengths, exact-peak admission) and the share of tokens computed twice.
Cost model: step = max(5 ms, 25 us x tokens) + 0.03 us x context tokens read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from workloads import prompt, scheduler, step_seconds, w2_lengths

from stoker.scheduler import Req, SamplingParams

EOS = 0


def simulate(blocks: int, seats: int = 256, factor: int = 1, **options: Any) -> tuple[float, float, int, int]:
    """Seconds, share of tokens computed twice, retractions, and the most blocks used."""
    s = scheduler((blocks - 1) * 16, seats, max_model_len=16384, eos_token_ids=[EOS], **options)
    length: dict[int, int] = {}
    reqs = []
    for i, (p, o) in enumerate(w2_lengths()):
        reqs.append(Req(str(i), prompt(i, p), SamplingParams(max_tokens=o * factor)))
        s.add(reqs[-1])
        length[reqs[-1].id] = p + o
    seat_req = np.zeros(seats + 1, dtype=np.int64)
    true_end = np.zeros(len(reqs) + 1, dtype=np.int64)
    for handle, end in length.items():
        true_end[handle] = end
    now, tokens, twice, peak = 0.0, 0, 0, 0
    while (batch := s.schedule(now=int(now * 1e9))) is not None:
        changes = batch.seat_changes
        seat_req[changes["seat"]] = changes["req"]
        positions, seats_out = batch.out_position, batch.out_seat
        sampled = np.where(positions + 1 >= true_end[seat_req[seats_out]], EOS, 5).astype(np.int32)
        now += step_seconds(batch)
        tokens += batch.num_tokens
        stats = s.last_stats
        twice += stats.recomputed_tokens
        peak = max(peak, stats.blocks[0].used)
        s.commit(batch, sampled, now=int(now * 1e9))
    assert all(r.finished for r in reqs)
    return now, twice / tokens, sum(r.account.retractions for r in reqs), peak


def main() -> None:
    _, _, _, peak = simulate(1 << 16, admission="greedy")
    blocks = peak // 2 + 1
    oracle, *_ = simulate(blocks, admission="peak")
    print(f"unlimited peak {peak} blocks; {blocks} given; oracle {oracle:.2f} s")
    for factor in (1, 10):
        for admission in ("learned", "greedy", "guaranteed", "peak"):
            total, twice, retractions, _ = simulate(blocks, factor=factor, admission=admission)
            print(
                f"max_tokens x {factor:2d} {admission:10s}: {total / oracle:.3f} of the oracle, {twice:.2%} twice, {retractions} retractions"
            )


if __name__ == "__main__":
    main()
