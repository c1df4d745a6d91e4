"""What one training worker does inside Ray Train: load, resume, step, checkpoint, export.

Everything it needs is in the run folder; the job description is a few strings. All workers take the same decisions,
worker 0 tells the others which checkpoint to continue from, and only it writes results.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs as pafs

from adamllm_ray.config import RunConfig, parse_config
from adamllm_ray.data import storage
from adamllm_ray.data.run import RunFolder, StageFolder
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ModelError, TrainingError
from adamllm_ray.training import snapshots

OUTCOME = "outcome.json"
RAY_RUN = "train"  # name of the Ray Train run inside <stage>/ray


def work(job: dict[str, Any]) -> None:
    """Entry point that Ray Train calls on every worker.

    Errors that trying again cannot mend are told to the driver (``job["board"]``) instead of raised, because a raised
    one makes Ray restart the workers.
    """
    from adamllm_ray.training.loop import LossNotFinite

    board = job["board"]
    try:
        worker = Worker.start(parse_config(json.loads(job["config"])), job["output"], job["model"], job["steps"])
        worker.train(lambda report: board.step.remote(report))
    except (ModelError, LossNotFinite, WorldChanged) as error:
        import ray

        ray.get(board.fail.remote(str(error)))


class WorldChanged(TrainingError):
    """The newest checkpoint belongs to another number of workers."""


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
        loop = StepLoop(model, section, steps=steps, groups=parts.groups, seed=seed)
        rows, stage = [asdict(row) for row in parts.rows], RunFolder(output, config.run.s3).stage("train")
        return cls(config, base, stage, loop, source, processor, rows, rank, world, [], {})

    def train(self, told: Callable[[dict[str, Any]], object]) -> None:
        """Continue from the newest valid checkpoint, or start; end with the exported model and the outcome."""
        start = self._resume()

        def after(report: Any) -> None:
            told_of = asdict(report)
            self.refused.update(told_of.pop("refused"))
            self.reports.append(told_of)
            if self.rank == 0:
                told(self.reports[-1])
            if report.step % self.config.training.checkpoint_every == 0 or report.step == self.source.steps:
                self._checkpoint(report.step)

        self.loop.run(self.source, start=start, on_step=after)
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
        if snapshot.world != self.world:
            raise WorldChanged(
                f"the newest checkpoint was written by {snapshot.world} workers, this run has {self.world}; set "
                f"training.workers={snapshot.world} to continue it, or --force-new to start again"
            )
        place = runs.child(snapshot.name)
        if place.local:
            self._restore(Path(place.path))
        else:
            with tempfile.TemporaryDirectory() as folder:
                pafs.copy_files(place.path, folder, source_filesystem=place.fs)
                self._restore(Path(folder))
        return snapshot.step

    def _restore(self, folder: Path) -> None:
        self.loop.load(folder)
        notes = json.loads((folder / f"worker-{self.rank}.json").read_text("utf-8"))
        self.reports = notes["reports"]
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
