"""Who reaches whom under the platform's policies, asked of the rules and of the labels that the pods really have.

This re-codes what a NetworkPolicy means (the union of what the policies that select a pod allow, in both directions); a
real network plugin was not asked.
"""

from __future__ import annotations

import copy
import ipaddress
import re
import shutil
from typing import Any

import kubernetes_validate
import pytest

from adamllm_ray.submission import security
from adamllm_ray.submission.render import render
from tests.cluster.rendering import CLUSTER, kept, kustomize

Pod = dict[str, Any]
HOME = {"kubernetes.io/metadata.name": "adamllm"}


def of_job(component: str) -> Pod:
    """The labels of a pod as the rendered job has them."""
    spec = next(each for each in kept()["gpu-h100"] if each["kind"] == "RayJob")["spec"]
    cluster = spec["rayClusterSpec"]
    templates = {
        "head": cluster["headGroupSpec"]["template"],
        "worker": cluster["workerGroupSpecs"][0]["template"],
        "submitter": spec["submitterPodTemplate"],
    }
    return {"namespace": HOME, "labels": templates[component]["metadata"]["labels"]}


def elsewhere(namespace: str, **labels: str) -> Pod:
    return {"namespace": {"kubernetes.io/metadata.name": namespace}, "labels": labels}


def outside(address: str) -> Pod:
    return {"address": address}


PODS = {
    "head": of_job("head"),
    "worker": of_job("worker"),
    "submitter": of_job("submitter"),
    "notebook": {"namespace": HOME, "labels": {"app": "notebook"}},
    "neighbour": elsewhere("default", **{"app.kubernetes.io/part-of": "adamllm", "adamllm.io/node": "ray"}),
    "operator": elsewhere("kuberay-system", **{"app.kubernetes.io/name": "kuberay-operator"}),
    "impostor": elsewhere("default", **{"app.kubernetes.io/name": "kuberay-operator"}),
    "prometheus": elsewhere("monitoring", app="prometheus"),
    "dns": elsewhere("kube-system", **{"k8s-app": "kube-dns"}),
    "store": outside("192.0.2.10"),
    "api": outside("192.0.2.128"),
    "internet": outside("203.0.113.9"),
    "metadata": outside("169.254.169.254"),
    "metadata below": outside("169.254.169.252"),
    "pod identity": outside("169.254.170.23"),
    "sts": outside("192.0.2.200"),
}
ALLOWED = [
    ("head", "worker", 10001),
    ("worker", "head", 6379),
    ("worker", "worker", 34567),
    ("submitter", "head", 8265),
    ("operator", "head", 8265),
    ("prometheus", "head", 8080),
    ("prometheus", "head", 44217),
    ("prometheus", "worker", 8080),
    ("head", "dns", 53),
    ("worker", "dns", 53),
    ("submitter", "dns", 53),
    ("head", "store", 443),
    ("worker", "store", 443),
    ("head", "api", 443),
]
DENIED = [
    ("neighbour", "head", 8265),
    ("neighbour", "head", 10001),
    ("neighbour", "head", 6379),
    ("neighbour", "worker", 8080),
    ("notebook", "head", 8265),
    ("impostor", "head", 8265),
    ("internet", "head", 8265),
    ("prometheus", "head", 8265),
    ("operator", "head", 10001),
    ("operator", "worker", 8265),
    ("submitter", "head", 10001),
    ("submitter", "worker", 8265),
    ("submitter", "store", 443),
    ("submitter", "internet", 443),
    ("head", "internet", 443),
    ("worker", "internet", 443),
    ("worker", "metadata", 80),
    ("head", "pod identity", 80),
    ("head", "sts", 443),
    ("head", "store", 9000),
    ("worker", "api", 443),
    ("worker", "neighbour", 8080),
    ("worker", "store", 22),
    ("notebook", "internet", 443),
]


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    for each in selector.get("matchExpressions", []):
        if each["operator"] != "In":
            raise NotImplementedError(each["operator"])
        if labels.get(each["key"]) not in each["values"]:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


def matches(peer: dict[str, Any], other: Pod) -> bool:
    if "ipBlock" in peer:
        block = ipaddress.ip_network(peer["ipBlock"]["cidr"])
        return "address" in other and ipaddress.ip_address(other["address"]) in block
    if "address" in other:
        return False
    there = (
        selects(peer["namespaceSelector"], other["namespace"])
        if "namespaceSelector" in peer
        else (other["namespace"] == HOME)
    )
    return there and selects(peer.get("podSelector", {}), other["labels"])


def opens(policies: list[dict[str, Any]], direction: str, pod: Pod, other: Pod, port: int) -> bool:
    """The policies let ``pod`` talk with ``other`` in this direction; a pod outside the namespace is not theirs."""
    if pod.get("namespace") != HOME:
        return True
    own = [each["spec"] for each in policies if direction in each["spec"]["policyTypes"]]
    own = [spec for spec in own if selects(spec["podSelector"], pod["labels"])]
    peers = "from" if direction == "Ingress" else "to"
    rules = [rule for spec in own for rule in spec.get(direction.lower(), [])]
    return not own or any(
        any(matches(peer, other) for peer in rule[peers])
        and ("ports" not in rule or port in {each["port"] for each in rule["ports"]})
        for rule in rules
    )


def reaches(policies: list[dict[str, Any]], source: str, target: str, port: int) -> bool:
    here, there = PODS[source], PODS[target]
    return opens(policies, "Egress", here, there, port) and opens(policies, "Ingress", there, here, port)


@pytest.fixture
def policies() -> list[dict[str, Any]]:
    return copy.deepcopy([each for each in kept()["platform"] if each["kind"] == "NetworkPolicy"])


@pytest.mark.parametrize(("source", "target", "port"), ALLOWED)
def test_a_job_can_do_its_work(policies, source, target, port):
    assert reaches(policies, source, target, port)


@pytest.mark.parametrize(("source", "target", "port"), DENIED)
def test_and_nobody_can_do_anything_else(policies, source, target, port):
    assert not reaches(policies, source, target, port)


@pytest.mark.parametrize("name", ["ray", "job-api", "submitter", "dns", "object-store", "kubernetes-api", "metrics"])
def test_every_policy_is_needed(policies, name):
    fewer = [each for each in policies if each["metadata"]["name"] != name]
    assert not all(reaches(fewer, *way) for way in ALLOWED)


def test_without_the_first_policy_the_rest_leaves_doors_open(policies):
    fewer = [each for each in policies if each["metadata"]["name"] != "deny-all"]
    assert any(reaches(fewer, *way) for way in DENIED)


@pytest.fixture(scope="module")
def filled_in(tmp_path_factory) -> list[dict[str, Any]]:
    """The platform with all that is commented out in site/, and a store at another port."""
    if kustomize() is None:
        pytest.skip("no kubectl with kustomize 5 on this machine")
    made = shutil.copytree(CLUSTER, tmp_path_factory.mktemp("site") / "cluster")
    file = made / "site" / "kustomization.yaml"
    text = re.sub(r"^( *)# ((?:- |  ).*)$", r"\1\2", file.read_text(), flags=re.MULTILINE)
    file.write_text(text.replace("port: 443", "port: 9000", 1))
    return render(made / "platform")


@pytest.mark.parametrize(
    ("target", "port"),
    [("store", 9000), ("sts", 443), ("pod identity", 80), ("metadata below", 988), ("metadata", 80)],
)
def test_what_is_commented_out_in_site_opens_the_way_to_a_cloud_role(filled_in, target, port):
    policies = [each for each in filled_in if each["kind"] == "NetworkPolicy"]
    for source in ("head", "worker"):
        assert reaches(policies, source, target, port)
    assert not reaches(policies, "submitter", target, port)
    assert not reaches(policies, "head", "store", 443)
    assert not reaches(policies, "head", "internet", 443)


def test_what_is_commented_out_in_site_is_right(filled_in):
    for each in filled_in:
        kubernetes_validate.validate(each, "1.33", strict=True)
    assert security.findings(filled_in) == []
    accounts = {each["metadata"]["name"]: each for each in filled_in if each["kind"] == "ServiceAccount"}
    assert all(each["imagePullSecrets"] == [{"name": "adamllm-registry"}] for each in accounts.values())
    assert {name for name, each in accounts.items() if "annotations" in each["metadata"]} == {
        "adamllm-head",
        "adamllm-worker",
    }
