"""The tokenizer reads a checkpoint folder as transformers does, and says clearly what is wrong with one that
it cannot read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stoker.text import Tokenizer

from .conftest import byte_fallback, byte_level, write_folder

TEXTS = [
    "",
    "Once upon a time",
    " two  spaces ",
    "水を飲む 😀",
    "line\nline\t",
    "<|user|>hi</s>",
    "a ünïcode word",
]


@pytest.mark.parametrize(
    "options", [{}, {"add_bos_token": True}, {"add_bos_token": False, "add_eos_token": True}]
)
@pytest.mark.parametrize("kind", [byte_level, byte_fallback])
def test_ids_equal_transformers(tmp_path: Path, kind: object, options: dict[str, bool]) -> None:
    """The same ids as transformers gives: tokenizer.json's post-processor decides on BOS and EOS, whatever
    tokenizer_config.json says."""
    transformers = pytest.importorskip("transformers")
    folder = write_folder(tmp_path, kind(), **options)  # type: ignore[operator]
    ours = Tokenizer.from_folder(folder)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert (
            ours.encode(text, add_special_tokens=False) == theirs(text, add_special_tokens=False)["input_ids"]
        )
    assert ours.encode_batch(TEXTS) == [ours.encode(text) for text in TEXTS]
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (1, 2, 0)
    assert ours.vocab_size == len(theirs)


def test_special_tokens_that_only_the_config_names(tmp_path: Path) -> None:
    """Old checkpoints keep added tokens in tokenizer_config.json; without them a chat's markers would be
    split."""
    added = {"400": {"content": "<|end|>", "special": True}}
    tokenizer = Tokenizer.from_folder(
        write_folder(tmp_path, byte_level(), eos_token={"content": "<|stop|>"}, added_tokens_decoder=added)
    )
    assert len(tokenizer.encode("<|end|>", add_special_tokens=False)) == 1
    assert tokenizer.eos_token_id == tokenizer.backend.token_to_id("<|stop|>")
    assert tokenizer.eos_token_id in tokenizer.special_ids


def test_every_byte_has_a_token_text(byte_tokenizer: Tokenizer) -> None:
    """Logprobs name each token; a token of half a character shows as a replacement, a special token by its
    name."""
    assert byte_tokenizer.token_text(byte_tokenizer.encode("fox", add_special_tokens=False)[-1])
    assert byte_tokenizer.token_text(2) == "</s>"
    half = byte_tokenizer.backend.token_to_id("ð")
    assert byte_tokenizer.token_text(half) == "\ufffd"
    assert {byte_tokenizer.token_bytes(i) for i in range(400)} >= {bytes([b]) for b in range(256)}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no tokenizer.json"),
        ({"tokenizer.json": "{"}, "cannot be read"),
        ({"tokenizer.json": None, "tokenizer_config.json": "[1]"}, "JSON object"),
        ({"tokenizer.json": None, "tokenizer_config.json": "{"}, "not JSON"),
    ],
)
def test_a_folder_that_cannot_be_read_says_why(
    tmp_path: Path, files: dict[str, str | None], message: str
) -> None:
    """Bad input is a ValueError that names the file."""
    for name, content in files.items():
        (tmp_path / name).write_text(byte_level().to_str() if content is None else content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_folder(tmp_path)


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    """JSON can carry it (\\ud83d); it is no text, and the error says where it stands."""
    with pytest.raises(ValueError, match=r"U\+D83D at character 2"):
        tokenizer.encode(json.loads('"ab\\ud83d"'))
