"""The whole run as a user gives it: six images, the shipped models, every stage real. Then the same command again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adamllm_ray.config import load_config
from adamllm_ray.data.manifest import Manifest
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import ConfigError, RunLocked
from adamllm_ray.stages import STAGES, planned, run_stages, stage_named

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "jobs" / "configs" / "own_data.yaml"


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """A task of the user's own, next to the images."""
    folder = tmp_path_factory.mktemp("task")
    lines = []
    for number in range(1, 7):
        name = f"chip_{number}.png"
        (folder / name).write_bytes((ROOT / "docs" / "examples" / name).read_bytes())
        answer = "yes" if number == 1 else "no"
        lines.append({"image": name, "question": "Is the land an island?", "answer": answer, "type": "island"})
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def first_run(tmp_path_factory, questions):
    output = tmp_path_factory.mktemp("run")
    return output, adamllm_run(output, questions)


def adamllm_run(output: Path, questions: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adamllm_ray.cli", "run", str(CONFIG)]
    command += ["--set", f"run.output={output}", "--set", f"evaluation.task={questions}"]
    env = os.environ | {"COLUMNS": "160", "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=500)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_six_images_go_through_every_stage(first_run):
    output, done = first_run
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in STAGES:
        manifest = json.loads((output / stage.name / "manifest.json").read_text())
        assert manifest["kept"] + manifest["rejected"] + manifest["failed"] == manifest["rows_in"]
        assert manifest["rows_in"] == (12 if stage.name == "evaluate" else 6)
    assert (output / "train" / "model" / "model.safetensors").exists()
    page = (output / "report" / "index.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert f"report: {output}/report/index.html" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_same_command_again_does_nothing_new(first_run, questions):
    output, _ = first_run
    before = {path: path.stat().st_mtime_ns for path in output.glob("*/manifest.json")}
    again = adamllm_run(output, questions)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in output.glob("*/manifest.json")} == before


def test_a_driver_that_is_refused_leaves_the_first_one_s_configuration(tmp_path):
    config = load_config(CONFIG, [f"run.output={tmp_path}/run", "data.limit=3"])
    run = RunFolder.of(config.run)
    trained = Manifest("train", {}, 3, 3, 0, 0, {}, [], 1.0)  # so that nothing is checked that needs torch
    run.write("train/manifest.json", trained.to_json().encode())
    with run.lock():
        run.write("config.yaml", b"the first one's")
        with pytest.raises(RunLocked, match="in use by process"):
            next(run_stages(config, RunFolder.of(config.run)))
        assert run.read("config.yaml") == b"the first one's"


def test_a_configuration_without_a_task_is_not_evaluated():
    assert [stage.name for stage in planned(load_config(CONFIG))] == ["ingest", "synthesize", "train"]
    with pytest.raises(ConfigError, match="ingest, synthesize, train, evaluate"):
        stage_named("synthesise")
