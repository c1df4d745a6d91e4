"""Reliability test 50: an evaluation is killed with SIGKILL half way and started again. Real processes, fake engine."""

import json
import os
import shutil
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from adamllm_ray.data.run import RunFolder
from adamllm_ray.evaluation.stores import ROWS_PER_CALL
from tests.synthesis.fakes import asked_rows, png, processes
from tests.synthesis.lives import short_folder

QUESTIONS = 320
PACE = 0.1  # seconds per question; a fake engine has two calls in work, so it answers 20 per second
PATIENCE_S = 300.0


@pytest.fixture
def lives(tmp_path, tiny_vlm):
    """``start(run, log)`` starts a driver on a run folder with a finished train stage."""
    started = []
    with short_folder() as short:
        (tmp_path / "images").mkdir()
        lines = []
        for i in range(QUESTIONS):
            (tmp_path / "images" / f"{i}.png").write_bytes(png(i))
            row = {"id": f"q{i}", "image": f"images/{i}.png", "question": f"{i}?", "type": "side", "answer": "circle 7"}
            lines.append(json.dumps(row))
        (tmp_path / "task.jsonl").write_text("\n".join(lines))

        def start(run, log):
            folder = tmp_path / run
            if not folder.exists():
                stage = RunFolder(str(folder)).stage("train")
                stage.begin({"x": 1})
                shutil.copytree(tiny_vlm, f"{stage.path}/model")
                stage.finish(rows_in=1, verdicts={"ok": 1}, seconds=1)
            engine = {"max_model_len": 256, "max_num_seqs": 8, "kv_cache_gib": 0.1}
            config = {
                "run": {"output": str(folder)},
                "models": {"base": str(tiny_vlm)},
                "evaluation": {"task": str(tmp_path / "task.jsonl"), "bootstrap_samples": 200, "engine": engine},
            }
            spec = tmp_path / f"{log}.json"
            maker = {"log": str(tmp_path / log), "seconds_per_row": PACE}
            spec.write_text(json.dumps({"config": config, "maker": maker}))
            environment = {"RAY_TMPDIR": str(short), "ADAMLLM_OBJECT_STORE_BYTES": str(200 << 20)}
            with (tmp_path / f"{log}.err").open("w") as sink:
                process = subprocess.Popen(
                    [sys.executable, "-m", "tests.evaluation.driver", str(spec)],
                    stdout=subprocess.PIPE,
                    stderr=sink,
                    text=True,
                    env=os.environ | environment,
                )
            started.append(process)
            return process

        yield start
        for process in started:
            process.kill()


def _asked(folder, log):
    return asked_rows(str(folder / log))


def _wait_for(count, process, errors, counted):
    stop = time.monotonic() + PATIENCE_S
    while counted() < count:
        assert process.poll() is None, errors.read_text()[-3000:]
        assert time.monotonic() < stop, "the driver does not get on"
        time.sleep(0.05)


def _scores(folder, log, process):
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, (folder / f"{log}.err").read_text()[-3000:]
    return out.strip().rpartition("\n")[2]


def _on_disk(folder, run):
    """How many answers of both models the run's folder has: what the next life need not ask."""
    return sum(pq.read_metadata(part).num_rows for part in (folder / run).glob("evaluate/answers/*/part-*.parquet"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_evaluation_that_was_killed_asks_only_what_it_did_not_know(tmp_path, lives):
    """Driver killed half way, then a replica: the same scores; asked twice is what was not on disk or in work."""
    whole = _scores(tmp_path, "whole", lives("undisturbed", "whole"))
    assert len(_asked(tmp_path, "whole")) == 2 * QUESTIONS

    first = lives("killed", "first")
    _wait_for(QUESTIONS // 2, first, tmp_path / "first.err", lambda: _on_disk(tmp_path, "killed"))
    first.kill()
    first.communicate()
    known = _on_disk(tmp_path, "killed")
    assert known < 2 * QUESTIONS, "it was killed too late to tell anything"
    second = lives("killed", "second")
    _wait_for(20, second, tmp_path / "second.err", lambda: len(_asked(tmp_path, "second")))
    victim = processes(str(tmp_path / "second"), "synthesizer")[0]
    os.kill(victim, 9)
    assert _scores(tmp_path, "second", second) == whole

    unknown = 2 * QUESTIONS - known
    in_work = 2 * ROWS_PER_CALL  # the two calls that died with the replica
    assert unknown <= len(_asked(tmp_path, "second")) <= unknown + in_work
