"""Which values of a configuration are paths of this machine, and so mean nothing on a cluster.

    refuse_local("synthesize", config)          ConfigError: run.output: 'runs/xrays' is a path of this machine ...

Only the fields that the stage reads count. What every node has under the same path (a mounted file system) can be named
and is let through. A hub id is no path, but pods of ``cluster/`` reach no hub: ``refuse_hub`` says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from adamllm_ray.config import RunConfig
from adamllm_ray.errors import ConfigError

STAGES = ("ingest", "synthesize", "train", "evaluate", "tune", "pipeline")
MODEL = "s3://bucket/folder, pocket:NAME, or, where nodes reach a hub, org/name@<revision>"
DATA = "s3://bucket/prefix"


def refuse_local(job: str, config: RunConfig, mounted: Sequence[str] = ()) -> None:
    """Raise ConfigError naming every field of the job's stages that holds a local path outside ``mounted``."""
    wrong = [
        f"  {field}: {value!r} is a path of this machine; give {instead}"
        for field, value, instead in dict.fromkeys(_fields(job, config))  # two stages may read the same
        if not _travels(value, instead == MODEL) and not _is_below(value, mounted)
    ]
    if wrong:
        lines = "\n".join(wrong)
        raise ConfigError(
            f"a cluster does not have what is on this machine:\n{lines}\n"
            "Where every node has the folder under the same absolute path, say so with --mounted FOLDER."
        )


def refuse_hub(job: str, config: RunConfig, cluster: Mapping[str, Any]) -> None:
    """Raise ConfigError for models of a hub, unless all pods of the Ray cluster are told of a mirror they reach."""
    from adamllm_ray.models.fetch import is_hub_id

    wrong = [
        f"  {field}: {value!r} is on the Hugging Face hub; give s3://bucket/folder"
        for field, value, instead in dict.fromkeys(_fields(job, config))
        if instead == MODEL and is_hub_id(value)
    ]
    groups = [cluster.get("headGroupSpec") or {}, *(cluster.get("workerGroupSpecs") or [])]
    if wrong and not all(_has_mirror(group) for group in groups):
        lines = "\n".join(wrong)
        raise ConfigError(
            f"the pods of this overlay reach no hub:\n{lines}\n"
            "Copy the models into the object store; or give every pod HF_ENDPOINT, a mirror that its policies let it "
            "reach, and HF_HUB_OFFLINE: '0'; or name the folder in the model cache, with --mounted /models."
        )


def _has_mirror(group: Mapping[str, Any]) -> bool:
    """The Ray container, which is the first, is told of another hub and may ask it."""
    containers = ((group.get("template") or {}).get("spec") or {}).get("containers") or [{}]
    told = {str(each.get("name")): str(each.get("value")) for each in containers[0].get("env") or []}
    return "HF_ENDPOINT" in told and told.get("HF_HUB_OFFLINE", "0") == "0"


def _fields(job: str, config: RunConfig) -> Iterator[tuple[str, str, str]]:
    """(field, value, what it could be instead) of each path that the job reads or writes, as far as they are set."""
    yield "run.output", config.run.output, DATA
    of_stage = {"ingest": _ingest, "synthesize": _synthesize, "train": _train, "evaluate": _evaluate, "tune": _tune}
    for stage, fields in of_stage.items():
        if job == stage or (job == "pipeline" and stage != "tune"):  # a search is asked for by its own name
            yield from ((field, value, instead) for field, value, instead in fields(config) if value)
    if job == "pipeline":
        yield from ((field, value, instead) for field, value, instead in _report(config) if value)


_Fields = Iterator[tuple[str, str | None, str]]


def _ingest(config: RunConfig) -> _Fields:
    if config.data.format != "pocket":
        yield "data.path", config.data.path, DATA
    yield "data.image_folder", config.data.image_folder, DATA


def _synthesize(config: RunConfig) -> _Fields:
    yield "models.synthesizer", config.models.synthesizer, MODEL
    yield "models.judge", config.models.judge, MODEL
    yield "synthesis.engine.lora", config.synthesis.engine.lora, MODEL
    yield "judge.engine.lora", config.judge.engine.lora, MODEL


def _train(config: RunConfig) -> _Fields:
    yield "models.base", config.models.base, MODEL
    for number, source in enumerate(config.mixture.replay):
        yield f"mixture.replay.{number}.path", source.path, DATA
        yield f"mixture.replay.{number}.image_folder", source.image_folder, DATA
    if config.contamination.exclude:
        yield from _against(config)
        yield from _asked(config)


def _evaluate(config: RunConfig) -> _Fields:
    yield "models.base", config.models.base, MODEL
    yield "models.adapted", config.models.adapted, MODEL
    yield from _asked(config)


def _tune(config: RunConfig) -> _Fields:
    yield from _train(config)
    yield from _asked(config)
    section = config.tuning
    if section is None:
        return
    for number, task in enumerate(section.validation):
        yield f"tuning.validation.{number}.path", task.path, DATA
    for number, folder in enumerate(section.warm_start):
        yield f"tuning.warm_start.{number}", folder, DATA
    bases = section.fields.get("models.base")
    for base in [section.proxy.get("models.base"), *((bases.values or []) if bases else [])]:
        yield "tuning: models.base", None if base is None else str(base), MODEL


def _asked(config: RunConfig) -> _Fields:
    for field, task, _ in config.evaluation.asked:
        yield field if field == "evaluation.task" else f"{field}.path", task.path, DATA


def _against(config: RunConfig) -> _Fields:
    for number, task in enumerate(config.contamination.against):
        yield f"contamination.against.{number}.path", task.path, DATA


def _report(config: RunConfig) -> _Fields:
    """The end of a whole run: judging its data, and the page."""
    yield from _against(config)
    yield "report.labels", config.report.labels, DATA
    for name, folder in config.report.ablations.items():
        yield f"report.ablations.{name}", folder, DATA


def _travels(value: str, model: bool) -> bool:
    from adamllm_ray.models.checkpoint import POCKET
    from adamllm_ray.models.fetch import is_remote

    return value.startswith("s3://") or (model and (is_remote(value) or value.startswith(POCKET)))


def _is_below(value: str, mounted: Sequence[str]) -> bool:
    path = PurePosixPath(value.removeprefix("file://"))
    return ".." not in path.parts and any(path.is_relative_to(folder) for folder in mounted)
