"""``recall`` (bag of words, open questions), ``exact``, and ``auto``, which picks a rule by what the question is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from adamllm_ray.evaluation.metrics import labels, options
from adamllm_ray.evaluation.metrics.contract import UNREADABLE, Metric, Scorable, Score
from adamllm_ray.evaluation.metrics.text import conclusion, vocabulary, vqa_normalised, words


def recall(prediction: Sequence[str], answer: Sequence[str]) -> float:
    """Share of the answer's words that the prediction has; saying a word twice does not count twice."""
    have, want = Counter(prediction), Counter(answer)
    total = sum(want.values())
    return sum((have & want).values()) / total if total else 0.0


def _paper_recall(prediction: str, question: Scorable) -> Score:
    """LLaVA-Med's rule: a common word counts as often as the *prediction* has it, a missed one as often as the answer.

    So repeating a right word raises the score. Both sides are normalised twice, as there.
    """
    said, want = (Counter(vqa_normalised(vqa_normalised(one)).split()) for one in (prediction, question.answer))
    hits = sum(count for word, count in said.items() if word in want)
    missed = sum(count for word, count in want.items() if word not in said)
    return Score(hits / (hits + missed) if hits else 0.0, parsed=bool(said))


def _strict_recall(prediction: str, question: Scorable) -> Score:
    said, right = words(conclusion(prediction)), words(question.answer)
    if not right:
        return labels.as_it_stands(conclusion(prediction), question.answer)
    return Score(recall(said, right), parsed=True) if said else UNREADABLE


def _paper_exact(prediction: str, question: Scorable) -> Score:
    said = vqa_normalised(prediction)
    return Score(float(said == vqa_normalised(question.answer)), parsed=True) if said else UNREADABLE


def _strict_exact(prediction: str, question: Scorable) -> Score:
    said, right = words(conclusion(prediction)), words(question.answer)
    if not right:
        return labels.as_it_stands(conclusion(prediction), question.answer)
    return Score(float(said == right), parsed=True) if said else UNREADABLE


def _paper_auto(prediction: str, question: Scorable) -> Score:
    """The published rule for the kind of question: closed, with choices, open."""
    if question.kind == "closed" and labels.asks_yes_no(question):
        return labels.YES_NO.paper(prediction, question)
    if question.choices:
        return options.CHOICE.paper(prediction, question)
    return (labels.YES_NO if question.kind == "closed" else RECALL).paper(prediction, question)


def _strict_auto(prediction: str, question: Scorable) -> Score:
    """Exactly one of the choices; else yes or no; else all words of the answer."""
    text = conclusion(prediction)
    if question.choices:
        return _one_choice(text, question)
    if question.kind == "closed" and labels.asks_yes_no(question):
        return labels.YES_NO.strict(prediction, question)
    return labels.contains(text, question.answer)


def _one_choice(text: str, question: Scorable) -> Score:
    choices = vocabulary(question.choices or (), loose=False)
    found = choices.find(text)
    if len(found) != 1:
        return UNREADABLE
    return Score(float(found == {choices.position(question.answer)}), parsed=True)


RECALL = Metric(
    _paper_recall,
    _strict_recall,
    {
        "paper": "recall of the answer's words; a repeated word counts each time (LLaVA-Med)",
        "strict": "recall of the answer's words; a word counts once",
    },
)
EXACT = Metric(
    _paper_exact,
    _strict_exact,
    {"paper": "equal after VQA-v2 normalisation", "strict": "the same words as the answer, in order"},
)
AUTO = Metric(
    _paper_auto,
    _strict_auto,
    {
        "paper": "by kind: yes_no, choice or recall, as published",
        "strict": "right or wrong: one choice, yes or no as a word, or every word of the answer",
    },
)
