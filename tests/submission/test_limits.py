from __future__ import annotations

import json

import pytest

from adamllm_ray.submission.limits import cores, limits, tell_limits
from adamllm_ray.synthesis.pools import LIMITS
from tests.cluster.rendering import kept


def job(overlay: str, stage: str) -> dict:
    return next(
        json.loads(json.dumps(each))
        for each in kept()[overlay]
        if each["kind"] == "RayJob" and each["metadata"]["labels"]["adamllm.io/stage"] == stage
    )


@pytest.mark.parametrize(
    ("overlay", "stage", "cpus", "gpus"),
    [
        ("gpu-h100", "ingest", 8 * 16, 0),
        ("gpu-h100", "synthesize", 8 * 16 + 16 * 20 + 4 * 20, 20),
        ("gpu-h100", "train", 8 * 16 + 8 * 176, 64),
        ("kueue", "evaluate", 2 * 16 + 8 * 20, 8),
        ("cpu-dev", "pipeline", 2 * 2 + 2 * 2, 0),
    ],
)
def test_the_groups_of_a_job_at_their_largest(overlay, stage, cpus, gpus):
    assert limits(job(overlay, stage)["spec"]["rayClusterSpec"]) == {"CPU": cpus, "GPU": gpus}


def test_the_head_is_told_once():
    made = job("gpu-h100", "synthesize")
    tell_limits(made)
    tell_limits(made)
    head = made["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    [told] = [each["value"] for each in head["env"] if each["name"] == LIMITS]
    assert json.loads(told) == {"CPU": 528.0, "GPU": 20.0}


def test_a_value_that_somebody_set_stays():
    made = job("gpu-h100", "synthesize")
    head = made["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    head["env"].append({"name": LIMITS, "value": "{}"})
    tell_limits(made)
    assert [each["value"] for each in head["env"] if each["name"] == LIMITS] == ["{}"]


def test_quantities():
    assert [cores(text) for text in ("16", "0.5", "500m")] == [16.0, 0.5, 0.5]
