"""Mixtures as numbers: every mixture has its numbers, uniform numbers give uniform mixtures, bounds hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamllm_ray.tuning.simplex import Simplex

UNIT = st.floats(0, 1, allow_nan=False)
BOUNDS = [
    {"a": (0.0, 1.0), "b": (0.0, 1.0)},
    {"a": (0.0, 1.0), "b": (0.0, 1.0), "c": (0.0, 1.0)},
    {"a": (0.1, 0.6), "b": (0.0, 0.7), "c": (0.05, 0.5)},
    {"a": (0.0, 0.4), "b": (0.2, 0.2), "c": (0.0, 1.0), "d": (0.1, 0.3)},
    dict.fromkeys("abcdefgh", (0.0, 1.0)),
]


@pytest.mark.parametrize("bounds", BOUNDS)
@given(units=st.lists(UNIT, min_size=7, max_size=7))
@settings(max_examples=60, deadline=None)
def test_numbers_become_a_mixture_within_bounds_and_come_back(bounds, units):
    simplex = Simplex(bounds)
    weights = simplex.weights(units[: simplex.dimensions])
    assert sum(weights.values()) == pytest.approx(1, abs=1e-5)
    for name, (low, high) in bounds.items():
        assert low - 1e-5 <= weights[name] <= high + 1e-5
    again = simplex.weights(simplex.units(weights))
    assert again == pytest.approx(weights, abs=3e-3), "a double has no more digits near a corner of many sources"


@pytest.mark.parametrize("bounds", BOUNDS[1:3])
def test_uniform_numbers_give_uniform_mixtures(bounds):
    """Against rejection from a Dirichlet: the same means and the same quartiles of every share."""
    simplex, rng = Simplex(bounds), np.random.default_rng(0)
    names = list(bounds)
    drawn = np.array([list(simplex.weights(row).values()) for row in rng.random((1500, simplex.dimensions))])
    flat = rng.dirichlet(np.ones(len(names)), 60_000)
    low, high = np.array(list(bounds.values())).T
    kept = flat[((flat >= low) & (flat <= high)).all(axis=1)]
    for quantile in (0.25, 0.5, 0.75):
        assert np.quantile(drawn, quantile, axis=0) == pytest.approx(np.quantile(kept, quantile, axis=0), abs=0.03)


def test_corners_are_reached_and_have_numbers():
    simplex = Simplex({"a": (0.0, 1.0), "b": (0.2, 1.0), "c": (0.0, 0.5)})
    corners = simplex.corners()
    assert [corner[name] for corner, name in zip(corners, "abc", strict=True)] == [0.8, 1.0, 0.5]
    for corner in corners:
        assert simplex.weights(simplex.units(corner)) == pytest.approx(corner, abs=1e-5)


def test_bounds_that_leave_one_mixture_have_no_numbers():
    simplex = Simplex({"a": (0.25, 1.0), "b": (0.75, 0.9)})
    assert simplex.dimensions == 0
    assert simplex.weights([]) == {"a": 0.25, "b": 0.75}
    assert simplex.units({"a": 0.25, "b": 0.75}) == []


def test_nearest_mixture_within_bounds():
    simplex = Simplex({"caption": (0.0, 1.0), "task": (0.0, 0.3), "replay:x": (0.1, 0.5)})
    assert simplex.nearest({"caption": 0.5, "task": 0.5}) == pytest.approx(
        {"caption": 0.6, "task": 0.3, "replay:x": 0.1}, abs=1e-5
    )
