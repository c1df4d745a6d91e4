"""From names of arms to runs: what each changes, what they share, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adamllm_ray.ablation.arms import ARMS, arms_of
from adamllm_ray.ablation.driver import plan
from adamllm_ray.config import RunConfig, parse_config
from adamllm_ray.config.ablation import load_ablation
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import ConfigError
from adamllm_ray.pocket.rehearsal import rehearse
from adamllm_ray.pocket.seeds import write_seed
from adamllm_ray.stages import planned
from adamllm_ray.training.catalog import build_catalog
from adamllm_ray.training.replay import SeedTasks, copy_replay, with_seed_tasks
from adamllm_ray.training.seed.build import seed
from tests.training.conftest import finished_synthesis, synthesized_rows
from tests.training.test_catalog import Fixed

ROOT = Path(__file__).parents[2]
SEED = "seed: { captions: c.json, precise: p.json, informative: i.json }\n"


def written(tmp_path: Path, ablation: str, config: str = "") -> Path:
    (tmp_path / "run.yaml").write_text("run: { output: nowhere }\nevaluation: { task: pocket }\n" + config)
    file = tmp_path / "ablation.yaml"
    file.write_text(f"config: run.yaml\noutput: {tmp_path}/out\n{ablation}")
    return file


def settings_of(config: RunConfig) -> dict[str, Any]:
    """What differs from the plain configuration."""
    plain = parse_config({"run": {"output": "x"}}).model_dump()
    found = config.model_dump()
    return {
        f"{name}.{key}": value
        for name, section in found.items()
        if name not in ("run", "evaluation") and section is not None
        for key, value in section.items()
        if plain[name][key] != value
    }


def test_arms_share_the_tasks_and_differ_in_their_settings(tmp_path: Path) -> None:
    arms = "arms: [base, two_stage, caption_only, synthetic_only, no_filter_precise, threshold_75]\nseeds: [3, 4]\n"
    ablation = load_ablation(written(tmp_path, arms))
    shared, *runs = plan(ablation)
    assert shared.run.output == f"{tmp_path}/out/upstream/single_stage"
    assert [stage.name for stage in planned(shared)][:2] == ["ingest", "synthesize"]
    assert [run.run.seed for run in runs] == [3] * 6 + [4] * 6
    assert {run.run.upstream for run in runs} == {shared.run.output}
    assert {tuple(stage.name for stage in planned(run)) for run in runs} == {("train", "evaluate")}
    found = {run.run.name: settings_of(run) for run in runs}
    assert found["single_stage-3"] == {}
    assert found["two_stage-4"] == {"training.recipe": "two_stage"}
    assert found["caption_only-3"] == {"mixture.both": 0.0, "mixture.caption": 1.0}
    assert found["synthetic_only-3"] == {"mixture.both": 0.0, "mixture.task": 1.0, "mixture.untasked": 0.0}
    assert found["no_filter_precise-3"] == {"mixture.threshold": 0.0, "conversations.answer": "precise"}
    assert found["threshold_75-3"] == {"mixture.threshold": 0.75}
    assert not any(run.run.name.startswith("base") for run in runs)  # it is asked beside the others


def test_an_arm_that_makes_other_tasks_has_stages_of_its_own(tmp_path: Path) -> None:
    text = "arms: [no_blank, warmer]\nown: { warmer: { synthesis.max_new_tokens: 64 } }\nseeds: [0]\n"
    ablation = load_ablation(written(tmp_path, text, SEED + "models: { synthesizer: tuned }\n"))
    made = plan(ablation)
    assert [run.run.output.rsplit("/out/")[1] for run in made] == [
        "upstream/single_stage",
        "upstream/no_blank",
        "upstream/warmer",
        "arms/single_stage/seed-0",
        "arms/no_blank/seed-0",
        "arms/warmer/seed-0",
    ]
    assert made[1].seed.blank_share == 0.0
    assert [stage.name for stage in planned(made[1])][:4] == ["ingest", "seed", "synthesizer", "synthesize"]
    assert made[4].run.upstream == made[1].run.output


def test_settings_of_all_arms_come_before_those_of_one(tmp_path: Path) -> None:
    text = "arms: [longer]\nsettings: { training.epochs: 2, training.workers: 2 }\n"
    ablation = load_ablation(written(tmp_path, text + "own: { longer: { training.epochs: 4 } }\nseeds: [0]\n"))
    assert [(run.training.epochs, run.training.workers) for run in plan(ablation)] == [(2, 2), (2, 2), (4, 2)]


@pytest.mark.parametrize(
    ("ablation", "config", "words"),
    [
        ("arms: [two_stages]", "", "no arm 'two_stages'; known are single_stage"),
        ("arms: [no_blank]", "", "has none: set seed.captions"),
        ("arms: [no_blank]", SEED, "models.synthesizer: tuned there"),
        ("arms: [general_tasks]", "", "seed_tasks needs seed data"),
        ("arms: [caption_only]\nown: { caption_only: { mixture.captions: 1 } }", "", "did you mean 'caption'"),
        ("arms: [base, base]", "", "must not repeat"),
        ("arms: [base]\ndefault: base", "", "default must be an arm that trains"),
        ("arms: [base]\nseed: [1]", "", "seed: unknown key; did you mean 'seeds'"),
        ("arms: [base]", "training: { epochs: 0 }", "training.epochs"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path: Path, ablation: str, config: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan(load_ablation(written(tmp_path, ablation, config)))


def test_an_ablation_needs_an_evaluation(tmp_path: Path) -> None:
    file = written(tmp_path, "arms: [base]")
    (tmp_path / "run.yaml").write_text("run: { output: nowhere }\n")
    with pytest.raises(ConfigError, match=r"evaluation\.task is empty"):
        plan(load_ablation(file))


def test_every_known_arm_is_valid_and_the_odd_ones_can_be_built(tmp_path: Path) -> None:
    """Up to the first batch: two trainings after each other, tasks out of seed data, tasks turned around."""
    text = f"arms: [{', '.join(name for name in ARMS if name not in ('base', 'single_stage'))}]\nseeds: [0]\n"
    file = written(tmp_path, text, SEED + "models: { synthesizer: tuned }\n")
    made = {run.run.name: run for run in plan(load_ablation(file))}
    assert len(made) == len(ARMS)
    for name in ("two_stage", "general_tasks", "reversed_templates"):
        assert rehearse(made[f"{name}-0"])[-1].loss is not None, name


def test_the_shipped_ablations_are_valid() -> None:
    for path in sorted((ROOT / "jobs" / "configs" / "ablations").glob("*.yaml")):
        ablation = load_ablation(path)
        assert len(plan(ablation)) == 1 + len(ablation.seeds) * (len(arms_of(ablation)) - 1)
        assert f"adamllm ablate jobs/configs/ablations/{path.name}" in path.read_text("utf-8")


def test_a_threshold_chooses_among_all_judged_tasks(tmp_path: Path) -> None:
    rows = synthesized_rows()
    for number, row in enumerate(rows):
        row["judge_yes"] = None if number in (0, 3) else number / len(rows)
    run = finished_synthesis(tmp_path, rows)
    stage = run.stage("synthesize")

    catalog = build_catalog(stage, {}, Fixed())  # one for all of them

    def tasked(threshold: float | None) -> set[str]:
        items = catalog.items(threshold)
        return {items.id(index) for index in range(len(items)) if items[index].tasked}

    assert tasked(None) == {row["id"] for row in rows if row["task_verdict"] == "kept"}
    assert tasked(0.0) == {row["id"] for row in rows if row["judge_yes"] is not None}
    assert tasked(0.5) == {row["id"] for row in rows if (row["judge_yes"] or 0) >= 0.5}


def test_a_run_upon_another_reads_its_tasks_and_writes_nothing_there(tmp_path: Path) -> None:
    upstream = finished_synthesis(tmp_path / "a", synthesized_rows())
    run = RunFolder.of(parse_config({"run": {"output": str(tmp_path / "b"), "upstream": str(tmp_path / "a")}}).run)
    assert run.stage("synthesize").parquet_files() == upstream.stage("synthesize").parquet_files()
    assert run.stage("train").uri == str(tmp_path / "b" / "train")


def test_seed_data_as_general_tasks(tmp_path: Path) -> None:
    section = write_seed(tmp_path / "seed", 20) | {"blank_share": 0.3, "dev_share": 0.2}
    mixture = {"seed_tasks": 0.5}
    config = parse_config({"run": {"output": str(tmp_path / "run")}, "seed": section, "mixture": mixture})
    run = RunFolder.of(config.run)
    manifest = seed(config, run)
    mixed = with_seed_tasks(config.mixture)
    assert with_seed_tasks(mixed) == mixed
    assert [(source.name, source.weight) for source in mixed.replay] == [("seed_tasks", 0.5)]
    tasks = SeedTasks(run.stage("seed"), config.conversations, 0)
    found = copy_replay(mixed.replay, config.data.images, run.stage("train"), seed=tasks)
    table = pa.concat_tables(pq.read_table(file) for file in found.files["seed_tasks"])
    assert len(table) == found.verdicts["seed_tasks"]["ok"] < manifest.extra["splits"]["train"]
    assert not any("Answer with" in turns for turns in table["turns"].to_pylist())
