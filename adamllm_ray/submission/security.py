"""What must hold of every manifest before it may run with data that is not to leave: nothing exposed, nothing printed.

    for problem in findings(objects): print(problem)

The job API of Ray runs any code that reaches it, so it has a token, no service that the outside sees, and a network
that is closed but for named ways. Pods meet Kubernetes' *restricted* profile, with a read-only root beside it. Images
are named by digest. Keys are in Secrets that somebody else made, never in a manifest.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Manifest = Mapping[str, Any]

EXPOSED = ("LoadBalancer", "NodePort")
WAYS_IN = ("Ingress", "HTTPRoute", "Gateway", "Route")  # kinds that open a way in from outside
HOST = ("hostNetwork", "hostPID", "hostIPC")
WIDEST = 16  # bits of an IPv4 network that a policy may open: wider than a /16 is not "the object store" any more
_DIGEST = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")
_SECRET_NAME = re.compile(r"(SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|ACCESS_KEY|API_KEY|PRIVATE_KEY)", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"(AKIA|ASIA)[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|\bhf_[A-Za-z0-9]{30,}|://[^/\s:]+:[^@\s]+@"
)
# A key by its name in a text (a file of a ConfigMap, a runtime environment, a command), with a value behind it.
# Narrower than _SECRET_NAME: a configuration has many kinds of tokens that are none.
_SECRET_LINE = re.compile(
    r"(?<![A-Za-z0-9_.-])(?P<name>[\w.-]*(?:SECRET|PASSWORD|PASSWD|ACCESS_KEY|API_KEY|PRIVATE_KEY"
    r"|(?:AUTH|HF|HUB|ACCESS|SESSION|BEARER)[_-]?TOKEN)[\w.-]*)[\"']?\s*[:=]\s*(?P<value>[\"']?[^\s\"',}#]+)",
    re.IGNORECASE,
)
_NO_KEY = ("_FILE", "_PATH", "_MODE")  # ends of names that hold no key
_NOTHING = ("null", "~", "none", "false", "true", "{", "[", "|", ">")


def findings(objects: Iterable[Manifest]) -> list[str]:
    """Problems of a set of rendered objects, each with its object, its place and what to do."""
    found = []
    for each in objects:
        name = f"{each.get('kind')}/{(each.get('metadata') or {}).get('name')}"
        found += [f"{name}: {problem}" for problem in (*_exposure(each), *_secrets(each), *_network(each))]
        for place, pod in pods(each):
            found += [f"{name}: {place}: {problem}" for problem in _pod(pod)]
    return found


def is_closed(objects: Iterable[Manifest]) -> bool:
    """One of them is a policy that denies every pod of the namespace all traffic that no other policy allows."""
    specs = [each["spec"] for each in objects if each.get("kind") == "NetworkPolicy"]
    return any(
        not spec.get("podSelector")
        and not (spec.get("ingress") or spec.get("egress"))
        and set(spec.get("policyTypes") or ()) == {"Ingress", "Egress"}
        for spec in specs
    )


def clusters(manifest: Manifest) -> Iterator[Manifest]:
    """The description of a Ray cluster in a RayCluster or RayJob."""
    spec = manifest.get("spec") or {}
    if manifest.get("kind") == "RayCluster":
        yield spec
    elif manifest.get("kind") == "RayJob" and spec.get("rayClusterSpec"):
        yield spec["rayClusterSpec"]


def pods(manifest: Manifest) -> Iterator[tuple[str, Manifest]]:
    """(where, pod spec) of every pod that the object makes."""
    spec = manifest.get("spec") or {}
    for cluster in clusters(manifest):
        yield "head", _spec(cluster.get("headGroupSpec") or {})
        for group in cluster.get("workerGroupSpecs") or []:
            yield str(group.get("groupName")), _spec(group)
    if spec.get("submitterPodTemplate"):
        yield "submitter", spec["submitterPodTemplate"].get("spec") or {}
    if manifest.get("kind") == "Pod":
        yield "pod", spec
    elif isinstance(spec.get("template"), Mapping):
        yield "pod", spec["template"].get("spec") or {}


def _spec(group: Manifest) -> Manifest:
    spec: Manifest = (group.get("template") or {}).get("spec") or {}
    return spec


def _exposure(manifest: Manifest) -> Iterator[str]:
    spec = manifest.get("spec") or {}
    if manifest.get("kind") in WAYS_IN:
        yield "opens a way in from outside; reach the dashboard through `kubectl port-forward`"
    if manifest.get("kind") == "Service" and (spec.get("type") in EXPOSED or spec.get("externalIPs")):
        yield f"type {spec.get('type')} is seen from outside; use ClusterIP"
    for cluster in clusters(manifest):
        if (cluster.get("authOptions") or {}).get("mode") != "token":
            yield "authOptions.mode is not token: whoever reaches the job API could run code"
        head = cluster.get("headGroupSpec") or {}
        service = (head.get("headService") or {}).get("spec") or {}
        if head.get("serviceType") in EXPOSED or service.get("type") in EXPOSED:
            yield "the head's service is seen from outside; use serviceType: ClusterIP"
        if head.get("enableIngress"):
            yield "headGroupSpec.enableIngress opens the dashboard; set it to false"
        if cluster.get("enableInTreeAutoscaling"):
            yield from (f"autoscaler: {problem}" for problem in _autoscaler(cluster.get("autoscalerOptions") or {}))


def _pod(pod: Manifest) -> Iterator[str]:
    person = pod.get("securityContext") or {}
    if person.get("runAsNonRoot") is not True or person.get("runAsUser") == 0:
        yield "may run as root; set securityContext.runAsNonRoot: true and a runAsUser"
    if (person.get("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "no seccomp profile; set securityContext.seccompProfile.type: RuntimeDefault"
    yield from (f"{key} shares the node's; remove it" for key in HOST if pod.get(key))
    for volume in pod.get("volumes") or []:
        if "hostPath" in volume:
            yield f"volume {volume.get('name')} is a path of the node; use a claim or emptyDir"
    for container in [*(pod.get("containers") or []), *(pod.get("initContainers") or [])]:
        yield from (f"{container.get('name')}: {problem}" for problem in _container(container))


def _autoscaler(options: Manifest) -> Iterator[str]:
    """The container that the operator puts beside the head; without an image it has the head's."""
    yield from _locked(options.get("securityContext") or {})
    if options.get("image"):
        yield from _image(options)
    yield from _variables(options)


def _container(container: Manifest) -> Iterator[str]:
    yield from _locked(container.get("securityContext") or {})
    yield from _image(container)
    if not ((container.get("resources") or {}).get("limits") or {}).get("memory"):
        yield "no memory limit"
    yield from (f"hostPort {port['hostPort']}" for port in container.get("ports") or [] if port.get("hostPort"))
    yield from _variables(container)


def _image(container: Manifest) -> Iterator[str]:
    if not _DIGEST.fullmatch(str(container.get("image"))):
        yield f"image {container.get('image')} is not named by digest (name@sha256:...)"


def _variables(container: Manifest) -> Iterator[str]:
    for variable in container.get("env") or []:
        name, value = str(variable.get("name")), variable.get("value")
        if value and _SECRET_NAME.search(name) and not name.upper().endswith(_NO_KEY):
            yield f"{name} is written out; take it from a Secret (valueFrom.secretKeyRef)"
        if name == "RAY_AUTH_MODE" and value != "token":
            yield "RAY_AUTH_MODE turns the token off"


def _locked(context: Manifest) -> Iterator[str]:
    if context.get("privileged") or context.get("allowPrivilegeEscalation") is not False:
        yield "may gain privileges; set securityContext.allowPrivilegeEscalation: false"
    if context.get("readOnlyRootFilesystem") is not True:
        yield "may write to its image; set securityContext.readOnlyRootFilesystem: true"
    capabilities = context.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or []) or capabilities.get("add"):
        yield "keeps capabilities; set securityContext.capabilities.drop: [ALL] and add none"
    if context.get("runAsUser") == 0 or context.get("runAsNonRoot") is False:
        yield "runs as root"


def _secrets(manifest: Manifest) -> Iterator[str]:
    if manifest.get("kind") == "Secret" and (manifest.get("data") or manifest.get("stringData")):
        yield "a Secret with its content is no manifest: make it in the cluster and refer to it by name"
    if manifest.get("kind") == "ConfigMap":
        yield from (
            f"data.{key} looks like a key; put it into a Secret"
            for key, value in (manifest.get("data") or {}).items()
            if value and _SECRET_NAME.search(key)
        )
    for place, text in _texts(manifest, ""):
        if _SECRET_VALUE.search(text):
            yield f"{place} holds a key"
        yield from (f"{place}: {name} is written out; take it from a Secret" for name in _named_keys(text))


def _named_keys(text: str) -> Iterator[str]:
    for found in _SECRET_LINE.finditer(text):
        if not found["name"].upper().endswith(_NO_KEY) and found["value"].lower() not in _NOTHING:
            yield found["name"]


def _texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{place}[{number}]")
    elif isinstance(value, str):
        yield place, value


def _network(manifest: Manifest) -> Iterator[str]:
    if manifest.get("kind") != "NetworkPolicy":
        return
    spec = manifest.get("spec") or {}
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for number, rule in enumerate(spec.get(direction) or []):
            place = f"{direction}[{number}]"
            if not rule.get(peers):
                yield f"{place} has no `{peers}`: everything is allowed; name the peers"
            for peer in rule.get(peers) or []:
                yield from (f"{place}: {problem}" for problem in _peer(peer))


def _peer(peer: Manifest) -> Iterator[str]:
    if "namespaceSelector" in peer and not peer["namespaceSelector"]:
        yield "an empty namespaceSelector is every namespace; name one"
    if not peer.get("ipBlock"):
        return
    network = ipaddress.ip_network(str(peer["ipBlock"].get("cidr")), strict=False)
    bits = WIDEST if network.version == 4 else 3 * WIDEST
    if network.prefixlen < bits:
        yield f"{network} is too much of the world; name the endpoint's own addresses (/{bits} or narrower)"
