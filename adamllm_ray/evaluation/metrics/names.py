"""``names_recall`` (Nutrition5K's ingredients) and ``names_f1`` (FoodSeg103): which names of a vocabulary are said.

The vocabulary is ``choices``; without it, the names of the answer. The answer is a JSON list of names, or names with
commas, semicolons or line breaks between them. The score of a task is the mean over its images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from adamllm_ray.evaluation.metrics.contract import UNREADABLE, Metric, Rule, Scorable, Score
from adamllm_ray.evaluation.metrics.text import vocabulary

Share = Callable[[set[int], set[int]], float]


def answer_names(answer: str) -> list[str]:
    """The names that an answer lists."""
    try:
        listed = json.loads(answer)
    except (ValueError, RecursionError):
        listed = None
    parts = map(str, listed) if isinstance(listed, list) else re.split(r"[,;\n]", answer)
    return [name.strip() for name in parts if name.strip()]


def unknown_names(answer: str, known: Sequence[str]) -> list[str]:
    """Names of an answer that the vocabulary lacks, but for case, hyphens and underscores."""
    lookup = vocabulary(known, loose=True)
    if lookup.position(answer) is not None:  # a name may hold a comma
        return []
    return [name for name in answer_names(answer) if lookup.position(name) is None]


def find_published(prediction: str, names: Sequence[str]) -> set[int]:
    """Names that occur as letters anywhere, the longest first; each is cut out, and what it parted joins up."""
    rest, found = prediction.lower(), set()
    for number, name in sorted(enumerate(names), key=lambda item: -len(item[1])):
        if name and name.lower() in rest:
            found.add(number)
            rest = rest.replace(name.lower(), "")
    return found


def recall_of(found: set[int], right: set[int]) -> float:
    """Share of the right ones that were found; 1 where there is none (scikit-learn's zero_division=1)."""
    return len(found & right) / len(right) if right else 1.0


def f1_of(found: set[int], right: set[int]) -> float:
    """F1 of two sets; 1 where both are empty (scikit-learn's zero_division=1)."""
    total = len(found) + len(right)
    return 2 * len(found & right) / total if total else 1.0


def _names(question: Scorable) -> tuple[Sequence[str], set[int]]:
    """(vocabulary, positions of the right names in it).

    A right name that is not in it has a position below 0, cannot be found, and is left out by the published scoring.
    """
    named = answer_names(question.answer)
    known = question.choices or list(dict.fromkeys(named))
    lookup = vocabulary(known, loose=True)
    whole = lookup.position(question.answer)  # a name may hold a comma
    places = [whole] if whole is not None else [lookup.position(name) for name in named]
    return known, {-1 - number if place is None else place for number, place in enumerate(places)}


def _paper(share: Share) -> Rule:
    def rule(prediction: str, question: Scorable) -> Score:
        known, right = _names(question)
        found = find_published(prediction, known)
        return Score(share(found, {place for place in right if place >= 0}), parsed=bool(found))

    return rule


def _strict(share: Share) -> Rule:
    """Whole words. Where no name is said, or none is right (so that nothing could be said), the score is 0."""

    def rule(prediction: str, question: Scorable) -> Score:
        known, right = _names(question)
        found = vocabulary(known, loose=True).find(prediction)
        return Score(share(found, right) if right else 0.0, parsed=True) if found else UNREADABLE

    return rule


NAMES_RECALL = Metric(
    _paper(recall_of),
    _strict(recall_of),
    {
        "paper": "mean recall of the names; as letters anywhere, 1 where no name is right",
        "strict": "mean recall of the names as whole words",
    },
)
NAMES_F1 = Metric(
    _paper(f1_of),
    _strict(f1_of),
    {
        "paper": "mean F1 of the names per image; as letters anywhere, 1 where nothing is right and nothing said",
        "strict": "mean F1 of the names per image, as whole words",
    },
)
