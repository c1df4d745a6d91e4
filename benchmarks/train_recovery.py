"""What a kill costs training: SIGKILL of a rank, of all ranks, of the driver, and during a save at five points.

    python -m benchmarks.train_recovery           about five minutes on two cores

For each: steps computed more than once (and how many were possible: the interval between checkpoints), examples that
the model in the end has missed or seen twice, and whether losses and weights are bit for bit those of a run that
nothing happened to. Ranks and driver: real Ray Train, two DeepSpeed workers over gloo, the random LLaVA-NeXT of the
tests, 24 records, 11 steps, a checkpoint every 2; each worker notes what it trained on, step by step, beside the run.
Saves: the processes of tests/training/checkpoint_lives.py, without Ray, a checkpoint after every step. Counts, not
times.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adamllm_ray.config import dump_config, load_config
from adamllm_ray.data.manifest import Manifest
from adamllm_ray.data.run import RunFolder
from benchmarks.measure import ROOT, finish, say
from tests.buckets import local_bucket
from tests.conftest import TINY_TEXTS
from tests.tiny import tiny_llava_next
from tests.training.checkpoint_lives import STEPS, live
from tests.training.conftest import finished_synthesis, synthesized_rows, training_config

INTERVAL = 2  # steps between checkpoints
PACE = 0.3  # seconds that a step takes longer, so that a kill falls between two of them
KILL_AFTER = 5  # steps: one after a checkpoint
SAVES = [(2, "one file"), (3, "no seal"), (4, "sealed"), (6, "deleting")]  # steps of the life, where its last save ends


def main() -> None:
    """Kill everything once, print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--driver", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.driver:
        drive(options.driver)
        return
    os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    with tempfile.TemporaryDirectory(prefix="tr", dir="/tmp") as folder:
        kills = under_ray(Path(folder)) | during_saves(Path(folder))
    counted = ("steps_repeated", "examples_missed", "examples_doubled")
    worst = {f"{key}_most": max(kill.get(key, 0) for kill in kills.values()) for key in counted}
    same = all(kill["bitwise_equal"] for kill in kills.values())
    finish("train_recovery", worst | {"all_bitwise_equal": same, "interval": INTERVAL, "kills": kills})


def under_ray(folder: Path) -> dict[str, Any]:
    """A rank, all ranks, the driver; each compared with an undisturbed run."""
    base = _tiny_base(folder)
    undisturbed, _ = run(folder / "undisturbed", base, None)
    found = {}
    for name, kill in KILLS.items():
        manifest, starts = run(folder / name, base, kill)
        found[name] = account(folder / name, manifest) | {
            "driver_starts": starts,
            "bitwise_equal": _outcome(manifest) == _outcome(undisturbed),
        }
        say(f"{name}: {found[name]}")
    return found


def run(folder: Path, base: Path, kill: Callable[[subprocess.Popen[bytes]], None] | None) -> tuple[Manifest, int]:
    """Train, started again until it ends well. Returns the manifest and how often a driver was started."""
    books = finished_synthesis(folder, synthesized_rows())
    (folder / "seen").mkdir()
    config = training_config(folder, base, checkpoint_every=INTERVAL)
    (folder / "run.yaml").write_text(dump_config(config))
    starts = 0
    while books.stage("train").manifest() is None:
        starts += 1
        if starts > 3:
            raise RuntimeError(f"{folder.name}: the driver was started three times and did not end well")
        command = [sys.executable, "-m", "benchmarks.train_recovery", "--driver", str(folder)]
        with (folder / f"driver-{starts}.log").open("wb") as log:
            driver = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
            if kill is not None and starts == 1:
                _wait_for_steps(folder, driver)
                kill(driver)
            driver.wait(600)
    manifest = books.stage("train").manifest()
    assert manifest is not None
    return manifest, starts


def drive(folder: Path) -> None:
    """The driver: `adamllm train`, whose workers note what they trained on."""
    from adamllm_ray.training import trainer

    trainer.work = witness
    config = load_config(folder / "run.yaml")
    trainer.train(config, RunFolder(str(folder)))


def witness(job: dict[str, Any]) -> None:
    """A training worker that writes a line for every step it has taken."""
    from adamllm_ray.training import loop, worker

    step = loop.StepLoop._step

    def noted(self: Any, number: int, batches: list[Any], *more: Any) -> Any:
        report = step(self, number, batches, *more)
        ids = [id for batch in batches for id in batch.ids]
        with (Path(job["output"]) / "seen" / f"{self.rank}.jsonl").open("a") as file:
            file.write(json.dumps([report.step, ids]) + "\n")
        time.sleep(PACE)
        return report

    loop.StepLoop._step = noted  # type: ignore[method-assign]
    worker.work(job)


def account(folder: Path, manifest: Manifest) -> dict[str, int]:
    """Steps repeated; examples of the plan that the final model missed, or saw twice, by what the workers noted."""
    taken: Counter[int] = Counter()
    last: dict[tuple[str, int], list[str]] = {}
    for file in (folder / "seen").glob("*.jsonl"):
        steps = [json.loads(line) for line in file.read_text().splitlines()]
        taken |= Counter(step for step, _ in steps)
        last |= {(file.name, step): ids for step, ids in steps}  # the attempt that the final model is made of
    seen = Counter(id for ids in last.values() for id in ids)
    return {
        "steps_repeated": sum(taken.values()) - len(taken),
        "steps": len(taken),
        "examples": len(seen),
        "examples_missed": int(manifest.extra["examples"]) - len(seen),
        "examples_doubled": sum(seen.values()) - len(seen),
    }


def during_saves(folder: Path) -> dict[str, Any]:
    """Killed while a file is written, before the seal, right after it, while old ones are deleted, while uploading."""
    calm = folder / "calm"
    calm.mkdir()
    undisturbed = live(str(calm / "runs"), calm, STEPS)["sum"]
    disk = folder / "disk"
    disk.mkdir()
    found = _lives(str(disk / "runs"), disk, SAVES, undisturbed)
    with local_bucket():
        found |= _lives("s3://runs/lives", disk, [(2, "uploading")], undisturbed)
    return found


def _lives(runs: str, folder: Path, deaths: list[tuple[int, str]], undisturbed: str) -> dict[str, Any]:
    """Lives of one run, each but the last ended by a kill during its last save."""
    starts = [live(runs, folder, steps, death)["start"] for steps, death in deaths]
    last = live(runs, folder, STEPS)
    found = {}
    for (steps, death), start in zip(deaths, [*starts[1:], last["start"]], strict=True):
        repeated = {"steps_repeated": steps - start, "bitwise_equal": last["sum"] == undisturbed}
        found["save_" + death.replace(" ", "_")] = repeated
        say(f"save, {death}: {repeated}")
    return found


def _tiny_base(folder: Path) -> Path:
    """The tests' random LLaVA-NeXT."""
    from adamllm_ray.pocket.architecture import build_tokenizer

    return tiny_llava_next(build_tokenizer(TINY_TEXTS, 600), folder / "base")


def _outcome(manifest: Manifest) -> list[Any]:
    """Every step's loss and the digest of the exported weights."""
    weights = [file["sha256"] for file in manifest.files if file["path"] == "model/model.safetensors"]
    return [manifest.extra["losses"], weights, manifest.verdicts]


def _wait_for_steps(folder: Path, driver: subprocess.Popen[bytes]) -> None:
    """Until both workers have taken KILL_AFTER steps."""
    files = [folder / "seen" / f"{rank}.jsonl" for rank in range(2)]
    while not all(file.exists() and len(file.read_text().splitlines()) >= KILL_AFTER for file in files):
        if driver.poll() is not None:
            log = (folder / "driver-1.log").read_text()[-2000:]
            raise RuntimeError(f"{folder.name}: the run ended before anything could be killed\n{log}")
        time.sleep(0.05)


def _workers(driver: subprocess.Popen[bytes]) -> list[int]:
    """Processes of the training workers under a driver's Ray."""
    import psutil

    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if (process.cmdline() or [""])[0].startswith("ray::RayTrainWorker"):
                found.append(process.pid)
    if len(found) != 2:
        raise RuntimeError(f"{len(found)} training workers instead of 2")
    return found


def _slay(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


KILLS: dict[str, Callable[[subprocess.Popen[bytes]], None]] = {
    "rank": lambda driver: _slay(_workers(driver)[:1]),
    "all_ranks": lambda driver: _slay(_workers(driver)),
    "driver": lambda driver: _slay([driver.pid]),
}


if __name__ == "__main__":
    main()
