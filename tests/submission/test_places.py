from __future__ import annotations

from typing import Any

import pytest

from adamllm_ray.config import RunConfig, parse_config
from adamllm_ray.errors import ConfigError
from adamllm_ray.submission.places import STAGES, refuse_hub, refuse_local

REMOTE: dict[str, Any] = {
    "run": {"output": "s3://b/run"},
    "data": {"path": "s3://b/pairs.json", "image_folder": "s3://b/images"},
    "models": {"base": "s3://b/base", "synthesizer": "s3://b/synthesizer", "judge": "pocket:judge"},
    "mixture": {"replay": [{"name": "general", "path": "s3://b/replay.json", "weight": 0.1}]},
    "evaluation": {"task": "s3://b/test.parquet"},
}


HUB = f"org/name@{'a' * 40}"


def config(**changed: Any) -> RunConfig:
    tree = {section: dict(values) for section, values in REMOTE.items()}
    for key, value in changed.items():
        *way, last = key.split("__")
        here = tree
        for step in way:
            here = here.setdefault(step, {})
        here[last] = value
    return parse_config(tree)


@pytest.mark.parametrize("job", STAGES)
def test_what_travels_is_let_through(job):
    refuse_local(job, config())
    refuse_local(job, config(data__format="pocket", data__path="", evaluation__task="pocket"))
    refuse_local(job, config(models__synthesizer=HUB, models__base=HUB))  # a Ray cluster may reach a hub


@pytest.mark.parametrize(
    ("changed", "value", "field", "stage"),
    [
        ("run__output", "runs/x", "run.output", "train"),
        ("run__output", "file:///runs/x", "run.output", "ingest"),
        ("data__path", "/data/pairs.json", "data.path", "ingest"),
        ("data__image_folder", "~/images", "data.image_folder", "ingest"),
        ("models__synthesizer", "/models/llava", "models.synthesizer", "synthesize"),
        ("models__judge", "org/name", "models.judge", "synthesize"),  # no revision: a folder
        ("synthesis__engine", {"lora": "adapter"}, "synthesis.engine.lora", "synthesize"),
        ("judge__engine", {"lora": "adapter"}, "judge.engine.lora", "synthesize"),
        ("models__base", "../base", "models.base", "train"),
        ("mixture__replay", [{"name": "g", "path": "g.json", "weight": 1}], "mixture.replay.0.path", "train"),
        ("models__base", "../base", "models.base", "evaluate"),
        ("evaluation__task", "test.parquet", "evaluation.task", "evaluate"),
        ("evaluation", {"tasks": [{"name": "q", "path": "q.jsonl"}]}, "evaluation.tasks.0.path", "evaluate"),
        ("models__adapted", "/models/adapter", "models.adapted", "evaluate"),
    ],
)
def test_a_path_of_this_machine_is_named(changed, value, field, stage):
    for job in (stage, "pipeline"):
        with pytest.raises(ConfigError, match=rf"\n  {field}: '.*' is a path of this machine; give s3://") as caught:
            refuse_local(job, config(**{changed: value}))
        assert str(caught.value).count("is a path of this machine") == 1


def test_fields_that_the_stage_does_not_read_may_be_anything():
    refuse_local("train", config(data__path="/data/pairs.json", models__synthesizer="/m", evaluation__task="t.jsonl"))


def test_all_are_named_at_once():
    with pytest.raises(ConfigError, match=r"(?s)run\.output.*data\.path.*models\.base"):
        refuse_local("pipeline", config(run__output="r", data__path="d", models__base="m"))


def test_what_every_node_has():
    local = config(run__output="/shared/runs/x", models__base="/shared/base", data__path="/shared/../etc/x")
    refuse_local("train", local, ["/shared"])
    with pytest.raises(ConfigError, match=r"data\.path"):
        refuse_local("ingest", local, ["/shared"])
    with pytest.raises(ConfigError, match=r"run\.output"):
        refuse_local("train", config(run__output="shared/x"), ["/shared"])
    with pytest.raises(ConfigError, match=r"run\.output"):
        refuse_local("train", config(run__output="/shared-not/x"), ["/shared"])


def pods(*environments: dict[str, str]) -> dict[str, Any]:
    """A cluster whose head and groups have these environments."""
    head, *workers = [
        {"template": {"spec": {"containers": [{"env": [{"name": key, "value": each[key]} for key in each]}]}}}
        for each in environments
    ]
    return {"headGroupSpec": head, "workerGroupSpecs": workers}


OFFLINE, MIRROR = {"HF_HUB_OFFLINE": "1"}, {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "https://hub.internal"}


@pytest.mark.parametrize(
    ("field", "stage"),
    [("synthesizer", "synthesize"), ("judge", "synthesize"), ("base", "train"), ("base", "evaluate")],
)
def test_a_model_of_the_hub_is_out_of_reach_of_pods(field, stage):
    wanted = config(**{f"models__{field}": HUB})
    for job in (stage, "pipeline"):
        for cluster in (pods(OFFLINE, OFFLINE), pods(MIRROR, OFFLINE), pods(MIRROR, MIRROR | OFFLINE), pods({}, {})):
            with pytest.raises(ConfigError, match=rf"(?s)  models\.{field}: 'org/name@a+' .*; give s3://.*HF_ENDPOINT"):
                refuse_hub(job, wanted, cluster)
        refuse_hub(job, wanted, pods(MIRROR, MIRROR))
        refuse_hub(job, config(), pods(OFFLINE, OFFLINE))
