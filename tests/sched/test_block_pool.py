"""The block pool: each block in one state, counts that add up, nothing handed out while a step in flight touches it."""

from __future__ import annotations

import numpy as np
import pytest

from stoker.scheduler import BlockPool


def total(pool: BlockPool) -> int:
    c = pool.counts()
    return 1 + c.free + c.used + c.cached + c.draining


def test_allocate_and_release() -> None:
    """Every block but the null block is given out once."""
    pool = BlockPool(9)
    blocks = pool.allocate(8)
    assert sorted(blocks.tolist()) == list(range(1, 9))
    assert (pool.counts().free, pool.counts().used, total(pool)) == (0, 8, 9)
    pool.release(blocks[:3])
    assert (pool.counts().free, pool.counts().used, total(pool)) == (3, 5, 9)


def test_draining_until_the_step_is_back() -> None:
    """A block that a step in flight touches is not free before that step was committed."""
    pool = BlockPool(5)
    blocks = pool.allocate(4)
    pool.release(blocks[:2], last_step=2)
    pool.release(blocks[2:3], last_step=1)
    assert (pool.counts().draining, pool.counts().free) == (3, 0)
    pool.committed(1)
    assert (pool.counts().draining, pool.counts().free, total(pool)) == (2, 1, 5)
    pool.committed(2)
    assert (pool.counts().draining, pool.counts().free, total(pool)) == (0, 3, 5)


def test_refuses_what_nobody_holds() -> None:
    """A double free is an error, not a second hand on the block."""
    pool = BlockPool(5)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(ValueError, match="nobody holds"):
        pool.release(blocks)
    with pytest.raises(ValueError, match="nobody holds"):
        pool.release(np.array([0], dtype=np.int32))
    with pytest.raises(ValueError, match="4 blocks are free"):
        pool.allocate(5)
