"""What one engine replica needs of the Ray cluster, and how its actor is placed.

    need = replica_resources(config.judge.engine)
    dataset.map_batches(Judge, **need.map_batches_arguments(num_cpus=0.9))

========================  ===========================================================================================
no GPU                    CPUs only; the caller says how many, since they are book-keeping
a fraction of a GPU       ``num_gpus=0.5``: Ray puts two such replicas on one GPU
n GPUs, tensor parallel   ``num_gpus=n``: n GPUs of one node, since layers are exchanged at every token
pipeline parallel         a placement group of one bundle per GPU, packed; its stages may spread over nodes. vLLM's
                          workers are then Ray actors in these bundles, and the actor itself holds none of the GPUs
========================  ===========================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adamllm_ray.config import EngineSection

Bundle = dict[str, float]


@dataclass(frozen=True, slots=True)
class ReplicaResources:
    """GPUs of one replica, and the placement group they come in when they may lie on several nodes."""

    gpus: float
    bundles: tuple[Bundle, ...] = ()

    def map_batches_arguments(self, num_cpus: float | None = None) -> dict[str, Any]:
        """Arguments of ``Dataset.map_batches`` that place one replica; ``num_cpus`` counts only without GPUs."""
        if self.bundles:
            return {"num_gpus": 0, "num_cpus": 0, "ray_remote_args_fn": PlacedInGroup(self.bundles)}
        if self.gpus:
            return {"num_gpus": self.gpus}
        return {} if num_cpus is None else {"num_cpus": num_cpus}


@dataclass(frozen=True, slots=True)
class PlacedInGroup:
    """Called by Ray Data before it starts an actor: a new placement group for it and for the workers it starts.

    The group lives as long as the job: Ray has no hook for the end of one actor of a pool, and a restarted actor
    comes back into its group.
    """

    bundles: tuple[Bundle, ...]

    def __call__(self) -> dict[str, Any]:
        """Remote arguments of the next actor."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        group = ray.util.placement_group([dict(bundle) for bundle in self.bundles], strategy="PACK")
        return {
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
        }


def replica_resources(settings: EngineSection) -> ReplicaResources:
    """What one replica of this pool takes."""
    if settings.pipeline_parallel == 1:
        return ReplicaResources(settings.gpus_per_replica)
    workers = settings.tensor_parallel * settings.pipeline_parallel
    return ReplicaResources(settings.gpus_per_replica, tuple({"GPU": 1.0, "CPU": 1.0} for _ in range(workers)))
