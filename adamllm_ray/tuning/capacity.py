"""How many trials the cluster holds at the same time.

A trial's training workers start together or not at all (Ray Train gives them one placement group), so two trials never
wait for each other with half of their workers each. What is left is waiting: a trial that finds no room waits for one
that has it. The cap here keeps that from being the rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from adamllm_ray.config import RunConfig
from adamllm_ray.errors import ConfigError

UNBOUNDED = 4  # trials, where an autoscaler says no limit and the configuration neither


def need(config: RunConfig) -> dict[str, float]:
    """CPUs and GPUs of a trial in the larger one of its two phases: training, then answering."""
    section, engine = config.training, config.evaluation.engine
    on_gpu = engine.gpus_per_replica > 0
    return {
        "CPU": max(
            section.workers * (section.cpus_per_worker + section.data_workers),
            0.0 if on_gpu else engine.least_replicas * engine.cpus_per_replica,
        ),
        "GPU": max(section.workers * section.gpus_per_worker, engine.least_replicas * engine.gpus_per_replica),
    }


def most_trials(config: RunConfig, capacity: Mapping[str, float], wanted: int | None) -> int:
    """Trials at a time. ``config`` is a trial's. Raises ConfigError when not even one fits."""
    room = [capacity.get(kind, 0.0) / amount for kind, amount in need(config).items() if amount > 0]
    fit = min(room, default=math.inf)
    if fit < 1:
        lines = ", ".join(f"{amount:g} {kind}s of {capacity.get(kind, 0):g}" for kind, amount in need(config).items())
        raise ConfigError(
            f"tuning: a single trial does not fit into the cluster ({lines}): lower training.workers or "
            "evaluation.engine.replicas, or give Ray more"
        )
    if wanted is None:
        return UNBOUNDED if math.isinf(fit) else math.floor(fit)
    return wanted if math.isinf(fit) else min(wanted, math.floor(fit))
