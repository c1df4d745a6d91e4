"""Objects onto a Kubernetes cluster, with kubectl where there is one, else with Kubernetes' Python client.

    api = kubernetes()
    submit(api, config_map, rayjob)
    api.read_job(namespace, name)

Both use the user's kubeconfig, so whoever may submit is the cluster's to say (platform/accounts.yaml). The
configuration goes first, because a pod waits for it, and then belongs to the job: it is deleted with it.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from adamllm_ray.errors import AdamLLMError, ClusterError, ConfigError

Manifest = Mapping[str, Any]

GROUP, VERSION, JOBS = "ray.io", "v1", "rayjobs"
TIMEOUT_S = 60.0
REFUSED = (400, 401, 403, 404, 409, 422)  # asking again would not help
_REFUSALS = (
    "(BadRequest)",
    "(Unauthorized)",
    "(Forbidden)",
    "(NotFound)",
    "(AlreadyExists)",
    " is invalid: ",
    "no matches for",
)
_STRICT = {"field_validation": "Strict"}  # as kubectl asks: a field that the server does not know is an error


class Kubernetes(Protocol):
    """What is asked of a cluster. Raises ConfigError when it refuses, ClusterError when it does not answer."""

    def create(self, manifest: Manifest) -> Manifest:
        """Make a ConfigMap or RayJob; returns it with its uid. One that exists is an error."""

    def own(self, config_map: Manifest, owner: Manifest) -> None:
        """Let a ConfigMap be deleted with its owner."""

    def delete(self, config_map: Manifest) -> None:
        """Remove a ConfigMap, if it is there."""

    def read_job(self, namespace: str, name: str) -> Manifest | None:
        """A RayJob as it is now, or None."""


def kubernetes() -> Kubernetes:
    """The way to the cluster that this machine has. Raises ConfigError naming what to install."""
    if shutil.which("kubectl"):
        return Kubectl()
    try:
        return PythonClient()
    except ImportError:
        raise ConfigError(
            "there is neither kubectl nor Kubernetes' Python client on this machine: install kubectl, or "
            "`pip install 'adamllm-ray[kubernetes]'`; --dry-run prints what would be applied"
        ) from None


def submit(api: Kubernetes, config_map: Manifest, job: Manifest) -> None:
    """Make both, or neither, and the ConfigMap the job's own."""
    api.create(config_map)
    try:
        made = api.create(job)
    except BaseException:
        with suppress(AdamLLMError):  # why the job was refused is what the user wants to know
            api.delete(config_map)
        raise
    with suppress(AdamLLMError):  # the job runs; its configuration would stay behind, a few kilobytes
        api.own(config_map, made)


def owner_of(job: Manifest) -> dict[str, Any]:
    """The patch that makes an object the job's."""
    metadata = job["metadata"]
    reference = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "RayJob", "name": metadata["name"], "uid": metadata["uid"]}
    return {"metadata": {"ownerReferences": [reference]}}


class Kubectl:
    """Through the command, with the current context of the kubeconfig."""

    def create(self, manifest: Manifest) -> Manifest:
        """See `Kubernetes`."""
        made: Manifest = json.loads(_kubectl(["create", "-f", "-", "-o", "json"], json.dumps(manifest)))
        return made

    def own(self, config_map: Manifest, owner: Manifest) -> None:
        """See `Kubernetes`."""
        where = _place(config_map)
        _kubectl(["patch", "configmap", *where, "--type", "merge", "-p", json.dumps(owner_of(owner))])

    def delete(self, config_map: Manifest) -> None:
        """See `Kubernetes`."""
        _kubectl(["delete", "configmap", *_place(config_map), "--ignore-not-found", "--wait=false"])

    def read_job(self, namespace: str, name: str) -> Manifest | None:
        """See `Kubernetes`."""
        resource = f"{JOBS}.{VERSION}.{GROUP}"
        said = _kubectl(["get", resource, name, "--namespace", namespace, "--ignore-not-found", "-o", "json"])
        return json.loads(said) if said.strip() else None


def _place(manifest: Manifest) -> list[str]:
    return [manifest["metadata"]["name"], "--namespace", manifest["metadata"]["namespace"]]


def _kubectl(arguments: Sequence[str], sent: str | None = None) -> str:
    command = ["kubectl", *arguments, f"--request-timeout={TIMEOUT_S:.0f}s"]
    try:
        done = subprocess.run(command, input=sent, capture_output=True, text=True, check=False, timeout=2 * TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ClusterError(f"kubectl {arguments[0]}: no answer in {2 * TIMEOUT_S:.0f} s") from None
    if done.returncode:
        raise _error(f"kubectl {arguments[0]}: {done.stderr.strip()}", any(each in done.stderr for each in _REFUSALS))
    return done.stdout


class PythonClient:
    """Through the package `kubernetes`, with the current context of the kubeconfig, or as a pod. Raises ImportError."""

    def __init__(self) -> None:
        package = importlib.import_module("kubernetes")
        self._failure = importlib.import_module("kubernetes.client.exceptions").ApiException
        named = os.environ.get("KUBECONFIG")  # the package reads it once, when it is imported
        try:
            package.config.load_config(**({"config_file": named} if named else {}))
        except package.config.ConfigException as error:
            raise ConfigError(f"no cluster is configured on this machine: {error}") from None
        self._core, self._custom = package.client.CoreV1Api(), package.client.CustomObjectsApi()

    def create(self, manifest: Manifest) -> Manifest:
        """See `Kubernetes`."""
        namespace = manifest["metadata"]["namespace"]
        if manifest["kind"] == "ConfigMap":
            self._ask(self._core.create_namespaced_config_map, namespace, dict(manifest), **_STRICT)
            return manifest
        made: Manifest = self._ask(
            self._custom.create_namespaced_custom_object, GROUP, VERSION, namespace, JOBS, dict(manifest), **_STRICT
        )
        return made

    def own(self, config_map: Manifest, owner: Manifest) -> None:
        """See `Kubernetes`."""
        metadata = config_map["metadata"]
        self._ask(self._core.patch_namespaced_config_map, metadata["name"], metadata["namespace"], owner_of(owner))

    def delete(self, config_map: Manifest) -> None:
        """See `Kubernetes`."""
        metadata = config_map["metadata"]
        self._ask(self._core.delete_namespaced_config_map, metadata["name"], metadata["namespace"])

    def read_job(self, namespace: str, name: str) -> Manifest | None:
        """See `Kubernetes`."""
        found: Manifest | None = self._ask(
            self._custom.get_namespaced_custom_object, GROUP, VERSION, namespace, JOBS, name
        )
        return found

    def _ask(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """The answer; None where a thing that is looked for or deleted is not there."""
        try:
            return call(*arguments, **named, _request_timeout=TIMEOUT_S)
        except self._failure as error:
            if error.status == 404 and call.__name__.startswith(("get", "delete")):
                return None
            raise _error(
                f"Kubernetes: {error.status} {error.reason}: {_message(error)}", error.status in REFUSED
            ) from None
        except OSError as error:  # urllib3's errors are none: below
            raise ClusterError(f"Kubernetes does not answer: {error}") from None
        except importlib.import_module("urllib3").exceptions.HTTPError as error:
            raise ClusterError(f"Kubernetes does not answer: {error}") from None


def _message(error: Any) -> str:
    try:
        return str(json.loads(error.body or "{}").get("message", ""))
    except (ValueError, TypeError, AttributeError):
        return ""


def _error(message: str, refused: bool) -> AdamLLMError:
    return ConfigError(message) if refused else ClusterError(message)
