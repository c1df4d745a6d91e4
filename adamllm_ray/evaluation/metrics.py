"""One prediction -> right or wrong, and whether it could be read at all.

Rules, chosen so that a model is never rewarded for hedging or by chance:

* what counts is the *conclusion*: the text after the last "answer is", or the whole text without one
* yes/no: a whole word, and only one of the two ("normal" is not "no"; "yes and no" is unreadable, hence wrong)
* choices: exactly one of them occurs, the longest first ("north west" is not also "north")
* free text: equal after normalisation, or every word of the answer is there (recall 1); recall is reported beside

No answer is ever drawn at random. What cannot be read is wrong and is counted as unparsable.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

_CONCLUSION = re.compile(r"\banswer\s+is\b\s*:?", re.IGNORECASE)
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
    name: str(value)
    for value, name in enumerate("zero one two three four five six seven eight nine ten".split())  # noqa: SIM905
}


class Scorable(Protocol):
    """What scoring needs to know about a question."""

    @property
    def answer(self) -> str:
        """The right answer."""

    @property
    def kind(self) -> str:
        """'open' or 'closed'."""

    @property
    def choices(self) -> Sequence[str] | None:
        """The possible answers, if they are listed."""


@dataclass(frozen=True, slots=True)
class Score:
    """``value`` is 0 or 1; ``parsed`` says whether an answer could be read; ``recall`` (0..1) only for free text."""

    value: int
    parsed: bool
    recall: float | None = None


def score(prediction: str, row: Scorable) -> Score:
    """Score one prediction; see the module docstring for the rules."""
    text = conclusion(prediction)
    if row.choices:
        return _score_label(read_choice(text, row.choices), row.answer)
    if row.kind == "closed" and words(row.answer) in (["yes"], ["no"]):
        return _score_label(read_yes_no(text), row.answer)
    return _score_free(text, row.answer)


def conclusion(prediction: str) -> str:
    """The text after the last "answer is", or all of it."""
    ends = [match.end() for match in _CONCLUSION.finditer(prediction)]
    return prediction[ends[-1] :] if ends else prediction


def read_yes_no(text: str) -> str | None:
    """'yes' or 'no' if exactly one of the two words occurs (as often as it likes), else None."""
    found = {match.lower() for match in _YES_NO.findall(text)}
    return found.pop() if len(found) == 1 else None


def read_choice(text: str, choices: Sequence[str]) -> str | None:
    """The one choice that occurs as whole words, else None. Longer choices are looked for, and blanked out, first."""
    rest = " ".join(text.split())
    found: set[str] = set()
    for choice in sorted({*choices}, key=lambda item: (-len(item), item)):
        name = " ".join(choice.split())
        if not name:
            continue
        rest, count = re.subn(rf"(?<!\w){re.escape(name)}(?!\w)", "\n", rest, flags=re.IGNORECASE)
        if count:
            found.add(choice)
    return found.pop() if len(found) == 1 else None


def words(text: str) -> list[str]:
    """Normalised words: NFKC, lower case, no punctuation, no articles, number words as digits."""
    folded = unicodedata.normalize("NFKC", text).lower()
    folded = re.sub(r"(?<=\d),(?=\d)", "", folded)
    tokens = re.findall(r"\d+\.\d+|\w+", folded)
    return [_NUMBERS.get(token, token) for token in tokens if token not in _ARTICLES]


def recall(prediction: Sequence[str], answer: Sequence[str]) -> float:
    """Share of the answer's words that the prediction has; saying a word twice does not count twice."""
    have, want = Counter(prediction), Counter(answer)
    total = sum(want.values())
    return sum((have & want).values()) / total if total else 0.0


def _score_label(found: str | None, answer: str) -> Score:
    if found is None:
        return Score(0, parsed=False)
    return Score(int(_folded(found) == _folded(answer)), parsed=True)


def _score_free(text: str, answer: str) -> Score:
    said, right = words(text), words(answer)
    if not right:  # an answer of punctuation only: compare as it stands
        return Score(int(text.strip() == answer.strip()), parsed=bool(text.strip()), recall=0.0)
    share = recall(said, right)
    return Score(int(said == right or share == 1.0), parsed=bool(said), recall=share)


def _folded(text: str) -> str:
    return " ".join(text.split()).strip(" .!").casefold()
