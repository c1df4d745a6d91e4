"""``choice`` (a letter or its option's text; PMC-VQA) and ``numbered_choice`` (a number or its name; Food101).

``choices`` are the options' texts in order; the answer is a letter or number, or the text of an option.

The published scoring uses the parser of MMMU: of what it finds the *last* counts, an English article "A" is option A,
and where it finds nothing it *draws* an answer, with the row's number as the seed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from random import Random
from string import ascii_uppercase

from adamllm_ray.evaluation.metrics.contract import UNREADABLE, Metric, Rule, Scorable, Score
from adamllm_ray.evaluation.metrics.text import Vocabulary, conclusion, vocabulary

LETTERS_WITHOUT_CHOICES = 4  # PMC-VQA's A to D
_TEXT_MIN_CHARS = 5
_STRIPPED = (",", ".", "!", "?", ";", ":", "'")

_CONCLUSION = re.compile(r"\banswer(?:\s+is\b\s*:?|\s*:)", re.IGNORECASE)
_WHOLE = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
_END = r"(?![\w'\u2019]|-\w)"  # of a letter that stands alone: not of "T-cell" or "B's"
_WORD = r"[ \t]+(?!(?:is|because|since|or)\b)[a-z]"
_NO_ARTICLE = rf"(?!(?<=[AI]){_WORD})"  # "A" and "I" before a word are words
_ARTICLE = re.compile(f"[AI]{_WORD}")
_DENIED = r"(?![\s\W_]*(?:is|was)\s+(?:not|wrong|incorrect|false)\b)"
_OPENING = re.compile(
    rf"[\W_]*(?P<named>(?i:(?:the\s+)?(?:[^\W_]+\s+)?(?:option|choice)(?:\s+is)?[\W_]*))?(?P<letter>[A-Z]){_END}{_DENIED}"
)
_NEXT = re.compile(r"[)\]*_ \t]*(?:[,/&]|or\b|and\b)[,/& \t]*(?:(?:or|and)\b[ \t]*)?[(\[*_]*[A-Z]" + _END + _NO_ARTICLE)
_WORD_NEXT = re.compile(r"[ \t]+(?!(?:is|because|since)\b)\w")
_ENDS = re.compile(r"\s*(?:[.,;!\n*]|$)")
_MARKED = re.compile(
    r"\(([A-Z])\)"
    r"|(?<![\w(])([A-Z])\)"
    rf"|\b(?i:option|choice)(?i:\s+is)?[\s:*_]*([A-Z]){_END}"
    rf"|\b(?i:answer)(?i:\s+is)?[\s:*_]*([A-Z]){_END}{_NO_ARTICLE}"
    r"|^[^\w\n]*([A-Z])[^\w\n]*$",
    re.MULTILINE,
)
_NUMBER = re.compile(r"(?<![\w.])\d{1,9}(?!\w|\.\d)")


def letters(choices: Sequence[str] | None) -> list[str]:
    """A, B, ... for the options, or A to D where they are not listed."""
    return list(ascii_uppercase[: len(choices or ()) or LETTERS_WITHOUT_CHOICES])


def numbers(choices: Sequence[str] | None) -> list[str]:
    """0, 1, ... for the options."""
    return [str(number) for number in range(len(choices or ()))]


def draw(labels: Sequence[str], row: str) -> int | None:
    """The answer that ``paper`` draws for an unreadable prediction: the same for the same row id in any order.

    Seeded with the number at the end of the id, as the published code seeds with the row's number. It equals that
    code's draw bit for bit where this number is the row's number there and the options are in the same order (20,000
    random rows compared); with other ids it is another fair draw.
    """
    number = re.search(r"[0-9]{1,18}$", row)
    return Random(int(number[0]) if number else row).randrange(len(labels)) if labels else None


def read_published(prediction: str, labels: Sequence[str], choices: Sequence[str]) -> int | None:
    """Position of the option that MMMU's parser reads, None where it would draw one.

    First "(A)", then " A ", then the options' texts in a prediction that is not short; of several the last one.
    """
    text = prediction
    for mark in _STRIPPED:  # one after the other, so "A,." keeps its comma
        text = text.strip(mark)
    text = f" {text} "
    for pattern in ("({})", " {} "):
        places = [text.rfind(pattern.format(label)) for label in labels]
        if any(place >= 0 for place in places):
            return places.index(max(places))
    if len(text) <= _TEXT_MIN_CHARS:
        return None
    places = [text.lower().rfind(choice.lower()) for choice in choices]
    return places.index(max(places)) if any(place >= 0 for place in places) else None


def _right(question: Scorable, labels: Sequence[str]) -> int | None:
    """Position of the right option. A label wins over a text: where option A reads "B", the answer "B" is option B."""
    answer = question.answer.strip()
    if answer in labels:
        return labels.index(answer)
    return vocabulary(question.choices or (), loose=False).position(answer)


def _published(name: str) -> Rule:
    labelled = {"letters": letters, "numbers": numbers}[name]

    def rule(prediction: str, question: Scorable) -> Score:
        labels = labelled(question.choices)
        found = read_published(prediction, labels, question.choices or ())
        said = draw(labels, question.id) if found is None else found
        right = said is not None and said == _right(question, labels)
        return Score(float(right), parsed=found is not None)

    return rule


def _strict_choice(prediction: str, question: Scorable) -> Score:
    """The letter that opens the conclusion; else letters that are marked as one, and texts, name exactly one option.

    A text of one character is not looked for: where option A reads "B", the answer "B" is option B.
    """
    text, labels = unicodedata.normalize("NFKC", prediction), letters(question.choices)
    ends = [match.end() for match in _CONCLUSION.finditer(text)]
    text = text[ends[-1] :] if ends else text
    if whole := _WHOLE.fullmatch(text):
        return _only({labels.index(letter) for letter in labels if letter == whole[1].upper()}, question, labels)
    texts = vocabulary([one if len(one.strip()) > 1 else "" for one in question.choices or ()], loose=False)
    found = _opening(text, labels, texts, concluded=bool(ends))
    if found is None:
        said = {next(filter(None, match.groups())) for match in _MARKED.finditer(text)}
        found = {labels.index(letter) for letter in said if letter in labels} | texts.find(text)
    return _only(found, question, labels)


def _opening(text: str, labels: Sequence[str], texts: Vocabulary, *, concluded: bool) -> set[int] | None:
    """The option whose letter opens the text, whatever is said of others after it; None where no letter opens it.

    Two of them for "B or C", and for "B: Heart" where heart is another option. An article is no letter, and neither is
    the head of a text ("C major"). Where nothing says that an answer comes, a letter and a word ("B cells") are words.
    """
    found = _OPENING.match(text)
    if not found or found["letter"] not in labels or texts.opening(text[found.start("letter") :]):
        return None
    letter, rest = labels.index(found["letter"]), text[found.end() :]
    if _NEXT.match(rest):
        return {*range(len(labels))}
    named = _named(rest.partition("\n")[0], texts)
    a_word = _ARTICLE.match(found["letter"] + rest) or (_WORD_NEXT.match(rest) and not concluded)
    if a_word and not found["named"] and named != letter:
        return None
    return {letter} if named is None else {letter, named}


def _named(rest: str, texts: Vocabulary) -> int | None:
    """The option whose whole text stands between a letter and the end of the clause: ") Heart"."""
    for start in range(min(len(rest), 8)):
        opening = texts.opening(rest[start:])
        if opening is not None:
            return opening[0] if _ENDS.match(opening[1]) else None
        if rest[start].isalnum():
            break
    return None


def _strict_number(prediction: str, question: Scorable) -> Score:
    """Numbers and names, taken together, name exactly one option."""
    text, labels = conclusion(prediction), numbers(question.choices)
    found = {int(number) for number in _NUMBER.findall(text) if int(number) < len(labels)}
    return _only(found | vocabulary(question.choices or (), loose=True).find(text), question, labels)


def _only(found: set[int], question: Scorable, labels: Sequence[str]) -> Score:
    return Score(float(found == {_right(question, labels)}), parsed=True) if len(found) == 1 else UNREADABLE


CHOICE = Metric(
    _published("letters"),
    _strict_choice,
    {
        "paper": "accuracy; MMMU's parser, a drawn answer where it reads nothing",
        "strict": "accuracy; the option whose letter opens the answer, else exactly one by marked letter or whole text",
    },
)
NUMBERED_CHOICE = Metric(
    _published("numbers"),
    _strict_number,
    {
        "paper": "accuracy; MMMU's parser on numbers, a drawn answer where it reads nothing",
        "strict": "accuracy; exactly one option by its number or name",
    },
)
