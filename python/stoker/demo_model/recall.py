"""Recall tasks: a context of many facts with filler between them, and a question whose answer stands in the context.

Every answer is one of at least fifty that would be as likely without the context, so a right answer shows that the
model read the right tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from .stories import filler
from .words import (
    ANIMALS,
    COLOURS,
    CONTAINERS,
    COUNTS,
    CRAFT_THINGS,
    CRAFTS,
    FURNITURE,
    MATERIALS,
    NAME_STARTS,
    PREPOSITIONS,
    ROOMS,
    SIDES,
    THINGS,
    TOWN_STARTS,
    TREASURES,
    Person,
    capital,
    draw,
    indefinite,
    person,
    pick,
    town,
)

_LONGEST_QUESTION = 20  # tokens of the longest question with its frame, by the demo model's tokenizer
_MISFITS = 8  # facts too long for what is left of a prompt before it counts as full


@dataclass(frozen=True, slots=True)
class Fact:
    """One statement of a context, a question about it, the answer, and the answer as a sentence of a chat."""

    kind: str
    statement: str
    question: str
    answer: str
    reply: str


@dataclass(frozen=True, slots=True)
class RecallPrompt:
    """A prompt that ends in "Answer:" and what should follow it.

    `fact_start` and `fact_end` are the characters of `prompt` that state the fact asked for; `depth` says where in the
    context the fact stands, 0 at its beginning and 1 at its end.
    """

    prompt: str
    question: str
    answer: str
    kind: str
    depth: float
    fact_start: int
    fact_end: int

    @property
    def message(self) -> str:
        """The context and the question as what a user says in a chat; the reply is a sentence that holds the answer."""
        return self.prompt.removesuffix(ask(self.question)) + "\n" + self.question

    def is_right(self, completion: str) -> bool:
        """Whether a completion gives the answer and then ends (or breaks the line)."""
        return completion.strip().split("\n", 1)[0].strip() == self.answer


class FactMaker:
    """Makes facts that never contradict each other: what a question asks about is used once in each instance.

    `unseen` takes the names and phrases that training leaves out.
    """

    def __init__(self, rng: Random, unseen: bool) -> None:
        self._rng = rng
        self._unseen = unseen
        self._people: list[Person] = []
        self._told: set[tuple[str, str]] = set()
        self._name_starts = self._shuffled(NAME_STARTS)
        self._town_starts = self._shuffled(TOWN_STARTS)
        self._heads: dict[str, list[str]] = {}
        self._kinds: tuple[Callable[[], Fact | None], ...] = (
            self._key,
            self._pet,
            self._trade,
            self._container,
            self._home,
            self._number,
            self._hiding,
        )

    def fact(self) -> Fact | None:
        """A new fact of a random kind; None when the words to tell it apart from earlier ones are used up."""
        return pick(self._rng, self._kinds)()

    def facts(self) -> Iterator[Fact]:
        """New facts until several attempts in a row find no words left."""
        misses = 0
        while misses < 20:
            fact = self.fact()
            if fact is None:
                misses += 1
            else:
                misses = 0
                yield fact

    def _shuffled(self, words: Sequence[str]) -> list[str]:
        mixed = list(words)
        self._rng.shuffle(mixed)
        return mixed

    def _head(self, what: str, words: Sequence[str]) -> str | None:
        # The word that tells facts of one kind apart is drawn without replacement.
        left = self._heads.get(what)
        if left is None:
            left = self._heads[what] = self._shuffled(words)
        return left.pop() if left else None

    def _phrase(self, make: Callable[[Random], str]) -> str:
        return draw(self._rng, make, self._unseen)

    def _someone(self, kind: str) -> Person | None:
        # Half of the time someone who was mentioned before, so that one person has several facts.
        if self._people and self._rng.random() < 0.5:
            known = pick(self._rng, self._people)
            if (kind, known.name) not in self._told:
                self._told.add((kind, known.name))
                return known
        if not self._name_starts:
            return None
        new = person(self._rng, self._unseen, (self._name_starts.pop(),))
        self._people.append(new)
        self._told.add((kind, new.name))
        return new

    def _key(self) -> Fact | None:
        room = self._head("room", ROOMS)
        if room is None:
            return None
        rng = self._rng
        key = self._phrase(lambda r: f"{pick(r, COLOURS)} {pick(r, MATERIALS)} key")
        place = f"{pick(rng, SIDES)} {room}"
        statement = pick(
            rng,
            (
                f"the {key} opens the {place}.",
                f"the {place} is opened by the {key}.",
                f"to get into the {place} you need the {key}.",
                f"only the {key} fits the door of the {place}.",
            ),
        )
        question = pick(rng, (f"Which key opens the {place}?", f"Which key do you need for the {place}?"))
        return Fact("key", capital(statement), question, f"the {key}", f"You need the {key}.")

    def _pet(self) -> Fact | None:
        animal = self._head("animal", ANIMALS)
        who = self._someone("pet") if animal else None
        if animal is None or who is None:
            return None
        rng = self._rng
        pet = self._phrase(lambda r: f"{pick(r, COLOURS)} {animal}")
        statement = pick(
            rng,
            (
                f"{who.name} keeps {indefinite(pet)}.",
                f"{who.name} has {indefinite(pet)} at home.",
                f"the {pet} belongs to {who.name}.",
                f"everyone knows {who.name} and {who.his} {pet}.",
            ),
        )
        if rng.random() < 0.5:
            question = pick(rng, (f"Who keeps the {pet}?", f"To whom does the {pet} belong?"))
            return Fact("owner", capital(statement), question, who.name, f"That is {who.name}.")
        question = pick(rng, (f"Which animal does {who.name} keep?", f"Which animal belongs to {who.name}?"))
        return Fact("pet", capital(statement), question, f"the {pet}", f"It is the {pet}.")

    def _trade(self) -> Fact | None:
        who = self._someone("trade")
        if who is None:
            return None
        rng = self._rng
        trade = self._phrase(lambda r: f"{pick(r, CRAFT_THINGS)} {pick(r, CRAFTS)}")
        statement = pick(
            rng,
            (
                f"{who.name} works as {indefinite(trade)}.",
                f"{who.name} is {indefinite(trade)} by trade.",
                f"{who.name} has always been {indefinite(trade)}.",
                f"people know {who.name} as {indefinite(trade)}.",
            ),
        )
        question = pick(rng, (f"What is the trade of {who.name}?", f"What does {who.name} work as?"))
        return Fact(
            "trade",
            capital(statement),
            question,
            indefinite(trade),
            f"{capital(who.he)} is {indefinite(trade)}.",
        )

    def _container(self) -> Fact | None:
        colour = self._head("container", COLOURS)
        if colour is None:
            return None
        rng = self._rng
        box = f"{colour} {pick(rng, CONTAINERS)}"
        content = self._phrase(lambda r: f"{pick(r, COUNTS)} {pick(r, MATERIALS)} {pick(r, THINGS)}")
        statement = pick(
            rng,
            (
                f"the {box} holds {content}.",
                f"there are {content} in the {box}.",
                f"inside the {box} lie {content}.",
                f"somebody filled the {box} with {content}.",
            ),
        )
        question = pick(rng, (f"What is in the {box}?", f"What does the {box} hold?"))
        return Fact("content", capital(statement), question, content, f"It holds {content}.")

    def _home(self) -> Fact | None:
        who = self._someone("home")
        if who is None or not self._town_starts:
            return None
        rng = self._rng
        place = town(rng, self._unseen, (self._town_starts.pop(),))
        statement = pick(
            rng,
            (
                f"{who.name} lives in {place}.",
                f"{who.name} has a house in {place}.",
                f"the home of {who.name} is in {place}.",
                f"in {place} lives {who.name}.",
            ),
        )
        if rng.random() < 0.35:
            question = pick(rng, (f"Who lives in {place}?", f"Whose home is in {place}?"))
            return Fact("resident", capital(statement), question, who.name, f"That is {who.name}.")
        question = pick(rng, (f"Where does {who.name} live?", f"In which town is the home of {who.name}?"))
        return Fact("town", capital(statement), question, place, f"{capital(who.he)} lives in {place}.")

    def _number(self) -> Fact | None:
        room = self._head("safe", ROOMS)
        if room is None:
            return None
        rng = self._rng
        number = self._phrase(lambda r: str(1000 + int(r.random() * 9000)))
        statement = pick(
            rng,
            (
                f"the number of the {room} safe is {number}.",
                f"the {room} safe opens with the number {number}.",
                f"{number} is the number of the {room} safe.",
                f"whoever turns {number} opens the {room} safe.",
            ),
        )
        question = pick(
            rng, (f"What is the number of the {room} safe?", f"Which number opens the {room} safe?")
        )
        return Fact("number", capital(statement), question, number, f"It is {number}.")

    def _hiding(self) -> Fact | None:
        treasure = self._head("treasure", TREASURES)
        who = self._someone("hiding") if treasure else None
        if treasure is None or who is None:
            return None
        rng = self._rng
        thing = self._phrase(lambda r: f"{pick(r, COLOURS)} {treasure}")
        place = self._phrase(lambda r: f"{pick(r, PREPOSITIONS)} the {pick(r, COLOURS)} {pick(r, FURNITURE)}")
        statement = pick(
            rng,
            (
                f"{who.name} hid the {thing} {place}.",
                f"the {thing} was put {place} by {who.name}.",
                f"at night {who.name} laid the {thing} {place}.",
                f"{who.name} keeps the {thing} {place}.",
            ),
        )
        question = pick(rng, (f"Where is the {thing}?", f"Where did {who.name} put the {thing}?"))
        return Fact("hiding place", capital(statement), question, place, f"It is {place}.")


def ask(question: str) -> str:
    """The plain form of a question after its context; the answer follows with a space before it."""
    return f"\nQuestion: {question}\nAnswer:"


def recall_prompt(
    rng: Random, tokens: int, count_tokens: Callable[[str], int], *, unseen: bool = True
) -> RecallPrompt:
    """A prompt of at most `tokens` tokens, and close to it, with one question at its end.

    The fact asked for stands at a uniformly random depth. Raises ValueError for fewer than 50 tokens, which is too
    short to hold a few facts and a question.
    """
    if tokens < 50:
        raise ValueError(f"tokens is {tokens}; a recall prompt needs at least 50")
    maker = FactMaker(rng, unseen)
    filler_share = rng.random() * 0.4
    budget = tokens - _LONGEST_QUESTION
    misfits = 0
    sentences: list[tuple[str, Fact | None]] = []
    for fact in maker.facts():
        added: list[tuple[str, Fact | None]] = [(fact.statement, fact)]
        if rng.random() < filler_share:
            added.insert(0, (filler(rng), None))
        cost = sum(count_tokens(" " + text) for text, _ in added)
        if cost <= budget:
            budget -= cost
            sentences += added
        elif (misfits := misfits + 1) == _MISFITS:
            break
    total = sum(len(text) + 1 for text, _ in sentences)
    wanted = rng.random() * total
    starts, position = [], 0
    for text, _ in sentences:
        starts.append(position)
        position += len(text) + 1
    candidates = [i for i, (_, told) in enumerate(sentences) if told is not None]
    chosen = min(candidates, key=lambda i: abs(starts[i] + len(sentences[i][0]) / 2 - wanted))
    asked = sentences[chosen][1]
    assert asked is not None
    context = " ".join(text for text, _ in sentences)
    start = starts[chosen]
    return RecallPrompt(
        context + ask(asked.question),
        asked.question,
        asked.answer,
        asked.kind,
        start / max(1, total),
        start,
        start + len(asked.statement),
    )
