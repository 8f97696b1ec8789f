"""Tokenizers of the two great kinds, trained on the spot: byte-level BPE, and SentencePiece-like BPE with
byte fallback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from stoker.text import Tokenizer as StokerTokenizer

CORPUS = [
    "Once upon a time there was a small red fox who lived near the old mill.",
    "The fox asked the miller: which key opens the cellar? The miller laughed, and laughed again.",
    "naïve café, Über, señor, 水を飲む, Привет мир, γειά σου, 😀😀 👩‍👩‍👧 🇩🇪",
    "def fox(x):\n    return x + 1\n",
] * 8
SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>"]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("ünïcode word", special=False)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    vocab = {
        token: index
        for index, token in enumerate([*SPECIAL, "<unk>", *(f"<0x{b:02X}>" for b in range(256)), "▁"])
    }
    for character in "abcdefghijklmnopqrstuvwxyzOTU.,:?é":
        vocab[character] = len(vocab)
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "f"), ("o", "x"), ("▁f", "ox")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def write_folder(folder: Path, backend: Tokenizer, **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    return folder


@pytest.fixture(scope="session", params=["byte_level", "byte_fallback"])
def tokenizer_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    backend = byte_level() if request.param == "byte_level" else byte_fallback()
    return write_folder(tmp_path_factory.mktemp(request.param), backend)


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> StokerTokenizer:
    return StokerTokenizer.from_folder(tokenizer_folder)


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> StokerTokenizer:
    return StokerTokenizer.from_folder(write_folder(tmp_path_factory.mktemp("bytes"), byte_level()))


@pytest.fixture(scope="session")
def fallback_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> StokerTokenizer:
    return StokerTokenizer.from_folder(write_folder(tmp_path_factory.mktemp("fallback"), byte_fallback()))
