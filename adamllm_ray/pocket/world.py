"""The general world: procedural pictures of two materials, and sentences about anything.

It stands in for the web-scale data of a general model. Pictures show two regions in named colours and patterns
(`painting`), described in the words of `language`; sentences state the same kinds of facts about random nouns,
water, land and climate among them, the way a language model has read of them. No satellite picture is ever in it: what
water and land *look like* from above is exactly what post-training has to teach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from adamllm_ray.pocket import language, regions
from adamllm_ray.pocket.language import Fact
from adamllm_ray.pocket.painting import COLOURS, PATTERNS, Light, Pixels, light, paint, shape, two_colours

ADJECTIVES = ("brighter", "darker", "higher", "colder", "wetter", "greener", "older", "rougher")
NOUNS = (
    *COLOURS, "water", "land", "sand", "grass", "forest", "snow", "stone", "metal", "paper", "cloth", "wood",
    "glass", "ice", "mud", "road", "roof", "field", "garden", "cloud", "sky",
)  # fmt: skip
TYPES: dict[str, tuple[str, ...]] = {
    "pattern": PATTERNS,
    "water": ("lake", "sea"),
    "climate": ("tropical", "arid", "temperate", "cold", "polar"),
    "soil": ("sandy", "rocky", "muddy"),
    "weather": ("sunny", "rainy", "windy", "foggy"),
    "metal": ("iron", "copper", "silver", "gold"),
    "cloth": ("cotton", "wool", "silk"),
    "wood": ("oak", "pine", "birch"),
}
KINDS = ("side", "count", "island", "half", "type", "share")
SUBJECTS: dict[str, tuple[str, ...]] = {"half": ADJECTIVES, "type": tuple(TYPES)}  # of other kinds: NOUNS
TYPE_SHARE = 0.75  # of texts that have a type in them: the kind with the most words to copy
ASKED = {"half": 3.0, "count": 2.0, "type": 2.0}  # how much more often than others: kinds that take longest to learn
DULL_LEFT_OUT = 0.4  # of the pictures in which nothing has more than one part


@dataclass(frozen=True, slots=True)
class Picture:
    """A procedural picture and what is true of it.

    Attributes:
        pixels: (60, 60, 3).
        facts: the more telling ones first; captions use the first four.
        mask: (60, 60), True where the front region is.
        front, back: colour names.
        light: the half that is brighter, or None.
    """

    pixels: Pixels
    facts: tuple[Fact, ...]
    mask: regions.Mask
    front: str
    back: str
    light: str | None


def picture(seed: int) -> Picture:
    """The picture with this number. Deterministic."""
    random = np.random.default_rng([seed, 77])
    while True:
        mask = shape(random)
        front, back = two_colours(random)
        pattern = PATTERNS[random.integers(len(PATTERNS))]
        lit = light(random)
        facts = _facts(mask, front, back, pattern, lit, random)
        dull = all(fact.value == "one" for fact in facts if fact.kind == "count")
        if len(facts) >= 3 and not (dull and random.random() < DULL_LEFT_OUT):
            pixels = paint(mask, front, back, pattern, lit, random)
            return Picture(pixels, tuple(facts), mask, front, back, lit[0] if lit else None)


def text_facts(random: Random) -> list[Fact]:
    """Three or four facts about random nouns; no picture. In half of them only the noun tells which fact is meant.

    Most have a type of something in them (TYPE_SHARE).
    """
    if random.random() < 0.5:
        return paired_facts(random, 2)[: random.choice([3, 4])]
    return [fact for kind in _kinds(random, random.choice([3, 4])) for fact in _facts_of(kind, 1, random)]


def paired_facts(random: Random, kinds: int) -> list[Fact]:
    """So many kinds of facts, each about two nouns: which one is meant cannot be told by its kind."""
    nouns = random.sample(NOUNS, 2)
    facts = [fact for kind in _kinds(random, kinds) for fact in _facts_of(kind, 2, random, nouns)]
    random.shuffle(facts)
    return facts


def _kinds(random: Random, number: int) -> list[str]:
    kinds = random.sample([kind for kind in KINDS if kind != "type"], number)
    if random.random() < TYPE_SHARE:
        kinds[random.randrange(number)] = "type"
    return kinds


def _facts_of(kind: str, number: int, random: Random, nouns: Sequence[str] = NOUNS) -> list[Fact]:
    """So many facts of a kind about different things, ``nouns`` where the kind has no subjects of its own."""
    return [_any_fact(kind, noun, random) for noun in random.sample(SUBJECTS.get(kind, nouns), number)]


def colour_facts(random: Random, colours: int) -> list[Fact]:
    """All that could be true of a picture of so many colours; geometry is not asked whether it can be."""
    facts = []
    for noun in random.sample(list(COLOURS), colours):
        facts += [_any_fact(kind, noun, random) for kind in ("side", "count", "island", "share")]
    facts.append(language.type_of("pattern", random.choice(PATTERNS), PATTERNS))
    if random.random() < 0.5:
        facts.append(language.half(random.choice(("brighter", "darker")), random.choice(language.HALVES)))
    return facts


def asked_about(facts: Sequence[Fact], number: int, random: Random) -> list[Fact]:
    """So many of the facts to ask about, with replacement; hard kinds more often."""
    return random.choices(facts, [ASKED.get(fact.kind, 1.0) for fact in facts], k=number)


def _any_fact(kind: str, noun: str, random: Random) -> Fact:
    if kind == "side":
        return language.side(noun, random.choice(regions.SIDES))
    if kind == "count":
        return language.count(noun, random.choice(regions.NUMBERS))
    if kind == "island":
        return language.island(noun, random.random() < 0.5)
    if kind == "share":
        return language.share(noun, random.choice(regions.SHARES))
    if kind == "half":
        return language.half(noun, random.choice(language.HALVES))
    values = TYPES[noun if random.random() < 0.5 else random.choice(list(TYPES))]  # has to be read, not guessed
    return language.type_of(noun, random.choice(values), values)


def _facts(
    mask: regions.Mask,
    front: str,
    back: str,
    pattern: str,
    lit: Light | None,
    random: np.random.Generator,
) -> list[Fact]:
    facts: list[Fact] = []
    for noun, region in ((front, mask), (back, ~mask)):
        if where := regions.side(region):
            facts.append(language.side(noun, where))
        if number := regions.count(region):
            facts.append(language.count(noun, number))
        if (alone := regions.island(region)) is not None:
            facts.append(language.island(noun, alone))
        if much := regions.share(region):
            facts.append(language.share(noun, much))
    facts.append(language.type_of("pattern", pattern, PATTERNS))
    common = np.array([fact.value == "one" or (fact.kind == "island" and fact.value == "no") for fact in facts])
    if lit:
        dark = random.random() < 0.5
        word, where = ("darker", language.OPPOSITE[lit[0]]) if dark else ("brighter", lit[0])
        facts.append(language.half(word, where))
        common = np.append(common, False)
    order = np.argsort(random.random(len(facts)) + 0.5 * common)  # what is true of most pictures is told less often
    return [facts[i] for i in order]
