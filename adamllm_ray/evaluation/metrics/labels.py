"""``yes_no`` (accuracy of closed questions) and ``category`` (scene classes and FloodNet's short answers)."""

from __future__ import annotations

import re
import unicodedata

from adamllm_ray.evaluation.metrics.contract import UNREADABLE, Metric, Scorable, Score
from adamllm_ray.evaluation.metrics.text import conclusion, vocabulary, vqa_normalised, words

_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def read_yes_no(text: str) -> str | None:
    """'yes' or 'no' if exactly one of the two words occurs (as often as it likes), else None."""
    found = {match.lower() for match in _YES_NO.findall(unicodedata.normalize("NFKC", text))}
    return found.pop() if len(found) == 1 else None


def asks_yes_no(question: Scorable) -> bool:
    """Whether the right answer is yes or no."""
    return words(question.answer) in (["yes"], ["no"])


def _paper_yes_no(prediction: str, question: Scorable) -> Score:
    """LLaVA-Med's rule: the letters "yes" or "no" must occur anywhere ("normal" has them), and the label too."""
    text, label = vqa_normalised(prediction.lower()), vqa_normalised(question.answer.lower())
    if "yes" not in text and "no" not in text:
        return UNREADABLE
    return Score(float(label in text), parsed=True)


def _strict_yes_no(prediction: str, question: Scorable) -> Score:
    """Yes or no as a word, and only one of the two. For another label ("MRI"): all of its words are there.

    In the latter case hedging ("CT or MRI") cannot be seen, because nothing says what the other options were.
    """
    text = conclusion(prediction)
    if asks_yes_no(question):
        found = read_yes_no(text)
        return UNREADABLE if found is None else Score(float([found] == words(question.answer)), parsed=True)
    return contains(text, question.answer)


def contains(text: str, answer: str) -> Score:
    """Right if the text is the answer, or has every word of it as often as the answer has."""
    said, right = words(text), words(answer)
    if not right:
        return as_it_stands(text, answer)
    enough = all(said.count(word) >= right.count(word) for word in set(right))
    return Score(float(enough), parsed=bool(said))


def as_it_stands(text: str, answer: str) -> Score:
    """For an answer without a word, such as "+"."""
    return Score(float(text.strip() == answer.strip()), parsed=bool(text.strip()))


def _paper_category(prediction: str, question: Scorable) -> Score:
    """Equal after the VQA-v2 normalisation.

    The paper refers to EarthGPT for remote sensing, and neither published code for it. The prompts ask for a word or
    phrase out of a list, and equality is what is usual for that (GeoChat does it). That this is the paper's rule is
    our guess: a model that answers in sentences scores 0 by it.
    """
    said, label = vqa_normalised(prediction), vqa_normalised(question.answer)
    return Score(float(said == label), parsed=True) if said else UNREADABLE


def _strict_category(prediction: str, question: Scorable) -> Score:
    """Exactly one class is named. Without classes: the one yes/no, the one number, or the very words of the answer."""
    text = conclusion(prediction)
    if question.choices:
        classes = vocabulary(question.choices, loose=True)
        found = classes.find(text)
        if len(found) != 1:
            return UNREADABLE
        return Score(float(found == {classes.position(question.answer)}), parsed=True)
    if asks_yes_no(question):
        return _strict_yes_no(prediction, question)
    said, right = words(text), words(question.answer)
    if not right:
        return as_it_stands(text, question.answer)
    if len(right) == 1 and right[0].isdecimal():
        numbers = {word for word in said if word.isdecimal()}
        return Score(float(numbers == {*right}), parsed=True) if len(numbers) == 1 else UNREADABLE
    return Score(float(said == right), parsed=True) if said else UNREADABLE


YES_NO = Metric(
    _paper_yes_no,
    _strict_yes_no,
    {
        "paper": "accuracy; 'yes'/'no' as letters anywhere, label as letters anywhere (LLaVA-Med)",
        "strict": "accuracy; yes or no as a word, not both",
    },
)
CATEGORY = Metric(
    _paper_category,
    _strict_category,
    {
        "paper": "accuracy; equal after VQA-v2 normalisation (our choice: the paper's rule is not public)",
        "strict": "accuracy; exactly one class is named",
    },
)
