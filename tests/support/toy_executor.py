"""A small executor for tests of the scheduler, faithful to the KV: it keeps what each slot holds, applies table changes in
order, runs a step only when it is collected, and samples a hash of the tokens it reads back through the block table. So a
wrong block, slot, position or an early reuse changes a token."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stoker.scheduler import Req, SamplingParams, Scheduler, SchedulerConfig, StepResult

VOCAB = 97
EOS = 0


def next_token(tokens: Sequence[int]) -> int:
    """What the toy model says after these tokens: 1 in 40 is EOS."""
    h = zlib.crc32(np.asarray(tokens, dtype=np.int32).tobytes())
    return EOS if h % 40 == 0 else 1 + h % (VOCAB - 1)


def expected(
    prompt: Sequence[int], max_tokens: int, stops: Sequence[int] = (EOS,), window: int = 0
) -> list[int]:
    """A req's outputs when it is alone in the world; window: only so many last tokens are seen."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens:
        tokens.append(next_token(tokens[-window:] if window else tokens))
        if tokens[-1] in stops:
            break
    return tokens[len(prompt) :]


@dataclass
class Step:
    batch_id: int
    arrays: dict[str, np.ndarray[Any, Any]]
    num_rows: int


@dataclass
class ToyExecutor:
    config: SchedulerConfig
    groups: int = 1
    block_sizes: list[int] = field(default_factory=list)
    windows: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        kv = self.config.kv_groups
        self.groups = max(1, len(kv))
        self.block_sizes = [g.block_size for g in kv] or [self.config.block_size]
        self.windows = [g.window for g in kv] or [0]
        self.tables: list[dict[tuple[int, int], int]] = [{} for _ in range(self.groups)]
        self.kv: list[dict[int, tuple[int, int]]] = [{} for _ in range(self.groups)]
        self.last_token: dict[int, int] = {}
        self.flight: list[Step] = []
        self.host: list[dict[int, tuple[int, int]]] = [{} for _ in range(self.groups)]

    def launch(self, batch: Any) -> None:
        names = ("row_seat", "row_indptr", "row_kv_len", "out_token", "out_seat", "out_kind", "out_position")
        names += ("token_ids", "positions", "slots", "table_changes", "transfers")
        arrays = {name: getattr(batch, name).copy() for name in names}
        self.flight.append(Step(batch.batch_id, arrays, batch.num_rows))

    def move(self, transfers: np.ndarray[Any, Any]) -> None:
        """Copies blocks, before the step's rows."""
        for t in transfers:
            group, size = int(t["group"]), self.block_sizes[t["group"]]
            source = (self.kv, self.host)[t["source_tier"]][group]
            destination = (self.kv, self.host)[t["destination_tier"]][group]
            for i in range(size):
                found = source.get(int(t["source_block"]) * size + i)
                destination[int(t["destination_block"]) * size + i] = found or (-1, -1)

    def collect(self) -> tuple[int, list[int], list[int]]:
        """Runs the oldest step; returns its id, one token for each sampled row, and the tickets of its copies."""
        step = self.flight.pop(0)
        a = step.arrays
        self.move(a["transfers"])
        for group, seat, index, block in a["table_changes"].tolist():
            self.tables[group][seat, index] = block
        ids = [t if t >= 0 else self.last_token[-1 - t] for t in a["token_ids"].tolist()]
        positions = a["positions"].tolist()
        stride = self.config.max_num_batched_tokens
        for g in range(self.groups):
            for i, (token, position) in enumerate(zip(ids, positions, strict=True)):
                self.kv[g][int(a["slots"][g * stride + i])] = (token, position)
        row_of = np.searchsorted(a["row_indptr"], a["out_token"], side="right") - 1
        tokens = []
        for row, seat, kind in zip(
            row_of.tolist(), a["out_seat"].tolist(), a["out_kind"].tolist(), strict=True
        ):
            if kind != 0:
                continue
            seen = self.read(int(a["row_seat"][row]), int(a["row_kv_len"][row]))
            tokens.append(next_token(seen))
            self.last_token[seat] = tokens[-1]
        return step.batch_id, tokens, a["transfers"]["ticket"].tolist()

    def read(self, seat: int, length: int) -> list[int]:
        """The tokens of positions 0 .. length - 1 through the block table; -1 where something else is found."""
        seen = []
        for position in range(length):
            found = set()
            for g in range(self.groups):
                if self.windows[g] and position <= length - 1 - self.windows[g]:
                    continue  # left behind by the window
                size = self.block_sizes[g]
                block = self.tables[g].get((seat, position // size), -1)
                token, at = self.kv[g].get(block * size + position % size, (-1, -1))
                found.add(token if at == position else -1)
            if found:
                seen.append(found.pop() if len(found) == 1 else -1)
        return seen


def run(
    config: SchedulerConfig,
    reqs: list[Req],
    *,
    arrivals: Sequence[int] = (),
    each_step: Callable[[int, Scheduler], None] | None = None,
    fail: Sequence[int] = (),
    scheduler: Scheduler | None = None,
    max_steps: int = 20000,
) -> Scheduler:
    """Runs the reqs to their ends, checking integrity after every call. arrivals[i]: the turn at which req i comes;
    fail: batch ids that fail."""
    s = scheduler or Scheduler(config)
    depth = config.overlap_depth
    device = ToyExecutor(config)
    coming = sorted(range(len(reqs)), key=lambda i: (arrivals[i] if arrivals else 0, i))
    turn = 0
    while coming or s.has_unfinished() or device.flight:
        assert turn < max_steps, "the scheduler does not get on"
        while coming and (not arrivals or arrivals[coming[0]] <= turn):
            s.add(reqs[coming.pop(0)], now=turn)
        if each_step:
            each_step(turn, s)
        batch = s.schedule(now=turn)
        s.check_integrity()
        if batch is not None:
            assert batch.num_tokens <= config.max_num_batched_tokens
            assert batch.num_rows <= config.max_num_seqs
            device.launch(batch)
        if device.flight and (batch is None or len(device.flight) > depth):
            batch_id, tokens, tickets = device.collect()
            result = StepResult()
            result.finished_transfers = np.asarray(tickets, dtype=np.int64)
            if batch_id in fail:
                result.status, result.message = "failed", "planned"
                s.commit(batch_id, result, now=turn)
            elif tickets:
                result.token_ids = np.asarray(tokens, dtype=np.int32)
                s.commit(batch_id, result, now=turn)
            else:
                s.commit(batch_id, np.asarray(tokens, dtype=np.int32), now=turn)
            s.check_integrity()
        elif batch is None:
            s.take_events()
        turn += 1
    counts = s.block_counts()
    assert counts.used == 0
    assert counts.draining == 0
    host = s.host_block_counts()
    assert host.used == host.draining == 0
    return s


def random_reqs(
    seed: int, count: int, *, longest: int = 40, most: int = 30, shared: int = 3, **options: Any
) -> list[Req]:
    """Prompts that partly share their heads."""
    rng = random.Random(seed)
    heads = [[rng.randrange(1, VOCAB) for _ in range(longest // 2)] for _ in range(shared)]
    reqs = []
    for i in range(count):
        head = rng.choice(heads)[: rng.randrange(0, longest // 2)]
        prompt = head + [rng.randrange(1, VOCAB) for _ in range(rng.randint(1, longest // 2))]
        reqs.append(Req(f"r{i}", prompt, SamplingParams(max_tokens=rng.randint(1, most)), **options))
    return reqs


def check_outputs(reqs: Sequence[Req], window: int = 0) -> None:
    """Every req ended by itself, with the tokens that it has alone."""
    for r in reqs:
        assert r.finish_reason in ("stop", "length"), (r, r.error)
        assert r.output_ids == expected(r.origin_input_ids, r.length_limit - r.prompt_len, window=window), r
