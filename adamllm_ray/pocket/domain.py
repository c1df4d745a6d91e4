"""The pocket domain: satellite chips with templated captions to train on, and a VQA test set with known answers.

`training_pairs` is what a user's folder of images and captions would be; `benchmark_questions` is the benchmark. The
gold facts travel in ``meta`` and are read only by `check_triplet`, for the report: no model and no filter sees them.

Mean colour nearly solves land share, lake or sea and, in part, climate and island (the report prints that baseline), so
most questions are ones that it cannot answer: on which side the water lies, how many land areas there are, which half
is higher.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from adamllm_ray.data.draws import uniform
from adamllm_ray.pocket import language
from adamllm_ray.pocket.chips import CLIMATES, WATERS, Chip, all_chips, part_of
from adamllm_ray.pocket.language import Fact

DEFAULT_PAIRS = 1600
QUESTIONS_PER_ANSWER = 64  # of each (question type, answer), as far as the test region has them
COARSE_PX = 60  # between chips that are asked about first: they touch and do not overlap
EASY = {"climate": 0.4, "land share": 0.4}  # types that mean colour nearly solves are asked less often
ALSO_CLOSED = {"side", "count", "half"}  # kinds that are asked both openly and as yes/no
NAMES = {
    ("side", "water"): "water side",
    ("count", "land"): "land areas",
    ("island", "land"): "island",
    ("type", "water"): "lake or sea",
    ("half", "higher"): "higher half",
    ("share", "land"): "land share",
    ("type", "climate"): "climate",
}
NOTICED = 4.0  # how many times rarer than it is a number of land areas counts for: anybody would mention it first
CAPTION_RARITY = 0.5  # 0: captions tell a chip's facts in any order, 1: seven times rarer leads seven times as often
_SEED = 20261123
FactName = tuple[str, str, str]  # kind, noun, value


@dataclass(frozen=True, slots=True)
class Pair:
    """An image-caption pair as a source yields it."""

    key: str
    image_bytes: bytes  # PNG, 60 x 60 px
    caption: str
    meta: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DomainQuestion:
    """One benchmark question. ``choices`` are all answers that are possible for its type."""

    id: str
    image_bytes: bytes
    question: str
    answer: str
    type: str
    kind: str  # "open" | "closed"
    choices: tuple[str, ...]


def training_pairs(limit: int | None = None, *, hold_back: bool = False) -> Iterator[Pair]:
    """Chips of the training regions with captions, rare facts preferred; the same ones every time.

    ``hold_back``: only those that touch no chip of `validation_questions`.
    """
    chips = all_chips("train")
    if hold_back:
        chips = tuple(chip for chip in chips if part_of(chip) == "train")
    chosen = _varied(chips)
    times = _times(chosen[:DEFAULT_PAIRS])  # whatever the limit: it changes no caption
    for chip in chosen[: limit or DEFAULT_PAIRS]:
        caption, _ = language.caption_in_order(
            _told(chip, times), Random(f"{_SEED}-caption-{chip.key}"), language.VAGUE
        )
        yield Pair(chip.key, png(chip), caption, {"facts": [[f.kind, f.noun, f.value] for f in chip.facts]})


def benchmark_questions(limit: int | None = None) -> Iterator[DomainQuestion]:
    """The benchmark: questions about chips of the test regions, answers balanced within a type as far as they exist."""
    questions = _balanced(all_chips("test"), QUESTIONS_PER_ANSWER)
    yield from questions[:limit]


def validation_questions() -> Iterator[DomainQuestion]:
    """The same kinds of questions about the part of the training regions that ``data.split: train`` holds back."""
    held_back = [chip for chip in all_chips("train") if part_of(chip) == "validation"]
    yield from _balanced(held_back, QUESTIONS_PER_ANSWER)


def train_questions() -> Iterator[DomainQuestion]:
    """Labelled questions about training chips. Only the colour baseline is fitted on them, never a model."""
    yield from _balanced(all_chips("train"), 4 * QUESTIONS_PER_ANSWER)


def check_triplet(meta: dict[str, Any], question: str, informative: str, precise: str) -> bool | None:
    """Whether both answers of a synthesized task are true of the chip; None when the question is not about a fact."""
    for fact in facts_from(meta):
        for asked in _questions_about(fact):
            if asked.text == question.strip():
                said = precise.strip().rstrip(".").lower()
                return said == asked.precise and _says(informative, fact)
    return None


def facts_from(meta: dict[str, Any]) -> list[Fact]:
    """The gold facts that a pair carries."""
    return [_fact(kind, noun, value) for kind, noun, value in meta.get("facts", [])]


def png(chip: Chip) -> bytes:
    """The chip as PNG bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(chip.pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _told(chip: Chip, times: Mapping[FactName, int]) -> list[Fact]:
    """At most four facts of a chip, in the order in which its caption tells them: what is rare tends to come first."""

    def order(fact: Fact) -> float:
        return _drawn(_rarity(fact, times) ** CAPTION_RARITY, "told", chip.key, fact.kind, fact.noun)

    return sorted(chip.facts, key=order, reverse=True)[:4]


def _varied(chips: Sequence[Chip]) -> list[Chip]:
    """The chips in the order in which they are chosen: those with rare facts tend to come first."""
    times = _times(chips)

    def order(chip: Chip) -> float:
        return _drawn(max(_rarity(fact, times) for fact in chip.facts), "varied", chip.key)

    return sorted(chips, key=order, reverse=True)


def _times(chips: Iterable[Chip]) -> Counter[FactName]:
    return Counter(_name(fact) for chip in chips for fact in chip.facts)


def _rarity(fact: Fact, times: Mapping[FactName, int]) -> float:
    """How rare a fact is among the chips that were counted; numbers of areas, which are noticed, count for rarer."""
    return (NOTICED if fact.kind == "count" else 1.0) / max(1, times[_name(fact)])


def _drawn(weight: float, *what: str) -> float:
    """A weighted draw without replacement takes the greatest of these (Efraimidis and Spirakis 2006)."""
    return float(uniform(_SEED, *what) ** (1 / (weight * 1000)))


def _name(fact: Fact) -> FactName:
    return fact.kind, fact.noun, fact.value


def _balanced(chips: Iterable[Chip], per_answer: int) -> list[DomainQuestion]:
    """At most ``per_answer`` questions of each (type, answer).

    Of yes/no questions there are as many with yes as with no, for each value that is named: their text does not tell.
    """
    groups: dict[tuple[str, str, str], list[DomainQuestion]] = {}
    for chip in sorted(chips, key=_test_order):
        for fact in chip.facts:
            for name, asked, choices in _ask(chip, fact):
                group = groups.setdefault((name, asked.asked or fact.noun, asked.precise), [])
                share = 2 / len(_values_of(fact)) if asked.asked else EASY.get(name, 1)
                if len(group) < per_answer * share:
                    key = f"{chip.key}-{name.replace(', ', '-').replace(' ', '-').replace('/', '-')}"
                    picture = png(chip)
                    group.append(DomainQuestion(key, picture, asked.text, asked.precise, name, asked.kind, choices))
    for (name, value, answer), group in groups.items():
        if answer in ("yes", "no"):
            del group[len(groups.get((name, value, "no" if answer == "yes" else "yes"), [])) :]
    return [question for key in sorted(groups) for question in groups[key]]


def _test_order(chip: Chip) -> tuple[bool, float]:
    """Chips of a coarse grid first, so that neighbours overlap as little as the numbers allow."""
    fine = any(place % COARSE_PX for place in chip.corner)
    return fine, uniform(_SEED, "test", chip.key)


def _ask(chip: Chip, fact: Fact) -> list[tuple[str, language.Question, tuple[str, ...]]]:
    """(type, question, choices) for a fact: the open form and, where there is one, a closed form."""
    name = NAMES[fact.kind, fact.noun]
    choices = _values_of(fact)
    asked = [(name, language.open_question(fact), choices)]
    if fact.kind in ALSO_CLOSED:
        true = uniform(_SEED, "closed", chip.key, fact.kind) < 0.5
        value = fact.value if true else fact.other(Random(f"{_SEED}-{chip.key}-{fact.kind}"))
        asked.append((f"{name}, yes/no", language.closed_question(fact, value), ("yes", "no")))
    return asked


def _values_of(fact: Fact) -> tuple[str, ...]:
    """All values that a question of this fact's kind may have for its answer."""
    return language.HALVES if fact.kind == "half" else fact.values


def _fact(kind: str, noun: str, value: str) -> Fact:
    values = {"climate": CLIMATES, "water": WATERS}
    makers = {
        "side": lambda: language.side(noun, value),
        "count": lambda: language.count(noun, value),
        "island": lambda: language.island(noun, value == "yes"),
        "half": lambda: language.half(noun, value),
        "share": lambda: language.share(noun, value),
        "type": lambda: language.type_of(noun, value, values[noun]),
    }
    return makers[kind]()


def _questions_about(fact: Fact) -> list[language.Question]:
    asked = [language.open_question(fact)]
    if "sure" in language.styles(fact):
        values = _values_of(fact)
        asked += [language.closed_question(fact, value) for value in values]
    return asked


def _says(informative: str, fact: Fact) -> bool:
    """Whether the text names the true value and no other value of the same kind."""
    words = set(re.findall(r"[a-z]+", informative.lower()))
    if fact.kind == "island":
        return ("not" in words) == (fact.value == "no")
    values = _values_of(fact)
    return fact.value in words and not words & (set(values) - {fact.value})


def describe() -> str:
    """Counts of questions per type and answer, as JSON; for the log of a build."""
    counts: dict[str, dict[str, int]] = {}
    for question in benchmark_questions():
        kind = counts.setdefault(question.type, {})
        kind[question.answer] = kind.get(question.answer, 0) + 1
    return json.dumps(counts)
