"""How tensors cross into native code: every kind of mismatch names the op, the argument and the dimension."""

from __future__ import annotations

import re

import pytest
import torch

from stoker import ops
from stoker._core import cpu
from support.op_cases import AttentionCase, int32


def f32(*shape: int) -> torch.Tensor:
    return torch.ones(*shape)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            (f32(3, 8), f32(3, 9), f32(9)),
            "rms_norm: out has size 8 in dimension 1, expected [T=3, H=9], got [3, 8]",
        ),
        (
            (f32(3, 8), f32(3, 8), f32(9)),
            "rms_norm: weight has size 9 in dimension 0, expected [H=8], got [9]",
        ),
        ((f32(3, 8), f32(8), f32(8)), "rms_norm: x has shape [8], expected [T, H]"),
        ((f32(3, 8).half(), f32(3, 8), f32(8)), "rms_norm: out is float16, expected float32, the dtype of x"),
        (
            (f32(3, 8), f32(3, 8).double(), f32(8)),
            "rms_norm: x is float64, expected float32 or float16 or bfloat16",
        ),
        ((f32(3, 8), f32(8, 3).t(), f32(8)), "rms_norm: x has stride 3 in dimension 1, expected 1"),
        ((f32(3, 8), f32(3, 8), f32(16)[::2]), "rms_norm: weight has stride 2 in dimension 0, expected 1"),
    ],
)
def test_messages(tensors: tuple[torch.Tensor, ...], message: str) -> None:
    """The text a user sees, whole."""
    out, x, weight = tensors
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        ops.rms_norm(out, x, weight, 1e-6)


def test_what_is_no_tensor_is_a_type_error() -> None:
    """numpy arrays and lists do not cross."""
    with pytest.raises(TypeError, match="weight must be a torch"):
        cpu.rms_norm(f32(1, 4), f32(1, 4), [1.0] * 4, 1e-6)  # type: ignore[arg-type]


def test_strides_of_dimensions_of_one_do_not_matter() -> None:
    """A single row may have any row stride, also where the dimension must be dense."""
    table = torch.zeros(4, 6, dtype=torch.int32)[:, :1]
    case = AttentionCase(((3, 1),))
    tensors = case.tensors()
    table[1, 0] = int(tensors["block_table"][1, 0])
    out = torch.zeros_like(tensors["q"])
    ops.paged_attention(out, **{**tensors, "block_table": table}, **case.options())
    assert bool(out.any())


def test_parameters_and_empty_tensors() -> None:
    """torch.nn.Parameter crosses as a tensor does; no rows are no error."""
    weight = torch.nn.Parameter(f32(8), requires_grad=False)
    ops.rms_norm(f32(2, 8), f32(2, 8), weight, 1e-6)
    ops.rms_norm(torch.empty(0, 8), torch.empty(0, 8), weight, 1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_indptr": int32([0, 2, 4])}, "row_indptr goes past the tokens of q"),
        ({"row_indptr": int32([0, 3, 2])}, "row_indptr must not decrease"),
        ({"row_indptr": int32([0, 1])}, "row_indptr has size 2 in dimension 0"),
        ({"row_kv_len": int32([1, 9])}, "row_kv_len is shorter than its row's query tokens"),
        ({"row_kv_len": int32([33, 9])}, "row_kv_len is longer than block_table's row can hold"),
        ({"row_seat": int32([1, 3])}, "row_seat names a seat outside block_table"),
        ({"block_table": int32([[0, 0], [1, 99], [3, 0]])}, "block_table names a block outside the cache"),
        ({"window": -1}, "window must not be negative"),
        ({"soft_cap": -1.0}, "soft_cap must not be negative"),
        ({"row_seat": torch.tensor([1, 2])}, "row_seat is int64, expected int32"),
        ({"k_cache": torch.zeros(9, 2, 12, 64)}, "k_cache must have a block size"),
        ({"k_cache": torch.zeros(9, 3, 16, 64)}, "q must have a multiple of k_cache's heads"),
    ],
)
def test_attention_arguments(change: dict[str, object], message: str) -> None:
    """What would read past a table or a cache is refused."""
    case = AttentionCase(((20, 2), (9, 1)))
    arguments = {**case.tensors(), **case.options(), **change}
    if "k_cache" in change:
        arguments["v_cache"] = arguments["k_cache"]
    with pytest.raises(ValueError, match="paged_attention: " + re.escape(message)):
        ops.paged_attention(torch.zeros_like(arguments["q"]), **arguments)


def test_sample_arguments() -> None:
    """Rows, seats and masks that do not fit each other."""
    table = ops.SeatTable(3, 40)
    logits, seats, out = f32(2, 40), int32([1, 2]), int32([0, 0])
    with pytest.raises(ValueError, match="sample: row_seat names a seat outside the table"):
        ops.sample(out, logits, table, int32([1, 3]), seats)
    with pytest.raises(ValueError, match=r"sample: mask has size 1 in dimension 1, expected \[\*, 2\]"):
        ops.sample(out, logits, table, seats, seats, mask=int32([[0]]), mask_row=seats)
    with pytest.raises(ValueError, match="sample: mask and mask_row go together"):
        ops.sample(out, logits, table, seats, seats, mask=int32([[0, 0]]))
    with pytest.raises(ValueError, match="sample: out_tokens is int64"):
        ops.sample(out.long(), logits, table, seats, seats)
