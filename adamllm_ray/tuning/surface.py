"""Finished trials -> the whole surface: where it is highest, how sure that is, and which dimension matters.

    found = surface(space, [(parameters, score), ...], seed=0)

A Gaussian process (scikit-learn: Matern 5/2, a length per dimension, noise) is fitted to shares and scaled fields. The
interval of the best mixture comes from draws of the whole surface: each draw has its own maximum, and where 95 % of
these maxima lie is what the trials allow. The importance of a dimension is the share of the surface's variance that it
explains alone (correlation ratio; shares depend on each other, so these need not sum to one).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamllm_ray.tuning.space import Parameters, Space

LEAST_TRIALS = 4
CANDIDATES, DRAWN, DRAWS = 1500, 400, 400
BINS = 12
RESOLUTION = {2: 40, 3: 14}  # steps per side of the picture
MIDDLE = (2.5, 97.5)  # percentiles

Scored = Sequence[tuple[Parameters, float]]
Array = NDArray[np.float64]


def surface(space: Space, trials: Scored, seed: int = 0) -> dict[str, Any] | None:
    """The fitted surface as plain data, None for too few trials.

    ``best`` {weights, fields, score, lo, hi}; ``interval`` {column: [lo, hi]}; ``importance`` {column: 0..1};
    ``agreement``: rank correlation of scores and their predictions from the other trials; ``grid``: points of the
    picture (2 or 3 sources) with the other fields at their best.
    """
    if len(trials) < LEAST_TRIALS:
        return None
    x = np.array([space.encoded(parameters) for parameters, _ in trials])
    y = np.array([score for _, score in trials])
    process = _fitted(x, y)
    candidates = [*(parameters for parameters, _ in trials), *space.uniform(CANDIDATES, seed)]
    coded = np.array([space.encoded(one) for one in candidates])
    mean, spread = process.predict(coded, return_std=True)
    top = int(mean.argmax())
    return {
        "best": _at(candidates[top], mean[top], spread[top]),
        "interval": _interval(space, process, coded[_drawn(mean, len(trials))], seed),
        "importance": dict(zip(space.columns, _importance(coded, mean), strict=True)),
        "agreement": agreement(y, _left_out(process, x, y)),
        "grid": _grid(space, process, candidates[top]),
    }


def agreement(first: Sequence[float] | Array, second: Sequence[float] | Array) -> float | None:
    """Spearman's rank correlation; None where one of the two does not vary."""
    from scipy.stats import spearmanr

    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)


def _fitted(x: Array, y: Array) -> Any:
    """A process whose predictions are of the surface itself: the noise of a single trial is in none of them."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    smooth = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(np.full(x.shape[1], 0.5), (0.1, 10.0), nu=2.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        noisy = GaussianProcessRegressor(
            smooth + WhiteKernel(0.05, (1e-4, 1.0)), normalize_y=True, n_restarts_optimizer=2, random_state=0
        ).fit(x, y)
    noise = noisy.kernel_.k2.noise_level
    return GaussianProcessRegressor(noisy.kernel_.k1, alpha=noise, optimizer=None, normalize_y=True).fit(x, y)


def _at(parameters: Parameters, mean: float, spread: float) -> dict[str, Any]:
    near = {"score": float(mean), "lo": float(mean - 1.96 * spread), "hi": float(mean + 1.96 * spread)}
    return parameters.to_dict() | near


def _drawn(mean: Array, tried: int) -> Array:
    """Candidates to draw at: all that were tried, and the most promising of the others."""
    order = tried + np.argsort(-mean[tried:], kind="stable")[:DRAWN]
    return np.concatenate([np.arange(tried), order])


def _interval(space: Space, process: Any, coded: Array, seed: int) -> dict[str, list[float]]:
    draws = process.sample_y(coded, DRAWS, random_state=seed)
    tops = coded[draws.argmax(axis=0)]
    low, high = np.percentile(tops, MIDDLE, axis=0)
    return {name: [float(low[at]), float(high[at])] for at, name in enumerate(space.columns)}


def _importance(coded: Array, mean: Array) -> list[float]:
    """Variance between bins of a column, as a share of the whole variance."""
    total, found = float(mean.var()), []
    for column in coded.T:
        edges = np.unique(np.quantile(column, np.linspace(0, 1, BINS + 1)[1:-1]))
        bins = np.searchsorted(edges, column, side="right")
        count = np.bincount(bins)
        means = np.bincount(bins, weights=mean)[count > 0] / count[count > 0]
        between = float((count[count > 0] * (means - mean.mean()) ** 2).sum() / len(mean))
        found.append(between / total if total > 0 else 0.0)
    return found


def _left_out(process: Any, x: Array, y: Array) -> Array:
    """Each trial as predicted by the others, the kernel as fitted to all (Rasmussen and Williams, 5.12)."""
    inverse = np.linalg.inv(process.kernel_(x) + process.alpha * np.eye(len(x)))
    scaled = (y - y.mean()) / (y.std() or 1.0)
    left: Array = y.mean() + (y.std() or 1.0) * (scaled - (inverse @ scaled) / np.diag(inverse))
    return left


def _grid(space: Space, process: Any, best: Parameters) -> list[dict[str, Any]]:
    """Mixtures on an even grid that the bounds allow, with predictions."""
    names = space.simplex.names if space.simplex else []
    steps = RESOLUTION.get(len(names))
    if steps is None or space.simplex is None:
        return []
    points = [Parameters(dict(zip(names, row, strict=True)), best.fields) for row in _lattice(len(names), steps)]
    inside = [point for point in points if space.point(point) is not None]
    if not inside:
        return []
    mean, spread = process.predict(np.array([space.encoded(point) for point in inside]), return_std=True)
    return [_at(point, *at) for point, *at in zip(inside, mean, spread, strict=True)]


def _lattice(sides: int, steps: int) -> list[list[float]]:
    """All ways to cut one into ``sides`` multiples of 1/steps."""
    if sides == 1:
        return [[1.0]]
    rows = []
    for first in range(steps + 1):
        rest = steps - first
        lower = [[0.0] * (sides - 1)] if rest == 0 else _lattice(sides - 1, rest)
        rows += [[first / steps, *(part * rest / steps for part in row)] for row in lower]
    return rows
