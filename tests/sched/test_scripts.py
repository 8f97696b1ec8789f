"""Runs tests/scripts/*.sched: the scheduler's decisions as text, one small file a rule or a bug.

config num_blocks=9 block_size=4 ...     a SchedulerConfig; always the first line
add a 10 max_tokens=4 priority=1         req a with a prompt of 10 tokens of its own (prompt=s:10: 10 tokens of stream s)
add a 10 ... ! words                     is refused with a ValueError that holds these words
step a:10 b:1                            schedule() gives these rows in this order: rid:tokens
idle                                     schedule() gives nothing
commit                                   the oldest step comes back, every row with token 7 (commit a=0: a's is 0)
fail                                     the oldest step comes back as failed
abort a
state a retracted                        also: finished/length ...
why a blocks 3 0 1                       reason code, needed, free, evictable
blocks free=3 used=5                     counts of the pool
host free=3 used=5                       the same of the host pool
cached a 8                               tokens that a found in the prefix cache
moves 2 after=4                          copies that the newest step asks for, after which step; done when it comes back
twice a 0                                tokens of a that were computed again
scores a 8                               a's prompt tokens 1 to 8 were scored, each once and in order
rates 1000 0.5                           ns a token, ns a byte
now 100 | pause | drain | resume | flush
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stoker.scheduler import KVGroup, Req, SamplingParams, Scheduler, SchedulerConfig, StepResult

SCRIPTS = sorted((Path(__file__).parent.parent / "scripts").glob("*.sched"))


def value(text: str) -> Any:
    if text.startswith("["):
        return [int(x) for x in text.strip("[]").split(",") if x]
    if text.lstrip("-").isdigit():
        return int(text)
    return {"true": True, "false": False}.get(text, text)


def options(words: list[str]) -> dict[str, Any]:
    return {k: value(v) for k, v in (w.split("=", 1) for w in words)}


SAMPLING = ("max_tokens", "min_tokens", "n", "ignore_eos", "stop_token_ids", "prompt_logprobs")


class Script:
    def __init__(self) -> None:
        self.s: Any = None
        self.reqs: dict[str, Req] = {}
        self.flight: list[tuple[int, list[str], list[int]]] = []
        self.after: list[int] = []
        self.scored: dict[str, list[int]] = {}
        self.now = 0

    def do_config(self, *words: str) -> None:
        given = options(list(words))
        if "bytes_per_block" in given:
            named = ("block_size", "num_blocks", "num_host_blocks", "bytes_per_block")
            given["kv_groups"] = [KVGroup(**{name: given.pop(name) for name in named})]
        self.s = Scheduler(SchedulerConfig(**given))

    def do_add(self, rid: str, length: str, *words: str) -> None:
        given, refusal = list(words), ""
        if "!" in given:
            refusal = " ".join(given[given.index("!") + 1 :])
            given = given[: given.index("!")]
        named = options(given)
        stream, _, count = length.rpartition(":")
        base = 1000 * (1 + (ord(stream[0]) if stream else 200 + len(self.reqs)))
        params = SamplingParams(**{k: named.pop(k) for k in SAMPLING if k in named})
        r = Req(rid, list(range(base, base + int(count))), params, **named)
        if refusal:
            with pytest.raises(ValueError) as error:
                self.s.add(r, now=self.now)
            assert refusal in str(error.value)
            return
        self.s.add(r, now=self.now)
        self.reqs[rid] = r

    def do_step(self, *rows: str) -> None:
        batch = self.s.schedule(now=self.now)
        assert batch is not None, "nothing was scheduled"
        rids = [r.rid for r in batch.reqs]
        counts = (batch.row_indptr[1:] - batch.row_indptr[:-1]).tolist()
        assert [f"{r}:{n}" for r, n in zip(rids, counts, strict=True)] == list(rows)
        assert (batch.positions[batch.out_token] + 1).tolist() == batch.out_position.tolist()
        seats = dict(zip(batch.row_seat.tolist(), rids, strict=True))
        sampled = [
            seats.get(x, "fork")
            for x, k in zip(batch.out_seat.tolist(), batch.out_kind.tolist(), strict=True)
            if k == 0
        ]
        self.flight.append((batch.batch_id, sampled, batch.transfers["ticket"].tolist()))
        self.after = batch.transfers["after_step"].tolist()

    def do_idle(self) -> None:
        assert self.s.schedule(now=self.now) is None

    def do_commit(self, *words: str) -> None:
        special = options(list(words))
        batch_id, sampled, tickets = self.flight.pop(0)
        result = StepResult()
        result.token_ids = np.asarray([special.get(rid, 7) for rid in sampled], dtype=np.int32)
        result.finished_transfers = np.asarray(tickets, dtype=np.int64)
        events = self.s.commit(batch_id, result, now=self.now)
        for req_id, position in zip(events.score_reqs.tolist(), events.score_positions.tolist(), strict=True):
            self.scored.setdefault(self.s.req(req_id).rid, []).append(position)

    def do_fail(self) -> None:
        result = StepResult()
        result.status, result.message = "failed", "planned"
        batch_id, _, tickets = self.flight.pop(0)
        result.finished_transfers = np.asarray(tickets, dtype=np.int64)
        self.s.commit(batch_id, result, now=self.now)

    def do_abort(self, rid: str) -> None:
        assert self.s.abort(rid, now=self.now)

    def do_state(self, rid: str, state: str) -> None:
        r = self.reqs[rid]
        assert (f"finished/{r.finish_reason}" if r.finished else r.state) == state

    def do_error(self, rid: str, *words: str) -> None:
        assert " ".join(words) in self.reqs[rid].error

    def do_why(self, rid: str, code: str, *numbers: str) -> None:
        why = self.s.explain(self.reqs[rid])
        assert [why.code, why.needed, why.free, why.evictable][: 1 + len(numbers)] == [
            code,
            *map(int, numbers),
        ]

    def do_blocks(self, *words: str) -> None:
        counts = self.s.block_counts()
        for name, want in options(list(words)).items():
            assert getattr(counts, name) == want, (name, getattr(counts, name))

    def do_host(self, *words: str) -> None:
        counts = self.s.host_block_counts()
        for name, want in options(list(words)).items():
            assert getattr(counts, name) == want, (name, getattr(counts, name))

    def do_moves(self, count: str, *words: str) -> None:
        assert len(self.flight[-1][2]) == int(count)
        for step in options(list(words)).values():
            assert self.after == [step] * int(count), self.after

    def do_twice(self, rid: str, tokens: str) -> None:
        assert self.reqs[rid].account.tokens_computed_twice == int(tokens)

    def do_scores(self, rid: str, last: str) -> None:
        assert self.scored.get(rid, []) == list(range(1, int(last) + 1)), self.scored

    def do_rates(self, ns_per_token: str, ns_per_byte: str) -> None:
        self.s.set_rates(float(ns_per_token), float(ns_per_byte))

    def do_cached(self, rid: str, tokens: str) -> None:
        assert self.reqs[rid].account.cached_tokens == int(tokens)

    def do_now(self, time: str) -> None:
        self.now = int(time)

    def do_pause(self) -> None:
        self.s.pause()

    def do_drain(self) -> None:
        self.s.pause(drain=True)

    def do_resume(self) -> None:
        self.s.resume()

    def do_flush(self) -> None:
        self.s.flush_cache()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_script(path: Path) -> None:
    """Every line holds; integrity is checked after each."""
    script = Script()
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = shlex.split(line, comments=True)
        if not words:
            continue
        try:
            getattr(script, f"do_{words[0]}")(*words[1:])
            script.s.check_integrity()
        except AssertionError as error:
            raise AssertionError(f"{path.name}:{number}: {line.strip()}: {error}") from None
