"""Second stage: a task for every usable pair, judged, as one streaming Ray Data execution.

    adamllm synthesize CONFIG                      or    adamllm run CONFIG

::

    ingest/data ─► small blocks ─► Synthesizer pool (decode, ask, parse) ─► Judge pool ─► synthesize/data
                                                                                └─ ids of finished blocks ─► ledger

Nothing between the read and the write drops a row. Ray Data's ledger makes the same command continue after any kill:
blocks that were written are skipped, blocks in flight are done again, nothing is lost or doubled. What is checked at
the end is what makes the manifest: the ids of ingest, each exactly once.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow.dataset as pads
import pyarrow.parquet as pq

from adamllm_ray import progress
from adamllm_ray.config import RunConfig
from adamllm_ray.data import storage
from adamllm_ray.data.record import RECORD_SCHEMA
from adamllm_ray.data.run import Manifest, RunFolder, StageFolder, code_version
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import RowAccountingError, SourceError, TooManyFailures
from adamllm_ray.models.checkpoint import model_identity
from adamllm_ray.ray_runtime import own_error, ray_session
from adamllm_ray.synthesis import prompts
from adamllm_ray.synthesis.actors import EngineMaker, Judge, Synthesizer, start_engine
from adamllm_ray.synthesis.engine_arguments import engine_identity
from adamllm_ray.synthesis.pools import IO_CPUS, fit_pools, write_tasks

if TYPE_CHECKING:
    import ray.data

STAGE = "synthesize"
POLL_S = 2.0
_CODE = [
    f"adamllm_ray.synthesis.{name}"
    for name in (
        "prompts",
        "requests",
        "engine",
        "engine_arguments",
        "triplets",
        "consistency",
        "actors",
        "pipeline",
    )
]


def synthesize(
    config: RunConfig, run: RunFolder, *, force_new: bool = False, engine_maker: EngineMaker = start_engine
) -> Manifest:
    """Write ``synthesize/data/*.parquet`` with SYNTHESIZED_SCHEMA. Connects to Ray, or starts a local one.

    ``engine_maker`` is a seam for fault tests; it is called in each replica's process.

    Raises:
        SourceError: ingest is not finished.
        ModelError: a model folder is unusable, or a tokenizer cannot express the protocol.
        ConfigError: the cluster cannot hold both pools.
        TooManyFailures: the engine refused more rows than ``synthesis.max_failed_share``.
        FingerprintMismatch, StorageError, RowAccountingError: see ``StageFolder``.
    """
    started = time.monotonic()
    source = run.stage("ingest")
    ingested = source.manifest()
    if ingested is None:
        raise SourceError(f"{source.uri} is not finished: run `adamllm ingest` with this configuration first")
    stage = run.stage(STAGE)
    if stage.begin(fingerprint(config, ingested), force_new=force_new) == "finished":
        finished = stage.manifest()
        if finished is not None:
            return finished
    if _committed_rows(stage) < ingested.rows_in:
        with ray_session(), _progress(stage, ingested.rows_in):
            _execute(config, source, stage, engine_maker)
    verdicts, content = _check_rows(source, stage)
    _check_ceiling(verdicts, config.synthesis.max_failed_share)
    return stage.finish(
        rows_in=ingested.rows_in, verdicts=verdicts, extra={"content": content}, seconds=time.monotonic() - started
    )


def fingerprint(config: RunConfig, ingested: Manifest) -> dict[str, Any]:
    """What the rows depend on: input, models, prompts, sampling, threshold, limits and code. Not pools or batches."""
    engines = {"synthesizer": config.synthesis.engine, "judge": config.judge.engine}
    return {
        "ingest": ingested.identity,
        "synthesizer": model_identity(config.models.synthesizer),
        "judge": model_identity(config.models.judge),
        "prompts": [prompts.CAPTION_REQUEST, *prompts.HINTS],
        "sampling": {
            "max_new_tokens": config.synthesis.max_new_tokens,
            "temperature": config.synthesis.temperature,
            "seed": config.run.seed,
        },
        "engines": {name: engine_identity(engine) for name, engine in engines.items()},
        "judging": {"threshold": config.judge.threshold, "few_shot": config.judge.few_shot},
        "images": config.data.images.model_dump(),
        "code": code_version(*_CODE),
    }


def _execute(config: RunConfig, source: StageFolder, stage: StageFolder, engine_maker: EngineMaker) -> None:
    """Run the graph to its end. The errors of row functions come out as themselves, not wrapped by Ray."""
    with _resumable(stage):
        dataset = _graph(config, source, engine_maker)
        try:
            dataset.write_parquet(
                stage.data, filesystem=stage.fs, ray_remote_args={"num_cpus": IO_CPUS}, concurrency=write_tasks()
            )
        except Exception as error:
            ours = own_error(error)
            if ours is not None:
                raise ours from None
            with storage.storage_errors("write the tasks", stage.uri):  # a full disk comes through Ray as an OSError
                raise


def _graph(config: RunConfig, source: StageFolder, engine_maker: EngineMaker) -> ray.data.Dataset:
    """Read, cut into blocks of ``rows_per_block`` (the unit of resume), synthesize, judge."""
    import ray

    synthesis, judge = config.synthesis, config.judge
    rows = synthesis.rows_per_block
    write, compare = fit_pools({"synthesis": (synthesis.engine, rows), "judge": (judge.engine, rows)})
    reader = ray.data.read_parquet(
        source.data, filesystem=source.fs, columns=RECORD_SCHEMA.names, partitioning=None, num_cpus=IO_CPUS
    )
    return (
        reader.repartition(target_num_rows_per_block=rows, strict=True)
        .map_batches(
            Synthesizer,
            fn_constructor_kwargs={
                "model": config.models.synthesizer,
                "settings": synthesis,
                "limits": config.data.images,
                "seed": config.run.seed,
                "engine_maker": engine_maker,
            },
            batch_size=min(synthesis.batch_size, rows),  # a larger batch would glue blocks together
            batch_format="pyarrow",
            udf_modifying_row_count=False,
            **write,
        )
        .map_batches(
            Judge,
            fn_constructor_kwargs={
                "model": config.models.judge,
                "settings": judge,
                "max_failed_share": synthesis.max_failed_share,
                "engine_maker": engine_maker,
            },
            batch_size=min(judge.batch_size, rows),
            batch_format="pyarrow",
            udf_modifying_row_count=False,
            **compare,
        )
    )


@contextmanager
def _resumable(stage: StageFolder) -> Iterator[None]:
    """Ray Data's ledger for the datasets made in the block."""
    from ray.data import DataContext
    from ray.data.checkpoint import CheckpointConfig

    context = DataContext.get_current()
    before = context.checkpoint_config, context.use_datasource_v2
    context.use_datasource_v2 = False  # the new reader starts ten actors to read footers: minutes on a laptop
    context.checkpoint_config = CheckpointConfig(
        id_column="id",
        checkpoint_path=stage.ledger,
        override_filesystem=stage.fs,
        delete_checkpoint_on_success=False,  # it is what makes "run the same command again" cost nothing
    )
    try:
        yield
    finally:
        context.checkpoint_config, context.use_datasource_v2 = before


@contextmanager
def _progress(stage: StageFolder, rows: int) -> Iterator[None]:
    """Show finished rows, read off the ledger, while the block runs."""
    counted: dict[str, int] = {}
    stop = threading.Event()
    with progress.task(STAGE, rows) as bar:

        def poll() -> None:
            while not stop.wait(POLL_S):
                try:
                    bar.update(_committed_rows(stage, counted))
                except OSError:  # a look at the clock is not worth a failed run
                    continue

        thread = threading.Thread(target=poll, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            bar.update(_committed_rows(stage, counted))


def _committed_rows(stage: StageFolder, counted: dict[str, int] | None = None) -> int:
    """Rows of all committed blocks; ``counted`` remembers files between calls."""
    known = {} if counted is None else counted
    for path, _ in storage.list_files(stage.place.child("ledger")):
        if not path.endswith(".pending.parquet") and path not in known:
            known[path] = pq.read_metadata(f"{stage.ledger}/{path}", filesystem=stage.fs).num_rows
    return sum(known.values())


def _check_rows(source: StageFolder, stage: StageFolder) -> tuple[dict[str, int], str]:
    """(rows per task verdict, digest of all tasks). Raises RowAccountingError unless rows out are exactly rows in."""
    wanted, found = set(source.row_ids()), set(stage.row_ids())
    if wanted != found:
        raise RowAccountingError(
            f"stage '{STAGE}': {len(wanted - found)} rows of ingest are missing and {len(found - wanted)} are foreign, "
            f"for example {next(iter(wanted ^ found))}; start the stage again with --force-new"
        )
    if _committed_rows(stage) != len(wanted):
        raise RowAccountingError(f"stage '{STAGE}': {len(wanted)} rows are written, the ledger has other ones")
    with storage.storage_errors("read the tasks", stage.uri):
        columns = ["id", "task_verdict", "instruction", "informative", "precise"]
        tasks = pads.dataset(stage.data, filesystem=stage.fs, format="parquet").to_table(columns=columns)
    verdicts = Counter(tasks.column("task_verdict").to_pylist())
    if None in verdicts:
        raise RowAccountingError(f"stage '{STAGE}': {verdicts[None]} rows have no task verdict")
    digest = hashlib.sha256()
    for row in sorted(zip(*(tasks.column(name).to_pylist() for name in columns), strict=True)):
        digest.update(json.dumps(row).encode() + b"\n")
    return dict(verdicts), digest.hexdigest()


def _check_ceiling(verdicts: dict[str, int], limit: float) -> None:
    asked = sum(count for name, count in verdicts.items() if name != Verdict.NOT_SYNTHESIZED)
    failed = verdicts.get(Verdict.ENGINE_ERROR, 0)
    if failed > limit * asked:
        raise TooManyFailures(
            f"synthesis: the engine failed on {failed} of {asked} rows, the limit is {limit:.1%} "
            "(synthesis.max_failed_share); task_detail in synthesize/data says why. With the cause removed, start the "
            "stage again with --force-new"
        )
