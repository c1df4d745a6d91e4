"""The streaming graph itself: Parquet files in, judged tasks out, as one resumable Ray Data execution.

::

    files ─► small blocks ─► Synthesizer pool (decode, ask, parse) ─► Judge pool ─► stage/data
                                                                         └─ ids of finished blocks ─► stage/ledger

`synthesize` runs it over all of ingest, `plan` over a few rows of it, `redrive` over those that went wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from adamllm_ray.config import RunConfig
from adamllm_ray.data import storage
from adamllm_ray.data.record import RECORD_SCHEMA
from adamllm_ray.data.run import StageFolder
from adamllm_ray.errors import AdamLLMError, ReplicasLost
from adamllm_ray.ray_runtime import disk_error, links, own_error
from adamllm_ray.synthesis.actors import EngineMaker, Judge, Synthesizer
from adamllm_ray.synthesis.poison import death_record
from adamllm_ray.synthesis.pools import IO_CPUS, Pool, fit_pools, write_tasks
from adamllm_ray.synthesis.release import written_blocks_let_go

if TYPE_CHECKING:
    import ray.data

# A reader is a process that feeds several replicas. Ray would start one per file as long as tenths of CPUs are left:
# on small nodes they leave no whole one for the next step, which they then wait for (seen on nodes of two CPUs)
LEAST_READERS = 2
RETRIES_BY_RAY = 50  # of a batch, beyond engine.max_retries
UNEVENNESS = 4.0  # longest of a block's responses over their mean: lognormal lengths, sigma 1, cut at 3.5 means


def run_graph(config: RunConfig, files: Sequence[str], stage: StageFolder, engine_maker: EngineMaker) -> None:
    """Judge a task for every row of ``files`` (paths inside ``stage.fs``), continuing what ``stage`` has already.

    Raises:
        ReplicasLost: replicas died under a batch too often, or nothing moved for ``synthesis.stall_minutes``.
        AdamLLMError: whatever of ours a row function raised, as itself and not wrapped by Ray.
    """
    from adamllm_ray.synthesis.backpressure import bounded_waiting  # imports ray.data

    resumable = _resumable(stage, config.synthesis.stall_minutes)
    with resumable, bounded_waiting(_limits(config)), written_blocks_let_go(), death_record() as record:
        dataset = _graph(config, files, stage, engine_maker, record)
        try:
            dataset.write_parquet(
                stage.data, filesystem=stage.fs, ray_remote_args={"num_cpus": IO_CPUS}, concurrency=write_tasks()
            )
        except Exception as error:
            ours = own_error(error) or _lost(error, config)
            if ours is not None:
                raise ours from None
            with storage.storage_errors("write the tasks", stage.uri):
                raise disk_error(error) or error from None


def _graph(
    config: RunConfig, files: Sequence[str], stage: StageFolder, engine_maker: EngineMaker, record: Any
) -> ray.data.Dataset:
    """Read, cut into blocks of ``rows_per_block`` (the unit of resume), synthesize, judge."""
    import ray

    synthesis, judge = config.synthesis, config.judge
    rows = synthesis.rows_per_block
    write, compare = (pool | _last_resort(pool) for pool in fit_pools(pools_of(config)))
    reader = ray.data.read_parquet(
        list(files),
        filesystem=stage.fs,
        columns=RECORD_SCHEMA.names,
        partitioning=None,
        num_cpus=IO_CPUS,
        concurrency=max(LEAST_READERS, synthesis.engine.replicas),
    )
    blocks = reader.repartition(target_num_rows_per_block=rows, strict=True)
    tasks = blocks.map_batches(
        Synthesizer,
        fn_constructor_kwargs={
            "model": config.models.synthesizer,
            "settings": synthesis,
            "limits": config.data.images,
            "seed": config.run.seed,
            "engine_maker": engine_maker,
            "record": record,
        },
        batch_size=None,  # the block as it is: its rows are on their own from there
        batch_format="pyarrow",
        udf_modifying_row_count=False,
        **write,
    )
    return tasks.map_batches(
        Judge,
        fn_constructor_kwargs={
            "model": config.models.judge,
            "settings": judge,
            "max_failed_share": synthesis.max_failed_share,
            "tasks_per_image": synthesis.tasks_per_image,
            "engine_maker": engine_maker,
            "record": record,
        },
        batch_size=None,
        batch_format="pyarrow",
        udf_modifying_row_count=False,
        **compare,
    )


def _last_resort(pool: dict[str, Any]) -> dict[str, Any]:
    """Ray counts every death under a batch against it, whoever caused it. With a record of them we count, see

    `Attendance.begin`, and Ray's number only ends what goes on without one.
    """
    return {"max_task_retries": pool["max_task_retries"] + RETRIES_BY_RAY}


def pools_of(config: RunConfig) -> dict[str, Pool]:
    """Both pools by name. Responses differ in length, a judge's one token does not."""
    rows = config.synthesis.rows_per_block
    return {
        "synthesis": Pool(config.synthesis.engine, rows, unevenness=UNEVENNESS),
        "judge": Pool(config.judge.engine, rows),
    }


def _limits(config: RunConfig) -> dict[str, int]:
    """Blocks of each pool that may be in work or wait for the next step, by the name of its actor class."""
    pools = pools_of(config)
    return {Synthesizer.__name__: pools["synthesis"].unfinished, Judge.__name__: pools["judge"].unfinished}


@contextmanager
def _resumable(stage: StageFolder, stall_minutes: float) -> Iterator[None]:
    """Ray Data's ledger for the datasets made in the block, and an end to waiting for replicas that never come."""
    from ray.data import DataContext
    from ray.data.checkpoint import CheckpointConfig

    context = DataContext.get_current()
    ours = {
        "use_datasource_v2": False,  # the new reader starts ten actors to read footers: minutes on a laptop
        "execution_no_progress_timeout_s": 60 * stall_minutes,
        "checkpoint_config": CheckpointConfig(
            id_column="id",
            checkpoint_path=stage.ledger,
            override_filesystem=stage.fs,
            delete_checkpoint_on_success=False,  # it is what makes "run the same command again" cost nothing
        ),
    }
    before = {name: getattr(context, name) for name in ours}
    for name, value in ours.items():
        setattr(context, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


def _lost(error: BaseException, config: RunConfig) -> AdamLLMError | None:
    """What a user can do about replicas that died or hang; None for any other error."""
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import RayActorError

    chain = list(links(error))
    again = "What is finished is kept: with the cause removed, run the same command again."
    if any(isinstance(one, ExecutionTimeoutError) for one in chain):
        return ReplicasLost(
            f"synthesis: nothing moved for {config.synthesis.stall_minutes:g} minutes (synthesis.stall_minutes): "
            f"replicas that cannot start, or wait for machines that do not come. {again}"
        )
    if any(isinstance(one, RayActorError) for one in chain):
        return ReplicasLost(
            "synthesis: a batch was given up after its replica had died under it again and again (engine.max_retries). "
            f"Ray's logs say how it died. {again}"
        )
    return None
