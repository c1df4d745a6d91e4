"""How pools of engine replicas fit into the Ray cluster, and the arguments that say so to ``Dataset.map_batches``.

    [pool] = fit_pools({"evaluation": (config.evaluation.engine, rows_per_block)})
    dataset.map_batches(Scorer, batch_size=32, **pool)

A replica with GPUs takes its GPUs. One without takes ``cpus_per_replica``, or less where all pools, Ray Data's own
tasks and its resume filter must share few cores: the numbers are only Ray's book-keeping, and a pool that waits for a
core that another stage of the same pipeline holds would wait for ever.

A pool has ``engine.min_replicas`` at least, which must fit, and grows to ``engine.replicas`` where there is room and
work waits. Replicas that die are started again without end, as spot machines need it; a *batch* whose replica dies
under it is tried ``engine.max_retries`` times more, so that a row that kills its engine stops the job.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adamllm_ray.errors import ConfigError
from adamllm_ray.synthesis.placement import replica_resources

if TYPE_CHECKING:
    from adamllm_ray.config import EngineSection

IO_CPUS = 0.1  # of one read or write task: they wait for the disk
GROWING = 2  # blocks handed out per concurrent call: Ray adds a replica when this many wait, at 1.75 and not below
RESERVED_CPUS = 2.25  # Ray Data's repartition task and resume filter take one each, whatever we say; reads and writes

Pools = Mapping[str, "tuple[EngineSection, int]"]


def fit_pools(pools: Pools) -> list[dict[str, Any]]:
    """Arguments of ``map_batches`` for each pool, in order. Values of ``pools``: (settings, rows per block).

    Raises:
        ConfigError: the cluster cannot hold all pools at the same time; says what is missing.
    """
    # Ray has no named argument for max_task_retries yet and warns of unnamed ones
    warnings.filterwarnings("ignore", message="`ray_remote_args(_fn)?` is deprecated", category=DeprecationWarning)
    share = cpu_share(pools, cluster_capacity())
    return [_arguments(settings, rows, share) for settings, rows in pools.values()]


def cluster_capacity() -> dict[str, float]:
    """CPUs and GPUs of the cluster; with an autoscaler, what it may grow to."""
    import ray
    from ray._private.state import state  # the autoscaler's limits have no public interface

    capacity: dict[str, float] = dict(ray.cluster_resources())
    for name, most in (state.get_max_resources_from_cluster_config() or {}).items():
        capacity[name] = max(capacity.get(name, 0.0), float(most))
    return capacity


def cpu_share(pools: Pools, capacity: Mapping[str, float]) -> float:
    """Factor (0..1] on ``cpus_per_replica`` with which all pools of one pipeline fit. Raises ConfigError if none."""
    gpus = sum(settings.least_replicas * settings.gpus_per_replica for settings, _ in pools.values())
    cpus = sum(
        settings.least_replicas * settings.cpus_per_replica for settings, _ in pools.values() if not _has_gpu(settings)
    )
    total_cpus, total_gpus = capacity.get("CPU", 0.0), capacity.get("GPU", 0.0)
    if gpus > total_gpus:
        raise ConfigError(_too_small("GPUs", gpus, total_gpus, pools))
    if cpus > total_cpus:
        raise ConfigError(_too_small("CPUs", cpus, total_cpus, pools))
    left = total_cpus - RESERVED_CPUS
    if left <= 0:
        raise ConfigError(f"Ray has {total_cpus:g} CPUs; reading and resuming alone reserve 2: give it at least 3")
    return min(1.0, left / cpus) if cpus else 1.0


def concurrent_calls(settings: EngineSection, rows_per_block: int) -> int:
    """Blocks in work at one replica: enough rows to fill it while the last ones of a block finish."""
    return min(16, 1 + math.ceil(settings.max_num_seqs / rows_per_block))


def write_tasks() -> int:
    """Blocks written at the same time. Few on a laptop, where each task more is a Python process more to start."""
    return max(2, int(cluster_capacity().get("CPU", 0.0) // 4))


def _arguments(settings: EngineSection, rows_per_block: int, share: float) -> dict[str, Any]:
    from ray.data import ActorPoolStrategy

    calls = concurrent_calls(settings, rows_per_block)
    least, most = settings.least_replicas, settings.replicas
    compute = ActorPoolStrategy(
        min_size=least,
        max_size=most,
        initial_size=least,
        max_concurrent_calls_per_actor=calls,
        max_tasks_in_flight_per_actor=calls + 1 if least == most else GROWING * calls,
    )
    bounded = {"compute": compute, "max_task_retries": settings.max_retries}
    need = replica_resources(settings)
    if need.bundles and least != most:
        raise ConfigError(
            "engine.min_replicas below engine.replicas does not go with engine.pipeline_parallel: Ray keeps the GPUs "
            "of a replica that the pool gave up; leave min_replicas out"
        )
    return bounded | need.map_batches_arguments(math.floor(settings.cpus_per_replica * share * 100) / 100)


def _has_gpu(settings: EngineSection) -> bool:
    return settings.gpus_per_replica > 0


def _too_small(kind: str, need: float, have: float, pools: Pools) -> str:
    parts = ", ".join(f"{name}: {settings.least_replicas} replicas" for name, (settings, _) in pools.items())
    return (
        f"the engine pools need {need:g} {kind} at the same time ({parts}) and Ray has {have:g}; lower "
        f"engine.replicas or engine.{kind.lower()}_per_replica, let the pool start smaller (engine.min_replicas), or "
        "give Ray more"
    )
