"""Stop strings: found wherever the tokens are cut, nothing of them is shown, nothing else is held back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.text import AnswerText, StopStrings, Tokenizer

QUICK = settings(max_examples=300, deadline=None, derandomize=True)
SMALL = st.text("ab", min_size=1, max_size=4)


def first_match(text: str, stops: list[str]) -> tuple[str, int] | None:
    """The oracle: walk the text character by character."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            return max(ended, key=len), end
    return None


@QUICK
@given(
    pieces=st.lists(st.text("abc", max_size=4), max_size=12), stops=st.lists(SMALL, min_size=1, max_size=3)
)
def test_the_first_completed_stop_wins_wherever_the_text_is_cut(pieces: list[str], stops: list[str]) -> None:
    """The match does not depend on the cuts, and its place is right."""
    watcher = StopStrings(stops)
    expected = first_match("".join(pieces), stops)
    for piece in pieces:
        match = watcher.feed(piece)
        if match is not None:
            assert (match.stop, match.end) == expected
            assert match.end - match.begin == len(match.stop)
            return
    assert expected is None


@QUICK
@given(text=st.text("ab", max_size=12), stops=st.lists(SMALL, min_size=1, max_size=3))
def test_held_is_exactly_what_could_still_become_a_stop(text: str, stops: list[str]) -> None:
    """Holding back less would show a piece of a stop string, more would make the user wait."""
    watcher = StopStrings(stops)
    for character in text:
        watcher.feed(character, active=False)
    could = [
        k
        for k in range(len(text) + 1)
        if any(len(stop) > k and stop.startswith(text[len(text) - k :]) for stop in stops)
    ]
    assert watcher.held() == max(could)


@pytest.mark.parametrize("bad", [[""], ["a", ""], [3]])
def test_an_empty_stop_string_is_refused(bad: list[str]) -> None:
    """It would end every answer before it began."""
    with pytest.raises(ValueError, match="non-empty"):
        StopStrings(bad)


def answer(
    tokenizer: Tokenizer, token_ids: list[int], **options: object
) -> tuple[str, int, str | None, list[str]]:
    """Feeds one token at a time; what was shown, tokens kept, the stop, and the pieces."""
    growing = AnswerText(tokenizer, **options)  # type: ignore[arg-type]
    pieces, kept = [], 0
    for index, token_id in enumerate(token_ids):
        delta = growing.feed([token_id], last=index == len(token_ids) - 1)
        pieces.append(delta.text)
        kept += delta.num_tokens
        if delta.stop is not None:
            break
    assert growing.text == "".join(pieces)
    return growing.text, kept, growing.stopped, pieces


def letters(tokenizer: Tokenizer, text: str) -> list[int]:
    return [tokenizer.backend.token_to_id(character) for character in text]


def test_a_stop_over_token_borders_is_cut_and_never_shown(byte_tokenizer: Tokenizer) -> None:
    """The text ends before the stop string, the tokens at the one that completed it."""
    ids = letters(byte_tokenizer, "abXYcd")
    text, kept, stop, pieces = answer(byte_tokenizer, ids, stop=["XY"])
    assert (text, kept, stop) == ("ab", 4, "XY")
    assert pieces == ["a", "b", "", ""]


def test_include_stop_leaves_it_in_but_nothing_behind_it(byte_tokenizer: Tokenizer) -> None:
    """`include_stop_str_in_output`."""
    ids = letters(byte_tokenizer, "abXYcd")
    assert answer(byte_tokenizer, ids, stop=["bX"], include_stop=True)[:3] == ("abX", 3, "bX")


def test_a_stop_inside_one_token_cuts_inside_it(byte_tokenizer: Tokenizer) -> None:
    """A token may hold text, the stop string, and more."""
    ids = byte_tokenizer.encode("the fox laughed", add_special_tokens=False)
    text, kept, stop, _ = answer(byte_tokenizer, ids, stop=["ox"])
    assert (text, stop) == ("the f", "ox")
    assert byte_tokenizer.decode(ids[:kept]).startswith("the fox")


def test_what_was_held_back_is_shown_when_it_is_no_stop_after_all(byte_tokenizer: Tokenizer) -> None:
    """A beginning that is not continued, and one at the end of the answer."""
    ids = letters(byte_tokenizer, "aXbX")
    text, kept, stop, pieces = answer(byte_tokenizer, ids, stop=["XY"])
    assert (text, kept, stop) == ("aXbX", 4, None)
    assert pieces == ["a", "", "Xb", "X"]


def test_no_stop_before_min_tokens(byte_tokenizer: Tokenizer) -> None:
    """`min_tokens` holds for stop strings too: a match must end after that many tokens; it may begin
    before."""
    ids = letters(byte_tokenizer, "XYXYa")
    assert answer(byte_tokenizer, ids, stop=["XY"], min_tokens=2)[:3] == ("XY", 4, "XY")
    assert answer(byte_tokenizer, ids, stop=["XY"], min_tokens=3)[:3] == ("XY", 4, "XY")
    assert answer(byte_tokenizer, ids, stop=["XY"], min_tokens=4)[:3] == ("XYXYa", 5, None)


@QUICK
@given(data=st.data())
def test_several_tokens_a_step_end_at_the_same_token(byte_tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Text, token count and stop do not depend on how many tokens a step brought."""
    ids = letters(byte_tokenizer, data.draw(st.text("ab", min_size=1, max_size=12)))
    stops = data.draw(st.lists(SMALL, min_size=1, max_size=2))
    min_tokens = data.draw(st.integers(0, 6))
    one = answer(byte_tokenizer, ids, stop=stops, min_tokens=min_tokens)[:3]
    growing, kept, at = AnswerText(byte_tokenizer, stop=stops, min_tokens=min_tokens), 0, 0
    while at < len(ids) and growing.stopped is None:
        step = data.draw(st.integers(1, 4))
        kept += growing.feed(ids[at : at + step], last=at + step >= len(ids)).num_tokens
        at += step
    assert (growing.text, kept, growing.stopped) == one


def test_a_stop_token_is_no_text(byte_tokenizer: Tokenizer) -> None:
    """The token of `stop_token_ids` counts as a token of the answer but is not part of its text."""
    growing = AnswerText(byte_tokenizer)
    delta = growing.feed(letters(byte_tokenizer, "abc"), last=True, silent_last=True)
    assert (delta.text, delta.num_tokens) == ("ab", 3)
