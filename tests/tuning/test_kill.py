"""Reliability test 49: a trial's worker and the driver of a search die. Real processes, tiny model, real Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.config import parse_config
from adamllm_ray.data.run import RunFolder
from tests.processes import family_of, slay, words_of
from tests.synthesis.lives import short_folder
from tests.training.conftest import ray_of
from tests.tuning.conftest import ready_to_search, search_tree

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PATIENCE_S = 400.0


class Search:
    """A search in a folder, and the lives of its driver."""

    def __init__(self, folder: Path, ray_folder: Path, tree: dict[str, Any]) -> None:
        self.folder, self._ray = folder, ray_folder
        self.trials = folder / "run" / "tune" / "trials"
        self.file = folder / "search.yaml"
        self.file.write_text(json.dumps(tree))
        self.lives: list[subprocess.Popen[str]] = []

    def start(self, *options: str) -> subprocess.Popen[str]:
        """Another life of the driver."""
        command = [sys.executable, "-m", "adamllm_ray.cli", "tune", str(self.file), *options]
        environment = {"RAY_TMPDIR": str(self._ray), "ADAMLLM_OBJECT_STORE_BYTES": str(128 << 20)}
        with (self.folder / f"life{len(self.lives)}.log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, text=True, env=os.environ | environment)
        self.lives.append(process)
        return process

    def log(self) -> str:
        """The end of what the last life said."""
        return (self.folder / f"life{len(self.lives) - 1}.log").read_text()[-3000:]

    def results(self) -> dict[str, tuple[bytes, int]]:
        """Content and time of each score that is there."""
        files = self.trials.glob("*/result.json")
        return {file.parent.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}

    def begun(self) -> set[str]:
        """Trials that were started."""
        return {file.parent.name for file in self.trials.glob("*/lives.json")}

    def wait(self, until: Any) -> Any:
        """What ``until`` returns as soon as that is something."""
        stop = time.monotonic() + PATIENCE_S
        while not (found := until()):
            assert self.lives[-1].poll() is None, self.log()
            assert time.monotonic() < stop, f"the search does not get on: {self.log()}"
            time.sleep(0.02)
        return found


@pytest.fixture
def search(tmp_path: Path, tiny_vlm: Path) -> Iterator[Search]:
    tree = search_tree(tmp_path / "run", tiny_vlm, ready_to_search(tmp_path), trials=3, start_trials=0)
    tree["training"] |= {"max_steps": 24, "epochs": 20, "checkpoint_every": 4, "max_failures": 0}
    with short_folder() as short:
        found = Search(tmp_path, short, tree)
        yield found
        for process in found.lives:
            process.kill()


def _workers(driver: int) -> list[int]:
    """Training workers of the driver's Ray."""
    found = []
    for pid in family_of(driver):
        with suppress(OSError):
            if words_of(pid)[0].startswith("ray::RayTrainWorker"):
                found.append(pid)
    return found


def test_dead_trial_is_retried_and_a_dead_driver_reruns_no_finished_trial(search: Search) -> None:
    first = search.start()
    search.wait(lambda: list(search.trials.glob("*/seed-0/train/ray/train/step-*/complete.json")))
    slay(_workers(first.pid))
    finished = search.wait(search.results)
    search.wait(lambda: search.begun() - set(search.results()))
    finished = search.results()
    first.kill()
    first.wait()

    [retried] = finished
    assert json.loads(finished[retried][0])["lives"] == 2, "the trial whose worker died was begun a second time"
    assert json.loads(finished[retried][0])["resumed"][0], "and went on from its checkpoint"

    second = search.start("--resume")
    second.wait(PATIENCE_S)
    assert second.returncode == 0, search.log()
    after = search.results()
    assert after[retried] == finished[retried], "a finished trial was done again"
    manifest = RunFolder(str(search.folder / "run")).stage("tune").manifest()
    assert manifest is not None
    assert manifest.rows_in == manifest.kept == 3 == len(after)
    lives = {trial["key"]: trial["lives"] for trial in manifest.extra["trials"]}
    assert sorted(lives.values()) == [1, 2, 2], "one for the worker, one for the driver"


@pytest.mark.usefixtures("three_cpus")
def test_two_trials_with_room_for_one_and_a_half(
    tmp_path: Path, tiny_vlm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are started at once, against the cap that would hold one of them back, and both come to their ends."""
    from adamllm_ray.tuning import runner
    from adamllm_ray.tuning.capacity import most_trials

    caps = []

    def both(*arguments: Any) -> int:
        caps.append(most_trials(*arguments))
        return 2

    monkeypatch.setattr(runner, "most_trials", both)
    tree = search_tree(tmp_path / "run", tiny_vlm, ready_to_search(tmp_path), trials=2, start_trials=0, concurrent=2)
    tree["training"] |= {"workers": 2, "cpus_per_worker": 1.0}
    config = parse_config(tree)
    manifest = runner.tune(config, RunFolder(config.run.output))
    assert caps == [1], "of three CPUs a trial needs two"
    assert manifest.rows_in == manifest.kept == 2
    assert runner.tune(config, RunFolder(config.run.output)) == manifest, "a finished search is not repeated"
    best = runner.best_config(RunFolder(config.run.output))
    assert "tuning: null" in best


@pytest.mark.usefixtures("three_cpus")
def test_training_pauses_at_a_rung_is_scored_and_goes_on_as_if_it_had_not(tmp_path: Path, tiny_vlm: Path) -> None:
    from adamllm_ray.training.trainer import train
    from adamllm_ray.tuning import runner
    from adamllm_ray.tuning.space import Parameters
    from adamllm_ray.tuning.trial import Trial

    rungs = {"examples": 32, "rungs": [16], "stopping": "asha", "reduction": 2}
    tree = search_tree(tmp_path / "run", tiny_vlm, ready_to_search(tmp_path), trials=1, start_trials=0, **rungs)
    config = parse_config(tree)
    run = RunFolder(config.run.output)
    manifest = runner.tune(config, run)
    assert manifest.kept == manifest.rows_in == 1
    [first] = manifest.extra["trials"]
    assert (first["examples"], first["resumed"]) == (32, [[2]]), "it paused after 16 of 32 examples, and went on"

    trial = Trial(config, run, Parameters(first["weights"], first["fields"]))
    own = RunFolder(f"{trial.place.uri}/seed-0")
    scored = RunFolder(f"{own.uri}/rung-16").stage("evaluate").manifest()
    assert scored is not None
    assert scored.extra["models"]["adapted"].endswith("rungs/2/model")
    paused = own.stage("train").manifest()
    assert paused is not None
    straight = RunFolder(str(tmp_path / "straight"), upstream=run.uri)
    whole = train(trial.settings(0), straight)
    assert whole.extra["losses"] == paused.extra["losses"]


@pytest.fixture(scope="module")
def three_cpus() -> Iterator[None]:
    with ray_of(3):
        yield
