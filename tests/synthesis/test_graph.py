"""Pools under a real Ray, on the fake engine: they grow, give up on a row that kills, and do not wait for ever."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.config import EngineSection
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import ReplicasLost
from adamllm_ray.synthesis.engine import Completion, Request, SamplingSpec
from adamllm_ray.synthesis.pipeline import synthesize
from adamllm_ray.synthesis.release import written_blocks_let_go
from adamllm_ray.synthesis.watch import committed_rows
from tests.synthesis.fakes import FakeEngine, FakeMaker, config_for, png, write_ingest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ENGINE = {"max_model_len": 256, "max_num_seqs": 4, "kv_cache_gib": 0.1, "cpus_per_replica": 0.5}


@dataclass(frozen=True)
class Trouble(FakeMaker):
    """Engines that die with one row, or never come up."""

    kills: str = ""
    hangs: bool = False

    def __call__(self, model: str, settings: EngineSection, images: bool) -> FakeEngine:
        if self.hangs and images:
            time.sleep(3600)
        return Dying(self, model, images)


class Dying(FakeEngine):
    async def generate(self, requests: Sequence[Request], sampling: SamplingSpec) -> list[Completion]:
        completions = await super().generate(requests, sampling)
        maker: Any = self.maker
        if maker.kills in [request.id for request in requests]:
            os._exit(1)
        return completions


@pytest.fixture(scope="module", autouse=True)
def ray_local() -> Iterator[None]:
    import ray

    from adamllm_ray.ray_runtime import prepare_environment, start_local

    prepare_environment()
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    start_local(
        num_cpus=6,
        object_store_memory=200 << 20,
        logging_level="warning",
        _temp_dir=folder,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    found = RunFolder(str(tmp_path / "run"))
    write_ingest(found, [{"image": png(number), "caption": f"circle {number}"} for number in range(120)])
    return found


def test_a_pool_grows_while_work_waits(run: RunFolder, tmp_path: Path, tiny_vlm: Path, tiny_judge: Path) -> None:
    engine = ENGINE | {"replicas": 3, "min_replicas": 1}
    config = config_for(tmp_path, tiny_vlm, tiny_judge, engine=engine, rows_per_block=2)
    maker = FakeMaker(str(tmp_path / "log"), seconds_per_row=1.0)  # 40 s, if it does not grow
    assert synthesize(config, run, engine_maker=maker).kept == 120
    assert len(list((tmp_path / "log").glob("synthesizer-*"))) > 1


def test_without_retries_a_row_that_kills_its_engine_stops_the_job(
    run: RunFolder, tmp_path: Path, tiny_vlm: Path, tiny_judge: Path
) -> None:
    config = config_for(tmp_path, tiny_vlm, tiny_judge, engine=ENGINE | {"max_retries": 0})
    stage, row = run.stage("synthesize"), run.stage("ingest").row_ids()[60]
    with pytest.raises(ReplicasLost, match=r"engine\.max_retries"):
        synthesize(config, run, engine_maker=Trouble(str(tmp_path / "log"), kills=row))
    assert stage.manifest() is None
    assert committed_rows(stage) < 120
    assert len(list((tmp_path / "log").glob("synthesizer-*"))) <= 3


def test_replicas_that_never_come_up_stop_the_job(
    run: RunFolder, tmp_path: Path, tiny_vlm: Path, tiny_judge: Path
) -> None:
    config = config_for(tmp_path, tiny_vlm, tiny_judge, engine=ENGINE, stall_minutes=0.25)
    with pytest.raises(ReplicasLost, match=r"synthesis\.stall_minutes"):
        synthesize(config, run, engine_maker=Trouble(str(tmp_path / "log"), hangs=True))


def test_readers_are_no_more_than_the_replicas_need(
    run: RunFolder, tmp_path: Path, tiny_vlm: Path, tiny_judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own choice, one process per file, left small nodes without a CPU for the step behind the readers."""
    import ray.data

    asked: list[Any] = []
    read = ray.data.read_parquet

    def noted(*arguments: Any, **named: Any) -> Any:
        asked.append(named["concurrency"])
        return read(*arguments, **named)

    monkeypatch.setattr(ray.data, "read_parquet", noted)
    config = config_for(tmp_path, tiny_vlm, tiny_judge, engine=ENGINE | {"replicas": 3})
    assert synthesize(config, run, engine_maker=FakeMaker(str(tmp_path / "log"))).kept == 120
    assert asked == [3]


def test_written_blocks_leave_nothing_in_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray by itself keeps a reference to the result of each of the 40 blocks, beside those of the 40 that it read."""
    import ray.data
    from ray.data._internal.execution.interfaces import RefBundle
    from ray.data.dataset import MaterializedDataset
    from ray.data.datasource.file_datasink import _FileDatasink

    told: list[Any] = []
    monkeypatch.setattr(_FileDatasink, "on_write_complete", lambda _, result: told.append(result))

    def alive() -> int:
        gc.collect()
        return sum(len(one.blocks) for one in gc.get_objects() if type(one) is RefBundle)

    def kept(name: str) -> int:
        before = alive()
        numbers = ray.data.range(40, override_num_blocks=40)
        numbers.write_parquet(str(tmp_path / name))
        return alive() - before

    by_ray = kept("by_ray")
    with written_blocks_let_go():
        ours = kept("ours")
        assert isinstance(ray.data.range(3).materialize(), MaterializedDataset)
    assert by_ray - ours >= 40
    assert [(one.num_rows, one.size_bytes) for one in told] == [(40, told[0].size_bytes)] * 2
    assert [len(one.write_returns) for one in told] == [40, 0]
    assert sorted(row["id"] for row in ray.data.read_parquet(str(tmp_path / "ours")).take_all()) == [*range(40)]
