"""How many trials fit: what a trial needs, what the cluster has, what was asked for."""

from __future__ import annotations

import math

import pytest

from adamllm_ray.config import parse_config
from adamllm_ray.errors import ConfigError
from adamllm_ray.tuning.capacity import most_trials, need


def config(training, engine=None):
    return parse_config({"run": {"output": "x"}, "training": training, "evaluation": {"engine": engine or {}}})


GPUS = config({"workers": 4, "gpus_per_worker": 1, "cpus_per_worker": 2, "data_workers": 1}, {"gpus_per_replica": 1})
TWO_CPUS = config({"workers": 2, "global_batch": 8})


def test_need_is_that_of_the_larger_phase():
    assert need(GPUS) == {"CPU": 12, "GPU": 4}
    assert need(TWO_CPUS) == {"CPU": 2, "GPU": 0}
    assert need(config({}, {"replicas": 3, "cpus_per_replica": 2}))["CPU"] == 6
    assert need(config({}, {"replicas": 8, "gpus_per_replica": 1})) == {"CPU": 1, "GPU": 8}


@pytest.mark.parametrize(
    ("capacity", "wanted", "fit"),
    [
        ({"CPU": 3}, 2, 1),  # room for one and a half
        ({"CPU": 4}, None, 2),
        ({"CPU": 64}, 2, 2),
        ({"CPU": math.inf}, None, 4),
        ({"CPU": math.inf}, 9, 9),
    ],
)
def test_cap(capacity, wanted, fit):
    assert most_trials(TWO_CPUS, capacity, wanted) == fit


def test_trial_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="a single trial does not fit"):
        most_trials(GPUS, {"CPU": 64, "GPU": 3}, None)
