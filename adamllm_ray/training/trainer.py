"""The training stage: Ray Train around the step loop, and the books of what trained.

    adamllm train CONFIG

Reads ``synthesize/data``, writes ``train/catalog.parquet`` (the plan's rows), ``train/ray/`` (checkpoints) and
``train/model`` (a Hugging Face folder that transformers and vLLM load). A worker that dies is replaced and the group
continues from the newest valid checkpoint; when the driver dies, the same command does that. Every step depends on
(seed, step) alone, so the losses are those of a run that was not disturbed.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from adamllm_ray import gauges, progress
from adamllm_ray.config import RunConfig
from adamllm_ray.data import storage
from adamllm_ray.data.manifest import Manifest, code_version
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import ConfigError, TrainingError
from adamllm_ray.models.card import refresh_card
from adamllm_ray.models.checkpoint import model_fingerprint, resolve_model
from adamllm_ray.ray_runtime import ray_session
from adamllm_ray.training import snapshots
from adamllm_ray.training.board import failure, start_board, watching
from adamllm_ray.training.books import Books, Stock, forbidden_sets, take_stock
from adamllm_ray.training.trackers import open_trackers, require, scalars
from adamllm_ray.training.worker import OUTCOME, RAY_RUN, RUNG_DONE, rung, work

if TYPE_CHECKING:
    from adamllm_ray.quality.contamination import EvaluationSets
    from adamllm_ray.training.parts import PartRow

STAGE = "train"
_CODE = (
    "adapters",
    "batches",
    "catalog",
    "collate",
    "conversations",
    "engines",
    "export",
    "feed",
    "lengths",
    "loop",
    "mix",
    "packing",
    "parts",
    "stream",
    "worker",
)
_FREE = {
    "workers",
    "gpus_per_worker",
    "cpus_per_worker",
    "data_workers",
    "checkpoint_every",
    "keep_checkpoints",
    "max_failures",
    "trackers",
    "peak_tflops",
}

_FREE_INSIDE: Any = {part: {"gradient_checkpointing"} for part in ("language_model", "vision_tower")}


@dataclass(frozen=True, slots=True)
class Rungs:
    """Steps at which training pauses; ``reached(step, model folder)`` is called before it goes on."""

    steps: Sequence[int]
    reached: Callable[[int, str], None]


def train(
    config: RunConfig,
    run: RunFolder,
    *,
    force_new: bool = False,
    stock: Stock | None = None,
    rungs: Rungs | None = None,
) -> Manifest:
    """Post-train ``models.base`` on the synthesized records and export it to ``train/model``.

    ``extra`` of the manifest: ``model`` (folder), ``steps``, ``losses`` ({step, loss, lr, grad_norm, kinds} of each),
    ``speed`` (see `speed`), ``shares`` (requested and realised per form), ``parts`` (the table), ``refused`` and
    ``replay`` (counts), ``resumed`` (steps that were continued from after a death), ``passed_over`` (checkpoints that
    were damaged).

    Args:
        config: the run's configuration.
        run: its folder.
        force_new: throw away what is there of this stage.
        stock: what was found to train on before, by a run that differs in the mixture alone.
        rungs: where to pause, and whom to show the model then.

    Raises:
        ConfigError: synthesis is not finished, or nothing is left to train on.
        MixtureDriftError: the mixture that trained is not the one asked for.
        TrainingError: training ended without a model; the same command continues.
    """
    started = time.monotonic()
    require(config)
    stage, base = run.stage(STAGE), resolve_model(config.models.base)
    synthesized = run.stage("synthesize").manifest()
    if synthesized is None:
        raise ConfigError(f"{run.uri} has no finished synthesis to train on; run `adamllm synthesize` first")
    rows = _checked(config, base) if force_new or stage.manifest() is None else []
    sets = forbidden_sets(config)
    if stage.begin(fingerprint(config, synthesized, base, sets), force_new=force_new) == "finished":
        finished = stage.manifest()
        if finished is not None:
            return refresh_card(config, run)
    books = Books(config, stage, stock or take_stock(config, run, stage, base, sets))
    for step in rungs.steps if rungs is not None else ():
        if rungs is not None and step < books.steps:
            rungs.reached(step, _climb(config, run, base, books.steps, rows, step))
    outcome = _run(config, run, base, books.steps, rows)
    verdicts, extra = books.verdicts(outcome["refused"]), books.summary(outcome)
    seconds = time.monotonic() - started
    stage.finish(rows_in=synthesized.rows_in, verdicts=verdicts, extra=extra, seconds=seconds)
    return refresh_card(config, run)


def fingerprint(
    config: RunConfig, synthesized: Manifest, base: str, forbidden: EvaluationSets | None = None
) -> dict[str, Any]:
    """What the trained model depends on; the number of workers is not part of it."""
    contamination: dict[str, Any] = {}
    if forbidden is not None:
        section = config.contamination.model_dump(mode="json", exclude={"against"})
        contamination = {"contamination": section | {"sets": forbidden.identity}}
    modules = [f"adamllm_ray.training.{name}" for name in _CODE]
    return {
        "synthesize": synthesized.identity,
        "model": model_fingerprint(base),
        "mixture": config.mixture.model_dump(mode="json"),
        "training": config.training.model_dump(mode="json", exclude=dict.fromkeys(_FREE, True) | _FREE_INSIDE),
        "seed": config.run.seed,
        "code": code_version(
            "adamllm_ray.data.draws", "adamllm_ray.models.chat", "adamllm_ray.models.families", *modules
        ),
        **contamination,
    }


def check(config: RunConfig) -> None:
    """What `train` would refuse before it starts Ray, for a run that has hours before its training begins.

    A model that would have to be fetched first is left to `train`.

    Raises:
        ConfigError, ModelError: as `train`.
    """
    from adamllm_ray.models import fetch

    require(config)
    if not fetch.is_remote(config.models.base):
        _checked(config, resolve_model(config.models.base))


def _checked(config: RunConfig, base: str) -> list[PartRow]:
    from adamllm_ray.training.checks import check_training

    return check_training(config.training, base)


def _climb(config: RunConfig, run: RunFolder, base: str, steps: int, rows: list[PartRow], until: int) -> str:
    """Train as far as this step, if that was not done before. Returns the folder of the model of that step."""
    stage = run.stage(STAGE)
    if storage.read_small(stage.place.child(f"{rung(until)}/{RUNG_DONE}")) is None:
        _run(config, run, base, steps, rows, until)
    return f"{stage.uri}/{rung(until)}/model"


def _run(
    config: RunConfig, run: RunFolder, base: str, steps: int, rows: list[PartRow], until: int = 0
) -> dict[str, Any]:
    """Print what trains and train it in Ray. Returns what worker 0 wrote at the end, or at the step ``until``."""
    from adamllm_ray.training.parts import parts_table

    print(parts_table(rows), file=sys.stderr, flush=True)
    job = {"config": config.model_dump_json(), "output": run.uri, "model": base, "steps": steps, "until": until}
    job["parts"] = [asdict(row) for row in rows]
    stage, note = run.stage(STAGE), f"{rung(until)}/{RUNG_DONE}" if until else OUTCOME
    with ray_session(), open_trackers(config, stage) as tell, progress.task(STAGE, steps) as bar:
        board, stopping = start_board(), threading.Event()
        bar.update(0)  # who watches sees a training that waits for machines

        def hear(reports: list[dict[str, Any]]) -> None:
            bar.update(reports[-1]["step"], step_words(reports[-1]))
            tell(reports)
            gauges.show_training(scalars(reports[-1]))

        with watching(board, hear, stopping), _gentle_sigterm(stopping):
            error = _fit(config, run, job | {"board": board})
        said = failure(board)
    if said:
        raise TrainingError(said)
    if stopping.is_set() and storage.read_small(stage.place.child(note)) is None:
        raise KeyboardInterrupt
    if error is not None:
        raise TrainingError(f"training stopped: {_first_cause(error)}. The same command continues.") from error
    written = storage.read_small(stage.place.child(note))
    if written is None:
        raise TrainingError(f"training ended, but {stage.uri}/{note} was not written; run the same command again")
    outcome: dict[str, Any] = json.loads(written)
    return outcome


def _fit(config: RunConfig, run: RunFolder, job: dict[str, Any]) -> Exception | None:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    section, stage = config.training, run.stage(STAGE)
    resources: dict[str, float] = {"CPU": section.cpus_per_worker}
    if section.gpus_per_worker:
        resources["GPU"] = section.gpus_per_worker
    runs = stage.place.child(f"ray/{RAY_RUN}")
    snapshots.tidy(runs, section.keep_checkpoints)
    snapshots.drop_stale_books(runs)
    trainer = TorchTrainer(
        work,
        train_loop_config=job,
        torch_config=TorchConfig(backend="nccl" if section.gpus_per_worker else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=section.workers, use_gpu=section.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=RAY_RUN,
            storage_path=f"{stage.path}/ray",
            storage_filesystem=None if stage.place.local else stage.fs,
            failure_config=ray.train.FailureConfig(max_failures=section.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=section.keep_checkpoints),
        ),
    )
    try:
        with _own_interrupts():
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        return error
    return None


@contextmanager
def _own_interrupts() -> Iterator[None]:
    """Ray Train answers Ctrl-C by leaving with code 0, and leaves its handler behind: make both an interrupt again."""
    main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if main_thread:
            signal.signal(signal.SIGINT, handler)


@contextmanager
def _gentle_sigterm(stopping: threading.Event) -> Iterator[None]:
    """SIGTERM (a pod that is to go, a preempted node) lets the step end and a checkpoint be saved; a second one does
    not wait.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def note(_number: int, _frame: Any) -> None:
        stopping.set()
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def step_words(report: dict[str, Any]) -> str:
    """A step in a few words, for the progress line."""
    seconds = report["seconds"] + report["waited"]
    words = [f"loss {report['loss']:.3f}"]
    words += [f"{report['inputs'] / seconds:,.0f} tokens/s"] if report["inputs"] else []
    return ", ".join(words + ([f"MFU {report['mfu']:.1%}"] if report["mfu"] is not None else []))


def _first_cause(error: Exception) -> str:
    """The first worker's own words out of Ray Train's error."""
    failures = getattr(error, "worker_failures", None) or {}
    for rank, found in sorted(failures.items()):
        return f"worker {rank}: {str(found).strip().splitlines()[-1]}"
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
