"""`adamllm submit`: refuse what could not work, hand the job over, follow it to its end.

code = hand_over("synthesize", config, Target(cluster="gpu-h100"))
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from adamllm_ray.config import RunConfig
from adamllm_ray.errors import ConfigError
from adamllm_ray.exits import DONE
from adamllm_ray.submission.places import STAGES, refuse_hub, refuse_local


@dataclass(frozen=True, slots=True)
class Target:
    """Where a job goes, and how: one of ``cluster`` (an overlay) and ``address`` (a job API of Ray)."""

    cluster: str = ""
    address: str = ""
    dry_run: bool = False
    follow: bool = True
    mounted: tuple[str, ...] = ()


def hand_over(job: str, config: RunConfig, target: Target) -> int:
    """Submit a stage, or ``pipeline``; returns the exit code of `adamllm submit`.

    Raises:
        ConfigError: no such stage, no or two targets, a local path, a model that pods cannot fetch, an overlay that is
            unsafe or not filled in, a cluster that refuses.
        ClusterError: a cluster that does not answer.
    """
    if job not in STAGES:
        raise ConfigError(f"there is no stage {job!r} to submit; there are: {', '.join(STAGES)}")
    if bool(target.cluster) == bool(target.address):
        raise ConfigError("say where to: --cluster OVERLAY for Kubernetes, or --address http://HEAD:8265 for Ray")
    if job == "evaluate" and not config.evaluation.asked:
        raise ConfigError("evaluation.task and evaluation.tasks are empty: there is nothing to evaluate")
    if job == "tune":
        from adamllm_ray.tuning.settings import section_of  # imports numpy

        section_of(config)
    refuse_local(job, config, target.mounted)
    return _to_kubernetes(job, config, target) if target.cluster else _to_ray(job, config, target)


def _to_kubernetes(job: str, config: RunConfig, target: Target) -> int:
    from adamllm_ray.submission import apply, render
    from adamllm_ray.submission.fits import refuse_too_large
    from adamllm_ray.submission.follow import follow

    objects = render.run_objects(job, config, render.render(render.overlay(target.cluster)))
    render.refuse_broken(objects)
    refuse_hub(job, config, objects[1]["spec"]["rayClusterSpec"])
    refuse_too_large(job, config, objects[1]["spec"]["rayClusterSpec"])
    unfilled = render.unfilled(objects)
    if target.dry_run:
        for image in unfilled:
            say(f"not to be applied yet: {image} is the placeholder of cluster/site/kustomization.yaml")
        sys.stdout.write(render.as_yaml(objects))
        return DONE
    if unfilled:
        raise ConfigError(
            f"the image is still a placeholder ({', '.join(unfilled)}): fill in cluster/site/kustomization.yaml"
        )
    api, [config_map, rayjob] = apply.kubernetes(), objects
    apply.submit(api, config_map, rayjob)
    name, namespace = rayjob["metadata"]["name"], rayjob["metadata"]["namespace"]
    say(f"rayjob/{name} in namespace {namespace}. Its log: kubectl -n {namespace} logs -f job/{name}")
    with _watching(f"kubectl -n {namespace} get rayjob {name}; to stop it, delete it"):
        return follow(lambda: api.read_job(namespace, name), say) if target.follow else DONE


def _to_ray(job: str, config: RunConfig, target: Target) -> int:
    from adamllm_ray.submission.address import RayCluster

    if target.dry_run:
        raise ConfigError("--dry-run shows manifests, and --address needs none; leave one of them out")
    cluster = RayCluster(target.address)
    name = cluster.submit(job, config)
    say(f"job {name}. To stop it: ray job stop {name} --address {target.address}")
    with _watching(f"ray job logs -f {name} --address {target.address}"):
        return cluster.follow(name, print) if target.follow else DONE


@contextmanager
def _watching(instead: str) -> Iterator[None]:
    """Ctrl-C ends the watching and says so."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"not watching any more; the job goes on: {instead}")
        raise


def say(line: str) -> None:
    """What is about the job, not of it, goes to standard error."""
    print(line, file=sys.stderr, flush=True)
