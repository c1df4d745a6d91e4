"""What KubeRay's operator refuses although the custom resource's schema allows it, said before anything is sent.

    for problem in findings(rayjob): print(problem)

The operator checks these when it first sees an object; the API server has accepted it by then, and the job stands
there as `ValidationFailed` with a line in its log. Re-coded from `validation.go` and the CEL rules of KubeRay
1.7, for the fields that a stage needs; `GcsFaultToleranceOptions`, history server and TLS, which the manifests of
``cluster/`` do not use, are left to the operator. An object is looked at as the API server would have completed it:
`minReplicas` 0, no upper bound, where they are absent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import yaml

Manifest = Mapping[str, Any]

MAX_NAME = {"RayCluster": 53, "RayJob": 47}  # the operator appends to them
MAX_LABEL = 63
UNBOUNDED = 2**31 - 1
TOKEN_SINCE, PRIORITY_SINCE = (2, 52), (2, 56)
DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
_DNS1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_START_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")


def findings(manifest: Manifest) -> list[str]:
    """Problems of a RayCluster or RayJob, each with the place and the rule. Other kinds have none."""
    kind, spec = manifest.get("kind"), manifest.get("spec") or {}
    if kind == "RayCluster":
        return [*_name(manifest, "RayCluster"), *_cluster(spec)]
    if kind == "RayJob":
        return [*_name(manifest, "RayJob"), *_job(spec), *_cluster(spec.get("rayClusterSpec") or {}, of_job=True)]
    return []


def labels(manifest: Manifest) -> list[str]:
    """Labels of any object that the API server would refuse, which schemas do not say."""
    found = (manifest.get("metadata") or {}).get("labels") or {}
    return [f"metadata.labels: {problem}" for problem in _labels(found)]


def _labels(found: Mapping[str, Any]) -> Iterator[str]:
    for key, value in found.items():
        if not _LABEL_KEY.fullmatch(key) or not _LABEL.fullmatch(str(value)):
            yield f"{key}={value} is no Kubernetes label"


def _name(manifest: Manifest, kind: str) -> Iterator[str]:
    name = str((manifest.get("metadata") or {}).get("name", ""))
    if len(name) > MAX_NAME[kind]:
        yield f"metadata.name: {len(name)} characters; a {kind} has at most {MAX_NAME[kind]}"
    if not _DNS1035.fullmatch(name):
        yield f"metadata.name: {name!r} is no DNS label (a-z first, then a-z, 0-9 and -)"


def _job(spec: Manifest) -> Iterator[str]:
    mode, retries = spec.get("submissionMode", "K8sJobMode"), spec.get("backoffLimit", 0)
    selector, cluster = spec.get("clusterSelector"), spec.get("rayClusterSpec")
    if not selector and cluster is None:
        yield "spec: neither rayClusterSpec nor clusterSelector"
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "spec.suspend: only with shutdownAfterJobFinishes: true"
    if selector:
        yield from _selected(spec, mode, retries)
    if mode == "InteractiveMode" and retries:
        yield "spec.backoffLimit: not in InteractiveMode"
    if mode == "SidecarMode":
        yield from (f"spec.{key}: not in SidecarMode" for key in _SUBMITTER if spec.get(key) is not None)
        if _restart((cluster or {}).get("headGroupSpec") or {}) != "Never":
            yield "spec.rayClusterSpec.headGroupSpec: restartPolicy must be Never in SidecarMode"
    for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(key, 1) <= 0:
            yield f"spec.{key}: must be above 0"
    if retries < 0:
        yield "spec.backoffLimit: must not be below 0"
    if not _is_mapping(str(spec.get("runtimeEnvYAML") or "{}")):
        yield "spec.runtimeEnvYAML: is no YAML, or no mapping"
    yield from _deletion(spec)


def _is_mapping(text: str) -> bool:
    try:
        return isinstance(yaml.safe_load(text), dict)
    except yaml.YAMLError:
        return False


_SUBMITTER = ("submitterPodTemplate", "submitterConfig")


def _selected(spec: Manifest, mode: str, retries: int) -> Iterator[str]:
    if not spec["clusterSelector"].get("ray.io/cluster"):
        yield "spec.clusterSelector: names no cluster (ray.io/cluster)"
    if spec.get("suspend"):
        yield "spec.suspend: not with clusterSelector"
    if retries:
        yield "spec.backoffLimit: not with clusterSelector"
    if mode == "SidecarMode":
        yield "spec.submissionMode: SidecarMode does not go with clusterSelector"


def _deletion(spec: Manifest) -> Iterator[str]:
    shutdown, ttl = spec.get("shutdownAfterJobFinishes", False), spec.get("ttlSecondsAfterFinished", 0)
    if ttl < 0:
        yield "spec.ttlSecondsAfterFinished: must not be below 0"
    if ttl > 0 and not shutdown:
        yield "spec.ttlSecondsAfterFinished: only with shutdownAfterJobFinishes: true"
    strategy = spec.get("deletionStrategy")
    if strategy is None:
        return
    rules, legacy = strategy.get("deletionRules") or [], [key for key in _LEGACY if strategy.get(key)]
    if rules and shutdown:
        yield "spec.deletionStrategy.deletionRules: not with shutdownAfterJobFinishes"
    if rules and legacy:
        yield f"spec.deletionStrategy: deletionRules and {legacy[0]} exclude each other"
    if not rules and len(legacy) < len(_LEGACY):
        yield "spec.deletionStrategy: needs deletionRules, or both onSuccess and onFailure"
    yield from _deletion_rules(rules, bool((spec.get("rayClusterSpec") or {}).get("enableInTreeAutoscaling")), spec)


_LEGACY = ("onSuccess", "onFailure")


def _deletion_rules(rules: list[Manifest], autoscaled: bool, spec: Manifest) -> Iterator[str]:
    seen: dict[tuple[str, str], dict[str, int]] = {}
    for number, rule in enumerate(rules):
        place, policy = f"spec.deletionStrategy.deletionRules[{number}]", str(rule.get("policy"))
        condition = rule.get("condition") or {}
        states = [(key, str(condition[key])) for key in ("jobStatus", "jobDeploymentStatus") if condition.get(key)]
        if len(states) != 1:
            yield f"{place}: needs exactly one of jobStatus and jobDeploymentStatus"
            continue
        if policy == "DeleteWorkers" and autoscaled:
            yield f"{place}: DeleteWorkers does not go with the autoscaler, which removes idle workers itself"
        if spec.get("clusterSelector") and policy in ("DeleteCluster", "DeleteWorkers"):
            yield f"{place}: {policy} does not go with clusterSelector"
        lives = seen.setdefault(states[0], {})
        if policy in lives:
            yield f"{place}: a second {policy} for {states[0][1]}"
        lives.setdefault(policy, condition.get("ttlSeconds", 0))
    for (_, state), lives in seen.items():
        ordered = [policy for policy in DELETION_ORDER if policy in lives]
        for first, then in pairwise(ordered):
            if lives[then] < lives[first]:
                yield f"spec.deletionStrategy: for {state}, {then} ({lives[then]} s) comes before {first}"


def _cluster(spec: Manifest, *, of_job: bool = False) -> Iterator[str]:
    if not spec:
        return
    head, workers = spec.get("headGroupSpec") or {}, spec.get("workerGroupSpecs") or []
    if of_job and spec.get("upgradeStrategy"):
        yield "rayClusterSpec.upgradeStrategy: not in a RayJob"
    for name, group in [("head", head), *((str(each.get("groupName")), each) for each in workers)]:
        yield from _group(name, group)
    for group in workers:
        yield from _worker(group, spec)
    yield from _autoscaler(spec, head, workers)
    yield from _authentication(spec, of_job=of_job)
    if "RAY_REDIS_ADDRESS" in _environment(head) and not spec.get("gcsFaultToleranceOptions"):
        yield "head: RAY_REDIS_ADDRESS needs gcsFaultToleranceOptions"
    if (head.get("rayStartParams") or {}).get("redis-username") or "REDIS_USERNAME" in _environment(head):
        yield "head: redis-username and REDIS_USERNAME are gcsFaultToleranceOptions.redisUsername"
    if spec.get("networkPolicy"):
        yield "networkPolicy: behind the feature gate RayClusterNetworkPolicy, which is off; use NetworkPolicy objects"
    if spec.get("tlsOptions"):
        yield "tlsOptions: behind the feature gate RayClusterMTLS, which is off"


def _group(name: str, group: Manifest) -> Iterator[str]:
    if not _pod(group).get("containers"):
        yield f"{name}: no container"
    start = group.get("rayStartParams") or {}
    if group.get("resources") and any(start.get(key) for key in _START_RESOURCES):
        yield f"{name}: resources are said in rayStartParams and in `resources`; leave one out"
    if "labels" in start:
        yield f"{name}: rayStartParams.labels is not supported; use `labels` of the group"
    yield from (f"{name}: {problem}" for problem in _labels(group.get("labels") or {}))


def _worker(group: Manifest, spec: Manifest) -> Iterator[str]:
    name = group.get("groupName")
    least, most = group.get("minReplicas", 0), group.get("maxReplicas", UNBOUNDED)
    if least < 0 or most < 0:
        yield f"{name}: minReplicas and maxReplicas must not be below 0"
    if least > most:
        yield f"{name}: minReplicas ({least}) is above maxReplicas ({most})"
    idle, priority = group.get("idleTimeoutSeconds"), group.get("priority", 0)
    if idle is not None and idle < 0:
        yield f"{name}: idleTimeoutSeconds must not be below 0"
    if idle is not None and not _v2(spec):
        yield f"{name}: idleTimeoutSeconds needs autoscalerOptions.version: v2"
    if priority and not _v2(spec):
        yield f"{name}: priority needs autoscalerOptions.version: v2"
    if priority and _version(spec) < PRIORITY_SINCE:
        yield f"{name}: priority needs rayVersion 2.56 or newer"
    if group.get("suspend") and spec.get("enableInTreeAutoscaling"):
        yield f"{name}: suspend does not go with the autoscaler"


def _autoscaler(spec: Manifest, head: Manifest, workers: list[Manifest]) -> Iterator[str]:
    options, set_by_hand = spec.get("autoscalerOptions") or {}, _environment(head).get("RAY_enable_autoscaler_v2")
    if not spec.get("enableInTreeAutoscaling"):
        if set_by_hand in ("1", "true"):
            yield "head: RAY_enable_autoscaler_v2 without enableInTreeAutoscaling: true"
        return
    if options.get("version") and set_by_hand is not None:
        yield "head: RAY_enable_autoscaler_v2 beside autoscalerOptions.version; leave it out"
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "autoscalerOptions.idleTimeoutSeconds: must not be below 0"
    if "KUBERAY_GEN_AUTOSCALER_START_CMD" in {each.get("name") for each in options.get("env") or []}:
        yield "autoscalerOptions.env: KUBERAY_GEN_AUTOSCALER_START_CMD is the operator's"
    if _v2(spec):
        for name, group in [("head", head), *((each.get("groupName"), each) for each in workers)]:
            if _restart(group) != "Never":
                yield f"{name}: restartPolicy must be Never with autoscaler v2"


def _authentication(spec: Manifest, *, of_job: bool) -> Iterator[str]:
    options = spec.get("authOptions") or {}
    if options.get("mode") == "token" and _version(spec) < TOKEN_SINCE:
        yield "authOptions.mode: token needs rayVersion, 2.52 or newer"
    if options.get("enableK8sTokenAuth"):
        if options.get("mode") != "token":
            yield "authOptions.enableK8sTokenAuth: needs mode: token"
        if options.get("secretName"):
            yield "authOptions.enableK8sTokenAuth: not beside secretName"
        if of_job:
            yield "authOptions.enableK8sTokenAuth: not supported for a RayJob"


def _version(spec: Manifest) -> tuple[int, ...]:
    """(2, 60) of "2.60.0"; () where there is none or it is no version."""
    found = re.match(r"v?(\d+)\.(\d+)", str(spec.get("rayVersion", "")))
    return (int(found[1]), int(found[2])) if found else ()


def _v2(spec: Manifest) -> bool:
    return (spec.get("autoscalerOptions") or {}).get("version") == "v2"


def _pod(group: Manifest) -> Manifest:
    return (group.get("template") or {}).get("spec") or {}


def _restart(group: Manifest) -> str:
    """Unset is Never: the operator sets it."""
    return str(_pod(group).get("restartPolicy") or "Never")


def _environment(group: Manifest) -> dict[str, str]:
    """Of the Ray container, which is the first."""
    containers = _pod(group).get("containers") or [{}]
    return {str(each.get("name")): str(each.get("value")) for each in containers[0].get("env") or []}
