"""Scrape, alerts and dashboard of ``cluster/monitoring``; each check with a broken copy that it must see."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest
import yaml

from adamllm_ray import gauges
from tests.cluster import test_network as network
from tests.cluster.monitoring import (
    LABELS,
    OURS,
    alert_problems,
    dashboard_problems,
    of_ray,
    query_problems,
    schema_problems,
    selectors,
)
from tests.cluster.rendering import CLUSTER, OVERLAYS, kept
from tests.scraping import a_replica, local_ray, names, samples

FOLDER = CLUSTER / "monitoring"
OBJECTS = {f"{each['kind']}/{each['metadata']['name']}": each for each in kept()["monitoring"]}
MONITORS = [each for each in OBJECTS.values() if each["kind"] == "PodMonitor"]
RULES = {
    rule["alert"]: rule for group in OBJECTS["PrometheusRule/adamllm"]["spec"]["groups"] for rule in group["rules"]
}
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [rule["expr"] for rule in RULES.values()]
QUERIES += [target["expr"] for panel in PANELS for target in panel["targets"]]

# Not on a page of a healthy Ray without GPUs and without KubeRay's autoscaler
ELSEWHERE = ("ray_node_gpus_", "ray_node_gram_", "autoscaler_")
AFTER_A_FAULT = {"ray_node_manager_unexpected_worker_failure_total", "ray_memory_manager_worker_eviction_total"}


def test_the_kustomization_is_two_monitors_rules_and_a_dashboard() -> None:
    assert OBJECTS.keys() == {
        "PodMonitor/adamllm-head",
        "PodMonitor/adamllm-workers",
        "PrometheusRule/adamllm",
        "ConfigMap/adamllm-dashboard",
    }
    assert {each["metadata"]["namespace"] for each in OBJECTS.values()} == {"adamllm"}
    assert all(each["metadata"]["labels"]["release"] for each in OBJECTS.values())
    for name in OVERLAYS:
        assert "PodMonitor" not in repr(kept()[name]), "monitoring is optional"


def test_the_dashboard_reaches_grafana_s_sidecar_as_it_is() -> None:
    made = OBJECTS["ConfigMap/adamllm-dashboard"]
    kubernetes_validate.validate(made, "1.33", strict=True)
    assert json.loads(made["data"]["adamllm.json"]) == DASHBOARD
    assert made["metadata"]["labels"]["grafana_dashboard"] == "1"


@pytest.mark.parametrize("name", [name for name in OBJECTS if not name.startswith("ConfigMap")])
def test_the_operator_s_schema(name: str) -> None:
    assert schema_problems(OBJECTS[name]) == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("PodMonitor/adamllm-head", {"podMetricEndpoints": []}),
        ("PodMonitor/adamllm-head", {"podMetricsEndpoints": [{"port": "metrics", "interval": "often"}]}),
        ("PodMonitor/adamllm-head", {"podTargetLabels": "ray.io/cluster"}),
        ("PodMonitor/adamllm-head", {"selector": None}),
        ("PrometheusRule/adamllm", {"groups": [{"rules": []}]}),
        ("PrometheusRule/adamllm", {"groups": [{"name": "a", "rules": [{"alert": "A", "expr": "up", "for": "ten"}]}]}),
        ("PrometheusRule/adamllm", {"groups": [{"name": "a", "rules": [{"alert": "A", "expr": "up", "level": "x"}]}]}),
        ("PrometheusRule/adamllm", {"groups": [{"name": "a", "rules": [{"alert": "A"}]}]}),
    ],
)
def test_a_broken_copy_is_refused_by_the_operator_s_schema(name: str, change: dict[str, Any]) -> None:
    broken = copy.deepcopy(OBJECTS[name])
    broken["spec"] |= change
    assert schema_problems(broken)


def scraped(monitor: dict[str, Any], pods: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Component of each pod that the monitor selects -> the ports that it reads."""
    wanted = monitor["spec"]["selector"]["matchLabels"]
    found = {}
    for pod in pods:
        if wanted.items() <= pod["metadata"]["labels"].items():
            ports = {each["name"]: each["containerPort"] for each in pod["spec"]["containers"][0].get("ports", [])}
            endpoints = monitor["spec"]["podMetricsEndpoints"]
            found[pod["metadata"]["labels"]["app.kubernetes.io/component"]] = [ports[e["port"]] for e in endpoints]
    return found


def pods_of(overlay: str) -> list[dict[str, Any]]:
    found = []
    for each in kept()[overlay]:
        spec = each["spec"].get("rayClusterSpec", each["spec"])
        found += [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
        found += [each["spec"]["submitterPodTemplate"]] if "submitterPodTemplate" in each["spec"] else []
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_ray_pod_is_read_on_ports_that_it_has(overlay: str) -> None:
    read: dict[str, list[int]] = {}
    for monitor in MONITORS:
        read |= scraped(monitor, pods_of(overlay))
    assert read == {"head": [8080, 44217, 44227], "worker": [8080]}


def test_a_monitor_with_another_port_or_label_is_seen() -> None:
    other = copy.deepcopy(MONITORS[0])
    other["spec"]["podMetricsEndpoints"][0]["port"] = "metric"
    with pytest.raises(KeyError):
        scraped(other, pods_of("gpu-h100"))
    other["spec"]["selector"]["matchLabels"]["app.kubernetes.io/part-of"] = "other"
    assert scraped(other, pods_of("gpu-h100")) == {}


def test_the_network_lets_prometheus_read_and_nobody_else() -> None:
    policies = [each for each in kept()["platform"] if each["kind"] == "NetworkPolicy"]
    for monitor in MONITORS:
        for component, ports in scraped(monitor, pods_of("gpu-h100")).items():
            for port in ports:
                assert network.reaches(policies, "prometheus", component, port)
                assert not network.reaches(policies, "neighbour", component, port)
    fewer = [each for each in policies if each["metadata"]["name"] != "metrics"]
    assert not network.reaches(fewer, "prometheus", "worker", 8080)


@pytest.mark.parametrize("name", RULES)
def test_an_alert(name: str) -> None:
    assert alert_problems(RULES[name]) == []


def test_the_dashboard() -> None:
    assert dashboard_problems(DASHBOARD) == []


def test_what_a_person_wants_to_know_is_drawn_and_warned_of() -> None:
    drawn = {name for panel in PANELS for target in panel["targets"] for name, _ in selectors(target["expr"])}
    assert drawn >= OURS
    assert {"ray_object_store_memory", "ray_node_mem_used", "ray_node_gpus_utilization", "ray_actors"} <= drawn
    assert {"AdamllmNoProgress", "AdamllmRequestsFail", "AdamllmObjectStoreSpills", "AdamllmHeadMemory"} <= RULES.keys()
    assert {"AdamllmActorsRestart", "AdamllmWorkersDie", "AdamllmWorkersOutOfMemory"} <= RULES.keys()


def test_every_metric_is_one_that_we_or_ray_emit() -> None:
    used = {name for query in QUERIES for name, _ in selectors(query)}
    assert used - OURS - of_ray() == {"up"}


@pytest.mark.parametrize(
    ("query", "said"),
    [
        # Ray writes counters with _total
        ("rate(ray_adamllm_engine_rows[5m])", "nothing emits ray_adamllm_engine_rows"),
        ("adamllm_engine_slots", "nothing emits adamllm_engine_slots"),
        ("ray_node_mem_usage > 1", "nothing emits ray_node_mem_usage"),
        ("vllm:num_requests_running", "nothing emits vllm:num_requests_running"),
        ("sum by (pool) (ray_adamllm_engine_slots)", "no label pool"),
        ('ray_adamllm_stage_done{model="a"}', "no label model"),
        ("rate(ray_adamllm_stage_done)", "expected type"),
        ("sum by (stage) (ray_adamllm_stage_done", "parenthesis"),
    ],
)
def test_a_broken_query_is_seen(query: str, said: str) -> None:
    assert any(said in problem for problem in query_problems(query))


def test_a_legend_that_names_a_label_that_is_gone_is_seen() -> None:
    assert query_problems("sum by (model) (ray_adamllm_engine_slots)", "{{model}}") == []
    assert query_problems("sum by (model) (ray_adamllm_engine_slots)", "{{pool}}")
    assert query_problems("sum by (model) (ray_adamllm_engine_slots) > 1", "{{ $labels.ray_io_cluster }}")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda rule: rule.pop("annotations"),
        lambda rule: rule["annotations"].pop("description"),
        lambda rule: rule.update(labels={}),
        lambda rule: rule.update(expr="ray_adamllm_stage_doen == 1"),
    ],
)
def test_a_broken_alert_is_seen(spoil: Callable[[Any], None]) -> None:
    broken = copy.deepcopy(RULES["AdamllmNoProgress"])
    spoil(broken)
    assert alert_problems(broken)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda board: board.pop("schemaVersion"), "no schemaVersion"),
        (lambda board: board["templating"]["list"].pop(), "no variable cluster"),
        (lambda board: board["panels"][2].update(id=2), "the same id"),
        (lambda board: board["panels"][2]["gridPos"].update(x=0), "lies on another one"),
        (lambda board: board["panels"][2]["gridPos"].update(x=20), "over the edge"),
        (lambda board: board["panels"][2].update(targets=[]), "nothing to draw"),
        (lambda board: board["panels"][2].update(title=""), "no title"),
        (lambda board: board["panels"][2].update(type="timeserie"), "unknown type"),
        (lambda board: board["panels"][2]["targets"][0].update(datasource="Prometheus"), "not from the chosen"),
        (lambda board: board["panels"][2]["targets"][0].update(expr="ray_actors"), "all clusters"),
        (lambda board: board["panels"][2]["targets"][0].update(expr="ray_actor"), "nothing emits ray_actor"),
        (lambda board: board["panels"][2]["targets"].append(board["panels"][2]["targets"][0]), "same refId"),
    ],
)
def test_a_broken_dashboard_is_seen(spoil: Callable[[Any], None], said: str) -> None:
    broken = copy.deepcopy(DASHBOARD)
    spoil(broken)
    assert any(said in problem for problem in dashboard_problems(broken)), dashboard_problems(broken)


def test_a_metric_that_is_taken_out_of_the_code_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other direction: the list is the code's own, and no copy of it."""
    from tests.cluster import monitoring

    assert {f"adamllm_{name}" for name in gauges.GAUGES} <= LABELS.keys()
    monkeypatch.setattr(monitoring, "OURS", OURS - {"ray_adamllm_stage_done"})
    assert any("nothing emits ray_adamllm_stage_done" in each for each in dashboard_problems(DASHBOARD))
    assert any("nothing emits" in each for each in alert_problems(RULES["AdamllmNoProgress"]))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_they_are_on_the_page_of_a_real_ray_with_the_labels_that_are_asked_for() -> None:
    asked: dict[str, set[str]] = {}
    for query in QUERIES:
        for name, labels in selectors(query):
            asked[name] = asked.get(name, set()) | labels
    expected = {name for name in asked if not name.startswith(ELSEWHERE)} - AFTER_A_FAULT - {"up"}
    with local_ray():
        replica = a_replica()
        for name, (_, keys) in gauges.GAUGES.items():
            gauges.show(name, 1, **dict.fromkeys(keys, "x"))
        found = samples(lambda found: names(found) >= expected)
    assert replica
    assert expected <= names(found)
    for name in expected:
        labels = set().union(*(sample.labels for sample in found if sample.name == name))
        assert asked[name] - labels <= {"ray_io_cluster", "ray_io_group", "instance"}, name
    values = {(sample.name, sample.labels.get("Location")) for sample in found}
    assert ("ray_object_store_memory", "SPILLED") in values
    assert any(s.labels.get("IsHeadNode") == "true" for s in found if s.name == "ray_node_mem_used")
    assert any(s.labels.get("Name") == "object_store_memory" for s in found if s.name == "ray_resources")


def test_files_are_yaml_and_json_that_a_person_can_read() -> None:
    for file in FOLDER.glob("*.yaml"):
        assert list(yaml.safe_load_all(file.read_text("utf-8")))
        assert file.read_text("utf-8").startswith("#"), f"{file.name} does not say what it is"
    assert max(map(len, (FOLDER / "dashboard.json").read_text("utf-8").splitlines())) < 400
