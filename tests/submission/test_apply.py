"""Both ways to a cluster, kubectl and the Python client, the real ones, against a server that is not (apiserver.py)."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.errors import ClusterError, ConfigError
from adamllm_ray.submission import apply
from tests.submission.apiserver import ApiServer, serving

CONFIG_MAP: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "x-train-1", "namespace": "adamllm"},
    "data": {"config.yaml": "run: {}\n"},
}
JOB: dict[str, Any] = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"name": "x-train-1", "namespace": "adamllm"},
    "spec": {"entrypoint": "python jobs/train.py"},
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with serving(ApiServer()) as found:
        monkeypatch.setenv("KUBECONFIG", str(found.kubeconfig(tmp_path)))
        monkeypatch.setenv("HOME", str(tmp_path))  # kubectl keeps what it discovers
        yield found


@pytest.fixture(params=["kubectl", "python"])
def api(request: pytest.FixtureRequest, server: ApiServer) -> apply.Kubernetes:
    if request.param == "kubectl":
        if not shutil.which("kubectl"):
            pytest.skip("no kubectl on this machine")
        return apply.Kubectl()
    if importlib.util.find_spec("kubernetes") is None:
        pytest.skip("the package kubernetes is not installed: pip install 'adamllm-ray[kubernetes]'")
    return apply.PythonClient()


def test_a_job_has_its_configuration_and_takes_it_along(api, server):
    apply.submit(api, CONFIG_MAP, JOB)
    config_map = server.objects["configmaps", "adamllm", "x-train-1"]
    job = server.objects["rayjobs", "adamllm", "x-train-1"]
    assert config_map["data"] == CONFIG_MAP["data"]
    assert job["spec"] == JOB["spec"]
    [owner] = config_map["metadata"]["ownerReferences"]
    assert owner == {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": "x-train-1", "uid": job["metadata"]["uid"]}
    assert [call for call in server.calls if call.startswith("POST")] == ["POST configmaps", "POST rayjobs"]
    assert all("fieldValidation=Strict" in asked for asked in server.created)


def test_a_job_is_read_until_it_is_gone(api, server):
    apply.submit(api, CONFIG_MAP, JOB)
    server.states = [{"jobStatus": "RUNNING"}, {"jobStatus": "SUCCEEDED"}]
    seen = [api.read_job("adamllm", "x-train-1") for _ in range(2)]
    assert [each["status"]["jobStatus"] for each in seen] == ["RUNNING", "SUCCEEDED"]
    assert api.read_job("adamllm", "another") is None


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        ((403, "Forbidden", "you may not"), ConfigError),
        ((422, "Invalid", "spec.entrypoint: no"), ConfigError),
        ((503, "ServiceUnavailable", "later"), ClusterError),
    ],
)
def test_a_job_that_is_refused_leaves_nothing(api, server, refusal, kind):
    server.refuse["rayjobs"] = refusal
    with pytest.raises(kind, match=refusal[2] if kind is ConfigError else "."):
        apply.submit(api, CONFIG_MAP, JOB)
    assert server.objects == {}


def test_a_configuration_that_cannot_be_owned_does_not_stop_a_job(api, server):
    server.refuse_patches = True
    apply.submit(api, CONFIG_MAP, JOB)
    assert len(server.objects) == 2


def test_a_name_that_is_taken(api, server):
    api.create(JOB)
    with pytest.raises(ConfigError, match="already exists"):
        api.create(JOB)


def test_what_is_not_there_is_deleted_without_a_word(api, server):
    api.create(CONFIG_MAP)
    api.delete(CONFIG_MAP)
    api.delete(CONFIG_MAP)
    assert server.objects == {}


def test_nobody_answers(server, tmp_path, api):
    server.url = "http://127.0.0.1:1"
    server.kubeconfig(tmp_path)
    if isinstance(api, apply.PythonClient):
        api = apply.PythonClient()  # reads the new address
    with pytest.raises(ClusterError, match=r"(?i)refused"):
        api.read_job("adamllm", "x-train-1")


def test_neither_kubectl_nor_the_client(monkeypatch, tmp_path):
    def no_package(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(apply.importlib, "import_module", no_package)
    with pytest.raises(ConfigError, match=r"neither kubectl nor .*pip install 'adamllm-ray\[kubernetes\]'"):
        apply.kubernetes()


def test_kubectl_comes_first(monkeypatch, tmp_path):
    (tmp_path / "kubectl").write_text("#!/bin/sh\n")
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert isinstance(apply.kubernetes(), apply.Kubectl)


def test_no_cluster_is_configured(monkeypatch, tmp_path):
    pytest.importorskip("kubernetes", reason="the package kubernetes is not installed")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="no cluster is configured"):
        apply.PythonClient()
