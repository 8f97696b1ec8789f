"""Short stories from a grammar: a cast, a plot whose beats follow from each other, and many ways to say each beat."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from .grammar import ANIMAL_HEROES, CLOSINGS, FILLER, OPENINGS, TRAITS, VOLATILE
from .plots_of_effort import APPRENTICE, JOURNEY, QUARREL, TRADE
from .plots_of_need import CONTEST, LOST, MYSTERY, RESCUE
from .words import COLOURS, CRAFT_THINGS, Person, capital, indefinite, person, pick, town

PLOTS = (LOST, RESCUE, CONTEST, MYSTERY, JOURNEY, QUARREL, APPRENTICE, TRADE)

# The first letter of a text, or after the end of a sentence; not after a quotation that ends in "?" or "!" ("who?" asked he).
_SENTENCE_START = re.compile(r'(^"?|[.!?] "?)([a-z])')


@dataclass(frozen=True, slots=True)
class Story:
    """A story, its opening sentence, and what it is about (as in "tell me a story about …")."""

    text: str
    opening: str
    topics: tuple[str, ...]


class _Slots(dict[str, str]):
    """The values of a story's slots: the cast's are fixed, the others are drawn anew each time they are used."""

    def __init__(self, rng: Random, fixed: dict[str, str]) -> None:
        super().__init__(fixed)
        self._rng = rng

    def __missing__(self, slot: str) -> str:
        return pick(self._rng, VOLATILE[slot])


def _cast(prefix: str, who: Person, what: str, trait: str) -> dict[str, str]:
    return {
        prefix: who.name,
        f"{prefix}_he": who.he,
        f"{prefix}_him": who.him,
        f"{prefix}_his": who.his,
        f"{prefix}_He": capital(who.he),
        f"{prefix}_His": capital(who.his),
        f"{prefix}_what": what,
        f"{prefix}_a": indefinite(f"{trait} {what}"),
        f"{prefix}_trait": trait,
    }


def _sentence(rng: Random, slots: _Slots, options: tuple[str, ...]) -> str:
    text = pick(rng, options).format_map(slots)
    return _SENTENCE_START.sub(lambda m: m[1] + m[2].upper(), text)


def _what(rng: Random) -> str:
    """A kind of hero: an animal, or somebody with a craft."""
    if rng.random() < 0.5:
        return pick(rng, ANIMAL_HEROES)
    return f"{pick(rng, CRAFT_THINGS)} {pick(rng, ('maker', 'mender', 'painter', 'seller', 'carver'))}"


def make_story(rng: Random, *, about: str | None = None, unseen: bool = False) -> Story:
    """A story of some 120 to 300 words. `about` names the kind of hero ("fox", "clock mender"); else it is drawn."""
    hero = person(rng, unseen)
    friend = person(rng, unseen)
    while friend.name[:2] == hero.name[:2]:
        friend = person(rng, unseen)
    what = about or _what(rng)
    friend_what = _what(rng)
    while friend_what == what:
        friend_what = _what(rng)
    plot = pick(rng, PLOTS)
    fixed = _cast("hero", hero, what, pick(rng, TRAITS))
    fixed |= _cast("friend", friend, friend_what, pick(rng, TRAITS))
    thing = f"{pick(rng, COLOURS)} {pick(rng, plot.things)}"
    fixed |= {
        "thing": thing,
        "a_thing": indefinite(thing),
        "town": town(rng, unseen),
        "other_town": town(rng, unseen),
    }
    slots = _Slots(rng, fixed)
    # A variant's own words may name the cast; they are settled once, so that the story keeps to them.
    slots |= {slot: words.format_map(slots) for slot, words in pick(rng, plot.variants).items()}
    opening = _sentence(rng, slots, OPENINGS)
    paragraphs = [[opening]]
    for beat in plot.beats:
        if beat.new_paragraph and len(paragraphs[-1]) > 2:
            paragraphs.append([])
        if rng.random() < beat.chance:
            paragraphs[-1].append(_sentence(rng, slots, beat.options))
            if rng.random() < 0.12:
                paragraphs[-1].append(_sentence(rng, slots, FILLER))
    paragraphs[-1].append(_sentence(rng, slots, CLOSINGS))
    text = "\n".join(" ".join(sentences) for sentences in paragraphs if sentences)
    return Story(text, opening, (what, what, f"{what} named {hero.name}", thing, plot.theme))


def filler(rng: Random) -> str:
    """A sentence that tells nothing that a recall task could ask for."""
    return _sentence(rng, _Slots(rng, {}), FILLER)
