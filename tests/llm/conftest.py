"""An LLM around the scripted engine: the prompt says what the answer is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stoker.llm import LLM
from stoker.text import Tokenizer
from support.fake_engine import FakeEngine
from support.letters import echo_engine, letters_tokenizer


@pytest.fixture(scope="session")
def letters() -> Tokenizer:
    return letters_tokenizer()


@pytest.fixture
def engine(letters: Tokenizer) -> FakeEngine:
    return echo_engine(letters)


@pytest.fixture
def llm(engine: FakeEngine, letters: Tokenizer) -> Iterator[LLM]:
    yield LLM.from_engine(engine, letters)  # type: ignore[arg-type]
    assert not engine.running, "every request has left the engine, whatever happened"
