"""Mixture weights as independent numbers between 0 and 1, and back: what a searcher can work with.

    simplex = Simplex({"caption": (0, 1), "task": (0.2, 1), "replay:general": (0, 0.5)})
    simplex.weights([0.3, 0.8])              {"caption": ..., "task": ..., "replay:general": ...}, sum 1
    simplex.units({"caption": 0.2, ...})     [0.31, 0.77]

Weights that sum to one have one dimension less than there are sources, and bounds cut pieces off their simplex. The map
is Rosenblatt's (1952): the share of a source is the inverse of its distribution function, given the sources before it,
under the uniform distribution over all mixtures that the bounds allow. So uniform numbers give uniform mixtures
(without bounds: Dirichlet(1, ..., 1)), every mixture has its numbers, corners and edges included, and every number
gives a mixture. A softmax of one logit per source has none of the three: it does not reach the edges, it knows every
mixture infinitely often, and what is uniform in logits crowds in the middle or in the corners.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

DIGITS = 6  # of a weight: a mixture has one name, however it was computed
_STEPS = 60  # of the bisection: 2**-60 is below what a double can tell


class Simplex:
    """All mixtures within bounds.

    Args:
        bounds: (low, high) per source; the sums of the two are at most and at least 1.
    """

    def __init__(self, bounds: Mapping[str, tuple[float, float]]) -> None:
        self.names = list(bounds)
        self.low = np.array([low for low, _ in bounds.values()], float)
        self.cap = np.array([high - low for low, high in bounds.values()], float)
        self.room = max(0.0, 1.0 - float(self.low.sum()))  # what is shared out beyond the lower bounds
        free = [index for index, cap in enumerate(self.cap) if cap > 0]
        settled = self.room <= 0 or self.cap.sum() <= self.room
        self._free = [] if settled else free
        self._drops = [_subsets(self.cap[self._free[place + 1 :]]) for place in range(self.dimensions)]

    @property
    def dimensions(self) -> int:
        """How many numbers say a mixture."""
        return max(0, len(self._free) - 1)

    def weights(self, units: Sequence[float]) -> dict[str, float]:
        """The mixture of these numbers."""
        extra = np.zeros(len(self.cap)) if self._free else self._whole()
        left = self.room
        for place in range(self.dimensions):
            low, high = self._range(place, left)
            for _ in range(_STEPS if high > low else 0):
                middle = (low + high) / 2
                low, high = (middle, high) if self._below(place, left, middle) < units[place] else (low, middle)
            extra[self._free[place]] = (low + high) / 2
            left -= extra[self._free[place]]
        if self._free:
            extra[self._free[-1]] = left
        return self._named(self.low + extra)

    def units(self, weights: Mapping[str, float]) -> list[float]:
        """The numbers of a mixture within the bounds."""
        extra = np.array([weights[name] for name in self.names]) - self.low
        left, found = self.room, []
        for place in range(self.dimensions):
            low, high = self._range(place, left)
            own = min(max(float(extra[self._free[place]]), low), high)
            found.append(min(max(self._below(place, left, own), 0.0), 1.0))
            left -= own
        return found

    def corners(self) -> list[dict[str, float]]:
        """For each source the mixture with the most of it; what is left goes to the others by the room they have."""
        found = []
        for index, cap in enumerate(self.cap):
            extra = np.zeros(len(self.cap))
            extra[index] = min(cap, self.room)
            others = np.where(np.arange(len(self.cap)) == index, 0.0, self.cap)
            if others.sum() > 0:
                extra += others * (self.room - extra[index]) / others.sum()
            found.append(self._named(self.low + extra))
        return found

    def nearest(self, weights: Mapping[str, float]) -> dict[str, float]:
        """The mixture within the bounds that is nearest to these weights (absent ones are 0)."""
        wanted = np.array([weights.get(name, 0.0) for name in self.names])
        low, high = self.low - wanted, self.low + self.cap - wanted
        least, most = float(low.min()) - 1.0, float(high.max()) + 1.0
        for _ in range(2 * _STEPS):  # the shift by which clipped weights sum to one
            shift = (least + most) / 2
            total = np.clip(wanted + shift, self.low, self.low + self.cap).sum()
            least, most = (shift, most) if total < 1 else (least, shift)
        return self._named(np.clip(wanted + (least + most) / 2, self.low, self.low + self.cap))

    def _range(self, place: int, left: float) -> tuple[float, float]:
        after = float(self.cap[self._free[place + 1 :]].sum())
        return max(0.0, left - after), min(float(self.cap[self._free[place]]), left)

    def _below(self, place: int, left: float, share: float) -> float:
        """Probability that the source at ``place`` has at most ``share``, given what is left."""
        low, high = self._range(place, left)
        if high <= low:
            return 0.0
        signs, sums, count = self._drops[place]

        def volume(rest: float) -> float:
            return float((signs * np.maximum(rest - sums, 0.0) ** count).sum())

        least, most = volume(left - high), volume(left - low)
        return (most - volume(left - share)) / (most - least) if most > least else 0.0

    def _whole(self) -> NDArray[np.float64]:
        """The only mixture that the bounds allow."""
        return self.cap * (self.room / self.cap.sum()) if self.cap.sum() > 0 else np.zeros(len(self.cap))

    def _named(self, weights: NDArray[np.float64]) -> dict[str, float]:
        return {name: round(float(value), DIGITS) for name, value in zip(self.names, weights, strict=True)}


def _subsets(caps: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """(sign, sum) of every subset of the bounds: inclusion and exclusion, by which a cut simplex has its volume."""
    found = [
        ((-1.0) ** size, float(sum(chosen))) for size in range(len(caps) + 1) for chosen in combinations(caps, size)
    ]
    signs, sums = zip(*found, strict=True)
    return np.array(signs), np.array(sums), len(caps)
