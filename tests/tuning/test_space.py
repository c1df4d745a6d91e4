"""Points and parameters: there and back, the fixed start, names of trials."""

from __future__ import annotations

import pytest

from adamllm_ray.config import TuningSection
from adamllm_ray.tuning.space import Parameters, Space

LEARNING_RATE, EPOCHS, ORDER = "training.learning_rate", "training.epochs", "training.schedule"
FIELDS = {
    LEARNING_RATE: {"low": 1e-5, "high": 1e-3, "log": True},
    EPOCHS: {"low": 1, "high": 4, "integer": True},
    ORDER: {"values": ["cosine", "linear"]},
}
CONFIGURED = {LEARNING_RATE: 2e-5, EPOCHS: 9, ORDER: "cosine"}


def section(**given):
    return TuningSection.model_validate({"fields": FIELDS} | given)


def test_there_and_back():
    space = Space.of(section())
    for parameters in space.uniform(40, seed=1):
        point = space.point(parameters)
        assert set(point) == set(space.names) == set(space.distributions())
        again = space.parameters(point)
        assert again.weights == pytest.approx(parameters.weights, abs=1e-5)
        assert again.fields == parameters.fields
        assert 1 <= parameters.fields[EPOCHS] <= 4
        assert len(space.encoded(parameters)) == len(space.columns) == 6
        assert all(-1e-9 <= value <= 1 + 1e-9 for value in space.encoded(parameters))


@pytest.mark.parametrize("start", ["sobol", "dirichlet"])
def test_start_has_the_papers_recipe_and_the_corners_first(start):
    given = section(start=start, start_trials=5)
    space = Space.of(given)
    points = [space.parameters(point) for point in space.start(given, CONFIGURED, seed=0)]
    assert points[0].weights == pytest.approx({"both": 1.0, "caption": 0.0, "task": 0.0}, abs=1e-5)
    assert points[0].fields == {LEARNING_RATE: 2e-5, EPOCHS: 4, ORDER: "cosine"}, "moved into the range"
    assert len(points) == 3 + 5, "the recipe is one of the three corners"
    assert [max(one.weights, key=one.weights.get) for one in points[1:3]] == ["caption", "task"]
    assert points == [space.parameters(point) for point in space.start(given, CONFIGURED, seed=0)]
    assert points[3:] != [space.parameters(point) for point in space.start(given, CONFIGURED, seed=1)][3:]


def test_recipe_without_the_joint_form_is_half_and_half():
    space = Space.of(TuningSection.model_validate({"sources": {"caption": {}, "task": {}, "replay:x": {"high": 0.5}}}))
    assert space.recipe({}).weights == pytest.approx({"caption": 0.5, "task": 0.5, "replay:x": 0.0}, abs=1e-5)


def test_what_is_outside_of_the_space_has_no_point():
    space = Space.of(TuningSection.model_validate({"sources": {"caption": {"high": 0.5}, "task": {}}}))
    assert space.point(Parameters({"caption": 0.4, "task": 0.6}, {})) is not None
    assert space.point(Parameters({"caption": 0.6, "task": 0.4}, {})) is None
    assert space.point(Parameters({"caption": 0.4, "both": 0.6}, {})) is None
    assert space.point(Parameters({"caption": 0.4, "task": 0.6}, {"training.epochs": 2})) is None


def test_same_parameters_have_the_same_name():
    one = Parameters({"caption": 0.25, "task": 0.75}, {"training.epochs": 2})
    assert one.key == Parameters({"task": 0.75, "caption": 0.25}, {"training.epochs": 2}).key
    assert one.key != Parameters({"task": 0.75, "caption": 0.25}, {"training.epochs": 3}).key
