"""The fitted surface: top, interval, importance and grid of one that is known."""

from __future__ import annotations

import numpy as np
import pytest

from adamllm_ray.config import TuningSection
from adamllm_ray.tuning.space import Space
from adamllm_ray.tuning.surface import agreement, surface

SPACE = Space.of(
    TuningSection.model_validate(
        {
            "sources": {"caption": {}, "task": {}, "replay:x": {"high": 0.9}},
            "fields": {"training.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}},
        }
    )
)


def height(parameters):
    return 0.5 - (parameters.weights["task"] - 0.6) ** 2 - 0.3 * (parameters.weights["caption"] - 0.3) ** 2


@pytest.fixture(scope="module")
def found():
    rng = np.random.default_rng(0)
    return surface(SPACE, [(one, height(one) + rng.normal(0, 0.005)) for one in SPACE.uniform(30, seed=1)])


def test_top_is_found_and_within_its_interval(found):
    assert found["best"]["weights"]["task"] == pytest.approx(0.6, abs=0.1)
    low, high = found["interval"]["task"]
    assert low <= 0.6 <= high
    assert high - low < 0.5
    assert found["best"]["lo"] <= 0.5 <= found["best"]["hi"]
    assert found["agreement"] > 0.9


def test_what_matters_is_told_from_what_does_not(found):
    importance = found["importance"]
    assert set(importance) == {"caption", "task", "replay:x", "training.learning_rate"}
    assert importance["task"] == max(importance.values())
    assert importance["training.learning_rate"] < 0.05


def test_interval_of_what_does_not_matter_is_wide(found):
    low, high = found["interval"]["training.learning_rate"]
    assert high - low > 0.5


def test_grid_is_within_the_bounds(found):
    assert len(found["grid"]) > 80
    assert all(point["weights"]["replay:x"] <= 0.9 + 1e-9 for point in found["grid"])
    assert all(sum(point["weights"].values()) == pytest.approx(1) for point in found["grid"])


def test_few_trials_give_no_surface():
    assert surface(SPACE, [(one, 0.5) for one in SPACE.uniform(3, seed=1)]) is None


def test_trials_that_are_all_alike_give_a_flat_one():
    flat = surface(SPACE, [(one, 0.5) for one in SPACE.uniform(6, seed=1)])
    assert flat["best"]["score"] == pytest.approx(0.5, abs=0.01)
    assert flat["agreement"] is None


def test_agreement_is_of_ranks():
    assert agreement([1, 2, 3, 4], [10, 20, 25, 1000]) == pytest.approx(1)
    assert agreement([1, 2], [1, 2]) is None
