"""The incremental detokenizer: pieces add up to the whole text, no half character is ever shown, cost is
linear."""

from __future__ import annotations

from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stoker.text import Detokenizer, Tokenizer

QUICK = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
TEXTS = st.text(st.sampled_from("abc the fox né水😀👩‍👧🇩\u0301\n\x00.,"), max_size=40)


def stream(tokenizer: Tokenizer, token_ids: list[int], prompt: tuple[int, ...] = ()) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt)
    return [*(detokenizer.add([token_id]) for token_id in token_ids), detokenizer.flush()]


@QUICK
@given(text=TEXTS)
def test_pieces_of_real_text_add_up_and_show_no_half_character(tokenizer: Tokenizer, text: str) -> None:
    """What a user reads while it streams is what the whole answer says, for both kinds of tokenizer."""
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = stream(tokenizer, token_ids)
    assert "".join(pieces) == tokenizer.decode(token_ids)
    assert not any("\ufffd" in piece for piece in pieces)


@QUICK
@given(token_ids=st.lists(st.integers(0, 399), max_size=40))
def test_any_bytes_show_as_the_whole_decoded_at_once(byte_tokenizer: Tokenizer, token_ids: list[int]) -> None:
    """Byte-level tokens that form no UTF-8 (a model with random weights) give the same replacement characters
    streamed as decoded whole; only a character left unfinished at the end is not shown."""
    whole = byte_tokenizer.decode(token_ids)
    streamed = "".join(stream(byte_tokenizer, token_ids))
    assert whole.startswith(streamed)
    assert whole[len(streamed) :].strip("\ufffd") == ""
    assert len(whole) - len(streamed) <= 1


@QUICK
@given(cuts=st.lists(st.integers(1, 5), min_size=1), text=TEXTS)
def test_several_tokens_at_a_time_give_the_same_text(
    tokenizer: Tokenizer, cuts: list[int], text: str
) -> None:
    """A step may bring several tokens; how they are grouped changes nothing."""
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer)
    out, at = "", 0
    while at < len(token_ids):
        step = cuts[at % len(cuts)]
        out += detokenizer.add(token_ids[at : at + step])
        at += step
    assert out + detokenizer.flush() == tokenizer.decode(token_ids)


def test_a_character_split_over_tokens_comes_whole(byte_tokenizer: Tokenizer) -> None:
    """The four bytes of an emoji as four tokens: nothing, nothing, nothing, then the emoji."""
    token_ids = [byte_tokenizer.backend.token_to_id(c) for c in "ðŁĶ¥"]  # U+1F525 in the byte alphabet
    assert None not in token_ids
    assert stream(byte_tokenizer, token_ids) == ["", "", "", "\U0001f525", ""]
    assert stream(byte_tokenizer, token_ids[:3]) == ["", "", "", ""], (
        "half a character at the end is not shown"
    )


def test_a_broken_byte_does_not_spoil_its_neighbours(fallback_tokenizer: Tokenizer) -> None:
    """Byte fallback decodes a run of bytes as one; a broken byte after a shown character must neither repeat
    nor eat text."""
    ids = [
        fallback_tokenizer.backend.token_to_id(token) for token in ("<0xC3>", "<0xA9>", "<0xFF>", "a", "b")
    ]
    assert "".join(stream(fallback_tokenizer, ids)) == "é\ufffdab"


def test_the_prompt_decides_the_first_space(fallback_tokenizer: Tokenizer) -> None:
    """SentencePiece drops the space of the first token of a text: an answer is not the first."""
    ids = fallback_tokenizer.encode("the fox", add_special_tokens=False)
    assert "".join(stream(fallback_tokenizer, ids[1:], tuple(ids[:1]))) == " fox"
    assert "".join(stream(fallback_tokenizer, ids[1:])) == "fox"


def test_special_tokens_are_skipped_or_shown(tokenizer: Tokenizer) -> None:
    """EOS in an answer is no text, unless it is asked for."""
    ids = [*tokenizer.encode("the", add_special_tokens=False), tokenizer.eos_token_id or 0]
    assert "".join(stream(tokenizer, ids)) == "the"
    shown = Detokenizer(tokenizer, skip_special_tokens=False)
    assert (shown.add(ids) + shown.flush()).replace(" ", "") == "the</s>"


def test_an_added_token_is_text_not_bytes(byte_tokenizer: Tokenizer) -> None:
    """Added tokens are written in plain Unicode, not in the byte alphabet."""
    ids = byte_tokenizer.encode("a ünïcode word!", add_special_tokens=False)
    assert byte_tokenizer.backend.token_to_id("ünïcode word") in ids
    assert "".join(stream(byte_tokenizer, ids)) == "a ünïcode word!"


@pytest.mark.parametrize("count", [100, 1000])
def test_the_window_stays_short(fallback_tokenizer: Tokenizer, count: int) -> None:
    """Linear cost: however long the answer and however broken its bytes, no decode sees more than a few
    tokens."""
    seen: list[int] = []
    decode = Tokenizer.decode

    def spy(self: Tokenizer, token_ids: list[int], **options: bool) -> str:
        seen.append(len(token_ids))
        return decode(self, token_ids, **options)

    broken = fallback_tokenizer.backend.token_to_id("<0xBF>")
    with mock.patch.object(Tokenizer, "decode", spy):
        text = "".join(stream(fallback_tokenizer, [broken] * count))
    assert text == "\ufffd" * (count - count % 8)
    assert max(seen) <= 24
    assert len(seen) <= 3 * count + 4
