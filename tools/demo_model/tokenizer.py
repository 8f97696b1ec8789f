"""The demo model's byte-level BPE tokenizer and the files that describe it in a Hugging Face folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from stoker.demo_model.recall import FactMaker
from stoker.demo_model.words import (
    HE_ENDINGS,
    NAME_MIDDLES,
    NAME_STARTS,
    SHE_ENDINGS,
    TOWN_ENDINGS,
    TOWN_STARTS,
)

from .corpus import END, SPECIAL_TOKENS, recall_document, story_document

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{ raise_exception('roles are system, user and assistant, not ' + message['role']) }}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def _any(words: Sequence[str]) -> str:
    return "|".join(sorted(filter(None, words), key=len, reverse=True))


# Names are shown to the tokenizer in syllables, so that it learns those and not whole names or pieces across syllables.
_PERSON = re.compile(
    rf"\b({_any(NAME_STARTS)})({_any(NAME_MIDDLES)})?({_any([*SHE_ENDINGS, *HE_ENDINGS])})\b"
)
_TOWN = re.compile(rf"\b({_any(TOWN_STARTS)})({_any(TOWN_ENDINGS)})\b")


def _syllables(match: re.Match[str]) -> str:
    return "\n".join(part for part in match.groups() if part)


def _texts(seed: int, documents: int) -> Iterator[str]:
    rng = Random(seed)
    for _ in range(documents):
        for text in (story_document(rng), recall_document(rng, FactMaker(rng, unseen=False), 300)):
            for token in SPECIAL_TOKENS:
                text = text.replace(token, "\n")
            yield _TOWN.sub(_syllables, _PERSON.sub(_syllables, text))


def train_tokenizer(vocab_size: int, seed: int, documents: int = 3000) -> Tokenizer:
    """A byte-level BPE that covers all 256 bytes; digits stand alone."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed, documents), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "eos_token": END,
        "pad_token": END,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
