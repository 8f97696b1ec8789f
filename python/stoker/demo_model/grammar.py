"""The grammar of the demo model's stories: what a plot is made of, openings, closings, and words for the slots.

A beat is one sentence of the story, told in one of several ways. `{hero}` and `{friend}` are the cast (with `_he`,
`_him`, `_his`, `_He`, `_His`, `_what`, `_a`, `_trait`), `{thing}` what the plot turns on; a variant of a plot fixes
slots that must fit together, such as a danger and the tool that helps against it. Slots of VOLATILE are drawn anew at
each use.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .words import words


@dataclass(frozen=True, slots=True)
class Beat:
    """One sentence of a plot: the ways to say it, how likely it is told at all, and whether a paragraph may begin."""

    options: tuple[str, ...]
    chance: float = 1.0
    new_paragraph: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot: its theme, what it may turn on, variants that fix slots together, and its beats in order."""

    theme: str
    things: tuple[str, ...]
    beats: tuple[Beat, ...]
    variants: tuple[dict[str, str], ...] = field(default=({},))


def says(*options: str) -> Beat:
    """A beat that is always told."""
    return Beat(options)


def maybe(*options: str) -> Beat:
    """A beat that is sometimes left out."""
    return Beat(options, chance=0.6)


def then(*options: str) -> Beat:
    """A beat with which a paragraph may begin."""
    return Beat(options, new_paragraph=True)


ANIMAL_HEROES = words(
    "fox owl badger hare otter mouse raven hedgehog wolf bear squirrel frog goose heron mole rabbit cat crow deer tortoise "
    "donkey beaver sparrow toad weasel"
)
TRAITS = words(
    "brave careful cheerful clever curious gentle hopeful humble kind lonely merry patient proud quiet restless shy sleepy "
    "stubborn thoughtful young"
)

VOLATILE: dict[str, tuple[str, ...]] = {
    "time": (
        "one morning",
        "one evening",
        "one cold night",
        "late in the autumn",
        "on the first day of spring",
        "one windy day",
        "at the end of the summer",
        "before sunrise",
        "on market day",
        "in the middle of the winter",
    ),
    "later": (
        "after a while",
        "an hour later",
        "the next morning",
        "before long",
        "at dusk",
        "three days later",
        "soon after",
        "when the bells rang",
        "that night",
        "at last",
    ),
    "weather": (
        "rain",
        "snow",
        "fog",
        "thunder",
        "a warm wind",
        "bright sunshine",
        "hail",
        "mist",
        "a cold wind",
        "moonlight",
    ),
    "place": (
        "the river",
        "the old mill",
        "the market square",
        "the edge of the forest",
        "the stone bridge",
        "the harbour",
        "the empty barn",
        "the hill above the town",
        "the orchard",
        "the ruined tower",
        "the well",
        "the crossroads",
    ),
    "junk": (
        "dust",
        "dry leaves",
        "a broken cup",
        "old nails",
        "a sleeping beetle",
        "cobwebs",
        "an empty bottle",
        "a single glove",
        "feathers",
        "pebbles",
    ),
    "food": (
        "warm bread",
        "onion soup",
        "apple cake",
        "roasted nuts",
        "honey tea",
        "a bowl of porridge",
        "plum pie",
        "cheese",
    ),
    "mood": (
        "quietly",
        "with a sigh",
        "with a smile",
        "in a low voice",
        "gravely",
        "without looking up",
        "gently",
        "at once",
    ),
    "said": ("said", "answered", "whispered", "replied", "called", "murmured"),
    "animal": (
        "dog",
        "blackbird",
        "grey cat",
        "flock of geese",
        "snail",
        "moth",
        "lonely goat",
        "family of ducks",
    ),
    "plant": ("oaks", "willows", "birches", "apple trees", "roses", "nettles", "ferns", "poppies"),
    "far": ("the hills", "the fields", "the roofs", "the marsh", "the valley", "the shore"),
}

FILLER = (
    "outside, {weather} moved slowly over {far}.",
    "a {animal} watched from {place}.",
    "somewhere behind {far} a bell was ringing.",
    "the {plant} near {place} had begun to bloom.",
    "nobody paid attention to the {animal} at {place}.",
    "the air smelled of {food} and {weather}.",
    "it was the kind of day on which even a {animal} walks slowly.",
    "children were playing among the {plant}.",
    "the road to {place} was muddy after the {plant} had lost their leaves.",
    "from {place} one could see {far} in the distance.",
    "{weather} came and went, and the {plant} did not mind.",
    "time passed slowly, as it does near {place}.",
)

OPENINGS = (
    "once upon a time, in the town of {town}, there lived {hero_a} named {hero}.",
    "in {town} there was once {hero_a} whose name was {hero}.",
    "not far from {town} lived {hero}, {hero_a} whom everybody liked.",
    "{hero} was {hero_a} from {town}.",
    "long ago, when {town} was only a few houses by a road, {hero_a} called {hero} lived there.",
    "people in {town} still talk about {hero}, {hero_a}.",
    "there was {hero_a} in {town}, and {hero_his} name was {hero}.",
)

CLOSINGS = (
    "and from that day on, {hero} and {friend} were never seen apart.",
    "since then, whenever {weather} comes to {town}, people tell this story.",
    "{hero} never forgot it, and neither did {friend}.",
    "that evening they shared {food}, and nothing had ever tasted better.",
    "and if you come to {town}, {hero} will tell you the rest.",
    "and so the {hero_what} of {town} slept well that night.",
    '"what a day," {said} {hero}, and {hero_he} fell asleep smiling.',
)
