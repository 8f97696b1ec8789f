"""What makes masks, by itself: requests that end while their grammar is looked at, and ends that a request minds."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest

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


def test_masks_are_the_same_on_any_number_of_threads() -> None:
    """One after another where there are few cores or few rows, else by a pool: the same bits, and each row its own."""
    found = []
    for threads in (1, 2):
        grammars = Grammars(TOKENIZER.read_text, 2816, (0,))
        grammars._threads = threads
        forms = [{"regex": f"[a-{last}]{{2,40}}"} for last in "cegikmoq"]
        numbers = [grammars.open(SamplingParams(structured_outputs=form)) for form in forms]  # type: ignore[arg-type]
        settled = threading.Semaphore(0)
        for number in numbers:
            grammars.when_done(number, lambda error, settled=settled: settled.release())
        assert all(settled.acquire(timeout=20) for _ in numbers)
        masks, failed = grammars.fill([(key, number, 0, []) for key, number in enumerate(numbers)])
        assert not failed
        masks = masks.copy()  # the next call overwrites it
        first = [next(t for t in range(300, 2816) if row[t // 32] >> (t % 32) & 1) for row in masks]
        more, failed = grammars.fill([(key, n, 1, [first[key]]) for key, n in enumerate(numbers)])
        found.append((masks, more.copy()))
        assert not failed
        grammars.shutdown()
    assert np.array_equal(found[0][0], found[1][0])
    assert np.array_equal(found[0][1], found[1][1])
    assert len({row.tobytes() for row in found[0][0]}) == len(found[0][0])


def test_a_grammar_that_is_worn_out_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lexer learns states from all its answers, up to a limit. Beyond it those that run fail, but nobody after them."""
    import llguidance

    few = llguidance.LLParserLimits(max_lexer_states=2000)
    monkeypatch.setattr("stoker.engine.grammars.parser_limits", lambda: few)
    params = SamplingParams(structured_outputs={"regex": r"(.|\n)*(e|t)(.|\n){40}"})  # type: ignore[arg-type]
    grammars = Grammars(TOKENIZER.read_text, 2816, (0,))

    def begin() -> int:
        number, settled = grammars.open(params), threading.Event()
        grammars.when_done(number, lambda error: settled.set())
        assert settled.wait(20)
        assert grammars.is_ready(number)
        return number

    rng, number, failed = random.Random(0), begin(), []
    row: list[int] = []
    for step in range(2000):
        masks, failed = grammars.fill([(0, number, step, row)])
        if failed:
            break
        row = [rng.choice([t for t in range(300, 2816) if masks[0][t // 32] >> (t % 32) & 1])]
    assert "too many states" in failed[0][1]
    assert grammars.fill([(1, begin(), 0, [])])[1] == []
    grammars.shutdown()
