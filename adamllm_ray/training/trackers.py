"""Where the figures of each step go while a run trains: TensorBoard event files, Weights & Biases, MLflow.

    training:
      trackers: [tensorboard, mlflow]

    with open_trackers(config, stage) as tell:
        tell(reports)                              # any number of times; a step that was told before is left out

    tensorboard --logdir RUN/train/tensorboard

They are fed by the driver, so workers need none of these packages and reach no server. A curve has each step once,
also when the driver was killed between two checkpoints and its successor repeats some steps: TensorBoard's file is
written anew from step 1 (workers tell what their checkpoint has behind it), MLflow is asked which step it has, and
for W&B that is kept in ``train/trackers.json``.

Nothing leaves the machine unless the environment says so: MLflow writes ``train/mlflow.db`` unless
MLFLOW_TRACKING_URI names a server, and W&B needs WANDB_MODE=offline or a WANDB_API_KEY. Told to them are the figures,
the sections ``training`` and ``mixture`` without paths, and the run's name; no record, path, code or console output.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from adamllm_ray.config import RunConfig
from adamllm_ray.data import storage
from adamllm_ray.data.run import StageFolder
from adamllm_ray.errors import ConfigError

FOLDER, STATE, DATABASE = "tensorboard", "trackers.json", "mlflow.db"
UPLOAD_S = 30.0  # between two uploads of what grows, for runs on S3
_NEEDS = {
    "tensorboard": {"tensorboardX": "tensorboardX"},
    "wandb": {"wandb": "adamllm-ray[wandb]"},
    "mlflow": {"mlflow": "adamllm-ray[mlflow]", "sqlalchemy": "adamllm-ray[mlflow]"},
}

Tell = Callable[[list[dict[str, Any]]], None]


class Tracker(Protocol):
    """One place that keeps curves. ``last`` is the highest step it has, 0 for none."""

    last: int

    def log(self, report: dict[str, Any]) -> None:
        """Keep a step. Steps come in order, each once."""

    def flush(self, *, end: bool) -> None:
        """Make what was logged visible; ``end`` when nothing more comes."""


def require(config: RunConfig) -> None:
    """Raises ConfigError, naming what to install or set, for a tracker that cannot work here."""
    chosen = config.training.trackers
    for name in chosen:
        for module, package in _NEEDS[name].items():
            if importlib.util.find_spec(module) is None:
                raise ConfigError(
                    f"training.trackers: '{name}' needs a package that is not installed: pip install '{package}', "
                    f"or take '{name}' out of the list"
                )
    if "wandb" in chosen and not os.environ.get("WANDB_API_KEY") and _wandb_mode() not in ("offline", "disabled"):
        raise ConfigError(
            "training.trackers: 'wandb' needs WANDB_API_KEY in the environment, or WANDB_MODE=offline to keep its "
            "files here"
        )
    if "mlflow" in chosen and config.run.output.startswith("s3://") and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ConfigError(
            "training.trackers: 'mlflow' cannot keep its database on S3: set MLFLOW_TRACKING_URI to a server or to "
            "sqlite:////a/local/file.db"
        )


@contextmanager
def open_trackers(config: RunConfig, stage: StageFolder) -> Iterator[Tell]:
    """A function that hands reports (`StepReport` as dictionaries) to all chosen trackers.

    A tracker that fails while the run trains is given up with a line on standard error: curves are worth less than
    the run.
    """
    with ExitStack() as stack:
        trackers = [_OPENERS[name](config, stage, stack) for name in dict.fromkeys(config.training.trackers)]

        def tell(reports: list[dict[str, Any]], *, end: bool = False) -> None:
            for tracker in list(trackers):
                try:
                    _catch_up(tracker, reports, end=end)
                except Exception as error:  # a server that is gone, a full disk: whatever a package raises then
                    trackers.remove(tracker)
                    print(f"{type(tracker).__name__} stopped: {error}", file=sys.stderr, flush=True)

        try:
            yield tell
        finally:
            tell([], end=True)


def scalars(report: dict[str, Any]) -> dict[str, float]:
    """What is drawn of a step: name of the curve -> value."""
    seconds = report["seconds"] + report["waited"]
    values = {"loss": report["loss"]}
    values |= {f"loss/{_name(kind)}": nats for kind, (nats, _) in report["kinds"].items()}
    values |= {"learning_rate": report["lr"], "grad_norm": report["grad_norm"]}
    values |= {
        "speed/seconds": seconds,
        "speed/data_wait": report["waited"],
        "speed/tokens_per_second": report["inputs"] / seconds,
        "speed/examples_per_second": report["examples"] / seconds,
        "speed/padding": report["padding"],
    }
    return values | ({"speed/mfu": report["mfu"]} if report["mfu"] is not None else {})


def settings(config: RunConfig) -> dict[str, Any]:
    """What is told of the configuration: flat, without paths."""
    tree = {"training": config.training.model_dump(mode="json"), "mixture": config.mixture.model_dump(mode="json")}
    for source in tree["mixture"]["replay"]:
        source.pop("path"), source.pop("image_folder")
    return dict(_flat(tree, ""))


class _TensorBoard:
    """Event files in ``train/tensorboard``; on S3 a local file, uploaded whole twice a minute."""

    def __init__(self, stage: StageFolder, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self.last, self._uploaded = 0, 0.0
        self._place = stage.place.child(FOLDER)
        self._before = [path for path, _ in storage.list_files(self._place)]
        self._local = None if stage.place.local else folder
        self._writer = SummaryWriter(str(folder), filename_suffix=f".{uuid.uuid4().hex[:8]}")

    def log(self, report: dict[str, Any]) -> None:
        for path in self._before:  # this file will have those steps too
            self._place.fs.delete_file(self._place.child(path).path)
        self._before = []
        for name, value in scalars(report).items():
            self._writer.add_scalar(name, value, report["step"], walltime=report["at"])

    def flush(self, *, end: bool) -> None:
        self._writer.flush()
        if self._local is not None and (end or time.monotonic() - self._uploaded > UPLOAD_S):
            self._uploaded = time.monotonic()
            for file in self._local.iterdir():
                storage.write_small(self._place.child(file.name), file.read_bytes())
        if end:
            self._writer.close()


class _WandB:
    """A W&B run; offline files go to ``train/wandb`` of a local run, or where WANDB_DIR says."""

    def __init__(self, config: RunConfig, stage: StageFolder, folder: str) -> None:
        import wandb

        self._books = _Books(stage)
        name = self._books.state.setdefault("wandb", uuid.uuid4().hex[:8])
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "adamllm"),
            name=config.run.name,
            id=name,
            resume="allow",
            dir=os.environ.get("WANDB_DIR", folder),
            config=settings(config),
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
            ),
        )
        self.last = max(self._books.state.get("wandb_step", 0), self._run.step - 1)
        self._books.save()

    def log(self, report: dict[str, Any]) -> None:
        self._run.log(scalars(report) | {"at": report["at"]}, step=report["step"])
        self._books.state["wandb_step"] = report["step"]

    def flush(self, *, end: bool) -> None:
        self._books.save()
        if end:
            self._run.finish()


class _MLflow:
    """An MLflow run in ``train/mlflow.db``, or where MLFLOW_TRACKING_URI says."""

    def __init__(self, config: RunConfig, stage: StageFolder) -> None:
        from mlflow import MlflowClient

        address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{stage.path}/{DATABASE}"
        self._client, books = MlflowClient(address), _Books(stage)
        self._id = books.state.get("mlflow") or self._start(config)
        books.state["mlflow"] = self._id
        books.save()
        self._client.update_run(self._id, "RUNNING")
        self.last = max((point.step for point in self._client.get_metric_history(self._id, "loss")), default=0)

    def _start(self, config: RunConfig) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "adamllm")
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found is not None else self._client.create_experiment(name)
        run: str = self._client.create_run(experiment, run_name=config.run.name).info.run_id
        self._client.log_batch(run, params=[Param(key, str(value)[:500]) for key, value in settings(config).items()])
        return run

    def log(self, report: dict[str, Any]) -> None:
        from mlflow.entities import Metric

        at, step = int(1000 * report["at"]), report["step"]
        metrics = [Metric(name, value, at, step) for name, value in scalars(report).items()]
        self._client.log_batch(self._id, metrics=metrics)

    def flush(self, *, end: bool) -> None:
        if end:
            self._client.set_terminated(self._id)


class _Books:
    """``train/trackers.json``: which run of a service this one is, and how far it was told."""

    def __init__(self, stage: StageFolder) -> None:
        self._place = stage.place.child(STATE)
        self._saved = storage.read_small(self._place) or b"{}"
        self.state: dict[str, Any] = json.loads(self._saved)

    def save(self) -> None:
        """Write it if it changed, other trackers' entries kept."""
        merged = json.loads(storage.read_small(self._place) or b"{}") | self.state
        data = json.dumps(merged).encode()
        if data != self._saved:
            storage.write_small(self._place, data)
            self._saved = data


def _catch_up(tracker: Tracker, reports: list[dict[str, Any]], *, end: bool) -> None:
    for report in reports:
        if report["step"] > tracker.last:
            tracker.log(report)
            tracker.last = report["step"]
    tracker.flush(end=end)


def _open_tensorboard(_config: RunConfig, stage: StageFolder, stack: ExitStack) -> Tracker:
    local = f"{stage.path}/{FOLDER}"
    folder = local if stage.place.local else stack.enter_context(tempfile.TemporaryDirectory())
    return _TensorBoard(stage, Path(folder))


def _open_wandb(config: RunConfig, stage: StageFolder, stack: ExitStack) -> Tracker:
    folder = stage.path if stage.place.local else stack.enter_context(tempfile.TemporaryDirectory())
    return _WandB(config, stage, folder)


def _open_mlflow(config: RunConfig, stage: StageFolder, _stack: ExitStack) -> Tracker:
    return _MLflow(config, stage)


_OPENERS: dict[str, Callable[[RunConfig, StageFolder, ExitStack], Tracker]] = {
    "tensorboard": _open_tensorboard,
    "wandb": _open_wandb,
    "mlflow": _open_mlflow,
}


def _wandb_mode() -> str:
    return os.environ.get("WANDB_MODE", "online")


def _name(kind: str) -> str:
    """A kind of text as part of a curve's name: MLflow takes few characters."""
    return re.sub(r"[^\w. /-]", "_", kind.replace(":", "/"))


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{key}.{number}")
    else:
        yield key, value
