"""The known arms, as settings that differ from the default, and the runs that a list of them means.

Arms that train on the same tasks share the stages up to synthesis (``run.upstream``): only what an arm changes is done
for it. An arm that changes how tasks are made gets stages of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adamllm_ray.config import RunConfig, load_config
from adamllm_ray.config.ablation import BASE, AblationConfig
from adamllm_ray.errors import ConfigError

ARMS: dict[str, dict[str, Any]] = {
    "single_stage": {},
    BASE: {},
    "two_stage": {"training.recipe": "two_stage"},
    "two_stage_captions_again": {"training.recipe": "two_stage", "training.two_stage.captions_again": True},
    "caption_only": {"mixture.both": 0.0, "mixture.caption": 1.0, "mixture.task": 0.0},
    "synthetic_only": {"mixture.both": 0.0, "mixture.caption": 0.0, "mixture.task": 1.0, "mixture.untasked": 0.0},
    "no_filter": {"mixture.threshold": 0.0},
    "no_filter_precise": {"mixture.threshold": 0.0, "conversations.answer": "precise"},
    "no_filter_informative": {"mixture.threshold": 0.0, "conversations.answer": "informative"},
    "general_tasks": {
        "mixture.both": 0.0,
        "mixture.caption": 1.0,
        "mixture.task": 0.0,
        "mixture.seed_tasks": 1.0,
    },
    "no_blank": {"seed.blank_share": 0.0},
    "precise_only": {"conversations.answer": "precise"},
    "informative_only": {"conversations.answer": "informative"},
    "official_branches": {"conversations.compat": "official"},
    "reversed_templates": {"conversations.reversed_share": 0.32},
}
_THRESHOLD = re.compile(r"threshold_(\d{1,2})$")  # threshold_75: P(Yes) of at least 0.75
_UPSTREAM = ("data", "seed", "synthesis", "judge")  # sections that decide the tasks
_MADE_FROM_SEED = ("seed", "models.synthesizer", "mixture.seed_tasks")


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm. ``upstream`` names the runs whose tasks it trains on; arms with the same name share them."""

    name: str
    settings: dict[str, Any]
    upstream: str

    @property
    def trains(self) -> bool:
        """Whether it is more than the model as it came."""
        return self.name != BASE


def arms_of(ablation: AblationConfig) -> list[Arm]:
    """The arms that are asked for, the default first. Raises ConfigError for a name that is not known."""
    return [_arm(name, ablation) for name in ablation.names]


def _arm(name: str, ablation: AblationConfig) -> Arm:
    settings = ablation.own.get(name, ARMS.get(name))
    found = _THRESHOLD.match(name)
    if settings is None and found:
        settings = {"mixture.threshold": int(found[1]) / 100}
    if settings is None:
        known = ", ".join([*ARMS, "threshold_NN", *ablation.own])
        raise ConfigError(f"arms: there is no arm {name!r}; known are {known}. Others can be described under own")
    own_tasks = any(_decides_tasks(setting) for setting in settings)
    return Arm(name, settings, name if own_tasks else ablation.default)


def _decides_tasks(setting: str) -> bool:
    return setting.split(".")[0] in _UPSTREAM or setting in ("models.synthesizer", "models.judge")


def upstream_config(arm: Arm, ablation: AblationConfig, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that makes the tasks of an arm: its own settings, and the seed of the configuration."""
    return _config(arm, ablation, overrides, {"run.output": f"{ablation.output}/upstream/{arm.upstream}"})


def arm_config(arm: Arm, ablation: AblationConfig, seed: int, overrides: Sequence[str] = ()) -> RunConfig:
    """The run of an arm with one of the seeds."""
    own = {
        "run.output": f"{ablation.output}/arms/{arm.name}/seed-{seed}",
        "run.upstream": f"{ablation.output}/upstream/{arm.upstream}",
        "run.seed": seed,
        "run.name": f"{arm.name}-{seed}",
    }
    return _config(arm, ablation, overrides, own)


def _config(arm: Arm, ablation: AblationConfig, overrides: Sequence[str], own: dict[str, Any]) -> RunConfig:
    import json

    changed = ablation.settings | arm.settings | own
    changes = [f"{key}={json.dumps(value)}" for key, value in changed.items()]
    config = load_config(ablation.config, [*overrides, *changes])
    if any(setting.startswith(_MADE_FROM_SEED) for setting in arm.settings) and not config.seed.given:
        raise ConfigError(
            f"arm {arm.name!r} changes or uses seed data, and {ablation.config} has none: set seed.captions, "
            "seed.precise and seed.informative there, or leave the arm out"
        )
    if "seed.blank_share" in arm.settings and not config.tunes_synthesizer and "run.upstream" not in own:
        raise ConfigError(
            f"arm {arm.name!r} changes what the synthesizer is tuned on, and {ablation.config} tunes none: set "
            "models.synthesizer: tuned there"
        )
    return config
