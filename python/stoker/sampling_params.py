"""`SamplingParams`: how tokens are drawn and when an answer ends. Names and defaults are vLLM's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from stoker.structured_outputs import StructuredOutputsParams

_MAX_INT = 2**31 - 1


@dataclass(frozen=True)
class SamplingParams:
    """What one request asks of the sampler. Bad values raise ValueError that says what was given and what is allowed.

    Order of application: what structured_outputs, allowed_token_ids and bad_words leave, logit bias, no stop tokens before `min_tokens`, penalties, temperature, min-p, top-k, top-p.
    """

    n: int = 1
    """Answers to the same prompt."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that the answer holds already; -2 to 2."""
    frequency_penalty: float = 0.0
    """As presence_penalty, once for each time that the token stands in the answer."""
    repetition_penalty: float = 1.0
    """Positive logits of tokens in prompt or answer are divided by it, negative ones multiplied."""
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    """Only the likeliest tokens that together hold this share of the probability."""
    top_k: int = 0
    """Only this many likeliest tokens; 0 or -1: all."""
    min_p: float = 0.0
    """Only tokens at least this likely, relative to the likeliest."""
    seed: int | None = None
    """A request with a seed gives the same tokens whoever shares its batch; None: drawn by the engine."""
    stop: Sequence[str] = ()
    """A string or several that end the answer; the text ends before them. A tuple after construction."""
    stop_token_ids: Sequence[int] = ()
    """Tokens that end the answer. A tuple after construction."""
    ignore_eos: bool = False
    """Go on after an end-of-sequence token."""
    max_tokens: int | None = 16
    """Tokens of the answer at most; None: as many as the model's length allows."""
    min_tokens: int = 0
    """No end of any kind but length before this many tokens."""
    logprobs: int | None = None
    """For each token its logprob and those of this many likeliest ones."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens."""
    logit_bias: Mapping[int, float] | None = None
    """Added to the logits of these tokens."""
    allowed_token_ids: Sequence[int] | None = None
    """No other token comes, an end-of-sequence token neither unless it is among them. A tuple after construction."""
    bad_words: Sequence[str] = ()
    """Words whose tokens never come one after another, neither at a word's beginning nor inside one. A tuple after construction."""
    bad_words_token_ids: Sequence[Sequence[int]] = ()
    """The same as token ids; where there is a tokenizer, bad_words are added to them."""
    include_stop_str_in_output: bool = False
    detokenize: bool = True
    """False: token ids only, no text."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    structured_outputs: StructuredOutputsParams | None = None
    """What the answer must look like; also a dict of StructuredOutputsParams' fields."""

    def __post_init__(self) -> None:
        for name in ("n", "top_k", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs", "seed"):
            value = getattr(self, name)
            optional = name in ("max_tokens", "logprobs", "prompt_logprobs", "seed")
            if not (value is None and optional) and (not isinstance(value, int) or isinstance(value, bool)):
                raise ValueError(f"{name}={value!r}: must be an int{' or None' if optional else ''}")
        self._number("temperature", 0.0, math.inf, "0 (greedy) or more")
        self._number("top_p", 0.0, 1.0, "above 0 and at most 1", open_low=True)
        self._number("min_p", 0.0, 1.0, "from 0 to 1")
        self._number("presence_penalty", -2.0, 2.0, "from -2 to 2")
        self._number("frequency_penalty", -2.0, 2.0, "from -2 to 2")
        self._number("repetition_penalty", 0.0, math.inf, "above 0", open_low=True)
        self._require(1 <= self.n <= _MAX_INT, "n", "at least 1")
        self._require(-1 <= self.top_k <= _MAX_INT, "top_k", "at least 1, or 0 or -1 for all tokens")
        if self.max_tokens is not None:
            self._require(
                1 <= self.max_tokens <= _MAX_INT, "max_tokens", "at least 1, or None for the model's length"
            )
        self._require(0 <= self.min_tokens <= _MAX_INT, "min_tokens", "0 or more")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens={self.min_tokens} is more than max_tokens={self.max_tokens}")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            self._require(value is None or 0 <= value <= _MAX_INT, name, "0 or more, or None")
        object.__setattr__(self, "stop", self._strings("stop"))
        object.__setattr__(self, "bad_words", self._strings("bad_words"))
        object.__setattr__(
            self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids or (), empty=True)
        )
        if self.allowed_token_ids is not None:
            allowed = _token_ids("allowed_token_ids", self.allowed_token_ids)
            object.__setattr__(self, "allowed_token_ids", allowed)
        words = tuple(_token_ids("bad_words_token_ids", word) for word in self.bad_words_token_ids or ())
        object.__setattr__(self, "bad_words_token_ids", words)
        self._check_bias()
        if self.structured_outputs is not None:
            object.__setattr__(
                self, "structured_outputs", StructuredOutputsParams.from_any(self.structured_outputs)
            )

    def with_word_tokens(self, word_tokens: Callable[[str], Sequence[Sequence[int]]]) -> SamplingParams:
        """These, with `bad_words` as token ids: the engine knows no others. `word_tokens` is Tokenizer.word_tokens."""
        if not self.bad_words:
            return self
        ids = [tuple(ids) for word in self.bad_words for ids in word_tokens(word)]
        return replace(self, bad_words=(), bad_words_token_ids=(*self.bad_words_token_ids, *ids))

    @property
    def needs_masks(self) -> bool:
        """Whether some tokens are ruled out at each step."""
        return (
            self.structured_outputs is not None
            or self.allowed_token_ids is not None
            or len(self.bad_words_token_ids) > 0
        )

    def _require(self, ok: bool, name: str, allowed: str) -> None:
        if not ok:
            raise ValueError(f"{name}={getattr(self, name)!r}: must be {allowed}")

    def _number(self, name: str, low: float, high: float, allowed: str, *, open_low: bool = False) -> None:
        value = getattr(self, name)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ValueError(f"{name}={value!r}: must be a number")
        inside = low < value <= high if open_low else low <= value <= high
        self._require(inside and math.isfinite(value), name, allowed)

    def _strings(self, name: str) -> tuple[str, ...]:
        given = getattr(self, name)
        found = (given,) if isinstance(given, str) else tuple(given or ())
        if any(not isinstance(one, str) or not one for one in found):
            raise ValueError(f"{name}={given!r}: must be non-empty strings")
        return found

    def _check_bias(self) -> None:
        if self.logit_bias is None:
            return
        if not isinstance(self.logit_bias, Mapping):
            raise ValueError(f"logit_bias={self.logit_bias!r}: must be a dict from token id to a number")
        for token_id, bias in self.logit_bias.items():
            if not isinstance(token_id, int) or not 0 <= token_id <= _MAX_INT:
                raise ValueError(f"logit_bias: {token_id!r} is no token id; ids are ints, 0 or more")
            if not isinstance(bias, (int, float)) or not math.isfinite(bias):
                raise ValueError(f"logit_bias[{token_id}]={bias!r}: must be a finite number")


def _token_ids(name: str, given: Sequence[int], *, empty: bool = False) -> tuple[int, ...]:
    found = tuple(given)
    if any(not isinstance(one, int) or isinstance(one, bool) or not 0 <= one <= _MAX_INT for one in found):
        raise ValueError(f"{name}={given!r}: must be token ids, 0 or more")
    if not found and not empty:
        raise ValueError(f"{name} is empty: at least one token id is needed")
    return found
