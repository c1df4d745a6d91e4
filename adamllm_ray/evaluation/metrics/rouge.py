"""``rouge_l``: longest common subsequence of words (Recipe1M, NWPU-Captions).

Two different things go by that name. The published scoring uses the PyPI package ``rouge`` (pltrdy, last release in
2021): text is cut into sentences at every period, words are what stands between spaces (case and commas included), and
per pair of sentences the *distinct* words of one longest common subsequence go into one pool. ``rouge-score``
(Google, 2022) takes one subsequence of the whole texts, lower-case and without punctuation, repeated words included.
Both weigh precision and recall equally (beta 1). ``paper`` is the former, ``strict`` the latter without its stemmer.
Neither package is kept up, and the second brings NLTK along, so both are written out here; tests hold ``paper``
against figures of the package.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from adamllm_ray.evaluation.metrics.contract import UNREADABLE, Metric, Scorable, Score


def published_f(prediction: str, answer: str) -> float | None:
    """F of the package ``rouge``; None where it raises, because a text has no sentence at all.

    The package also fails on sentences of about a thousand words (it recurses once per word), which would score 0.
    """
    said, right = _sentences(prediction), _sentences(answer)
    if not said or not right:
        return None
    common: set[str] = set()
    for theirs in right:
        for ours in said:
            common |= _common_words(theirs, ours)
    precision = len(common) / len({word for sentence in said for word in sentence})
    recall = len(common) / len({word for sentence in right for word in sentence})
    return 2 * precision * recall / (precision + recall + 1e-8)


def _sentences(text: str) -> list[list[str]]:
    """Between periods; a part of spaces only is a sentence of one empty word."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _common_words(x: Sequence[str], y: Sequence[str]) -> set[str]:
    """Distinct words of one longest common subsequence: of several that which the package finds."""
    lengths = [[0] * (len(y) + 1)]
    for word in x:
        row, above = [0], lengths[-1]
        for j, other in enumerate(y):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
        lengths.append(row)
    found, i, j = set(), len(x), len(y)
    while i and j:
        if x[i - 1] == y[j - 1]:
            found.add(x[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found


def lcs_length(x: Sequence[str], y: Sequence[str]) -> int:
    """Length of a longest common subsequence, a machine word of cells at a time (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for at, word in enumerate(x):
        places[word] = places.get(word, 0) | 1 << at
    full = (1 << len(x)) - 1
    row = full  # a 0 bit: here the length grows by one
    for word in y:
        hits = row & places.get(word, 0)
        row = ((row + hits) | (row - hits)) & full
    return len(x) - row.bit_count()


def _paper(prediction: str, question: Scorable) -> Score:
    value = published_f(prediction, question.answer)
    return UNREADABLE if value is None else Score(value, parsed=True)


def _strict(prediction: str, question: Scorable) -> Score:
    said, right = (_words(text) for text in (prediction, question.answer))
    return Score(2 * lcs_length(said, right) / (len(said) + len(right)), parsed=True) if said else UNREADABLE


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower())


ROUGE_L = Metric(
    _paper,
    _strict,
    {
        "paper": "ROUGE-L F of the package 'rouge': sentences at periods, distinct words",
        "strict": "ROUGE-L F1 of the whole texts, lower-case words without punctuation",
    },
)
