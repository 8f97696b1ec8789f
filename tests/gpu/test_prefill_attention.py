"""Prefill attention against the definition in plain torch, over shapes, types, block sizes, windows and caps; and bitwise
against itself: chunked, batched, shared out."""

from __future__ import annotations

import importlib
import random
from typing import Any

import pytest
import torch

from stoker.ops import paged_attention, reference
from stoker.ops.attention_plan import AttentionPlan

DEVICE = "cuda"
LIMIT = {torch.bfloat16: 6e-3, torch.float16: 1.5e-3}
I32: dict[str, Any] = {"dtype": torch.int32, "device": DEVICE}


class Case:
    """Chunks (tokens, KV length) with random queries and blocks; what no token may see is NaN."""

    def __init__(self, seed, chunks, hq, hkv, dim, block, dtype=torch.bfloat16):
        generator = torch.Generator(DEVICE).manual_seed(seed)
        self.chunks, self.dim, self.block, self.hq = chunks, dim, block, hq
        need = [-(-kv // block) for _, kv in chunks]
        order = torch.randperm(sum(need) + 2, generator=torch.Generator().manual_seed(seed)) + 1
        self.table = torch.zeros(len(chunks) + 1, max(need), dtype=torch.int32)
        # Layers share one allocation: a free block stride.
        store = torch.full((sum(need) + 3, 2, 2, hkv, block, dim), float("nan"), device=DEVICE, dtype=dtype)
        at = 0
        for row, ((_, kv), count) in enumerate(zip(chunks, need, strict=True)):
            mine = order[at : at + count]
            at += count
            self.table[row + 1, :count] = mine
            filled = torch.randn(count, 2, 2, hkv, block, dim, device=DEVICE, generator=generator)
            if kv % block:
                filled[-1, :, :, :, kv % block :] = float("nan")
            store[mine.to(DEVICE)] = filled.to(dtype)
        self.table = self.table.to(DEVICE)
        self.k, self.v = store[:, 0, 1], store[:, 1, 1]
        tokens = sum(n for n, _ in chunks)
        # q as a view of a qkv tensor: a free row stride.
        self.q = torch.randn(tokens, hq + 2 * hkv, dim, device=DEVICE, generator=generator).to(dtype)[:, :hq]

    def run(self, chunks=None, seats=None, q=None, decode=0, num_prefill_workers=0, halves=False, **options):
        chunks = chunks or self.chunks
        seats = seats or list(range(1, len(chunks) + 1))
        q = self.q if q is None else q
        tokens = [n for n, _ in chunks]
        indptr = [sum(tokens[:i]) for i in range(len(tokens) + 1)]
        lengths = [kv for _, kv in chunks]
        plan = AttentionPlan(
            q,
            self.k,
            max_rows=len(chunks),
            max_tokens=sum(tokens),
            window=options.get("window", 0),
            num_prefill_workers=num_prefill_workers,
        )
        plan.update(seats, indptr, lengths, decode)
        out = torch.full((q.shape[0], self.hq, self.dim), float("nan"), device=DEVICE, dtype=q.dtype)
        rows = [torch.tensor(values, **I32) for values in (seats, indptr, lengths)]
        torch.cuda.synchronize()
        for part in (plan.half(decode=False), plan.half(decode=True)) if halves else (plan,):
            paged_attention(
                out,
                q,
                self.k,
                self.v,
                self.table,
                *rows,
                scale=self.dim**-0.5,
                num_decode_rows=decode,
                plan=part,
                **options,
            )
        torch.cuda.synchronize()
        self.slots = plan.used_prefill_slots
        return out

    def expected(self, **options):
        tokens = [n for n, _ in self.chunks]
        indptr = [sum(tokens[:i]) for i in range(len(tokens) + 1)]
        rows = [
            torch.tensor(values, **I32)
            for values in (range(1, len(tokens) + 1), indptr, [kv for _, kv in self.chunks])
        ]
        out = torch.empty(self.q.shape, device=DEVICE, dtype=torch.float32)
        reference.paged_attention(
            out,
            self.q.float(),
            self.k.float(),
            self.v.float(),
            self.table,
            *rows,
            scale=self.dim**-0.5,
            **options,
        )
        return out


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert not got.isnan().any()
    return ((got.float() - want).norm() / want.norm()).item()


def random_chunks(draw: random.Random, rows: int) -> list[tuple[int, int]]:
    tokens = [draw.choice([1, 3, 17, 64, 100, 200, 330]) for _ in range(rows)]
    return [(n, n + draw.choice([0, 0, 1, 15, 300, 1111, 4096])) for n in tokens]


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 2, 4, 5, 7, 8])
def test_against_reference(dim: int, group: int) -> None:
    """Head sizes, group sizes, block sizes (also such as no fast path takes), ragged chunks with and without context."""
    draw = random.Random(dim * 100 + group)
    for dtype in (torch.bfloat16, torch.float16):
        hkv = draw.choice([1, 2, 4])
        block = draw.choice([8, 16, 24, 32, 64])
        case = Case(draw.randint(0, 9999), random_chunks(draw, 4), hkv * group, hkv, dim, block, dtype)
        assert error(case.run(), case.expected()) < LIMIT[dtype]


@pytest.mark.parametrize("block", [8, 16, 32, 64])
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
def test_long_context_at_every_head_and_block_size(dim: int, block: int) -> None:
    """A chunk behind 40,000 tokens; both types, the group sizes in turn."""
    for i, dtype in enumerate((torch.bfloat16, torch.float16)):
        group = [1, 2, 4, 5, 7, 8][(dim // 16 + block // 8 + 3 * i) % 6]
        case = Case(dim + block, [(33, 40_000), (20, 20)], group, 1, dim, block, dtype)
        assert error(case.run(), case.expected()) < LIMIT[dtype]


@pytest.mark.parametrize("dim", [64, 256])
def test_small_enough_for_a_race_checker(dim: int) -> None:
    """Two units of several KV tiles, one with a merge at position 4096: what racecheck finishes in a minute."""
    for chunk in ((40, 300), (5, 4200)):
        case = Case(dim, [chunk], 2, 1, dim, 16)
        assert error(case.run(), case.expected()) < LIMIT[torch.bfloat16]


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("options", [{"window": 33}, {"window": 700}, {"soft_cap": 20.0}])
def test_window_and_cap(dim: int, options: dict[str, Any]) -> None:
    """A window hides early positions, whose memory may be another's by then; a cap bends scores."""
    case = Case(dim, [(200, 1300), (64, 64), (5, 4500)], 8, 2, dim, 16)
    assert error(case.run(**options), case.expected(**options)) < LIMIT[torch.bfloat16]


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
def test_fp8_cache(dim: int) -> None:
    """KV in e4m3 with its scales, read by both 16-bit types."""
    for dtype in (torch.bfloat16, torch.float16):
        case = Case(dim, [(150, 900), (64, 64), (5, 4500)], 8, 2, dim, 16, dtype)
        case.k, case.v = (x.float().mul(8).to(torch.float8_e4m3fn) for x in (case.k, case.v))
        scales = {"k_scale": 0.125, "v_scale": 0.25}
        assert error(case.run(**scales), case.expected(**scales)) < LIMIT[dtype]


@pytest.mark.parametrize(
    "heads", [(32, 8, 128, 16, 0), (28, 4, 128, 32, 700), (16, 8, 64, 16, 0), (8, 2, 256, 16, 0)]
)
def test_chunking_changes_no_bit(heads: tuple[int, int, int, int, int]) -> None:
    """A token's result depends on that token: not on the chunk it came in, nor on which thread block merged its splits."""
    hq, hkv, dim, block, window = heads
    n = 6000
    case = Case(1, [(n, n)], hq, hkv, dim, block)
    whole = case.run(window=window)
    at = 0
    for count in (1, 7, 90, 400, 512, 30, 3000, 100, 1860):
        part = case.run([(count, at + count)], [1], case.q[at : at + count], window=window)
        assert torch.equal(part, whole[at : at + count]), (at, count)
        at += count
    assert at == n


def test_sharing_changes_no_bit() -> None:
    """A short chunk over a long context is shared out by splits; alone with one worker it is not. Same bits."""
    case = Case(2, [(40, 20_000)], 32, 8, 128, 16)
    shared = case.run()
    if importlib.import_module("stoker._cuda").prefill_geometry(case.q, case.k)[1] > 0:
        assert case.slots > 0, "a kernel that can merge is given splits to merge"
    alone = case.run(num_prefill_workers=1)
    assert case.slots == 0
    assert torch.equal(shared, alone)
    assert error(shared, case.expected()) < LIMIT[torch.bfloat16]


def test_neighbours_change_no_bit() -> None:
    """The rest of the batch is nobody's business."""
    case = Case(3, [(100, 900), (333, 333), (1, 5000), (64, 4200)], 32, 8, 128, 16)
    together = case.run()
    at = 0
    for seat, (n, kv) in enumerate(case.chunks, 1):
        assert torch.equal(case.run([(n, kv)], [seat], case.q[at : at + n]), together[at : at + n])
        at += n


def test_mixed_with_decode_rows() -> None:
    """Decode rows and chunks in one call, and as two halves: every row is written once, by its own kernel."""
    case = Case(4, [(1, 700), (1, 33), (1, 2500), (128, 128), (77, 1100)], 32, 8, 128, 16)
    want = case.expected()
    both = case.run(decode=3)
    assert error(both, want) < LIMIT[torch.bfloat16]
    assert torch.equal(both, case.run(decode=3, halves=True))


def test_repeats() -> None:
    """The same launch many times over: a race would show as a moving result."""
    case = Case(5, [(513, 1800), (40, 9000), (128, 128)], 32, 8, 128, 16)
    first = case.run()
    for _ in range(30):
        assert torch.equal(case.run(), first)
