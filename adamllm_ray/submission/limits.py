"""What a job's cluster may grow to, told to its driver.

    tell_limits(rayjob)         head container: ADAMLLM_CLUSTER_LIMITS='{"CPU": 320, "GPU": 20}'

A cluster that starts with no worker looks too small for every job, and in Ray 2.60 a driver cannot ask KubeRay's
autoscaler what it may add (`ReportClusterConfig` exists in the GCS; nobody sends it). The groups of the RayJob know, so
their sums go into the driver's environment, where `synthesis/pools.py` looks for them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from typing import Any

from adamllm_ray.synthesis.pools import LIMITS

GPU = "nvidia.com/gpu"


def limits(cluster: Mapping[str, Any]) -> dict[str, float]:
    """CPUs and GPUs of all worker groups at their largest, of a ``rayClusterSpec``. The head has none."""
    total = {"CPU": 0.0, "GPU": 0.0}
    for group in cluster.get("workerGroupSpecs") or []:
        pods = group.get("maxReplicas", group.get("replicas", 0)) * group.get("numOfHosts", 1)
        resources = group["template"]["spec"]["containers"][0].get("resources") or {}
        asked = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
        total["CPU"] += pods * cores(str(asked.get("cpu", 0)))
        total["GPU"] += pods * float(asked.get(GPU, 0))
    return total


def tell_limits(job: Mapping[str, Any]) -> None:
    """Put the limits of a RayJob's cluster into the environment of its head, in place; a value that is there stays."""
    cluster = job["spec"]["rayClusterSpec"]
    head: MutableMapping[str, Any] = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    environment = head.setdefault("env", [])
    if LIMITS not in {each.get("name") for each in environment}:
        environment.append({"name": LIMITS, "value": json.dumps(limits(cluster))})


def cores(quantity: str) -> float:
    """CPUs of a Kubernetes quantity: ``"16"``, ``"0.5"`` or ``"500m"``."""
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)
