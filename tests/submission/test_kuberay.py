"""Rules of the operator: the manifests keep them, and a broken copy of each is seen."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from adamllm_ray.submission.kuberay import findings
from tests.cluster.rendering import kept

SUCCEEDED = {"jobStatus": "SUCCEEDED", "ttlSeconds": 10}


def good(kind: str = "RayJob") -> dict[str, Any]:
    return copy.deepcopy(next(each for each in kept()["gpu-h100"] if each["kind"] == kind))


def put(manifest: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """``a.0.b`` = value; what is missing on the way is made."""
    *way, last = path.split(".")
    here: Any = manifest
    for step in way:
        here = here[int(step)] if isinstance(here, list) else here.setdefault(step, {})
    here[int(last) if isinstance(here, list) else last] = value
    return manifest


JOB: dict[str, tuple[dict[str, Any], str]] = {
    "long name": ({"metadata.name": "a" * 48}, "at most 47"),
    "odd name": ({"metadata.name": "1-run"}, "DNS label"),
    "no cluster": ({"spec.rayClusterSpec": None}, "neither rayClusterSpec nor clusterSelector"),
    "suspended for good": ({"spec.suspend": True}, "spec.suspend"),
    "selector and retries": ({"spec.clusterSelector": {"ray.io/cluster": "c"}}, "backoffLimit: not with clusterSel"),
    "selector, suspended": (
        {
            "spec.clusterSelector": {"ray.io/cluster": "c"},
            "spec.suspend": True,
            "spec.shutdownAfterJobFinishes": True,
            "spec.deletionStrategy": None,
        },
        "spec.suspend: not with clusterSelector",
    ),
    "selector, sidecar": (
        {"spec.clusterSelector": {"ray.io/cluster": "c"}, "spec.submissionMode": "SidecarMode"},
        "SidecarMode does not go with clusterSelector",
    ),
    "selector of nothing": ({"spec.clusterSelector": {"a": "b"}}, "names no cluster"),
    "no YAML": ({"spec.runtimeEnvYAML": "env_vars: {a"}, "runtimeEnvYAML: is no YAML"),
    "YAML of another kind": ({"spec.runtimeEnvYAML": "- a"}, "or no mapping"),
    "interactive retries": ({"spec.submissionMode": "InteractiveMode"}, "not in InteractiveMode"),
    "sidecar with submitter": ({"spec.submissionMode": "SidecarMode"}, "submitterPodTemplate: not in SidecarMode"),
    "sidecar restarts": (
        {
            "spec.submissionMode": "SidecarMode",
            "spec.rayClusterSpec.headGroupSpec.template.spec.restartPolicy": "Always",
        },
        "must be Never in SidecarMode",
    ),
    "no time": ({"spec.activeDeadlineSeconds": 0}, "must be above 0"),
    "no time to start": ({"spec.preRunningDeadlineSeconds": -1}, "must be above 0"),
    "negative retries": ({"spec.backoffLimit": -1}, "must not be below 0"),
    "negative ttl": ({"spec.ttlSecondsAfterFinished": -1}, "must not be below 0"),
    "ttl without shutdown": ({"spec.ttlSecondsAfterFinished": 5}, "only with shutdownAfterJobFinishes"),
    "rules and shutdown": ({"spec.shutdownAfterJobFinishes": True}, "not with shutdownAfterJobFinishes"),
    "rules and legacy": ({"spec.deletionStrategy.onSuccess": {"policy": "DeleteSelf"}}, "exclude each other"),
    "empty strategy": ({"spec.deletionStrategy": {}}, "needs deletionRules, or both"),
    "half a legacy": ({"spec.deletionStrategy": {"onSuccess": {"policy": "DeleteSelf"}}}, "or both onSuccess and"),
    "no condition": (
        {"spec.deletionStrategy.deletionRules": [{"policy": "DeleteSelf", "condition": {}}]},
        "exactly one of jobStatus",
    ),
    "two conditions": (
        {
            "spec.deletionStrategy.deletionRules": [
                {"policy": "DeleteSelf", "condition": SUCCEEDED | {"jobDeploymentStatus": "Failed"}}
            ]
        },
        "exactly one of jobStatus",
    ),
    "workers of the autoscaler": (
        {"spec.deletionStrategy.deletionRules": [{"policy": "DeleteWorkers", "condition": SUCCEEDED}]},
        "DeleteWorkers does not go with the autoscaler",
    ),
    "somebody else's cluster": (
        {
            "spec.clusterSelector": {"ray.io/cluster": "c"},
            "spec.backoffLimit": 0,
        },
        "DeleteCluster does not go with clusterSelector",
    ),
    "the same twice": (
        {"spec.deletionStrategy.deletionRules": [{"policy": "DeleteSelf", "condition": SUCCEEDED}] * 2},
        "a second DeleteSelf",
    ),
    "itself before its cluster": (
        {
            "spec.deletionStrategy.deletionRules": [
                {"policy": "DeleteSelf", "condition": SUCCEEDED},
                {"policy": "DeleteCluster", "condition": SUCCEEDED | {"ttlSeconds": 11}},
            ]
        },
        "DeleteSelf (10 s) comes before DeleteCluster",
    ),
    "upgrade of a job": ({"spec.rayClusterSpec.upgradeStrategy": {"type": "Recreate"}}, "not in a RayJob"),
    "login of Kubernetes": ({"spec.rayClusterSpec.authOptions.enableK8sTokenAuth": True}, "not supported for a RayJob"),
}

HEAD, WORKER = "spec.headGroupSpec", "spec.workerGroupSpecs.1"
CLUSTER: dict[str, tuple[dict[str, Any], str]] = {
    "long name": ({"metadata.name": "a" * 54}, "at most 53"),
    "no container": ({f"{HEAD}.template.spec.containers": []}, "head: no container"),
    "resources twice": ({f"{HEAD}.resources": {"CPU": "0"}}, "head: resources are said"),
    "labels of ray start": ({f"{WORKER}.rayStartParams.labels": "a=b"}, "rayStartParams.labels"),
    "odd label": ({f"{WORKER}.labels": {"a": "-b"}}, "no Kubernetes label"),
    "negative replicas": ({f"{WORKER}.minReplicas": -1}, "must not be below 0"),
    "more than most": ({f"{WORKER}.minReplicas": 17}, "minReplicas (17) is above maxReplicas (16)"),
    "negative idle": ({f"{WORKER}.idleTimeoutSeconds": -1}, "must not be below 0"),
    "idle of v1": ({"spec.autoscalerOptions.version": "v1"}, "idleTimeoutSeconds needs"),
    "priority of v1": ({"spec.autoscalerOptions.version": "v1"}, "priority needs autoscalerOptions"),
    "priority of an old Ray": ({"spec.rayVersion": "2.55.1"}, "priority needs rayVersion"),
    "suspended group": ({f"{WORKER}.suspend": True}, "suspend does not go with the autoscaler"),
    "autoscaler by hand": (
        {f"{HEAD}.template.spec.containers.0.env": [{"name": "RAY_enable_autoscaler_v2", "value": "1"}]},
        "beside autoscalerOptions.version",
    ),
    "autoscaler of nothing": (
        {
            "spec.enableInTreeAutoscaling": False,
            f"{HEAD}.template.spec.containers.0.env": [{"name": "RAY_enable_autoscaler_v2", "value": "1"}],
        },
        "without enableInTreeAutoscaling",
    ),
    "autoscaler never idle": ({"spec.autoscalerOptions.idleTimeoutSeconds": -1}, "autoscalerOptions.idleTimeoutSec"),
    "autoscaler's command": (
        {"spec.autoscalerOptions.env": [{"name": "KUBERAY_GEN_AUTOSCALER_START_CMD", "value": "x"}]},
        "is the operator's",
    ),
    "head restarts": ({f"{HEAD}.template.spec.restartPolicy": "Always"}, "head: restartPolicy"),
    "worker restarts": ({f"{WORKER}.template.spec.restartPolicy": "OnFailure"}, "synthesizer: restartPolicy"),
    "token without version": ({"spec.rayVersion": ""}, "token needs rayVersion"),
    "token of an old Ray": ({"spec.rayVersion": "2.51.0"}, "token needs rayVersion"),
    "two logins": (
        {"spec.authOptions": {"mode": "token", "enableK8sTokenAuth": True, "secretName": "s"}},
        "not beside secretName",
    ),
    "login without token": (
        {"spec.authOptions": {"mode": "disabled", "enableK8sTokenAuth": True}},
        "needs mode: token",
    ),
    "redis unsaid": (
        {f"{HEAD}.template.spec.containers.0.env": [{"name": "RAY_REDIS_ADDRESS", "value": "r:6379"}]},
        "needs gcsFaultToleranceOptions",
    ),
    "user of redis": ({f"{HEAD}.rayStartParams.redis-username": "me"}, "gcsFaultToleranceOptions.redisUsername"),
    "user of redis by hand": (
        {f"{HEAD}.template.spec.containers.0.env": [{"name": "REDIS_USERNAME", "value": "me"}]},
        "gcsFaultToleranceOptions.redisUsername",
    ),
    "gated policy": ({"spec.networkPolicy": {"mode": "DenyAll"}}, "RayClusterNetworkPolicy"),
    "gated TLS": ({"spec.tlsOptions": {"enabled": True}}, "RayClusterMTLS"),
}


@pytest.mark.parametrize("name", JOB)
def test_a_broken_job(name):
    changes, said = JOB[name]
    manifest = good()
    for path, value in changes.items():
        put(manifest, path, value)
    assert any(said in problem for problem in findings(manifest)), findings(manifest)


@pytest.mark.parametrize("name", CLUSTER)
def test_a_broken_cluster(name):
    changes, said = CLUSTER[name]
    manifest = good("RayCluster")
    for path, value in changes.items():
        put(manifest, path, value)
    assert any(said in problem for problem in findings(manifest)), findings(manifest)


def test_the_whole_is_right_and_other_kinds_are_not_its_business():
    assert [problem for overlay in kept().values() for each in overlay for problem in findings(each)] == []
    assert findings({"kind": "ConfigMap", "metadata": {"name": "A" * 99}}) == []


def test_both_legacy_policies_are_accepted_alone():
    manifest = put(
        good(), "spec.deletionStrategy", {key: {"policy": "DeleteSelf"} for key in ("onSuccess", "onFailure")}
    )
    assert findings(manifest) == []
