"""A tokenizer of one token a byte, and an engine that answers with the prompt: the prompt says what comes out, and where tokens end."""

from __future__ import annotations

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from stoker.text import Tokenizer

from .fake_engine import FakeEngine

EOS = 2
TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}|{% endfor %}{% if add_generation_prompt %}a:{% endif %}"


def letters_tokenizer() -> Tokenizer:
    """Byte-level, without merges; ids 0 to 2 are special."""
    vocab = {"<pad>": 0, "<s>": 1, "</s>": EOS}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[character] = len(vocab)
    backend = Backend(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<pad>", "<s>", "</s>"])
    return Tokenizer(backend, {"eos_token": "</s>", "bos_token": "<s>", "chat_template": TEMPLATE})


def echo_engine(tokenizer: Tokenizer) -> FakeEngine:
    """Answers a prompt with the prompt again, then the answer's index if it is not the first, then EOS."""

    def script(prompt: list[int], index: int) -> list[int]:
        return [*prompt, *(tokenizer.encode(str(index)) if index else []), EOS]

    return FakeEngine(script)
