"""The ops under torch.library, as torch.compile meets them."""

from __future__ import annotations

import torch

from stoker import ops
from stoker.ops import library


def test_registered_ops_pass_opcheck() -> None:
    """torch's own checks: the schema tells what is written, and fake tensors pass through; eager results are ours."""
    library.register()
    library.register()
    x, weight = torch.randn(4, 16), torch.randn(16)
    for name, arguments in {
        "rms_norm": (torch.zeros(4, 16), x, weight, 1e-6),
        "add_rms_norm": (torch.zeros(4, 16), torch.randn(4, 16), x, weight, 1e-6),
        "silu_and_mul": (torch.zeros(4, 8), x),
        "gelu_and_mul": (torch.zeros(4, 8), x),
    }.items():
        op = getattr(torch.ops.stoker, name).default
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))
        out, want = torch.zeros_like(arguments[0]), torch.zeros_like(arguments[0])
        copies = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments[1:]]
        op(out, *arguments[1:])
        getattr(ops, name)(want, *copies)
        assert torch.equal(out, want)
