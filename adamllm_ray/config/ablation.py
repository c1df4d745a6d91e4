"""The configuration of an ablation: one run configuration, and a list of what to change in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from adamllm_ray.config.fields import Section
from adamllm_ray.config.text import explain, parse_yaml
from adamllm_ray.errors import ConfigError

BASE = "base"  # the arm that is the model before any training


class AblationConfig(Section):
    """Arms are runs that differ from the configuration in a few settings, each repeated with several seeds."""

    config: str = Field(description="The run configuration that all arms change; relative to this file.")
    output: str = Field(description="Folder of all runs and of the table: a local path or s3://bucket/prefix.")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="What every arm has otherwise than ``config``: settings as for --set."
    )
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1, description="run.seed of each repetition.")
    default: str = Field(default="single_stage", description="The arm that every other one is held against.")
    arms: list[str] = Field(min_length=1, description="Names of known arms (docs/ablations.md), or of own.")
    own: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="More arms: name -> {setting: value}, settings as for --set."
    )

    @model_validator(mode="after")
    def _no_name_twice(self) -> AblationConfig:
        if len(set(self.arms)) != len(self.arms) or len(set(self.seeds)) != len(self.seeds):
            raise ValueError("arms and seeds must not repeat")
        if self.default == BASE:
            raise ValueError("default must be an arm that trains")
        return self

    @property
    def names(self) -> list[str]:
        """All arms, the default first."""
        return [self.default, *(name for name in self.arms if name != self.default)]


def load_ablation(path: str | Path) -> AblationConfig:
    """Read and validate; ``config`` becomes a path that can be opened. Raises ConfigError naming every wrong key."""
    file = Path(path)
    try:
        tree = parse_yaml(file.read_text("utf-8"), str(file))
        found = AblationConfig.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise ConfigError(explain(error, AblationConfig)) from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path with a NUL byte
        raise ConfigError(f"cannot read the ablation {file}: {error}") from error
    return found.model_copy(update={"config": str(file.parent / found.config)})
