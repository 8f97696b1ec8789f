"""Over-commit must not collapse: workload W2 under a cost model, with KV for half of what the unlimited run needs at its peak.

`python benchmarks/overcommit.py` prints, for each admission, with retraction and with swap, and for `max_tokens` as true lengths and ten times too
large, the total time relative to the oracle (the same scheduler told the true lengths, exact-peak admission) and the share of tokens computed twice.
Cost model: step = max(5 ms, 25 us x tokens) + 0.03 us x context tokens read. Swap: 131,072 bytes a token at 55 GB/s, one copy after the other in
each direction beside the steps; a ticket comes back with the first step that ends after its copy. `in line`: a step waits for its copies instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from workloads import BLOCK, prompt, scheduler, step_seconds, w2_lengths

from stoker.scheduler import KVGroup, Req, SamplingParams, StepResult

EOS = 0
BLOCK_BYTES = 131_072 * BLOCK
COPY_SECONDS = BLOCK_BYTES / 55e9


@dataclass(frozen=True)
class Outcome:
    seconds: float
    twice: float  # share of the tokens computed
    retractions: int
    swaps: int
    peak: int  # blocks


class Copies:
    """The two copy engines of a device."""

    def __init__(self, in_line: bool) -> None:
        self.in_line = in_line
        self.free = {0: 0.0, 1: 0.0}  # by destination tier: when it has done what was asked
        self.under_way: list[tuple[float, int]] = []  # end, ticket

    def begin(self, transfers: Any, now: float) -> None:
        for t in transfers:
            to = int(t["destination_tier"])
            self.free[to] = max(self.free[to], now) + COPY_SECONDS
            self.under_way.append((self.free[to], int(t["ticket"])))

    def end_of(self, step_end: float, asked: int, rows: int) -> float:
        """When the step is over: one without rows waits for every copy."""
        wait = (self.in_line and asked > 0) or rows == 0
        return max([step_end, *(end for end, _ in self.under_way)]) if wait else step_end

    def done(self, now: float) -> list[int]:
        back = [ticket for end, ticket in self.under_way if end <= now]
        self.under_way = [(end, ticket) for end, ticket in self.under_way if end > now]
        return back


def simulate(
    blocks: int,
    seats: int = 256,
    factor: int = 1,
    preemption: str = "retract",
    in_line: bool = False,
    **options: Any,
) -> Outcome:
    group = KVGroup(
        block_size=BLOCK, num_blocks=blocks, num_host_blocks=4 * blocks, bytes_per_block=BLOCK_BYTES
    )
    s = scheduler(
        0,
        seats,
        kv_groups=[group],
        preemption=preemption,
        max_model_len=16384,
        eos_token_ids=[EOS],
        **options,
    )
    s.set_rates(25e3, 1e9 / 55e9)
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
    copies = Copies(in_line)
    now, tokens, twice, peak = 0.0, 0, 0, 0
    while (batch := s.schedule(now=int(now * 1e9))) is not None:
        changes = batch.seat_changes
        seat_req[changes["seat"]] = changes["req"]
        positions, seats_out = batch.out_position, batch.out_seat
        sampled = np.where(positions + 1 >= true_end[seat_req[seats_out]], EOS, 5).astype(np.int32)
        asked = batch.transfers
        copies.begin(asked, now)
        now = copies.end_of(now + step_seconds(batch) * (batch.num_tokens > 0), len(asked), batch.num_tokens)
        tokens += batch.num_tokens
        stats = s.last_stats
        twice += stats.recomputed_tokens
        peak = max(peak, stats.blocks[0].used)
        result = StepResult()
        result.token_ids = sampled
        result.finished_transfers = np.asarray(copies.done(now), dtype=np.int64)
        s.commit(batch.batch_id, result, now=int(now * 1e9))
    assert all(r.finished for r in reqs)
    accounts = [r.account for r in reqs]
    return Outcome(
        now, twice / tokens, sum(a.retractions for a in accounts), sum(a.swaps for a in accounts), peak
    )


def main() -> None:
    peak = simulate(1 << 16, admission="greedy").peak
    blocks = peak // 2 + 1
    oracle = simulate(blocks, admission="peak").seconds
    print(f"unlimited peak {peak} blocks; {blocks} given; oracle {oracle:.2f} s")
    for factor in (1, 10):
        for admission in ("learned", "greedy", "guaranteed", "peak"):
            for name, how in HOW.items():
                o = simulate(blocks, factor=factor, admission=admission, **how)
                print(
                    f"max_tokens x {factor:2d} {admission:10s} {name:12s}: {o.seconds / oracle:.3f} of the oracle, {o.twice:.2%} twice, "
                    f"{o.retractions} retractions, {o.swaps} swaps",
                    flush=True,
                )


HOW: dict[str, dict[str, Any]] = {
    "retract": {"preemption": "retract"},
    "swap": {"preemption": "swap"},
    "swap in line": {"preemption": "swap", "in_line": True},
    "auto": {"preemption": "auto"},
}

if __name__ == "__main__":
    main()
