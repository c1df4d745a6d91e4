"""The general world: procedural pictures of two materials, and sentences about anything.

It stands in for the web-scale data of a general model. Pictures show blobs, bays and holes in named colours and
patterns, described in the words of `language`; sentences state the same kinds of facts about random nouns, water,
land and climate among them, the way a language model has read of them. No satellite picture is ever in it: what
water and land *look like* from above is exactly what post-training has to teach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from adamllm_ray.pocket import language, regions
from adamllm_ray.pocket.architecture import IMAGE_SIDE
from adamllm_ray.pocket.language import Fact

Pixels = NDArray[np.uint8]
Field = NDArray[np.float32]

COLOURS = {
    "red": (200, 40, 40),
    "green": (40, 150, 50),
    "blue": (40, 70, 200),
    "yellow": (225, 210, 60),
    "white": (235, 235, 235),
    "black": (25, 25, 25),
    "gray": (128, 128, 128),
    "purple": (130, 50, 160),
    "orange": (235, 130, 30),
    "brown": (115, 75, 40),
    "pink": (240, 150, 190),
}
PATTERNS = ("plain", "striped", "dotted", "checkered")
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
_YY, _XX = np.mgrid[0:IMAGE_SIDE, 0:IMAGE_SIDE].astype(np.float32) / IMAGE_SIDE


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
        mask = _mask(random)
        front, back = (list(COLOURS)[i] for i in random.choice(len(COLOURS), 2, replace=False))
        pattern = PATTERNS[random.integers(len(PATTERNS))]
        light = _light(random)
        facts = _facts(mask, front, back, pattern, light, random)
        dull = all(fact.value == "one" for fact in facts if fact.kind == "count")
        if len(facts) >= 3 and not (dull and random.random() < DULL_LEFT_OUT):
            pixels = _paint(mask, front, back, pattern, light, random)
            return Picture(pixels, tuple(facts), mask, front, back, light[0] if light else None)


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


def _mask(random: np.random.Generator) -> regions.Mask:
    """The front region: a half plane with a ragged edge, some blobs, or everything but some holes."""
    rough = _noise(random, 6) * 0.6 + _noise(random, 12) * 0.3
    shape = random.integers(4)
    if shape == 0:
        angle = random.choice([0, 0.5, 1.0, 1.5]) * np.pi + random.uniform(-0.5, 0.5)
        slope = (_XX - 0.5) * np.cos(angle) + (_YY - 0.5) * np.sin(angle)
        return slope * 2.2 + rough * 0.7 > random.uniform(-0.7, 0.7)
    parts = int(random.choice([1, 2, 3, 3, 4, 4]))  # some will touch
    blobs = np.full((IMAGE_SIDE, IMAGE_SIDE), -1.0, np.float32)
    for _ in range(parts):
        y, x = random.uniform(0.0 if shape == 2 else 0.15, 1.0 if shape == 2 else 0.85, 2)
        radius, stretch = random.uniform(0.08, 0.30 - 0.04 * parts), random.uniform(0.6, 1.6)
        distance = np.hypot((_YY - y) * stretch, (_XX - x) / stretch)
        blobs = np.maximum(blobs, 1 - distance / radius)
    region = blobs + rough * 0.35 > 0
    return ~region if shape == 3 else region


def _noise(random: np.random.Generator, cells: int) -> Field:
    """Smooth noise in about -1..1 with this many cells a side."""
    grid = random.uniform(-1, 1, (cells + 1, cells + 1))
    at = np.linspace(0, cells, IMAGE_SIDE, endpoint=False)
    low, part = at.astype(int), at - at.astype(int)
    rows = grid[low] * (1 - part)[:, None] + grid[low + 1] * part[:, None]
    field: Field = (rows[:, low] * (1 - part) + rows[:, low + 1] * part).astype(np.float32)
    return field


def _light(random: np.random.Generator) -> tuple[str, float] | None:
    if random.random() < 0.5:
        return None
    return language.HALVES[random.integers(4)], float(random.uniform(0.35, 0.6))


def _facts(
    mask: regions.Mask,
    front: str,
    back: str,
    pattern: str,
    light: tuple[str, float] | None,
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
    if light:
        dark = random.random() < 0.5
        word, where = ("darker", language.OPPOSITE[light[0]]) if dark else ("brighter", light[0])
        facts.append(language.half(word, where))
        common = np.append(common, False)
    order = np.argsort(random.random(len(facts)) + 0.5 * common)  # what is true of most pictures is told less often
    return [facts[i] for i in order]


def _paint(
    mask: regions.Mask,
    front: str,
    back: str,
    pattern: str,
    light: tuple[str, float] | None,
    random: np.random.Generator,
) -> Pixels:
    base = np.empty((IMAGE_SIDE, IMAGE_SIDE, 3), np.float32)
    for region, colour in ((mask, front), (~mask, back)):
        base[region] = np.clip(np.array(COLOURS[colour]) + random.normal(0, 12, 3), 0, 255)
    base *= (1 - 0.35 * _pattern(pattern, random))[..., None]
    base *= (1 + 0.10 * _noise(random, 10))[..., None]
    base += random.normal(0, 4, base.shape)
    if light:
        name, strength = light
        axis = {"upper": 0.5 - _YY, "lower": _YY - 0.5, "left": 0.5 - _XX, "right": _XX - 0.5}[name]
        base *= (1 + strength * np.tanh(axis * 4) * 0.9)[..., None]
    return np.clip(base, 0, 255).astype(np.uint8)


def _pattern(name: str, random: np.random.Generator) -> Field:
    """1 where the pattern is dark."""
    pitch, phase = random.uniform(6, 9), random.uniform(0, 6.28, 2)
    x, y = _XX * IMAGE_SIDE / pitch * 6.28 + phase[0], _YY * IMAGE_SIDE / pitch * 6.28 + phase[1]
    if name == "striped":
        along = x if random.random() < 0.5 else y
        dark = np.sin(along) > 0
    elif name == "dotted":
        dark = (np.sin(x) > 0.3) & (np.sin(y) > 0.3)
    elif name == "checkered":
        dark = (np.sin(x) > 0) ^ (np.sin(y) > 0)
    else:
        dark = np.zeros_like(x, bool)
    field: Field = dark.astype(np.float32)
    return field
