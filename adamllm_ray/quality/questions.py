"""Questions as texts: their normal form, what kind they are, and which of some others they repeat.

Nearness of two questions is the Jaccard similarity of their words and word pairs (so that order counts). It is found
without comparing all pairs and without missing one: two sets that are similar enough share one of their few rarest
members (prefix filtering, Bayardo et al. 2007).
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

CONTAINED = 4  # words
REMEMBERED = 50_000  # questions whose answer is kept: synthesized ones repeat
_WORD = re.compile(r"\w+(?:['\N{RIGHT SINGLE QUOTATION MARK}]\w+)?")
_OPTIONS = re.compile(r"\(?\b[a-d1-4][).:]\s.*\(?\b[b-e2-5][).:]\s", re.IGNORECASE | re.DOTALL)
_LEAD = re.compile(r"\s*(?:question|q)\s*:\s*", re.IGNORECASE)
_CHOICES = re.compile(
    r"(?:\b(?:the\s+|possible\s+|answer\s+)*(?:choices|options|candidates)\s*(?:are\s*)?:"
    r"|\(?\ba[).:]\s.{0,500}?\(?\bb[).:]\s|\(?\b1[).:]\s.{0,500}?\(?\b2[).:]\s)",
    re.IGNORECASE | re.DOTALL,
)
_AUXILIARY = re.compile(
    r"(is|are|was|were|am|do|does|did|can|could|has|have|had|will|would|should|shall|may|might|must)(n't)?|can't"
)
_WH = frozenset("what which where who whom whose when why how".split())  # noqa: SIM905
_DESCRIBING = frozenset("describe explain summarize summarise discuss caption tell write compare".split())  # noqa: SIM905
_NAMING = frozenset("name list identify give state find select choose point classify estimate".split())  # noqa: SIM905
_BEFORE_WH = 10  # words in which a question may lead up to its interrogative ("On the left, which ...")

K = TypeVar("K")


def words_of(text: str) -> list[str]:
    """Words in their normal form (NFKC, case folded), punctuation left out."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def normal(text: str) -> str:
    """The text as its words: equal for texts that differ in case, spacing and punctuation only."""
    return " ".join(words_of(text))


def bare(text: str) -> str:
    """A prompt without what a template puts around its question: "Question:" before it, the choices after it."""
    text = _LEAD.sub("", text, count=1) if _LEAD.match(text) else text
    listed = _CHOICES.search(text)
    return text if listed is None or not normal(text[: listed.start()]) else text[: listed.start()]


def forms(text: str) -> list[str]:
    """The text as it stands, and its `bare` question where that is another one."""
    inner = bare(text)
    return [text] if normal(inner) == normal(text) else [text, inner]


def stands_in(question: str, prompt: str) -> bool:
    """Whether the question stands, word for word, in a longer prompt; a few words stand in many and do not count."""
    words = normal(question)
    return words.count(" ") + 1 >= CONTAINED and f" {words} " in f" {normal(prompt)} "


def question_type(text: str) -> str:
    """What kind of task a question sets, by how it opens (English; everything else is 'other')."""
    words = words_of(text)
    if not words:
        return "empty"
    if _OPTIONS.search(text):
        return "choice"
    if _AUXILIARY.fullmatch(words[0]):
        return "yes/no"
    for index, word in enumerate(words[:_BEFORE_WH]):
        if word == "how":
            return "how many" if words[index + 1 : index + 2] in (["many"], ["much"]) else "how"
        if word in _WH:
            return "who" if word in ("whom", "whose") else word
    if words[0] in _DESCRIBING:
        return "describe"
    return "name" if words[0] in _NAMING else "other"


def opening(text: str) -> str:
    """The first two words."""
    return " ".join(words_of(text)[:2])


def entropy(counts: Sequence[int]) -> float:
    """Shannon entropy in bits of the shares that some counts have."""
    total = sum(counts)
    return -sum(count / total * math.log2(count / total) for count in counts if count) if total else 0.0


@dataclass(frozen=True, slots=True)
class Repeat(Generic[K]):
    """A known question that another one repeats; similarity 1 and ``exact`` for the same normal form."""

    key: K
    exact: bool
    similarity: float


class KnownQuestions(Generic[K]):
    """Questions to find again, each under a key; the first key of a normal form counts.

    Args:
        questions: (key, text) of each.
        threshold: similarity from which another question repeats one of these; None finds equal ones only.
    """

    def __init__(self, questions: Sequence[tuple[K, str]], threshold: float | None) -> None:
        self._keys: dict[str, K] = {}
        for key, text in questions:
            if form := normal(text):
                self._keys.setdefault(form, key)
        self._threshold = threshold
        self._sets: list[tuple[str, frozenset[str]]] = []
        self._frequency: Counter[str] = Counter()
        self._by_member: dict[str, list[int]] = defaultdict(list)
        self._seen: OrderedDict[str, Repeat[K] | None] = OrderedDict()
        if threshold is not None:
            self._index(threshold)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, text: str) -> Repeat[K] | None:
        """The question that ``text`` repeats, the most similar one; None when it repeats none."""
        form = normal(text)
        if not form:
            return None
        if form not in self._seen:
            self._seen[form] = self._find(form)
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
        return self._seen[form]

    def _index(self, threshold: float) -> None:
        self._sets = [(form, _members(form)) for form in self._keys]
        self._frequency.update(member for _, members in self._sets for member in members)
        for number, (_, members) in enumerate(self._sets):
            for member in self._rarest(members, threshold):
                self._by_member[member].append(number)

    def _rarest(self, members: frozenset[str], threshold: float) -> list[str]:
        count = len(members) - math.ceil(threshold * len(members)) + 1
        return sorted(members, key=lambda member: (self._frequency[member], member))[:count]

    def _find(self, form: str) -> Repeat[K] | None:
        if form in self._keys:
            return Repeat(self._keys[form], True, 1.0)
        if self._threshold is None:
            return None
        members, best = _members(form), (self._threshold, -1)
        for number in sorted(
            {n for member in self._rarest(members, self._threshold) for n in self._by_member.get(member, ())}
        ):
            other = self._sets[number][1]
            common = len(members & other)
            similarity = common / (len(members) + len(other) - common)
            if similarity > best[0] or (best[1] < 0 and similarity >= best[0]):
                best = (similarity, number)
        if best[1] < 0:
            return None
        return Repeat(self._keys[self._sets[best[1]][0]], False, best[0])


def _members(form: str) -> frozenset[str]:
    words = form.split(" ")
    return frozenset([*words, *(f"{one} {two}" for one, two in itertools.pairwise(words))])
