"""What kustomize makes of ``cluster/``: the objects that there should be, and nothing that was forgotten on the way."""

from __future__ import annotations

from collections import Counter

import pytest

from adamllm_ray.submission.render import render
from tests.cluster.rendering import FOLDERS, OVERLAYS, kept, kustomize

STAGES = {
    "ingest": ["cpu"],
    "synthesize": ["cpu", "synthesizer", "judge"],
    "train": ["cpu", "trainer"],
    "evaluate": ["cpu", "synthesizer"],
    "tune": ["cpu", "trainer"],
    "pipeline": ["cpu", "trainer"],
}


def jobs(overlay: str) -> dict[str, dict]:
    found = [each for each in kept()[overlay] if each["kind"] == "RayJob"]
    return {each["metadata"]["labels"]["adamllm.io/stage"]: each for each in found}


def cluster(overlay: str) -> dict:
    return next(each for each in kept()[overlay] if each["kind"] == "RayCluster")


@pytest.mark.skipif(kustomize() is None, reason="no kubectl with kustomize 5 here: what one rendered before is tested")
@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_kept_is_what_kubectl_renders(name):
    assert render(FOLDERS[name]) == kept()[name], "run: python -m tests.cluster.rendering"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_a_cluster_and_a_job_per_stage(overlay):
    assert Counter(each["kind"] for each in kept()[overlay]) == {"RayCluster": 1, "RayJob": len(STAGES)}
    assert {each["metadata"]["namespace"] for each in kept()[overlay]} == {"adamllm"}
    assert jobs(overlay).keys() == STAGES.keys()


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_job_has_the_cluster_s_head_and_the_groups_it_uses(overlay, stage):
    spec, whole = jobs(overlay)[stage]["spec"], cluster(overlay)["spec"]
    groups = {each["groupName"]: each for each in whole["workerGroupSpecs"]}
    made = spec["rayClusterSpec"]
    assert [each["groupName"] for each in made["workerGroupSpecs"]] == STAGES[stage]
    assert made == whole | {"workerGroupSpecs": [groups[name] for name in STAGES[stage]]}
    assert spec["entrypoint"] == f"python /opt/adamllm/jobs/{stage}.py --config /etc/adamllm/config.yaml"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_lost_head_has_its_job_submitted_again_and_a_lost_driver_started_again(overlay):
    """Nothing here says how long a head may be away: that is the operator's, see test_guide.py."""
    for job in jobs(overlay).values():
        assert job["spec"]["backoffLimit"] >= 1
        assert job["spec"]["submissionMode"] == "K8sJobMode"  # its submitter waits for a head; a sidecar dies with it
        assert job["spec"]["submitterConfig"]["backoffLimit"] >= 1
        assert 0 < job["spec"]["preRunningDeadlineSeconds"] < job["spec"]["activeDeadlineSeconds"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_passed_deadline_stops_the_driver_soon(overlay):
    """The operator only writes `Failed` and leaves jobStatus RUNNING; the job goes on until its cluster is deleted."""
    for job in jobs(overlay).values():
        if "deletionStrategy" not in job["spec"]:  # Kueue's: any end shuts the cluster down
            assert job["spec"]["ttlSecondsAfterFinished"] <= 300
            continue
        rules = job["spec"]["deletionStrategy"]["deletionRules"]
        lives = {
            each["policy"]: each["condition"]["ttlSeconds"]
            for each in rules
            if each["condition"].get("jobDeploymentStatus") == "Failed"
        }
        assert lives["DeleteCluster"] <= 300
        assert lives["DeleteSelf"] > 86400  # the submitter's pod has the log


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_head_works_for_nobody_and_workers_start_from_nothing(overlay):
    spec = cluster(overlay)["spec"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in spec["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert spec["enableInTreeAutoscaling"] == (overlay != "kueue")
    replicas = [each["replicas"] for each in spec["workerGroupSpecs"]]
    assert all(replicas) if overlay == "kueue" else not any(replicas)
    assert spec["autoscalerOptions"]["version"] == "v2"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_driver_that_asks_for_cpus_fits_into_a_pod_of_its_job(overlay):
    for job in jobs(overlay).values():
        groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        largest = max(float(each["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]) for each in groups)
        assert job["spec"].get("entrypointNumCpus", 0) <= largest


def test_where_training_shares_a_job_no_pod_has_a_single_gpu():
    """Ray sees GPUs and no group names: a worker group of training would be spread over pods without NVLink."""
    for overlay in OVERLAYS:
        for job in jobs(overlay).values():
            groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
            if "trainer" in {each["groupName"] for each in groups}:
                kinds = {
                    each["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
                    for each in groups
                }
                assert kinds <= {None, "8"}


def test_spot_machines_carry_what_can_be_lost():
    spec = cluster("gpu-spot")["spec"]
    spots = {
        each["groupName"]: each["template"]["spec"]["nodeSelector"]["karpenter.sh/capacity-type"]
        for each in spec["workerGroupSpecs"]
    }
    assert spots == {"cpu": "spot", "synthesizer": "spot", "judge": "spot", "trainer": "on-demand"}
    assert spec["headGroupSpec"]["template"]["spec"]["nodeSelector"] == {"karpenter.sh/capacity-type": "on-demand"}
    for group in spec["workerGroupSpecs"][:3]:
        taints = {each["key"] for each in group["template"]["spec"]["tolerations"]}
        assert "karpenter.sh/capacity-type" in taints
        assert ("nvidia.com/gpu" in taints) == (group["groupName"] != "cpu")


def test_kueue_gets_jobs_that_it_can_start():
    for job in jobs("kueue").values():
        assert job["spec"]["suspend"] is True
        assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
        assert job["spec"]["shutdownAfterJobFinishes"] is True
        assert job["spec"]["ttlSecondsAfterFinished"] <= 60  # Kueue's cluster keeps all its GPUs until then
        assert "deletionStrategy" not in job["spec"]
        for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
            assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]


def test_no_gpu_is_asked_for_on_a_laptop():
    assert "nvidia.com/gpu" not in repr(kept()["cpu-dev"])
    assert "persistentVolumeClaim" not in repr(kept()["cpu-dev"])
