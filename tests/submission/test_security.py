"""Rules of what may run (test 59 of the reliability table): the manifests keep them, a broken copy of each is seen."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from adamllm_ray.submission.security import findings, is_closed
from tests.cluster.rendering import OVERLAYS, kept
from tests.submission.test_kuberay import good, put

pytestmark = pytest.mark.guards

HEAD = "spec.headGroupSpec.template.spec"
RAY = f"{HEAD}.containers.0"
WORKER = "spec.workerGroupSpecs.3.template.spec"

CLUSTER: dict[str, tuple[str, Any, str]] = {
    "no token": ("spec.authOptions", None, "authOptions.mode is not token"),
    "token off": ("spec.authOptions.mode", "disabled", "authOptions.mode is not token"),
    "token off by hand": (f"{RAY}.env", [{"name": "RAY_AUTH_MODE", "value": "disabled"}], "turns the token off"),
    "load balancer": ("spec.headGroupSpec.serviceType", "LoadBalancer", "seen from outside"),
    "node port": ("spec.headGroupSpec.headService", {"spec": {"type": "NodePort"}}, "seen from outside"),
    "ingress": ("spec.headGroupSpec.enableIngress", True, "opens the dashboard"),
    "root": (f"{HEAD}.securityContext.runAsUser", 0, "may run as root"),
    "perhaps root": (f"{WORKER}.securityContext.runAsNonRoot", False, "trainer: may run as root"),
    "root inside": (f"{RAY}.securityContext.runAsUser", 0, "runs as root"),
    "no seccomp": (f"{HEAD}.securityContext.seccompProfile", {"type": "Unconfined"}, "no seccomp profile"),
    "node's network": (f"{WORKER}.hostNetwork", True, "hostNetwork shares the node's"),
    "node's processes": (f"{WORKER}.hostPID", True, "hostPID shares the node's"),
    "node's disk": (f"{HEAD}.volumes.3", {"name": "models", "hostPath": {"path": "/"}}, "is a path of the node"),
    "port of the node": (f"{RAY}.ports.1.hostPort", 8265, "hostPort 8265"),
    "writable root": (f"{RAY}.securityContext.readOnlyRootFilesystem", False, "may write to its image"),
    "privileged": (f"{RAY}.securityContext.privileged", True, "may gain privileges"),
    "privileges": (f"{RAY}.securityContext.allowPrivilegeEscalation", True, "may gain privileges"),
    "capability": (f"{RAY}.securityContext.capabilities.add", ["SYS_ADMIN"], "keeps capabilities"),
    "capabilities": (f"{RAY}.securityContext.capabilities.drop", [], "keeps capabilities"),
    "autoscaler": ("spec.autoscalerOptions.securityContext", None, "autoscaler: may write to its image"),
    "tag": (f"{RAY}.image", "registry.example.com/adamllm:latest", "is not named by digest"),
    "init container": (f"{HEAD}.initContainers", [{"name": "i", "image": "busybox"}], "i: may write to its image"),
    "endless memory": (f"{RAY}.resources.limits", {"cpu": "1"}, "no memory limit"),
    "key in the environment": (
        f"{RAY}.env",
        [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}],
        "AWS_SECRET_ACCESS_KEY is written out",
    ),
    "key in an argument": (f"{RAY}.args", ["--id", "AKIAIOSFODNN7EXAMPLE"], "holds a key"),
    "another key in an argument": (f"{RAY}.args", ["--id", "ASIAIOSFODNN7EXAMPLE"], "holds a key"),
    "the hub's key in an argument": (f"{RAY}.args", ["login", "hf_" + "aB3" * 11], "holds a key"),
    "key in a command": (f"{RAY}.command", ["sh", "-c", "HF_TOKEN=x python train.py"], "HF_TOKEN is written out"),
    "node's memory": (f"{WORKER}.hostIPC", True, "hostIPC shares the node's"),
    "autoscaler's token off": (
        "spec.autoscalerOptions.env",
        [{"name": "RAY_AUTH_MODE", "value": "disabled"}],
        "autoscaler: RAY_AUTH_MODE turns the token off",
    ),
    "autoscaler's key": (
        "spec.autoscalerOptions.env",
        [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}],
        "autoscaler: AWS_SECRET_ACCESS_KEY is written out",
    ),
    "autoscaler's image": ("spec.autoscalerOptions.image", "evil:latest", "autoscaler: image evil:latest is not named"),
    "password in a URL": (f"{RAY}.env", [{"name": "PROXY", "value": "http://me:word@proxy"}], "holds a key"),
}


@pytest.mark.parametrize("name", CLUSTER)
def test_a_broken_cluster(name):
    path, value, said = CLUSTER[name]
    broken = put(good("RayCluster"), path, value)
    assert any(said in problem for problem in findings([broken])), findings([broken])


def test_the_same_holds_for_a_job_and_its_submitter():
    broken = put(good(), "spec.submitterPodTemplate.spec.containers.0.image", "python")
    put(broken, "spec.rayClusterSpec.authOptions", {})
    said = findings([broken])
    assert len(said) == 2
    assert "authOptions" in said[0]
    assert "submitter" in said[1]


@pytest.mark.parametrize(
    "text",
    [
        "env_vars:\n  AWS_SECRET_ACCESS_KEY: wJalrXUtnFEMI\n",
        "env_vars: {PORT: '1', DB_PASSWORD: 'a b'}",
        '{"env_vars": {"HF_TOKEN": "x"}}',
    ],
)
def test_a_key_in_a_runtime_environment(text):
    assert any("spec.runtimeEnvYAML: " in problem for problem in findings([put(good(), "spec.runtimeEnvYAML", text)]))


@pytest.mark.parametrize(
    "text",
    [
        "max_new_tokens: 128\ntoken_budget: 4096\ntokenizer: x\n",
        "env_vars: {RAY_AUTH_TOKEN_PATH: /run/token, RAY_AUTH_MODE: token}",
        "aws_secret_access_key: null\n",
        "the api_key is asked for",
    ],
)
def test_what_is_no_key(text):
    assert findings([{"kind": "ConfigMap", "data": {"config.yaml": text}}]) == []


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "service": ({"kind": "Service", "spec": {"type": "NodePort"}}, "seen from outside"),
    "external address": ({"kind": "Service", "spec": {"externalIPs": ["203.0.113.5"]}}, "seen from outside"),
    "ingress": ({"kind": "Ingress", "spec": {}}, "a way in from outside"),
    "secret": ({"kind": "Secret", "stringData": {"a": "b"}}, "make it in the cluster"),
    "config map": ({"kind": "ConfigMap", "data": {"HF_TOKEN": "x"}}, "looks like a key"),
    "key in a file": (
        {"kind": "ConfigMap", "data": {"credentials": "[default]\naws_secret_access_key = wJalrXUtnFEMI\n"}},
        "data.credentials: aws_secret_access_key is written out",
    ),
    "key in a configuration": (
        {"kind": "ConfigMap", "data": {"config.yaml": "run:\n  s3: {aws_secret_access_key: wJalrXUtnFEMI}\n"}},
        "aws_secret_access_key is written out",
    ),
    "route": ({"kind": "HTTPRoute", "spec": {}}, "a way in from outside"),
    "gateway": ({"kind": "Gateway", "spec": {}}, "a way in from outside"),
    "route of OpenShift": ({"kind": "Route", "spec": {}}, "a way in from outside"),
    "half the world": (
        {"kind": "NetworkPolicy", "spec": {"egress": [{"to": [{"ipBlock": {"cidr": "52.0.0.0/15"}}]}]}},
        "too much of the world",
    ),
    "private key": ({"kind": "ConfigMap", "data": {"a": "-----BEGIN RSA PRIVATE KEY-----"}}, "holds a key"),
    "pod": ({"kind": "Pod", "spec": {"containers": []}}, "may run as root"),
    "job": ({"kind": "Job", "spec": {"template": {"spec": {"containers": []}}}}, "may run as root"),
    "open door": ({"kind": "NetworkPolicy", "spec": {"ingress": [{}]}}, "everything is allowed"),
    "open way out": ({"kind": "NetworkPolicy", "spec": {"egress": [{"ports": [{"port": 443}]}]}}, "everything is"),
    "the world": (
        {"kind": "NetworkPolicy", "spec": {"egress": [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}]}},
        "too much of the world",
    ),
    "the other world": (
        {"kind": "NetworkPolicy", "spec": {"egress": [{"to": [{"ipBlock": {"cidr": "::/0"}}]}]}},
        "too much of the world",
    ),
    "all neighbours": (
        {"kind": "NetworkPolicy", "spec": {"ingress": [{"from": [{"namespaceSelector": {}}]}]}},
        "every namespace",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_broken_objects(name):
    manifest, said = OTHERS[name]
    assert any(said in problem for problem in findings([manifest])), findings([manifest])


@pytest.mark.parametrize("name", ["platform", "monitoring", *OVERLAYS])
def test_what_is_in_the_repository_keeps_them(name):
    assert findings(kept()[name]) == []


def test_the_namespace_is_closed_by_a_policy_of_its_own():
    platform = kept()["platform"]
    assert is_closed(platform)
    assert not is_closed([each for each in platform if each["metadata"]["name"] != "deny-all"])
    for change in ({"podSelector": {"matchLabels": {"a": "b"}}}, {"policyTypes": ["Ingress"]}, {"egress": [{}]}):
        broken = copy.deepcopy(platform)
        next(each for each in broken if each["metadata"]["name"] == "deny-all")["spec"] |= change
        assert not is_closed(broken)
