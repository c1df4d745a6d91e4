"""Curves read back from what the trackers wrote: each step once, also over a driver that died."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.config import RunConfig, parse_config
from adamllm_ray.data.run import RunFolder, StageFolder
from adamllm_ray.errors import ConfigError
from adamllm_ray.training import trackers
from adamllm_ray.training.trackers import open_trackers, require, scalars, settings


def _report(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "loss": 3.0 / step,
        "lr": 1e-4 * step,
        "grad_norm": 0.5,
        "kinds": {"caption": (2.0 / step, 7), "replay:general": (1.0, 3)},
        "seconds": 0.4,
        "waited": 0.1,
        "at": 1_700_000_000.0 + step,
        "inputs": 1000,
        "examples": 8,
        "padding": 0.25,
        "mfu": 0.4,
        "tokens": 10,
    }


def _config(tmp_path: Path, *names: str) -> RunConfig:
    replay = {"name": "general", "path": "/secret/place", "image_folder": "/secret/images", "weight": 0.5}
    training = {"trackers": list(names), "global_batch": 8}
    tree = {"run": {"output": str(tmp_path / "run")}, "training": training, "mixture": {"replay": [replay]}}
    return parse_config(tree)


def _stage(config: RunConfig) -> StageFolder:
    stage = RunFolder.of(config.run).stage("train")
    Path(stage.path).mkdir(parents=True, exist_ok=True)
    return stage


def _records(file: Path) -> Iterator[bytes]:
    """Payloads of a TFRecord file: length, checksum, data, checksum."""
    data, at = file.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        yield data[at + 12 : at + 12 + length]
        at += 16 + length


def _events(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    from tensorboardX.proto.event_pb2 import Event

    curves: dict[str, list[tuple[int, float, float]]] = {}
    for file in sorted(folder.iterdir()):
        for data in _records(file):
            event = Event.FromString(data)
            for value in event.summary.value:
                curves.setdefault(value.tag, []).append((event.step, value.simple_value, event.wall_time))
    return curves


def test_tensorboard_has_every_step_once_over_a_killed_driver(tmp_path: Path) -> None:
    """The first driver knew steps 1 to 5; its successor continues from a checkpoint of 3 and hears 1 to 6."""
    config = _config(tmp_path, "tensorboard")
    stage = _stage(config)
    for heard in ([range(1, 6)], [range(1, 4), range(4, 5), range(1, 5), range(5, 7)]):
        with open_trackers(config, stage) as tell:
            for steps in heard:
                tell([_report(step) for step in steps])
    curves = _events(Path(stage.path) / "tensorboard")
    assert curves.keys() == scalars(_report(1)).keys()
    for name, points in curves.items():
        assert [step for step, _, _ in points] == [1, 2, 3, 4, 5, 6]
        assert [value for _, value, _ in points] == pytest.approx([scalars(_report(s))[name] for s in range(1, 7)])
        assert [at for _, _, at in points] == [_report(step)["at"] for step in range(1, 7)]
    assert curves["speed/tokens_per_second"][0][1] == 2000
    assert "loss/replay/general" in curves


def test_a_driver_that_hears_nothing_leaves_the_curves_alone(tmp_path: Path) -> None:
    config = _config(tmp_path, "tensorboard")
    stage = _stage(config)
    with open_trackers(config, stage) as tell:
        tell([_report(1)])
    with open_trackers(config, stage):
        pass
    assert [step for step, _, _ in _events(Path(stage.path) / "tensorboard")["loss"]] == [1]


def test_wandb_offline_keeps_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = _config(tmp_path, "wandb")
    require(config)
    stage = _stage(config)
    for steps in (range(1, 4), range(2, 6)):
        with open_trackers(config, stage) as tell:
            tell([_report(step) for step in steps])
    for _ in range(100):  # W&B's own process may still be writing
        files = sorted(Path(stage.path).glob("wandb/offline-run-*/*.wandb"))
        if len(seen := [point for file in files for point in _history(file)]) == 5:
            break
        time.sleep(0.2)
    assert seen == [(step, pytest.approx(3.0 / step)) for step in range(1, 6)]
    assert len({file.stem for file in files}) == 1, "a resumed run has the same id"
    assert not any(b"/secret" in file.read_bytes() for file in files)


def _history(file: Path) -> Iterator[tuple[int, float]]:
    from wandb.proto import wandb_internal_pb2 as proto

    for data in _leveldb(file.read_bytes()):
        record = proto.Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            values = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            yield int(values["_step"]), float(values["loss"])


def _leveldb(data: bytes) -> Iterator[bytes]:
    """Records of a log in LevelDB's format, after the 7 bytes of W&B's own header."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def test_mlflow_keeps_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = _config(tmp_path, "mlflow")
    require(config)
    stage = _stage(config)
    for steps in (range(1, 4), range(2, 6)):
        with open_trackers(config, stage) as tell:
            tell([_report(step) for step in steps])
    client = mlflow.MlflowClient(f"sqlite:///{stage.path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("adamllm").experiment_id])
    points = client.get_metric_history(run.info.run_id, "loss/caption")
    assert [(point.step, point.value) for point in points] == [(step, 2.0 / step) for step in range(1, 6)]
    assert run.info.status == "FINISHED"
    assert run.data.params["training.global_batch"] == "8"
    assert "/secret" not in str(run.data)


def test_no_path_is_told_to_anybody(tmp_path: Path) -> None:
    told = settings(_config(tmp_path, "tensorboard"))
    assert told["mixture.replay.0.weight"] == 0.5
    assert not any("/" in str(value) for value in told.values())


def test_a_missing_package_is_refused_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    for name in ("wandb", "mlflow"):
        with pytest.raises(ConfigError, match=rf"pip install 'adamllm-ray\[{name}\]'"):
            require(_config(tmp_path, name))


def test_wandb_without_a_key_is_refused_unless_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: object())
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="WANDB_MODE=offline"):
        require(_config(tmp_path, "wandb"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    require(_config(tmp_path, "wandb"))


def test_a_tracker_that_fails_is_given_up_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        last = 0

        def log(self, report: dict[str, Any]) -> None:
            raise OSError("the server is gone")

        def flush(self, *, end: bool) -> None:
            pass

    monkeypatch.setitem(trackers._OPENERS, "wandb", lambda *_: Broken())
    config = _config(tmp_path, "wandb", "tensorboard")
    stage = _stage(config)
    with open_trackers(config, stage) as tell:
        tell([_report(1)])
        tell([_report(2)])
    assert capsys.readouterr().err.count("the server is gone") == 1
    assert len(_events(Path(stage.path) / "tensorboard")["loss"]) == 2
