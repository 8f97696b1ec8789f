"""Random checkpoints with transformers' greedy answers to 64 prompts, made once a session."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from support import checkpoints

NEW_TOKENS = 64


@dataclass(frozen=True)
class Golden:
    """A checkpoint and what transformers answers."""

    folder: Path
    prompts: list[list[int]]
    reference: checkpoints.Reference


@pytest.fixture(scope="session")
def goldens(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Golden]:
    """Filled by the fixture `golden`, an architecture at a time."""
    return {}


@pytest.fixture(params=checkpoints.ARCHITECTURES)
def golden(
    request: pytest.FixtureRequest, goldens: dict[str, Golden], tmp_path_factory: pytest.TempPathFactory
) -> Golden:
    """64 prompts of 1 to 600 tokens, 64 new tokens each, for every architecture."""
    case = request.param
    if case not in goldens:
        model = checkpoints.make_model(case)
        folder = checkpoints.save(model, tmp_path_factory.mktemp(case))
        prompts = checkpoints.prompts(64, 600, seed=11)
        goldens[case] = Golden(folder, prompts, checkpoints.generate(model, prompts, NEW_TOKENS))
    return goldens[case]
