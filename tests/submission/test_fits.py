from __future__ import annotations

from typing import Any

import pytest

from adamllm_ray.config import parse_config
from adamllm_ray.errors import ConfigError
from adamllm_ray.submission.fits import refuse_too_large
from tests.submission.test_limits import job
from tests.submission.test_places import REMOTE

EIGHT = {"gpus_per_replica": 8, "cpus_per_replica": 1}


def check(stage: str, overlay: str = "gpu-h100", **sections: Any) -> None:
    refuse_too_large(stage, parse_config({**REMOTE, **sections}), job(overlay, stage)["spec"]["rayClusterSpec"])


@pytest.mark.parametrize("stage", ["ingest", "synthesize", "train", "evaluate", "pipeline"])
@pytest.mark.parametrize("overlay", ["gpu-h100", "cpu-dev", "kueue"])
def test_defaults_fit_everywhere(stage, overlay):
    check(stage, overlay)


def test_what_just_fits():
    one = {"engine": {"gpus_per_replica": 1, "replicas": 16}}
    check("synthesize", synthesis=one, judge={"engine": {"gpus_per_replica": 1, "replicas": 4}})
    check("synthesize", synthesis={"engine": {"gpus_per_replica": 4, "pipeline_parallel": 4}})
    check("pipeline", synthesis={"engine": EIGHT})  # whole machines
    check("train", training={"workers": 64, "gpus_per_worker": 1, "global_batch": 256})
    check("synthesize", synthesis={"engine": {"gpus_per_replica": 1, "replicas": 99, "min_replicas": 2}})


@pytest.mark.parametrize(
    ("stage", "overlay", "sections", "said"),
    [
        (
            "synthesize",
            "gpu-h100",
            {"synthesis": {"engine": EIGHT}},
            r"synthesis\.engine\.gpus_per_replica is 8, and no",
        ),
        ("evaluate", "gpu-h100", {"evaluation": {"task": "pocket", "engine": EIGHT}}, r"evaluation\.engine\.gpus_per"),
        ("synthesize", "cpu-dev", {"judge": {"engine": {"gpus_per_replica": 1}}}, "no pod .* has more than 0"),
        (
            "synthesize",
            "gpu-h100",
            {"judge": {"engine": {"gpus_per_replica": 1, "replicas": 21}}},
            "need 21 GPUs .* 20",
        ),
        ("pipeline", "cpu-dev", {"synthesis": {"engine": {"replicas": 99}}}, "need 100 CPUs"),
        ("train", "gpu-h100", {"training": {"workers": 65, "gpus_per_worker": 1, "global_batch": 260}}, "need 65 GPUs"),
        ("train", "cpu-dev", {"training": {"workers": 16, "global_batch": 64}}, "need 16 CPUs, .* have 8"),
    ],
)
def test_what_no_group_can_hold(stage, overlay, sections, said):
    with pytest.raises(ConfigError, match=said):
        check(stage, overlay, **sections)
