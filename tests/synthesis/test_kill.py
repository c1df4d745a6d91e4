"""kill -9 of the driver, again and again, on the fake engine: what counts is which rows come out.

One run folder lives through all of it, and every start follows its kill at once, while Ray's orphaned processes are
still alive: killed while it works, killed at each step of a block's two-phase commit, terminated, killed before the
manifest. Rows lost: 0. Rows doubled: 0. Rows asked twice: only those that were in flight.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from adamllm_ray.data.manifest import Manifest
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import FingerprintMismatch, RunLocked
from adamllm_ray.synthesis import prompts
from adamllm_ray.synthesis.pipeline import synthesize
from tests.synthesis.deaths import BLOCK, IN_FLIGHT_EVERYWHERE, SMALL
from tests.synthesis.fakes import FakeMaker, asked_rows, circles, config_for, write_ingest
from tests.synthesis.lives import Life, Runs, short_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ROWS = 400
BLOCKS = ROWS // BLOCK
PACE = 0.05  # seconds per row at the engine


@pytest.fixture
def runs(tmp_path: Path, tiny_vlm: Path, tiny_judge: Path) -> Iterator[Runs]:
    with short_folder() as folder:
        yield Runs(tmp_path / "run", tiny_vlm, tiny_judge, folder, SMALL)


def stopped(runs: Runs, point: str, share: float) -> Life:
    """A life that is killed when it comes to ``point`` with that share of the rows done."""
    life = runs.start(stop=(point, round(share * BLOCKS)), seconds_per_row=PACE)
    life.wait_until(life.marker.exists)
    life.kill()
    return life


def test_nothing_is_lost_or_doubled_however_often_the_driver_dies(runs: Runs) -> None:
    write_ingest(runs.run, circles(ROWS))
    stage, ids = runs.run.stage("synthesize"), runs.run.stage("ingest").row_ids()
    done: list[int] = [0]
    lives: list[Life] = []

    def note(life: Life) -> None:
        lives.append(life)
        done.append(runs.committed())
        assert stage.manifest() is None

    life = runs.start(seconds_per_row=PACE)
    life.wait_until(lambda: runs.committed() >= 0.1 * ROWS)
    second = runs.start()  # a second driver on the same folder: refused, for now
    assert second.end()[0] == RunLocked.exit_code
    assert f"in use by process {life.process.pid} " in second.errors.read_text()
    assert second.asked() == []
    life.kill()
    note(life)
    note(stopped(runs, "pending", 0.4))
    note(stopped(runs, "data", 0.7))
    life = runs.start(seconds_per_row=4 * PACE)
    life.wait_until(lambda: runs.committed() > done[-1])
    life.process.send_signal(signal.SIGTERM)
    assert life.end()[0] == 130
    note(life)
    twin(Path(stage.ledger))
    note(stopped(runs, "commit", 0.95))
    note(stopped(runs, "manifest", 0))
    assert done == sorted(done)
    assert done[-1] == ROWS

    code, out = runs.start().end()
    assert (code, json.loads(out)) == (0, {"kept": ROWS})
    assert sorted(stage.row_ids()) == sorted(ids)  # row_ids raises when one is there twice
    for life, before, after in zip(lives, done, done[1:], strict=False):
        asked = life.asked()
        assert len(asked) == len(set(asked)) <= ROWS - before  # nothing that was committed is asked again
        assert len(asked) - (after - before) <= IN_FLIGHT_EVERYWHERE  # what the kill cost
    finished_run_costs_nothing(runs, stage.manifest())
    changed_prompt_is_refused(runs, ids)


def twin(ledger: Path) -> None:
    """The state that S3's rename (copy, then delete) leaves when it dies in between: both names are there."""
    one = next(path for path in sorted(ledger.iterdir()) if not path.name.endswith(".pending.parquet"))
    shutil.copy(one, one.with_name(one.name.removesuffix(".parquet") + ".pending.parquet"))


def finished_run_costs_nothing(runs: Runs, manifest: Manifest | None) -> None:
    assert manifest is not None
    nobody = FakeMaker(str(runs.ray_folder / "nobody"))
    config = config_for(runs.output, runs.vlm, runs.judge, **runs.synthesis)
    for lost in (False, True):
        if lost:
            (Path(runs.run.stage("synthesize").path) / "manifest.json").unlink()
        again = synthesize(config, RunFolder(str(runs.output)), engine_maker=nobody)
        assert (again.verdicts, again.extra) == (manifest.verdicts, manifest.extra)
    assert asked_rows(nobody.log) == []


def changed_prompt_is_refused(runs: Runs, ids: list[str]) -> None:
    config = config_for(runs.output, runs.vlm, runs.judge, **runs.synthesis)
    nobody = FakeMaker(str(runs.ray_folder / "nobody"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompts, "CAPTION_REQUEST", "What is this?")
        with pytest.raises(FingerprintMismatch, match="prompts"):
            synthesize(config, runs.run, engine_maker=nobody)
    config = config_for(runs.output, runs.vlm, runs.judge, **runs.synthesis, temperature=0.7)
    with pytest.raises(FingerprintMismatch, match=r"sampling\.temperature"):
        synthesize(config, runs.run, engine_maker=nobody)
    assert sorted(runs.run.stage("synthesize").row_ids()) == sorted(ids)
    assert asked_rows(nobody.log) == []
    assert not os.path.exists(nobody.log)  # noqa: PTH110
