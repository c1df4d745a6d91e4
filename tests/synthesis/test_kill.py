"""kill -9 of a whole driver and of an actor, on the fake engine: what counts is which rows come out.

One run folder lives through all of it: a poisoned start, a killed driver, a half-done commit, a killed actor, a lost
manifest. Rows lost: 0. Rows doubled: 0. Rows asked twice: only those that were in flight.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adamllm_ray.data.run import RunFolder
from adamllm_ray.synthesis.pipeline import synthesize
from adamllm_ray.synthesis.watch import committed_rows
from tests.synthesis.fakes import FakeMaker, asked_rows, config_for, png, write_ingest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ROWS = 120
PATIENCE_S = 400.0


@pytest.fixture
def ray_folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


class Life:
    """One start of the driver on the run folder."""

    def __init__(self, run: Path, vlm: Path, judge: Path, log: Path, ray_folder: str, *more: str) -> None:
        command = [sys.executable, "-m", "tests.synthesis.driver", *map(str, (run, vlm, judge, log, ray_folder, *more))]
        self.log = str(log)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Poll while the driver works; fail when it ends before it is ready."""
        stop = time.monotonic() + PATIENCE_S
        while not ready():
            assert self.process.poll() is None, self.process.communicate()[1][-3000:]
            assert time.monotonic() < stop
            time.sleep(0.1)

    def end(self) -> tuple[int, str]:
        out, _ = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out


def test_nothing_is_lost_or_doubled_whatever_dies(
    tmp_path: Path, tiny_vlm: Path, tiny_judge: Path, ray_folder: str
) -> None:
    run = RunFolder(str(tmp_path / "run"))
    write_ingest(run, [{"image": png(number, number // 256), "caption": f"circle {number}"} for number in range(ROWS)])
    stage, ids = run.stage("synthesize"), run.stage("ingest").row_ids()

    def start(name: str, *more: str) -> Life:
        return Life(tmp_path / "run", tiny_vlm, tiny_judge, tmp_path / name, ray_folder, *more)

    # 1. An engine that raises on one row: the job stops loudly and is not finished.
    code, _ = start("log1", "0.0", ids[-1]).end()
    assert code != 0
    assert stage.manifest() is None
    committed = committed_rows(stage)
    assert committed < ROWS

    # 2. kill -9 of the driver at 40 % or later.
    life = start("log2", "0.3")
    life.wait_until(lambda: committed_rows(stage) >= max(0.4 * ROWS, committed + 10))
    life.process.kill()
    life.end()
    time.sleep(5)  # orphaned workers notice
    committed = committed_rows(stage)
    assert committed < ROWS
    assert stage.manifest() is None

    # 3. A commit that died between copy and delete, as S3 does it: both names are there. Then an actor dies as well.
    one = next(path for path in sorted(Path(stage.ledger).iterdir()) if not path.name.endswith(".pending.parquet"))
    shutil.copy(one, one.with_name(one.name.removesuffix(".parquet") + ".pending.parquet"))
    life = start("log3", "0.6")
    life.wait_until(lambda: len(asked_rows(life.log)) > 0)
    victim = int(next(Path(life.log).glob("synthesizer-*")).name.split("-")[1])
    os.kill(victim, signal.SIGKILL)
    code, out = life.end()
    assert code == 0
    assert json.loads(out.splitlines()[-1]) == {"kept": ROWS}
    assert sorted(stage.row_ids()) == sorted(ids)  # row_ids raises when one is there twice
    asked = asked_rows(life.log)
    assert len(list(Path(life.log).glob("synthesizer-*"))) == 2  # the actor came back as another process
    assert len(asked) - len(set(asked)) <= 10 * 4  # blocks of 10 rows, at most 4 handed to one actor
    assert len(set(asked)) <= ROWS - committed

    # 4. The manifest is lost but every row is there: finished without Ray or engines. And once more: nothing to do.
    manifest = stage.manifest()
    (Path(stage.path) / "manifest.json").unlink()
    config, nobody = config_for(tmp_path / "run", tiny_vlm, tiny_judge), FakeMaker(str(tmp_path / "log4"))
    for _ in range(2):
        again = synthesize(config, run, engine_maker=nobody)
        assert manifest is not None
        assert (again.verdicts, again.extra) == (manifest.verdicts, manifest.extra)
    assert asked_rows(nobody.log) == []
