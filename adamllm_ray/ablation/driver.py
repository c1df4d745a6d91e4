"""Runs the arms: first the tasks they share, then a training and an evaluation per arm and seed. Resumable.

Every run is an ordinary run folder, so a command that was killed continues, and `adamllm status` and `report` work on
each of them. The base model answers once per seed, below ``output/answers``, not once per arm.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from adamllm_ray.ablation.arms import Arm, arm_config, arms_of, upstream_config
from adamllm_ray.ablation.table import Table, table_of
from adamllm_ray.config import RunConfig
from adamllm_ray.config.ablation import AblationConfig
from adamllm_ray.data.run import UPSTREAM, RunFolder, StageFolder
from adamllm_ray.errors import ConfigError
from adamllm_ray.stages import planned
from adamllm_ray.terminal import console, print_done


def ablate(ablation: AblationConfig, overrides: Sequence[str] = ()) -> Table:
    """Do everything that is not done yet, and write ``ablations.json`` and ``ablations.md`` below ``output``.

    Raises:
        ConfigError: an arm is not known or contradicts the configuration; said before anything runs.
        AdamLLMError: what a stage raises; the same command continues.
    """
    from adamllm_ray.ray_runtime import ray_session

    arms = arms_of(ablation)
    configs = plan(ablation, overrides)
    place = RunFolder(ablation.output, configs[0].run.s3)
    with ray_session():
        for config in configs:
            _run(config, place)
    table = table_of(ablation, arms)
    place.write("ablations.json", table.to_json().encode())
    place.write("ablations.md", table.to_markdown().encode())
    return table


def plan(ablation: AblationConfig, overrides: Sequence[str] = ()) -> list[RunConfig]:
    """All runs in the order in which they are done; every configuration is valid, or this raises ConfigError."""
    arms = [arm for arm in arms_of(ablation) if arm.trains]
    first: dict[str, Arm] = {}
    for arm in arms:
        first.setdefault(arm.upstream, arm)
    made = [upstream_config(arm, ablation, overrides) for arm in first.values()]
    # seed by seed, so that a table can be looked at after the first one
    made += [arm_config(arm, ablation, seed, overrides) for seed in ablation.seeds for arm in arms]
    if not made[0].evaluation.asked:
        raise ConfigError(f"{ablation.config}: evaluation.task is empty, so arms could not be compared")
    return made


def _run(config: RunConfig, home: RunFolder) -> None:
    """The stages of one run: up to synthesis where others train on its tasks, else from training on."""
    from adamllm_ray.evaluation.runner import ask_base, evaluate

    folder = RunFolder.of(config.run)
    wanted = [stage for stage in planned(config) if (stage.name in UPSTREAM) == (config.run.upstream is None)]
    console.print(f"[dim]{folder.uri}[/dim]", highlight=False, soft_wrap=True)
    with folder.lock():
        for stage in wanted:
            if stage.name == "evaluate":
                known = _answers(config, home)
                ask_base(config, known)
                manifest = evaluate(config, folder, known=known)
            else:
                manifest = stage.run(config, folder)
            print_done(stage.name, manifest, manifest.seconds)


def _answers(config: RunConfig, home: RunFolder) -> StageFolder:
    """Where the base model's answers to this run's questions are."""
    asked = config.model_dump(mode="json", include={"evaluation": True, "models": {"base"}, "data": {"images", "s3"}})
    digest = hashlib.sha256(json.dumps(asked | {"seed": config.run.seed}, sort_keys=True).encode()).hexdigest()[:8]
    return StageFolder("answers", home.place.child(f"answers/{digest}"))
