"""Redrive: only the rows that were named run again, row identity holds, and a kill leaves the old rows or the new ones.

Most tests run the two steps of the graph directly, without Ray; the kill test uses a real Ray.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adamllm_ray.config import RunConfig
from adamllm_ray.data import storage
from adamllm_ray.data.record import RECORD_SCHEMA, SYNTHESIZED_SCHEMA
from adamllm_ray.data.run import RunFolder, StageFolder
from adamllm_ray.data.verify import verify
from adamllm_ray.errors import ConfigError, FingerprintMismatch, SourceError, TooManyFailures
from adamllm_ray.synthesis import redrive as module
from adamllm_ray.synthesis.accounts import count_tasks
from adamllm_ray.synthesis.actors import Judge, Synthesizer
from adamllm_ray.synthesis.pipeline import fingerprint, synthesize
from adamllm_ray.synthesis.redrive import redrive
from tests.synthesis.fakes import FakeMaker, asked_rows, config_for, png, write_ingest

pytestmark = pytest.mark.timeout(300)

ROWS, PER_FILE = 20, 5
BROKEN = [3, 4, 11]  # rows whose engine failed: in the first and the third file


def verdict_of(number: int) -> str:
    return "engine_error" if number in BROKEN else "judged_open" if number % 5 == 0 else "kept"


def synthesized(config: RunConfig, run: RunFolder, finish: bool = True) -> StageFolder:
    """A synthesis as `synthesize` leaves it, with some rows that the engine failed on."""
    manifest = write_ingest(run, [{"image": png(number), "caption": f"circle {number}"} for number in range(ROWS)])
    [file] = run.stage("ingest").parquet_files()
    records = pq.read_table(file).to_pylist()
    stage = run.stage("synthesize")
    stage.begin(fingerprint(config, manifest))
    for folder in (stage.data, stage.ledger):
        Path(folder).mkdir(parents=True)
    for number in range(0, ROWS, PER_FILE):
        rows = [
            dict.fromkeys(SYNTHESIZED_SCHEMA.names) | records[row] | {"task_verdict": verdict_of(row)}
            for row in range(number, number + PER_FILE)
        ]
        table = pa.Table.from_pylist(rows, SYNTHESIZED_SCHEMA)
        pq.write_table(table, f"{stage.data}/w_{number:06}-0.parquet")
        pq.write_table(table.select(["id"]), f"{stage.ledger}/w_{number:06}.parquet")
    if finish:
        tasks = count_tasks(stage, stage.parquet_files())
        stage.finish(rows_in=ROWS, verdicts=tasks.verdicts, extra={"content": tasks.content}, seconds=7.0)
    return stage


def without_ray(config: RunConfig, files: Sequence[str], stage: StageFolder, engine_maker: Any) -> None:
    """What `run_graph` does, in this process."""
    models, judge = config.models, config.judge
    writer = Synthesizer(models.synthesizer, config.synthesis, config.data.images, config.run.seed, engine_maker)
    records = pa.concat_tables([pq.read_table(file, filesystem=stage.fs) for file in files])
    table = asyncio.run(writer(records))
    table = asyncio.run(Judge(models.judge, judge, config.synthesis.max_failed_share, engine_maker)(table))
    for name, part in (("data/w_0-0.parquet", table), ("ledger/w_0.parquet", table.select(["id"]))):
        place = stage.place.child(name)
        storage.make_folder(stage.place.child(name.split("/")[0]))
        pq.write_table(part, place.path, filesystem=stage.fs)


@pytest.fixture
def config(tmp_path: Path, tiny_vlm: Path, tiny_judge: Path) -> RunConfig:
    return config_for(tmp_path / "run", tiny_vlm, tiny_judge)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(str(tmp_path / "run"))


@pytest.fixture
def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMaker:
    monkeypatch.setattr(module, "run_graph", without_ray)
    monkeypatch.setattr(module, "ray_session", lambda: pytest.MonkeyPatch.context())
    return FakeMaker(str(tmp_path / "log"))


def rows_of(stage: StageFolder) -> dict[str, dict[str, Any]]:
    rows = [row for file in stage.parquet_files() for row in pq.read_table(file).to_pylist()]
    assert len({row["id"] for row in rows}) == len(rows) == ROWS
    return {row["key"]: row for row in rows}


def test_only_the_named_rows_run_again_and_the_others_stay(config: RunConfig, run: RunFolder, maker: FakeMaker) -> None:
    stage = synthesized(config, run)
    before, old = rows_of(stage), stage.manifest()
    done = redrive(config, run, ["engine_error"], engine_maker=maker)
    after, new = rows_of(stage), stage.manifest()
    assert old is not None
    assert new == done.manifest
    assert sorted(asked_rows(maker.log)) == sorted(before[str(number)]["id"] for number in BROKEN)
    for key, row in after.items():
        assert row == before[key] or int(key) in BROKEN
        assert all(row[name] == before[key][name] for name in RECORD_SCHEMA.names)
    assert {after[str(number)]["task_verdict"] for number in BROKEN} == {"kept"}
    assert (done.rows, done.before, done.after) == (3, {"engine_error": 3}, {"kept": 3})
    assert new.verdicts == Counter(row["task_verdict"] for row in after.values())
    [entry] = new.extra["redriven"]
    assert (entry["verdicts"], entry["before"], entry["after"]) == (["engine_error"], {"engine_error": 3}, {"kept": 3})
    assert entry["replaced"] == ["data/w_000000-0.parquet", "data/w_000010-0.parquet"]
    assert new.identity != old.identity  # so that training on the old rows is noticed
    assert new.seconds > old.seconds
    assert verify(stage, run.stage("ingest")) == []
    assert not Path(stage.path, "redrive").exists()
    assert synthesize(config, run, engine_maker=maker) == new  # finished all the same


def test_again_and_again_keeps_the_history(config: RunConfig, run: RunFolder, maker: FakeMaker) -> None:
    stage = synthesized(config, run)
    redrive(config, run, ["engine_error"], engine_maker=maker)
    assert redrive(config, run, ["engine_error"], engine_maker=maker).rows == 0
    second = redrive(config, run, ["judged_open", "kept"], engine_maker=maker)
    assert second.rows == ROWS
    assert [entry["before"] for entry in second.manifest.extra["redriven"]] == [
        {"engine_error": 3},
        {"judged_open": 4, "kept": 16},
    ]
    assert second.manifest.verdicts == {"kept": ROWS}
    assert {Path(path).parent.name for path in stage.parquet_files()} == {"redriven"}
    assert verify(stage, run.stage("ingest")) == []


def test_a_synthesis_that_passed_its_ceiling_is_finished_by_it(
    config: RunConfig, run: RunFolder, maker: FakeMaker
) -> None:
    stage = synthesized(config, run, finish=False)
    with pytest.raises(TooManyFailures, match="redrive CONFIG --verdict engine_error"):
        synthesize(config, run, engine_maker=maker)
    done = redrive(config, run, ["engine_error"], engine_maker=maker)
    assert done.manifest == stage.manifest()
    assert done.manifest.failed == 0
    assert verify(stage, run.stage("ingest")) == []


def test_while_the_cause_is_still_there_nothing_changes(
    config: RunConfig, run: RunFolder, maker: FakeMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adamllm_ray.synthesis.engine import Completion
    from tests.synthesis.fakes import FakeEngine

    async def fails(engine: FakeEngine, requests: Any, sampling: Any) -> list[Completion]:
        return [Completion(request.id, error="no memory") for request in requests]

    stage = synthesized(config, run)
    before, old = rows_of(stage), stage.manifest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeEngine, "generate", fails)
        with pytest.raises(TooManyFailures):
            redrive(config, run, ["engine_error"], engine_maker=maker)
    assert (rows_of(stage), stage.manifest()) == (before, old)
    assert redrive(config, run, ["engine_error"], engine_maker=maker).after == {"kept": 3}  # the failures are forgotten


def test_what_cannot_be_redriven_says_why(config: RunConfig, run: RunFolder, maker: FakeMaker) -> None:
    with pytest.raises(SourceError, match="adamllm ingest"):
        redrive(config, run, ["kept"], engine_maker=maker)
    stage = synthesized(config, run, finish=False)
    with pytest.raises(ConfigError, match=r"no verdict .engine-error.; the verdicts are .*engine_error"):
        redrive(config, run, ["engine-error"], engine_maker=maker)
    with pytest.raises(SourceError, match="no row"):
        redrive(config, run, ["response_empty"], engine_maker=maker)
    Path(stage.data, "w_000000-0.parquet").unlink()
    with pytest.raises(SourceError, match="has 15 of 20 rows"):
        redrive(config, run, ["engine_error"], engine_maker=maker)
    warmer = config.model_copy(update={"synthesis": config.synthesis.model_copy(update={"temperature": 0.5})})
    with pytest.raises(FingerprintMismatch, match=r"sampling\.temperature"):
        redrive(warmer, run, ["engine_error"], engine_maker=maker)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_any_point_the_rows_are_the_old_ones_or_the_new(
    config: RunConfig, run: RunFolder, tmp_path: Path, tiny_vlm: Path, tiny_judge: Path
) -> None:
    stage = synthesized(config, run)
    old = Counter(row["task_verdict"] for row in rows_of(stage).values())
    new = old - Counter({"engine_error": 3}) + Counter({"kept": 3})
    log = tmp_path / "log"
    states = []
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as ray_folder:
        environment = os.environ | {"RAY_TMPDIR": ray_folder, "ADAMLLM_OBJECT_STORE_BYTES": str(200 << 20)}
        for point in ("asked", "merged", "before", "after", "never"):
            command = [sys.executable, "-m", "tests.synthesis.redrive_process", run.uri]
            life = subprocess.run(
                [*command, *map(str, (tiny_vlm, tiny_judge, log)), point],
                env=environment,
                capture_output=True,
                text=True,
            )
            assert life.returncode == (0 if point == "never" else -9), life.stderr[-3000:]
            manifest, counted = stage.manifest(), Counter(row["task_verdict"] for row in rows_of(stage).values())
            assert manifest is not None
            assert manifest.verdicts == counted
            states.append("old" if counted == old else "new" if counted == new else "mixed")
    assert states == ["old", "old", "old", "new", "new"]
    assert len(asked_rows(str(log))) == len(BROKEN)  # asked once in all lives
    assert verify(stage, run.stage("ingest")) == []
