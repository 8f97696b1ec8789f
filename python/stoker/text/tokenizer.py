"""A checkpoint's tokenizer: tokenizer.json and tokenizer_config.json of a Hugging Face folder, run by the
tokenizers library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from stoker.text.chat_template import ChatTemplate

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """Text to token ids and back. Ids are the checkpoint's; threads may share one Tokenizer."""

    def __init__(
        self,
        backend: Backend,
        config: dict[str, Any] | None = None,
        chat_template: ChatTemplate | None = None,
    ) -> None:
        config = config or {}
        self.backend = backend
        backend.no_truncation()
        backend.no_padding()
        self.special_tokens: dict[str, str] = {
            name: text for name in _NAMED if (text := _content(config.get(name))) is not None
        }
        self._add_missing_tokens(config)
        self.bos_token_id = self._id_of("bos_token")
        self.eos_token_id = self._id_of("eos_token")
        self.pad_token_id = self._id_of("pad_token")
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.special_ids: frozenset[int] = frozenset(
            token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        )
        self.is_byte_level = _is_byte_level(backend)
        self.chat_template = chat_template
        if chat_template is None and isinstance(config.get("chat_template"), str):
            self.chat_template = ChatTemplate(config["chat_template"], self.special_tokens)
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def from_pretrained(
        cls, name: str, *, revision: str | None = None, download_dir: str | None = None
    ) -> Tokenizer:
        """From a folder, or from the hub's tokenizer files of that id."""
        if Path(name).is_dir():
            return cls.from_folder(name)
        from huggingface_hub import snapshot_download

        try:
            folder = snapshot_download(
                name, revision=revision, cache_dir=download_dir, allow_patterns=["*.json", "*.jinja"]
            )
        except Exception as error:
            raise ValueError(
                f"tokenizer={name!r} is no folder here and could not be fetched from the hub: {error}"
            ) from error
        return cls.from_folder(folder)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Reads a checkpoint folder. Raises ValueError if it has no usable tokenizer.json."""
        folder = Path(folder)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ValueError(
                f"{folder} has no tokenizer.json, the only tokenizer format that is read (transformers' "
                "save_pretrained writes one); with skip_tokenizer_init=True prompts are token ids and none is "
                "needed"
            )
        try:
            backend = Backend.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{file} cannot be read: {error}") from error
        config: dict[str, Any] = {}
        if (path := folder / "tokenizer_config.json").is_file():
            try:
                config = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{path} is not JSON: {error}") from error
            if not isinstance(config, dict):
                raise ValueError(f"{path} must hold a JSON object, it holds a {type(config).__name__}")
        tokenizer = cls(backend, {key: value for key, value in config.items() if key != "chat_template"})
        tokenizer.chat_template = ChatTemplate.from_folder(folder, tokenizer.special_tokens)
        return tokenizer

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, with BOS and the like where tokenizer.json's post-processor wants them."""
        return self.encode_batch([text], add_special_tokens=add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """`encode` of many texts; the library uses several threads."""
        for text in texts:
            self.check(text)
        return [
            found.ids
            for found in self.backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        ]

    @staticmethod
    def check(text: str) -> None:
        """Raises ValueError for half a surrogate pair: it is no text, and the library would not say why."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text holds a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}; "
                "only valid Unicode is allowed"
            ) from None

    def word_tokens(self, word: str) -> list[list[int]]:
        """The token ids by which a text may show a word: where it stands first, and behind a space."""
        spelled = self.encode_batch([word.lstrip(), " " + word.lstrip()], add_special_tokens=False)
        return [ids for place, ids in enumerate(spelled) if ids and ids not in spelled[:place]]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`; what is no UTF-8 shows as U+FFFD. Ids outside the vocabulary have no text."""
        # As a batch the library decodes without the GIL.
        return self.backend.decode_batch([list(token_ids)], skip_special_tokens=skip_special_tokens)[0]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token of a byte-level tokenizer stands for; b"" for an id that is no token."""
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = _to_bytes(self.backend.id_to_token(token_id) or "")
        return found

    def token_text(self, token_id: int) -> str:
        """One token as text of its own, for logprobs; special tokens by their name."""
        if self.is_byte_level:
            return self.token_bytes(token_id).decode("utf-8", "replace")
        return self.decode([token_id], skip_special_tokens=False)

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token: no text of n tokens is longer than n times this."""
        return max(map(len, self.backend.get_vocab(with_added_tokens=True)), default=1)

    def _id_of(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        return None if text is None else self.backend.token_to_id(text)

    def _add_missing_tokens(self, config: dict[str, Any]) -> None:
        """Old checkpoints name special tokens in tokenizer_config.json only."""
        named = [text for text in self.special_tokens.values() if self.backend.token_to_id(text) is None]
        listed = config.get("added_tokens_decoder")
        for _, entry in (
            sorted(listed.items(), key=lambda item: int(item[0])) if isinstance(listed, dict) else ()
        ):
            if self.backend.token_to_id(entry["content"]) is None:
                fields = {
                    key: bool(entry.get(key))
                    for key in ("single_word", "lstrip", "rstrip", "normalized", "special")
                }
                self.backend.add_tokens([AddedToken(entry["content"], **fields)])
        if named:
            self.backend.add_special_tokens(
                [text for text in named if self.backend.token_to_id(text) is None]
            )


def _content(value: object) -> str | None:
    """A special token is written as a string or as {"content": ...}."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _is_byte_level(backend: Backend) -> bool:
    """Whether the decoder is ByteLevel and nothing else, so that a token is a run of bytes wherever it
    stands."""
    decoder = backend.decoder
    if decoder is None:
        return False
    described = json.loads(decoder.__getstate__())
    while described.get("type") == "Sequence" and len(described.get("decoders", ())) == 1:
        described = described["decoders"][0]
    return bool(described.get("type") == "ByteLevel")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: printable Latin-1 bytes stand for themselves, the others for U+0100 and
    up, in order."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in plain}
    others = (byte for byte in range(256) if byte not in set(plain))
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return alphabet


_ALPHABET = _byte_alphabet()


def _to_bytes(token: str) -> bytes:
    try:
        return bytes(_ALPHABET[character] for character in token)
    except KeyError:  # an added token is text, not bytes in disguise
        return token.encode("utf-8")
