"""Checks of ``cluster/monitoring``: each returns what is wrong, so that a broken copy can be shown to be seen.

PodMonitors and rules are held to the Prometheus operator's own schema (cloudcoil has it as pydantic models), queries to
a parser of PromQL. Grafana publishes no schema for the JSON that it imports: `dashboard_problems` asks for what a panel
needs to draw something. Which metrics exist is asked of the code that emits them: ours, and of Ray's package.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import pydantic
from cloudcoil.models.prometheus_operator import v1

from adamllm_ray import gauges
from adamllm_ray.synthesis import meters

TARGET = {"ray_io_cluster", "ray_io_group", "instance", "pod", "job"}  # labels that the scrape adds
OF_PROMETHEUS = {"up"}
LABELS = {f"adamllm_{name}": set(keys) for name, (_, keys) in gauges.GAUGES.items()}
LABELS |= {f"adamllm_engine_{name}_total": {"model"} for name in meters.COUNTERS}
LABELS |= {f"adamllm_engine_{name}": {"model"} for name in meters.GAUGES}
LABELS["adamllm_engine_rows_total"] |= {"outcome"}
OURS = {f"ray_{name}" for name in LABELS}


@cache
def of_ray() -> set[str]:
    """Every metric that the installed Ray defines: its agent's, its autoscaler's, and those of its own dashboards.

    What its C++ parts count has no list in the package; its dashboards name most of that.
    """
    from ray.autoscaler._private.prom_metrics import AutoscalerPrometheusMetrics
    from ray.dashboard.modules.metrics import dashboards
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    found = {f"ray_{name}" for name in METRICS_GAUGES}
    found |= {family.name for family in AutoscalerPrometheusMetrics("any").registry.collect()}
    for file in Path(next(iter(dashboards.__path__))).glob("*_panels.py"):
        found |= set(re.findall(r"\bray_[a-z0-9_]+", file.read_text("utf-8")))
    return found


def selectors(query: str) -> list[tuple[str, set[str]]]:
    """(metric, labels that are asked for) of each selector. Raises ValueError where this is no PromQL."""
    found: list[tuple[str, set[str]]] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append((node.name, {each.name for each in node.matchers.matchers}))

    promql_parser.walk(promql_parser.parse(query.replace("$__rate_interval", "1m")), visit)
    return found


def grouped(query: str) -> set[str]:
    """Labels of its ``by (...)``."""
    return {label.strip() for part in re.findall(r"\bby \(([^)]*)\)", query) for label in part.split(",")}


def query_problems(query: str, words: str = "") -> list[str]:
    """What is wrong with a query: syntax, metrics that nothing emits, labels that ours do not have.

    ``words``: text that names labels of the result, ``{{model}}`` in a legend, ``$labels.model`` in an alert.
    """
    try:
        found = selectors(query)
    except ValueError as error:
        return [f"{query}: {error}"]
    unknown = {name for name, _ in found} - OURS - of_ray() - OF_PROMETHEUS
    problems = [f"nothing emits {name}" for name in sorted(unknown)]
    for name, asked in found:
        if name in OURS:
            strange = (asked | grouped(query)) - LABELS[name.removeprefix("ray_")] - TARGET
            problems += [f"{name} has no label {label}" for label in sorted(strange)]
    own = [LABELS[name.removeprefix("ray_")] if name in OURS else set() for name, _ in found]
    there = grouped(query) or set().union(*own) | TARGET
    said = set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", words))
    return problems + [f"{query} has no label {label} to show" for label in sorted(said - there)]


def schema_problems(manifest: dict[str, Any]) -> list[str]:
    """What the Prometheus operator's schema says; a field that it does not know counts too."""
    try:
        model = getattr(v1, manifest["kind"]).model_validate(manifest)
    except pydantic.ValidationError as error:
        return [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
    known = model.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return [] if known == manifest else [f"unknown fields: {manifest} is read as {known}"]


def alert_problems(rule: dict[str, Any]) -> list[str]:
    """An alert has a severity and says what is the matter; its query is one."""
    words = " ".join(rule.get("annotations", {}).values())
    problems = query_problems(rule["expr"], words)
    if not {"summary", "description"} <= rule.get("annotations", {}).keys():
        problems.append("no summary or no description")
    if rule.get("labels", {}).get("severity") not in ("info", "warning", "critical"):
        problems.append("no severity")
    return problems


def dashboard_problems(dashboard: dict[str, Any]) -> list[str]:
    """What keeps Grafana from importing it, or from drawing each of its panels."""
    problems = [f"no {key}" for key in ("title", "uid", "schemaVersion", "panels", "time") if not dashboard.get(key)]
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)\}?", repr(dashboard["panels"]))) - {"__rate_interval"}
    problems += [f"no variable {name}" for name in sorted(used - variables)]
    ids = [panel["id"] for panel in dashboard["panels"]]
    if len(set(ids)) < len(ids):
        problems.append("two panels have the same id")
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        problems += [f"{panel.get('title')}: {each}" for each in panel_problems(panel, taken)]
    return problems


def panel_problems(panel: dict[str, Any], taken: set[tuple[int, int]]) -> Iterator[str]:
    """Of one panel; ``taken`` are the cells of the grid that have something."""
    at = panel["gridPos"]
    cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
    if cells & taken or at["x"] + at["w"] > 24:
        yield "lies on another one, or over the edge"
    taken |= cells
    if not panel.get("title"):
        yield "no title"
    if panel["type"] == "row":
        return
    if panel["type"] != "timeseries":
        yield f"unknown type {panel['type']}"
    if not panel.get("targets") or not panel.get("description"):
        yield "nothing to draw, or no description"
    if len({each["refId"] for each in panel["targets"]}) < len(panel["targets"]):
        yield "two queries have the same refId"
    for target in panel["targets"]:
        if target["datasource"] != {"type": "prometheus", "uid": "${datasource}"}:
            yield "not from the chosen Prometheus"
        if any("ray_io_cluster" not in asked for _, asked in selectors(target["expr"])):
            yield "a query for all clusters at once"
        yield from query_problems(target["expr"], target["legendFormat"])
