"""Real Ray Train workers with DeepSpeed over gloo: books, export, SIGKILL, resume."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.config import dump_config
from adamllm_ray.data.manifest import Manifest
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import FingerprintMismatch, TrainingError
from adamllm_ray.training.snapshots import examine, names
from adamllm_ray.training.trainer import train
from tests.training.conftest import ROWS, finished_synthesis, synthesized_rows, training_config
from tests.training.test_trackers import _events

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("private_ray")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_vlm: Path, private_ray: None) -> tuple[Path, Manifest]:
    output = tmp_path_factory.mktemp("run")
    run = finished_synthesis(output, synthesized_rows())
    return output, train(training_config(output, tiny_vlm), run)


def test_books_are_balanced(undisturbed: tuple[Path, Manifest]) -> None:
    _, manifest = undisturbed
    assert manifest.rows_in == ROWS == manifest.kept + manifest.rejected + manifest.failed
    assert manifest.verdicts == {"ok": 22, "image_missing": 1, "duplicate": 1}
    assert manifest.extra["steps"] == 11 == len(manifest.extra["losses"])  # 22 records x 4 epochs / 8
    assert manifest.extra["examples"] == 88
    assert manifest.extra["shares"]["both"]["realised"] == pytest.approx(16 / 22)
    assert {row["part"] for row in manifest.extra["parts"]} == {"language_model", "projector", "vision_tower"}
    losses = [entry["loss"] for entry in manifest.extra["losses"]]
    assert losses[-1] < losses[0]


def test_every_step_is_in_the_curves_and_has_its_speed(undisturbed: tuple[Path, Manifest]) -> None:
    output, manifest = undisturbed
    curves = _events(output / "train" / "tensorboard")
    assert [step for step, _, _ in curves["loss"]] == list(range(1, 12))
    assert [loss for _, loss, _ in curves["loss"]] == pytest.approx([one["loss"] for one in manifest.extra["losses"]])
    assert {"loss/caption", "loss/task", "speed/tokens_per_second", "grad_norm"} <= curves.keys()
    assert "speed/mfu" not in curves, "what this CPU could do at most is not known"
    speed = manifest.extra["speed"]
    assert speed["flops"] > 0
    assert speed["mfu"] is None
    assert 0 < speed["padding"] < 1


def test_finished_stage_is_not_repeated(undisturbed: tuple[Path, Manifest], tiny_vlm: Path) -> None:
    output, manifest = undisturbed
    assert train(training_config(output, tiny_vlm), RunFolder(str(output))) == manifest
    with pytest.raises(FingerprintMismatch, match="learning_rate"):
        train(training_config(output, tiny_vlm, learning_rate=1.0), RunFolder(str(output)))


def test_exported_model_gives_the_trained_loss(undisturbed: tuple[Path, Manifest], tiny_vlm: Path) -> None:
    """The exported folder, loaded afresh, is the trained model: it differs from the base and predicts better."""
    import torch

    from adamllm_ray.models.chat import ChatFormat
    from adamllm_ray.models.checkpoint import load_vlm
    from adamllm_ray.training.collate import Collator
    from adamllm_ray.training.conversations import conversation_example, single_stage_turns

    _, manifest = undisturbed
    row = synthesized_rows()[1]
    loss = {}
    for name, folder in (("base", tiny_vlm), ("adapted", manifest.extra["model"])):
        model, processor = load_vlm(folder, "float32")
        chat = ChatFormat(processor.tokenizer, chat_template=processor.chat_template, image_token=processor.image_token)
        turns = single_stage_turns(row, "both", seed=0, epoch=0)
        example = conversation_example(chat, turns, "assistant", id=row["id"], image=row["image"])
        with torch.no_grad():
            loss[name] = float(model(**Collator(processor, 512)([example]).inputs).loss)
    assert loss["adapted"] < loss["base"] - 0.1


def _kill_a_worker_after_a_checkpoint(train_folder: Path, killed: list[int], over: threading.Event) -> None:
    """SIGKILL one training worker as soon as a checkpoint is there and the next steps are under way."""
    import psutil

    while not over.wait(0.01):
        if list(train_folder.glob("ray/train/step-*/complete.json")):
            for process in psutil.process_iter():
                if _is_ours(process):
                    process.send_signal(signal.SIGKILL)
                    killed.append(process.pid)
                    return


def _is_ours(process: object) -> bool:
    """Whether it is a training worker of the Ray that this process started."""
    import psutil

    try:
        title = " ".join(process.cmdline())  # type: ignore[attr-defined]
        parents = {parent.pid for parent in process.parents()}  # type: ignore[attr-defined]
    except psutil.Error:
        return False
    return title.startswith("ray::RayTrainWorker") and os.getpid() in parents


def test_sigkill_of_a_worker_changes_nothing(
    undisturbed: tuple[Path, Manifest], tmp_path: Path, tiny_vlm: Path
) -> None:
    _, manifest = undisturbed
    run = finished_synthesis(tmp_path, synthesized_rows())
    killed: list[int] = []
    over = threading.Event()
    killer = threading.Thread(target=_kill_a_worker_after_a_checkpoint, args=(tmp_path / "train", killed, over))
    killer.start()
    try:
        again = train(training_config(tmp_path, tiny_vlm), run)
    finally:
        over.set()
        killer.join()
    assert killed, "the run ended before a worker could be killed"
    assert again.extra["resumed"] in ([4], [8])  # Ray's own books, which it looks at every 2 s, had nothing yet
    assert [step for step, _, _ in _events(tmp_path / "train" / "tensorboard")["loss"]] == list(range(1, 12))
    assert again.extra["losses"] == manifest.extra["losses"]
    assert again.verdicts == manifest.verdicts
    assert _weights(again) == _weights(manifest)


def _as_if_killed(undisturbed: tuple[Path, Manifest], tmp_path: Path) -> tuple[Path, Manifest]:
    """A copy of the run as it stood before its end: checkpoints, but no outcome. Its stage folder."""
    output, manifest = undisturbed
    shutil.copytree(output, tmp_path / "run")
    stage = tmp_path / "run" / "train"
    for name in ("manifest.json", "outcome.json"):
        (stage / name).unlink()
    shutil.rmtree(stage / "model")
    return stage, manifest


def test_rerun_passes_over_a_damaged_checkpoint(
    undisturbed: tuple[Path, Manifest], tmp_path: Path, tiny_vlm: Path
) -> None:
    """The driver died before the end and the newest checkpoint has a flipped byte: the one before it is used."""
    stage, manifest = _as_if_killed(undisturbed, tmp_path)
    newest = max(stage.glob("ray/train/step-*"))
    shard = max(newest.glob("state/*"), key=lambda path: path.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    again = train(training_config(tmp_path / "run", tiny_vlm), RunFolder(str(tmp_path / "run")))
    assert again.extra["losses"] == manifest.extra["losses"]
    assert "changed since it was written" in again.extra["passed_over"][0]
    assert _weights(again) == _weights(manifest)


def _weights(manifest: Manifest) -> str:
    """Digest of the exported weights: equal when every bit is."""
    digest: str = next(f["sha256"] for f in manifest.files if f["path"] == "model/model.safetensors")
    return digest


def test_another_number_of_workers_continues(
    undisturbed: tuple[Path, Manifest], tmp_path: Path, tiny_vlm: Path
) -> None:
    """One worker takes over where two were, and every example still trains once."""
    stage, manifest = _as_if_killed(undisturbed, tmp_path)
    shutil.rmtree(max(stage.glob("ray/train/step-*")))
    again = train(training_config(tmp_path / "run", tiny_vlm, workers=1), RunFolder(str(tmp_path / "run")))
    losses, wanted = ([step["loss"] for step in one.extra["losses"]] for one in (again, manifest))
    assert losses == pytest.approx(wanted, rel=1e-4)
    assert losses[:4] == wanted[:4]
    assert again.verdicts == manifest.verdicts
    assert not (stage / "ray" / "resharded").exists()


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_sigkill_of_the_driver_on_s3(
    undisturbed: tuple[Path, Manifest],
    bucket: Any,
    tmp_path: Path,
    tiny_vlm: Path,
) -> None:
    """Checkpoints, resume and export through an object store; the same command again, at once."""
    _, manifest = undisturbed
    run = finished_synthesis("s3://runs/training", synthesized_rows())
    (tmp_path / "run.yaml").write_text(dump_config(training_config(run.uri, tiny_vlm, checkpoint_every=3)))
    command = [sys.executable, "-m", "adamllm_ray.cli", "train", str(tmp_path / "run.yaml")]
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as ray_folder:
        env = os.environ | {"RAY_TMPDIR": ray_folder, "ADAMLLM_OBJECT_STORE_BYTES": str(128 << 20)}
        with (tmp_path / "first.log").open("w") as log:
            life = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        sealed = run.stage("train").place.child("ray/train")
        while not any(examine(sealed.child(name))[0] for name in names(sealed)):
            assert life.poll() is None, (tmp_path / "first.log").read_text()[-3000:]
            time.sleep(0.05)
        life.kill()
        life.wait()
        again = subprocess.run(command, capture_output=True, text=True, env=env)
    assert again.returncode == 0, again.stderr[-3000:]
    found = run.stage("train").manifest()
    assert found is not None
    assert found.extra["resumed"]
    assert found.extra["losses"] == manifest.extra["losses"]
    assert found.verdicts == manifest.verdicts
    assert _weights(found) == _weights(manifest)


def test_sigterm_saves_before_it_ends(undisturbed: tuple[Path, Manifest], tmp_path: Path, tiny_vlm: Path) -> None:
    """A pod that is to go: the step is finished, a checkpoint is written, the same command continues."""
    _, manifest = undisturbed
    run = finished_synthesis(tmp_path / "run", synthesized_rows())
    config = training_config(tmp_path / "run", tiny_vlm, checkpoint_every=1000)
    (tmp_path / "run.yaml").write_text(dump_config(config))
    command = [sys.executable, "-m", "adamllm_ray.cli", "train", str(tmp_path / "run.yaml")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "200"})
    while not _started(process.pid):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 130, errors[-3000:]
    assert "the same command continues" in errors
    assert list((tmp_path / "run").glob("train/ray/train/step-*")), "no checkpoint was written on the way out"
    again = train(config, run)
    assert again.extra["losses"] == manifest.extra["losses"]


def _started(driver: int) -> bool:
    """Whether a training worker of this driver's Ray has its model: from then on it takes steps."""
    import psutil

    for process in psutil.Process(driver).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words = process.cmdline() or [""]  # none: it ended, and nobody has waited for it yet
            if words[0].startswith("ray::RayTrainWorker") and process.cpu_times().user > 3:
                return True
    return False


def test_loss_that_is_not_finite_stops_the_run(tmp_path: Path, tiny_vlm: Path) -> None:
    run = finished_synthesis(tmp_path, synthesized_rows())
    config = training_config(tmp_path, tiny_vlm, learning_rate=1e30, clip_norm=1e30, warmup_share=0.0)
    with pytest.raises(TrainingError, match="loss is"):
        train(config, run)
    assert run.stage("train").manifest() is None
