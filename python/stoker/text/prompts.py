"""The forms that a prompt may have (a string, token ids, or a dict of either) and their way to token ids. Every mistake is a
ValueError that names the prompt's place in the list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np

from stoker.text.tokenizer import Tokenizer

Prompt: TypeAlias = "str | Sequence[int] | Mapping[str, Any]"

_KEYS = {"prompt", "prompt_token_ids", "cache_salt"}


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt as the engine takes it."""

    token_ids: list[int]
    text: str | None = None
    cache_salt: str | None = None
    """Prompts share cached prefixes only with prompts of the same salt."""


def as_prompt_list(prompts: Prompt | Sequence[Prompt]) -> tuple[list[Prompt], bool]:
    """A list of prompts, and whether `prompts` was a single one. A list of ints is one prompt."""
    if isinstance(prompts, str | Mapping) or _is_ids(prompts):
        return [cast("Prompt", prompts)], True
    if not isinstance(prompts, Sequence):
        raise ValueError(
            "prompts must be a string, a list of token ids, a dict with 'prompt' or 'prompt_token_ids', "
            f"or a list of these; got {type(prompts).__name__}"
        )
    return list(cast("Sequence[Prompt]", prompts)), False


def tokenize_prompts(
    prompts: Sequence[Prompt], tokenizer: Tokenizer | None, *, add_special_tokens: bool = True
) -> list[TokenizedPrompt]:
    """Checks and tokenizes all prompts; the strings among them go to the tokenizer together.

    Raises ValueError for a prompt that is empty, of a wrong type, not valid Unicode, or a string without tokenizer.
    """
    parsed: list[tuple[str | None, list[int], str | None]] = []
    for index, prompt in enumerate(prompts):
        try:
            parsed.append(_parse(prompt, tokenizer))
        except ValueError as error:  # noqa: PERF203
            raise ValueError(f"prompts[{index}]: {error}") from None
    texts = [(index, text) for index, (text, ids, _) in enumerate(parsed) if text is not None and not ids]
    if texts and tokenizer is not None:
        found = tokenizer.encode_batch([text for _, text in texts], add_special_tokens=add_special_tokens)
        for (index, text), ids in zip(texts, found, strict=True):
            if not ids:
                raise ValueError(f"prompts[{index}]: {text!r} has no tokens; a prompt needs at least one")
            parsed[index] = (text, ids, parsed[index][2])
    return [TokenizedPrompt(ids, text, salt) for text, ids, salt in parsed]


def _parse(prompt: Prompt, tokenizer: Tokenizer | None) -> tuple[str | None, list[int], str | None]:
    salt: str | None = None
    text: object = None
    ids: object = None
    if isinstance(prompt, Mapping):
        unknown = sorted(str(key) for key in prompt if key not in _KEYS)
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}; allowed are {', '.join(sorted(_KEYS))}")
        text, ids, salt = prompt.get("prompt"), prompt.get("prompt_token_ids"), prompt.get("cache_salt")
        if text is None and ids is None:
            raise ValueError("a dict needs 'prompt' (a string) or 'prompt_token_ids' (a list of ints)")
        if salt is not None and not isinstance(salt, str):
            raise ValueError(f"cache_salt must be a string, got {type(salt).__name__}")
    elif isinstance(prompt, str):
        text = prompt
    else:
        ids = prompt
    if text is not None and not isinstance(text, str):
        raise ValueError(f"'prompt' must be a string, got {type(text).__name__}")
    if ids is not None:
        return text, check_token_ids(ids), salt
    assert text is not None
    if not text:
        raise ValueError("the prompt is an empty string; at least one character is needed")
    if tokenizer is None:
        raise ValueError(
            "a string needs the tokenizer, which skip_tokenizer_init=True left out; give token ids"
        )
    tokenizer.check(text)
    return text, [], salt


def check_token_ids(ids: object) -> list[int]:
    """A list of ints from a list, a tuple or an array of integers (ranges are the engine's to check)."""
    if isinstance(ids, str | Mapping) or not isinstance(ids, Sequence | np.ndarray):
        raise ValueError(f"token ids must be a list of ints, got {type(ids).__name__}")
    found = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    if not found:
        raise ValueError("the prompt has no tokens; at least one is needed")
    for place, token_id in enumerate(found):
        if type(token_id) is not int:
            if not isinstance(token_id, np.integer):
                raise ValueError(f"token ids must be ints, got {token_id!r} at place {place}")
            found[place] = int(token_id)
    return found


def _is_ids(prompts: object) -> bool:
    """A non-empty sequence whose first element is an int is one prompt, as in vLLM."""
    if isinstance(prompts, np.ndarray):
        return prompts.ndim == 1
    return isinstance(prompts, Sequence) and len(prompts) > 0 and isinstance(prompts[0], int | np.integer)
