"""The stages of a run, in order: what each reads, what it writes, and where its code is.

    adamllm run CONFIG

A stage that is finished under the same fingerprint is not done again; one that was killed continues. Stage code is
imported when its turn comes, so listing the stages costs nothing.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adamllm_ray.config import RunConfig, dump_config
from adamllm_ray.errors import ConfigError

if TYPE_CHECKING:
    from adamllm_ray.data.manifest import Manifest
    from adamllm_ray.data.run import RunFolder


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: its verb, one line of what it does, and the function that does it."""

    name: str
    does: str
    module: str

    def run(self, config: RunConfig, run: RunFolder, *, force_new: bool = False) -> Manifest:
        """Do the stage, or return the manifest it finished with before."""
        function: Callable[..., Manifest] = getattr(importlib.import_module(self.module), self.name)
        return function(config, run, force_new=force_new)


STAGES = (
    Stage("ingest", "read images and captions, check them, write records", "adamllm_ray.data.ingest"),
    Stage(
        "synthesize",
        "write a task for each pair and let the judge compare its answers",
        "adamllm_ray.synthesis.pipeline",
    ),
    Stage("train", "post-train the base model on the mixture, export it", "adamllm_ray.training.trainer"),
    Stage("evaluate", "ask base and adapted model the same questions", "adamllm_ray.evaluation.runner"),
)


def stage_named(name: str) -> Stage:
    """The stage with this verb. Raises ConfigError naming those there are."""
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise ConfigError(f"there is no stage '{name}'; the stages are {', '.join(stage.name for stage in STAGES)}")


def planned(config: RunConfig) -> tuple[Stage, ...]:
    """The stages that this configuration asks for: all, or all but evaluate when it names no task."""
    return STAGES if config.evaluation.asked else STAGES[:-1]


def run_stages(
    config: RunConfig, run: RunFolder, *, force_new: bool = False
) -> Iterator[tuple[Stage, Manifest, float]]:
    """Do the planned stages in order, one local or remote Ray for all of them.

    Yields (stage, manifest, seconds spent now) after each. The resolved configuration is kept in the run folder.
    """
    from adamllm_ray.ray_runtime import ray_session

    if force_new or run.stage("train").manifest() is None:  # hours before its turn comes
        importlib.import_module("adamllm_ray.training.trainer").check(config)
        importlib.import_module("adamllm_ray.evaluation.runner").check(config)
    with run.lock():
        run.write("config.yaml", dump_config(config).encode())  # not before: a driver that is refused changes nothing
        with ray_session():
            for stage in planned(config):
                started = time.monotonic()
                manifest = stage.run(config, run, force_new=force_new)
                yield stage, manifest, time.monotonic() - started
