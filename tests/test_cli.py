"""The command line: help that teaches, errors that name the fix, exit codes that mean something."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ADAMLLM = [sys.executable, "-m", "adamllm_ray.cli"]
VERBS = "run ingest synthesize train evaluate report status verify config plan redrive push submit compare".split()  # noqa: SIM905


def adamllm(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"COLUMNS": "160", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([*ADAMLLM, *arguments], capture_output=True, text=True, cwd=cwd, env=env, timeout=120)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "pairs.jsonl").write_text('{"image": "missing.png", "caption": "A boat."}\n')
    path = tmp_path / "run.yaml"
    path.write_text(f"run: {{output: {tmp_path}/run}}\ndata: {{path: {tmp_path}/pairs.jsonl, max_failed_share: 1.0}}\n")
    return path


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches_by_example(verb):
    shown = adamllm(verb, "--help")
    assert shown.returncode == 0
    assert f"adamllm {verb}" in shown.stdout
    assert "Example" in shown.stdout


def test_schema_is_json_schema():
    schema = json.loads(adamllm("config", "--schema").stdout)
    assert "synthesis" in schema["properties"]


def test_config_is_printed_resolved(config):
    shown = adamllm("config", str(config), "--set", "training.learning_rate=1e-5")
    assert "learning_rate: 1.0e-05" in shown.stdout
    assert "threshold: 0.5" in shown.stdout


def test_wrong_key_exits_2_and_names_the_nearest(config):
    shown = adamllm("ingest", str(config), "--set", "data.lmit=3")
    assert shown.returncode == 2
    assert "did you mean 'limit'" in shown.stderr
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ingest", "nowhere.yaml"], "cannot read the configuration"),
        (["ingest"], "CONFIG"),
        (["synthesise"], "No such command"),
        (["config"], "--schema"),
        (["redrive", "my.yaml"], "--verdict"),
        (["push", "my.yaml"], "--repo"),
    ],
)
def test_usage_errors_exit_2(arguments, words):
    shown = adamllm(*arguments)
    assert shown.returncode == 2
    assert words in shown.stderr
    assert "Traceback" not in shown.stderr


def test_ingest_status_verify(config, tmp_path):
    assert "finished" not in adamllm("status", str(config)).stdout
    done = adamllm("ingest", str(config))
    assert done.returncode == 0, done.stderr
    assert "1 rows in = 0 kept + 0 rejected + 1 failed" in done.stdout
    assert "finished" in adamllm("status", str(config)).stdout
    shard = next((tmp_path / "run" / "ingest" / "data").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-10])
    checked = adamllm("verify", str(config))
    assert checked.returncode == 1
    assert shard.name in checked.stdout


@pytest.mark.parametrize("verb", [["plan"], ["redrive", "--verdict", "engine_error"]])
def test_what_needs_an_ingest_says_so(config, verb):
    shown = adamllm(*verb, str(config))
    assert shown.returncode == 2
    assert "adamllm ingest" in shown.stderr


def test_verify_speaks_of_stages_that_were_begun(config):
    nothing = adamllm("verify", str(config))
    assert (nothing.returncode, "nothing to verify" in nothing.stderr) == (2, True)
    adamllm("ingest", str(config))
    assert "ingest: every file and every row" in adamllm("verify", str(config)).stdout


def test_another_fingerprint_is_refused_and_named(config):
    assert adamllm("ingest", str(config)).returncode == 0
    refused = adamllm("ingest", str(config), "--set", "data.max_caption_chars=7")
    assert refused.returncode == 2
    assert "max_caption_chars" in refused.stderr
    assert "--force-new" in refused.stderr
    assert adamllm("ingest", str(config), "--set", "data.max_caption_chars=7", "--force-new").returncode == 0


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_says_that_the_run_can_be_resumed(tmp_path, stop):
    """Cutting the satellite chips takes seconds, long enough to be interrupted."""
    config = tmp_path / "run.yaml"
    config.write_text(f"run: {{output: {tmp_path}/run}}\ndata: {{format: pocket}}\n")
    started = tmp_path / "run" / ".lock"
    process = subprocess.Popen(
        [*ADAMLLM, "ingest", str(config)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "160"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job is born deaf to Ctrl-C
    )
    while not started.exists():
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command continues" in errors
