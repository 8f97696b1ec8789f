"""What comes to a simulated engine: made up (Poisson, bursty, closed loop; lengths from a distribution), or from a trace of a
production service in Mooncake's JSONL or Azure's CSV form."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stoker._core.sim import Workload

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Requests:
    """One entry a request, in the order of arrival. Times in nanoseconds, lengths in tokens."""

    times: Ints
    """Arrivals; in a closed loop (`users` > 0) how long each user thinks before sending it."""
    prompt_lens: Ints
    answer_lens: Ints
    max_tokens: Ints
    """What each asks for at most; where it is more than the answer has, a token ends it."""
    hash_indptr: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    hash_ids: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """Request i's prompt begins with the blocks hash_ids[hash_indptr[i]:hash_indptr[i + 1]]; equal ids are equal tokens."""
    hash_block: int = 512
    sessions: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    users: int = 0
    source: str = ""
    """Where they come from; `{source}, line {lines[i]}` is request i's."""
    lines: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.times)

    def native(self, vocab_size: int = 1 << 17) -> Workload:
        """For the simulation."""
        return Workload(
            times=self.times,
            prompt_lens=self.prompt_lens,
            answer_lens=self.answer_lens,
            max_tokens=self.max_tokens,
            hash_indptr=self.hash_indptr,
            hash_ids=self.hash_ids,
            hash_block=self.hash_block,
            sessions=self.sessions,
            users=self.users,
            vocab_size=vocab_size,
        )

    def where(self, number: int) -> str:
        """Names request `number` for an error."""
        return f"{self.source}, line {self.lines[number]}" if len(self.lines) else f"request {number}"

    def without(self, numbers: set[int]) -> Requests:
        """Less these requests."""
        keep = np.array([i for i in range(len(self)) if i not in numbers], np.int64)
        return self._taken(keep)

    def first(self, count: int) -> Requests:
        """The first `count`."""
        return self._taken(np.arange(min(count, len(self)), dtype=np.int64))

    def faster(self, factor: float) -> Requests:
        """At `factor` times the rate."""
        if factor <= 0:
            raise ValueError(f"a rate must be above 0, not {factor} times the trace's")
        return replace(self, times=np.rint(self.times / factor).astype(np.int64))

    def declaring(self, max_tokens: int) -> Requests:
        """With this max_tokens, where the answer is not longer."""
        return replace(self, max_tokens=np.maximum(self.answer_lens, max_tokens))

    def _taken(self, keep: Ints) -> Requests:
        indptr, ids = self.hash_indptr, self.hash_ids
        if len(indptr):
            counts = np.diff(indptr)[keep]
            ids = np.concatenate([np.zeros(0, np.int64), *(ids[indptr[i] : indptr[i + 1]] for i in keep)])
            indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return replace(
            self,
            times=self.times[keep],
            prompt_lens=self.prompt_lens[keep],
            answer_lens=self.answer_lens[keep],
            max_tokens=self.max_tokens[keep],
            hash_indptr=indptr,
            hash_ids=ids,
            sessions=self.sessions[keep] if len(self.sessions) else self.sessions,
            lines=self.lines[keep] if len(self.lines) else self.lines,
        )


LENGTHS = "N, uniform:LOW:HIGH, loguniform:LOW:HIGH, lognormal:MEDIAN:SIGMA[:MOST], exponential:MEAN[:MOST]"


def draw_lengths(spec: str, count: int, rng: np.random.Generator) -> Ints:
    """`count` whole lengths of at least 1 from one of LENGTHS. Raises ValueError that says which are allowed."""
    kind, *texts = spec.split(":")
    wrong = ValueError(f"lengths {spec!r}: allowed are {LENGTHS}")
    try:
        numbers = [float(text) for text in texts]
        if not texts:
            numbers, kind = [float(kind)], "fixed"
    except ValueError:
        raise wrong from None
    most = np.inf
    if kind in ("lognormal", "exponential") and len(numbers) == (3 if kind == "lognormal" else 2):
        most = numbers.pop()
    wanted = {"fixed": 1, "uniform": 2, "loguniform": 2, "lognormal": 2, "exponential": 1}.get(kind)
    if wanted != len(numbers) or not np.all(np.isfinite(numbers)) or numbers[0] < 1 or most < 1:
        raise wrong
    if kind in ("uniform", "loguniform") and numbers[1] < numbers[0]:
        raise wrong
    if kind == "fixed":
        values = np.full(count, numbers[0])
    elif kind == "uniform":
        values = rng.integers(int(numbers[0]), int(numbers[1]) + 1, count).astype(np.float64)
    elif kind == "loguniform":
        values = np.exp(rng.uniform(np.log(numbers[0]), np.log(numbers[1]), count))
    elif kind == "lognormal":
        values = numbers[0] * np.exp(numbers[1] * rng.standard_normal(count))
    else:
        values = rng.exponential(numbers[0], count)
    lengths: Ints = np.clip(np.rint(values), 1, most).astype(np.int64)
    return lengths


def synthetic(
    *,
    num_reqs: int,
    rate: float | None = None,
    burstiness: float = 1.0,
    users: int = 0,
    think: float = 0.0,
    prompt_len: str = "512",
    output_len: str = "128",
    prefix_len: int = 0,
    prefix_groups: int = 1,
    seed: int = 0,
) -> Requests:
    """Made-up requests. `rate` a second with gaps from a gamma distribution of shape `burstiness` (1: Poisson; below: bursts;
    None: all at once), or `users` that each wait for an answer and then think for `think` seconds (exponential). The first
    `prefix_len` tokens of a prompt, on top of prompt_len, are shared by all of its group of `prefix_groups`."""
    if num_reqs < 1:
        raise ValueError(f"num_reqs {num_reqs}: at least 1 is needed")
    if rate is not None and (users or not rate > 0):
        raise ValueError(
            f"rate {rate}: must be above 0"
            if not rate > 0
            else "a closed loop (users) has no rate; give one of them"
        )
    if not burstiness > 0 or think < 0 or users < 0 or prefix_len < 0 or prefix_groups < 1:
        raise ValueError(
            "burstiness must be above 0, prefix_groups at least 1, users, think and prefix_len 0 or more"
        )
    rng = np.random.Generator(np.random.PCG64(seed))
    prompts = draw_lengths(prompt_len, num_reqs, rng) + prefix_len
    answers = draw_lengths(output_len, num_reqs, rng)
    if users:
        seconds = rng.exponential(think, num_reqs) if think else np.zeros(num_reqs)
    elif rate is None:
        seconds = np.zeros(num_reqs)
    else:
        seconds = np.cumsum(rng.gamma(burstiness, 1 / (rate * burstiness), num_reqs))
    made = Requests(
        np.rint(seconds * 1e9).astype(np.int64), prompts, answers, answers, users=users, source="made up"
    )
    if not prefix_len:
        return made
    groups = rng.integers(0, prefix_groups, num_reqs)
    return replace(
        made,
        hash_indptr=np.arange(num_reqs + 1, dtype=np.int64),
        hash_ids=groups.astype(np.int64),
        hash_block=prefix_len,
        sessions=groups.astype(np.int64),
    )


def load_trace(path: str | Path) -> Requests:
    """Mooncake's JSONL (timestamp in ms, input_length, output_length, hash_ids) or Azure's CSV (TIMESTAMP, ContextTokens,
    GeneratedTokens), told apart by its first line. Raises ValueError that names file and line."""
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            head = file.readline()
            file.seek(0)
            read = _mooncake if head.lstrip().startswith("{") else _azure
            rows = list(read(str(path), file))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error})") from None
    if not rows:
        raise ValueError(f"{path}: holds no request")
    rows.sort(key=lambda row: row.seconds)  # stable: equal times stay in the file's order
    start = rows[0].seconds
    hashes = [row.hash_ids for row in rows]
    lengths = np.array([(row.prompt, row.answer, row.line) for row in rows], np.int64)
    # A conversation is known by its second block: the first is a system prompt that many share.
    sessions = [h[min(1, len(h) - 1)] for h in hashes if h]
    return Requests(
        np.rint(np.array([row.seconds - start for row in rows]) * 1e9).astype(np.int64),
        lengths[:, 0],
        lengths[:, 1],
        lengths[:, 1],
        hash_indptr=np.cumsum([0, *map(len, hashes)]) if sessions else np.zeros(0, np.int64),
        hash_ids=np.array([i for h in hashes for i in h], np.int64),
        sessions=np.array(sessions if len(sessions) == len(rows) else [], np.int64),
        source=str(path),
        lines=lengths[:, 2],
    )


_MOST_TOKENS, _MOST_ID, _MOST_SECONDS = 2**31 - 1, 2**63 - 1, 1e10
"""What the core's counters hold."""


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    seconds: float
    prompt: int
    answer: int
    hash_ids: list[int]


def _mooncake(path: str, lines: Iterator[str]) -> Iterator[_Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
            ids = raw.get("hash_ids", [])
            row = _Row(number, float(raw["timestamp"]) / 1e3, raw["input_length"], raw["output_length"], ids)
            if not all(type(v) is int and 1 <= v <= _MOST_TOKENS for v in (row.prompt, row.answer)):
                raise ValueError(
                    f"input_length and output_length must be whole numbers of 1 to {_MOST_TOKENS}"
                )
            if not 0 <= row.seconds <= _MOST_SECONDS:
                raise ValueError(f"timestamp must be 0 to {1e3 * _MOST_SECONDS:g} milliseconds")
            if not isinstance(ids, list) or not all(type(i) is int and 0 <= i <= _MOST_ID for i in ids):
                raise ValueError(f"hash_ids must be a list of whole numbers, 0 to {_MOST_ID}")
        except KeyError as error:
            raise ValueError(f"{path}, line {number}: {error.args[0]} is missing") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: not a line of a Mooncake trace ({error})") from None
        yield row


def _azure(path: str, lines: Iterator[str]) -> Iterator[_Row]:
    reader = csv.reader(lines)
    wanted = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
    head = next(reader, [])
    if [name.strip() for name in head] != wanted:
        raise ValueError(
            f"{path}, line 1: neither a Mooncake trace (JSON lines) nor an Azure trace (CSV with {','.join(wanted)})"
        )
    for cells in reader:
        number = reader.line_num
        if not cells:
            continue
        try:
            stamp, prompt, answer = cells
            # Azure writes seven decimals, Python reads six.
            when = datetime.fromisoformat(stamp[:26]).replace(tzinfo=timezone.utc).timestamp()
            row = _Row(number, when, int(prompt), int(answer), [])
            if not all(1 <= v <= _MOST_TOKENS for v in (row.prompt, row.answer)):
                raise ValueError(f"ContextTokens and GeneratedTokens must be 1 to {_MOST_TOKENS}")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not a line of an Azure trace ({error})") from None
        yield row
