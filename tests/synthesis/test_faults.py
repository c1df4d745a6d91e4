"""What dies below a living driver: replicas, their engine's child, a node, the disk. Fake engine, real kills.

One Ray of four worker nodes (real raylets) for all of it. The driver goes on by itself; rows lost: 0, doubled: 0. Rows
that kill their replicas every time are in test_poison.py.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import StorageError
from adamllm_ray.synthesis.pipeline import synthesize
from adamllm_ray.synthesis.watch import committed_rows
from tests.processes import family_of, raylet_of, slay
from tests.raylets import environment
from tests.synthesis.deaths import IN_FLIGHT, IN_FLIGHT_EVERYWHERE, Job, worker_nodes
from tests.synthesis.fakes import FakeMaker, asked_rows, circles, write_ingest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def nodes() -> Iterator[None]:
    # a lost node counts as dead after 15 s, as with Ray's own settings (five times 3 s)
    with environment(RAY_health_check_failure_threshold="15"), worker_nodes(4):
        yield


@pytest.fixture
def job(nodes: None, tmp_path: Path, tiny_vlm: Path, tiny_judge: Path) -> Callable[..., Job]:
    return lambda rows, **maker: Job(tmp_path, tiny_vlm, tiny_judge, rows, **maker)


def undisturbed(work: Job) -> Any:
    """Digest of the same rows from a run in which nothing dies."""
    run = RunFolder(str(work.folder / "calm"))
    write_ingest(run, circles(len(work.ids)))
    maker = FakeMaker(str(work.folder / "calm_log"))
    output = work.config.run.model_copy(update={"output": run.uri})
    manifest = synthesize(work.config.model_copy(update={"run": output}), run, engine_maker=maker)
    assert sorted(asked_rows(maker.log)) == sorted(work.ids)
    return manifest.extra["content"]


def test_replicas_and_engine_children_die(job: Callable[..., Job]) -> None:
    """One synthesizer, then every replica of both pools, then the child of one engine alone."""
    work = job(240, seconds_per_row=0.1, child=True)
    manifest = work.go(
        (0.1, lambda: slay(work.victims("synthesizer")[:1])),
        (0.35, lambda: slay(work.victims("synthesizer") + work.victims("judge"))),
        (0.6, lambda: slay(work.victims("synthesizer_child")[-1:])),
    )
    assert work.asked_twice() <= 2 * IN_FLIGHT
    assert manifest.extra["content"] == undisturbed(work)


def test_finished_blocks_do_not_pile_up_before_a_slow_judge(job: Callable[..., Job]) -> None:
    """What a kill of the driver would cost at any moment is bounded: Ray alone would let all 300 rows wait."""
    work = job(300, judge_seconds_per_row=0.1)
    work.go((0.9, lambda: None))
    assert 0 < work.most_unfinished <= IN_FLIGHT_EVERYWHERE


def test_replicas_that_keep_dying_still_get_on(job: Callable[..., Job]) -> None:
    """Each life of a replica is good for 20 rows: every one of 50 rows comes out, with at most a batch per death."""
    work = job(50, seconds_per_row=0.1, dies_after=20)  # slower than Ray takes to fetch a finished block
    work.go()
    deaths = sum(rows >= 20 for rows in work.lives())  # a life that was asked for fewer did not end so
    assert deaths >= 2
    assert work.asked_twice() <= deaths * IN_FLIGHT / 2


@pytest.mark.parametrize("part", ["data", "ledger"])
def test_disk_full_then_freed(job: Callable[..., Job], part: str) -> None:
    """The stage's data, or only Ray's ledger, is on a disk that fills up in the middle."""
    work = job(60)
    folder = Path(work.stage.path) / part
    with small_disk(folder):
        ballast(folder, keep=40 << 10)
        with pytest.raises(StorageError, match="no space left") as caught:
            synthesize(work.config, work.run, engine_maker=work.maker)
        assert caught.value.exit_code == 75
        assert work.stage.manifest() is None
        committed = committed_rows(work.stage)
        (folder / ".ballast").unlink()
        work.maker = FakeMaker(str(work.folder / "again"))
        work.go()
        assert work.asked_twice() == 0
        assert len(asked_rows(work.maker.log)) == 60 - committed < 60


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A real filesystem of 1 MiB at ``folder``; skips where mounting is not allowed."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small filesystem needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def ballast(folder: Path, keep: int) -> None:
    """Fill the disk but for ``keep`` bytes."""
    info = os.statvfs(folder)
    (folder / ".ballast").write_bytes(b"x" * (info.f_bavail * info.f_frsize - keep))


@pytest.mark.parametrize("lost", [family_of, lambda raylet: [raylet]], ids=["at_one_blow", "raylet_first"])
def test_a_node_dies(job: Callable[..., Job], lost: Callable[[int], list[int]]) -> None:
    """kill -9 of a synthesizer's whole node or of its raylet, not replaced. Last in this file: it uses nodes up."""
    work = job(200, seconds_per_row=0.1)
    work.go((0.2, lambda: slay(lost(raylet_of(work.pids("synthesizer")[0])))))
    assert work.asked_twice() <= 2 * IN_FLIGHT + 40  # and blocks whose only copy was on that node
