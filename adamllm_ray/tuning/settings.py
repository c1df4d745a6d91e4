"""The configuration of one trial: the run's own, with a mixture, some fields and the validation questions in place.

    config = trial_config(config, parameters, output="runs/xrays/tune/trials/0f3a9b12cd5e")

It is read like any other, so what a run would refuse a trial refuses, with the same words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from adamllm_ray.config import RunConfig, TuningSection, dump_config, parse_config
from adamllm_ray.config.tuning import FORMS, REPLAY
from adamllm_ray.errors import ConfigError
from adamllm_ray.tuning.space import Parameters

SEARCHABLE = ("training", "mixture", "models.base")
ENOUGH_EPOCHS = 1_000_000  # the plan ends at max_steps


def section_of(config: RunConfig) -> TuningSection:
    """The section of the search. Raises ConfigError when there is none."""
    if config.tuning is None:
        raise ConfigError("the configuration has no section 'tuning': there is nothing to search (docs/tuning.md)")
    return config.tuning


def trial_config(
    config: RunConfig, parameters: Parameters, *, output: str | None = None, full: bool = False, seed: int = 0
) -> RunConfig:
    """The configuration of a trial.

    Args:
        config: of the run.
        parameters: of the trial.
        output: folder of the trial.
        full: without `proxy` and `examples`: as long and as large as the run itself.
        seed: which repetition this is.

    Raises:
        ConfigError: a field that does not exist, or a value that it cannot have.
    """
    section = section_of(config)
    tree = _tuned(config, parameters)
    tree["run"] |= {"seed": config.run.seed + seed, "output": output or config.run.output}
    tree["run"]["name"] = f"{config.run.name[:48]}-{parameters.key}"  # of its curves
    tasks = [task.model_dump(mode="json") for task in section.validation]
    against = [asked.task.model_dump(mode="json") for asked in config.evaluation.asked]
    tree["evaluation"] |= {"task": "", "tasks": tasks, "general": []}
    tree["contamination"]["against"] += against
    tree["models"]["adapted"] = None
    if not full:
        for name, value in section.proxy.items():
            put(tree, name, value, "tuning.proxy")
        if section.examples is not None:
            steps = math.ceil(section.examples / tree["training"]["global_batch"])
            tree["training"] |= {"max_steps": steps, "epochs": ENOUGH_EPOCHS}
    return parse_config(tree)


def ready_config(config: RunConfig, parameters: Parameters) -> str:
    """YAML of the full run at these parameters: what `adamllm run` takes, in a folder of its own."""
    tree = _tuned(config, parameters)
    tree["run"] |= {"output": f"{config.run.output.rstrip('/')}-tuned", "name": f"{config.run.name[:58]}-tuned"}
    return dump_config(parse_config(tree))


def configured(config: RunConfig, names: Mapping[str, Any]) -> dict[str, Any]:
    """What the configuration has for these dotted names; None for what is not there."""
    tree = config.model_dump(mode="json")
    return {name: _get(tree, name) for name in names}


def put(tree: dict[str, Any], name: str, value: Any, where: str) -> None:
    """Set a field by its dotted name. Raises ConfigError for a name that cannot be one."""
    *parents, leaf = name.split(".")
    if not name.startswith(SEARCHABLE):
        raise ConfigError(
            f"{where}: '{name}' takes effect before the mixture is drawn; what a search can change is in "
            f"{', '.join(SEARCHABLE)}"
        )
    node = tree
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"{where}: '{name}': '{parent}' is a value, not a section")
        node = child
    node[leaf] = value


def _tuned(config: RunConfig, parameters: Parameters) -> dict[str, Any]:
    """The configuration as plain data with the parameters in it, and without the search."""
    tree = config.model_dump(mode="json")
    tree["tuning"] = None
    if parameters.weights:
        tree["mixture"] |= _mixture(config, parameters.weights)
    for name, value in parameters.fields.items():
        put(tree, name, value, "tuning.fields")
    return tree


def _mixture(config: RunConfig, weights: Mapping[str, float]) -> dict[str, Any]:
    """Shares of all examples -> the weights of the section: forms among each other, replay per example of the run."""
    forms = {form: weights.get(form, 0.0) for form in FORMS}
    domain = sum(forms.values())
    replay = []
    for source in config.mixture.replay:
        share = weights.get(f"{REPLAY}{source.name}", 0.0)
        replay.append(source.model_dump(mode="json") | {"weight": share / domain if domain else 0.0})
    return {**forms, "replay": replay}


def _get(tree: Any, name: str) -> Any:
    for part in name.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
