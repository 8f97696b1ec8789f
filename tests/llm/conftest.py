"""An LLM around the scripted engine: the prompt says what the answer is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from stoker.llm import LLM
from stoker.text import Tokenizer
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from .fake_engine import FakeEngine

EOS = 2


@pytest.fixture(scope="session")
def letters() -> Tokenizer:
    """One token a byte, so that a test can say where tokens end: 'A' is chr(65)'s id, whatever that is."""
    vocab = {"<pad>": 0, "<s>": 1, "</s>": EOS}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[character] = len(vocab)
    backend = Backend(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<pad>", "<s>", "</s>"])
    template = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}|{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
    config = {"eos_token": "</s>", "bos_token": "<s>", "chat_template": template}
    return Tokenizer(backend, config)


@pytest.fixture
def engine(letters: Tokenizer) -> FakeEngine:
    """Answers a prompt with the prompt again, then the answer's index if it is not the first, then EOS."""

    def script(prompt: list[int], index: int) -> list[int]:
        return [*prompt, *(letters.encode(str(index)) if index else []), EOS]

    return FakeEngine(script)


@pytest.fixture
def llm(engine: FakeEngine, letters: Tokenizer) -> Iterator[LLM]:
    yield LLM.from_engine(engine, letters)  # type: ignore[arg-type]
    assert not engine.running, "every request has left the engine, whatever happened"
