"""Plots in which somebody sets out: a journey, a quarrel mended, a craft learnt, an exchange. grammar.py says how plots are written."""

from __future__ import annotations

from .grammar import Plot, maybe, says, then

JOURNEY = Plot(
    "a long journey",
    ("letter", "box", "parcel", "jar", "book"),
    (
        says(
            "{time}, {friend}, {friend_a}, came to the door with {a_thing}.",
            "{time} {hero_he} got a visit from {friend}, {friend_a}, who held {a_thing}.",
        ),
        says(
            '"this must reach {other_town} before the new moon," {said} {friend}, "and I am ill."',
            '"please bring this to my sister in {other_town}," {said} {friend} {mood}.',
        ),
        says(
            '"I have never been farther than {place}," {said} {hero}, but {hero_he} took it.',
            '"you can trust me," {said} {hero}.',
        ),
        then(
            "on the first day {hero_he} walked through {weather} as far as {place}.",
            "the road was long, and there was {weather} on the first day.",
        ),
        says("on the second day {hero_he} came to {hazard}.", "then the road ended at {hazard}."),
        says(
            "{hero} wanted to turn back, but {hero_he} had given {hero_his} word.",
            '"a promise is a promise," {said} {hero} to a {animal}.',
        ),
        says("so {hero_he} {crossed}.", "{later} {hero_he} {crossed}."),
        then(
            "on the third day a stranger stopped {hero_him} and asked for the {thing}.",
            "at {place} a man offered {hero_him} ten gold coins for the {thing}.",
        ),
        says(
            '"it is not mine to give," {said} {hero}, and {hero_he} walked on.',
            "{hero} was hungry and poor, and still {hero_he} shook {hero_his} head.",
        ),
        then(
            "when {hero_he} came to {other_town}, the moon was only a thin line.",
            "at last {hero_he} saw the lights of {other_town}.",
        ),
        says(
            "the sister of {friend} opened the {thing} and began to cry, because {inside}.",
            "in the {thing} there was something wonderful: {inside}.",
        ),
        says(
            "she gave {hero} {food} and a bed, and in the morning a horse for the way home.",
            '"tell {friend} that I am coming home," she {said}.',
        ),
    ),
    (
        {
            "hazard": "a river without a bridge",
            "crossed": "built a raft of fallen branches",
            "inside": "it held seeds from their mother's garden",
        },
        {
            "hazard": "a forest without a path",
            "crossed": "followed the stars from tree to tree",
            "inside": "it held the song that they had sung as children",
        },
        {
            "hazard": "a gate with a sleeping giant",
            "crossed": "crept past in stockings",
            "inside": "it held the last picture of their father",
        },
        {
            "hazard": "a mountain covered with ice",
            "crossed": "cut a step for each foot",
            "inside": "it held a word that she had waited for: sorry",
        },
    ),
)

QUARREL = Plot(
    "two friends who quarrelled",
    ("sledge", "boat", "cart", "tent", "drum", "kettle"),
    (
        says(
            "{hero_He} and {friend}, {friend_a}, shared {a_thing}.",
            "together with {friend}, {friend_a}, {hero_he} had built {a_thing}.",
        ),
        says(
            '{time} they quarrelled. "it is mine," {said} {hero}. "no, mine," {said} {friend}.',
            "{time}, each of them wanted the {thing} for the whole day, and they began to shout.",
        ),
        says(
            "they were so angry that they cut the {thing} in two.",
            "in the end each took one half of the {thing} and went home.",
        ),
        maybe(
            "half of {a_thing} is of no use to anybody.",
            "{hero} put {hero_his} half in the shed and did not look at it.",
        ),
        then("days passed, with {weather} and silence.", "for a week they did not speak a word."),
        says(
            "{hero} ate alone, and even {food} had no taste.",
            "{hero} missed {friend}, but {hero_he} was too proud to say so.",
        ),
        then("then {disaster}.", "{later}, {disaster}."),
        says(
            "only a whole {thing} could help.",
            "{hero} looked at {hero_his} half of the {thing} and understood.",
        ),
        says(
            "{hero_He} ran out, and in the middle of the road {hero_he} met {friend}, who was carrying the other half.",
            "when {hero_he} opened the door, {friend} stood there with the other half in {friend_his} arms.",
        ),
        says(
            '"I was wrong," they {said} at the same time.',
            '"I am sorry," {said} {hero}. "I was sorry first," {said} {friend}.',
        ),
        then(
            "they put the halves together with rope and nails, and {saved}.",
            "it took them an hour to mend the {thing}, and then {saved}.",
        ),
        says(
            "one can still see the crack in the {thing}, and they never painted over it.",
            '"it is better than before," {said} {friend}. "it has a story now."',
        ),
    ),
    (
        {
            "disaster": "the river rose in the night",
            "saved": "they brought every child of {town} to dry ground",
        },
        {
            "disaster": "the old miller fell ill, and the doctor lived far away",
            "saved": "they brought him to the doctor in time",
        },
        {
            "disaster": "a hard frost came, and the poor had no wood",
            "saved": "they carried wood to every door of {town}",
        },
        {
            "disaster": "a fire broke out near the market",
            "saved": "they fetched help before the flames reached the houses",
        },
    ),
)

APPRENTICE = Plot(
    "learning a craft",
    ("violin", "clock", "chair", "lamp", "kite", "boat", "pot"),
    (
        says(
            "{hero_He} wanted to learn how to make {a_thing}.",
            "more than anything, {hero_he} wanted to make {a_thing} with {hero_his} own hands.",
        ),
        says(
            "so {hero_he} went to {friend}, {friend_a}, who was the best master in {other_town}.",
            "there was only one who could teach {hero_him}: {friend}, {friend_a} from {other_town}.",
        ),
        says(
            '"you may try three times," {said} {friend} {mood}.',
            '"it is harder than it looks," {said} {friend}.',
        ),
        then(
            "the first {thing} was ready in a day, because {hero} hurried.",
            "{hero} hardly slept, and the first {thing} was done the next morning.",
        ),
        says(
            "it broke as soon as a {animal} looked at it.",
            "{friend} touched it with one finger, and it fell apart.",
            "it fell to pieces in the first wind.",
        ),
        says(
            '"too fast," {said} {friend}.', '"what did you learn?" asked {friend}. "to wait," {said} {hero}.'
        ),
        then(
            "the second {thing} took a month, and {hero} asked everyone what they thought of it.",
            "for the second {thing} {hero_he} followed every piece of advice that {hero_he} heard.",
        ),
        says(
            "it was so full of other people's ideas that nobody liked it.",
            "it had nine corners and four colours, and it was good for nothing.",
        ),
        says(
            '"too many voices," {said} {friend}.',
            '"and now?" asked {friend}. "now I know whose hands these are," {said} {hero}.',
        ),
        then(
            "before the third {thing}, {hero} sat near {place} for a day and only looked at the {plant}.",
            "then {hero} walked to {place}, listened to the wind in the {plant}, and came back calm.",
        ),
        says("{hero_He} worked slowly and was not afraid.", "this time {hero_he} neither hurried nor asked."),
        says(
            "when it was done, {friend} looked at the {thing} for a long time.",
            "{friend} turned the third {thing} in {friend_his} hands and said nothing.",
        ),
        says(
            '"now I can learn from you," {said} {friend}.',
            '"this one," {said} {friend}, "will be here when we are gone."',
        ),
    ),
)

TRADE = Plot(
    "a clever exchange",
    ("button", "spoon", "needle", "ribbon", "pebble"),
    (
        says("{hero_He} had nothing in the world but {a_thing}.", "all that {hero_he} owned was {a_thing}."),
        says(
            "{time}, {hero} set out to find {wish}.",
            "what {hero_he} needed was {wish}, and {time} {hero_he} set out to get it.",
        ),
        then(
            "at {place} {hero_he} met {friend}, {friend_a}, who looked unhappy.",
            "{later} {hero_he} met {friend}, {friend_a}, sitting near {place}.",
        ),
        says(
            '"if only I had {a_thing}," {said} {friend}, "I could finish my work."',
            '"I would give {first} for {a_thing}," {said} {friend}.',
        ),
        says(
            "so {hero} gave away the {thing} and got {first}.",
            "they shook hands, and {hero} walked on with {first}.",
        ),
        then(
            "a little farther, an old woman was looking for {first}.",
            "near {place} a boy saw {first} and clapped his hands.",
        ),
        says(
            '"take {second} for it," was the offer, and {hero} agreed.',
            "{hero} thought for a moment and took {second} for it.",
        ),
        says(
            "in {other_town}, {because}, and {second} was worth more than gold.",
            "now it happened that {because} in {other_town}, where everybody wanted {second}.",
        ),
        then(
            "and so {hero} came home with {wish}.",
            "there somebody gave {hero_him} {wish} for it, and even {food} besides.",
        ),
        says(
            '"all this for {a_thing}?" asked {friend}. "no," {said} {hero}, "for asking everyone what they need."',
            "{hero} shared it with {friend}, whose {thing} had begun it all.",
        ),
    ),
    (
        {
            "wish": "a roof for the winter",
            "first": "a ball of wool",
            "second": "a warm blanket",
            "because": "the snow had come early",
        },
        {
            "wish": "a little boat",
            "first": "a fishing hook",
            "second": "a basket of fish",
            "because": "the nets had been torn by a storm",
        },
        {
            "wish": "a cow",
            "first": "a bag of salt",
            "second": "a wheel of cheese",
            "because": "a wedding was to be held",
        },
        {
            "wish": "a garden",
            "first": "a pot of honey",
            "second": "a hive of bees",
            "because": "the trees had no bees to visit them",
        },
    ),
)
