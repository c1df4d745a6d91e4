"""The table out of finished runs: seeds pooled, every arm against the default on the same questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adamllm_ray.ablation.arms import arms_of
from adamllm_ray.ablation.table import table_of
from adamllm_ray.config.ablation import AblationConfig
from adamllm_ray.errors import ConfigError
from tests.evaluation.test_compare import GROUPS, _finished, _rows


def finished(output: Path, arm: str, skill: float, seeds: list[int]) -> None:
    for seed in seeds:
        rows = _rows(skill, seed) + _rows(0.2, 99, model="base")
        _finished(output / "arms" / arm / f"seed-{seed}", rows)


def test_arms_are_held_against_the_default(tmp_path: Path) -> None:
    ablation = AblationConfig(config="x", output=str(tmp_path), seeds=[0, 1], arms=["base", "caption_only"])
    finished(tmp_path, "single_stage", 0.8, [0, 1])
    finished(tmp_path, "caption_only", 0.4, [0, 1])
    table = table_of(ablation, arms_of(ablation))
    found = {(row.arm, row.task, row.type): row for row in table.rows}
    assert len(found) == len(table.rows) == 3 * (len(GROUPS) + 2)
    own = found["single_stage", "slake", "closed"]
    assert (own.n, own.difference) == (80, None)
    worse = found["caption_only", "slake", "closed"]
    assert worse.difference is not None
    assert worse.p is not None
    assert worse.difference.hi < 0
    assert worse.difference.value == pytest.approx(worse.score.value - own.score.value)
    assert found["base", "all", "all questions"].n == sum(GROUPS.values())
    assert found["base", "all", "all questions"].p is None
    assert {arm: len(means) for arm, means in table.seeds.items()} == {"single_stage": 2, "base": 2, "caption_only": 2}
    text = table.to_markdown()
    assert text.splitlines()[0].startswith("| arm | task | type | n | score [95 %] | minus single_stage")
    assert json.loads(table.to_json())["default"] == "single_stage"


def test_the_default_alone_is_a_table_too(tmp_path: Path) -> None:
    ablation = AblationConfig(config="x", output=str(tmp_path), seeds=[0], arms=["single_stage"])
    finished(tmp_path, "single_stage", 0.8, [0])
    assert {row.arm for row in table_of(ablation, arms_of(ablation)).rows} == {"single_stage"}


def test_a_run_that_is_not_there_is_said(tmp_path: Path) -> None:
    ablation = AblationConfig(config="x", output=str(tmp_path), seeds=[0], arms=["two_stage"])
    finished(tmp_path, "single_stage", 0.8, [0])
    with pytest.raises(ConfigError, match="two_stage/seed-0 holds no finished evaluation"):
        table_of(ablation, arms_of(ablation))
