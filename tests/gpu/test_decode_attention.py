"""Decode attention against the definition in plain torch, over shapes, types, block sizes, windows and caps; and bitwise against itself."""

from __future__ import annotations

import random

import pytest
import torch

from stoker.ops import paged_attention, reference

DEVICE = "cuda"


class Case:
    """Random queries and a paged cache with random blocks; null and unused blocks hold NaN, which must never leak."""

    def __init__(self, seed, lengths, hq, hkv, dim, block, dtype=torch.bfloat16, cache_dtype=None):
        generator = torch.Generator(DEVICE).manual_seed(seed)
        draw = random.Random(seed)
        self.lengths, self.block, self.dim = lengths, block, dim
        rows = len(lengths)
        need = [max(0, -(-n // block)) for n in lengths]
        total = sum(need) + 3
        order = list(range(1, total))
        draw.shuffle(order)
        seats = list(range(1, rows + 1))
        draw.shuffle(seats)
        self.table = torch.zeros(rows + 1, max([*need, 1]) + 2, dtype=torch.int32)
        used = []
        for seat, count in zip(seats, need, strict=True):
            mine = [order.pop() for _ in range(count)]
            used += mine
            self.table[seat, :count] = torch.tensor(mine, dtype=torch.int32)
        self.table = self.table.to(DEVICE)
        self.seats = seats
        # Layers share one allocation: a free block stride.
        store = torch.full((2, total, 2, hkv, block, dim), float("nan"), device=DEVICE, dtype=torch.float32)
        store[:, used] = torch.randn(2, len(used), 2, hkv, block, dim, device=DEVICE, generator=generator)
        cache = store.to(cache_dtype or dtype)
        # The last block's unused positions hold NaN as well.
        view = cache.view(torch.uint8) if cache.element_size() == 1 else cache
        nan = torch.full((1,), float("nan")).to(cache.dtype)
        nan = nan.view(torch.uint8) if cache.element_size() == 1 else nan
        for seat, n in zip(seats, lengths, strict=True):
            if n % block:
                view[:, self.table[seat, n // block].item(), :, :, n % block :] = nan.to(DEVICE)
        self.k, self.v = cache[0, :, 1], cache[1, :, 1]
        self.q = torch.randn(rows, hq, dim, device=DEVICE, generator=generator, dtype=torch.float32).to(dtype)

    def index(self):
        i32 = {"dtype": torch.int32, "device": DEVICE}
        rows = len(self.lengths)
        return (
            torch.tensor(self.seats, **i32),
            torch.arange(rows + 1, **i32),
            torch.tensor(self.lengths, **i32),
        )

    def run(self, workers=None, early=False, rows=None, **options):
        from stoker.ops.attention_plan import AttentionPlan

        picked = list(range(len(self.lengths))) if rows is None else rows
        q = self.q[picked]
        plan = AttentionPlan(
            q,
            self.k,
            max_rows=len(picked),
            max_tokens=len(picked),
            window=options.get("window", 0),
            early=early,
            num_workers=workers,
        )
        seats, lengths = [self.seats[i] for i in picked], [self.lengths[i] for i in picked]
        plan.update(seats, range(len(picked) + 1), lengths, len(picked))
        i32 = {"dtype": torch.int32, "device": DEVICE}
        out = torch.full_like(q, float("nan"))
        torch.cuda.synchronize()
        paged_attention(
            out,
            q,
            self.k,
            self.v,
            self.table,
            torch.tensor(seats, **i32),
            torch.arange(len(picked) + 1, **i32),
            torch.tensor(lengths, **i32),
            scale=self.dim**-0.5,
            num_decode_rows=len(picked),
            plan=plan,
            **options,
        )
        torch.cuda.synchronize()
        assert int(plan.counters.abs().sum()) == 0, "counters are left as they were found"
        return out

    def expected(self, **options):
        out = torch.full(self.q.shape, float("nan"), device=DEVICE, dtype=torch.float32)
        q = self.q.float()
        k, v = self.k.float(), self.v.float()
        reference.paged_attention(out, q, k, v, self.table, *self.index(), scale=self.dim**-0.5, **options)
        return out


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    live = ~want.isnan().all(dim=(1, 2))
    assert not got[live].isnan().any()
    return ((got[live].float() - want[live]).norm() / want[live].norm()).item()


LIMIT = {torch.bfloat16: 6e-3, torch.float16: 1.5e-3}


def random_lengths(draw, rows):
    return [
        draw.choice([1, draw.randint(1, 80), draw.randint(1, 700), draw.randint(500, 3000), 64, 1024, 1025])
        for _ in range(rows)
    ]


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 2, 4, 5, 7, 8, 16])
def test_against_reference(dim: int, group: int) -> None:
    """Head sizes, group sizes, block sizes, lengths and both 16-bit types."""
    draw = random.Random(dim * 100 + group)
    for dtype in (torch.bfloat16, torch.float16):
        block = draw.choice([8, 16, 24, 32, 64])
        hkv = draw.choice([1, 2, 4])
        case = Case(
            draw.randint(0, 9999),
            random_lengths(draw, draw.randint(1, 9)),
            hkv * group,
            hkv,
            dim,
            block,
            dtype,
        )
        assert error(case.run(), case.expected()) < LIMIT[dtype]


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
def test_fp8_cache(dim: int) -> None:
    """e4m3 KV with scales, against the same values widened."""
    for group, dtype in ((1, torch.bfloat16), (4, torch.float16), (7, torch.bfloat16)):
        case = Case(dim + group, [5, 700, 64, 1500, 33], 2 * group, 2, dim, 16, dtype, torch.float8_e4m3fn)
        options = {"k_scale": 0.5, "v_scale": 1.75}
        assert error(case.run(**options), case.expected(**options)) < LIMIT[dtype]


def test_window_soft_cap_and_padding_rows() -> None:
    """Positions before the window and rows without KV must not be read; the cap bends scores."""
    case = Case(1, [1, 900, 17, 0, 2000, 64, -1, 301], 8, 2, 128, 16)
    for options in (
        {"window": 1},
        {"window": 100},
        {"window": 1030},
        {"soft_cap": 5.0},
        {"window": 64, "soft_cap": 2.0},
    ):
        got, want = case.run(**options), case.expected(**options)
        assert error(got, want) < LIMIT[torch.bfloat16]
        assert got[3].isnan().all()
        assert got[6].isnan().all(), "a row of padding is left alone"


@pytest.mark.parametrize("length", [4097, 20_000, 40_000])
def test_long_rows(length: int) -> None:
    """Many splits over many workers, merged by whichever comes last."""
    case = Case(length, [length, 100, length // 3], 8, 2, 128, 16)
    assert error(case.run(), case.expected()) < LIMIT[torch.bfloat16]


@pytest.mark.parametrize("block", [8, 16, 32, 64])
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
def test_longest_row_at_every_head_and_block_size(dim: int, block: int) -> None:
    """40,000 tokens, alone so that one worker merges all splits last; both types, the group sizes in turn."""
    for i, dtype in enumerate((torch.bfloat16, torch.float16)):
        group = [1, 2, 4, 5, 7, 8][(dim // 16 + block // 8 + 3 * i) % 6]
        case = Case(dim + block, [40_000], group, 1, dim, block, dtype)
        assert error(case.run(), case.expected()) < LIMIT[dtype]


def test_large_scores_do_not_overflow() -> None:
    """The lazy rescaling must follow scores that climb along the row."""
    case = Case(7, [1500, 80], 8, 2, 128, 16)
    climb = torch.linspace(0.1, 12.0, case.k.shape[0], device=DEVICE).view(-1, 1, 1, 1)
    case.k.mul_(climb.to(case.k.dtype))
    assert error(case.run(), case.expected()) < LIMIT[torch.bfloat16]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bits_do_not_depend_on_the_batch_or_the_balance(dtype: torch.dtype) -> None:
    """A row alone, in a crowd, with few workers or many, fetched early or late: the same bits (DESIGN 10.2 b)."""
    draw = random.Random(5)
    lengths = [3000, 64, 1, 700, 9000, *random_lengths(draw, 20)]
    case = Case(5, lengths, 16, 4, 128, 16, dtype)
    whole = case.run()
    for workers in (1, 3, 50, 264, 1000):
        assert torch.equal(case.run(workers=workers), whole)
    assert torch.equal(case.run(early=True), whole)
    for row in (0, 1, 2, 4, 11):
        assert torch.equal(case.run(rows=[row])[0], whole[row])
    for _ in range(5):
        assert torch.equal(case.run(), whole), "run to run"


def test_in_a_captured_graph_with_a_changing_plan() -> None:
    """One capture serves any batch: the list is data."""
    from stoker.ops.attention_plan import AttentionPlan

    case = Case(11, [500, 2100, 30, 64], 8, 2, 128, 16)
    seat, indptr, length = case.index()
    plan = AttentionPlan(case.q, case.k, max_rows=4, max_tokens=4)
    out = torch.zeros_like(case.q)

    def launch():
        paged_attention(
            out,
            case.q,
            case.k,
            case.v,
            case.table,
            seat,
            indptr,
            length,
            scale=case.dim**-0.5,
            num_decode_rows=4,
            plan=plan,
        )

    plan.update(case.seats, range(5), case.lengths, 4)
    launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    for lengths in ([500, 2100, 30, 64], [17, 800, 30, 1], [0, 1500, 0, 64]):
        case.lengths = lengths
        plan.update(case.seats, range(5), lengths, 4)
        out.zero_()
        graph.replay()
        torch.cuda.synchronize()
        want = case.expected()
        live = [i for i, n in enumerate(lengths) if n > 0]
        assert error(out[live], want[live]) < LIMIT[torch.bfloat16]


def test_plain_kernel_float32() -> None:
    """float32, mixed decode rows and chunks, no plan: the plain kernel against float64."""
    i32 = {"dtype": torch.int32, "device": DEVICE}
    torch.manual_seed(0)
    for dim, group, block in ((64, 1, 8), (80, 4, 16), (100, 3, 16), (256, 2, 32)):
        k, v = (torch.randn(40, 2, block, dim, device=DEVICE) for _ in range(2))
        tokens, lengths = [1, 1, 5, 20], [9, 100, 5, 60]
        table = torch.randperm(39, device=DEVICE)[: 4 * 9].view(4, 9).int() + 1 if block == 8 else None
        if table is None:
            table = torch.randint(1, 40, (4, 13), **i32)
        lengths = [min(n, table.shape[1] * block) for n in lengths]
        q = torch.randn(sum(tokens), 2 * group, dim, device=DEVICE)
        index = (
            torch.arange(4, **i32),
            torch.tensor([0, 1, 2, 7, 27], **i32),
            torch.tensor(lengths, **i32),
        )
        for options in ({}, {"window": 7}, {"soft_cap": 3.0}):
            out = torch.full_like(q, float("nan"))
            paged_attention(out, q, k, v, table, *index, scale=dim**-0.5, num_decode_rows=2, **options)
            want = torch.empty_like(q, dtype=torch.float64)
            reference.paged_attention(
                want, q.double(), k.double(), v.double(), table, *index, scale=dim**-0.5, **options
            )
            assert ((out - want).norm() / want.norm()).item() < 2e-6


def test_bad_calls_are_refused() -> None:
    """Each wrong argument is named before anything is launched."""
    case = Case(3, [40, 50], 8, 2, 128, 16)
    seat, indptr, length = case.index()

    def call(**changed):
        arguments = {
            "out": torch.empty_like(case.q),
            "q": case.q,
            "k_cache": case.k,
            "v_cache": case.v,
            "block_table": case.table,
            "row_seat": seat,
            "row_indptr": indptr,
            "row_kv_len": length,
            "scale": 1.0,
            "num_decode_rows": 2,
            **changed,
        }
        paged_attention(**arguments)

    call()
    for wrong, name in (
        ({"out": case.q.float()}, "out"),
        ({"v_cache": case.v[:, :1]}, "v_cache"),
        ({"row_kv_len": length.long()}, "row_kv_len"),
        ({"row_indptr": indptr[:2]}, "row_indptr"),
        ({"block_table": case.table.cpu()}, "block_table"),
        ({"num_decode_rows": 3}, "num_decode_rows"),
        ({"q": case.q[:, :7], "out": torch.empty_like(case.q[:, :7])}, "q"),
    ):
        with pytest.raises(ValueError, match=name):
            call(**wrong)
