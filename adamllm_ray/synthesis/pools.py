"""How pools of engine replicas fit into the Ray cluster, and the arguments that say so to ``Dataset.map_batches``.

    [pool] = fit_pools({"evaluation": Pool(config.evaluation.engine, rows_per_block)})
    dataset.map_batches(Scorer, batch_size=None, **pool)

A replica with GPUs takes its GPUs. One without takes ``cpus_per_replica``, or less where all pools, Ray Data's own
tasks and its resume filter must share few cores: the numbers are only Ray's book-keeping, and a pool that waits for a
core that another stage of the same pipeline holds would wait for ever.

A pool has ``engine.min_replicas`` at least, which must fit, and grows to ``engine.replicas`` where there is room and
work waits. Replicas that die are started again without end, as spot machines need it; a *batch* whose replica dies
under it is tried ``engine.max_retries`` times more, then the job stops. Synthesis finds a row that kills its engine and
does not count the deaths by it (see `poison`); in an evaluation Ray counts them all, and such a question stops the job.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adamllm_ray.errors import ConfigError
from adamllm_ray.synthesis.placement import replica_resources

if TYPE_CHECKING:
    from adamllm_ray.config import EngineSection

IO_CPUS = 0.1  # of one read or write task: they wait for the disk
MOST_CALLS = 64  # threads of one replica process
GROWING = 2  # blocks handed out per concurrent call: Ray adds a replica when this many wait, at 1.75 and not below
WRITES_WITHOUT_BOUND = 16  # at a time, where the cluster may grow to any number of CPUs
LIMITS = "ADAMLLM_CLUSTER_LIMITS"  # what the cluster may grow to, as JSON; of a RayJob, `adamllm submit` sets it
KUBERAY_AUTOSCALER = "RAY_enable_autoscaler_v2"  # in the environment of a head whose autoscaler is on, either version
RESERVED_CPUS = 2.25  # Ray Data's repartition task and resume filter take one each, whatever we say; reads and writes


@dataclass(frozen=True)
class Pool:
    """One pool of replicas, and how its work comes.

    Attributes:
        engine: its settings.
        rows_per_block: rows that a replica is handed at once.
        unevenness: how much longer the longest row of a block takes than the mean one. A block is done with its
            longest row, and until then its other slots are free: so much more must be in work to fill the replica.
    """

    engine: EngineSection
    rows_per_block: int
    unevenness: float = 1.0

    @property
    def calls(self) -> int:
        """Blocks in work at one replica: enough rows to keep all slots of its engine busy."""
        return min(MOST_CALLS, 1 + math.ceil(self.unevenness * self.engine.slots / self.rows_per_block))

    @property
    def handed(self) -> int:
        """Blocks handed to one replica: those in work, and the next to be."""
        return self.calls + 1 if self.engine.least_replicas == self.engine.replicas else GROWING * self.calls

    @property
    def unfinished(self) -> int:
        """Blocks in work at all replicas and waiting for the next step; as many may wait as fill the replicas."""
        return self.engine.replicas * (self.handed + math.ceil(self.engine.slots / self.rows_per_block))


Pools = Mapping[str, Pool]


def fit_pools(pools: Pools) -> list[dict[str, Any]]:
    """Arguments of ``map_batches`` for each pool, in order.

    Raises:
        ConfigError: the cluster cannot hold all pools at the same time; says what is missing.
    """
    # Ray has no named argument for max_task_retries yet and warns of unnamed ones
    warnings.filterwarnings("ignore", message="`ray_remote_args(_fn)?` is deprecated", category=DeprecationWarning)
    share = cpu_share(pools, cluster_capacity())
    return [_arguments(pool, share) for pool in pools.values()]


def cluster_capacity() -> dict[str, float]:
    """CPUs and GPUs of the cluster; with an autoscaler, what it may grow to: infinite where nobody says.

    Raises:
        ConfigError: ADAMLLM_CLUSTER_LIMITS is no JSON object of numbers.
    """
    import ray
    from ray._private.state import state  # the autoscaler's limits have no public interface

    capacity: dict[str, float] = dict(ray.cluster_resources())
    for name, most in (state.get_max_resources_from_cluster_config() or _told(os.environ)).items():
        capacity[name] = max(capacity.get(name, 0.0), float(most))
    return capacity


def _told(environment: Mapping[str, str]) -> dict[str, float]:
    """KubeRay's autoscaler tells Ray nothing of its limits, and its clusters start with a head without CPUs."""
    text = environment.get(LIMITS)
    if text:
        try:
            return {str(name): float(most) for name, most in json.loads(text).items()}
        except (ValueError, TypeError, AttributeError):
            raise ConfigError(f'{LIMITS} is {text!r}; it looks like {{"CPU": 64, "GPU": 8}}') from None
    return {"CPU": math.inf, "GPU": math.inf} if KUBERAY_AUTOSCALER in environment else {}


def cpu_share(pools: Pools, capacity: Mapping[str, float]) -> float:
    """Factor (0..1] on ``cpus_per_replica`` with which all pools of one pipeline fit. Raises ConfigError if none."""
    engines = [pool.engine for pool in pools.values()]
    gpus = sum(engine.least_replicas * engine.gpus_per_replica for engine in engines)
    cpus = sum(engine.least_replicas * engine.cpus_per_replica for engine in engines if not _has_gpu(engine))
    total_cpus, total_gpus = capacity.get("CPU", 0.0), capacity.get("GPU", 0.0)
    if gpus > total_gpus:
        raise ConfigError(_too_small("GPUs", gpus, total_gpus, pools))
    if cpus > total_cpus:
        raise ConfigError(_too_small("CPUs", cpus, total_cpus, pools))
    left = total_cpus - RESERVED_CPUS
    if left <= 0:
        raise ConfigError(f"Ray has {total_cpus:g} CPUs; reading and resuming alone reserve 2: give it at least 3")
    return min(1.0, left / cpus) if cpus else 1.0


def write_tasks() -> int:
    """Blocks written at the same time. Few on a laptop, where each task more is a Python process more to start."""
    cpus = cluster_capacity().get("CPU", 0.0)
    return max(2, int(cpus // 4)) if math.isfinite(cpus) else WRITES_WITHOUT_BOUND


def _arguments(pool: Pool, share: float) -> dict[str, Any]:
    from ray.data import ActorPoolStrategy

    settings = pool.engine
    least, most = settings.least_replicas, settings.replicas
    compute = ActorPoolStrategy(
        min_size=least,
        max_size=most,
        initial_size=least,
        max_concurrent_calls_per_actor=pool.calls,
        max_tasks_in_flight_per_actor=pool.handed,
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
    parts = ", ".join(f"{name}: {pool.engine.least_replicas} replicas" for name, pool in pools.items())
    return (
        f"the engine pools need {need:g} {kind} at the same time ({parts}) and Ray has {have:g}; lower "
        f"engine.replicas or engine.{kind.lower()}_per_replica, let the pool start smaller (engine.min_replicas), or "
        "give Ray more"
    )
