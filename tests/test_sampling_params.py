"""SamplingParams refuses what makes no sense, before a request exists, and says what is allowed."""

from __future__ import annotations

import dataclasses
import math

import pytest

from stoker import SamplingParams

BAD = [
    ("n", 0), ("n", 1.0), ("n", True), ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf),
    ("temperature", "1"), ("top_p", 0.0), ("top_p", 1.01), ("top_k", -2), ("min_p", -0.1), ("min_p", 1.1),
    ("presence_penalty", 2.1), ("frequency_penalty", -2.1), ("repetition_penalty", 0.0), ("max_tokens", 0),
    ("max_tokens", -1), ("max_tokens", 2**31), ("min_tokens", -1), ("min_tokens", 17), ("logprobs", -1),
    ("prompt_logprobs", -1), ("stop", ""), ("stop", ["a", ""]), ("stop", [1]), ("stop_token_ids", [-1]),
    ("stop_token_ids", ["x"]), ("seed", 1.5), ("logit_bias", {-1: 0.0}), ("logit_bias", {1: math.nan}), ("logit_bias", [1]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{name}={value!r}" for name, value in BAD])
def test_a_bad_value_names_itself(name: str, value: object) -> None:
    """The message holds the field's name."""
    with pytest.raises(ValueError, match=name):
        SamplingParams(**{name: value})  # type: ignore[arg-type]


def test_stop_comes_in_three_forms() -> None:
    """A string, a list or None; always a tuple afterwards."""
    assert SamplingParams(stop="x").stop == ("x",)
    assert SamplingParams(stop=["x", "y"]).stop == ("x", "y")
    assert SamplingParams(stop=None, stop_token_ids=None).stop == ()  # type: ignore[arg-type]
    assert SamplingParams(stop_token_ids=[1, 2]).stop_token_ids == (1, 2)


def test_it_is_a_value() -> None:
    """Equal where its fields are equal, frozen, and made anew by `replace`."""
    params = SamplingParams(temperature=0, stop=["a"])
    assert params == SamplingParams(temperature=0, stop=("a",))
    assert dataclasses.replace(params, max_tokens=3).max_tokens == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.n = 2  # type: ignore[misc]
