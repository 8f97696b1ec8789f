"""Stop strings over a stream of text pieces: finds the one that is completed first, wherever the pieces are
cut, and says how much of the text may be shown already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopMatch:
    """A stop string that was completed: which one, and where it stands in the whole text, in characters."""

    stop: str
    begin: int
    end: int


class StopStrings:
    """Watches one output for a set of stop strings.

    The match that counts is the one whose last character comes first (of several that end there, the
    longest), so the answer does not depend on how the text was cut into tokens or steps. Only the last
    `max(len(stop)) - 1` characters are kept, so the cost is linear in the text.
    """

    __slots__ = ("_keep", "_tail", "seen", "stops")

    def __init__(self, stops: Sequence[str]) -> None:
        if any(not isinstance(stop, str) or not stop for stop in stops):
            raise ValueError(f"stop strings must be non-empty strings, got {list(stops)!r}")
        self.stops: tuple[str, ...] = tuple(sorted(set(stops), key=len, reverse=True))
        self._keep = len(self.stops[0]) - 1 if self.stops else 0
        self._tail = ""  # what may still be the beginning of a match
        self.seen = 0  # characters fed, the tail included

    def feed(self, piece: str, *, active: bool = True) -> StopMatch | None:
        """Takes the next piece of text; returns the first match that ends in it.

        With `active=False` (before `min_tokens`) nothing that ends in this piece counts, but a match may
        begin in it.
        """
        if not self.stops:
            return None
        window = self._tail + piece
        base = self.seen - len(self._tail)  # where the window begins in the whole text
        fresh = len(self._tail)  # a match must end after this index of the window
        self.seen += len(piece)
        best: tuple[int, int, str] | None = None
        if active and piece:
            for stop in self.stops:
                begin = window.find(stop, max(0, fresh - len(stop) + 1))
                if begin >= 0 and (best is None or begin + len(stop) < best[0]):
                    best = (begin + len(stop), begin, stop)
        self._tail = window[max(0, len(window) - self._keep) :] if self._keep else ""
        if best is None:
            return None
        return StopMatch(best[2], base + best[1], base + best[0])

    def held(self) -> int:
        """How many of the last characters could be the beginning of a stop string and so must not be shown
        yet."""
        tail = self._tail
        longest = 0
        for stop in self.stops:
            begin = tail.find(stop[0], max(0, len(tail) - len(stop) + 1))
            while begin >= 0 and len(tail) - begin > longest:
                if stop.startswith(tail[begin:]):
                    longest = len(tail) - begin
                    break
                begin = tail.find(stop[0], begin + 1)
        return longest
