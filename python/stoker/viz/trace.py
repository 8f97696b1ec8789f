"""The step trace: what each step did and which req had which row in it; read from and written to a file of JSON lines."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

VERSION = 1


class Row(NamedTuple):
    """One req's part of one step: its tokens stand at positions [kv_len - num_tokens, kv_len)."""

    key: int
    seat: int
    num_tokens: int
    kv_len: int
    decodes: bool
    """One token of a running req; else a chunk of a prompt, or of a recompute."""


class Change(NamedTuple):
    """A req was first seen, changed its state, or waits for another reason than before."""

    batch_id: int
    time: int
    key: int
    state: str
    """waiting, running, retracted, swapping_out, swapped, swapping_in."""
    wait: str
    """Why it waits ("none": it does not), with what it needed and what there was."""
    needed: int
    free: int
    evictable: int


@dataclass(slots=True)
class Step:
    """One step. Times in nanoseconds on the loop's clock."""

    stats: dict[str, Any]
    """As `EngineLoop.trace()` has it: counts by phase, blocks by state, host time by stage, device time."""
    rows: list[Row] = field(default_factory=list)
    tokens: dict[int, int] = field(default_factory=dict)
    """New tokens by req; a row without an entry gave none (a chunk before the last, or thrown away)."""
    start: int = 0
    """From here on it was this step that the device had to do: its launch, or the end of the step before."""

    @property
    def batch_id(self) -> int:
        return int(self.stats["batch_id"])

    @property
    def end(self) -> int:
        """When its result was there."""
        return int(self.stats["committed"]) - int(self.stats["commit_ns"])

    @property
    def launched(self) -> int:
        return int(self.stats["began"]) + int(self.stats["receive_ns"]) + int(self.stats["schedule_ns"])

    @property
    def has_chunk(self) -> bool:
        return any(row.num_tokens > 1 for row in self.rows)

    @property
    def host_ns(self) -> int:
        """Receive, schedule, launch and commit; without waiting for the device."""
        return sum(int(self.stats[f"{stage}_ns"]) for stage in ("receive", "schedule", "launch", "commit"))


@dataclass(slots=True)
class ReqTrace:
    """One req, and how it ended if it did. Times in nanoseconds; below 0: did not happen."""

    key: int
    rid: str
    prompt_len: int
    arrival_time: int
    label: str = ""
    """What pictures call it."""
    reason: str = ""
    """stop, length, abort or error; empty: the recording ended first."""
    end_batch: int = 0
    num_outputs: int = 0
    retractions: int = 0
    swaps: int = 0
    cached_tokens: int = 0
    first_scheduled_time: int = -1
    first_token_time: int = -1
    finish_time: int = -1


@dataclass(slots=True)
class Trace:
    """A recorded run."""

    meta: dict[str, Any]
    """model, command, machine, and `config`: the scheduler's."""
    steps: list[Step]
    reqs: dict[int, ReqTrace]
    changes: list[Change]

    def __post_init__(self) -> None:
        self.steps.sort(key=lambda step: step.batch_id)
        before = 0
        for step in self.steps:
            step.start = min(step.end, max(step.launched, before))
            before = step.end
        for number, req in enumerate(sorted(self.reqs.values(), key=lambda req: req.key), 1):
            req.label = req.label or str(number)

    @property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.meta.get("config", {})
        return config

    @property
    def began(self) -> int:
        """When the first req came, or the first step began: the pictures' time 0."""
        times = [step.start for step in self.steps[:1]] + [req.arrival_time for req in self.reqs.values()]
        return min(times, default=0)

    @property
    def seconds(self) -> float:
        return (self.steps[-1].end - self.began) / 1e9 if self.steps else 0.0

    @property
    def num_outputs(self) -> int:
        return sum(sum(step.tokens.values()) for step in self.steps)

    @classmethod
    def from_recording(cls, recording: dict[str, Any], meta: dict[str, Any]) -> Trace:
        """From what `EngineLoop.take_recording()` gave; `meta` says what was run."""
        steps = {int(stats["batch_id"]): Step(stats) for stats in recording["steps"]}
        for batch_id, key, count in recording["tokens"]:
            if batch_id in steps:
                steps[batch_id].tokens[key] = count
        reqs = {key: ReqTrace(key, *rest) for key, *rest in sorted(recording["reqs"])}
        for batch_id, key, seat, num_tokens, kv_len, is_single in recording["rows"]:
            if batch_id in steps:  # else still in flight
                # The scheduler calls a prompt's last token, alone, a decode row; here it is still prefill.
                decodes = is_single and kv_len > reqs[key].prompt_len
                steps[batch_id].rows.append(Row(key, seat, num_tokens, kv_len, decodes))
        ends = ("reason", "num_outputs", "retractions", "swaps", "cached_tokens")
        times = ("first_scheduled_time", "first_token_time", "finish_time")
        for batch_id, key, *values in recording["ends"]:
            req = reqs[key]
            req.end_batch = batch_id
            for name, value in zip((*ends, *times), values, strict=True):
                setattr(req, name, value)
        if recording["dropped_steps"]:
            meta = {**meta, "dropped_steps": recording["dropped_steps"]}
        return cls(meta, list(steps.values()), reqs, [Change(*c) for c in recording["changes"]])

    def save(self, path: str | Path) -> None:
        """Writes it as JSON lines: what was run, then a line for each req, change and step; gzipped if the name ends
        in .gz."""
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in self._lines())
        data = text.encode()
        Path(path).write_bytes(gzip.compress(data) if str(path).endswith(".gz") else data)

    def _lines(self) -> Iterator[dict[str, Any]]:
        yield {"stoker_trace": VERSION, **self.meta}
        for req in self.reqs.values():
            yield {"req": asdict(req)}
        for change in self.changes:
            yield {"change": change}
        for step in self.steps:
            yield {"step": step.stats, "rows": step.rows, "tokens": list(step.tokens.items())}

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Reads what `save` wrote. Raises ValueError, with file and line, for anything else."""
        try:
            data = Path(path).read_bytes()
            text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror or error}") from None
        except (UnicodeDecodeError, EOFError) as error:
            raise ValueError(f"{path}: not a trace ({error})") from None
        return cls.parse(text.splitlines(), str(path))

    @classmethod
    def parse(cls, lines: Iterable[str], name: str = "trace") -> Trace:
        """The same from its lines."""
        meta: dict[str, Any] | None = None
        steps: list[Step] = []
        reqs: dict[int, ReqTrace] = {}
        changes: list[Change] = []
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                if meta is None:
                    if entry.pop("stoker_trace") != VERSION:
                        raise ValueError(f"this is not version {VERSION} of a stoker trace")
                    meta = entry
                elif "req" in entry:
                    req = ReqTrace(**entry["req"])
                    reqs[req.key] = req
                elif "change" in entry:
                    changes.append(Change(*entry["change"]))
                else:
                    step = Step(entry["step"], [Row(*row) for row in entry["rows"]], dict(entry["tokens"]))
                    _check_step(step, reqs)
                    steps.append(step)
            except (ValueError, TypeError, KeyError, AttributeError) as error:  # noqa: PERF203
                what = f"has no {error}" if isinstance(error, KeyError) else str(error)
                raise ValueError(f"{name}, line {number}: not a line of a stoker trace ({what})") from None
        if meta is None:
            raise ValueError(f"{name} is empty; `stoker trace record` makes a trace")
        return cls(meta, steps, reqs, changes)


def _check_step(step: Step, reqs: dict[int, ReqTrace]) -> None:
    for name in _NEEDED:
        if not isinstance(step.stats[name], int | float):
            raise ValueError(f"{name} must be a number, got {step.stats[name]!r}")
    for row in step.rows:
        if row.key not in reqs:
            raise ValueError(f"a row of req {row.key}, of which no line before told")


_NEEDED = [
    "batch_id",
    "began",
    "committed",
    "receive_ns",
    "schedule_ns",
    "launch_ns",
    "collect_ns",
    "commit_ns",
    "device_ns",
    "in_flight",
    "num_tokens",
    "num_sampled_rows",
    "num_decode_rows",
    "num_prefill_rows",
    "num_running",
    "num_waiting",
    "num_preempted",
    "free_blocks",
    "used_blocks",
    "cached_blocks",
]
