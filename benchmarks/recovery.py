"""What a kill costs: SIGKILL of the driver, of a replica, of an engine's child, of a node. Fake engine, real processes.

    python -m benchmarks.recovery

The driver twice over: at four points of one run, and twenty times in another.
For each: rows lost and doubled in the end, rows that an engine was asked for twice, and the seconds from the kill (of
the driver: from the new start) to the first row at a process that was not there before. The same code as the tests
tests/synthesis/test_kill.py and test_faults.py; the seconds are those of starting processes on this machine, not of
loading a real model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads

from adamllm_ray.data.run import RunFolder
from adamllm_ray.models.checkpoint import resolve_model
from benchmarks.measure import finish, say
from tests.processes import raylet_of, slay
from tests.synthesis.deaths import SMALL, Job, worker_nodes
from tests.synthesis.fakes import circles, write_ingest
from tests.synthesis.lives import Runs, short_folder

ROWS = 400
PACE = 0.1  # seconds per row at an engine
SHARES = (0.1, 0.4, 0.7, 0.95)
RESTARTS = 20  # reliability test 2: the next driver starts while orphans of the last one may be alive


def main() -> None:
    """Kill everything once and print the line."""
    vlm, judge = (Path(resolve_model(f"pocket:{name}")) for name in ("synthesizer", "judge"))
    with tempfile.TemporaryDirectory() as folder:
        metrics = drivers(Path(folder) / "driver", vlm, judge, SHARES)
        say(f"driver: {metrics}")
        again = drivers(Path(folder) / "again", vlm, judge, [(n + 1) / (RESTARTS + 1) for n in range(RESTARTS)])
        metrics[f"driver_{RESTARTS}_times"] = together(again)
        say(f"driver {RESTARTS} times: {metrics[f'driver_{RESTARTS}_times']}")
        with worker_nodes(3):
            for name, kill in BELOW.items():
                metrics[name] = below(Path(folder) / name, vlm, judge, kill)
                say(f"{name}: {metrics[name]}")
    lost = {key: sum(one[key] for one in metrics.values()) for key in ("rows_lost", "rows_duplicated", "recomputed")}
    finish("recovery", lost | {"rows_per_run": ROWS, "blocks_of": SMALL["rows_per_block"], "kills": metrics})


def drivers(folder: Path, vlm: Path, judge: Path, shares: Sequence[float]) -> dict[str, Any]:
    """One run whose driver is killed when each of these shares of its rows is done, and started again at once."""
    with short_folder() as short:
        runs = Runs(folder, vlm, judge, short, SMALL)
        write_ingest(runs.run, circles(ROWS))
        lives, done = [], [0]
        for share in shares:
            life = runs.start(stop=("data", round(share * ROWS / SMALL["rows_per_block"])), seconds_per_row=PACE)
            life.wait_until(life.marker.exists)
            life.kill()
            lives.append(life)
            done.append(runs.committed())
        last = runs.start(seconds_per_row=PACE)
        assert last.end()[0] == 0
        rows = account(runs.run)
        return {
            f"driver_at_{share:.0%}": rows
            | {
                "recomputed": len(life.asked()) - (after - before),
                "first_new_row_s": round(following.first_row_after(), 1),
            }
            for share, life, following, before, after in zip(
                shares, lives, [*lives[1:], last], done, done[1:], strict=False
            )
        }


def together(kills: dict[str, Any]) -> dict[str, Any]:
    """One run's kills as one entry: rows are counted at its end, work and time for each kill."""
    last = list(kills.values())[-1]
    return last | {
        "recomputed": sum(one["recomputed"] for one in kills.values()),
        "first_new_row_s": max(one["first_new_row_s"] for one in kills.values()),
    }


def below(folder: Path, vlm: Path, judge: Path, kill: Callable[[Job], None]) -> dict[str, Any]:
    """One run in which something below the driver is killed at 30 %."""
    folder.mkdir()
    job = Job(folder, vlm, judge, ROWS, seconds_per_row=PACE, child=True)
    job.go((0.3, lambda: kill(job)))
    return account(job.run) | {
        "recomputed": job.asked_twice(),
        "first_new_row_s": round(job.replaced_after(job.deaths[0]), 1),
    }


def account(run: RunFolder) -> dict[str, int]:
    """Rows of ingest that are missing in the end and rows that are there twice, counted without the product's code."""
    wanted, found = (
        pads.dataset(run.stage(name).data, format="parquet").to_table(columns=["id"]).column("id").to_pylist()
        for name in ("ingest", "synthesize")
    )
    return {"rows_lost": len(set(wanted) - set(found)), "rows_duplicated": len(found) - len(set(found))}


BELOW: dict[str, Callable[[Job], None]] = {
    "actor": lambda job: slay(job.pids("synthesizer")[:1]),
    "all_actors": lambda job: slay(job.pids("synthesizer") + job.pids("judge")),
    "engine_child": lambda job: slay(job.pids("synthesizer_child")[:1]),
    "raylet": lambda job: slay([raylet_of(job.pids("synthesizer")[0])]),
}


if __name__ == "__main__":
    main()
