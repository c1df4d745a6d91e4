"""The entry points in jobs/: what their last line and their exit code say. Real processes, no engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from adamllm_ray.data.manifest import Manifest
from adamllm_ray.data.run import RunFolder
from adamllm_ray.exits import BUG, DONE, RESUMABLE, WRONG, Outcome
from adamllm_ray.submission.driver import LONGEST_ERROR, VERBS, last_line

ROOT = Path(__file__).parents[2]
PAIRS = ROOT / "docs" / "examples" / "pairs.json"
LEASE_S = 3.0


def job(name: str, *arguments: str) -> tuple[int, dict, str]:
    """(exit code, the last line of a log in which both streams are, that whole log)."""
    driver = started(name, *arguments)
    log, _ = driver.communicate(timeout=120)
    return driver.returncode, json.loads(log.splitlines()[-1]), log


def started(name: str, *arguments: str) -> subprocess.Popen[str]:
    """The job at work."""
    command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(f"run: {{output: {tmp_path}/run}}\ndata: {{path: {PAIRS}, max_failed_share: 1.0}}\n")
    return path


@pytest.mark.parametrize("spelt", ["CONFIG", "--config CONFIG", "--config=CONFIG"])
def test_a_finished_stage(config, spelt):
    code, last, log = job("ingest", *spelt.replace("CONFIG", str(config)).split(), "--set", "data.limit=4")
    assert code == last["exit_code"] == DONE, log
    counts = last["counts"]["ingest"]
    assert (last["job"], counts["rows_in"]) == ("ingest", 4)
    assert counts["kept"] + counts["rejected"] + counts["failed"] == 4
    assert "4 rows in = " in log  # and what a person reads, on one line


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("ingest", ["--set", "data.lmit=4"], "did you mean 'limit'"),
        ("ingest", ["--set", "data.path=/nowhere.json"], "/nowhere.json"),
        ("synthesize", [], "adamllm ingest"),
        ("evaluate", [], "evaluation.task is empty"),
        ("pipeline", ["--sett", "x"], "No such option"),
    ],
)
def test_a_wrong_configuration_or_input(config, name, arguments, said):
    code, last, log = job(name, str(config), *arguments)
    assert code == last["exit_code"] == WRONG
    assert said in last["error"]
    assert "counts" not in last
    assert "Traceback" not in log


def test_a_stage_that_can_be_resumed(config, tmp_path):
    (tmp_path / "run").write_text("a file where the run folder should be")
    code, last, log = job("ingest", str(config))
    assert code == last["exit_code"] == RESUMABLE, log
    assert "choose another run.output" in last["error"]


@pytest.fixture
def on_s3(tmp_path: Path) -> Path:
    """The configuration with a run folder on S3."""
    path = tmp_path / "run.yaml"
    path.write_text(
        f"run: {{output: s3://runs/again, s3_lease_s: {LEASE_S}}}\n"
        f"data: {{path: {PAIRS}, limit: 4, max_failed_share: 1.0}}\n"
    )
    return path


def test_a_job_that_is_started_again_waits_for_the_lock_of_its_lost_driver(bucket, on_s3):
    """KubeRay starts a job again within seconds, in a new pod; nobody there can see that the old process is gone."""
    lost = {"pid": 1234, "host": "old-head", "machine": "another boot pid:[1]", "born": "1", "lease_s": LEASE_S}
    seen, log = threading.Event(), []

    def stay_fresh() -> None:
        """However long the driver takes to start; the same content is no renewal."""
        while not seen.wait(0.2):
            bucket.put_object(Key="again/.lock", Body=json.dumps(lost).encode())

    bucket.put_object(Key="again/.lock", Body=json.dumps(lost).encode())
    keeper = threading.Thread(target=stay_fresh)
    keeper.start()
    with started("ingest", str(on_s3)) as driver:
        for line in driver.stdout:
            log.append(line)
            if "is locked by process 1234 on old-head" in line:
                seen.set()
    waited = seen.is_set()
    seen.set()
    keeper.join()
    assert waited, log
    assert driver.returncode == json.loads(log[-1])["exit_code"] == DONE, log


def test_a_second_driver_on_a_living_folder_is_refused_and_may_come_again(bucket, on_s3):
    with RunFolder("s3://runs/again", lease_s=LEASE_S).lock():
        code, last, log = job("ingest", str(on_s3))
    assert code == last["exit_code"] == RESUMABLE, log
    assert "is in use by process" in last["error"]


def test_the_last_line_is_one_line_whatever_the_error_is():
    line = last_line("train", Outcome(BUG, "ValueError: a\nb \u2028 \x1b[31m" + "x" * 9999))
    assert line["exit_code"] == BUG
    assert len(line["error"]) == LONGEST_ERROR
    assert len(json.dumps(line).splitlines()) == 1


def test_counts_of_a_pipeline():
    manifest = Manifest("ingest", {}, 5, 3, 1, 1, {}, [{"path": "a"}], 2.5)
    line = last_line("pipeline", Outcome(DONE, result={"ingest": manifest}))
    assert line["counts"] == {"ingest": {"rows_in": 5, "kept": 3, "rejected": 1, "failed": 1, "seconds": 2.5}}


def test_an_entry_point_per_template_of_the_cluster():
    templates = yaml.safe_load_all((ROOT / "cluster" / "base" / "jobs.yaml").read_text())
    named = [each["spec"]["entrypoint"].split() for each in templates]
    assert [words[2:] for words in named] == [["--config", "/etc/adamllm/config.yaml"]] * len(VERBS)
    assert {Path(words[1]).stem for words in named} == VERBS.keys()
    for name in VERBS:
        text = (ROOT / "jobs" / f"{name}.py").read_text()
        assert f'run_job("{name}")' in text
        assert text.count("\n") <= 30
