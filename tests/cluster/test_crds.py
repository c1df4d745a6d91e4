"""Every RayCluster and RayJob against KubeRay's schema, defaults filled in; and broken copies that it must refuse."""

from __future__ import annotations

import pytest

from adamllm_ray.submission.kuberay import findings
from tests.cluster.rendering import OVERLAYS, kept
from tests.cluster.schemas import completed, errors
from tests.submission.test_kuberay import good, put


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_what_the_api_server_accepts(overlay):
    for manifest in kept()[overlay]:
        assert errors(manifest) == [], manifest["metadata"]["name"]
        assert findings(completed(manifest)) == [], manifest["metadata"]["name"]


def test_defaults_are_filled_in_where_a_field_is_absent():
    job = good()
    del job["spec"]["submissionMode"], job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplicas"]
    whole = completed(job)
    assert whole["spec"]["submissionMode"] == "K8sJobMode"
    assert whole["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplicas"] == 0
    assert errors(job) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("spec.backofLimit", 3, "backofLimit"),
        ("spec.backoffLimit", "3", "is not of type 'integer'"),
        ("spec.rayClusterSpec.authOptions.mode", "tokens", "is not one of"),
        ("spec.rayClusterSpec.autoscalerOptions.version", "v3", "is not one of"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0, "is not of type 'string'"),
        ("spec.rayClusterSpec.headGroupSpec.template", None, "is not of type 'object'"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.env.0", {"value": "x"}, "'name' is a required"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.tolerations", {}, "is not of type 'array'"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.volumes.0.emptyDir.sizeLimit", "6 GB", "does not match"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.securityContext.runAsUser", "root", "is not of type"),
        ("spec.deletionStrategy.deletionRules.0.condition.ttlSeconds", -1, "less than the minimum"),
        ("spec.preRunningDeadlineSeconds", 0, "less than the minimum"),
    ],
)
def test_a_broken_copy_is_refused(path, value, said):
    assert any(said in problem for problem in errors(put(good(), path, value)))


def test_a_folder_without_definitions_says_so(monkeypatch, tmp_path):
    from tests.cluster import schemas

    monkeypatch.setenv("ADAMLLM_KUBERAY_CRDS", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match="set ADAMLLM_KUBERAY_CRDS"):
        schemas.definitions.__wrapped__()
