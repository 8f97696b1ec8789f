"""Sampling against the reference: the same survivors, the same stream, the same tokens; and the right distribution."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from stoker import ops
from stoker.ops import reference
from stoker.ops.reference_sample import philox_uniform
from stoker.ops.seat_table import PROMPT_BIT, SEAT_CHANGE, SEAT_PENALTIES
from support.op_cases import MODEL_TYPES, int32


def random_table(rng: random.Random, seats: int, vocab: int) -> ops.SeatTable:
    table = ops.SeatTable(seats, vocab)
    for seat in range(1, seats):
        table.temperature[seat] = rng.choice([0.0, 0.3, 1.0, 1.7])
        table.top_k[seat] = rng.choice([0, 0, 1, 5, 50, vocab])
        table.top_p[seat] = rng.choice([1.0, 1.0, 0.9, 0.3, 0.05])
        table.min_p[seat] = rng.choice([0.0, 0.0, 0.05, 0.5, 1.0])
        table.num_logprobs[seat] = rng.choice([-1, 0, 3, 7])
        table.seed[seat] = torch.tensor([rng.getrandbits(31), -rng.getrandbits(31)])
    return table


def run_both(
    table: ops.SeatTable, logits: torch.Tensor, positions: list[int], **masks: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = len(logits)
    seats = int32(list(range(1, rows + 1)))
    results = []
    for sample in (ops.sample, reference.sample):
        tokens, best = int32([-7] * rows), ops.LogprobBuffers.allocate(rows, 5)
        sample(tokens, logits, table, seats, int32(positions), logprobs=best, **masks)
        results.append((tokens, best))
    (got, got_best), (want, want_best) = results
    for name in ("rank", "top_ids"):
        assert torch.equal(getattr(got_best, name), getattr(want_best, name)), name
    for name in ("sampled", "top_logprobs"):
        torch.testing.assert_close(getattr(got_best, name), getattr(want_best, name), rtol=2e-6, atol=2e-5)
    return got, want


@pytest.mark.parametrize("vocab", [1, 7, 300, 5003])
@pytest.mark.parametrize("seed", range(6))
def test_same_tokens_as_the_reference(isa: str, vocab: int, seed: int) -> None:
    """Random parameters on smooth, flat and peaked logits, with many ties; logprobs and ranks too."""
    rng = random.Random(seed)
    for scale, rounded in ((0.1, False), (1.0, True), (4.0, False), (10.0, True), (0.0, False)):
        table = random_table(rng, 9, vocab)
        g = torch.Generator().manual_seed(seed)
        logits = torch.randn(8, vocab, generator=g) * scale
        got, want = run_both(table, logits.round() if rounded else logits, [rng.randrange(1 << 20)] * 8)
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", MODEL_TYPES)
def test_logits_in_the_models_dtype(isa: str, dtype: torch.dtype) -> None:
    """Rows of a wider tensor in bf16 and fp16 are widened, not rounded; the logits are unchanged on return."""
    torch.manual_seed(0)
    wide = (torch.randn(4, 700) * 3).to(dtype)
    before = wide.clone()
    got, want = run_both(random_table(random.Random(3), 5, 650), wide[:, :650], [3] * 4)
    assert torch.equal(got, want)
    assert torch.equal(wide, before)


@pytest.mark.parametrize("seed", range(8))
def test_masks_bias_stops_and_penalties(isa: str, seed: int) -> None:
    """Everything that comes before the temperature, through SeatTable.apply as the runner fills it."""
    rng, vocab, rows = random.Random(seed), 333, 6
    table = ops.SeatTable(rows + 1, vocab)
    changes = np.zeros(rows, dtype=SEAT_CHANGE)
    data: list[int] = []
    for row in range(rows):
        bias = rng.sample(range(vocab), rng.choice([0, 3]))
        stop = rng.sample(range(vocab), rng.choice([0, 5]))
        context = [rng.randrange(vocab) for _ in range(40)]
        changes[row] = (
            row + 1, SEAT_PENALTIES, rng.choice([0.0, 0.8]), 1.0, 0.0, rng.choice([0, 20]),
            rng.choice([1.0, 1.3]), rng.choice([0.0, 0.7]), rng.choice([0.0, 0.4]), 2,
            rng.getrandbits(32), rng.getrandbits(32), 100, 25, len(data), len(bias), len(stop), 40, 0, 0,
        )  # fmt: skip
        data += bias + np.float32([rng.uniform(-9, 9) for _ in bias]).view(np.int32).tolist() + stop + context
    table.apply(changes, np.array(data, dtype=np.int32))
    table.count(int32([1, 2, 0]), int32([5, 5, 9]))
    assert table.penalty_counts is not None
    assert int(table.penalty_counts[0].sum()) == 0
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2
    mask = torch.randint(-(1 << 31), 1 << 31, (3, (vocab + 31) // 32), dtype=torch.int64).to(torch.int32)
    masks = {"mask": mask, "mask_row": int32([0, -1, 2, 1, -1, 0])}
    for position in (99, 100):
        got, want = run_both(table, logits, [position] * rows, **masks)
        assert torch.equal(got, want)


def test_penalties_are_vllms() -> None:
    """Repetition over prompt and output, presence and frequency over the output: by hand."""
    table = ops.SeatTable(2, 4)
    table.penalty_counts = torch.zeros(2, 4, dtype=torch.int32)
    table.penalty_counts[1] = int32([PROMPT_BIT, 2, 0, PROMPT_BIT + 1])
    table.repetition_penalty[1], table.presence_penalty[1], table.frequency_penalty[1] = 2.0, 0.5, 0.25
    table.num_logprobs[1] = -1
    from stoker.ops.reference_sample import adjusted_logits

    x = adjusted_logits(torch.tensor([4.0, 4.0, 4.0, -1.0]), table, 1, 0, None)
    assert x.tolist() == [2.0, 2.0 - 0.5 - 0.5, 4.0, -2.0 - 0.25 - 0.5]


def test_bad_rows(isa: str) -> None:
    """NaN gives -1, so does a row where nothing is allowed; -inf is a token that is never drawn; +inf is the answer."""
    inf, nan = math.inf, math.nan
    logits = torch.tensor(
        [[0.0, nan, 1.0], [-inf, -inf, -inf], [-inf, 0.0, -inf], [0.0, inf, inf], [nan, inf, -inf]]
    )
    for temperature in (0.0, 1.0):
        table = ops.SeatTable(6, 3)
        table.temperature.fill_(temperature)
        table.num_logprobs.fill_(-1)
        got, want = run_both(table, logits, [0] * 5)
        assert got.tolist() == want.tolist() == [-1, -1, 1, 1, -1]


def test_philox_known_answers() -> None:
    """Random123's own vectors for philox4x32-10 (kat_vectors): the first word of all zeros and of a counter of ones."""
    assert philox_uniform(0, 0, 0) == (0x6627E8D5 >> 8) * 2.0**-24


def test_stream_is_the_references(isa: str) -> None:
    """Uniform logits over 2^k tokens show u itself: 4096 draws at other seeds and positions."""
    vocab, rows = 1 << 12, 64
    rng = random.Random(0)
    table = ops.SeatTable(rows + 1, vocab)
    table.temperature.fill_(1.0)
    seeds = [(rng.getrandbits(32), rng.getrandbits(32)) for _ in range(rows + 1)]
    table.seed.copy_(torch.tensor(seeds, dtype=torch.int64).to(torch.int32))
    table.num_logprobs.fill_(-1)
    for position in (0, 1, 77, (1 << 31) - 1):
        tokens = int32([0] * rows)
        ops.sample(
            tokens, torch.zeros(rows, vocab), table, int32(list(range(1, rows + 1))), int32([position] * rows)
        )
        want = [int(philox_uniform(*seeds[row + 1], position) * vocab) for row in range(rows)]
        assert tokens.tolist() == want


@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_k": 6, "top_p": 0.8, "min_p": 0.05}],
    ids=str,
)
def test_distribution(isa: str, options: dict[str, float]) -> None:
    """Chi-square over 8192 draws (one a seat): the survivors' probabilities, and nothing else is ever drawn."""
    draws, vocab, temperature = 8192, 10, 0.8
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(5)) * 1.5
    table = ops.SeatTable(draws, vocab)
    table.temperature.fill_(temperature)
    table.num_logprobs.fill_(-1)
    for name, value in options.items():
        getattr(table, name).fill_(value)
    table.seed[:, 0] = torch.arange(draws)
    tokens = torch.zeros(draws, dtype=torch.int32)
    ops.sample(
        tokens, logits.expand(draws, vocab), table, torch.arange(draws, dtype=torch.int32), int32([9] * draws)
    )
    scaled = logits / temperature
    kept = reference_survivors(scaled, options)
    p = torch.softmax(scaled.masked_fill(~kept, -math.inf), -1).double()
    counts = torch.bincount(tokens, minlength=vocab).double()
    assert counts[~kept].sum() == 0
    chi_square = ((counts - draws * p)[kept] ** 2 / (draws * p[kept])).sum()
    # 99.99% of chi-square with 9 degrees of freedom is 33.7.
    assert chi_square < 33.7


def reference_survivors(x: torch.Tensor, options: dict[str, float]) -> torch.Tensor:
    """Written apart from the op's own reference, in probabilities."""
    p = torch.softmax(x, -1)
    keep = p >= options.get("min_p", 0.0) * p.max()
    order = [i for i in torch.argsort(p, descending=True).tolist() if keep[i]]
    if "top_k" in options:
        order = order[: int(options["top_k"])]
    if "top_p" in options:
        total, before, nucleus = sum(float(p[i]) for i in order), 0.0, []
        for i in order:
            if before >= options["top_p"] * total:
                break
            nucleus.append(i)
            before += float(p[i])
        order = nucleus
    kept = torch.zeros(len(x), dtype=torch.bool)
    kept[order] = True
    return kept


def test_large_vocabulary_survivors(isa: str) -> None:
    """V = 151,936 in bf16, where ties at the borders are many: the same tokens as the reference."""
    vocab = 151_936
    table = random_table(random.Random(11), 5, vocab)
    table.temperature[1:] = torch.tensor([1.0, 0.7, 1.0, 1.3])
    table.top_k[1:] = int32([50, 0, 0, 1000])
    table.top_p[1:] = torch.tensor([0.9, 0.95, 0.5, 1.0])
    table.min_p.zero_()
    g = torch.Generator().manual_seed(1)
    for scale in (1.0, 4.0):
        logits = (torch.randn(4, vocab, generator=g) * scale).bfloat16()
        got, want = run_both(table, logits, [12] * 4)
        assert torch.equal(got, want)


def test_a_row_stands_alone(isa: str) -> None:
    """Bitwise the same token and logprobs alone and in a batch spread over threads."""
    vocab, rows = 20_000, 12
    table = random_table(random.Random(2), rows + 1, vocab)
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(2)) * 3
    seats, position = int32(list(range(1, rows + 1))), int32([4] * rows)

    def run(chosen: slice) -> tuple[torch.Tensor, ops.LogprobBuffers]:
        count = len(seats[chosen])
        tokens, best = int32([0] * count), ops.LogprobBuffers.allocate(count, 5)
        ops.sample(tokens, logits[chosen], table, seats[chosen], position[chosen], logprobs=best)
        return tokens, best

    tokens, best = run(slice(None))
    for row in range(rows):
        one, one_best = run(slice(row, row + 1))
        assert one[0] == tokens[row]
        assert torch.equal(one_best.sampled[0], best.sampled[row])
        assert torch.equal(one_best.top_logprobs[0], best.top_logprobs[row])
