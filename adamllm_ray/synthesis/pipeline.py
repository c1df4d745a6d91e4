"""Second stage: a task for every usable pair, judged, as one streaming Ray Data execution.

    adamllm synthesize CONFIG                      or    adamllm run CONFIG

`graph` has the graph itself. Nothing between its read and its write drops a row. Ray Data's ledger makes the same
command continue after any kill: blocks that were written are skipped, blocks in flight are done again, nothing is lost
or doubled. What is checked at the end is what makes the manifest: the ids of ingest, each exactly once.
"""

from __future__ import annotations

import time
from typing import Any

from adamllm_ray.config import RunConfig
from adamllm_ray.data.identity import check_same, ids_of
from adamllm_ray.data.manifest import Manifest, code_version
from adamllm_ray.data.run import RunFolder, StageFolder
from adamllm_ray.errors import SourceError
from adamllm_ray.models.checkpoint import model_identity
from adamllm_ray.ray_runtime import ray_session
from adamllm_ray.synthesis import prompts
from adamllm_ray.synthesis.accounts import Tasks, check_ceiling, count_tasks
from adamllm_ray.synthesis.actors import EngineMaker, start_engine
from adamllm_ray.synthesis.engine_arguments import engine_identity
from adamllm_ray.synthesis.graph import run_graph
from adamllm_ray.synthesis.watch import committed_rows, ledger_files, shown

STAGE = "synthesize"
_CODE = [
    f"adamllm_ray.synthesis.{name}"
    for name in (
        "prompts",
        "protocol",
        "requests",
        "engine",
        "engine_arguments",
        "triplets",
        "consistency",
        "attempts",
        "actors",
        "graph",
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
    source, ingested = finished_ingest(run)
    stage = run.stage(STAGE)
    if stage.begin(fingerprint(config, ingested), force_new=force_new) == "finished":
        finished = stage.manifest()
        if finished is not None:
            return finished
    if committed_rows(stage) < ingested.rows_in:
        with ray_session(), shown(stage, STAGE, ingested.rows_in):
            run_graph(config, source.parquet_files(), stage, engine_maker)
    tasks = _check_rows(source, stage)
    check_ceiling(tasks.verdicts, config.synthesis.max_failed_share)
    return stage.finish(
        rows_in=ingested.rows_in,
        verdicts=tasks.verdicts,
        extra={"content": tasks.content},
        seconds=time.monotonic() - started,
    )


def finished_ingest(run: RunFolder) -> tuple[StageFolder, Manifest]:
    """The folder that synthesis reads and its manifest. Raises SourceError when ingest is not finished."""
    source = run.stage("ingest")
    manifest = source.manifest()
    if manifest is None:
        raise SourceError(f"{source.uri} is not finished: run `adamllm ingest` with this configuration first")
    return source, manifest


def fingerprint(config: RunConfig, ingested: Manifest) -> dict[str, Any]:
    """What the rows depend on: input, models, prompts, sampling, threshold, limits and code. Not pools or batches."""
    engines = {"synthesizer": config.synthesis.engine, "judge": config.judge.engine}
    return {
        "ingest": ingested.identity,
        "synthesizer": model_identity(config.models.synthesizer),
        "judge": model_identity(config.models.judge),
        "prompts": [prompts.CAPTION_REQUEST, *prompts.HINTS],
        "parsing": config.synthesis.model_dump(
            include={"protocol", "question_match", "tasks_per_image", "cut_responses"}
        ),
        "sampling": {
            "max_new_tokens": config.synthesis.max_new_tokens,
            "temperature": config.synthesis.temperature,
            "candidates": config.synthesis.candidates,
            "retry_temperature": config.synthesis.retry_temperature,
            "seed": config.run.seed,
        },
        "engines": {name: engine_identity(engine) for name, engine in engines.items()},
        "judging": {
            "keep": config.judge.keep,
            "threshold": None if config.judge.keep == "exact" else config.judge.threshold,
            "few_shot": config.judge.few_shot,
        },
        "images": config.data.images.model_dump(),
        "code": code_version(*_CODE),
    }


def _check_rows(source: StageFolder, stage: StageFolder) -> Tasks:
    """Count what was written. Raises RowAccountingError unless ids in, ids out and ids in the ledger are the same."""
    tasks = count_tasks(stage, stage.parquet_files())
    check_same(ids_of(source.fs, source.parquet_files(), source.uri), tasks.ids, f"stage '{STAGE}'")
    check_same(tasks.ids, ids_of(stage.fs, ledger_files(stage), stage.ledger), "the ledger of synthesis")
    return tasks
