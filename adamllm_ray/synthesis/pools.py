"""How pools of engine replicas fit into the Ray cluster, and the arguments that say so to ``Dataset.map_batches``.

    [pool] = fit_pools({"evaluation": (config.evaluation.engine, rows_per_block)})
    dataset.map_batches(Scorer, batch_size=32, **pool)

A replica with GPUs takes its GPUs. One without takes ``cpus_per_replica``, or less where all pools, Ray Data's own
tasks and its resume filter must share few cores: the numbers are only Ray's book-keeping, and a pool that waits for a
core that another stage of the same pipeline holds would wait for ever.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adamllm_ray.errors import ConfigError

if TYPE_CHECKING:
    from adamllm_ray.config import EngineSection

IO_CPUS = 0.1  # of one read or write task: they wait for the disk
RESERVED_CPUS = 2.25  # Ray Data's repartition task and resume filter take one each, whatever we say; reads and writes

Pools = Mapping[str, "tuple[EngineSection, int]"]


def fit_pools(pools: Pools) -> list[dict[str, Any]]:
    """``compute``, ``num_cpus`` and ``num_gpus`` for each pool, in order. Values: (settings, rows per block).

    Raises:
        ConfigError: the cluster cannot hold all pools at the same time; says what is missing.
    """
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
    gpus = sum(settings.replicas * settings.gpus_per_replica for settings, _ in pools.values())
    cpus = sum(
        settings.replicas * settings.cpus_per_replica for settings, _ in pools.values() if not _has_gpu(settings)
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
    compute = ActorPoolStrategy(
        size=settings.replicas, max_concurrent_calls_per_actor=calls, max_tasks_in_flight_per_actor=calls + 1
    )
    if _has_gpu(settings):
        return {"compute": compute, "num_gpus": settings.gpus_per_replica}
    return {"compute": compute, "num_cpus": math.floor(settings.cpus_per_replica * share * 100) / 100}


def _has_gpu(settings: EngineSection) -> bool:
    return settings.gpus_per_replica > 0


def _too_small(kind: str, need: float, have: float, pools: Pools) -> str:
    parts = ", ".join(f"{name}: {settings.replicas} replicas" for name, (settings, _) in pools.items())
    return (
        f"the engine pools need {need:g} {kind} at the same time ({parts}) and Ray has {have:g}; lower "
        f"engine.replicas or engine.{kind.lower()}_per_replica, or give Ray more"
    )
