"""One stock for all trials: any threshold of the judge, both of two stages, a copy for each seed. No Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from adamllm_ray.config import MixtureSection, RunConfig, parse_config
from adamllm_ray.data.run import RunFolder
from adamllm_ray.training.books import Books, completed, take_stock
from adamllm_ray.training.recipes import passes
from adamllm_ray.training.stream import open_batches
from adamllm_ray.tuning import inputs
from adamllm_ray.tuning.settings import trial_config
from adamllm_ray.tuning.space import Parameters
from tests.training.conftest import finished_synthesis, synthesized_rows
from tests.tuning.conftest import search_tree

TASKS = Parameters({"caption": 0.0, "task": 1.0}, {})


@pytest.fixture
def searched(tmp_path: Path, tiny_vlm: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A search whose judge has kept some of the tasks that it is fairly sure of, and rejected others."""
    rows = synthesized_rows()
    for number, row in enumerate(rows):
        if row["task_verdict"] == "kept":
            row |= {"judge_yes": number / len(rows), "task_verdict": "kept" if number % 2 else "judged_inconsistent"}
    finished_synthesis(tmp_path / "run", rows)
    (tmp_path / "general.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "0?"}, {"role": "assistant", "content": "1"}]}\n'
    )
    monkeypatch.setattr(inputs, "ask_base", lambda *_: None)
    tree = search_tree(tmp_path / "run", tiny_vlm, tmp_path / "validation.jsonl")
    replay = [{"name": "general", "path": str(tmp_path / "general.jsonl"), "weight": 0.5}]
    tree["mixture"] |= {"replay": replay, "tolerance": 1.0}
    return parse_config(tree)


def _changed(config: RunConfig, **mixture: object) -> RunConfig:
    section = MixtureSection.model_validate(config.mixture.model_dump() | mixture)
    return config.model_copy(update={"mixture": section})


def test_trials_with_other_thresholds_plan_as_if_alone(searched: RunConfig, tmp_path: Path, tiny_vlm: Path) -> None:
    run = RunFolder.of(searched.run)
    tune, first = run.stage("tune"), trial_config(searched, TASKS, output=str(tmp_path / "t"))
    inputs.prepare(first, run, tune)
    chosen = set()
    for number, threshold in enumerate((None, 0.0, 0.5, 0.9)):
        trial = completed(_changed(first, threshold=threshold))
        own = RunFolder(str(tmp_path / f"own-{number}"), upstream=run.uri)
        stage = own.stage("train")
        stage.begin({})
        alone = Books(trial, stage, take_stock(trial, own, stage, str(tiny_vlm), None))
        shared = Books(trial, stage, inputs.stock(trial, tune))
        assert list(shared.entries) == list(alone.entries)
        assert shared.catalog.table.drop_columns("file").equals(alone.catalog.table.drop_columns("file"))
        assert shared.mixture.items.tokens[shared.mixture.items.tasked].min() > 1
        source = open_batches(trial.model_dump_json(), own.uri, str(tiny_vlm), 0, 1)
        assert list(source.entries) == list(shared.entries), "workers draw the same"
        assert source.load(0)[0].ids
        chosen.add(tuple(shared.mixture.items.tasked.tolist()))
    assert len(chosen) == 4, "each threshold has tasks of its own"


def test_both_stages_of_a_trial_use_it(searched: RunConfig, tmp_path: Path) -> None:
    run = RunFolder.of(searched.run)
    config = searched.model_copy(
        update={
            "training": searched.training.model_copy(update={"recipe": "two_stage", "max_steps": None, "epochs": 1})
        }
    )
    trial = trial_config(config, TASKS, output=str(tmp_path / "t"))
    inputs.prepare(trial, run, run.stage("tune"))
    own, forms = RunFolder.of(trial.run), []
    assert own.stage("synthesize").uri == run.stage("synthesize").uri
    for each in passes(trial, own):
        own.stage(each.name).begin({})
        books = Books(completed(each.config), own.stage(each.name), inputs.stock(trial, run.stage("tune")))
        forms.append(({entry.form for entry in books.entries}, set(books.replay)))
    assert forms == [({"caption", "untasked"}, set()), ({"task"}, {"general"})]


def test_seeds_have_stocks_of_their_own(searched: RunConfig) -> None:
    run = RunFolder.of(searched.run)
    inputs.prepare(trial_config(searched, TASKS), run, run.stage("tune"), 2)
    made = sorted(path.name for path in Path(run.root).glob("tune/inputs/*/stock-*"))
    assert made == ["stock-7", "stock-8"], "the wording of a text, and so its length, depends on the seed"
    for seed in (0, 1):
        assert len(inputs.stock(trial_config(searched, TASKS, seed=seed), run.stage("tune")).catalog.table)
