"""What a whole synthesis would take, from a probe: some rows through the real graph, one replica of each pool.

    adamllm plan CONFIG --rows 200 --price 2.5

The rows are drawn by hash from what ingest kept, so the probe is a fair sample. A replica's speed is taken between its
first request and its last answer, so loading the models does not count; it is added once. Few rows keep a replica
less full than a long run does: the true speed is rather higher, and more rows come closer.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adamllm_ray.config import RunConfig
from adamllm_ray.data import storage
from adamllm_ray.data.draws import uniform
from adamllm_ray.data.manifest import Manifest
from adamllm_ray.data.record import RECORD_SCHEMA
from adamllm_ray.data.run import RunFolder, StageFolder
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import SourceError
from adamllm_ray.evaluation.intervals import Interval, wilson_interval
from adamllm_ray.ray_runtime import ray_session
from adamllm_ray.synthesis.accounts import count_tasks
from adamllm_ray.synthesis.actors import EngineMaker, start_engine
from adamllm_ray.synthesis.engine import Completion, Request, SamplingSpec, TextEngine
from adamllm_ray.synthesis.graph import run_graph
from adamllm_ray.synthesis.pipeline import finished_ingest
from adamllm_ray.synthesis.watch import shown

if TYPE_CHECKING:
    from adamllm_ray.config import EngineSection

FACTORS = (2, 4, 8)  # times the configured synthesizers
ROWS, TIMES = "rows.parquet", "times"


@dataclass(frozen=True)
class Probe:
    """What was measured. Seconds are of one replica, per row that is asked for."""

    rows: int
    synthesizer_seconds: float
    judge_seconds: float
    start_seconds: float  # from the start of the graph to the first request
    tokens: float  # that the synthesizer wrote, per row
    grown_bytes: float  # that a row is larger after synthesis
    verdicts: dict[str, int]


@dataclass(frozen=True)
class Size:
    """Pools of one size and what the whole run takes with them."""

    synthesizers: int
    judges: int
    rows_per_second: float
    hours: float
    unit_hours: float  # GPU-hours, or CPU-hours where no pool has a GPU
    cost: float | None


@dataclass(frozen=True)
class Plan:
    """The probe, and what follows from it for all ``rows``."""

    rows: int
    probe: Probe
    keep: Interval  # share of the rows that give a kept task
    unit: str  # "GPU" or "CPU"
    sizes: list[Size]  # as configured first, then more synthesizers with as many judges as keep up
    output_bytes: int

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self))


def plan(
    config: RunConfig,
    run: RunFolder,
    *,
    rows: int = 100,
    price: float | None = None,
    engine_maker: EngineMaker = start_engine,
) -> Plan:
    """Run the probe and reckon. Writes ``plan/``, nothing else. Connects to Ray, or starts a local one.

    Args:
        config: the run; its pool sizes are what is planned for.
        run: its folder, with a finished ingest.
        rows: size of the probe.
        price: of a GPU-hour (of a CPU-hour where no pool has a GPU).
        engine_maker: see `synthesize`.

    Raises:
        SourceError: ingest is not finished, or kept no row.
    """
    source, ingested = finished_ingest(run)
    if not ingested.kept:
        raise SourceError(f"{source.uri} has no usable row to probe with")
    work = StageFolder("plan", run.place.child("plan"))
    storage.remove_folder(work.place)
    work.begin({})
    chosen = draw(source, min(rows, ingested.kept), config.run.seed)
    sink = pa.BufferOutputStream()
    pq.write_table(chosen, sink)
    storage.write_small(work.place.child(ROWS), sink.getvalue().to_pybytes())
    storage.make_folder(work.place.child(TIMES))
    with ray_session(), shown(work, "probe", chosen.num_rows):
        begun = time.time()
        run_graph(alone(config, chosen.num_rows), [f"{work.path}/{ROWS}"], work, TimedMaker(engine_maker, work.place))
    found = reckon(config, ingested, _measured(work, chosen.num_rows, begun), price)
    run.write("plan/plan.json", found.to_json().encode())
    return found


def draw(source: StageFolder, count: int, seed: int) -> pa.Table:
    """``count`` usable records, the first ones in the order of a hash of their ids."""
    usable = pc.field("verdict") == str(Verdict.OK)
    files = source.parquet_files()
    with storage.storage_errors("read the records", source.uri):
        ids = [
            name
            for file in files
            for name in pq.read_table(file, columns=["id"], filters=usable, filesystem=source.fs)["id"].to_pylist()
        ]
        chosen = pa.array(sorted(ids, key=lambda name: uniform(seed, "plan", name))[:count], pa.string())
        parts = [
            pq.read_table(file, columns=RECORD_SCHEMA.names, filters=pc.field("id").isin(chosen), filesystem=source.fs)
            for file in files
        ]
    return pa.concat_tables([RECORD_SCHEMA.empty_table(), *(part.cast(RECORD_SCHEMA) for part in parts)])


def alone(config: RunConfig, rows: int) -> RunConfig:
    """The same run with one replica in each pool, and blocks small enough that both have work most of the time."""

    def single(engine: EngineSection) -> EngineSection:
        return engine.model_copy(update={"replicas": 1, "min_replicas": None})

    synthesis, judge = config.synthesis, config.judge
    smaller = {"rows_per_block": max(1, min(synthesis.rows_per_block, rows // 8)), "engine": single(synthesis.engine)}
    return config.model_copy(
        update={
            "synthesis": synthesis.model_copy(update=smaller),
            "judge": judge.model_copy(update={"engine": single(judge.engine)}),
        }
    )


def reckon(config: RunConfig, ingested: Manifest, probe: Probe, price: float | None) -> Plan:
    """Scale a probe to all usable rows of ingest, for the configured pools and larger ones."""
    engines = config.synthesis.engine, config.judge.engine
    on_gpus = any(engine.gpus_per_replica for engine in engines)
    each = [engine.gpus_per_replica if on_gpus else engine.cpus_per_replica for engine in engines]

    def size(synthesizers: int, judges: int) -> Size:
        speeds = (synthesizers / probe.synthesizer_seconds, judges / max(probe.judge_seconds, 1e-9))
        hours = (ingested.kept / min(speeds) + probe.start_seconds) / 3600
        units = hours * (synthesizers * each[0] + judges * each[1])
        return Size(synthesizers, judges, min(speeds), hours, units, None if price is None else units * price)

    per_judge = probe.judge_seconds / probe.synthesizer_seconds
    more = [factor * engines[0].replicas for factor in FACTORS]
    sizes = [
        size(engines[0].replicas, engines[1].replicas),
        *(size(many, max(engines[1].replicas, math.ceil(many * per_judge))) for many in more),
    ]
    kept = probe.verdicts.get(Verdict.KEPT, 0)
    return Plan(
        rows=ingested.kept,
        probe=probe,
        keep=wilson_interval(kept, probe.rows),
        unit="GPU" if on_gpus else "CPU",
        sizes=sizes,
        output_bytes=round(
            sum(entry["bytes"] for entry in ingested.files) + max(0.0, probe.grown_bytes) * ingested.kept
        ),
    )


@dataclass(frozen=True)
class TimedMaker:
    """Engine maker that notes when each call began and ended, one small file per call in the probe's folder."""

    maker: EngineMaker
    place: storage.Location

    def __call__(self, model: str, settings: EngineSection, images: bool) -> TextEngine:
        """The engine, with a clock."""
        return TimedEngine(self.maker(model, settings, images), self.place, "synthesizer" if images else "judge")


@dataclass(frozen=True)
class TimedEngine:
    """See `TimedMaker`."""

    engine: TextEngine
    place: storage.Location
    role: str

    async def generate(self, requests: Sequence[Request], sampling: SamplingSpec) -> list[Completion]:
        """What the engine answers."""
        begun = time.time()
        completions = await self.engine.generate(requests, sampling)
        note = {
            "role": self.role,
            "replica": f"{socket.gethostname()}-{os.getpid()}",
            "begun": begun,
            "ended": time.time(),
            "tokens": sum(len(completion.token_ids) for completion in completions),
        }
        storage.write_small(self.place.child(f"{TIMES}/{uuid.uuid4().hex}.json"), json.dumps(note).encode())
        return completions


def _measured(work: StageFolder, rows: int, begun: float) -> Probe:
    place = work.place.child(TIMES)
    notes: list[dict[str, Any]] = [
        json.loads(storage.read_small(place.child(path)) or b"{}") for path, _ in storage.list_files(place)
    ]
    asked = [note for note in notes if note["role"] == "synthesizer"]
    if not asked:
        raise SourceError("no image of the probe could be read: nothing was asked, so there is nothing to measure")
    judged = [note for note in notes if note["role"] == "judge"]
    files = work.parquet_files()
    grown = sum(work.fs.get_file_info(file).size for file in files) - work.fs.get_file_info(f"{work.path}/{ROWS}").size
    first = min(note["begun"] for note in asked)
    return Probe(
        rows=rows,
        synthesizer_seconds=(max(note["ended"] for note in asked) - first) / rows,
        judge_seconds=busy_seconds([(note["begun"], note["ended"]) for note in judged]) / rows,
        start_seconds=first - begun,
        tokens=sum(note["tokens"] for note in asked) / rows,
        grown_bytes=grown / rows,
        verdicts=count_tasks(work, files).verdicts,
    )


def busy_seconds(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union of (begin, end) spans: the judge waits for the synthesizer, and waiting is not work."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
