"""How far the judge can be believed: its probability against labels, its verdict against a plain rule.

The Brier score is the mean squared distance of P(Yes) from what the label says (0 is perfect; a judge that always says
the base rate has ``brier_of_base_rate``). The reliability curve says, of the tasks with about this P(Yes), how many
are right. A label of the pocket domain says that both answers are *true*, which is more than that they agree: two
equally wrong answers agree.
"""

from __future__ import annotations

import math
from typing import Any

from adamllm_ray.quality.questions import words_of

BINS = 10
MOST_WORDS = 8  # of a precise answer that the rule speaks of
_NUMBERS = dict(zip("zero one two three four five six seven eight nine ten".split(), map(str, range(11)), strict=True))  # noqa: SIM905
_ARTICLES = frozenset(("a", "an", "the"))
_NOT_LITERAL = frozenset(("yes", "no", "none", "true", "false"))


class Calibration:
    """Pairs of P(Yes) and a label, as counts per bin; memory does not grow."""

    def __init__(self) -> None:
        self._n = [0] * BINS
        self._right = [0] * BINS
        self._sum = [0.0] * BINS
        self._squares = 0.0

    def add(self, probability: float, right: bool) -> None:
        """One labelled task."""
        index = min(int(probability * BINS), BINS - 1)
        self._n[index] += 1
        self._right[index] += right
        self._sum[index] += probability
        self._squares += (probability - right) ** 2

    def result(self) -> dict[str, Any] | None:
        """{n, base_rate, brier, brier_of_base_rate, error, bins}; ``error`` is the expected calibration error.

        Each bin is {lo, hi, n, probability, right, right_lo, right_hi}: means, and a 95 % Wilson interval. None when
        nothing was labelled.
        """
        n = sum(self._n)
        if not n:
            return None
        base = sum(self._right) / n
        bins = [self._bin(index) for index in range(BINS) if self._n[index]]
        return {
            "n": n,
            "base_rate": base,
            "brier": self._squares / n,
            "brier_of_base_rate": base * (1 - base),
            "error": sum(cell["n"] * abs(cell["probability"] - cell["right"]) for cell in bins) / n,
            "bins": bins,
        }

    def _bin(self, index: int) -> dict[str, Any]:
        n, right = self._n[index], self._right[index]
        lo, hi = wilson(right, n)
        cell = {"lo": index / BINS, "hi": (index + 1) / BINS, "n": n, "probability": self._sum[index] / n}
        return cell | {"right": right / n, "right_lo": lo, "right_hi": hi}


class Agreement:
    """Judge and rule on the same tasks: a 2 x 2 table."""

    def __init__(self) -> None:
        self._table = {(judge, rule): 0 for judge in (True, False) for rule in (True, False)}
        self.abstained = 0

    def add(self, kept: bool, rule: bool | None) -> None:
        """One judged task; ``rule`` None where the rule does not speak."""
        if rule is None:
            self.abstained += 1
        else:
            self._table[kept, rule] += 1

    def result(self) -> dict[str, Any] | None:
        """{n, abstained, both, judge_only, rule_only, neither, agreement, kappa}; None when the rule never spoke."""
        both, judge, rule, neither = (
            self._table[key] for key in ((True, True), (True, False), (False, True), (False, False))
        )
        n = both + judge + rule + neither
        if not n:
            return None
        agreement = (both + neither) / n
        chance = ((both + judge) * (both + rule) + (rule + neither) * (judge + neither)) / n**2
        kappa = None if chance == 1 else (agreement - chance) / (1 - chance)
        counts = {"both": both, "judge_only": judge, "rule_only": rule, "neither": neither}
        return {"n": n, "abstained": self.abstained, **counts, "agreement": agreement, "kappa": kappa}


def follows_literally(informative: str, precise: str) -> bool | None:
    """The rule: the precise answer's words stand, in order, in the informative one.

    None for answers that are not expected to be quoted: yes and no, and those of more than 8 words.
    """
    wanted, said = _plain(precise), _plain(informative)
    if not wanted or len(wanted) > MOST_WORDS or (len(wanted) == 1 and wanted[0] in _NOT_LITERAL):
        return None
    return any(said[start : start + len(wanted)] == wanted for start in range(len(said) - len(wanted) + 1))


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927), sound for small n and for shares of 0 and 1."""
    if not n:
        return 0.0, 1.0
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def _plain(text: str) -> list[str]:
    return [_NUMBERS.get(word, word) for word in words_of(text) if word not in _ARTICLES]
