"""The searcher on a surface that is known: it finds the top, earlier trials count, early scores do not."""

from __future__ import annotations

import math

import pytest

from adamllm_ray.config import TuningSection
from adamllm_ray.tuning.space import Parameters, Space

pytest.importorskip("optuna")
from adamllm_ray.tuning.search import MixtureSearch

TOP = {"caption": 0.22, "task": 0.61, "replay:x": 0.17}
SECTION = TuningSection.model_validate({"sources": {"caption": {}, "task": {}, "replay:x": {"high": 0.9}}})
SPACE = Space.of(SECTION)


def score(weights):
    return 0.3 + 0.4 * math.exp(-sum((weights[name] - TOP[name]) ** 2 for name in TOP) / (2 * 0.2**2))


def searched(search, trials):
    best = 0.0
    for number in range(trials):
        weights = SPACE.parameters(search.suggest(str(number))).weights
        best = max(best, score(weights))
        search.on_trial_complete(str(number), {"score": score(weights), "final": True})
    return best


def test_gaussian_process_finds_the_top():
    search = MixtureSearch(SPACE, "gp", start=SPACE.start(SECTION, {}, 0), seed=0)
    assert searched(search, 25) > 0.7 - 0.02 * 0.4


def test_earlier_trials_count():
    """With the neighbourhood of the top known, the first suggestion is there."""
    known = [(one, score(one.weights)) for one in SPACE.uniform(25, seed=3)]
    known.append((Parameters(TOP, {}), score(TOP)))
    points = [(SPACE.point(one), value) for one, value in known]
    search = MixtureSearch(SPACE, "gp", known=points, startup=6, seed=0)
    weights = SPACE.parameters(search.suggest("0")).weights
    assert score(weights) > 0.6


def test_score_at_a_rung_is_not_the_score_of_the_trial():
    import optuna

    search = MixtureSearch(SPACE, "random", seed=0)
    for number, final in enumerate((True, False)):
        search.suggest(str(number))
        search.on_trial_complete(str(number), {"score": 0.5, "final": final})
    states = [trial.state for trial in search._ot_study.trials]
    assert states == [optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED]


@pytest.mark.parametrize("kind", ["random", "tpe", "gp"])
def test_state_comes_back(tmp_path, kind):
    """What Tune does at a resume: the next suggestion is that of the searcher which was not interrupted."""
    search = MixtureSearch(SPACE, kind, start=SPACE.start(SECTION, {}, 0), seed=5)
    searched(search, 12)
    search.save(str(tmp_path / "state"))
    again = MixtureSearch(SPACE, kind, seed=9)
    again.restore(str(tmp_path / "state"))
    assert again.suggest("next") == search.suggest("next")


def test_gate_ends_the_search():
    class Shut:
        def room(self, running):
            return running < 2

    search = MixtureSearch(SPACE, "random", seed=0, gate=Shut())
    found = [search.suggest(str(number)) for number in range(3)]
    assert found[2] == search.FINISHED
