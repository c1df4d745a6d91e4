"""What a search has spent outlives its driver, and the budget ends it."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest

from adamllm_ray.data import storage
from adamllm_ray.tuning import budget
from adamllm_ray.tuning.budget import METER, Meter


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(at=100.0)
    monkeypatch.setattr(budget.time, "monotonic", lambda: now.at)
    return now


def trial(status="RUNNING", seconds=0.0):
    result = {"time_total_s": seconds, "score": 0.5, "final": True, "examples": 8}
    return SimpleNamespace(status=status, last_result=result, trial_id="t", get_error=lambda: None)


def test_spending_is_counted_for_what_runs(tmp_path, clock):
    place = storage.resolve(str(tmp_path))
    meter = Meter(place, {"CPU": 8.0, "GPU": 2.0}, hours=1.0)
    running = [trial(), trial(), trial("PENDING")]
    for clock.at in (100.0, 400.0, 700.0):
        meter.on_step_end(1, running)
    assert budget.read(place.child(METER))["hours"] == pytest.approx(600 * 2 * 2 / 3600)
    assert not meter.stop_all()
    clock.at = 1100.0
    meter.on_step_end(2, running)
    assert meter.stop_all()


def test_another_driver_goes_on_counting(tmp_path, clock):
    place = storage.resolve(str(tmp_path))
    meter = Meter(place, {"CPU": 1.0, "GPU": 0.0}, hours=1.0)
    for clock.at in (100.0, 3000.0):
        meter.on_step_end(1, [trial()])
    again = pickle.loads(pickle.dumps(meter))
    for clock.at in (9000.0, 9100.0):
        again.on_step_end(1, [trial()])
    assert budget.read(place.child(METER))["hours"] == pytest.approx(3000 / 3600)


def test_trial_that_would_not_end_within_the_budget_is_not_begun(tmp_path, clock):
    meter = Meter(storage.resolve(str(tmp_path)), {"CPU": 1.0, "GPU": 0.0}, hours=1.0)
    assert meter.room(3), "nothing is known yet"
    for clock.at in (100.0, 1900.0):
        meter.on_step_end(1, [trial()])
    meter.on_trial_complete(1, [], trial("TERMINATED", 1800.0))
    assert meter.room(0)
    for clock.at in (1900.0, 3300.0):
        meter.on_step_end(1, [trial()])
    meter.on_experiment_end([])
    assert not meter.room(0)


def test_without_a_budget_there_is_always_room(tmp_path, clock):
    meter = Meter(storage.resolve(str(tmp_path)), {"CPU": 1.0, "GPU": 0.0}, hours=None)
    assert meter.room(99)
    assert not meter.stop_all()
