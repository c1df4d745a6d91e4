"""Scores -> 95 % intervals, and whether two models differ on the same questions.

What is used where, and why (coverages: 1,500 simulated test sets each; tests/evaluation/test_intervals.py repeats it):

* **0/1 scores**: Wilson's interval. The percentile bootstrap misses a share near 0 or 1 far too often, and says
  "no uncertainty" where all of a few answers are right.
* **graded scores** (recall, F1, ROUGE-L; means over seeds): symmetric bootstrap-t. Questions are drawn with
  replacement, and each resample's deviation is divided by its own standard error. For n = 30 the percentile bootstrap
  covers 85 to 94 %, BCa 88 to 95 %, Student's t 85 to 95 %; this one 95 to 98 %.
* **0/1 differences**: Bonett and Price's interval, and the exact McNemar test.
* **graded differences**: the same bootstrap-t over questions, their pairs kept together; the p value is read off the
  same resamples as the interval, so the two agree.
* **nearly constant**: where over half of the scores are the same and at most 30 others, resamples often hold too few of
  the others, or none, and say nothing about those that may come. Two questions more, as far off as a score can be, then
  count in every standard error, as Bonett and Price have it, and an interval has 1.96 of these at least.
* **averages over tasks** (unweighted, as in the paper): scores combine the tasks' own intervals (MOVER, Zou and Donner
  2008); differences are bootstrapped, questions being drawn within each task.
* **seeds**: several runs of one arm give, per question, the mean of their scores (`pooled`), and then questions are
  resampled as before. The interval is about other questions for these runs; how far runs of one arm lie apart is
  another thing and shown beside it.

Scores take few distinct values, so one draw of n questions is one multinomial draw over those values: the same
distribution as drawing indices, in memory that does not grow with n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
ALPHA = 0.05  # a difference is told where p is below this
Array = NDArray[np.float64]
Test = Literal["exact McNemar", "paired bootstrap", "sign test"]

_Z = 1.959963984540054  # the 97.5 % point of the normal distribution
_FEW = 30  # with more than so many other scores, a group is not nearly constant
_TINY = 1e-12  # below this a variance or a deviation is rounding


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the ends of its 95 % interval, in the unit of the scores."""

    value: float
    lo: float
    hi: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Second minus first model on the same questions, with its interval and two-sided p value."""

    value: float
    lo: float
    hi: float
    p: float
    test: Test


def mean_interval(values: ArrayLike, samples: int = 2000, seed: int = 0) -> Interval:
    """Mean of one group of scores in 0..1 (shape ``(n,)``, n >= 1) with its interval.

    Raises:
        ValueError: there is no score, or one is outside 0..1.
    """
    scores = _checked(values, -_TINY, 1 + _TINY)
    if _binary(scores):
        return wilson_interval(int(scores.sum()), scores.size)
    return _interval(_Resampled([scores], samples, seed, (0.0, 1.0)))


def average_interval(groups: Sequence[ArrayLike], samples: int = 2000, seed: int = 0) -> Interval:
    """Unweighted average of the groups' means, as in the paper's tables.

    Raises:
        ValueError: no group, or an empty one.
    """
    if not groups:
        raise ValueError("an average needs at least one group")
    parts = [mean_interval(group, samples, seed) for group in groups]
    value = float(np.mean([part.value for part in parts]))
    below = np.sqrt(sum((part.value - part.lo) ** 2 for part in parts)) / len(parts)
    above = np.sqrt(sum((part.hi - part.value) ** 2 for part in parts)) / len(parts)
    return Interval(value, float(value - below), float(value + above))


def paired_difference(first: ArrayLike, second: ArrayLike, samples: int = 2000, seed: int = 0) -> Difference:
    """How much better the second model is; both scored on the same questions in the same order.

    Raises:
        ValueError: not the same number of scores, none at all, or one outside 0..1.
    """
    before, after = _pair(first, second)
    if _binary(before) and _binary(after):
        return _binary_difference(before, after)
    return _difference([after - before], samples, seed)


def average_difference(pairs: Sequence[tuple[ArrayLike, ArrayLike]], samples: int = 2000, seed: int = 0) -> Difference:
    """Unweighted average over groups of how much better the second model is; questions are drawn within each group.

    Raises:
        ValueError: no group, or one that `paired_difference` refuses.
    """
    if len(pairs) == 1:
        return paired_difference(*pairs[0], samples, seed)
    gains = [after - before for before, after in (_pair(*pair) for pair in pairs)]
    return _difference(gains, samples, seed)


def pooled(runs: Sequence[ArrayLike]) -> Array:
    """Scores of several runs of one arm on the same questions -> per question their mean, shape ``(n,)``.

    Raises:
        ValueError: no run, or not all with the same number of scores.
    """
    arrays = [np.asarray(run, dtype=np.float64) for run in runs]
    if not arrays or len({array.shape for array in arrays}) != 1:
        raise ValueError("runs of one arm must be scored on the same questions")
    mean: Array = np.mean(arrays, axis=0)
    return mean


def wilson_interval(successes: int, total: int) -> Interval:
    """A share with its Wilson 95 % interval, which is honest for few rows and for shares near 0 and 1.

    Raises:
        ValueError: ``total`` is not above 0.
    """
    if total <= 0:
        raise ValueError("a share needs at least one row")
    share = successes / total
    centre = share + _Z * _Z / (2 * total)
    half = _Z * np.sqrt(share * (1 - share) / total + _Z * _Z / (4 * total * total))
    scale = 1 + _Z * _Z / total
    lo, hi = max(0.0, float((centre - half) / scale)), min(1.0, float((centre + half) / scale))
    return Interval(share, 0.0 if successes == 0 else lo, 1.0 if successes == total else hi)


def mcnemar_exact(base: ArrayLike, adapted: ArrayLike) -> float:
    """Two-sided exact McNemar p of two 0/1 vectors over the same questions.

    Under "no difference" each question that exactly one model gets right is a fair coin.
    """
    first, second = np.asarray(base, dtype=bool), np.asarray(adapted, dtype=bool)
    if first.shape != second.shape:
        raise ValueError("the two models must be scored on the same questions")
    return _coin_p(int(np.sum(first & ~second)), int(np.sum(~first & second)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values of several tests, adjusted so that one false alarm among all of them has the nominal rate (Holm)."""
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted


def verdict(found: Difference, n: int, first: str = "A", second: str = "B") -> str:
    """One sentence: which model is better, by how much, at what certainty; or that this cannot be told.

    The p value decides, at 5 %. Points are hundredths of the score.
    """
    interval = f"95 % interval {100 * found.lo:+.1f} to {100 * found.hi:+.1f}"
    evidence = f"{interval}, {p_words(found.p)}, {n} questions"
    if found.p >= ALPHA:
        return f"No difference can be told: {second} - {first} is {100 * found.value:+.1f} points ({evidence})."
    better, worse = (second, first) if found.value > 0 else (first, second)
    return f"{better} is better than {worse} by {100 * abs(found.value):.1f} points ({second} - {first}: {evidence})."


def p_words(p: float | None) -> str:
    """'p < 0.001' or 'p = 0.023'; nothing where there is none."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _checked(values: ArrayLike, low: float, high: float) -> Array:
    scores = np.asarray(values, dtype=np.float64)
    if scores.size == 0:
        raise ValueError("an interval needs at least one score in each group")
    if not bool(np.all((scores >= low) & (scores <= high))):
        raise ValueError("a score must lie in 0..1; for a difference of two models use paired_difference")
    return scores


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[Array, Array]:
    before, after = (_checked(values, -_TINY, 1 + _TINY) for values in (first, second))
    if before.shape != after.shape:
        raise ValueError("the two models must be scored on the same questions")
    return before, after


def _binary(scores: Array) -> bool:
    return bool(np.all((scores == 0) | (scores == 1)))


def _binary_difference(before: Array, after: Array) -> Difference:
    """Bonett and Price (2012): Wald's interval with one question added to each kind of disagreement."""
    n, lost, won = before.size, int(np.sum(before > after)), int(np.sum(after > before))
    down, up = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    half = _Z * float(np.sqrt((down + up - (up - down) ** 2) / (n + 2)))
    lo, hi = max(-1.0, up - down - half), min(1.0, up - down + half)
    return Difference((won - lost) / n, lo, hi, _coin_p(lost, won), "exact McNemar")


def _coin_p(lost: int, won: int) -> float:
    total = lost + won
    term, tail = 1, 0  # exact integers: binomial coefficients of up to thousands of questions overflow floats
    for k in range(min(lost, won) + 1):
        tail += term
        term = term * (total - k) // (k + 1)
    return min(1.0, (2 * tail) / (1 << total))


class _Resampled:
    """Mean over groups, its standard error, and how many standard errors of their own the resamples lie off it.

    ``least`` is how many of them an interval reaches at any rate: as for the normal distribution where a group is
    nearly constant, since its resamples differ less than other questions might.
    """

    def __init__(self, groups: Sequence[Array], samples: int, seed: int, ends: tuple[float, float]) -> None:
        rng = np.random.default_rng(seed)
        count, self.ends = len(groups), ends
        unseen = [_unseen(group, *ends) for group in groups]
        squares = sum(_squared_error(one.var(), one.size, more) for one, more in zip(groups, unseen, strict=True))
        self.value = float(np.mean([group.mean() for group in groups]))
        self.error = float(np.sqrt(squares)) / count
        self.least = _Z if any(unseen) else 0.0
        means, variances = np.zeros(samples), np.zeros(samples)
        for group, more in zip(groups, unseen, strict=True):
            mean, variance = _draws(group, samples, rng)
            means, variances = means + mean / count, variances + _squared_error(variance, group.size, more) / count**2
        off = np.abs(means - self.value)
        flat = variances < _TINY**2  # all questions of the resample score the same: off by nothing, or without measure
        self.off = np.where(flat, np.where(off < _TINY, 0.0, np.inf), off / np.sqrt(np.where(flat, 1.0, variances)))


def _unseen(values: Array, low: float, high: float) -> float:
    """How far off the most common score another could be, if over half of the scores are that one; else 0."""
    distinct, counts = np.unique(values, return_counts=True)
    others, usual = int(values.size - counts.max()), float(distinct[counts.argmax()])
    return max(high - usual, usual - low) if others <= _FEW and 2 * others < values.size else 0.0


def _squared_error(variance: Any, n: int, unseen: float) -> Any:
    """Of the mean of n scores with this variance; with two scores more that are ``unseen`` off, if that is above 0."""
    return (n * variance + 2 * unseen**2) / (n + 2) ** 2 if unseen else variance / n


def _draws(values: Array, samples: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Means and variances of ``samples`` resamples, shape ``(samples,)`` each."""
    distinct, counts = np.unique(values, return_counts=True)
    weights = rng.multinomial(values.size, counts / values.size, size=samples) / values.size
    means = weights @ distinct
    return means, np.maximum(weights @ (distinct * distinct) - means * means, 0.0)


def _interval(found: _Resampled) -> Interval:
    """Within the ends that no mean can leave."""
    half = max(found.least, float(np.quantile(found.off, LEVEL, method="higher"))) * found.error
    low, high = found.ends
    return Interval(found.value, max(low, found.value - half), min(high, found.value + half))


def _difference(gains: Sequence[Array], samples: int, seed: int) -> Difference:
    found = _Resampled(gains, samples, seed, (-1.0, 1.0))
    interval = _interval(found)
    if all(np.ptp(gain) < _TINY for gain in gains):  # questions of a group changed alike: a sign test is what is left
        moved = 0 if abs(found.value) < _TINY else sum(gain.size for gain in gains)
        return Difference(interval.value, interval.lo, interval.hi, _coin_p(0, moved), "sign test")
    reached = abs(found.value) / found.error
    p = (1 + int(np.sum(found.off >= reached - _TINY))) / (samples + 1)
    if found.least:  # p is no smaller than the normal one, as the interval is no narrower
        p = max(p, math.erfc(reached / math.sqrt(2)))
    return Difference(interval.value, interval.lo, interval.hi, p, "paired bootstrap")
