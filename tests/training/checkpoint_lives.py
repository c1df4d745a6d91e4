"""Lives of a training run without Ray, each of two real processes, for test_checkpoints.py.

A life continues from the newest checkpoint and takes two steps, each followed by a checkpoint; it may end by SIGKILL
at a named point of its last save. The processes are forked from a server that has imported DeepSpeed: a life takes
seconds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORLD, STEPS = 2, 8
_CONTEXT = multiprocessing.get_context("forkserver")


def live(runs: str, folder: Path, steps: int, death: str = "") -> dict[str, Any]:
    """One life. Returns what worker 0 wrote at its start and end: {"start", "passed_over", "sum"}."""
    _CONTEXT.set_forkserver_preload(["tests.training.checkpoint_preload"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    said = folder / "said.json"
    said.unlink(missing_ok=True)
    spec = {"runs": runs, "said": str(said), "steps": steps, "death": death, "port": port, "env": dict(os.environ)}
    processes = [_CONTEXT.Process(target=_worker, args=(rank, spec)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    processes[0].join(120)
    if death:
        processes[1].kill()  # it waits for the dead one, as a worker that Ray is about to end
    processes[1].join(60)
    assert processes[0].exitcode == (-signal.SIGKILL if death else 0), processes[0].exitcode
    found: dict[str, Any] = json.loads(said.read_text())
    return found


def _worker(rank: int, spec: dict[str, Any]) -> None:
    os.environ.update(spec["env"])
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD), MASTER_ADDR="127.0.0.1")
    os.environ.update(MASTER_PORT=str(spec["port"]), CUDA_VISIBLE_DEVICES="")
    import torch

    from adamllm_ray.config import TrainingSection
    from adamllm_ray.data import storage
    from adamllm_ray.training import snapshots
    from adamllm_ray.training.checkpoints import Checkpoints
    from adamllm_ray.training.collate import Batch
    from adamllm_ray.training.loop import StepLoop

    torch.set_num_threads(1)
    torch.manual_seed(0)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Dropout(0.1), torch.nn.Linear(32, 1))

        def forward(self, x: torch.Tensor) -> Any:
            return type("Output", (), {"loss": self.layers(x).square().mean()})

    class Source:
        steps = spec["steps"]

        def load(self, step: int) -> list[Batch]:
            draw = torch.Generator().manual_seed(step * WORLD + rank)
            return [Batch({"x": torch.randn(4, 16, generator=draw)}, 4.0, [str(step)])]

    section = TrainingSection.model_validate(
        {"global_batch": 8, "micro_batch": 4, "precision": "fp32", "learning_rate": 1e-2}
    )
    loop, runs = StepLoop(Model(), section, steps=STEPS), storage.resolve(spec["runs"])
    books = Checkpoints(runs, loop)
    snapshot = books.newest()
    if snapshot is not None:
        assert books.load(snapshot)[0] == {"rank": rank}
    start = snapshot.step if snapshot else 0
    said = {"start": start, "passed_over": books.passed_over}
    if rank == 0:
        Path(spec["said"]).write_text(json.dumps(said))

    def after(report: Any) -> None:
        if report.step == Source.steps and rank == 0 and spec["death"] != "deleting":
            _die_at(spec["death"])
        books.save(report.step, {"rank": rank})

    loop.run(Source(), start=start, on_step=after)
    if rank == 0:
        if spec["death"] == "deleting":
            _die_at("deleting")
            storage.remove_folder(runs.child(snapshots.names(runs)[-1]))
        if spec["death"]:
            os.kill(os.getpid(), signal.SIGKILL)
        total = sum(float(parameter.detach().double().sum()) for parameter in loop.engine.module.parameters())
        Path(spec["said"]).write_text(json.dumps(said | {"sum": total.hex()}))


def _die_at(point: str) -> None:
    """Arrange for SIGKILL: "one file" of the shards is written, all but the seal is, while uploading, or deleting."""
    import shutil

    from s3transfer.upload import PutObjectTask

    from adamllm_ray.training import snapshots

    if point == "one file":
        import torch

        torch.save = _after(1, torch.save)
    elif point == "no seal":
        snapshots.write_complete = _after(0, snapshots.write_complete)
    elif point == "uploading":
        PutObjectTask._main = _after(1, PutObjectTask._main)  # type: ignore[method-assign]
    elif point == "deleting":
        shutil._use_fd_functions = False
        os.unlink = _after(1, os.unlink)


def _after(times: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, but the process dies instead when it was called so many times."""
    calls = iter(range(times))

    def replaced(*arguments: Any, **keywords: Any) -> Any:
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)

    return replaced
