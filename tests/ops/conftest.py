"""Every test of an op runs at each instruction set that this processor has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from stoker._core import cpu


@pytest.fixture(params=cpu.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    cpu.set_isa(request.param)
    yield request.param
    cpu.set_isa("")


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    """Two threads for our ops, whatever the machine; one for torch, whose loops are too short here for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    cpu.set_num_threads(2)
    yield
    torch.set_num_threads(before)
    cpu.set_num_threads(0)
    cpu.set_thread_pool("auto")
