"""A synthesize stage in this process and somebody who kills things below it, for test_faults.py, test_poison.py,
faults/test_memory.py and benchmarks/recovery.py. Real raylets, real SIGKILL, fake engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from adamllm_ray.data.manifest import Manifest
from adamllm_ray.data.run import RunFolder
from adamllm_ray.synthesis.pipeline import synthesize
from adamllm_ray.synthesis.watch import committed_rows
from tests.raylets import environment, raylets
from tests.synthesis.fakes import FakeMaker, asked_at, circles, config_for, processes, write_ingest
from tests.synthesis.lives import short_folder

BLOCK = 5
REPLACED_S = 240.0  # for a dead replica to be replaced, on a machine that is busy with other things
SMALL: dict[str, Any] = {
    "rows_per_block": BLOCK,
    "engine": {"max_num_seqs": 5, "replicas": 2, "cpus_per_replica": 0.5},
}
IN_FLIGHT = 2 * 3 * BLOCK  # 2 replicas; the 13 rows whose turn it is at one of them are of 3 blocks at most
IN_FLIGHT_EVERYWHERE = BLOCK * (14 + 4 + 2)  # in work or waiting at the synthesizers and at the judge; being written


@contextmanager
def worker_nodes(number: int = 3) -> Iterator[None]:
    """A head without CPUs, where the driver is, and that many worker nodes of 2 CPUs; this process is connected."""
    import ray

    with environment(RAY_health_check_period_ms="1000"), raylets(number) as nodes:
        ray.init(address=nodes.address, log_to_driver=False)
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def quick_ray(**variables: str) -> Iterator[None]:
    """A Ray of this process that starts dead actors again at once, with more of its environment variables."""
    import ray

    from adamllm_ray.ray_runtime import prepare_environment, start_local

    # Ray's pauses after a death, which are for lost machines: 4 s and more (decision 0045)
    quick = {"RAY_task_actor_unavailable_retry_delay_base_ms": "100"}
    prepare_environment()
    with short_folder() as folder, environment(**quick, **variables):
        start_local(num_cpus=6, object_store_memory=200 << 20, logging_level="warning", _temp_dir=str(folder))
        try:
            yield
        finally:
            ray.shutdown()


@dataclass(frozen=True)
class Death:
    """What was killed when, and the synthesizer processes that were alive just before."""

    at: float
    before: list[int]


class Job:
    """One run folder with ``rows`` rows, its configuration and its fake engine."""

    def __init__(self, folder: Path, vlm: Path, judge: Path, rows: int, *, max_retries: int = 5, **maker: Any) -> None:
        self.folder = folder
        self.run = RunFolder(str(folder / "run"))
        write_ingest(self.run, circles(rows))
        self.ids = self.run.stage("ingest").row_ids()
        self.maker = FakeMaker(str(folder / "log"), **maker)
        engine = SMALL["engine"] | {"max_retries": max_retries}
        self.config = config_for(folder / "run", vlm, judge, **SMALL | {"engine": engine})
        self.stage = self.run.stage("synthesize")
        self.deaths: list[Death] = []
        self.most_unfinished = 0  # rows that an engine was asked for and that were not committed, at any look
        self._failure: list[BaseException] = []

    def go(self, *kills: tuple[float, Callable[[], None]]) -> Manifest:
        """Run the stage; each kill happens when its share of the rows is committed. Checks that every row is there."""
        thread = threading.Thread(target=self._kill, args=(kills,), daemon=True)
        thread.start()
        manifest = synthesize(self.config, self.run, engine_maker=self.maker)
        thread.join(timeout=10)
        assert not thread.is_alive(), "the stage ended before everything was killed"
        assert self._failure == []
        assert sorted(self.stage.row_ids()) == sorted(self.ids)
        assert manifest.verdicts == {"kept": len(self.ids)}
        return manifest

    def kept(self) -> dict[str, str]:
        """The answer of each kept task, by id. The engines are fakes: it tells the row that they were asked for."""
        files = self.stage.parquet_files()
        tables = [pq.read_table(file, columns=["id", "task_verdict", "precise"], partitioning=None) for file in files]
        rows = [row for table in tables for row in table.to_pylist()]
        return {row["id"]: row["precise"] for row in rows if row["task_verdict"] == "kept"}

    def asked_twice(self) -> int:
        """Rows that an engine was asked for more than once, counted once per time too many."""
        asked = [name for name, _ in asked_at(self.maker.log)]
        return len(asked) - len(set(asked))

    def pids(self, role: str) -> list[int]:
        """Living ``synthesizer``, ``judge`` or ``synthesizer_child`` processes, oldest first."""
        return processes(self.maker.log, role)

    def victims(self, role: str) -> list[int]:
        """`pids`, of which there is one: those that died a moment ago may still be on their way back."""
        stop = time.monotonic() + REPLACED_S
        while not (found := self.pids(role)):
            assert time.monotonic() < stop, f"no {role} has come back"
            time.sleep(0.1)
        return found

    def lives(self) -> list[int]:
        """Rows that each synthesizer process was asked for, of all that there have been."""
        return [len(file.read_text().splitlines()) for file in Path(self.maker.log).glob("synthesizer-*")]

    def replaced_after(self, death: Death) -> float:
        """Seconds from a kill to the first row at a replica that started after it."""
        return min(at for _, at in asked_at(self.maker.log, without=death.before) if at > death.at) - death.at

    def _kill(self, kills: tuple[tuple[float, Callable[[], None]], ...]) -> None:
        try:
            for share, kill in kills:
                while (done := committed_rows(self.stage)) < share * len(self.ids):
                    unfinished = len({name for name, _ in asked_at(self.maker.log)}) - done
                    self.most_unfinished = max(self.most_unfinished, unfinished)
                    time.sleep(0.1)
                self.deaths.append(Death(time.time(), self.pids("synthesizer")))
                kill()
        except BaseException as error:
            self._failure.append(error)
