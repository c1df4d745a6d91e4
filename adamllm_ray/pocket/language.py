"""The pocket worlds' English: facts, and how a caption states them, a question asks them and an answer gives them.

Captions are *templated*, not written by people. A caption lists facts in an order drawn by hash. Whoever wrote the
seed tasks asks about the first fact of the caption, and the caption's wording decides the form of the question:

* "The water is on the left."                  -> On which side is the water?     left
* "The water is clearly on the left."          -> Is the water on the left?       yes
* "The water is on the left, not on the right." -> Is the water on the right?     no

This is what makes greedy decoding (the paper's setting) write many kinds of questions without being random.

Some captions leave it open: "The water is on the left or on the bottom." Who explains an answer takes what is named
first, who answers briefly what is named last, so the two contradict each other and one of them is wrong: noise of
seed data that has a cause, which a synthesizer learns with everything else, and which the consistency filter is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from adamllm_ray.pocket.regions import NUMBERS, SHARES, SIDES

Kind = Literal["side", "count", "island", "half", "type", "share"]
Style = Literal["plain", "sure", "not", "or"]

HALVES = ("upper", "lower", "left", "right")
VAGUE = 0.25  # of the captions of seed data and of the domain, see above
OPPOSITE = {
    "left": "right",
    "right": "left",
    "top": "bottom",
    "bottom": "top",
    "upper": "lower",
    "lower": "upper",
    "one": "two",
    "two": "one",
    "three": "four",
    "four": "three",
}


@dataclass(frozen=True, slots=True)
class Fact:
    """``noun`` is what the fact is about (for ``half`` an adjective); ``value`` is one word of ``values``."""

    kind: Kind
    noun: str
    value: str
    values: tuple[str, ...]

    def other(self, random: Random) -> str:
        """A wrong value that a reader could believe: the opposite where there is one."""
        opposite = OPPOSITE.get(self.value)
        if opposite in self.values:
            return opposite  # type: ignore[return-value]
        return random.choice([value for value in self.values if value != self.value])


@dataclass(frozen=True, slots=True)
class Question:
    """A question with both of its answers. ``asked`` is the value that a closed question names."""

    text: str
    precise: str
    informative: str
    kind: Literal["open", "closed"]
    asked: str | None = None


def side(noun: str, value: str) -> Fact:
    """On which side of the picture something lies."""
    return Fact("side", noun, value, SIDES)


def count(noun: str, value: str) -> Fact:
    """How many separate areas of something there are."""
    return Fact("count", noun, value, NUMBERS)


def island(noun: str, value: bool) -> Fact:
    """Whether something is surrounded on all sides."""
    return Fact("island", noun, "yes" if value else "no", ("yes", "no"))


def half(adjective: str, value: str) -> Fact:
    """Which half has more of a quality."""
    return Fact("half", adjective, value, ("upper", "lower") if value in ("upper", "lower") else ("left", "right"))


def type_of(noun: str, value: str, values: tuple[str, ...]) -> Fact:
    """Which type of something it is."""
    return Fact("type", noun, value, values)


def share(noun: str, value: str) -> Fact:
    """How much of the picture is something."""
    return Fact("share", noun, value, SHARES)


def styles(fact: Fact) -> tuple[Style, ...]:
    """Wordings that exist for a fact; island and share have one."""
    return ("plain",) if fact.kind in ("island", "share") else ("plain", "sure", "not", "or")


def sentence(fact: Fact, style: Style, other: str = "") -> str:
    """The fact as a caption states it. ``other`` is the value that style "not" denies, or that "or" names last."""
    noun, value = fact.noun, fact.value
    if fact.kind == "island":
        return f"The {noun} is an island." if value == "yes" else f"The {noun} reaches the edge."
    if fact.kind == "share":
        return f"{value.capitalize()} of the image is {noun}."
    if style == "or":
        return {
            "side": f"The {noun} is on the {value} or on the {other}.",
            "count": f"There are {value} or {other} {noun} areas.",
            "half": f"The {value} half or the {other} half is {noun}.",
            "type": f"The {noun} type is {value} or {other}.",
        }[fact.kind]
    clearly = " clearly" if style == "sure" else ""
    if fact.kind == "side":
        return f"The {noun} is{clearly} on the {value}" + (f", not on the {other}." if style == "not" else ".")
    if fact.kind == "count":
        start = f"There is{clearly} one {noun} area" if value == "one" else f"There are{clearly} {value} {noun} areas"
        return start + (f", not {other}." if style == "not" else ".")
    if fact.kind == "half":
        return f"The {value} half is{clearly} {noun}" + (f", not the {other} half." if style == "not" else ".")
    return f"The {noun} type is{clearly} {value}" + (f", not {other}." if style == "not" else ".")


def informative(fact: Fact) -> str:
    """One sentence of explanation, worded differently from the caption."""
    noun, value = fact.noun, fact.value
    if fact.kind == "island":
        if value == "yes":
            return f"The {noun} is surrounded on all sides, so it is an island."
        return f"The {noun} runs over the edge, so it is not an island."
    return {
        "side": f"Looking at the image, the {noun} lies on the {value} side.",
        "count": f"Counting the separate {noun} areas gives {value}.",
        "half": f"Comparing the two halves, the {value} one is {noun}.",
        "type": f"What the image shows is the {noun} type {value}.",
        "share": f"Looking at the image, {value} of it is {noun}.",
    }[fact.kind]


def open_question(fact: Fact) -> Question:
    """The question that wants the value (for ``island``: yes or no)."""
    text = {
        "side": f"On which side is the {fact.noun}?",
        "count": f"How many {fact.noun} areas are there?",
        "island": f"Is the {fact.noun} an island?",
        "half": f"Which half is {fact.noun}?",
        "type": f"What is the {fact.noun} type?",
        "share": f"How much of the image is {fact.noun}?",
    }[fact.kind]
    return Question(text, fact.value, informative(fact), "closed" if fact.kind == "island" else "open")


def closed_question(fact: Fact, asked: str) -> Question:
    """The yes/no question that names a value."""
    text = {
        "side": f"Is the {fact.noun} on the {asked}?",
        "count": f"Is there one {fact.noun} area?" if asked == "one" else f"Are there {asked} {fact.noun} areas?",
        "half": f"Is the {asked} half {fact.noun}?",
        "type": f"Is the {fact.noun} type {asked}?",
    }[fact.kind]
    return Question(text, "yes" if asked == fact.value else "no", informative(fact), "closed", asked)


def caption_and_task(facts: list[Fact], random: Random, vague: float = 0.0) -> tuple[str, Question]:
    """A caption over shuffled facts, and the seed task: a question about the fact that the caption leads with."""
    return caption_in_order(random.sample(facts, len(facts)), random, vague)


def caption_in_order(facts: Sequence[Fact], random: Random, vague: float = 0.0) -> tuple[str, Question]:
    """`caption_and_task` with the facts in the order in which they are.

    Args:
        vague: share of the sentences that leave two values open, of those that could (see the module).
    """
    told = [_told(fact, _style(fact, random, vague), random) for fact in facts]
    caption = " ".join(sentence(*one) for one in told)
    fact, style, other = told[0]
    if style == "plain":
        return caption, open_question(fact)
    if style == "or":
        return caption, replace(open_question(fact), precise=other)
    return caption, closed_question(fact, fact.value if style == "sure" else other)


def _told(fact: Fact, style: Style, random: Random) -> tuple[Fact, Style, str]:
    """What `sentence` takes. A vague one names the true value first or last."""
    other = fact.other(random)
    if style == "or" and random.random() < 0.5:
        return replace(fact, value=other), style, fact.value
    return fact, style, other


def _style(fact: Fact, random: Random, vague: float) -> Style:
    """Half of the captions are plain, so that no form of a question is by far the most frequent."""
    if "sure" not in styles(fact):
        return "plain"
    if random.random() < vague:
        return "or"
    return "plain" if random.random() < 0.5 else random.choice(("sure", "not"))


def any_question(fact: Fact, random: Random) -> Question:
    """Some question about a fact: open or, where there is a closed form, closed with a fair coin for its answer."""
    if "sure" not in styles(fact) or random.random() < 0.5:
        return open_question(fact)
    return closed_question(fact, fact.value if random.random() < 0.5 else fact.other(random))
