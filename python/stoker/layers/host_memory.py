"""Large host tensors that cost nothing until they are touched, on huge pages where the system has them."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch

_WORTH_MAPPING = 1 << 21  # one huge page


def zeros(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A zeroed CPU tensor. torch.zeros would write every page at once; this takes them from the system on
    first touch.
    """
    count = math.prod(shape)
    num_bytes = count * torch.empty(0, dtype=dtype).element_size()
    if num_bytes < _WORTH_MAPPING:
        return torch.zeros(*shape, dtype=dtype)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=count).view(*shape)
