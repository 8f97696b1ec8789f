"""Sampling on the GPU against the reference on the CPU: the same tokens, ranks and best ids; the same stream of draws."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from stoker import ops
from stoker.ops import reference
from stoker.ops.reference_sample import philox_uniform
from stoker.ops.seat_table import SEAT_CHANGE, SEAT_PENALTIES

DEVICE = "cuda"


def int32(values):
    return torch.tensor(values, dtype=torch.int32)


def change(rng: random.Random, seat: int, vocab: int, **fields):
    """One SeatChange record with random parameters."""
    record = np.zeros(1, dtype=SEAT_CHANGE)
    values = {
        "seat": seat,
        "temperature": rng.choice([0.0, 0.3, 1.0, 1.7]),
        "top_k": rng.choice([0, 0, 1, 5, 50, vocab]),
        "top_p": rng.choice([1.0, 1.0, 0.9, 0.3, 0.05]),
        "min_p": rng.choice([0.0, 0.0, 0.05, 0.5, 1.0]),
        "repetition_penalty": 1.0,
        "num_logprobs": rng.choice([-1, 0, 3, 7]),
        "seed_low": rng.getrandbits(32),
        "seed_high": rng.getrandbits(32),
        **fields,
    }
    for name, value in values.items():
        record[name] = value
    return record


def both(changes, data, logits, positions, seats_of_table, masks=None, best=5):
    """Applies the changes to a table on each side and samples; returns both sides' tokens after comparing logprobs."""
    rows, vocab = logits.shape
    results = []
    for device, sample in ((DEVICE, ops.sample), ("cpu", reference.sample)):
        table = ops.SeatTable(seats_of_table, vocab, device)
        table.apply(np.concatenate(changes), np.array(data, dtype=np.int32))
        tokens = int32([-7] * rows).to(device)
        buffers = ops.LogprobBuffers.allocate(rows, best, device)
        options = {name: tensor.to(device) for name, tensor in (masks or {}).items()}
        where = logits if device == DEVICE else logits.cpu()
        sample(
            tokens,
            where,
            table,
            int32(range(1, rows + 1)).to(device),
            int32(positions).to(device),
            logprobs=buffers,
            **options,
        )
        results.append((tokens.cpu(), buffers))
    (got, got_best), (want, want_best) = results
    if torch.equal(got, want):
        for name in ("rank", "top_ids"):
            assert torch.equal(getattr(got_best, name).cpu(), getattr(want_best, name)), name
        for name in ("sampled", "top_logprobs"):
            torch.testing.assert_close(
                getattr(got_best, name).cpu(), getattr(want_best, name), rtol=2e-6, atol=3e-5
            )
    return got, want


@pytest.mark.parametrize("vocab", [1, 7, 300, 5003, 151936])
@pytest.mark.parametrize("seed", range(3))
def test_same_tokens_as_the_reference(vocab: int, seed: int) -> None:
    """Random parameters on smooth, flat and peaked logits, with many ties; logprobs and ranks too."""
    rng = random.Random(seed)
    for scale, rounded in ((0.1, False), (1.0, True), (4.0, False), (10.0, True), (0.0, False)):
        changes = [change(rng, seat, vocab) for seat in range(1, 9)]
        logits = torch.randn(8, vocab, generator=torch.Generator().manual_seed(seed)).to(DEVICE) * scale
        got, want = both(changes, [], logits.round() if rounded else logits, [rng.randrange(1 << 20)] * 8, 9)
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_logits_in_the_models_dtype(dtype: torch.dtype) -> None:
    """Rows of a wider tensor are widened, not rounded, aligned or not; the logits are unchanged on return."""
    rng = random.Random(3)
    for width in (700, 704):
        wide = (torch.randn(4, width, generator=torch.Generator().manual_seed(1)) * 3).to(dtype).to(DEVICE)
        before = wide.clone()
        got, want = both([change(rng, s, 650) for s in range(1, 5)], [], wide[:, :650], [3] * 4, 5)
        assert torch.equal(got, want)
        assert torch.equal(wide, before)


@pytest.mark.parametrize("seed", range(6))
def test_masks_bias_stops_and_penalties(seed: int) -> None:
    """Everything that comes before the temperature, through SeatTable.apply as the runner fills it."""
    rng, vocab, rows = random.Random(seed), 333, 6
    changes, data = [], []
    for row in range(rows):
        bias = rng.sample(range(vocab), rng.choice([0, 3]))
        stop = rng.sample(range(vocab), rng.choice([0, 5]))
        context = [rng.randrange(vocab) for _ in range(40)]
        changes.append(
            change(
                rng,
                row + 1,
                vocab,
                flags=SEAT_PENALTIES,
                repetition_penalty=rng.choice([1.0, 1.3]),
                presence_penalty=rng.choice([0.0, 0.7]),
                frequency_penalty=rng.choice([0.0, 0.4]),
                min_position=100,
                prompt_len=25,
                data_begin=len(data),
                num_bias=len(bias),
                num_stop=len(stop),
                num_context=40,
            )
        )
        data += bias + np.float32([rng.uniform(-9, 9) for _ in bias]).view(np.int32).tolist() + stop + context
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)).to(DEVICE) * 2
    mask = torch.randint(-(1 << 31), 1 << 31, (3, (vocab + 31) // 32), dtype=torch.int64).to(torch.int32)
    masks = {"mask": mask, "mask_row": int32([0, -1, 2, 1, -1, 0])}
    for position in (99, 100):
        got, want = both(changes, data, logits, [position] * rows, rows + 1, masks)
        assert torch.equal(got, want)


def test_bad_rows() -> None:
    """NaN gives -1, so does a row where nothing is allowed; -inf is never drawn; +inf is the answer."""
    inf, nan = math.inf, math.nan
    logits = torch.tensor(
        [[0.0, nan, 1.0], [-inf, -inf, -inf], [-inf, 0.0, -inf], [0.0, inf, inf], [nan, inf, -inf]]
    )
    for temperature in (0.0, 1.0):
        table = ops.SeatTable(6, 3, DEVICE)
        table.temperature.fill_(temperature)
        tokens = int32([-7] * 5).to(DEVICE)
        ops.sample(tokens, logits.to(DEVICE), table, int32(range(1, 6)).to(DEVICE), int32([0] * 5).to(DEVICE))
        assert tokens.tolist() == [-1, -1, 1, 1, -1]


def test_stream_is_the_references() -> None:
    """Uniform logits over 2^k tokens show u itself."""
    vocab, rows = 1 << 12, 64
    rng = random.Random(0)
    table = ops.SeatTable(rows + 1, vocab, DEVICE)
    table.temperature.fill_(1.0)
    seeds = [(rng.getrandbits(32), rng.getrandbits(32)) for _ in range(rows + 1)]
    table.seed.copy_(torch.tensor(seeds, dtype=torch.int64).to(torch.int32))
    for position in (0, 1, 77, (1 << 31) - 1):
        tokens = int32([0] * rows).to(DEVICE)
        ops.sample(
            tokens,
            torch.zeros(rows, vocab, device=DEVICE),
            table,
            int32(range(1, rows + 1)).to(DEVICE),
            int32([position] * rows).to(DEVICE),
        )
        assert tokens.tolist() == [
            int(philox_uniform(*seeds[row + 1], position) * vocab) for row in range(rows)
        ]


def test_temperatures_next_to_none_are_greedy() -> None:
    """Below 1e-5 the lowest id of the best is the answer, as everywhere: no draw among equals, and no logit that overflows
    when it is divided.
    """
    vocab = 500
    logits = torch.randn(4, vocab, generator=torch.Generator().manual_seed(5)).mul(30).to(DEVICE)
    logits[:, 100:140] = 200.0
    for temperature in (9e-6, 1e-38):
        changes = [change(random.Random(seat), seat, vocab, temperature=temperature) for seat in range(1, 5)]
        got, want = both(changes, [], logits, [7] * 4, 5)
        assert got.tolist() == want.tolist() == [100] * 4


def test_more_logprobs_than_are_ranked_at_a_time() -> None:
    """The best 5,000 of 5,003, with ties: ranked 2,048 at a time."""
    vocab = 5003
    logits = (torch.randn(3, vocab, generator=torch.Generator().manual_seed(2)) * 3).to(DEVICE)
    logits[1] = logits[1].round()
    logits[2] = 0.0
    changes = [change(random.Random(seat), seat, vocab, num_logprobs=5000) for seat in range(1, 4)]
    got, want = both(changes, [], logits, [3] * 3, 4, best=5000)
    assert torch.equal(got, want)


def test_a_vocabulary_whose_sum_would_not_fit_is_refused() -> None:
    """2^20 probabilities of 2^44 each do not fit 64 bits."""
    table = ops.SeatTable(2, 1 << 20, DEVICE)
    one = int32([1]).to(DEVICE)
    with pytest.raises(ValueError, match=r"logits.*1,048,575"):
        ops.sample(one.clone(), torch.zeros(1, 1 << 20, device=DEVICE), table, one, one)


def test_a_row_does_not_depend_on_the_others() -> None:
    """The same token alone and in a crowd (DESIGN 10.2 b), whatever number of blocks share a row."""
    rng, vocab, count = random.Random(9), 32000, 70
    changes = [change(rng, s, vocab, temperature=0.9, top_k=40, top_p=0.8) for s in range(1, count + 1)]
    table = ops.SeatTable(count + 1, vocab, DEVICE)
    table.apply(np.concatenate(changes), np.zeros(0, dtype=np.int32))
    logits = torch.randn(count, vocab, device=DEVICE) * 3
    seats, positions = int32(range(1, count + 1)).to(DEVICE), int32(range(count)).to(DEVICE)
    together, alone, some = (torch.zeros(count, dtype=torch.int32, device=DEVICE) for _ in range(3))
    ops.sample(together, logits, table, seats, positions)
    for end in (64, 32, 16, 8):
        ops.sample(some[:end], logits[:end], table, seats[:end], positions[:end])
        assert torch.equal(some[:end], together[:end]), end
    for i in range(count):
        ops.sample(alone[i : i + 1], logits[i : i + 1], table, seats[i : i + 1], positions[i : i + 1])
    assert torch.equal(together, alone)
