"""Steps written by hand into a runner's buffers, as the scheduler would write them: for tests of the runner
alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from stoker.engine.step_buffer import HEADER_BYTES, HEADER_WORDS, SECTIONS, TRANSFER
from stoker.ops import SEAT_CHANGE

_WORDS = {"work": 8, "table_changes": 4, "seat_changes": 20, "transfers": 10}


class HandLayout:
    """Every section with the same room, one after another."""

    def __init__(self, room: int = 1024) -> None:
        self.sections: dict[str, tuple[int, int, int]] = {}
        self.nbytes = HEADER_BYTES
        for name in SECTIONS:
            size = 4 * _WORDS.get(name, 1)
            self.sections[name] = (self.nbytes, room, size)
            self.nbytes += size * room


@dataclass
class Row:
    """Tokens of a seat from a position on. `outs` are (kind, target) of what is read from its last token."""

    seat: int
    tokens: list[int]
    first: int = 0
    outs: list[tuple[int, int]] = field(default_factory=lambda: [(0, -1)])


@dataclass
class Step:
    """One step: rows, blocks given to seats as (seat, index, block), seat changes as fields, transfers as
    fields.
    """

    rows: list[Row]
    blocks: list[tuple[int, int, int]] = field(default_factory=list)
    seats: list[dict[str, Any]] = field(default_factory=list)
    transfers: list[dict[str, int]] = field(default_factory=list)


class HandScheduler:
    """Writes steps into a runner's ring and reads its results."""

    def __init__(self, runner: Any, block_size: int = 16, ring: int = 2) -> None:
        self.runner = runner
        self.block_size = block_size
        self.layout = HandLayout()
        self.memories = runner.buffers(self.layout, ring)
        self.tables: dict[int, dict[int, int]] = {}
        self.count = 0

    def run(self, step: Step, fails: bool = False) -> SimpleNamespace:
        """Launches and collects one step, which must (not) fail."""
        index = self.count % len(self.memories)
        self.count += 1
        self.write(step, self.memories[index])
        self.runner.launch(index)
        result = SimpleNamespace(
            status="ok", message="", row_status=None, scores=None, logprobs=None, token_ids=None
        )
        self.runner.collect(result)
        assert (result.status == "ok") != fails, result.message
        return result

    def write(self, step: Step, memory: np.ndarray) -> None:
        used: dict[str, int] = {}

        def put(name: str, values: Any, dtype: Any = np.int32) -> None:
            data = np.asarray(values, dtype=dtype)
            begin = self.layout.sections[name][0]
            memory[begin : begin + data.nbytes] = data.view(np.uint8).reshape(-1)
            used[name] = len(data)

        for seat, position, block in step.blocks:
            self.tables.setdefault(seat, {})[position] = block
        outs: list[tuple[int, int, int, int, int]] = []
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        indptr = [0]
        for row in step.rows:
            at = range(row.first, row.first + len(row.tokens))
            tokens += row.tokens
            positions += at
            size = self.block_size
            slots += [self.tables[row.seat][p // size] * size + p % size for p in at]
            indptr.append(len(tokens))
            # The last `len(outs)` tokens of the row are read, one each.
            for i, (kind, target) in enumerate(row.outs):
                back = len(row.outs) - i
                outs.append((len(tokens) - back, row.seat, kind, target, at.stop - back + 1))
        put("row_seat", [row.seat for row in step.rows])
        put("row_indptr", indptr)
        put("row_kv_len", [row.first + len(row.tokens) for row in step.rows])
        for i, name in enumerate(("out_token", "out_seat", "out_kind", "out_target", "out_position")):
            put(name, [out[i] for out in outs])
        put("token_ids", tokens)
        put("positions", positions)
        put("slots", slots)
        put("table_changes", [(0, *change) for change in step.blocks])
        changes = np.zeros(len(step.seats), SEAT_CHANGE)
        changes["top_p"], changes["repetition_penalty"], changes["num_logprobs"] = 1.0, 1.0, -1
        for i, fields in enumerate(step.seats):
            for key, value in fields.items():
                changes[key][i] = value
        put("seat_changes", changes, SEAT_CHANGE)
        transfers = np.zeros(len(step.transfers), TRANSFER)
        for i, fields in enumerate(step.transfers):
            for key, value in fields.items():
                transfers[key][i] = value
        put("transfers", transfers, TRANSFER)
        header = memory[:HEADER_BYTES].view(np.int32)
        header[:] = 0
        header[2] = self.count
        decodes = sum(len(row.tokens) == 1 for row in step.rows)
        sampled = sum(out[2] == 0 for out in outs)
        header[4:12] = (len(step.rows), len(tokens), len(step.rows), decodes, len(outs), sampled, 0, 0)
        for i, name in enumerate(SECTIONS):
            header[HEADER_WORDS + 2 * i] = self.layout.sections[name][0]
            header[HEADER_WORDS + 2 * i + 1] = used.get(name, 0)
