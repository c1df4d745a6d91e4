"""Searches that cannot work are refused before Ray starts, with the field and the fix."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.config import parse_config
from adamllm_ray.errors import ConfigError
from adamllm_ray.tuning.checks import check, extremes
from adamllm_ray.tuning.settings import ready_config, trial_config
from adamllm_ray.tuning.space import Parameters
from tests.tuning.conftest import search_tree, validation_file

ONE = {"name": "mine", "path": "v.jsonl"}


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return validation_file(tmp_path_factory.mktemp("validation"))


@pytest.fixture
def tree(tmp_path: Path, tiny_vlm: Path, questions: Path) -> dict[str, Any]:
    return search_tree(tmp_path / "run", tiny_vlm, questions)


def _with(tree: dict[str, Any], **tuning: Any) -> Any:
    return parse_config(tree | {"tuning": tree["tuning"] | tuning})


def test_a_search_that_can_work_passes(tree: dict[str, Any]) -> None:
    before = set(sys.modules)
    fields = {
        "training.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
        "training.schedule": {"values": ["cosine", "linear"]},
    }
    config = _with(tree, fields=fields, metric="shape", mode="paper")
    check(config)
    assert "ray" not in set(sys.modules) - before
    assert len(list(extremes(config))) == 1 + 2 + 2 + 2


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"sources": {"caption": {"low": 0.6}, "task": {"low": 0.6}}}, r"sums from 1\.2 to 2: lower some low"),
        ({"sources": {"caption": {"high": 0.3}, "task": {"high": 0.3}}}, "raise some high"),
        ({"sources": {"caption": {"low": 0.6, "high": 0.5}, "task": {}}}, "above high"),
        ({"sources": {"captions": {}, "task": {}}}, "'captions' is none of both, caption, task"),
        ({"sources": {"caption": {}, "replay:x": {}}}, "replay could take all of the mixture"),
        ({"sources": {}}, "nothing to search"),
        ({"fields": {"training.epochs": {"low": 3}}}, "give low and high"),
        ({"fields": {"training.epochs": {"low": 3, "high": 1}}}, "must be below high"),
        ({"fields": {"training.epochs": {"low": 0, "high": 1, "log": True}}}, "low above 0"),
        ({"fields": {"training.epochs": {"low": 1, "high": 2, "values": [1, 2]}}}, "not both"),
        ({"rungs": [8]}, "set tuning.examples"),
        ({"examples": 64, "rungs": [64]}, "must be below"),
        ({"examples": 64, "rungs": [32, 16]}, "must rise"),
        ({"stopping": "asha"}, "needs tuning.rungs"),
        ({"examples": 64, "rungs": [16], "repeats": 2}, "no rungs"),
        ({"full_trials": 2}, "every trial is a full one"),
        ({"examples": 64, "fields": {"training.epochs": {"values": [1, 2]}}}, "leave training.epochs"),
    ],
)
def test_section_that_contradicts_itself(tree: dict[str, Any], section: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        _with(tree, **section)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"sources": {"caption": {}, "replay:general": {"high": 0.5}}}, r"'replay:general' is not in mixture\.replay"),
        ({"fields": {"training.learning_rat": {"low": 1, "high": 2}}}, "did you mean 'learning_rate'"),
        ({"fields": {"training.epochs": {"low": 1, "high": 2.5}}}, "training.epochs"),
        ({"fields": {"training.learning_rate": {"low": -1, "high": 1}}}, "greater than 0"),
        ({"fields": {"synthesis.temperature": {"low": 0, "high": 1}}}, "before the mixture is drawn"),
        ({"fields": {"mixture.caption": {"low": 0, "high": 1}}}, "what tuning.sources is for"),
        ({"proxy": {"models.bas": "x"}}, "before the mixture is drawn|did you mean"),
        ({"metric": "precision"}, "not produced by tuning.validation; there are average, overall, colour, shape"),
        ({"validation": []}, "tuning.validation is empty"),
        ({"validation": [{"name": "pocket"}]}, "without split: validation"),
        ({"validation": [{"name": "slake", "path": "/data/slake"}]}, "test split of 'slake'"),
        ({"validation": [ONE | {"split": "test"}]}, "test split"),
    ],
)
def test_search_that_cannot_work(tree: dict[str, Any], section: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(_with(tree, **section))


def test_test_questions_are_not_searched_on(tree: dict[str, Any], questions: Path, tmp_path: Path) -> None:
    tree["evaluation"]["tasks"] = [{"name": "ours", "path": str(questions)}]
    with pytest.raises(ConfigError, match=r"test split is named as validation: evaluation\.tasks\.0"):
        check(parse_config(tree))
    copied = validation_file(tmp_path / "copy", count=1, first=105)
    others = validation_file(tmp_path / "copy", count=3, first=900).read_text() + "\n"
    copied.write_text(others + json.dumps({"image": "105.png", "question": "what is 105?", "answer": "no"}))
    tree["evaluation"]["tasks"] = [{"name": "ours", "path": str(copied)}]
    with pytest.raises(ConfigError, match=r"1 of its questions are also asked by evaluation\.tasks\.0"):
        check(parse_config(tree))


def test_pocket_chips_of_the_validation_region_must_be_held_back(tree: dict[str, Any]) -> None:
    tree |= {"data": {"format": "pocket"}}
    with pytest.raises(ConfigError, match=r"set data\.split to 'train'"):
        check(_with(tree, validation=[{"name": "pocket", "split": "validation"}]))


def test_trial_has_the_mixture_and_the_validation_questions(tree: dict[str, Any], tmp_path: Path) -> None:
    tree["mixture"]["replay"] = [{"name": "x", "path": "r.json", "weight": 9.0}]
    tree["evaluation"]["task"] = "test.jsonl"
    config = _with(
        tree,
        sources={"caption": {}, "task": {}, "replay:x": {"high": 0.5}},
        examples=50,
        proxy={"training.lora": {"rank": 4}},
    )
    parameters = Parameters({"caption": 0.2, "task": 0.6, "replay:x": 0.2}, {})
    trial = trial_config(config, parameters, output=str(tmp_path / "t"), seed=2)
    assert (trial.mixture.both, trial.mixture.caption, trial.mixture.task) == (0.0, 0.2, 0.6)
    assert trial.mixture.replay[0].weight == pytest.approx(0.25), "per example of the run's own"
    assert trial.training.max_steps == 7, "50 examples in batches of 8"
    assert trial.training.lora is not None
    assert trial.run.seed == config.run.seed + 2
    assert [asked.task.name for asked in trial.evaluation.asked] == ["shapes"]
    assert trial.contamination.against[0].path == "test.jsonl"
    full = trial_config(config, parameters, full=True)
    assert (full.training.max_steps, full.training.lora) == (4, None)


def test_ready_configuration_is_the_full_run(tree: dict[str, Any]) -> None:
    import yaml

    config = _with(tree, examples=50, proxy={"training.lora": {"rank": 4}})
    ready = parse_config(yaml.safe_load(ready_config(config, Parameters({"caption": 0.2, "task": 0.8}, {}))))
    assert ready.tuning is None
    assert ready.run.output == f"{config.run.output}-tuned"
    assert (ready.mixture.both, ready.mixture.caption, ready.mixture.task) == (0.0, 0.2, 0.8)
    assert ready.training == config.training
