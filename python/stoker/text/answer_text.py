"""The text of one answer while it grows: detokenizer and stop strings together, for whoever stands in front
of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stoker.text.detokenizer import Detokenizer
from stoker.text.stop_strings import StopStrings
from stoker.text.tokenizer import Tokenizer


@dataclass(slots=True)  # not frozen: that would cost a microsecond a token
class TextDelta:
    """What some tokens added to an answer."""

    text: str
    """Text that may be shown now."""
    num_tokens: int
    """How many of the tokens belong to the answer: fewer than were given only where a stop string was
    completed."""
    stop: str | None = None
    """The stop string that ended the answer."""


class AnswerText:
    """Grows by `feed(token_ids)`. Text that could be the beginning of a stop string is held back until it is
    decided.

    Stop strings count once they end after `min_tokens` tokens. `include_stop` leaves a stop string in the
    text.
    """

    __slots__ = (
        "_detokenizer",
        "_include_stop",
        "_min_tokens",
        "_num_tokens",
        "_pending",
        "_pieces",
        "_stops",
        "stopped",
    )

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int] = (),
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        min_tokens: int = 0,
        skip_special_tokens: bool = True,
    ) -> None:
        self._detokenizer = Detokenizer(tokenizer, prompt_token_ids, skip_special_tokens=skip_special_tokens)
        self._stops = StopStrings(stop) if stop else None
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._pieces: list[str] = []  # shown
        self._pending = ""  # certain, but perhaps the beginning of a stop string
        self.stopped: str | None = None

    @property
    def whole_characters(self) -> bool:
        """Whether the tokens so far end with a whole character: what the next one adds is then its own bytes. Of byte-level
        tokenizers only, and without stop strings."""
        return self._stops is None and self._detokenizer.whole_characters

    @property
    def text(self) -> str:
        """All that was shown so far."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def feed(self, token_ids: Sequence[int], *, last: bool = False, silent_last: bool = False) -> TextDelta:
        """Takes the next tokens. `last`: none follow, so nothing is held back any more. `silent_last`: the
        last of these tokens ended the answer (a stop token) and is not part of its text."""
        spoken = token_ids[:-1] if silent_last else token_ids
        shown = ""
        if self._stops is None:
            shown = self._detokenizer.add(spoken)
            if last:
                shown += self._detokenizer.flush()
        else:
            for count, token_id in enumerate(spoken, 1):
                if self._take(
                    self._detokenizer.add((token_id,)), self._num_tokens + count > self._min_tokens
                ):
                    return self._stop_here(count)
            if last and self._take(
                self._detokenizer.flush(), self._num_tokens + len(spoken) > self._min_tokens
            ):
                return self._stop_here(len(token_ids))
            held = 0 if last else self._stops.held()
            shown, self._pending = (
                self._pending[: len(self._pending) - held],
                self._pending[len(self._pending) - held :],
            )
        self._num_tokens += len(token_ids)
        if shown:
            self._pieces.append(shown)
        return TextDelta(shown, len(token_ids))

    def _take(self, piece: str, active: bool) -> bool:
        """Appends a piece to what is pending; True if a stop string was completed, which is then cut off."""
        assert self._stops is not None
        self._pending += piece
        match = self._stops.feed(piece, active=active)
        if match is None:
            return False
        end = match.end if self._include_stop else match.begin
        self._pending = self._pending[: len(self._pending) - (self._stops.seen - end)]
        self.stopped = match.stop
        return True

    def _stop_here(self, num_tokens: int) -> TextDelta:
        self._num_tokens += num_tokens
        shown, self._pending = self._pending, ""
        if shown:
            self._pieces.append(shown)
        return TextDelta(shown, num_tokens, self.stopped)
