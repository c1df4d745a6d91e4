"""Run only the rows with certain verdicts again, once what went wrong is put right.

    adamllm redrive CONFIG --verdict engine_error

The rows are copied to ``synthesize/redrive/``, a small stage of its own that resumes like the large one. Its results
are merged into new versions of the files that held the rows (``synthesize/redriven/``), and then the manifest is
replaced by one that names the new files instead of the old. That one write is the change: before it everybody reads
the old rows, after it the new ones, and a kill at any point leaves one or the other. What is left over is cleaned up
by the same command.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adamllm_ray.config import RunConfig
from adamllm_ray.data import storage
from adamllm_ray.data.identity import check_same, ids_of, unique_ids
from adamllm_ray.data.manifest import Manifest
from adamllm_ray.data.record import RECORD_SCHEMA, SYNTHESIZED_SCHEMA
from adamllm_ray.data.run import RunFolder, StageFolder
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ConfigError, FingerprintMismatch, SourceError, TooManyFailures
from adamllm_ray.ray_runtime import ray_session
from adamllm_ray.synthesis.accounts import Tasks, check_ceiling, count_tasks
from adamllm_ray.synthesis.actors import EngineMaker, start_engine
from adamllm_ray.synthesis.graph import run_graph
from adamllm_ray.synthesis.pipeline import STAGE, fingerprint, finished_ingest
from adamllm_ray.synthesis.watch import committed_rows, shown

HISTORY = "redriven"  # key in the manifest's extra, and folder of the new files
ROWS = "rows.parquet"  # the records to run again, in the work folder


@dataclass(frozen=True)
class Redriven:
    """What a redrive did. ``before`` and ``after`` count the verdicts of the rows that ran again."""

    manifest: Manifest
    rows: int
    before: dict[str, int]
    after: dict[str, int]


def redrive(
    config: RunConfig, run: RunFolder, verdicts: Sequence[str], *, engine_maker: EngineMaker = start_engine
) -> Redriven:
    """Ask again for the rows whose task verdict is one of ``verdicts``; all other rows stay as they are.

    Works on a finished synthesis, and on one that wrote all rows but passed its ceiling of failures.

    Raises:
        ConfigError: an unknown verdict.
        SourceError: synthesis has not written all of its rows yet.
        FingerprintMismatch: the folder was made with other settings; rows of two kinds do not mix.
        TooManyFailures: even now the engines fail on too many rows; nothing is changed then.
    """
    started = time.monotonic()
    names = _known(verdicts)
    source, ingested = finished_ingest(run)
    stage = run.stage(STAGE)
    print_ = fingerprint(config, ingested)
    if stage.begin(print_) == "fresh":
        raise SourceError(f"{stage.uri} has no rows yet: run `adamllm synthesize` with this configuration first")
    old = stage.manifest()
    files = stage.parquet_files()
    if old is None:
        _check_complete(source, stage, files)
    _remove_leftovers(stage, old)
    rows = _rows_with(stage, files, names)
    if not rows.num_rows:
        if old is None:
            raise SourceError(f"no row of {stage.uri} has the verdict {' or '.join(names)}")
        return Redriven(old, 0, {}, {})
    number = 1 + (len(old.extra.get(HISTORY, [])) if old else 0)
    work = _work_folder(stage, {"stage": print_, "verdicts": names, "rows": _digest(rows), "number": number}, rows)
    before = _counted(rows)
    try:
        found = _ask(config, work, rows, engine_maker)
        entry = {"verdicts": names, "before": before, "after": found.verdicts}
        manifest = _swap(config, stage, work, files, old, found.ids, entry, started)
    except TooManyFailures:  # the cause is still there: the next try must not find these results
        storage.remove_folder(work.place)
        raise
    _remove_leftovers(stage, manifest)
    storage.remove_folder(work.place)
    return Redriven(manifest, rows.num_rows, before, found.verdicts)


def _ask(config: RunConfig, work: StageFolder, rows: pa.Table, engine_maker: EngineMaker) -> Tasks:
    """Let the graph judge a task for each of the rows, unless it has done so already."""
    if committed_rows(work) < rows.num_rows:
        with ray_session(), shown(work, "redrive", rows.num_rows):
            run_graph(config, [f"{work.path}/{ROWS}"], work, engine_maker)
    found = count_tasks(work, work.parquet_files())
    check_same(unique_ids(rows.column("id").chunks, work.uri), found.ids, "redrive")
    return found


def _swap(
    config: RunConfig,
    stage: StageFolder,
    work: StageFolder,
    files: Sequence[str],
    old: Manifest | None,
    ids: pa.LargeStringArray,
    entry: dict[str, Any],
    started: float,
) -> Manifest:
    """Write new versions of the files that change, and then the manifest that names them."""
    history: list[dict[str, Any]] = list(old.extra.get(HISTORY, [])) if old else []
    merged = _merge(stage, files, work, ids, len(history) + 1)
    current = [merged.get(file, file) for file in files]
    tasks = count_tasks(stage, current)
    check_same(ids_of(stage.fs, files, stage.uri), tasks.ids, "redrive")
    check_ceiling(tasks.verdicts, config.synthesis.max_failed_share)
    names = {file: file[len(stage.path) + 1 :] for file in (*files, *current)}
    seconds = time.monotonic() - started
    entry |= {"seconds": round(seconds, 3), "replaced": [names[file] for file in merged]}
    return stage.finish(
        rows_in=len(tasks.ids),
        verdicts=tasks.verdicts,
        extra={**(old.extra if old else {}), "content": tasks.content, HISTORY: [*history, entry]},
        seconds=(old.seconds if old else 0.0) + seconds,
        files=[names[file] for file in current],
    )


def _known(verdicts: Sequence[str]) -> list[str]:
    known = [str(verdict) for verdict in Verdict]
    for name in verdicts:
        if name not in known:
            raise ConfigError(f"there is no verdict '{name}'; the verdicts are {', '.join(known)}")
    if not verdicts:
        raise ConfigError("name the rows to run again, for example --verdict engine_error")
    return sorted(set(verdicts))


def _check_complete(source: StageFolder, stage: StageFolder, files: Sequence[str]) -> None:
    wanted, found = ids_of(source.fs, source.parquet_files(), source.uri), ids_of(stage.fs, files, stage.uri)
    if not wanted.equals(found):
        raise SourceError(
            f"{stage.uri} has {len(found)} of {len(wanted)} rows: let `adamllm synthesize` write them all first"
        )


def _rows_with(stage: StageFolder, files: Sequence[str], verdicts: Sequence[str]) -> pa.Table:
    """The records to run again, as ingest wrote them, and the verdict they have now."""
    wanted = pa.array(verdicts, pa.string())
    columns = [*RECORD_SCHEMA.names, "task_verdict"]
    parts = []
    with storage.storage_errors("read the tasks", stage.uri):
        for file in files:
            names = pq.read_table(file, columns=["task_verdict"], filesystem=stage.fs, partitioning=None)
            if pc.any(pc.is_in(names.column("task_verdict"), wanted)).as_py():  # images are read only where needed
                table = pq.read_table(file, columns=columns, filesystem=stage.fs, partitioning=None)
                parts.append(table.filter(pc.is_in(table.column("task_verdict"), wanted)))
    empty = pa.schema([*RECORD_SCHEMA, SYNTHESIZED_SCHEMA.field("task_verdict")]).empty_table()
    return pa.concat_tables([empty, *(part.cast(empty.schema) for part in parts)])


def _counted(rows: pa.Table) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in rows.column("task_verdict").value_counts().to_pylist()}


def _digest(rows: pa.Table) -> str:
    return hashlib.sha256("\n".join(sorted(rows.column("id").to_pylist())).encode()).hexdigest()


def _work_folder(stage: StageFolder, print_: dict[str, Any], rows: pa.Table) -> StageFolder:
    """The small stage beside the data: the one that was begun for the same rows, or a new one."""
    work = StageFolder("redrive", stage.place.child("redrive"))
    try:
        work.begin(print_)
    except FingerprintMismatch:  # another redrive that was given up
        storage.remove_folder(work.place)
        work.begin(print_)
    with storage.storage_errors("copy the rows to run again", work.uri):
        sink = pa.BufferOutputStream()
        pq.write_table(rows.select(RECORD_SCHEMA.names), sink)
        storage.write_small(work.place.child(ROWS), sink.getvalue().to_pybytes())
    return work


def _merge(
    stage: StageFolder, files: Sequence[str], work: StageFolder, ids: pa.LargeStringArray, generation: int
) -> dict[str, str]:
    """Write a new version of each file that holds one of ``ids``. Returns {old path: new path}."""
    merged: dict[str, str] = {}
    with storage.storage_errors("write the merged rows", stage.uri):
        tables = [pq.read_table(file, filesystem=work.fs, partitioning=None) for file in work.parquet_files()]
        new = pa.concat_tables([table.cast(SYNTHESIZED_SCHEMA) for table in tables])
        storage.make_folder(stage.place.child(HISTORY))
        for number, file in enumerate(files):
            here = pq.read_table(file, columns=["id"], filesystem=stage.fs, partitioning=None).column("id")
            if not pc.any(pc.is_in(here, ids)).as_py():
                continue
            table = pq.read_table(file, filesystem=stage.fs, partitioning=None).cast(SYNTHESIZED_SCHEMA)
            kept = table.filter(pc.invert(pc.is_in(table.column("id"), ids)))
            added = new.filter(pc.is_in(new.column("id"), here.combine_chunks()))
            merged[file] = f"{stage.path}/{HISTORY}/{generation:03}-{number:06}.parquet"
            pq.write_table(pa.concat_tables([kept, added]), merged[file], filesystem=stage.fs)
    return merged


def _remove_leftovers(stage: StageFolder, manifest: Manifest | None) -> None:
    """Delete the files that the manifest says were replaced, and merged files that no manifest names."""
    with storage.storage_errors("clean up after a redrive", stage.uri):
        signed = {entry["path"] for entry in manifest.files} if manifest else set()
        replaced = (
            {path for entry in manifest.extra.get(HISTORY, []) for path in entry["replaced"]} if manifest else set()
        )
        merged = {f"{HISTORY}/{path}" for path, _ in storage.list_files(stage.place.child(HISTORY))}
        old = {f"data/{path}" for path, _ in storage.list_files(stage.place.child("data"))} & replaced
        for path in (merged | old) - signed:
            stage.fs.delete_file(f"{stage.path}/{path}")
