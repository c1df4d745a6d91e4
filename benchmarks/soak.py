"""A synthesis under fire: SIGKILL at random, a store that fails, a hostile record every 50th. What is lost? Nothing.

    python -m benchmarks.soak --minutes 30          before a release: 20,000 rows
    python -m benchmarks.soak --minutes 3           in make faults: 2,000 rows, each kind of kill once, no calm run

Real: Ray (a head and three worker nodes of this machine, each a raylet of its own), driver processes that join it as
jobs do and are started again when they die, Parquet source and run folder on an S3 server (moto) behind a proxy that
answers 5 % of all requests with 500 or 503, ingest, ledger and manifest. **Not real: the engines.** They sleep a set
time per row and know the answer (tests/synthesis/fakes.py); that models answer is shown elsewhere.

Killed, one of each in every round of five, in random order (``--seed``): the driver; a replica of either pool; the
child process of an engine; a raylet; a whole node at one blow, as a lost machine. A kill comes a random pause after
work goes on again; one in four does not wait for that, and may strike a job that is still recovering. A dead node is
started again after `AWAY_S`. A driver that ends with 75 (come again) is started again too, and counted. The engines'
pace is such that ``--minutes`` would do for all rows if nothing died, so it takes longer than that.

The exit code is 1 when a row is lost or doubled, has another verdict than its kind must have or another row's answer,
or when `adamllm verify` finds something. ``next_row`` is the time from a kill to the next committed row, of a driver to
the first of its successor: with other replicas at work it may be short, so ``replaced`` has the time until a
synthesizer that was not there before is at work.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads

from adamllm_ray.config import parse_config
from adamllm_ray.data.ingest import ingest
from adamllm_ray.data.run import RunFolder
from adamllm_ray.data.verify import verify
from adamllm_ray.exits import RESUMABLE
from adamllm_ray.models.checkpoint import resolve_model
from adamllm_ray.synthesis.watch import PENDING
from benchmarks.hostile_records import COLUMNS, Comparison, compare, usable, write_source
from benchmarks.measure import finish, rss_mb, say
from benchmarks.recovery_times import Kill, Sample, asked_again, by_kind, memory, next_row, replaced, rows_per_s
from tests.buckets import local_bucket
from tests.faulty import Fault, FaultProxy, share_of
from tests.processes import family_of, slay
from tests.raylets import Raylets, environment, raylets
from tests.synthesis.fakes import TURNS, processes, requests_in
from tests.synthesis.lives import Life, Runs

ENGINE = "fake: it sleeps a set time per row and knows the answer; no model runs"
POOLS = ["synthesizer", "judge"]
KINDS = ("driver", "replica", "engine_child", "raylet", "node")
LONG_MINUTES = 10.0  # a shorter soak is for `make faults`
ROWS_PER_MINUTE = 667  # 20,000 in half an hour
REPLICAS, NODES, BLOCK = 3, 3, 32
S3_FAULTS = 0.05
KILL_EVERY_S, AWAY_S = 60.0, 5.0  # the pace of Ray's own chaos tests; a lost node is back soon
IMPATIENT = 0.25  # of the kills; they may strike while the job still recovers from the one before
LAST_KILL = 0.95  # of the rows: what is killed later has little left to recover for
LOOK_S, SAMPLE_S = 0.5, 2.0
PATIENCE_S = 600.0  # without a new row, then the benchmark gives up
REFERENCE_MINUTES, REFERENCE_SHARE = 3.0, 0.9  # of the fault-free run; its last blocks find replicas without work
SYNTHESIS: dict[str, Any] = {
    "rows_per_block": BLOCK,
    "engine": {"max_num_seqs": 4, "replicas": REPLICAS, "cpus_per_replica": 0.5},
}
# a lost node counts as dead after 15 s, as with Ray's own settings (five times 3 s); workers are kept for the next task
CLUSTER = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "15",
    "RAY_num_workers_soft_limit": "16",
}


def main() -> None:
    """Soak, print the line, and say by the exit code whether every row is there once and as it must be."""
    options = _options()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # moto's own log has a line per request
    with faulty_store() as proxy, environment(**CLUSTER), raylets(NODES) as nodes:
        calm = fault_free(options, nodes, proxy) if options.reference_minutes else None
        proxy.reset(journal := Journal(S3_FAULTS))
        soak = Soak(*job(nodes, "soak", options.rows, options.minutes), nodes, journal, options)
        try:
            soak.run()
        finally:
            soak.stop()
        store = {"s3_requests": proxy.requests, "s3_faults": proxy.faults}
        proxy.reset()  # what follows is counting
        result = soak.result()
        metrics = soak.report(result) | store
    metrics |= goodput(metrics["rows_per_s"], options, calm)
    finish("soak", metrics)
    if not result.faultless or metrics["verify_problems"]:
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="at the engines' pace, if nothing died")
    parser.add_argument("--rows", type=int, help=f"default: {ROWS_PER_MINUTE} per minute")
    parser.add_argument("--seed", type=int, default=0, help="of the order and the times of kills, and who is hit")
    parser.add_argument("--kill-every", type=float, help="mean seconds of a pause; default: 60, or an eighth")
    parser.add_argument("--kills", type=int, help="at most; default: no limit, or one of each kind below 10 minutes")
    parser.add_argument(
        "--reference-minutes", type=float, help="of the fault-free run; default: 3, or none below 10 minutes"
    )
    options = parser.parse_args()
    options.rows = options.rows or math.ceil(options.minutes * ROWS_PER_MINUTE)
    options.kill_every = options.kill_every or min(KILL_EVERY_S, options.minutes * 60 / (len(KINDS) + 3))
    if options.reference_minutes is None:
        options.reference_minutes = REFERENCE_MINUTES if options.minutes >= LONG_MINUTES else 0.0
    if options.kills is None and options.minutes < LONG_MINUTES:
        options.kills = len(KINDS)
    return options


class Journal:
    """The proxy's plan, which also notes when each entry of Ray's ledger came to be: nobody has to ask the store."""

    def __init__(self, share: float) -> None:
        self._plan = share_of(share, Fault(status=503), Fault(status=500))
        self.commits: dict[str, float] = {}  # time, by the block's name
        self.latest = 0.0

    def __call__(self, method: str, path: str, times: int) -> Fault | None:
        fault = self._plan(method, path, times)
        folder, _, name = path.rpartition("/")
        entry = folder.endswith("/synthesize/ledger") and name.endswith(".parquet") and not name.endswith(PENDING)
        if fault is None and method == "PUT" and entry:  # a rename on S3 is a copy to the new name
            self.latest = self.commits.setdefault(name.removesuffix(".parquet"), time.time())
        return fault


@contextmanager
def faulty_store() -> Iterator[FaultProxy]:
    """An S3 server and the proxy before it, where the environment points; nothing goes wrong yet."""
    with local_bucket(), FaultProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy, environment(AWS_ENDPOINT_URL=proxy.url):
        yield proxy


def job(nodes: Raylets, name: str, rows: int, minutes: float) -> tuple[Runs, dict[str, Any]]:
    """A run with its ingest done, and the engines' settings: a pace at which ``minutes`` do for all rows."""
    write_source(f"s3://runs/{name}-source", rows)
    output = f"s3://runs/{name}"
    data = {"format": "parquet", "path": f"s3://runs/{name}-source", "columns": {"key": "name"}}
    manifest = ingest(parse_config({"run": {"output": output}, "data": data}), RunFolder(output))
    say(f"{name}: {rows} records ingested, {manifest.failed} of them refused")
    folder = nodes.folder / name
    folder.mkdir()
    vlm, judge = (Path(resolve_model(f"pocket:{model}")) for model in ("synthesizer", "judge"))
    pace = TURNS * REPLICAS * minutes * 60 / usable(rows)
    joins = {"RAY_ADDRESS": nodes.address, "RAY_TMPDIR": str(nodes.folder)}
    return Runs(output, vlm, judge, folder, SYNTHESIS, joins), {"seconds_per_row": pace, "child": True}


def fault_free(options: argparse.Namespace, nodes: Raylets, proxy: FaultProxy) -> dict[str, float]:
    """The same job at the same pace, shorter and without a fault: its rate between its start-up and its end."""
    rows = math.ceil(options.rows * options.reference_minutes / options.minutes)
    runs, maker = job(nodes, "calm", rows, options.reference_minutes)
    proxy.reset(journal := Journal(0.0))
    code, _ = runs.start(**maker).end(options.reference_minutes * 60 + PATIENCE_S)
    if code != 0:
        raise RuntimeError(f"the fault-free run ended with {code}")
    rate = rows_per_s(journal.commits.values(), rows, REFERENCE_SHARE)
    say(f"fault-free: {rate:.2f} rows/s")
    return {"rows": rows, "minutes": options.reference_minutes, "rows_per_s": round(rate, 2)}


def goodput(rate: float, options: argparse.Namespace, calm: dict[str, float] | None) -> dict[str, Any]:
    """The rate under fire over that of the engines' pace, which no run can exceed, and over that of a calm run."""
    pace = options.rows / (options.minutes * 60)
    found: dict[str, Any] = {"pace_rows_per_s": pace, "goodput_of_pace": rate / pace}
    if calm is not None:
        found |= {"fault_free_run": calm, "goodput_of_fault_free": rate / calm["rows_per_s"]}
    return found


class Soak:
    """The job, who kills it, and who starts it again."""

    def __init__(
        self, runs: Runs, maker: dict[str, Any], nodes: Raylets, journal: Journal, options: argparse.Namespace
    ) -> None:
        self.runs, self.maker, self.nodes, self.journal, self.options = runs, maker, nodes, journal, options
        self.draw = random.Random(options.seed)
        self.began = self.moved = time.time()
        self.lives: list[Life] = []
        self.kills: list[Kill] = []
        self.came_again: list[int] = []  # lives that ended with 75
        self.back_at: float | None = None  # when the lost node is started again
        # by life and process id; the store of the head lives through all of it
        self.memory: dict[str, dict[tuple[int, int], list[Sample]]] = {"driver": {}, "replica": {}, "gcs": {}}
        self.sampled = 0.0
        self._start()

    def run(self) -> None:
        """Kill until nearly all rows are there, then let it end."""
        works = True
        for pause, kind, patient in islice(self._plan(), self.options.kills):
            while works and patient and not self._goes_on():
                works = self._look()
            until = time.time() + pause
            while works and time.time() < until and self._share() < LAST_KILL:
                works = self._look()
            if not works or self._share() >= LAST_KILL:
                break
            works = self._kill(kind)
        while works:
            works = self._look()

    def stop(self) -> None:
        """No driver is left behind, whatever happened."""
        if self.lives[-1].process.poll() is None:
            self.lives[-1].kill()

    def _plan(self) -> Iterator[tuple[float, str, bool]]:
        """(pause, kind, whether the pause begins when work goes on); each kind once in every round.

        If no kill waited, a machine that takes longer to recover than to be killed would never come to an end.
        """
        while True:
            for kind in self.draw.sample(KINDS, len(KINDS)):
                pause = self.draw.uniform(0.5, 1.5) * self.options.kill_every
                yield pause, kind, self.draw.random() >= IMPATIENT

    def _goes_on(self) -> bool:
        """Rows have been committed since the last kill, or at all."""
        return self.journal.latest > (self.kills[-1].at if self.kills else 0.0)

    def _share(self) -> float:
        return len(self.journal.commits) * BLOCK / self.options.rows

    def _start(self) -> None:
        self.lives.append(self.runs.start(**self.maker))

    def _look(self) -> bool:
        """A moment later: what died has been started again, and memory is noted. False: the job is done."""
        time.sleep(LOOK_S)
        now, code = time.time(), self.lives[-1].process.poll()
        if code == 0:
            return False
        if code is not None:
            self._came_again(code)
        if self.back_at is not None and self.nodes.dead() and now > self.back_at:
            self.back_at = None
            self.nodes.replace_dead()
        if now > self.sampled + SAMPLE_S:
            self._sample(now)
        self.moved = max(self.moved, self.journal.latest)
        if now > self.moved + PATIENCE_S:
            raise RuntimeError(f"no new row for {PATIENCE_S:.0f} s\n{self._words()}")
        return True

    def _came_again(self, code: int) -> None:
        """A driver that ended by itself: resumable, or a failure of the soak."""
        if code != RESUMABLE:
            raise RuntimeError(f"the driver ended with {code}\n{self._words()}")
        say(f"driver {len(self.lives)} ended with 75: {self._words()[-300:]}")
        self.came_again.append(len(self.lives))
        self._start()

    def _words(self) -> str:
        return self.lives[-1].errors.read_text("utf-8", "replace")[-3000:]

    def _kill(self, kind: str) -> bool:
        """Kill one of this kind as soon as there is one. False: the job was done before."""
        while not (victims := self._victims(kind)):
            if not self._look():
                return False
        before = tuple(processes(self.lives[-1].log, "synthesizer"))
        self.kills.append(Kill(kind, time.time(), len(self.lives) - 1, before))
        say(f"{time.time() - self.began:.0f} s, {self._share():.0%}: {kind}")
        if kind == "driver":
            self.lives[-1].kill()
            self._start()
            return True
        slay(victims)
        if kind in ("raylet", "node"):
            self.back_at = time.time() + AWAY_S
        return True

    def _victims(self, kind: str) -> list[int]:
        """Processes that die together; none when there is none of the kind at the moment."""
        if kind == "driver":
            return [self.lives[-1].process.pid]
        roles = [f"{pool}_child" for pool in POOLS] if kind == "engine_child" else POOLS
        pids = [pid for role in roles for pid in processes(self.lives[-1].log, role)]
        self.draw.shuffle(pids)
        for pid in pids:
            try:
                raylet = self.nodes.raylet_above(pid)
            except LookupError:
                continue
            if kind == "node":
                return family_of(raylet)
            return [raylet if kind == "raylet" else pid]
        return []

    def _sample(self, now: float) -> None:
        life, number = self.lives[-1], len(self.lives)
        self.sampled = now
        watched = [("driver", number, life.process.pid), ("gcs", 0, self.nodes.gcs)]
        watched += [("replica", number, pid) for role in POOLS for pid in processes(life.log, role)]
        for kind, place, pid in watched:
            if megabytes := rss_mb(pid):
                self.memory[kind].setdefault((place, pid), []).append((now, megabytes))

    def result(self) -> Comparison:
        """Every row of every file in the stage's folder, whether or not the manifest names the file."""
        stage = self.runs.run.stage("synthesize")
        table = pads.dataset(stage.data, filesystem=stage.fs, format="parquet").to_table(columns=COLUMNS)
        return compare(self.options.rows, table.to_pylist())

    def report(self, result: Comparison) -> dict[str, Any]:
        """All figures but those of the store and the goodput."""
        commits, run = self.journal.commits, self.runs.run
        problems = verify(run.stage("synthesize"), run.stage("ingest"))
        asked = [requests_in(life.log) for life in self.lives]
        by_process = [[(pid, at) for pid, _, at in life] for life in asked]
        return {
            "engine": ENGINE,
            "rows": self.options.rows,
            **{f"rows_{name}": getattr(result, name) for name in ("lost", "doubled")},
            **{name: getattr(result, name) for name in ("wrong_verdicts", "misplaced_answers")},
            "hostile_records": result.hostile,
            "hostile_as_expected": result.hostile_as_expected,
            "verdicts": dict(result.verdicts),
            "verify_problems": problems,
            "examples": result.examples,
            "minutes": round((max(commits.values()) - self.began) / 60, 1),
            "kills": len(self.kills),
            "mean_pause_s": self.options.kill_every,
            "next_row": by_kind(self.kills, [next_row(kill, commits) for kill in self.kills]),
            "replaced": by_kind(self.kills, [replaced(kill, by_process) for kill in self.kills]),
            "drivers": len(self.lives),
            "drivers_ended_with_75": len(self.came_again),
            **asked_again([row for life in asked for _, row, _ in life]),
            "rows_per_s": rows_per_s(commits.values(), self.options.rows),
            "memory": {kind: memory(list(found.values())) for kind, found in self.memory.items()},
        }


if __name__ == "__main__":
    main()
