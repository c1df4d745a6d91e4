"""Objects of Kubernetes itself, and pod templates inside Ray's, against the schemas of Kubernetes; and what pods need.

The schemas are kubernetes-validate's, which is kept for every Kubernetes release; strict, so a misspelt field is found.
"""

from __future__ import annotations

import copy
from typing import Any

import kubernetes_validate
import pytest

from adamllm_ray.submission.security import pods
from tests.cluster.rendering import OVERLAYS, kept

KUBERNETES = "1.33"
UNITS = {"Mi": 1 << 20, "Gi": 1 << 30}
PLATFORM = {f"{each['kind']}/{each['metadata']['name']}": each for each in kept()["platform"]}


def as_bytes(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


def all_pods(overlay: str) -> dict[str, Any]:
    return {f"{each['metadata']['name']}/{place}": pod for each in kept()[overlay] for place, pod in pods(each)}


@pytest.mark.parametrize("name", PLATFORM)
def test_an_object_of_the_platform(name):
    kubernetes_validate.validate(PLATFORM[name], KUBERNETES, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pod_templates(overlay):
    for name, pod in all_pods(overlay).items():
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name.replace("/", "-")}, "spec": pod}
        kubernetes_validate.validate(whole, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("NetworkPolicy/dns", {"spec": {"podSelectors": {}}}),
        ("NetworkPolicy/dns", {"spec": {"podSelector": {}, "policyTypes": "Egress"}}),
        ("PersistentVolumeClaim/adamllm-models", {"spec": {"accessModes": ["ReadWriteMany"], "resource": {}}}),
        ("PriorityClass/adamllm-head", {"value": "high"}),
        ("Role/adamllm-scientist", {"rules": [{"apiGroups": [""], "resources": ["pods"]}]}),
        ("ConfigMap/adamllm-store", {"data": {"AWS_REGION": 1}}),
    ],
)
def test_a_broken_copy_is_refused(name, change):
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(copy.deepcopy(PLATFORM[name]) | change, KUBERNETES, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_pods_refer_to_is_made_by_the_platform_or_optional(overlay):
    for name, pod in all_pods(overlay).items():
        assert f"ServiceAccount/{pod['serviceAccountName']}" in PLATFORM, name
        assert f"PriorityClass/{pod['priorityClassName']}" in PLATFORM, name
        for volume in pod["volumes"]:
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim is None or f"PersistentVolumeClaim/{claim}" in PLATFORM, name
        for source in pod["containers"][0].get("envFrom", []):
            kind, reference = (
                ("ConfigMap", source.get("configMapRef")) if "configMapRef" in source else ("Secret", None)
            )
            assert reference is None or f"{kind}/{reference['name']}" in PLATFORM, name
            assert reference is not None or source["secretRef"]["optional"] is True, name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_mounts_have_volumes_and_the_object_store_has_its_memory(overlay):
    for name, pod in all_pods(overlay).items():
        [container] = pod["containers"]
        volumes = {each["name"]: each for each in pod["volumes"]}
        mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
        assert set(mounts.values()) == set(volumes), name
        assert {"/tmp", "/home/adamllm"} <= mounts.keys(), f"{name}: a read-only root needs both"
        if "submitter" in name:
            continue
        shared, limits = volumes[mounts["/dev/shm"]]["emptyDir"], container["resources"]["limits"]
        assert shared["medium"] == "Memory"
        assert 0.3 * as_bytes(limits["memory"]) <= as_bytes(shared["sizeLimit"]) <= 0.5 * as_bytes(limits["memory"]), (
            name
        )
        assert mounts["/etc/adamllm"] == "config"
        assert {each["name"]: each["value"] for each in container["env"]}["ADAMLLM_MODEL_CACHE"] in mounts


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_scratch_fits_the_disk_that_was_asked_for(overlay):
    for name, pod in all_pods(overlay).items():
        disk = [each["emptyDir"] for each in pod["volumes"] if "emptyDir" in each]
        asked = pod["containers"][0]["resources"]["limits"].get("ephemeral-storage")
        most = sum(as_bytes(each["sizeLimit"]) for each in disk if each.get("medium") != "Memory")
        assert asked is None or most <= as_bytes(asked), name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_guaranteed_what_they_may_use(overlay):
    for name, pod in all_pods(overlay).items():
        resources = pod["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"], name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_with_gpus_tell_nccl_how(overlay):
    for name, pod in all_pods(overlay).items():
        [container] = pod["containers"]
        if "nvidia.com/gpu" in container["resources"]["limits"]:
            assert {"NCCL_DEBUG", "NCCL_SOCKET_IFNAME"} <= {each["name"] for each in container["env"]}, name
            assert "nvidia.com/gpu" in {each["key"] for each in pod["tolerations"]}, name


def test_only_the_head_has_a_token_of_kubernetes():
    for name, pod in all_pods("gpu-h100").items():
        assert (pod.get("automountServiceAccountToken") is not False) == name.endswith("/head"), name
