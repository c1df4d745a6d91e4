"""Many rows through the graph on many nodes: memory over time, weak scaling, and what a kill half-way costs.

    python -m benchmarks.scale [--rows 1000000] [--weak-rows 600]

Real raylets on this machine as worker nodes, eight replicas, and a driver in a process of its own, which joins them by
RAY_ADDRESS as a job does. The engines sleep (standin.py): what is measured is Ray, the graph and the ledger.

1. Weak scaling: 1 node and 8 nodes of one replica, the same rows per node, replicas of a fixed speed that leaves the
   machine's CPU free, A B A B. ``weak_scaling_efficiency`` is rows/s per node at 8 nodes over that at 1.
2. The long run, on 2 nodes of four replicas: engines that are never the bottleneck. Memory of driver and workers over
   the rows done; the driver is killed with -9 at half of them and started again at once. (Two nodes, because the
   raylets and agents of eight took a quarter of this machine's two cores.)
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from adamllm_ray.config import parse_config
from adamllm_ray.data.run import RunFolder
from benchmarks.measure import finish, rss_mb, say
from benchmarks.records import write_records
from benchmarks.standin import Gate, Speed, StandinMaker
from tests.raylets import environment, raylets

REPLICAS, LONG_NODES, SLOTS, SAMPLE_S, ENOUGH_SAMPLES = 8, 2, 64, 2.0, 10
# of one driver, before its memory is fitted: malloc's arenas and Ray's thread pools fill for about 30,000 rows and then
# stand still. A driver with less than twice as many to do is fitted over its second half
WARM_ROWS = 50_000
# idle worker processes that a node may keep. Ray has it at the number of CPUs, and in weak scaling that is two: tasks
# would each wait for a new Python, which is 2 s of work on this machine and nothing on a node with 16 CPUs
IDLE_WORKERS = "16"
FIXED = Speed(step_s=8.0, median_tokens=1, sigma=0.0, prepare_s=0.0, judge_s=0.1)  # 8 rows/s with 64 slots
QUICK = Speed(step_s=0.2, median_tokens=1, sigma=0.0, prepare_s=0.0, judge_s=0.05)  # 320 rows/s


def main() -> None:
    """Run both parts and print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--weak-rows", type=int, default=600, help="per node")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folder", default="runs/scale")
    parser.add_argument("--drive", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(*options.drive)
        return
    folder = Path(options.folder).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    metrics: dict[str, Any] = {}
    if options.weak_rows:
        metrics |= weak_scaling(folder, options.weak_rows, options.repeats)
    if options.rows:
        metrics |= long_run(folder / "long", options.rows)
    finish("scale", metrics)


def drive(output: str, replicas: str, speed: str, calls: str) -> None:
    """A driver: synthesize what is in ``output``, on the cluster of RAY_ADDRESS."""
    from adamllm_ray.synthesis.pipeline import synthesize

    engine = {"max_num_seqs": SLOTS, "cpus_per_replica": 0.5}
    config = parse_config(
        {
            "run": {"output": output},
            "synthesis": {"engine": engine | {"replicas": int(replicas)}, "rows_per_block": 64},
            "judge": {"engine": engine, "few_shot": False},
        }
    )
    maker = StandinMaker(f"{output}/engines{calls}", int(replicas) + 1, Speed(**json.loads(speed)))
    synthesize(config, RunFolder(output), engine_maker=maker)


def weak_scaling(folder: Path, rows: int, repeats: int) -> dict[str, Any]:
    """Rows per second and node, at 1 node and at as many as there are replicas."""
    rates: dict[int, list[float]] = {1: [], REPLICAS: []}
    for number in range(repeats):
        for nodes in rates:
            place = folder / f"weak{nodes}-{number}"
            write_records(RunFolder(str(place)), rows * nodes)
            with cluster(nodes, cpus=2 if nodes > 1 else 3) as address:
                Driver(place, nodes, FIXED, address, 0).end()
            written = [file.stat().st_mtime for file in (place / "synthesize" / "data").glob("*.parquet")]
            rates[nodes].append(rows / (max(written) - Gate(place / "engines0", 0).opened_at()))
            say(f"{nodes} nodes: {rates[nodes][-1]:.2f} rows/s per node (load {os.getloadavg()[0]:.1f})")
    one, many = statistics.median(rates[1]), statistics.median(rates[REPLICAS])
    return {
        "weak_rows_per_node": rows,
        "weak_rows_per_s_per_node": {nodes: [round(rate, 2) for rate in found] for nodes, found in rates.items()},
        "weak_scaling_efficiency": round(many / one, 3),
    }


def long_run(place: Path, rows: int) -> dict[str, Any]:
    """All rows through the replicas, with a kill of the driver at half of them."""
    started = time.time()
    write_records(RunFolder(str(place)), rows)
    say(f"{rows} records written in {time.time() - started:.0f} s")
    with cluster(LONG_NODES, cpus=2 * REPLICAS // LONG_NODES) as address:
        first = Driver(place, REPLICAS, QUICK, address, 0)
        first.until(rows / 2)
        first.process.kill()
        first.process.wait()
        committed = first.done()
        second = Driver(place, REPLICAS, QUICK, address, 1)
        second.until(rows)
        second.end()
        spilled = spilled_bytes(address)
    asked = [sum(one["rows"] for one in Gate(place / f"engines{n}", 0).usage("synthesizer")) for n in (0, 1)]
    found = RunFolder(str(place)).stage("synthesize").row_ids()
    return {
        "rows": rows,
        "nodes": LONG_NODES,
        "rows_lost": rows - len(set(found)),
        "rows_duplicated": len(found) - len(set(found)),
        "rows_per_s": [driver.rows_per_s() for driver in (first, second)],
        "driver_rss_mb_at_tenths": [driver.tenths(1) for driver in (first, second)],
        "worker_rss_mb_at_tenths": [driver.tenths(2) for driver in (first, second)],
        "driver_rss_peak_mb": max(sample[1] for driver in (first, second) for sample in driver.samples),
        "driver_rss_slope_mb_per_100k": [driver.slope(1) for driver in (first, second)],
        "worker_rss_slope_mb_per_100k": [driver.slope(2) for driver in (first, second)],
        "driver_end_seconds": round(second.seconds_after_last_row, 1),
        "spilled_bytes": spilled,
        "killed_at_rows": committed,
        "recomputed_share": round((sum(asked) - rows) / rows, 5),
        "data_files": len(list((place / "synthesize" / "data").glob("*.parquet"))),
    }


class Driver:
    """One driver process, watched: rows done, and the memory of it and of the largest Ray worker, every 2 s."""

    def __init__(self, place: Path, replicas: int, speed: Speed, address: str, number: int) -> None:
        from dataclasses import asdict

        self.ledger = place / "synthesize" / "ledger"
        command = [sys.executable, "-m", "benchmarks.scale", "--drive", str(place), str(replicas)]
        self.process = subprocess.Popen(
            [*command, json.dumps(asdict(speed)), str(number)],
            env=os.environ | {"RAY_ADDRESS": address},
            stdout=sys.stderr,
        )
        self.place, self.gate = place, Gate(place / f"engines{number}", 0)
        self.counted: dict[str, int] = {}
        self.samples: list[tuple[int, float, float]] = []  # rows, driver MB, largest worker MB
        self.times: list[float] = []
        self.seconds_after_last_row = 0.0

    def done(self) -> int:
        """Rows of committed blocks."""
        import pyarrow.parquet as pq

        for file in self.ledger.glob("*.parquet") if self.ledger.exists() else ():
            if file.name not in self.counted and ".pending." not in file.name:
                self.counted[file.name] = pq.read_metadata(file).num_rows
        return sum(self.counted.values())

    def until(self, rows: float) -> None:
        """Watch until so many rows are committed."""
        while (done := self.done()) < rows:
            assert self.process.poll() is None, "the driver ended early"
            self.samples.append((done, rss_mb(self.process.pid), max(map(rss_mb, workers()), default=0.0)))
            self.times.append(time.time())
            time.sleep(SAMPLE_S)

    def end(self) -> None:
        """Wait for a driver that ends by itself."""
        last = time.time()
        assert self.process.wait() == 0
        self.seconds_after_last_row = time.time() - last

    def _working(self) -> list[int]:
        """Samples after the first `WARM_ROWS` of this driver's rows: caches are warm, all workers are there."""
        first, last = self.samples[0][0], self.samples[-1][0]
        warm = first + min(WARM_ROWS, (last - first) / 2)
        return [index for index, sample in enumerate(self.samples) if sample[0] >= warm]

    def tenths(self, column: int) -> list[float]:
        """Memory at each tenth of this driver's rows, in MB."""
        first, last = self.samples[0][0], self.samples[-1][0]
        marks = [first + (last - first) * tenth / 10 for tenth in range(11)]
        return [next(sample[column] for sample in self.samples if sample[0] >= mark) for mark in marks]

    def slope(self, column: int) -> float | None:
        """MB per 100,000 rows, least squares; None of a run too short to say."""
        if len(self._working()) < ENOUGH_SAMPLES:
            return None
        chosen = np.array([self.samples[index] for index in self._working()], dtype=float)
        return round(float(np.polyfit(chosen[:, 0], chosen[:, column], 1)[0]) * 1e5, 2)

    def rows_per_s(self) -> float | None:
        """Over the same samples."""
        chosen = self._working()
        if len(chosen) < ENOUGH_SAMPLES:
            return None
        rows = self.samples[chosen[-1]][0] - self.samples[chosen[0]][0]
        return round(rows / (self.times[chosen[-1]] - self.times[chosen[0]]), 1)


def workers() -> list[int]:
    """Ray's worker processes below this process."""
    return [child.pid for child in psutil.Process().children(recursive=True) if "ray::" in " ".join(_command(child))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


@contextmanager
def cluster(nodes: int, cpus: int) -> Iterator[str]:
    """Address of a head without CPUs and ``nodes`` worker nodes of so many CPUs."""
    with environment(RAY_num_workers_soft_limit=IDLE_WORKERS), raylets(nodes, cpus, store_bytes=200 << 20) as made:
        yield made.address


def spilled_bytes(address: str) -> int:
    """Bytes that the object stores have spilled to disk since the cluster started."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    ray.init(address=address, log_to_driver=False)
    try:
        return int(get_memory_info_reply(get_state_from_address(address)).store_stats.spilled_bytes_total)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
