"""From what is known of one image to the turns of its conversation.

First the caption, then every question under its hint line. By default a question is used when it has both answers, and
these stand next to each other: at inference the first question with both is the task, so that is what is taught. The
text under both hints is the precise file's, to the letter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adamllm_ray.data.draws import uniform
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.synthesis.prompts import CAPTION_REQUEST, HINT_INFORMATIVE, HINT_PRECISE, hinted, same_question
from adamllm_ray.training.seed.records import SeedImage

Texts = list[tuple[str, str]]  # (role, text) of each turn; the image stands before the first


@dataclass(frozen=True, slots=True)
class Draws:
    """What is drawn for one image: the order of its questions, whether a blank image replaces it, and its split."""

    turns: Texts
    blank: bool
    dev: bool


def usable(image: SeedImage, join: str) -> Verdict:
    """OK, or what the image lacks."""
    if not image.precise:
        return Verdict.SEED_NO_PRECISE
    if not image.informative:
        return Verdict.SEED_NO_INFORMATIVE
    return Verdict.OK if join == "image" or shared(image) else Verdict.SEED_UNPAIRED


def shared(image: SeedImage) -> list[tuple[str, str, str]]:
    """(question, informative, precise) of the questions with both answers; the first answer to each counts."""
    told: dict[str, str] = {}
    for one in image.informative:
        told.setdefault(same_question(one.question), one.answer)
    found: dict[str, tuple[str, str, str]] = {}
    for one in image.precise:
        key = same_question(one.question)
        if key in told:
            found.setdefault(key, (one.question, told[key], one.answer))
    return list(found.values())


def hinted_pairs(image: SeedImage) -> list[tuple[str, str]]:
    """(user text, answer) of all precise and then all informative questions."""
    pairs = [(hinted(HINT_PRECISE, one.question), one.answer) for one in image.precise]
    return [*pairs, *((hinted(HINT_INFORMATIVE, one.question), one.answer) for one in image.informative)]


def conversation(caption: str, pairs: Sequence[tuple[str, str]]) -> Texts:
    """The turns: the fixed request and the caption, then the pairs."""
    turns: Texts = [("user", CAPTION_REQUEST), ("assistant", caption)]
    for question, answer in pairs:
        turns += [("user", question), ("assistant", answer)]
    return turns


def drawn(image: SeedImage, join: str, blank_share: float, dev_share: float, *, seed: int, id: str) -> Draws:
    """Everything by hash of (seed, id): where an image stands in its file, or what failed before it, is no matter."""
    return Draws(
        conversation(image.caption, _ordered(image, join, seed, id)),
        uniform(seed, "seed_blank", id) < blank_share,
        uniform(seed, "seed_dev", id) < dev_share,
    )


def _ordered(image: SeedImage, join: str, seed: int, id: str) -> list[tuple[str, str]]:
    if join == "image":
        pairs = hinted_pairs(image)
        order = sorted(range(len(pairs)), key=lambda place: uniform(seed, "seed_order", id, *pairs[place], place))
        return [pairs[place] for place in order]
    found: list[tuple[str, str]] = []
    for question, informative, precise in sorted(
        shared(image), key=lambda task: uniform(seed, "seed_order", id, task[0])
    ):
        both = [(hinted(HINT_PRECISE, question), precise), (hinted(HINT_INFORMATIVE, question), informative)]
        found += both if uniform(seed, "seed_hints", id, question) < 0.5 else both[::-1]
    return found
