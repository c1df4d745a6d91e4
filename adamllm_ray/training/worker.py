"""What one training worker does inside Ray Train: load, resume, step, checkpoint, export.

Everything it needs is in the run folder; the job description is a few strings. All workers take the same decisions,
worker 0 tells the others which checkpoint to continue from, and only it writes results.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from adamllm_ray.config import RunConfig, parse_config
from adamllm_ray.data import storage
from adamllm_ray.data.run import RunFolder, StageFolder
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ModelError
from adamllm_ray.training.board import Line
from adamllm_ray.training.conversations import SYNTHESIZER_KINDS
from adamllm_ray.training.snapshots import FolderNotShared

OUTCOME = "outcome.json"
RUNG_DONE = "done.json"
RAY_RUN = "train"  # name of the Ray Train run inside <stage>/ray


def rung(step: int) -> str:
    """Folder inside the stage of the model that training left behind at this step, on its way."""
    return f"rungs/{step}"


def work(job: dict[str, Any]) -> None:
    """Entry point that Ray Train calls on every worker.

    Errors that trying again cannot mend are told to the driver (``job["board"]``) instead of raised, because a raised
    one makes Ray restart the workers.
    """
    from adamllm_ray.training.loop import LossNotFinite

    board = job["board"]
    try:
        config = parse_config(json.loads(job["config"]))
        worker = Worker.start(config, job["output"], job["model"], job["steps"], job["parts"], job["stage"])
        worker.train(Line(board), job["until"])
    except (ModelError, LossNotFinite, FolderNotShared) as error:
        import ray

        ray.get(board.fail.remote(str(error)))


@dataclass(slots=True)
class Worker:
    """The state of one worker."""

    config: RunConfig
    base: str
    stage: StageFolder
    loop: Any
    source: Any
    parts: list[dict[str, Any]]
    rank: int
    world: int
    saved: Any
    reports: list[dict[str, Any]] = field(default_factory=list)
    refused: dict[str, Verdict] = field(default_factory=dict)
    resumed: list[int] = field(default_factory=list)  # steps that were continued from
    passed_over: list[str] = field(default_factory=list)  # checkpoints that could not be

    @classmethod
    def start(
        cls, config: RunConfig, output: str, base: str, steps: int, parts: list[dict[str, Any]], stage: str
    ) -> Worker:
        """Load the model and the plan, put the engine together.

        Args:
            output: the run folder's absolute address.
            steps: optimizer steps of the whole run.
            parts: the driver's table of parts, which ours must be like.
            stage: folder of this training inside the run.
        """
        import torch
        from torch import distributed as dist

        from adamllm_ray.training.adapters import load_base
        from adamllm_ray.training.checkpoints import Checkpoints
        from adamllm_ray.training.feed import FedBatches
        from adamllm_ray.training.flops import Meter
        from adamllm_ray.training.loop import StepLoop
        from adamllm_ray.training.parts import prepare_parts, same_parts
        from adamllm_ray.training.stream import open_batches

        section, seed = config.training, config.run.seed
        rank, world = dist.get_rank(), dist.get_world_size()
        if not section.gpus_per_worker:
            torch.set_num_threads(max(1, int(section.cpus_per_worker)))
        torch.manual_seed(seed)  # LoRA's first weights are drawn: the same on every worker
        model = load_base(base, section)
        prepared = prepare_parts(model, section)
        same_parts(prepared.rows, parts)
        opening: dict[str, Any] = {
            "config": config.model_dump_json(),
            "output": output,
            "base": base,
            "rank": rank,
            "world": world,
            "stage": stage,
        }
        source: Any = (
            FedBatches(steps, opening, section.data_workers) if section.data_workers else open_batches(**opening)
        )
        kinds = ["caption", "task", *(f"replay:{source.name}" for source in config.mixture.replay)]
        kinds = list(SYNTHESIZER_KINDS) if section.objective == "synthesizer" else kinds
        meter = Meter.of(model, section)
        loop = StepLoop(model, section, steps=steps, groups=prepared.groups, kinds=kinds, seed=seed, meter=meter)
        folder = RunFolder(output, config.run.s3).stage(stage)
        saved = Checkpoints(folder.place.child(f"ray/{RAY_RUN}"), loop)
        return cls(config, base, folder, loop, source, parts, rank, world, saved)

    def train(self, line: Line, until: int = 0) -> None:
        """Continue from the newest valid checkpoint, or start; end with the exported model and the outcome.

        Asked to stop, it ends with a checkpoint and no outcome. After the step ``until`` (0: none) it does so, too, and
        leaves the model of that step behind.
        """
        start = self._resume()
        if self.rank == 0:
            line.tell(self.reports)

        def after(report: Any) -> None:
            told_of = asdict(report)
            self.refused.update(told_of.pop("refused"))
            last = told_of.pop("stopping") or report.step == self.source.steps
            self.reports.append(told_of)
            if self.rank == 0:
                line.tell([told_of])
            if last or report.step % self.config.training.checkpoint_every == 0:
                self._checkpoint(report.step)

        def last() -> bool:
            return bool(line.stop() or (until and len(self.reports) + 1 >= until))

        paused = start == until > 0
        taken = [] if paused else self.loop.run(self.source, start=start, on_step=after, asked_to_stop=last)
        reached = taken[-1].step if taken else start
        if reached == self.source.steps:
            self._finish()
        elif until and reached == until:
            self._leave_model(until)
        line.settle()

    def _resume(self) -> int:
        """Load the newest valid checkpoint. Returns the number of steps it has behind it."""
        snapshot = self.saved.newest()
        self.passed_over += self.saved.passed_over
        if snapshot is None:
            return 0
        for notes in self.saved.load(snapshot):
            self.reports = notes["reports"] or self.reports
            self.refused.update({key: Verdict(value) for key, value in notes["refused"].items()})
            self.resumed += notes["resumed"]
            self.passed_over += notes["passed_over"]
        self.resumed.append(snapshot.step)
        return snapshot.step

    def _checkpoint(self, step: int) -> None:
        """Save and seal, then tell Ray Train, which keeps the books and deletes old ones."""
        import ray.train
        from ray.train import CheckpointUploadMode

        first = self.rank == 0
        own = {"reports": self.reports, "resumed": self.resumed, "passed_over": self.passed_over}
        blank: dict[str, list[Any]] = {key: [] for key in own}
        name = self.saved.save(step, (own if first else blank) | {"refused": self.refused})
        place = self.saved.runs.child(name)
        ray.train.report(
            {"step": step},
            checkpoint=ray.train.Checkpoint(place.path, place.fs),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )

    def _leave_model(self, step: int) -> None:
        """The model as it is after this step, and a note that it is whole."""
        from torch import distributed as dist

        from adamllm_ray.training.export import export_trained

        place = self.stage.place.child(rung(step))
        export_trained(self.loop, self.base, self.config.training, place.child("model"), place.child("adapter"))
        if self.rank == 0:
            storage.write_small(place.child(RUNG_DONE), b"{}")
        dist.barrier()

    def _finish(self) -> None:
        """Export on worker 0, with what every worker noted; the others wait for it."""
        from torch import distributed as dist

        from adamllm_ray.training.export import export_trained

        place = self.stage.place
        export_trained(self.loop, self.base, self.config.training, place.child("model"), place.child("adapter"))
        refused: list[Any] = [None] * self.world
        dist.all_gather_object(refused, {key: str(value) for key, value in self.refused.items()})
        if self.rank == 0:
            merged = {key: value for part in refused for key, value in part.items()}
            outcome = {"steps": self.source.steps, "losses": self.reports, "refused": merged, "parts": self.parts}
            outcome |= {"resumed": self.resumed, "passed_over": self.passed_over}
            storage.write_small(self.stage.place.child(OUTCOME), json.dumps(outcome).encode())
        dist.barrier()
