"""GPU tests: skipped where there is no CUDA device or no stoker._cuda."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    try:
        import stoker._cuda  # noqa: F401

        reason = "" if torch.cuda.is_available() else "no CUDA device"
    except ImportError:
        reason = "stoker._cuda is not built"
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _exact_float32():
    """References are computed in full float32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before
