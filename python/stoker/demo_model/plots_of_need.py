"""Plots in which somebody is in need: a loss, a rescue, a contest, a mystery. grammar.py says how plots are written."""

from __future__ import annotations

from .grammar import Plot, maybe, says, then

LOST = Plot(
    "something that was lost",
    ("lantern", "ring", "key", "scarf", "compass", "flute", "map", "bell", "locket", "coin"),
    (
        says(
            "{hero_He} owned {a_thing} and carried it everywhere.",
            "what {hero} loved most was {a_thing}, a gift from {hero_his} mother.",
            "{hero_His} greatest treasure was {a_thing}.",
        ),
        says(
            "{time}, the {thing} was gone.",
            "but {time}, {hero} reached into {hero_his} bag and the {thing} was not there.",
            "{time} {hero_he} woke up and could not find the {thing}.",
        ),
        maybe(
            "{hero_He} felt cold all over.",
            "{hero_He} sat down and tried to remember.",
            "for a moment {hero_he} could not breathe.",
        ),
        then(
            "{hero} looked at {place}, but there was only {junk}.",
            "first {hero_he} went to {place} and found nothing but {junk}.",
        ),
        says(
            "then {hero_he} searched {place}, where {hero_he} found {junk}.",
            "{later} {hero_he} tried {place}, and again there was only {junk}.",
        ),
        then(
            "there {hero_he} met {friend}, {friend_a}.",
            "{later}, {friend_a} named {friend} came along.",
            "on the way home {hero_he} ran into {friend}, {friend_a}.",
        ),
        says(
            '"why do you look so sad?" asked {friend}.', '"have you lost something?" {friend} asked {mood}.'
        ),
        says('"my {thing} is gone," {said} {hero}.', '"I cannot find my {thing}," {said} {hero} {mood}.'),
        says(
            '"think of the last time you heard it fall," {said} {friend}.',
            '"then let us walk the same way backwards," {said} {friend}.',
            '"two pairs of eyes see more than one," {said} {friend}.',
        ),
        then(
            "so they went back together, step by step, until they came to {place}.",
            "together they walked to {place}, slowly, and looked under every stone.",
        ),
        says("and there, {where}, was the {thing}.", "{friend} saw it first: the {thing} was lying {where}."),
        says(
            "{because}, and that was how it had been lost.",
            "it was easy to see what had happened: {because}.",
        ),
        says(
            '"thank you," {said} {hero}, and {hero_he} held the {thing} tight.',
            "{hero} laughed so loudly that a {animal} ran away.",
        ),
        maybe(
            "{hero_He} gave {friend} half of {hero_his} supper.",
            "as thanks, {hero} invited {friend} to eat {food}.",
        ),
    ),
    (
        {"where": "in the nest of a magpie", "because": "the bird had liked how it shone"},
        {"where": "at the bottom of a ditch", "because": "there was a hole in the bag"},
        {"where": "under a pile of leaves", "because": "the wind had covered it"},
        {"where": "behind a loose stone", "because": "a mouse had dragged it there to make a home"},
        {"where": "on the back of a sleeping goat", "because": "its cord had caught on the horns"},
    ),
)

RESCUE = Plot(
    "a rescue",
    ("rope", "coat", "lantern", "whistle", "blanket"),
    (
        says(
            "{hero_He} lived alone and had few friends, but {friend}, {friend_a}, was one of them.",
            "{hero_His} best friend was {friend}, {friend_a}.",
            "every day {hero_he} visited {friend}, {friend_a} who lived near {place}.",
        ),
        says(
            "{time}, {friend} did not come home.",
            "{time} {hero} knocked at {friend_his} door, and nobody answered.",
            "{time}, {friend} went out alone and did not return.",
        ),
        maybe(
            "{weather} was coming down from the hills.",
            "the sky was dark, and there was {weather} in the air.",
        ),
        says("{hero} did not wait.", "{hero} was afraid, but {hero_he} was more afraid for {friend}."),
        then(
            "{hero_He} followed the footprints to {place}, and there {hero_he} heard a voice.",
            '{later}, near {place}, {hero_he} heard somebody call "help!"',
        ),
        says("{friend} had {fallen}.", "it was {friend}, who had {fallen}."),
        says(
            '"do not move!" called {hero}.',
            '"I am here," {said} {hero}. "hold on!"',
            '"I knew that you would come," {said} {friend} {mood}.',
        ),
        then("{hero} thought hard.", "{hero} looked around, and then {hero_he} had an idea."),
        says("{hero_He} {tool}.", "without a word {hero_he} {tool}."),
        says(
            "it took a long time, but {so}.",
            "three times it failed, and the fourth time {so}.",
            "little by little it worked: {so}.",
        ),
        says(
            '"you are shaking," {said} {hero}, and {hero_he} wrapped {hero_his} coat around {friend}.',
            "then they sat in the grass and could not stop laughing.",
            "{hero} carried {friend} home on {hero_his} back.",
        ),
        maybe(
            '"how can I ever thank you?" asked {friend}. "come earlier for tea," {said} {hero}.',
            '"next time," {said} {friend}, "we go together."',
        ),
    ),
    (
        {
            "fallen": "fallen into a deep well",
            "tool": "tied a rope to an old tree and let it down",
            "so": "{friend} climbed out into the light",
        },
        {
            "fallen": "gone through the ice",
            "tool": "lay flat and pushed a long ladder over the ice",
            "so": "the ladder held and {friend} crawled to the shore",
        },
        {
            "fallen": "lost the way in a dark cave",
            "tool": "lit a lantern and sang as loudly as possible",
            "so": "the song and the light showed the way out",
        },
        {
            "fallen": "been caught on a rock by the flood",
            "tool": "took a little boat and rowed against the stream",
            "so": "the boat reached the rock before the water did",
        },
        {
            "fallen": "been buried by the snow",
            "tool": "dug with a pot lid and both hands",
            "so": "a red nose came out of the snow, and then a whole face",
        },
    ),
)

CONTEST = Plot(
    "a contest",
    ("cup", "medal", "crown", "ribbon"),
    (
        says(
            "every year there was a {contest} in {town}, and the winner got {a_thing}.",
            "the {contest} of {town} was famous, and its prize was {a_thing}.",
        ),
        says(
            "{hero} had never won anything.", "{hero} had dreamed of the {thing} since {hero_he} was small."
        ),
        says(
            "the best of all was {friend}, {friend_a}.",
            "everybody thought that {friend}, {friend_a}, would win again.",
        ),
        maybe(
            '"you?" {said} {friend} and laughed. "go home, {hero}."',
            '"good luck," {said} {friend} {mood}. "you will need it."',
        ),
        then(
            "so {hero} practised each day near {place}.",
            "for weeks {hero} rose before the sun and practised.",
            "{hero_He} practised until even a {animal} grew tired of watching.",
        ),
        says(
            "the day came, with {weather} over the roofs.",
            "then the great day came, and half of {other_town} was there to watch.",
        ),
        says("at first {friend} was far ahead.", "{friend} began so well that people were already cheering."),
        then("but then {trouble}.", "and just then {trouble}."),
        says("{hero} could have won at that moment.", "now nobody stood between {hero} and the {thing}."),
        says("instead {hero_he} turned around and {help_}.", "but {hero_he} stopped, and {help_}."),
        says(
            '"why did you do that?" asked {friend}. "because a prize is small," {said} {hero}, "and you are not."',
            '"you could have won," {said} {friend}. "I know," {said} {hero}.',
        ),
        then(
            "in the end they came in side by side, and nobody could say who was first.",
            "{friend} won, took the {thing}, and put it into the hands of {hero}.",
        ),
        says(
            "the {thing} now hangs between their two houses.",
            "they cut the ribbon of the prize in two, and each kept a half.",
        ),
    ),
    (
        {
            "contest": "race around the lake",
            "trouble": "{friend} stumbled over a root and fell",
            "help_": "helped {friend} to stand up",
        },
        {
            "contest": "boat race",
            "trouble": "the boat of {friend} began to sink",
            "help_": "pulled {friend} out of the water",
        },
        {
            "contest": "singing contest",
            "trouble": "{friend} forgot the words and went pale",
            "help_": "sang the next line, so that {friend} could go on",
        },
        {
            "contest": "baking contest",
            "trouble": "the oven of {friend} went out",
            "help_": "carried over a shovel of hot coals",
        },
        {
            "contest": "kite contest",
            "trouble": "the string of {friend} broke in the wind",
            "help_": "caught the loose end and tied it to a post",
        },
    ),
)

MYSTERY = Plot(
    "a mystery",
    ("basket", "cloak", "hat", "lamp", "broom"),
    (
        says("{time}, {vanish} from {town}.", "it began {time}: {vanish}."),
        says(
            "the next night it happened again.",
            "people locked their doors, and still it happened again.",
            "nobody had seen or heard anything.",
        ),
        says(
            '"it is a ghost," {said} some. "it is a thief," {said} others.',
            "some blamed the wind, and some blamed each other.",
        ),
        says(
            "{hero} wanted to know.",
            "{hero} did not believe in ghosts.",
            "{hero} thought about it the whole day.",
        ),
        then(
            "{hero_He} asked {friend}, {friend_a}, to help.",
            "together with {friend}, {friend_a}, {hero_he} made a plan.",
        ),
        says(
            "that night they hid near {place} behind {a_thing} and waited.",
            "they put {a_thing} near {place}, sat down behind it, and waited.",
        ),
        maybe(
            "{friend} fell asleep, but {hero} stayed awake.",
            "there was {weather}, and their feet grew cold.",
            '"I am not afraid," {said} {friend}, who was.',
        ),
        then("at midnight they saw a shadow.", "{later} something moved in the dark."),
        says("it was {culprit}.", "they held their breath: it was only {culprit}."),
        says(
            "they followed without a sound, as far as {place}.",
            "it did not see them, and they followed it to {place}.",
        ),
        then("there they understood: {reason}.", "and then all was clear: {reason}."),
        says(
            '"we must tell the others," {said} {friend}. "gently," {said} {hero}.',
            '"so that is it," {said} {hero} {mood}.',
        ),
        says(
            "the next day the people of {town} {solution}.", "when {town} heard of it, everybody {solution}."
        ),
        says("after that, nothing ever vanished again.", "there was no more stealing after that."),
    ),
    (
        {
            "vanish": "socks began to vanish",
            "culprit": "a thin mother fox",
            "reason": "she had made a warm bed for five little foxes",
            "solution": "brought old blankets to the den",
        },
        {
            "vanish": "the bread began to vanish",
            "culprit": "a small boy with bare feet",
            "reason": "he was feeding his sick grandmother",
            "solution": "left a full basket at their door each morning",
        },
        {
            "vanish": "the candles began to vanish",
            "culprit": "an old owl with glasses",
            "reason": "she was reading to the mice, who were afraid of the dark",
            "solution": "gave her a lamp that never went out",
        },
        {
            "vanish": "the bells began to vanish",
            "culprit": "a shy young bear",
            "reason": "he wanted to make music and had nobody to teach him",
            "solution": "asked him to play at the spring feast",
        },
    ),
)
