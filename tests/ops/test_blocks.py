"""Copies of whole blocks and the tokens that only the device knows."""

from __future__ import annotations

import pytest
import torch

from stoker import ops
from support.op_cases import int32

DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES)
def test_copy_blocks(dtype: torch.dtype) -> None:
    """The named blocks are equal afterwards and no other byte has changed, also behind a free first stride."""
    wide = torch.randn(9, 2, 2, 8, 16).to(dtype)
    before = wide.view(torch.uint8).clone()
    ops.copy_blocks(wide[:, 1], int32([[3, 7], [5, 1]]))
    after = wide.view(torch.uint8)
    assert torch.equal(after[7, 1], before[3, 1])
    assert torch.equal(after[1, 1], before[5, 1])
    after[7, 1], after[1, 1] = before[7, 1], before[1, 1]
    assert torch.equal(after, before)


@pytest.mark.parametrize("to_host", [True, False])
def test_swap_blocks(to_host: bool) -> None:
    """Both directions between caches of different sizes and strides."""
    device, host = torch.randn(6, 3, 4), torch.randn(11, 2, 3, 4)[:, 0]
    read, write = (device, host) if to_host else (host, device)
    want = write.clone()
    want[2], want[5] = read[4], read[1]
    ops.swap_blocks(device, host, int32([[4, 2], [1, 5]]), to_host=to_host)
    assert torch.equal(write, want)


def test_many_blocks_take_threads() -> None:
    """Enough bytes to be spread over threads."""
    cache = torch.randn(400, 4096)
    want = cache[:200].clone()
    ops.copy_blocks(cache, int32([[i, i + 200] for i in range(200)]))
    assert torch.equal(cache[200:], want)
    assert torch.equal(cache[:200], want)


def test_no_pairs() -> None:
    """An empty list is no error."""
    ops.copy_blocks(torch.zeros(2, 2), torch.zeros(0, 2, dtype=torch.int32))


def test_gather_tokens() -> None:
    """A token, or the last token of a seat."""
    out = int32([0] * 4)
    ops.gather_tokens(out, int32([5, -1, -3, 0]), int32([10, 11, 12]))
    assert out.tolist() == [5, 10, 12, 0]


def test_bad_blocks_and_seats_are_refused() -> None:
    """What would read or write outside is an error that says which argument did it."""
    cache = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="copy_blocks: pairs names a destination block"):
        ops.copy_blocks(cache, int32([[0, 4]]))
    with pytest.raises(ValueError, match="copy_blocks: pairs names a source block"):
        ops.copy_blocks(cache, int32([[-1, 1]]))
    with pytest.raises(ValueError, match="host_cache must have blocks of device_cache"):
        ops.swap_blocks(cache, torch.zeros(4, 3), int32([[0, 1]]), to_host=True)
    with pytest.raises(ValueError, match="token_ids names a seat outside last_token"):
        ops.gather_tokens(int32([0]), int32([-4]), int32([1, 2, 3]))
