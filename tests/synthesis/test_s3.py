"""Synthesis from S3 to S3 (moto's server): killed with SIGKILL and started again, nothing is lost and nothing doubled.

The engine is fake; what counts is which rows come out. Status, verify and redrive work there as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.data.run import RunFolder
from adamllm_ray.data.verify import verify
from adamllm_ray.synthesis import redrive as redrive_module
from adamllm_ray.synthesis.pipeline import synthesize
from adamllm_ray.synthesis.redrive import redrive
from adamllm_ray.synthesis.watch import Watch, committed_rows
from adamllm_ray.terminal import progress_lines
from tests.synthesis.fakes import FakeMaker, asked_rows, config_for, png, write_ingest
from tests.synthesis.test_redrive import without_ray

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
ROWS = 100


def test_killed_and_resumed_on_s3(
    bucket: Any,
    tmp_path: Path,
    tiny_vlm: Path,
    tiny_judge: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = RunFolder("s3://runs/synthesis")
    write_ingest(run, [{"image": png(number), "caption": f"circle {number}"} for number in range(ROWS)])
    stage, ids = run.stage("synthesize"), run.stage("ingest").row_ids()
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as ray_folder:
        environment = os.environ | {"RAY_TMPDIR": ray_folder, "ADAMLLM_OBJECT_STORE_BYTES": str(200 << 20)}

        def start(log: str, seconds: float) -> subprocess.Popen[str]:
            arguments = [run.uri, tiny_vlm, tiny_judge, tmp_path / log, seconds]
            command = [sys.executable, "-m", "tests.synthesis.s3_process", *map(str, arguments)]
            with (tmp_path / f"{log}.err").open("w") as errors:
                return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)

        life = start("first", 0.2)
        while committed_rows(stage) < 0.3 * ROWS:
            assert life.poll() is None, (tmp_path / "first.err").read_text()[-3000:]
            time.sleep(0.2)
        life.kill()
        life.communicate()
        seen = Watch(stage).look()
        assert 0 < seen.rows < ROWS
        assert "kept" in progress_lines(seen, ROWS)[1]
        assert stage.manifest() is None

        life = start("second", 0.0)  # at once: the orphans of the first are still alive, and so is its lease
        out, _ = life.communicate(timeout=600)
        assert life.returncode == 0, (tmp_path / "second.err").read_text()[-3000:]
        assert json.loads(out.splitlines()[-1]) == {"kept": ROWS}
    assert sorted(stage.row_ids()) == sorted(ids)  # row_ids raises when one is there twice
    assert verify(stage, run.stage("ingest")) == []
    assert len(asked_rows(str(tmp_path / "second"))) <= ROWS - seen.rows

    config, nobody = config_for(tmp_path, tiny_vlm, tiny_judge), FakeMaker(str(tmp_path / "third"))
    assert synthesize(config, run, engine_maker=nobody) == stage.manifest()
    assert asked_rows(nobody.log) == []
    monkeypatch.setattr(redrive_module, "run_graph", without_ray)
    monkeypatch.setattr(redrive_module, "ray_session", lambda: pytest.MonkeyPatch.context())
    assert redrive(config, run, ["kept"], engine_maker=nobody).rows == ROWS
    assert len(asked_rows(nobody.log)) == ROWS
    assert verify(stage, run.stage("ingest")) == []
