"""Whether the pods of a RayJob can ever hold what the configuration asks for, told before the job is sent.

    refuse_too_large("synthesize", config, rayjob["spec"]["rayClusterSpec"])

On the cluster the same mistake shows as a job that waits for machines that no group has. What is compared is each
group at its largest; that Kubernetes has such nodes, nobody knows from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from adamllm_ray.config import EngineSection, RunConfig
from adamllm_ray.errors import ConfigError
from adamllm_ray.submission.limits import GPU, limits
from adamllm_ray.synthesis.pools import Pool, cpu_share

_ENGINES = {"synthesize": ("synthesis", "judge"), "evaluate": ("evaluation",), "tune": ("evaluation",)}


def refuse_too_large(job: str, config: RunConfig, cluster: Mapping[str, Any]) -> None:
    """Raise ConfigError naming the setting and what the groups have, where pods or the sum of all are too small."""
    total, largest = limits(cluster), _gpus_of_largest_pod(cluster)
    for stage, names in _ENGINES.items():
        whole = job == "pipeline" and stage != "tune" and (stage != "evaluate" or bool(config.evaluation.asked))
        if job == stage or whole:
            engines = dict(_engines(config, names))
            for name, engine in engines.items():
                _fits_a_pod(f"{name}.engine.gpus_per_replica", engine, largest)
            cpu_share({name: Pool(engine, 1) for name, engine in engines.items()}, total)
    if job in ("train", "tune", "pipeline"):
        _fits_training(config, total)


def _engines(config: RunConfig, names: tuple[str, ...]) -> Iterator[tuple[str, EngineSection]]:
    for name in names:
        yield name, getattr(config, name).engine


def _fits_a_pod(field: str, engine: EngineSection, largest: float) -> None:
    if engine.pipeline_parallel == 1 and engine.gpus_per_replica > largest:  # stages may lie in several pods
        raise ConfigError(
            f"{field} is {engine.gpus_per_replica:g}, and no pod of this job's groups has more than {largest:g}: "
            "lower it, set engine.pipeline_parallel, or give a group more GPUs per pod (cluster/components)"
        )


def _fits_training(config: RunConfig, total: Mapping[str, float]) -> None:
    section = config.training
    for kind, need in (
        ("GPU", section.workers * section.gpus_per_worker),
        ("CPU", section.workers * section.cpus_per_worker),
    ):
        if need > total[kind]:
            raise ConfigError(
                f"training.workers ({section.workers}) need {need:g} {kind}s, and the groups of this job have "
                f"{total[kind]:g} at their largest: lower training.workers, or raise maxReplicas (cluster/components)"
            )


def _gpus_of_largest_pod(cluster: Mapping[str, Any]) -> float:
    found = [0.0]
    for group in cluster.get("workerGroupSpecs") or []:
        resources = group["template"]["spec"]["containers"][0].get("resources") or {}
        found.append(float((resources.get("limits") or {}).get(GPU, 0)))
    return max(found)
