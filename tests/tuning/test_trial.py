"""A trial's own books, without training: what is found is not done again, and rungs stop who is behind."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from adamllm_ray.config import TuningSection, parse_config
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import ConfigError, StorageError, TrainingError
from adamllm_ray.tuning import trial as trials
from adamllm_ray.tuning.schedule import scheduler
from adamllm_ray.tuning.space import Parameters
from adamllm_ray.tuning.trial import Trial, run_trial

SCORED = {"score": 0.5, "lo": 0.4, "hi": 0.6, "base": 0.1, "examples": 64, "resumed": []}


@pytest.fixture
def one(tmp_path):
    tree = {"run": {"output": str(tmp_path)}, "tuning": {"repeats": 2, "validation": [{"name": "m", "path": "v"}]}}
    config = parse_config(tree)
    return Trial(config, RunFolder(config.run.output), Parameters({"both": 1.0, "caption": 0.0, "task": 0.0}, {}))


def test_result_is_the_mean_over_seeds_and_is_not_made_twice(one, monkeypatch):
    told, made = [], []

    def score(trial, seed, report):
        made.append(seed)
        return SCORED | {"score": 0.4 + 0.2 * seed}

    monkeypatch.setattr(trials, "_score", score)
    result = run_trial(one, told.append)
    assert result["score"] == pytest.approx(0.5)
    assert result["seeds"] == pytest.approx([0.4, 0.6])
    assert run_trial(one, told.append) == result
    assert made == [0, 1]
    assert told == [{"score": result["score"], "examples": 64, "final": True}] * 2


@pytest.mark.parametrize(("error", "lasts"), [(ConfigError("no"), True), (StorageError("disk full"), False)])
def test_error_that_no_repetition_mends_is_kept(one, monkeypatch, error, lasts):
    lives = []

    def fail(*_):
        lives.append(1)
        raise error

    monkeypatch.setattr(trials, "_score", fail)
    for _ in range(2):
        with pytest.raises((type(error), TrainingError)):
            run_trial(one, print)
    assert len(lives) == (1 if lasts else 2)
    assert one.read("lives.json") == {"lives": len(lives)}


def _results(schedule, scores, examples):
    """What the scheduler says to trials that reach a rung one after the other."""
    said = []
    for number, score in enumerate(scores):
        one = SimpleNamespace(trial_id=str(number), status="RUNNING")
        schedule.set_search_properties("score", "max")
        schedule.on_trial_add(None, one)
        said.append(schedule.on_trial_result(None, one, {"score": score, "examples": examples, "time_total_s": 1.0}))
    return said


def test_halving_is_at_the_rungs_that_are_named():
    section = TuningSection.model_validate({"examples": 100, "rungs": [20, 50], "stopping": "asha", "reduction": 2})
    said = _results(scheduler(section, batch=16), [0.5, 0.9, 0.4, 0.3], 64)
    assert said == ["CONTINUE", "CONTINUE", "STOP", "STOP"]
    assert [rung for rung, _ in scheduler(section, batch=16)._brackets[0]._rungs] == [64, 32]
