"""Tokens that a request rules out whatever its grammar: allowed_token_ids and bad_words, as bitmasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from stoker.sampling_params import SamplingParams


class TokenRules:
    """Of one request. A bad word's last token is ruled out where the answer ends with the others."""

    def __init__(
        self, allowed: Sequence[int] | None, words: Sequence[Sequence[int]], vocab_size: int
    ) -> None:
        base = np.full(-(-vocab_size // 32), 0 if allowed is not None else -1, np.int32)
        if allowed is not None:
            set_bits(base.view(np.uint32), np.array(sorted(set(allowed)), np.int64))
        clear_bits(base.view(np.uint32), np.array([word[0] for word in words if len(word) == 1], np.int64))
        self._base = base
        self._words = [([*word[:-1]], word[-1]) for word in words if len(word) > 1]
        self._longest = max((len(head) for head, _ in self._words), default=0)

    @classmethod
    def of(cls, params: SamplingParams, vocab_size: int) -> TokenRules | None:
        """Those of a request, if it has any."""
        if params.allowed_token_ids is None and not params.bad_words_token_ids:
            return None
        return cls(params.allowed_token_ids, params.bad_words_token_ids, vocab_size)

    def apply(
        self, mask: npt.NDArray[np.int32], tail: list[int], tokens: Sequence[int], *, alone: bool
    ) -> bool:
        """Takes from `mask` (`alone`: it says nothing yet) what must not come after `tail`, the answer's last tokens, and
        `tokens`, which become part of it. False if nothing is left."""
        if alone:
            mask[:] = self._base
        else:
            mask &= self._base
        if self._words:
            tail += tokens
            del tail[: -self._longest]
            wrong = [last for head, last in self._words if tail[-len(head) :] == head]
            clear_bits(mask.view(np.uint32), np.array(wrong, np.int64))
        return bool(mask.any())


def clear_bits(words: npt.NDArray[np.uint32], tokens: npt.NDArray[np.int64]) -> None:
    """Rules these tokens out of a mask."""
    np.bitwise_and.at(words, tokens >> 5, ~(np.uint32(1) << (tokens & 31).astype(np.uint32)))


def set_bits(words: npt.NDArray[np.uint32], tokens: npt.NDArray[np.int64]) -> None:
    """Lets these tokens into a mask."""
    np.bitwise_or.at(words, tokens >> 5, np.uint32(1) << (tokens & 31).astype(np.uint32))
