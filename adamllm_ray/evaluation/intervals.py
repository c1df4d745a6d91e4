"""Scores -> 95 % intervals, and whether two models differ on the same questions.

The bootstrap is over questions: percentiles of the mean of n questions drawn with replacement. Scores take few
distinct values (0 and 1; -1, 0 and 1 for a difference), so one draw of n questions is one multinomial draw over
those values: the same distribution as drawing indices, in memory that does not grow with n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the ends of its 95 % interval, in the unit of the scores."""

    value: float
    lo: float
    hi: float


def mean_interval(values: ArrayLike, samples: int = 2000, seed: int = 0) -> Interval:
    """Mean of one group of scores (shape ``(n,)``, n >= 1) with its bootstrap percentile interval."""
    return average_interval([values], samples, seed)


def average_interval(groups: Sequence[ArrayLike], samples: int = 2000, seed: int = 0) -> Interval:
    """Unweighted average of the groups' means (the paper's average over columns), resampled within each group.

    For a paired difference pass ``adapted - base`` per question: resampling questions keeps the pairs together.

    Raises:
        ValueError: no group, or an empty one.
    """
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    if not arrays or any(array.size == 0 for array in arrays):
        raise ValueError("an interval needs at least one score in each group")
    rng = np.random.default_rng(seed)
    draws = np.mean([_resampled_means(array, samples, rng) for array in arrays], axis=0)
    lo, hi = np.percentile(draws, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Interval(float(np.mean([array.mean() for array in arrays])), float(lo), float(hi))


def wilson_interval(successes: int, total: int) -> Interval:
    """A share with its Wilson 95 % interval, which is honest for few rows and for shares near 0 and 1.

    Raises:
        ValueError: ``total`` is not above 0.
    """
    if total <= 0:
        raise ValueError("a share needs at least one row")
    z = 1.959963984540054  # the 97.5 % point of the normal distribution
    share = successes / total
    centre = share + z * z / (2 * total)
    half = z * np.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return Interval(share, max(0.0, float((centre - half) / scale)), min(1.0, float((centre + half) / scale)))


def mcnemar_exact(base: ArrayLike, adapted: ArrayLike) -> float:
    """Two-sided exact McNemar p of two 0/1 vectors over the same questions.

    Under "no difference" each question that exactly one model gets right is a fair coin.
    """
    first, second = np.asarray(base, dtype=bool), np.asarray(adapted, dtype=bool)
    if first.shape != second.shape:
        raise ValueError("the two models must be scored on the same questions")
    lost, won = int(np.sum(first & ~second)), int(np.sum(~first & second))
    total = lost + won
    term, tail = 1, 0  # exact integers: binomial coefficients of up to thousands of questions overflow floats
    for k in range(min(lost, won) + 1):
        tail += term
        term = term * (total - k) // (k + 1)
    return min(1.0, (2 * tail) / (1 << total))


def _resampled_means(values: NDArray[np.float64], samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Means of ``samples`` resamples, shape ``(samples,)``."""
    distinct, counts = np.unique(values, return_counts=True)
    drawn = rng.multinomial(values.size, counts / values.size, size=samples)
    means: NDArray[np.float64] = drawn @ distinct / values.size
    return means
