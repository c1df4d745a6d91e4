"""Saving and continuing, by all workers of a run together. No Ray in it.

    books = Checkpoints(runs, loop)
    name = books.save(step, notes)          # every worker; the folder is sealed when it returns
    snapshot = books.newest()               # every worker gets the same answer
    notes = books.load(snapshot)

On a disk that all nodes share, the shards are written where they stay; for S3 each worker writes its own to its disk
and uploads them. Every worker hashes its share of the files, so neither saving nor checking waits for one of them.
With another number of workers than the checkpoint has, worker 0 converts it (see `reshard`) and all read the result.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from adamllm_ray.data import storage, transfer
from adamllm_ray.data.storage import Location
from adamllm_ray.training import snapshots
from adamllm_ray.training.loop import StepLoop
from adamllm_ray.training.snapshots import Snapshot

RESHARDED = "resharded"  # beside the checkpoints' folder: one of them while another number of workers takes it over


class Checkpoints:
    """The checkpoints of one run.

    Args:
        runs: the folder that holds them.
        loop: whose state they are; its process group is the one that decides together.

    Attributes:
        passed_over: a sentence for each checkpoint that `newest` could not use.
    """

    def __init__(self, runs: Location, loop: StepLoop) -> None:
        self.runs, self.loop, self.rank, self.world = runs, loop, loop.rank, loop.world
        self.passed_over: list[str] = []

    def save(self, step: int, notes: dict[str, Any]) -> str:
        """Write and seal a checkpoint; ``notes`` (JSON) are this worker's own. Returns the folder's name.

        Raises:
            FolderNotShared: nothing is sealed, on any worker.
            OSError: it cannot be written.
        """
        name: str = self._from_first(snapshots.snapshot_name(step) if self.rank == 0 else None)
        place = self.runs.child(name)
        with _work_folder(place) as folder:
            self.loop.save(folder)
            (folder / f"worker-{self.rank}.json").write_text(json.dumps(notes), "utf-8")
            dist.barrier()
            written = transfer.files_below(folder)
            mine = written[self.rank :: self.world] if place.local else written
            signed = snapshots.sign_files(storage.resolve(str(folder)), mine)
            if not place.local:
                transfer.upload(folder, place, mine)
        files = [entry for part in self._from_all(signed) for entry in part]
        problem = self._from_first(self._seal(place, step, files) if self.rank == 0 else None)
        if problem:
            raise snapshots.FolderNotShared(problem)
        return name

    def newest(self) -> Snapshot | None:
        """The valid checkpoint with the most steps, the same on every worker."""
        for name in self._from_first(snapshots.names(self.runs) if self.rank == 0 else None):
            place = self.runs.child(name)
            snapshot, problem = self._from_first(snapshots.outline(place) if self.rank == 0 else None)
            if snapshot is not None:
                found = self._from_all(snapshots.changed(place, snapshot.files[self.rank :: self.world]))
                problem = next(filter(None, found), "")
            if not problem:
                return snapshot
            self.passed_over.append(f"checkpoint {name} is not used: {problem}")
        return None

    def load(self, snapshot: Snapshot) -> list[dict[str, Any]]:
        """Restore it. Returns the notes that are now this worker's: its own, or with another number of workers those
        of all for worker 0 and none for the others.

        Raises:
            TrainingError: it cannot be loaded or converted.
            OSError: it cannot be read.
        """
        place = self.runs.child(snapshot.name)
        if snapshot.world == self.world:
            with _local(place, snapshot.needed_by(self.rank)) as folder:
                self.loop.load(folder)
                return [_notes(folder, self.rank)]
        return self._load_resharded(place, snapshot)

    def _load_resharded(self, place: Location, snapshot: Snapshot) -> list[dict[str, Any]]:
        from adamllm_ray.training.reshard import to_universal

        target, notes = _beside(self.runs, RESHARDED), []
        if self.rank == 0:
            with _local(place) as folder, tempfile.TemporaryDirectory() as made:
                notes = [_notes(folder, rank) for rank in range(snapshot.world)]
                to_universal(folder, Path(made))
                storage.remove_folder(target)
                storage.make_folder(target)
                transfer.upload(Path(made), target)
        dist.barrier()
        with _local(target) as folder:
            self.loop.load(folder, universal=True)
        dist.barrier()
        if self.rank == 0:
            storage.remove_folder(target)
        return notes

    def _seal(self, place: Location, step: int, files: list[dict[str, Any]]) -> str:
        """Empty, or the problem: all workers have to hear of it."""
        try:
            snapshots.write_complete(place, step, self.world, files)
        except snapshots.FolderNotShared as problem:
            return str(problem)
        return ""

    def _from_first(self, value: Any) -> Any:
        """What worker 0 says."""
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device(self.loop.engine.device))
        return box[0]

    def _from_all(self, value: Any) -> list[Any]:
        """What each worker says, in the order of ranks."""
        boxes: list[Any] = [None] * self.world
        dist.all_gather_object(boxes, value)
        return boxes


def _notes(folder: Path, rank: int) -> dict[str, Any]:
    notes: dict[str, Any] = json.loads((folder / f"worker-{rank}.json").read_text("utf-8"))
    return notes


def _beside(place: Location, name: str) -> Location:
    folder, uri = place.path.rpartition("/")[0], place.uri.rpartition("/")[0]
    return Location(place.fs, f"{folder}/{name}", f"{uri}/{name}", place.local, place.s3)


@contextmanager
def _work_folder(place: Location) -> Iterator[Path]:
    """A local folder to write to: the place itself where that is local, one that is deleted again otherwise."""
    if place.local:
        storage.make_folder(place)
        yield Path(place.path)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@contextmanager
def _local(place: Location, names: Sequence[str] | None = None) -> Iterator[Path]:
    """The folder itself on a disk that all nodes share, a copy (of the named files) otherwise."""
    if place.local:
        yield Path(place.path)
        return
    with tempfile.TemporaryDirectory() as folder:
        transfer.download(place, Path(folder), names)
        yield Path(folder)
