"""Urgent reqs among many: workload W2 with a tenth of its reqs urgent, by priority or by deadline, under the cost model of workloads.py.

    python benchmarks/urgent.py

The other reqs all wait from the start; an urgent one comes every so often until they are done. Its time to the first token is compared with that in an
engine that is as busy but whose queue is empty (the others come evenly, at 90% of the rate at which they can be served), and, for the record, with that in an engine
that has nothing else to do. Throughput is compared with that of the same reqs when none is urgent (fcfs, the same arrivals).
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from workloads import outputs, prompt, req, scheduler, step_seconds, w2_lengths

from stoker.scheduler import Req

URGENT = 10  # one in so many
PRIORITY, DEADLINE_NS = -1.0, int(0.2e9)


def percentile(values: list[float], q: float) -> float:
    return float(np.percentile(np.asarray(values), q))


class Trial:
    """One run in virtual time. `mode`: priority, deadline or plain."""

    def __init__(self, mode: str, every: float, options: dict[str, Any], kv_tokens: int = 131072) -> None:
        policy = {"priority": "priority", "deadline": "deadline", "plain": "fcfs"}[mode]
        self.s = scheduler(kv_tokens, 256, schedule_policy=policy, max_model_len=8192, **options)
        lengths = w2_lengths()
        fields: dict[str, Any] = {
            "priority": {"priority": PRIORITY}, "deadline": {"deadline_ttft": DEADLINE_NS}, "plain": {},
        }[mode]  # fmt: skip
        self.others, self.urgent = [], []
        for i, (p, o) in enumerate(lengths):
            if i % URGENT == 0:
                self.urgent.append((len(self.urgent) * every, req(f"u{i}", prompt(i, p), o, **fields)))
            else:
                self.others.append(req(str(i), prompt(i, p), o))
        self.sampled = [outputs(256)[:n] for n in range(257)]
        self.tokens = sum(o for _, o in lengths)

    def run(self, *, others: str, pace: float = 0.0) -> None:
        """others: `waiting` all from the start, `none`, or `arriving` evenly, one every `pace` seconds."""
        s, now, pending, coming = self.s, 0.0, list(self.urgent), list(self.others)
        if others == "none":
            coming = []
        elif others == "waiting":
            for r in coming:
                s.add(r, now=0)
            coming = []
        came = 0
        waited = 0
        steps = 0
        while pending or coming or s.has_unfinished():
            while coming and came * pace <= now:
                s.add(coming.pop(0), now=int(now * 1e9))
                came += 1
            while pending and pending[0][0] <= now:
                s.add(pending.pop(0)[1], now=int(now * 1e9))
            batch = s.schedule(now=int(now * 1e9))
            if batch is None:
                now = min([pending[0][0]] * bool(pending) + [came * pace] * bool(coming))
                continue
            steps += 1
            waited += s.num_waiting
            now += step_seconds(batch)
            s.commit(batch, self.sampled[batch.num_sampled_rows], now=int(now * 1e9))
        self.seconds, self.mean_waiting = now, waited / steps

    def ttft(self) -> list[float]:
        """Seconds, of the urgent reqs."""
        done: list[Req] = [r for _, r in self.urgent]
        return [(r.account.first_token_time - r.account.arrival_time) / 1e9 for r in done]

    def twice(self) -> int:
        return sum(r.account.tokens_computed_twice for r in [*self.others, *(r for _, r in self.urgent)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=int, default=8192, help="max_num_batched_tokens (default: 8192)")
    parser.add_argument(
        "--threshold", type=int, help="urgent_prefill_token_threshold (default: the scheduler's)"
    )
    args = parser.parse_args()
    options = {"max_num_batched_tokens": args.budget}
    if args.threshold is not None:
        options["urgent_prefill_token_threshold"] = args.threshold
    plain = Trial("plain", 0, options)
    plain.run(others="waiting")
    every = plain.seconds * 0.9 / len(plain.urgent)
    plain = Trial("plain", every, options)
    plain.run(others="waiting")
    print(
        f"nobody urgent: {plain.seconds:.2f} s, {plain.tokens / plain.seconds:.0f} tokens/s, p99 TTFT of that tenth {percentile(plain.ttft(), 99):.2f} s"
    )
    for mode in ("priority", "deadline"):
        trials = {}
        pace = plain.seconds / len(plain.others) / 0.9
        for others in ("none", "arriving", "waiting"):
            trials[others] = t = Trial(mode, every, options)
            t.run(others=others, pace=pace)
            print(
                f"{mode}, others {others:8s}: TTFT p50 {percentile(t.ttft(), 50) * 1e3:7.1f} ms, p99 {percentile(t.ttft(), 99) * 1e3:7.1f} ms; "
                f"{t.mean_waiting:.0f} wait on average; {t.seconds:.2f} s, {t.twice()} tokens twice"
            )
        p99 = {others: percentile(t.ttft(), 99) for others, t in trials.items()}
        cost = trials["waiting"].seconds / plain.seconds - 1
        print(
            f"{mode}: p99 TTFT {p99['waiting'] / p99['arriving']:.2f} of that with an empty queue (target 1.5), {p99['waiting'] / p99['none']:.2f} of that alone; "
            f"{cost:+.1%} time (target 3%)"
        )


if __name__ == "__main__":
    main()
