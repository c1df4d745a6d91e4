"""The section of the evaluation: what is refused names the field and the fix, before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from adamllm_ray.config import parse_config
from adamllm_ray.errors import ConfigError

SLAKE = {"name": "slake", "path": "/d"}


def parsed(**evaluation: Any) -> Any:
    return parse_config({"run": {"output": "runs/x"}, "evaluation": evaluation}).evaluation


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        (
            {"task": "pocket", "tasks": [SLAKE]},
            r"task is the short form of tasks.*\{name: pocket\} to tasks, drop task",
        ),
        ({"task": "q.parquet", "tasks": [SLAKE]}, r"add \{name: own, path: q\.parquet\} to tasks"),
        ({"tasks": [SLAKE, SLAKE]}, "slake stands twice"),
        ({"tasks": [SLAKE], "general": [SLAKE]}, "slake stands twice"),
        ({"task": "q.jsonl", "general": [{"name": "own", "path": "r"}]}, "own stands twice"),
        ({"general": [SLAKE]}, r"give evaluation\.tasks, too"),
        ({"tasks": [{"name": "slake"}]}, r"evaluation\.tasks\.0: 'slake' needs path: the released benchmark's folder"),
        ({"tasks": [{"name": "slaek"}]}, r"tasks\.0: 'slaek' needs path: your .* did you mean 'slake'\?"),
        (
            {"tasks": [SLAKE | {"metric": "exact"}]},
            r"tasks\.0: 'slake' has the metrics of its protocol: leave metric out",
        ),
        ({"tasks": [{"name": "pocket", "path": "x"}]}, r"tasks\.0: 'pocket' ships with the package"),
        ({"tasks": [{"name": "q", "path": "x", "metric": "vibes"}]}, r"tasks\.0\.metric: .*'rouge_l'"),
        ({"tasks": [{"name": "a/b", "path": "x"}]}, r"evaluation\.tasks\.0\.name"),
        ({"tasks": [SLAKE | {"limt": 3}]}, r"evaluation\.tasks\.0\.limt: unknown key; did you mean 'limit'\?"),
        ({"backend": "hf"}, r"evaluation\.backend"),
        ({"backend": "auto", "engine": {"gpus_per_replica": 2}}, r"backend=auto .* set engine\.gpus_per_replica to 1"),
        ({"engine": {"lora": "/adapter"}}, r"name it as models\.adapted"),
    ],
)
def test_contradictions_are_named(evaluation: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parsed(**evaluation)


def test_the_short_form_is_a_list_of_one() -> None:
    assert parsed().asked == []
    [(field, task, general)] = parsed(task="pocket").asked
    assert (field, task.name, task.path, general) == ("evaluation.task", "pocket", "", False)
    [(field, task, _)] = parsed(task="s3://b/q.parquet").asked
    assert (field, task.name, task.path, task.benchmark) == ("evaluation.task", "own", "s3://b/q.parquet", False)


def test_domain_first_then_general() -> None:
    section = parsed(tasks=[SLAKE, {"name": "pocket"}], general=[{"name": "everyday", "path": "g.jsonl"}])
    assert [(asked.field, asked.general) for asked in section.asked] == [
        ("evaluation.tasks.0", False),
        ("evaluation.tasks.1", False),
        ("evaluation.general.0", True),
    ]
    assert section.asked[0].task.benchmark
