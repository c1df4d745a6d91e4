"""The RayJob of one run: a stage's template from an overlay of ``cluster/``, and the run's configuration beside it.

    objects = run_objects("synthesize", config, render(overlay("gpu-h100")))
    refuse_broken(objects)
    print(as_yaml(objects))

kubectl has kustomize in it, so it renders (docs/decisions/0040); `kustomize` alone does too. Templates have no run: a
job of its own name gets the configuration as a ConfigMap of that name, mounted where the entry point looks for it, and
its head is told how far the cluster may grow. Nothing else is changed.
"""

from __future__ import annotations

import copy
import json
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from adamllm_ray.config import RunConfig, dump_config
from adamllm_ray.errors import ConfigError
from adamllm_ray.submission import kuberay, security
from adamllm_ray.submission.limits import tell_limits

Object = dict[str, Any]

SINCE = (5, 0)  # of kustomize; kubectl 1.27 has it
STAGE_LABEL, RUN_LABEL = "adamllm.io/stage", "adamllm.io/run"
CONFIG_FILE = "config.yaml"  # below /etc/adamllm, where the entry points of base/jobs.yaml look
CONFIG_VOLUME = "config"
PLACEHOLDERS = ("sha256:" + 64 * "0", "registry.example.com")
_ENDING = 7  # of a name: a hyphen and six hexadecimal digits


def overlay(name: str, start: Path | None = None) -> Path:
    """Folder of an overlay: a path with a kustomization.yaml, or a name in ``cluster/overlays`` of a checkout.

    The checkout is the current folder, or the one that the package is installed from. Raises ConfigError.
    """
    given = Path(name)
    if (given / "kustomization.yaml").is_file():
        return given
    places = [(root / "cluster" / "overlays") for root in (start or Path.cwd(), Path(__file__).parents[2])]
    known = {each.name: each for place in reversed(places) if place.is_dir() for each in sorted(place.iterdir())}
    if name in known:
        return known[name]
    found = ", ".join(sorted(known)) or "none: run this in a checkout of adamllm_ray, or give the overlay's path"
    raise ConfigError(f"there is no overlay {name!r}; there are: {found}")


def renderer() -> tuple[str, ...]:
    """The command that renders a folder. Raises ConfigError saying what is missing."""
    found = "there is no kubectl and no kustomize on this machine"
    if shutil.which("kubectl"):
        said = _output(["kubectl", "version", "--client", "-o", "json"])
        version = str(json.loads(said or "{}").get("kustomizeVersion", ""))
        if _version(version) >= SINCE:
            return ("kubectl", "kustomize")
        found = f"the kubectl on this machine has kustomize {version or 'of an unknown version'}"
    if shutil.which("kustomize"):
        version = _output(["kustomize", "version"]).strip()
        if _version(version) >= SINCE:
            return ("kustomize", "build")
        found = f"the kustomize on this machine is {version}"
    raise ConfigError(f"rendering needs kubectl 1.27 or newer, or kustomize 5 or newer; {found}")


def render(folder: Path) -> list[Object]:
    """Objects of a kustomization. Raises ConfigError with what the renderer said."""
    done = subprocess.run([*renderer(), str(folder)], capture_output=True, text=True, check=False)
    if done.returncode or done.stderr.strip():
        raise ConfigError(f"{folder} cannot be rendered: {done.stderr.strip()}")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [each for each in yaml.load_all(done.stdout, Loader=loader) if each]


def run_objects(job: str, config: RunConfig, templates: Iterable[Object], name: str | None = None) -> list[Object]:
    """The ConfigMap and the RayJob of a run. ``name`` is of both; one that nobody had before, if absent.

    Raises:
        ConfigError: the overlay has no template for the job, or its pods have no volume for a configuration.
    """
    made = copy.deepcopy(_template(job, templates))
    name = name or new_name(config.run.name, job)
    metadata = made["metadata"]
    metadata["name"] = name
    metadata.setdefault("labels", {})[RUN_LABEL] = re.sub(r"[^A-Za-z0-9]+$", "", config.run.name[: kuberay.MAX_LABEL])
    _mount(made, name)
    tell_limits(made)
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": name,
                "namespace": metadata.get("namespace", "default"),
                "labels": dict(metadata["labels"]),
            },
            "immutable": True,  # a job that is started again has the configuration that it had
            "data": {CONFIG_FILE: dump_config(config)},
        },
        made,
    ]


def new_name(run: str, job: str) -> str:
    """A RayJob's name that tells what it is: the run, cut to what fits, the job, and an ending of its own."""
    room = kuberay.MAX_NAME["RayJob"] - len(job) - 1 - _ENDING
    slug = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    slug = slug if slug[:1].isalpha() else f"run-{slug}"
    return f"{slug[:room].rstrip('-')}-{job}-{secrets.token_hex(3)}"


def refuse_broken(objects: Sequence[Object]) -> None:
    """Raise ConfigError with all that Kubernetes (labels), KubeRay's operator or our security rules do not take."""
    problems = [problem for each in objects for problem in (*kuberay.labels(each), *kuberay.findings(each))]
    problems += security.findings(objects)
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise ConfigError(f"the manifests of this overlay may not run:\n{lines}")


def unfilled(objects: Sequence[Object]) -> list[str]:
    """Images that are still the placeholders of ``cluster/site``: no registry has them."""
    found = {
        str(container.get("image"))
        for each in objects
        for _, pod in security.pods(each)
        for container in pod.get("containers") or []
        if any(word in str(container.get("image")) for word in PLACEHOLDERS)
    }
    return sorted(found)


def as_yaml(objects: Sequence[Object]) -> str:
    """The objects as `kubectl apply -f -` reads them, long texts as they would be written by hand."""
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=200)


def _template(job: str, templates: Iterable[Object]) -> Object:
    found = {
        str((each["metadata"].get("labels") or {}).get(STAGE_LABEL)): each
        for each in templates
        if each.get("kind") == "RayJob"
    }
    if job not in found:
        raise ConfigError(
            f"this overlay has no RayJob labelled {STAGE_LABEL}: {job}; it has {', '.join(found) or 'none'}"
        )
    return found[job]


def _mount(made: Object, config_map: str) -> None:
    """Point every pod's volume for the configuration at this run's; a pod waits until it is there."""
    cluster = made["spec"].get("rayClusterSpec") or {}
    for group in [cluster.get("headGroupSpec") or {}, *(cluster.get("workerGroupSpecs") or [])]:
        pod = (group.get("template") or {}).get("spec") or {}
        volumes = [volume for volume in pod.get("volumes") or [] if volume.get("name") == CONFIG_VOLUME]
        if not volumes:
            who = group.get("groupName", "head")
            raise ConfigError(f"the pods of {who} in this overlay have no volume {CONFIG_VOLUME!r} (cluster/base)")
        volumes[0]["configMap"] = {"name": config_map}


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _version(text: str) -> tuple[int, ...]:
    """(5, 5) of "v5.5.0"; () of anything else."""
    found = re.search(r"v?(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else ()


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, and no anchors: what is the same in two places is written twice."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)
