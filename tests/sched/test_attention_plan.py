"""The planner of attention work: every piece of every row is given out once, evenly, and in a form the kernels can walk."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker import _core

TILE, ROUND, MAX_SPLITS = 16, 64, 64
ROW, SEAT, KV_BEGIN, KV_LEN, UNIT_BEGIN, UNIT_END, SHIFT, PARTIAL = range(8)


def planner(
    workers: int = 8,
    heads: int = 2,
    window: int = 0,
    tile: int = 0,
    prefill_workers: int = 0,
    processors: int = 0,
):
    return _core.AttentionPlanner(
        num_decode_heads=heads,
        num_kv_heads=heads,
        window=window,
        num_decode_workers=workers,
        prefill_tile_tokens=tile,
        num_prefill_workers=prefill_workers,
        num_processors=processors,
    )


def make(p, decode: list[int], chunks: list[tuple[int, int]] = (), seats: list[int] | None = None):
    """Plans decode rows of these KV lengths, then chunks (tokens, KV length). Returns items by worker, tiles, sizes."""
    lengths = decode + [kv for _, kv in chunks]
    tokens = [1] * len(decode) + [n for n, _ in chunks]
    indptr = torch.tensor([0, *torch.tensor(tokens).cumsum(0).tolist()] if tokens else [0], dtype=torch.int32)
    work = torch.full((p.work_capacity(len(lengths), sum(tokens)), 8), -7, dtype=torch.int32)
    work_indptr = torch.full((p.indptr_size,), -7, dtype=torch.int32)
    sizes = p.plan(
        torch.arange(1, len(lengths) + 1, dtype=torch.int32)
        if seats is None
        else torch.tensor(seats, dtype=torch.int32),
        indptr,
        torch.tensor(lengths, dtype=torch.int32),
        len(decode),
        work,
        work_indptr,
    )
    workers = p.indptr_size - 4
    by_worker = []
    for w in range(workers):
        first = [work[w].tolist()] if int(work[w, ROW]) >= 0 else []
        rest = work[int(work_indptr[w]) : int(work_indptr[w + 1])].tolist()
        assert first or not rest
        by_worker.append(first + rest)
    tiles = work[int(work_indptr[workers + 1]) : int(work_indptr[workers + 2])].tolist()
    return by_worker, tiles, sizes


def num_splits(item: list[int]) -> int:
    origin = item[KV_BEGIN] // TILE * TILE
    return -(-(item[KV_LEN] - origin) // (1 << item[SHIFT]))


def check_decode(
    by_worker, lengths: list[int], heads: int, window: int, slots: int, seats: list[int] | None = None
) -> None:
    given_out: dict[int, list[tuple[int, int]]] = {}
    shape: dict[int, tuple[int, ...]] = {}
    slot_of: dict[tuple[int, int], int] = {}
    for items in by_worker:
        for item in items:
            row = item[ROW]
            assert item[SEAT] == (row + 1 if seats is None else seats[row])
            assert item[KV_LEN] == lengths[row]
            assert item[KV_BEGIN] == (max(0, lengths[row] - window) if window else 0)
            splits = num_splits(item)
            assert splits <= MAX_SPLITS
            assert 1 << item[SHIFT] >= ROUND
            assert shape.setdefault(row, (splits, item[SHIFT])) == (splits, item[SHIFT])
            begin, end = item[UNIT_BEGIN], item[UNIT_END]
            assert 0 <= begin < end <= splits * heads
            given_out.setdefault(row, []).append((begin, end))
            whole = begin % splits == 0 and end % splits == 0
            assert whole == (item[PARTIAL] < 0), "a cut head needs slots, a whole one takes none"
            if not whole:
                assert begin // splits == (end - 1) // splits, "a shared piece is of one head"
                head = (row, begin // splits)
                assert slot_of.setdefault(head, item[PARTIAL]) == item[PARTIAL]
    for row, length in enumerate(lengths):
        if length <= 0:
            assert row not in given_out
            continue
        at = 0
        for begin, end in sorted(given_out[row]):
            assert begin == at, "a unit is missing or given out twice"
            at = end
        assert at == shape[row][0] * heads
    taken = sorted((slot, shape[row][0]) for (row, _), slot in slot_of.items())
    at = 0
    for slot, splits in taken:
        assert slot >= at, "two heads share slots"
        at = slot + splits
    assert at <= slots


@settings(max_examples=300, deadline=None)
@given(
    lengths=st.lists(
        st.one_of(
            st.integers(-1, 200), st.integers(1, 5000), st.sampled_from([64, 1024, 1025, 65536, 200_000])
        ),
        max_size=40,
    ),
    workers=st.sampled_from([1, 2, 7, 132, 264]),
    heads=st.sampled_from([1, 4, 8, 32]),
    window=st.sampled_from([0, 0, 17, 1000]),
)
def test_every_unit_is_given_out_once(lengths: list[int], workers: int, heads: int, window: int) -> None:
    """A unit lost or doubled, a slot shared by two heads or a piece that the kernel cannot merge would be a wrong answer."""
    p = planner(workers, heads, window)
    by_worker, _, (used, slots, _) = make(p, lengths)
    assert slots <= p.decode_slot_capacity
    assert used <= p.work_capacity(len(lengths), len(lengths))
    check_decode(by_worker, lengths, heads, window, slots)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    workers=st.sampled_from([1, 7, 132, 264]),
    heads=st.sampled_from([1, 8]),
    window=st.sampled_from([0, 0, 300]),
)
def test_every_unit_is_given_out_once_step_after_step(
    seed: int, workers: int, heads: int, window: int
) -> None:
    """Most pieces are those of the step before: of a row that left, or grew by a split, none may be left over."""
    rng = random.Random(seed)
    p = planner(workers, heads, window)
    rows = {seat: rng.randint(1, 1500) for seat in rng.sample(range(1, 65), rng.randint(1, 64))}
    for _ in range(25):
        for seat in list(rows):
            rows[seat] += 1
            if rng.random() < 0.02:
                del rows[seat]
        for seat in rng.sample(range(1, 65), rng.choice([0, 0, 1, 3])):
            rows.setdefault(seat, rng.choice([1, 127, 128, 700, 1500]))
        seats = list(rows)
        if rng.random() < 0.3:
            rng.shuffle(seats)
        lengths = [rows[seat] for seat in seats]
        by_worker, _, (used, slots, _) = make(p, lengths, seats=seats)
        assert slots <= p.decode_slot_capacity
        assert used <= p.work_capacity(len(lengths), len(lengths))
        check_decode(by_worker, lengths, heads, window, slots, seats)
        for items in by_worker:
            cut = [item[PARTIAL] >= 0 for item in items]
            assert cut == sorted(cut, reverse=True)


def test_balance_holds_as_reqs_come_and_go() -> None:
    """Pieces that are kept must not leave the work uneven: a worker left behind is what the step waits for."""
    rng = random.Random(5)
    p = planner(264, 8)
    rows = {seat: rng.randint(64, 2000) for seat in range(1, 201)}
    worst, steps = 0.0, 300
    for _ in range(steps):
        for seat in list(rows):
            rows[seat] = rows[seat] + 1 if rng.random() > 0.006 else rng.randint(32, 2000)
        by_worker, _, _ = make(p, list(rows.values()), seats=list(rows))
        loads = [tokens_of(items) for items in by_worker]
        worst += max(loads) / (sum(loads) / len(loads)) / steps
    assert worst <= 1.2


def test_a_row_that_gains_a_split_stays_with_its_workers() -> None:
    """Were it dealt anew each time, a step with many rows would deal all the time."""
    p = planner(264, 8)
    rows = [1000 + 7 * i for i in range(40)] + [1536]
    before, _, _ = make(p, rows)
    rows[-1] += 1
    after, _, (_, slots, _) = make(p, rows)
    rows_of = [[[i[ROW] for i in items] for items in plan] for plan in (before, after)]
    changed = sum(a != b for a, b in zip(*rows_of, strict=True))
    assert changed <= 2, "at most a head is handed on"
    check_decode(after, rows, 8, 0, slots)


def test_splits_follow_from_the_length_alone() -> None:
    """Were they to depend on the batch, a row's bits would too."""
    alone, _, _ = make(planner(264, 8), [3000])
    crowd, _, _ = make(planner(264, 8), [50, 3000, 70_000, *([700] * 100)])
    shapes = [
        {(num_splits(i), i[SHIFT]) for items in plan for i in items if i[KV_LEN] == 3000}
        for plan in (alone, crowd)
    ]
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) == 1


def tokens_of(items) -> int:
    total = 0
    for item in items:
        splits = num_splits(item)
        origin = item[KV_BEGIN] // TILE * TILE
        for unit in range(item[UNIT_BEGIN], item[UNIT_END]):
            begin = origin + (unit % splits << item[SHIFT])
            total += min(begin + (1 << item[SHIFT]), item[KV_LEN]) - begin
    return total


@pytest.mark.parametrize(
    ("lengths", "limit"),
    [
        ([512] * 63 + [65536], 1.12),  # one long req among short ones
        ([65536], 1.04),
        ([8192] * 8, 1.06),
        ([2048] * 64, 1.06),
        ([4096] * 256, 1.02),
        ([100 + (i * 7919) % 1948 for i in range(128)], 1.13),  # a last split counts as a whole one
    ],
)
def test_balance(lengths: list[int], limit: float) -> None:
    """The busiest worker has little more than the mean: the kernel is as slow as its last worker."""
    by_worker, _, _ = make(planner(264, 8), lengths)
    loads = [tokens_of(items) for items in by_worker]
    assert max(loads) <= limit * sum(loads) / len(loads)


def test_small_batches_spread_over_workers() -> None:
    """A single short request must reach as many multiprocessors as it has splits."""
    by_worker, _, _ = make(planner(264, 8), [1024])
    assert sum(1 for items in by_worker if items) == 32
    assert max(tokens_of(items) for items in by_worker) == 256


def test_shared_pieces_come_first() -> None:
    """So that their merges happen while whole heads are still being computed."""
    by_worker, _, _ = make(planner(264, 8), [512] * 100)
    for items in by_worker:
        shared = [item[PARTIAL] >= 0 for item in items]
        assert shared == sorted(shared, reverse=True)


@settings(max_examples=100, deadline=None)
@given(
    decode=st.lists(st.integers(1, 500), max_size=5),
    chunks=st.lists(st.tuples(st.integers(1, 300), st.integers(0, 20_000)), max_size=6),
    window=st.sampled_from([0, 0, 100, 5000]),
    prefill_workers=st.sampled_from([0, 16, 132]),
)
def test_prefill_tiles_cover_every_query_and_its_kv(decode, chunks, window, prefill_workers) -> None:
    """A query token left out, or KV of it, would be a wrong answer; a split away from a fixed position, different bits."""
    chunks = [(n, n + before) for n, before in chunks]
    p = planner(4, 2, window, tile=32, prefill_workers=prefill_workers)
    _, tiles, (_, _, slots) = make(p, decode, chunks)
    assert slots <= p.prefill_slot_capacity
    lengths = [chunks[t[0] - len(decode)][1] for t in tiles]
    assert lengths == sorted(lengths, reverse=True), "longest rows first"
    seen: dict[tuple[int, int], list] = {}
    for row, q_begin, q_count, kv_begin, kv_end, kv_head, partial, flags in tiles:
        assert kv_head == -1
        seen.setdefault((row, q_begin), []).append(
            (flags & 0xFFFF, flags >> 16, q_count, kv_begin, kv_end, partial)
        )
    for i, (n, kv_len) in enumerate(chunks):
        row = len(decode) + i
        for q in range(0, n, 32):
            pieces = sorted(seen.pop((row, q)))
            count = min(32, n - q)
            first = kv_len - n + q
            assert [piece[0] for piece in pieces] == list(range(len(pieces)))
            assert {piece[1:3] for piece in pieces} == {(len(pieces), count)}
            assert len({piece[5] for piece in pieces}) == 1
            assert (pieces[0][5] < 0) == (len(pieces) == 1)
            assert pieces[0][3] == (max(0, first - window + 1) if window else 0)
            assert pieces[-1][4] == first + count
            for before, after in itertools.pairwise(pieces):
                assert before[4] == after[3]
                assert after[3] % 4096 == 0
    assert not seen


def test_long_tiles_are_shared_only_where_workers_would_idle() -> None:
    """A short chunk over a long context must not leave the device to a few workers; a long prompt needs no partials."""
    p = planner(4, 8, tile=32, prefill_workers=132)
    _, tiles, (_, _, slots) = make(p, [], [(16, 32768)])
    assert [t[4] - t[3] for t in tiles] == [4096] * 8
    assert slots == 8
    for whole in ([(8192, 8192)], [(512, 8192)] * 16, [(512, 65536)], [(16, 4000)]):
        _, tiles, (_, _, slots) = make(p, [], whole)
        assert slots == 0
        assert all(t[6] < 0 for t in tiles)


def limit_of(p, decode, chunks) -> int:
    """Thread blocks that may take tiles."""
    indptr = torch.zeros(p.indptr_size, dtype=torch.int32)
    work = torch.zeros(p.work_capacity(len(decode) + len(chunks), 10_000), 8, dtype=torch.int32)
    lengths = [*decode, *(kv for _, kv in chunks)]
    rows = torch.tensor([0, *itertools.accumulate([1] * len(decode) + [n for n, _ in chunks])])
    seats = torch.arange(1, len(lengths) + 1, dtype=torch.int32)
    p.plan(seats, rows.int(), torch.tensor(lengths, dtype=torch.int32), len(decode), work, indptr)
    return int(indptr[-1])


def test_decode_rows_and_chunks_share_the_device() -> None:
    """Side by side each half has multiprocessors of its own; alone each has all, also right after a shared step."""
    p = planner(264, 8, tile=32, prefill_workers=132, processors=132)
    decode, chunk = [2048] * 64, (2048, 2048)
    by_worker, tiles, (_, slots, _) = make(p, decode, [chunk])
    share = limit_of(p, decode, [chunk])
    assert 40 <= share <= 70, "both halves take about equally long"
    busy = [w for w, items in enumerate(by_worker) if items]
    assert max(busy) < 2 * (132 - share)
    assert len(busy) > 132 - share
    assert len(tiles) == 64
    check_decode(by_worker, decode, 8, 0, slots)
    by_worker, _, (_, slots, _) = make(p, decode)
    assert max(w for w, items in enumerate(by_worker) if items) > 250
    check_decode(by_worker, decode, 8, 0, slots)
    assert limit_of(p, [], [chunk]) >= 132
    assert limit_of(p, [4096] * 256, [(1, 4)]) == 1
    assert limit_of(p, [1], [(8192, 8192)]) == 131


def test_bad_arguments_are_refused() -> None:
    """The planner is a public tool: a list too small or counts that disagree are the caller's to hear about."""
    p = planner()
    i32 = lambda *v: torch.tensor(v, dtype=torch.int32)  # noqa: E731
    good = (
        torch.zeros(p.work_capacity(1, 1), 8, dtype=torch.int32),
        torch.zeros(p.indptr_size, dtype=torch.int32),
    )
    with pytest.raises(ValueError, match="work"):
        p.plan(i32(1), i32(0, 1), i32(5), 1, torch.zeros(3, 8, dtype=torch.int32), good[1])
    with pytest.raises(ValueError, match="num_decode_rows"):
        p.plan(i32(1), i32(0, 1), i32(5), 2, *good)
    with pytest.raises(ValueError, match="row_kv_len"):
        p.plan(i32(1), i32(0, 1), i32(5, 6), 1, *good)
    with pytest.raises(ValueError, match="positive"):
        planner(workers=0)
    with pytest.raises(ValueError, match="num_processors"):
        planner(workers=8, tile=16, prefill_workers=4, processors=3)
