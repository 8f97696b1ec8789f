"""Every architecture computes what transformers' implementation of it computes, from the checkpoint that it
wrote.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support import checkpoints, whole_prompts

PROMPTS = checkpoints.prompts(6, 300, seed=3)


def worst_error(mine: list[torch.Tensor], reference: list[torch.Tensor]) -> float:
    """Over all rows of logits, the error's L2 norm as a share of the reference row's."""
    pairs = zip(mine, reference, strict=True)
    return max(float(((a.float() - b).norm(dim=-1) / b.norm(dim=-1)).max()) for a, b in pairs)


@pytest.mark.parametrize("case", list(checkpoints.CASES))
def test_float32_equals_transformers(case: str, tmp_path: Path) -> None:
    """Protects weights, rope scaling, GQA, windows, biases, q/k norm and ties: one wrong and logits are far
    off.
    """
    reference = checkpoints.make_model(case)
    checkpoints.save(reference, tmp_path)
    with torch.inference_mode():
        expected = [reference(torch.tensor([p])).logits[0] for p in PROMPTS]
    model = whole_prompts.load(tmp_path, torch.float32)
    assert worst_error(whole_prompts.logits(model, PROMPTS, torch.float32), expected) < 2e-5


@pytest.mark.parametrize("case", checkpoints.ARCHITECTURES)
def test_bfloat16_is_within_two_hundredths(case: str, tmp_path: Path) -> None:
    """Protects the bf16 path's accuracy: a bf16 checkpoint against transformers' float32 on the same
    weights.
    """
    checkpoints.save(checkpoints.make_model(case, gain=1.0).bfloat16(), tmp_path)
    reference = checkpoints.load(tmp_path, torch.float32)
    with torch.inference_mode():
        expected = [reference(torch.tensor([p])).logits[0] for p in PROMPTS]
    model = whole_prompts.load(tmp_path, torch.bfloat16)
    assert worst_error(whole_prompts.logits(model, PROMPTS, torch.bfloat16), expected) <= 2e-2
