"""Fits a cost model to a recorded step trace: coefficients that are never negative, least squares of relative errors, and what is
left, size by size, as ratios to draw from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stoker._core.sim import CostModel

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_KNEES = (0, 2, 4, 8, 16, 32, 64, 128, 256)
"""Tokens up to which linear layers take as long as reading their weights; the one that fits best is taken."""
_RATIOS = 256
"""Kept of a spread, at most."""
_LEAST_STEPS = 50
"""For a fit, and for a size class of its own."""
_ROUNDS = 6
_NO_WAIT = 0.05
"""Of a step's time: who waits less for its result came when it was there."""


class _Row(Protocol):
    @property
    def num_tokens(self) -> int: ...
    @property
    def kv_len(self) -> int: ...


class RecordedStep(Protocol):
    """A stoker.viz Step. Times in nanoseconds."""

    stats: dict[str, Any]

    @property
    def rows(self) -> Sequence[_Row]: ...
    @property
    def launched(self) -> int: ...
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


def fit(steps: Sequence[RecordedStep], *, noise: bool = True, slowness: Sequence[float] | None = None) -> Fit:
    """To the steps of a run, or of several one after the other. `slowness`: how many times as long as it should the machine took when
    each was made, where that is known. Raises ValueError for too few steps to say anything."""
    slowness = [1.0] * len(steps) if slowness is None else slowness
    if len(slowness) != len(steps):
        raise ValueError(f"{len(slowness)} speeds for {len(steps)} steps: one is needed for each")
    times = [ns / slow for ns, slow in zip(device_times(steps), slowness, strict=True)]
    lasted = [(step, ns) for step, ns in zip(steps, times, strict=True) if step.rows and ns > 0]
    if len(lasted) < _LEAST_STEPS:
        raise ValueError(f"the trace holds {len(lasted)} steps; at least {_LEAST_STEPS} are needed for a fit")
    held = [step for step, _ in lasted]
    work = np.array([work_of(step) for step in held], np.float64)
    took = np.array([ns for _, ns in lasted], np.float64)
    sizes = _Sizes(work)
    # A step that something else held up is no measure of what steps take; it stays in the noise.
    calm = took <= 2 * sizes.each(took, np.median)
    chunk = work[:, 1] > 0
    apart = min((calm & chunk).sum(), (calm & ~chunk).sum()) >= _LEAST_STEPS
    general = chunk if apart else np.ones(len(work), bool)
    coefficients, modelled = _general(work, took, calm & general, general)
    if apart:
        own, modelled[~chunk] = _decodes(work, took, calm & ~chunk, ~chunk)
        coefficients |= own
    beyond = sizes.means(took - modelled)
    modelled = np.maximum(modelled + beyond[sizes.of_step], 1.0)
    launch = np.array([step.stats["launch_ns"] for step in held], np.float64)
    cost = CostModel(
        **coefficients,
        beyond_of_size=beyond.tolist(),
        noise=_ratios(took / modelled) if noise else [],
        noise_of_size=sizes.by_class(took / modelled, _ratios) if noise else [],
        launch_of_size=sizes.by_class(launch, _spread),
        host_before=_median([step.stats["receive_ns"] + step.stats["schedule_ns"] for step in held]),
        host_after=_median(_after(held)),
    )
    return Fit(cost, len(held), float(np.abs(modelled / took - 1).mean()))


def _general(work: Floats, took: Floats, calm: Mask, held: Mask) -> tuple[dict[str, float], Floats]:
    """The formula of all steps, or of those with chunks; coefficients, and the time of all steps scaled to the mean of `held`."""
    best: tuple[float, Floats, int] | None = None
    for knee in _KNEES:
        found, error = _least_squares(_features(work, knee)[calm], took[calm], took[calm])
        if best is None or error < best[0] * 0.995:  # a knee has to earn its place
            best = (error, found, knee)
    assert best is not None
    _, found, knee = best
    modelled = _features(work, knee) @ found
    scale = took[held].sum() / modelled[held].sum()
    names = ("step", "from_idle", "row", "chunk_row", "sampled", "token", "chunk_token", "decode_kv", "score")
    named = {name: float(value) * scale for name, value in zip(names, found, strict=True)}
    return {**named, "weights": named["token"] * knee}, modelled * scale


def _decodes(work: Floats, took: Floats, calm: Mask, held: Mask) -> tuple[dict[str, float], Floats]:
    """The formula of steps without chunks, and the time of `held`. What a KV position costs is told by steps of one size alone: else the
    borders of graphs and kernels would bend it. The rest goes straight through all sizes, for those never seen."""
    rows, kv = work[:, 0], work[:, 5]
    sizes = _Sizes(work[calm])
    expected = sizes.each(took[calm], np.mean)
    within = np.stack([sizes.centred(values[calm]) / expected for values in (kv, rows)], axis=1)
    read = kv * _not_negative(within, sizes.centred(took[calm]) / expected)[0]
    features = np.stack([np.ones(len(work)), rows], axis=1)
    found, _ = _least_squares(features[calm], np.maximum(took - read, 0.0)[calm], took[calm])
    modelled = (features @ found + read)[held]
    scale = took[held].sum() / modelled.sum()
    cost_of_kv = read.sum() / max(kv.sum(), 1.0)
    values = (found[0], found[1], cost_of_kv)
    names = ("decodes_step", "decodes_row", "decodes_kv")
    return {n: float(v) * scale for n, v in zip(names, values, strict=True)}, modelled * scale


def _least_squares(features: Floats, target: Floats, took: Floats) -> tuple[Floats, float]:
    """Coefficients of `target` and their mean error. Errors count relative to what is expected: else short steps would count for too
    little; `took` is what a step took in all."""
    expected = took
    for _ in range(_ROUNDS):
        found = _not_negative(features / expected[:, None], target / expected)
        expected = features @ found + (took - target)
    return found, float(np.abs((took - expected) / expected).mean())


def device_times(steps: Sequence[RecordedStep]) -> list[int]:
    """How long the device had each, in nanoseconds: from its launch, or the end of the step before, to its result. Where the host
    came for the result so late that it was there already (launching the next step held it up), to when the device was done."""
    times: list[int] = []
    for run in _runs(steps):
        free = 0
        for step in run:
            start = max(step.launched, free)
            waited = step.stats["collect_ns"] > _NO_WAIT * (step.end - start)
            device = int(step.stats["device_ns"])
            free = step.end if waited or not device else min(step.end, start + device)
            times.append(free - start)
    return times


def _after(steps: Sequence[RecordedStep]) -> list[int]:
    """From each result to the next turn of the loop that launches something; without those where it had nothing to launch."""
    gaps: list[int] = []
    for run in _runs(steps):
        began = np.array([step.stats["began"] for step in run])
        ends = np.array([step.end for step in run])
        places = np.searchsorted(began, ends)
        after = began[places[places < len(began)]] - ends[places < len(began)]
        gaps += [int(gap) for gap in after if gap < 1e6]
    return gaps


def _runs(steps: Sequence[RecordedStep]) -> Iterator[Sequence[RecordedStep]]:
    """Each by itself: where a clock goes back, another run begins."""
    begins = [at for at in range(1, len(steps)) if steps[at].launched < steps[at - 1].launched]
    for begin, end in itertools.pairwise([0, *begins, len(steps)]):
        yield steps[begin:end]


def _features(work: Floats, knee: int) -> Floats:
    rows, chunk_rows, tokens, chunk_tokens, sampled, decode_kv, _, scores, from_idle = work.T
    ones = np.ones(len(work))
    linear = np.maximum(tokens, knee)
    return np.stack(
        [ones, from_idle, rows, chunk_rows, sampled, linear, chunk_tokens, decode_kv, scores], axis=1
    )


class _Sizes:
    """Steps by CostModel's size classes (csrc/sim/cost_model.h). A class with few steps borrows from its neighbours within the same
    doubling of the tokens; where even those are few, there is none."""

    def __init__(self, work: Floats) -> None:
        below = work[:, 2].astype(np.int64) - 1
        width = np.frexp(below.astype(np.float64))[1].astype(np.int64)  # 0 for 0, as std::bit_width
        quarter = np.where(width >= 3, (below >> np.maximum(width - 3, 0)) & 3, 0)
        chunk = work[:, 1] > 0
        self._octave = 2 * width + chunk
        self.of_step = 2 * (4 * width + quarter) + chunk
        self._among: dict[int, Mask] = {}
        for size in np.unique(self.of_step):
            own = self.of_step == size
            octave = self._octave == size // 8 * 2 + size % 2
            among = own if own.sum() >= _LEAST_STEPS else octave
            if among.sum() >= _LEAST_STEPS:
                self._among[int(size)] = among

    def each(self, values: Floats, of: Callable[[Floats], Any]) -> Floats:
        """`of` the values of a step's class, for each step."""
        out = np.full(len(values), float(of(values)))
        for size, among in self._among.items():
            out[self.of_step == size] = float(of(values[among]))
        return out

    def centred(self, values: Floats) -> Floats:
        """Less the mean of a step's class; 0 where it has none."""
        out = values - self.each(values, np.mean)
        out[~np.isin(self.of_step, list(self._among))] = 0.0
        return out

    def means(self, values: Floats) -> Floats:
        """By class; 0 for one that is none."""
        out = np.zeros(int(self.of_step.max()) + 1)
        for size, among in self._among.items():
            out[size] = values[among].mean()
        return out

    def by_class(self, values: Floats, of: Callable[[Floats], list[float]]) -> list[list[float]]:
        """`of` each class's values; empty for one that is none."""
        count = int(self.of_step.max()) + 1
        return [of(values[self._among[size]]) if size in self._among else [] for size in range(count)]


def _spread(values: Floats) -> list[float]:
    """A few, equally likely and of the same mean: means of equal shares of the sorted ones, which may cut a value in two."""
    count = min(_RATIOS, len(values))
    sums = np.concatenate([[0.0], np.cumsum(np.sort(values))])
    cuts = np.linspace(0, len(values), count + 1)
    means = np.diff(np.interp(cuts, np.arange(len(values) + 1), sums)) * count / len(values)
    return [float(mean) for mean in means]


def _ratios(values: Floats) -> list[float]:
    """Their spread, about 1: the mean time of steps is the formula's, and the mean of ratios is not the ratio of means."""
    return _spread(values / values.mean())


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
