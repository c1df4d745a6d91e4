"""Readings of a text that several metrics share."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

_CONCLUSION = re.compile(r"\banswer\s+is\b\s*:?", re.IGNORECASE)
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
    name: str(value)
    for value, name in enumerate("zero one two three four five six seven eight nine ten".split())  # noqa: SIM905
}


def conclusion(prediction: str) -> str:
    """The text after the last "answer is", or all of it."""
    ends = [match.end() for match in _CONCLUSION.finditer(prediction)]
    return prediction[ends[-1] :] if ends else prediction


def words(text: str) -> list[str]:
    """Normalised words: NFKC, lower case, no punctuation, no articles, number words and other digits as 0-9.

    What ends the text is no article ("hepatitis A", "A").
    """
    folded = "".join(_ascii_digit(c) for c in unicodedata.normalize("NFKC", text).lower())
    folded = re.sub(r"(?<=\d),(?=\d)", "", folded)
    tokens = re.findall(r"\d+\.\d+|\w+", folded)
    kept = [token for token in tokens[:-1] if token not in _ARTICLES] + tokens[-1:]
    return [_NUMBERS.get(token, token) for token in kept]


def _ascii_digit(character: str) -> str:
    return character if character.isascii() or not character.isdecimal() else str(unicodedata.decimal(character))


# The normalisation of the VQA-v2 evaluation, which the published scoring of medical questions uses.

_VQA_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_VQA_NUMBERS = {"none": "0", **_NUMBERS}
_VQA_PERIODS = 32  # the reference implementation passes a flag where the count belongs, and re.UNICODE is 32
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll "
    "somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's "
    "there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've "
    "weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've "
    "why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll "
    "you're you've"
)


def _one_apostrophe_less(word: str) -> list[str]:
    return [word[:at] + word[at + 1 :] for at, character in enumerate(word) if character == "'"]


_VQA_CONTRACTIONS = {short: word for word in _CONTRACTIONS.split() for short in _one_apostrophe_less(word)}
_VQA_CONTRACTIONS |= dict.fromkeys(_one_apostrophe_less("'ow's'at"), "'ow's'at")
_VQA_CONTRACTIONS["somebody'd"] = "somebodyd"  # the reference has this one the wrong way round


def vqa_normalised(text: str) -> str:
    """The text as VQA-v2 compares it.

    A punctuation mark is removed where the text has it beside a space anywhere, or has digit-comma-digit anywhere;
    else it becomes a space. Then: periods not before a digit go (the first 32 of them), lower case, none and zero..ten
    as digits, no articles, apostrophes into contractions. The colon and the apostrophe are not punctuation here.
    """
    grouped = re.search(r"\d,\d", text) is not None
    kept = text
    for mark in _VQA_PUNCTUATION:
        removed = grouped or f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if removed else " ")
    kept = re.sub(r"\.(?!\d)", "", kept, count=_VQA_PERIODS)
    tokens = [_VQA_NUMBERS.get(token, token) for token in kept.lower().split()]
    return " ".join(_VQA_CONTRACTIONS.get(token, token) for token in tokens if token not in _ARTICLES)


class Vocabulary:
    """Finds names as whole words, the longest first: where "north west" stands, "north" is not found as well.

    ``loose`` is for class names and foods: a hyphen or underscore is a space, and a name may carry a plural s.
    """

    def __init__(self, names: Sequence[str], *, loose: bool) -> None:
        self._loose = loose
        folded = [(self._fold(name), number) for number, name in enumerate(names)]
        ending = "(?:e?s)?" if loose else ""
        self._names = [
            (name, number, re.compile(rf"(?<!\w){re.escape(name)}{ending}(?!\w)"))
            for name, number in sorted(folded, key=lambda item: (-len(item[0]), item))
            if name
        ]
        self._numbers = dict(reversed(folded))

    def find(self, text: str) -> set[int]:
        """Positions of the names that occur; of two equal names the first."""
        rest, found = self._fold(text), set()
        for name, number, pattern in self._names:
            if name in rest:
                rest, count = pattern.subn("\n", rest)
                if count:
                    found.add(number)
        return found

    def opening(self, text: str) -> tuple[int, str] | None:
        """(position of the longest name that the text begins with, what follows it)."""
        folded = self._fold(text)
        for name, number, pattern in self._names:
            if folded.startswith(name) and (match := pattern.match(folded)):
                return number, folded[match.end() :]
        return None

    def position(self, name: str) -> int | None:
        """Of a name that is given alone, perhaps with a full stop."""
        return self._numbers.get(self._fold(name), self._numbers.get(self._fold(name).strip(" .!")))

    def _fold(self, text: str) -> str:
        folded = unicodedata.normalize("NFKC", text).casefold()
        return " ".join((re.sub(r"[-_]", " ", folded) if self._loose else folded).split())


@lru_cache(maxsize=64)
def _vocabulary(names: tuple[str, ...], loose: bool) -> Vocabulary:
    return Vocabulary(names, loose=loose)


def vocabulary(names: Sequence[str], *, loose: bool) -> Vocabulary:
    """A `Vocabulary`, made once for the many questions that share it."""
    return _vocabulary(tuple(names), loose)
