"""Tokens that a request rules out whatever its grammar: allowed_token_ids and bad_words, as bitmasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
        size = -(-vocab_size // 32)
        base = np.full(size, -1, np.int32) if allowed is None else bitmask(allowed, size)
        self._base = base & ~bitmask((word[0] for word in words if len(word) == 1), size)
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
            mask &= ~bitmask((last for head, last in self._words if tail[-len(head) :] == head), len(mask))
        return bool(mask.any())


def bitmask(tokens: Iterable[int], words: int) -> npt.NDArray[np.int32]:
    """int32 [words] with the bits of these tokens."""
    mask = np.zeros(words, np.uint32)
    for token in tokens:
        mask[token >> 5] |= np.uint32(1 << (token & 31))
    return mask.view(np.int32)
