"""What one training worker does inside Ray Train: load, resume, step, checkpoint, export.

Everything it needs is in the run folder; the job description is a few strings. All workers take the same decisions,
worker 0 tells the others which checkpoint to continue from, and only it writes results.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs as pafs

from adamllm_ray.config import RunConfig, parse_config
from adamllm_ray.data import storage
from adamllm_ray.data.run import RunFolder, StageFolder
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ModelError
from adamllm_ray.training import snapshots

OUTCOME = "outcome.json"
RAY_RUN = "train"  # name of the Ray Train run inside <stage>/ray
RESHARDED = "resharded"  # beside it: the checkpoint while another number of workers takes it over


def work(job: dict[str, Any]) -> None:
    """Entry point that Ray Train calls on every worker.

    Errors that trying again cannot mend are told to the driver (``job["board"]``) instead of raised, because a raised
    one makes Ray restart the workers.
    """
    from adamllm_ray.training.loop import LossNotFinite

    board = job["board"]
    try:
        worker = Worker.start(parse_config(json.loads(job["config"])), job["output"], job["model"], job["steps"])
        worker.train(_Line(board))
    except (ModelError, LossNotFinite) as error:
        import ray

        ray.get(board.fail.remote(str(error)))


class _Line:
    """Worker 0's line to the driver: tells it each step, hears whether to stop. Never waits."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._answer: Any = None

    def tell(self, report: dict[str, Any]) -> None:
        """Send a step; the answer is looked at later."""
        self._answer = self._board.step.remote(report)

    def stop(self) -> bool:
        """Whether the driver's last answer that has arrived says stop."""
        import ray

        return self._answer is not None and bool(ray.wait([self._answer], timeout=0)[0]) and ray.get(self._answer)


@dataclass(slots=True)
class Worker:
    """The state of one worker."""

    config: RunConfig
    base: str
    stage: StageFolder
    loop: Any
    source: Any
    processor: Any
    parts: list[dict[str, Any]]
    rank: int
    world: int
    reports: list[dict[str, Any]]
    refused: dict[str, Verdict]

    @classmethod
    def start(cls, config: RunConfig, output: str, base: str, steps: int) -> Worker:
        """Load the model and the plan, put the engine together.

        Args:
            output: the run folder's absolute address.
            steps: optimizer steps of the whole run.
        """
        import torch
        from torch import distributed as dist

        from adamllm_ray.models.checkpoint import load_vlm
        from adamllm_ray.training.feed import FedBatches
        from adamllm_ray.training.loop import StepLoop
        from adamllm_ray.training.parts import prepare_parts
        from adamllm_ray.training.stream import open_batches

        section, seed = config.training, config.run.seed
        rank, world = dist.get_rank(), dist.get_world_size()
        if not section.gpus_per_worker:
            torch.set_num_threads(max(1, int(section.cpus_per_worker)))
        torch.manual_seed(seed)  # LoRA's first weights are drawn: the same on every worker
        model, processor = load_vlm(base, "bfloat16" if section.precision == "bf16" else "float32")
        if section.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        parts = prepare_parts(model, section)
        opening: dict[str, Any] = {
            "config": config.model_dump_json(),
            "output": output,
            "base": base,
            "rank": rank,
            "world": world,
        }
        source: Any = (
            FedBatches(steps, opening, section.data_workers) if section.data_workers else open_batches(**opening)
        )
        kinds = ["caption", "task", *(f"replay:{source.name}" for source in config.mixture.replay)]
        loop = StepLoop(model, section, steps=steps, groups=parts.groups, kinds=kinds, seed=seed)
        rows, stage = [asdict(row) for row in parts.rows], RunFolder(output, config.run.s3).stage("train")
        return cls(config, base, stage, loop, source, processor, rows, rank, world, [], {})

    def train(self, line: _Line) -> None:
        """Continue from the newest valid checkpoint, or start; end with the exported model and the outcome.

        Asked to stop, it ends with a checkpoint and no outcome.
        """
        start = self._resume()

        def after(report: Any) -> None:
            told_of = asdict(report)
            self.refused.update(told_of.pop("refused"))
            last = told_of.pop("stopping") or report.step == self.source.steps
            self.reports.append(told_of)
            if self.rank == 0:
                line.tell(told_of)
            if last or report.step % self.config.training.checkpoint_every == 0:
                self._checkpoint(report.step)

        taken = self.loop.run(self.source, start=start, on_step=after, asked_to_stop=line.stop)
        if not taken or taken[-1].step == self.source.steps:
            self._finish()

    def _resume(self) -> int:
        """Load the newest valid checkpoint. Returns the number of steps it has behind it."""
        import torch
        from torch import distributed as dist

        runs = self.stage.place.child(f"ray/{RAY_RUN}")
        choice: list[Any] = list(snapshots.newest_valid(runs)) if self.rank == 0 else [None, []]
        dist.broadcast_object_list(choice, src=0, device=torch.device(self.loop.engine.device))
        snapshot: snapshots.Snapshot | None = choice[0]
        if snapshot is None:
            return 0
        place = runs.child(snapshot.name)
        with _local(place) as folder:
            self._read_notes(folder, snapshot.world)
            if snapshot.world == self.world:
                self.loop.load(folder)
        if snapshot.world != self.world:
            self._load_resharded(place)
        return snapshot.step

    def _load_resharded(self, place: storage.Location) -> None:
        """Load a checkpoint of another number of workers: worker 0 converts it, everybody reads the result."""
        from torch import distributed as dist

        from adamllm_ray.training.reshard import to_universal

        target = self.stage.place.child(f"ray/{RESHARDED}")
        if self.rank == 0:
            with _local(place) as folder, tempfile.TemporaryDirectory() as made:
                to_universal(folder, Path(made))
                storage.remove_folder(target)
                storage.make_folder(target)
                pafs.copy_files(made, target.path, destination_filesystem=target.fs)
        dist.barrier()
        with _local(target) as folder:
            self.loop.load(folder, universal=True)
        dist.barrier()
        if self.rank == 0:
            storage.remove_folder(target)

    def _read_notes(self, folder: Path, world: int) -> None:
        """Take over what the workers of the checkpoint had noted; what several of them noted goes to worker 0."""
        ranks = [self.rank] if world == self.world else range(world) if self.rank == 0 else []
        for rank in ranks:
            notes = json.loads((folder / f"worker-{rank}.json").read_text("utf-8"))
            self.reports = notes["reports"] or self.reports
            self.refused.update({key: Verdict(value) for key, value in notes["refused"].items()})

    def _checkpoint(self, step: int) -> None:
        """Save, sign, and hand over to Ray Train, which merges the folders of all workers into one."""
        import ray.train
        import torch
        from torch import distributed as dist

        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.loop.save(folder)
            notes = {"reports": self.reports if self.rank == 0 else [], "refused": self.refused}
            (folder / f"worker-{self.rank}.json").write_text(json.dumps(notes), "utf-8")
            files: list[Any] = [None] * self.world
            dist.all_gather_object(files, snapshots.sign_files(folder))
            name = [snapshots.snapshot_name(step)]
            dist.broadcast_object_list(name, src=0, device=torch.device(self.loop.engine.device))
            if self.rank == 0:
                unique = {entry["path"]: entry for part in files for entry in part}
                snapshots.write_complete(folder, step, self.world, list(unique.values()))
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"step": step}, checkpoint=checkpoint, checkpoint_dir_name=name[0])

    def _finish(self) -> None:
        """Export on worker 0, with what every worker noted; the others wait for it."""
        from torch import distributed as dist

        weights = self.loop.weights()
        refused: list[Any] = [None] * self.world
        dist.all_gather_object(refused, {key: str(value) for key, value in self.refused.items()})
        if self.rank == 0:
            self._export(weights)
            merged = {key: value for part in refused for key, value in part.items()}
            outcome = {"steps": self.source.steps, "losses": self.reports, "refused": merged, "parts": self.parts}
            storage.write_small(self.stage.place.child(OUTCOME), json.dumps(outcome).encode())
        dist.barrier()

    def _export(self, weights: Any) -> None:
        """Whole weights -> a fresh copy of the base model -> adapters merged -> folder ``model``."""
        from adamllm_ray.models.checkpoint import export_model, load_vlm
        from adamllm_ray.training.parts import attach_lora

        section = self.config.training
        model, processor = load_vlm(self.base, "bfloat16" if section.precision == "bf16" else "float32")
        tuner = attach_lora(model, section.lora) if section.lora and section.language_model.train else None
        model.load_state_dict(weights)
        model = tuner.merge_and_unload() if tuner is not None else model
        target = self.stage.place.child("model")
        with tempfile.TemporaryDirectory() as folder, storage.storage_errors("write the model", target.uri):
            export_model(model, processor, folder)
            storage.remove_folder(target)
            storage.make_folder(target)
            pafs.copy_files(folder, target.path, destination_filesystem=target.fs)


@contextmanager
def _local(place: storage.Location) -> Iterator[Path]:
    """The folder itself on a disk that all nodes share, a copy of it otherwise."""
    if place.local:
        yield Path(place.path)
        return
    with tempfile.TemporaryDirectory() as folder:
        pafs.copy_files(place.path, folder, source_filesystem=place.fs)
        yield Path(folder)
