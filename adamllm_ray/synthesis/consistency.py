"""The consistency filter: can the precise answer be inferred from the informative one?

A base language model reads question and both answers and completes ``Consistent:`` with one token out of
`` Yes`` / `` No`` / `` Open``. Generation is constrained to these three ids and their log-probabilities are kept, so
a threshold on P(Yes) can be chosen later without asking the model again. ``Open`` means that the question has no
single answer (descriptions, opinions, background knowledge).

Question and answers are model output, that is, data: newlines are folded and special tokens spelled out, so that no
text can leave its line of the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ModelError

LABELS = ("Yes", "No", "Open")

FEW_SHOT_HEADER = """\
A question about a picture was answered twice: once at length (informative) and once in as few words as possible \
(precise). You see only the texts. Say whether the precise answer follows from the informative answer.
Yes: whoever believes the informative answer must give this precise answer.
No: the informative answer leads to another precise answer, or leaves it undecided.
Open: the question has no single answer; it asks for a description, an opinion, a story or general knowledge.

Question: How many boats are tied to the pier?
Informative answer: Along the wooden pier there are three boats: a blue rowing boat and, behind it, two white sailing \
boats with their sails down.
Precise answer: 3
Consistent: Yes

Question: Which season is it?
Informative answer: The trees along the avenue are bare and there is frost on the parked cars, which points to winter.
Precise answer: Summer
Consistent: No

Question: What could the two people on the bench be talking about?
Informative answer: They lean towards each other and smile, so perhaps they remember a holiday or share some good news.
Precise answer: A holiday
Consistent: Open

Question: Is the shop open? Choose from: (A) yes (B) no
Informative answer: A board behind the glass door reads "back at 2 pm" and the lights inside are off, so the shop is \
shut at the moment the picture was taken.
Precise answer: (B)
Consistent: Yes

Question: What material is the bridge made of?
Informative answer: A narrow bridge with a handrail leads across the stream. Two hikers with rucksacks stand on it.
Precise answer: Stone
Consistent: No

Question: Describe the kitchen.
Informative answer: It is a narrow kitchen with green tiles, a gas cooker on the left and a window above the sink.
Precise answer: A narrow kitchen with green tiles.
Consistent: Open

"""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Probabilities over the three labels (they sum to 1) and what follows from them."""

    yes: float
    no: float
    open: float

    def verdict(self, threshold: float | None) -> Verdict:
        """Keep at P(Yes) >= threshold; with None, the paper's rule: when Yes is the most likely label.

        Otherwise the larger of the other two names the reason.
        """
        keep = self.yes > max(self.no, self.open) if threshold is None else self.yes >= threshold
        if keep:
            return Verdict.KEPT
        return Verdict.JUDGED_OPEN if self.open > self.no else Verdict.JUDGED_INCONSISTENT


def judge_prompt(tokenizer: Any, question: str, informative: str, precise: str, few_shot: bool) -> list[int]:
    """Token ids to complete: (BOS,) (six worked examples,) and the target block up to ``Consistent:``."""
    header = FEW_SHOT_HEADER if few_shot else ""
    target = (
        f"Question: {_one_line(question)}\nInformative answer: {_one_line(informative)}\n"
        f"Precise answer: {_one_line(precise)}\nConsistent:"
    )
    bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    return bos + list(tokenizer.encode(header + target, add_special_tokens=False, split_special_tokens=True))


def label_ids(tokenizer: Any) -> dict[str, int]:
    """First token of each label as it follows ``Consistent:``, keyed ``Yes`` / ``No`` / ``Open``.

    Raises:
        ModelError: two labels start with the same token, so one token cannot tell them apart.
    """
    ids = {label: int(tokenizer.encode(f" {label}", add_special_tokens=False)[0]) for label in LABELS}
    if len(set(ids.values())) != len(LABELS):
        raise ModelError(f"this judge's tokenizer does not tell {LABELS} apart by their first token ({ids})")
    return ids


def judgement(logprobs: Mapping[int, float], labels: Mapping[str, int]) -> Judgement:
    """Softmax over the three labels only; ``logprobs`` maps token id to natural log-probability.

    A label that is absent or has no finite value counts as probability 0. Raises ModelError when all three do.
    """
    scores = {label: score for label in LABELS if math.isfinite(score := logprobs.get(labels[label], -math.inf))}
    if not scores:
        raise ModelError("the judge gave none of the labels a probability")
    top = max(scores.values())
    weights = {label: math.exp(scores[label] - top) if label in scores else 0.0 for label in LABELS}
    total = sum(weights.values())
    return Judgement(*(weights[label] / total for label in LABELS))


def _one_line(text: str) -> str:
    """White space runs (newlines included) become single spaces."""
    return " ".join(text.split())
