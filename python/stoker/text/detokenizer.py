"""Token ids of one output become text as they come: never half a character, and linear in the output's
length."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stoker.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
# A character has at most four bytes, and a token at least one: what still ends in a replacement character
# after this many tokens is broken, not unfinished. Without the bound a stream of broken bytes would be
# decoded again and again.
_MAX_PENDING = 8
_CONTEXT = 6  # prompt tokens that decide how the first output token is spaced


class Detokenizer:
    """The text of one output, piece by piece.

    `add(ids)` returns the text that has become certain; `flush()` what is left when no token follows, without
    the beginning of a character that never came to its end. Pieces put together equal the text of the whole
    (bytes that are no UTF-8 show as U+FFFD). For byte-level tokenizers each token is its bytes and one UTF-8
    decoder runs over them; for the others (SentencePiece-like, WordPiece) a short window of tokens is decoded
    with and without the new one, and the difference is shown once it does not end inside a character.
    """

    __slots__ = ("_decoder", "_prefix", "_read", "_skip_special", "_tokenizer", "_window")

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        self._decoder: codecs.IncrementalDecoder | None = None
        self._window: list[
            int
        ] = []  # tokens whose text is needed to space the next ones, then the pending ones
        self._prefix = ""  # text of the window's tokens already shown
        self._read = 0  # how many of the window's tokens are shown
        if tokenizer.is_byte_level:
            self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        else:
            self._window = list(prompt_token_ids[-_CONTEXT:])
            self._read = len(self._window)
            self._prefix = tokenizer.decode(self._window, skip_special_tokens=skip_special_tokens)

    @property
    def whole_characters(self) -> bool:
        """Whether the tokens so far end with a whole character and the next one's bytes are its text."""
        return self._decoder is not None and not self._decoder.getstate()[0]

    def add(self, token_ids: Iterable[int]) -> str:
        """The text that these next tokens make certain; may be empty."""
        if self._decoder is not None:
            token_bytes = self._tokenizer.token_bytes
            skipped = self._tokenizer.special_ids if self._skip_special else frozenset[int]()
            return self._decoder.decode(b"".join([token_bytes(i) for i in token_ids if i not in skipped]))
        return "".join(self._add_one(token_id) for token_id in token_ids)

    def flush(self) -> str:
        """The rest, when no token follows; a character that is not complete is left out."""
        if self._decoder is not None or self._read == len(self._window):
            return ""
        piece = self._pending_text(self._decode(self._window))
        self._slide()
        return piece.rstrip(_REPLACEMENT)

    def _add_one(self, token_id: int) -> str:
        if self._skip_special and token_id in self._tokenizer.special_ids:
            return ""
        self._window.append(token_id)
        text = self._decode(self._window)
        unfinished = len(text) <= len(self._prefix) or text.endswith(_REPLACEMENT)
        if unfinished and len(self._window) - self._read < _MAX_PENDING:
            return ""
        piece = self._pending_text(text)
        self._slide()
        return piece

    def _pending_text(self, text: str) -> str:
        if text.startswith(self._prefix):
            return text[len(self._prefix) :]
        # A broken byte changed how its neighbours read (byte fallback decodes a run of bytes as one): it
        # stands alone.
        return self._decode(self._window[self._read :])

    def _slide(self) -> None:
        """Keeps only the tokens that were shown last, as context for the next."""
        self._window = self._window[self._read :]
        self._read = len(self._window)
        self._prefix = self._decode(self._window)

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special)
