"""Words and made-up names for the demo model's texts, and the rule that keeps a part of them out of training.

Names of people and towns are put together from syllables, so that a name never seen in training is still made of
pieces that the tokenizer and the model know; what is asked for can then only be copied from the prompt.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

T = TypeVar("T")

_HELD_OUT_ONE_IN = 5


def words(text: str) -> tuple[str, ...]:
    """The words of a text, for lists that are read more easily without quotes."""
    return tuple(text.split())


NAME_STARTS = words(
    "Al Ar Bel Ber Bor Bram Cal Car Cor Dal Dan Dor El Em Er Fal Fen Fin Gal Gar Gwen Hal Har Hol Il Is Jan Jor Kal Ker "
    "Kor Lan Lin Lor Mal Mar Mel Mir Nal Nel Nor Ol Or Pal Per Pin Quil Ran Ros Rul Sal Sel Sil Tal Tam Tor Ul Ur Val Vel "
    "Vin Wal Wen Wil Yar Yor Zan Zel Zim"
)
NAME_MIDDLES = (
    "",
    "",
    "da",
    "di",
    "ga",
    "ka",
    "la",
    "li",
    "lo",
    "ma",
    "mi",
    "na",
    "ni",
    "ra",
    "ri",
    "ro",
    "sa",
    "ta",
    "ti",
    "vi",
)
SHE_ENDINGS = words(
    "bella dina dith ella fina gard issa leth lina mira nessa nia rina selle thea tilda via weth wyn yssa"
)
HE_ENDINGS = words("bert dric dus fard gorn grim ken ko lan lin mund nard ric rin thor to ton vard win zo")
TOWN_STARTS = words(
    "Ald Amber Ash Beck Birch Black Bram Brook Clay Cold Crow Deer Dun Elm Fair Falk Fern Fox Frost Glen Gold Grim Hart "
    "Hawk Hazel Heath Hollow Iron Ivy Kings Lake Lang Lark Lind Long Marsh Mill Moss Nether North Oak Otter Over Pine Rain "
    "Raven Red Rook Rush Salt Sand Sedge Silver Stone Storm Swan Thorn Upper West White Wind Wolf Wood Yew"
)
TOWN_ENDINGS = words(
    "bank beck bridge brook bury by cliff combe crest cross dale den ditch end fall field ford gate ham haven hill holm "
    "hurst keep ley mere mill moor more mouth pool port reach ridge shaw side stead stoke thorpe ton vale wall wick worth"
)

COLOURS = words(
    "amber ashen azure black blue bright bronze brown carved chipped clear coral crimson dark dull dusty faded flat golden "
    "green grey heavy hollow ivory jade long narrow orange pale pink plain purple red round rusty scarlet shiny short silver "
    "slender small smooth spotted square striped tall thick thin tiny twisted violet white wide worn yellow"
)
MATERIALS = words(
    "amber bone brass bronze clay copper cork crystal ebony glass gold granite horn iron ivory jade lead leather maple marble "
    "nickel oak paper pearl pewter pine porcelain silver steel stone tin walnut wax willow wooden zinc"
)
ANIMALS = words(
    "badger bat bear beaver bee beetle camel cat crab crane cricket crow deer dog donkey duck eagle falcon ferret finch fox "
    "frog goat goose hare hawk hedgehog heron horse lamb lizard lynx magpie mole monkey mouse newt otter owl parrot pigeon "
    "pony rabbit raven robin snail sparrow spider squirrel stork swan toad tortoise turtle weasel wolf wren"
)
ROOMS = words(
    "archive armoury attic barn bakery bathhouse boathouse brewery cabin cellar chapel closet courtyard crypt dairy dungeon "
    "forge gallery garden granary greenhouse hall kennel kitchen laboratory larder library lighthouse loft mill mint "
    "museum observatory orchard pantry parlour pavilion prison school shed stable storeroom study tavern temple theatre "
    "tower treasury vault windmill workshop"
)
SIDES = words(
    "back eastern far front grand great inner little lower main middle near new northern old outer side southern upper western"
)
CRAFT_THINGS = words(
    "barrel basket bell boat book boot bread brick broom candle carpet cheese clock coat coin cup dress drum fan flute glove "
    "harp hat honey kite knife lamp lantern lute map mask mirror music net paper pipe pot ribbon ring rope sail salt shoe "
    "silk soap sword tea toy umbrella violin wagon watch wheel wool"
)
CRAFTS = words("buyer carver collector dealer designer maker mender painter seller tester trader")
CONTAINERS = words(
    "bag barrel basin basket bottle bowl box bucket cabinet case chest crate cupboard drawer jar jug locker pot sack trunk tub urn"
)
THINGS = words(
    "apples arrows beads bells bones books bottles buttons candles chains coins cups dice dolls drums eggs feathers flutes "
    "forks gloves hammers hats hooks keys kites knives lamps letters maps marbles masks mirrors nails needles nuts onions "
    "pears pebbles pens plates plums ribbons rings ropes scarves shells shoes spoons stamps stones thimbles whistles"
)
COUNTS = words(
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen twenty thirty forty fifty"
)
TREASURES = words(
    "bell bracelet brooch bugle candle coin comb compass crown cup dagger diary dice drum fan feather flute goblet hammer "
    "harp helmet horn lamp lantern letter locket map mask medal mirror necklace pipe quill ring scroll shell spoon statue "
    "sundial telescope thimble violin watch whistle"
)
FURNITURE = words(
    "anvil bench bookcase bridge bush carpet cart chimney clock curtain desk door fence fountain gate hedge ladder loom oven "
    "pillar piano pump rock screen shelf sofa staircase stove stump table tent throne tree trough wagon wardrobe well wheel"
)
PREPOSITIONS = words("above against behind below beneath beside near opposite under")


def pick(rng: Random, options: Sequence[T]) -> T:
    """One of `options`, each as likely (quicker than `random.choice`, and the same in every Python)."""
    return options[int(rng.random() * len(options))]


def is_held_out(phrase: str) -> bool:
    """Whether a name or phrase belongs to the fifth of them that training never sees."""
    return zlib.crc32(phrase.encode()) % _HELD_OUT_ONE_IN == 0


def draw(rng: Random, make: Callable[[Random], str], unseen: bool) -> str:
    """A phrase from `make` out of the part seen in training, or (`unseen`) out of the part held out of it."""
    while True:
        phrase = make(rng)
        if is_held_out(phrase) == unseen:
            return phrase


def indefinite(phrase: str) -> str:
    """`phrase` with "a" or "an" before it."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def capital(sentence: str) -> str:
    """The sentence with its first letter made a capital."""
    return sentence[:1].upper() + sentence[1:]


@dataclass(frozen=True, slots=True)
class Person:
    """A made-up person (or animal with a name) and the pronouns that go with the name."""

    name: str
    he: str
    him: str
    his: str


def person(rng: Random, unseen: bool, starts: Sequence[str] = NAME_STARTS) -> Person:
    """A person whose name begins with one of `starts`; the ending of the name says the gender."""
    she = rng.random() < 0.5
    endings = SHE_ENDINGS if she else HE_ENDINGS
    name = draw(rng, lambda r: pick(r, starts) + pick(r, NAME_MIDDLES) + pick(r, endings), unseen)
    return Person(name, "she", "her", "her") if she else Person(name, "he", "him", "his")


def town(rng: Random, unseen: bool, starts: Sequence[str] = TOWN_STARTS) -> str:
    """The name of a town that begins with one of `starts`."""
    return draw(rng, lambda r: pick(r, starts) + pick(r, TOWN_ENDINGS), unseen)
