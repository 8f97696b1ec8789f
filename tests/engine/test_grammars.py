"""What makes masks, by itself: requests that end while their grammar is looked at, and ends that a request minds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stoker import SamplingParams, demo_model
from stoker.engine.grammars import Grammars
from stoker.engine.token_rules import bitmask

TOKENIZER = Path(demo_model.__file__).parent / "checkpoint" / "tokenizer.json"


def test_a_request_that_ended_meanwhile_is_told_nothing() -> None:
    """The loop may refuse a request before whoever added it asks for its grammar."""
    grammars = Grammars(TOKENIZER.read_text, 2816, (0,))
    params = SamplingParams(structured_outputs={"regex": "[a-z]{3}"})  # type: ignore[arg-type]
    number = grammars.open(params)
    grammars.forget(5, number)
    told: list[str | None] = []
    grammars.when_done(number, told.append)
    grammars.shutdown()
    assert told == []


def test_bitmask_is_bit_by_bit() -> None:
    """All places of a word, the sign's among them."""
    tokens = [0, 31, 32, 63, 95]
    mask = bitmask(tokens, 3)
    assert mask.dtype == np.int32
    assert [t for t in range(96) if int(mask[t // 32]) >> (t % 32) & 1] == tokens
