"""Fits a cost model to a recorded step trace: coefficients that are never negative, least squares of relative errors, and the
spread that is left as ratios to draw from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stoker._core.sim import CostModel

Floats = NDArray[np.float64]

_KNEES = (0, 2, 4, 8, 16, 32, 64, 128, 256)
"""Tokens up to which linear layers take as long as reading their weights; the one that fits best is taken."""
_RATIOS = 256
"""Kept of a spread, at most."""
_LEAST_STEPS = 50


class _Row(Protocol):
    @property
    def num_tokens(self) -> int: ...
    @property
    def kv_len(self) -> int: ...


class RecordedStep(Protocol):
    """A stoker.viz Step. Times in nanoseconds."""

    stats: dict[str, Any]
    start: int

    @property
    def rows(self) -> Sequence[_Row]: ...
    @property
    def end(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted model and how well it fits."""

    cost: CostModel
    num_steps: int
    mean_error: float
    """Mean of |modelled - measured| / measured over the steps, without noise."""


WORK = (
    "rows",
    "chunk_rows",
    "tokens",
    "chunk_tokens",
    "sampled",
    "decode_kv",
    "chunk_kv",
    "scores",
    "from_idle",
)


def work_of(step: RecordedStep) -> tuple[float, ...]:
    """What csrc/sim/step_work.h counts, in the order of WORK."""
    rows = step.rows
    single = [row for row in rows if row.num_tokens == 1]
    chunks = [row for row in rows if row.num_tokens > 1]
    scores = sum(r.num_tokens * (2 * r.kv_len - r.num_tokens + 1) / 2 for r in chunks)
    return (
        len(rows), len(chunks), sum(row.num_tokens for row in rows), sum(row.num_tokens for row in chunks),
        int(step.stats["num_sampled_rows"]),
        sum(row.kv_len for row in single), sum(row.kv_len for row in chunks), scores,
        step.stats["in_flight"] == 0,
    )  # fmt: skip


def fit(steps: Sequence[RecordedStep], *, noise: bool = True) -> Fit:
    """Raises ValueError for a trace with too few steps to say anything."""
    held = [step for step in steps if step.rows and step.end > step.start]
    if len(held) < _LEAST_STEPS:
        raise ValueError(f"the trace holds {len(held)} steps; at least {_LEAST_STEPS} are needed for a fit")
    work = np.array([work_of(s) for s in held], np.float64)
    took = np.array([s.end - s.start for s in held], np.float64)
    # A step that something else held up is no measure of what steps take; it stays in the noise.
    calm = _calm(took, work)
    best: tuple[float, Floats, int] | None = None
    for knee in _KNEES:
        features = _features(work, knee)[calm]
        expected = took[calm]
        for _ in range(3):
            # Errors count relative to what is expected: else short steps would count for too little.
            found = _not_negative(features / expected[:, None], took[calm] / expected)
            expected = features @ found
        error = float(np.abs(took[calm] / expected - 1).mean())
        if best is None or error < best[0] * 0.995:  # a knee has to earn its place
            best = (error, found, knee)
    assert best is not None
    _, found, knee = best
    modelled = _features(work, knee) @ found
    found, modelled = (values * (took.sum() / modelled.sum()) for values in (found, modelled))
    step, from_idle, row, chunk_row, sampled, token, chunk_token, decode_kv, score = (
        float(value) for value in found
    )
    cost = CostModel(
        step=step, from_idle=from_idle, row=row, chunk_row=chunk_row, sampled=sampled, weights=token * knee, token=token,
        chunk_token=chunk_token, decode_kv=decode_kv, score=score, noise=_spread(took / modelled) if noise else [],
        noise_of_size=_spread_of_size(work, took / modelled) if noise else [],
        host_before=_median([s.stats["receive_ns"] + s.stats["schedule_ns"] for s in held]),
        host_after=_median([b.stats["began"] - a.end for a, b in itertools.pairwise(held)
                            if 0 <= b.stats["began"] - a.end < 1e6]),
    )  # fmt: skip
    return Fit(cost, len(held), float(np.abs(modelled / took - 1).mean()))


def _features(work: Floats, knee: int) -> Floats:
    rows, chunk_rows, tokens, chunk_tokens, sampled, decode_kv, _, scores, from_idle = work.T
    ones = np.ones(len(work))
    linear = np.maximum(tokens, knee)
    return np.stack(
        [ones, from_idle, rows, chunk_rows, sampled, linear, chunk_tokens, decode_kv, scores], axis=1
    )


def _size_classes(work: Floats) -> Iterator[NDArray[np.bool_]]:
    """Which steps are of each of CostModel's size classes (csrc/sim/cost_model.h), from class 0 on."""
    sizes = 2 * (np.floor(np.log2(work[:, 2])).astype(int) + 1) + (work[:, 1] > 0)
    return (sizes == size for size in range(int(sizes.max()) + 1))


def _calm(took: Floats, work: Floats) -> NDArray[np.bool_]:
    """Steps not twice as long as most of those of their size."""
    calm = np.ones(len(took), bool)
    for among in _size_classes(work):
        if among.any():
            calm[among] = took[among] <= 2 * np.median(took[among])
    return calm


def _spread(ratios: Floats) -> list[float]:
    """Measured / modelled as a few ratios, equally likely, of the same mean: those of the sorted steps, averaged in turn."""
    return [float(part.mean()) for part in np.array_split(np.sort(ratios), min(_RATIOS, len(ratios)))]


def _spread_of_size(work: Floats, ratios: Floats) -> list[list[float]]:
    """The same for each size class; none of a class with few steps."""
    classes = (ratios[among] for among in _size_classes(work))
    return [_spread(each) if len(each) >= _LEAST_STEPS else [] for each in classes]


def _not_negative(a: Floats, b: Floats) -> Floats:
    """min |a x - b|, x >= 0: Lawson and Hanson's active set on the normal equations."""
    scale = np.sqrt((a * a).sum(axis=0))
    scale[scale == 0] = np.inf  # a feature that never occurs
    a = a / scale
    gram, target = a.T @ a + 1e-10 * np.eye(a.shape[1]), a.T @ b
    x, free = np.zeros(a.shape[1]), np.zeros(a.shape[1], bool)
    for _ in range(10 * len(x)):
        slope = np.where(free, -np.inf, target - gram @ x)
        if slope.max() <= 1e-9 * max(1.0, float(np.abs(target).max())):
            break
        free[int(slope.argmax())] = True
        while True:
            best = np.zeros_like(x)
            best[free] = np.linalg.solve(gram[np.ix_(free, free)], target[free])
            below = free & (best <= 0)
            if not below.any():
                x = best
                break
            x = x + (x[below] / (x[below] - best[below])).min() * (best - x)
            free &= x > 1e-15
            x[~free] = 0.0
    found: Floats = x / scale
    return found


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else 0.0
